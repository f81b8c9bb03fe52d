"""Joins what a gateway, its workers, a venue and clients noted of each quote into the stages that it passed."""

from collections.abc import Mapping

from bench.spans.quote_kinds import Asked, Fed, Got, Handed, Published, Reached, Turn, Wrote
from bench.spans.staged import Passed, Stage, passed, sent_on
from bench.spans.stamps import Stamps

GROUPS: dict[str, tuple[str, ...]] = {
    "way in": ("venue writes", "waits for the core's loop, WebSocket frame"),
    "normalise": ("decoded, checked, normalised",),
    "best price, tape": ("best prices", "bars, tape, books, tick log", "noted for the fan-out"),
    "tick of publishing": ("waits for the tick of publishing", "what changed is published"),
    "core's round": ("waits for the core's round",),
    "encode": ("encoded",),
    "to the worker": ("turn of the worker", "written to the worker", "waits for the worker's loop", "taken in"),
    "worker's round": ("waits for the worker's round", "marked for its readers"),
    "client's turn": ("others before it", "written to the socket"),
    "way back": ("client reads it",),
}
"""Every stage, in order, under the word for it in a picture."""
STAGES = [name for names in GROUPS.values() for name in names]


class Quotes:
    """workers: by number."""

    def __init__(self, core: Stamps, workers: Mapping[int, Stamps], load: Stamps) -> None:
        self.asked = {row.quote: row for row in map(Asked._make, load.rows("Asked"))}
        self.got = [Got._make(row) for row in load.rows("Got")]
        self.fed = {row.quote: row for row in map(Fed._make, core.rows("Fed"))}
        self.published = {row.quote: row for row in map(Published._make, core.rows("Published"))}
        self.handed = {(row.worker, row.quote): row for row in map(Handed._make, core.rows("Handed"))}
        self.reached: dict[tuple[int, int], Reached] = {}
        self.turns: dict[tuple[int, int], Turn] = {}
        self.wrote: dict[tuple[int, int], tuple[int, Wrote]] = {}
        """By port and time of the round: at which worker, and what it noted."""
        for number, stamps in workers.items():
            self.reached |= {(number, row.quote): row for row in map(Reached._make, stamps.rows("Reached"))}
            self.turns |= {(number, row.at_us): row for row in map(Turn._make, stamps.rows("Turn"))}
            self.wrote |= {(row.port, row.at_us): (number, row) for row in map(Wrote._make, stamps.rows("Wrote"))}

    def passed(self, got: Got) -> Passed:
        """The stages of one quote to one client; those that are not known are left out, and it does not add up."""
        asked = self.asked[got.quote]
        return passed(got.received - asked.began, self.stages(asked, got), at=asked.began)

    def stages(self, asked: Asked, got: Got) -> list[Stage]:
        fed, published = self.fed.get(got.quote), self.published.get(got.quote)
        number, wrote = self.wrote.get((got.port, got.at_us), (0, None))
        handed, reached = self.handed.get((number, got.quote)), self.reached.get((number, got.quote))
        turn = self.turns.get((number, got.at_us))
        if fed is None or published is None or wrote is None or handed is None or reached is None or turn is None:
            return []
        came = "waits for the core's loop, WebSocket frame"
        return [
            *sent_on("venue writes", asked.began, asked.written, came, fed.taken),
            ("decoded, checked, normalised", fed.taken, fed.fed),
            ("best prices", fed.fed, fed.nbbo),
            ("bars, tape, books, tick log", fed.nbbo, fed.took),
            ("noted for the fan-out", fed.took, fed.noted),
            ("waits for the tick of publishing", fed.noted, published.ticked),
            ("what changed is published", published.ticked, published.published),
            ("waits for the core's round", published.published, handed.began),
            ("encoded", handed.began, handed.marked),
            ("turn of the worker", handed.marked, handed.writing),
            *sent_on(
                "written to the worker",
                handed.writing,
                handed.written,
                "waits for the worker's loop",
                reached.received,
            ),
            ("taken in", reached.received, reached.published),
            ("waits for the worker's round", reached.published, turn.began),
            ("marked for its readers", turn.began, turn.marked),
            ("others before it", turn.marked, wrote.writing),
            *sent_on("written to the socket", wrote.writing, wrote.written, "client reads it", got.received),
        ]
