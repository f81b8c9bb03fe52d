"""Fan-out beside a native server, in turns, A B A B: the same sockets, symbols, updates and payloads for both."""

import asyncio
import gc
import time
from pathlib import Path
from statistics import fmean

import uvloop
from msgspec import Struct

from bench import host, progress
from bench.fanout_case import Loading, Made, loads_for, measured, run_once, used
from bench.fanout_load import LoadOptions
from bench.peers.fanout_nats import Nats, Publishing
from bench.peers.peer import PeerFailed, PeerMissing
from bench.report import NINES, Curve, Figure, Report, at_least

OURS = "tiebreak"
NATS = "nats"
LOOPBACK = "127.0.0.1"
NATS_LOAD = "bench.peers.fanout_nats_load"
POINTS = ((1_000, 10), (10_000, 1), (10_000, 10))
"""Sockets, and how often a symbol changes a second. The last is more than these two cores carry, for either."""
SYMBOLS = 10
CATALOGUE = 500
GOAL = 1.0
KEPT_UP = 90.0
"""Percent of all changes. Who delivers less conflates or has queues that grow: a ratio would compare different work."""
LATE = "From the core to the client"
WORDS = {
    OURS: "workers that send each socket what changed in a frame a tick; the tick is longer where they are behind",
    NATS: "one server, WebSockets without compression; each update goes to each subscriber, nothing is conflated",
}


class Turn(Struct, frozen=True):
    """What one of them did at one number of sockets. CPU in percent of a core.

    per_core_s: updates delivered for a second of the servers' CPU: ours with the core that feeds the workers, NATS
    without who publishes. late_ms: from core or publisher to the client, in hundredths.
    """

    who: str
    sockets: int
    changes_per_s: int
    per_s: float
    share: float
    per_core_s: float
    servers_cpu: float
    maker_cpu: float
    loads_cpu: float
    frames: float
    """A socket, a second."""
    update_bytes: float
    connection_kib: float
    open: float
    flush_p99_ms: float
    late_ms: list[float]

    @property
    def point(self) -> str:
        return point_words(self.sockets, self.changes_per_s)

    @property
    def p50_ms(self) -> float:
        return self.late_ms[50] if self.late_ms else 0.0

    @property
    def p99_ms(self) -> float:
        return self.late_ms[99] if self.late_ms else 0.0


COLUMNS = (
    ("per_s", "delivered updates a second", "/s"),
    ("share", "  of all that changed", "%"),
    ("per_core_s", "  for a second of the servers' CPU", ""),
    ("p50_ms", "  to the client, p50", "ms"),
    ("p99_ms", "  to the client, p99", "ms"),
    ("flush_p99_ms", "  from flush to client, p99", "ms"),
    ("servers_cpu", "  CPU of the servers", "% of a core"),
    ("maker_cpu", "  CPU of who makes the quotes", "% of a core"),
    ("loads_cpu", "  CPU of the loads", "% of a core"),
    ("frames", "  frames a socket a second", "/s"),
    ("update_bytes", "  bytes an update", "B"),
    ("connection_kib", "  memory for a connection", "KiB"),
    ("open", "  sockets open at the end", ""),
)


def point_words(sockets: int, changes_per_s: int) -> str:
    """For people: `10,000 sockets, 10/s`."""
    return f"{sockets:,} sockets, {changes_per_s}/s"


def turn_of(who: str, sockets: int, changes_per_s: int, made: Made, seconds: float) -> Turn:
    """What was counted, for a second, a core and an update."""
    updates = made.total("updates")
    cpu_s = made.cpu_s + (made.core_cpu_s if who == OURS else 0.0)
    # The loads hear the same rounds, each its own sockets: the slower one counts.
    lates = [one.whole_us for one in made.counted if one.whole_us]
    return Turn(
        who=who,
        sockets=sockets,
        changes_per_s=changes_per_s,
        per_s=updates / seconds,
        share=100 * updates / seconds / (sockets * SYMBOLS * changes_per_s),
        per_core_s=updates / max(0.01, cpu_s),
        servers_cpu=100 * cpu_s / seconds,
        maker_cpu=100 * made.core_cpu_s / seconds,
        loads_cpu=100 * sum(one.cpu_s for one in made.counted) / seconds,
        frames=made.total("frames") / seconds / sockets,
        update_bytes=made.total("bytes") / max(1, updates),
        connection_kib=made.rss_more_bytes / max(1, made.connections) / 1024,
        open=made.total("open"),
        flush_p99_ms=made.worst("latency_us", 99) / 1e3,
        late_ms=[max(hundredth) / 1e3 for hundredth in zip(*lates, strict=True)],
    )


def fanout_peers(folder: Path, *, sockets: int = 0, workers: int = 2, seconds: float = 4.0, rounds: int = 2) -> Report:
    """Fan-out beside NATS in turns: updates delivered for a second of the servers' CPU, and how late they come."""
    began_s = time.monotonic()
    points = [(sockets, changes) for changes in (1, 10)] if sockets else list(POINTS)
    root = folder / "fanout-peers"
    turns: list[Turn] = []
    notes = [f"{name}: {WORDS[name]}" for name in (OURS, NATS)]
    versions: dict[str, str] = {}
    left = [OURS, NATS]
    with progress.steps("fan-out", rounds * len(points) * len(left)) as begin:
        for turn in range(rounds):
            for at, (count, changes) in enumerate(points):
                for name in list(left):
                    begin(f"{name}, {point_words(count, changes)}")
                    try:
                        made = _one(name, root / f"{turn}-{at}-{name}", count, changes, workers, seconds, versions)
                    except (PeerMissing, PeerFailed) as error:
                        notes.append(f"{name}, turn {turn + 1}: {error}")
                        left.remove(name)
                        continue
                    turns.append(turn_of(name, count, changes, made, seconds))
    return Report(
        benchmark="fanout-peers",
        figures=figures(turns),
        settings={
            "turns": rounds,
            "order": ", ".join((OURS, NATS)),
            "points": "; ".join(point_words(*point) for point in points),
            "symbols": f"{SYMBOLS} of {CATALOGUE} for each socket",
            "workers": workers,
            "seconds": seconds,
            **versions,
        },
        host=host.describe(folder),
        seconds=time.monotonic() - began_s,
        notes=[
            *notes,
            "CPU of the servers: ours with the core that makes and hands on the quotes, NATS without who publishes",
            "to the client: from when an update became true in the core, or with the publisher, to the client's read",
            "10/s: how often each symbol changes; the loads are the same program for both and share the cores",
            f"no ratio where one of them delivered less than {KEPT_UP:g} % of all changes",
        ],
        curves=curves(turns),
    )


def _one(
    name: str, folder: Path, sockets: int, changes_per_s: int, workers: int, seconds: float, versions: dict[str, str]
) -> Made:
    """Servers of its own for one turn. Raises PeerMissing, PeerFailed, RunError."""
    if name == OURS:
        return uvloop.run(
            run_once(
                folder, sockets, SYMBOLS, workers, seconds, False,
                catalogue=CATALOGUE, per_s=changes_per_s, hosts=[LOOPBACK], rate="live",
            )
        )  # fmt: skip
    with Nats(folder) as nats:
        versions[name] = nats.version
        return uvloop.run(_nats(nats, sockets, changes_per_s, seconds))


async def _nats(nats: Nats, sockets: int, changes_per_s: int, seconds: float) -> Made:
    whole = LoadOptions(
        hosts=[LOOPBACK], port=nats.stream_port, sockets=sockets, symbols=SYMBOLS, catalogue=CATALOGUE,
        token=nats.token, seed=1,
    )  # fmt: skip
    gc.collect()
    gc.freeze()
    before = used(nats.pids)
    publishing = asyncio.create_task(Publishing(nats, CATALOGUE, changes_per_s).run())
    loading = Loading(whole, loads=loads_for(sockets), module=NATS_LOAD)
    try:
        made = await measured(loading, before, lambda: used(nats.pids), sockets=sockets, seconds=seconds)
        if publishing.done():
            publishing.result()
        return made
    except OSError as error:
        raise PeerFailed(f"nats-server is not reached any more: {error}") from error
    finally:
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)


def figures(turns: list[Turn]) -> list[Figure]:
    """Means over the turns, and at each number of sockets how many times the other we deliver for the same CPU."""
    found: list[Figure] = []
    for point in dict.fromkeys(turn.point for turn in turns):
        for name in dict.fromkeys(turn.who for turn in turns):
            for column, words, unit in COLUMNS if any((t.who, t.point) == (name, point) for t in turns) else ():
                # Theirs is the same as the whole way: nothing waits in it for a flush.
                if (name, column) != (NATS, "flush_p99_ms"):
                    said = words if words.startswith(" ") else f"{name}, {point}: {words}"
                    found.append(Figure(said, _mean(turns, name, point, column), unit))
        ours, theirs = (_mean(turns, name, point, "per_core_s") for name in (OURS, NATS))
        if theirs and all(_mean(turns, name, point, "share") >= KEPT_UP for name in (OURS, NATS)):
            found.append(at_least(f"ours to NATS's for the same CPU, {point}", ours / theirs, GOAL, "x"))
    return found


def curves(turns: list[Turn]) -> list[Curve]:
    """Bars for each point, and how late updates are."""
    found: list[Curve] = []
    names = list(dict.fromkeys(turn.who for turn in turns))
    points = list(dict.fromkeys(turn.point for turn in turns))
    for column, picture, label in (
        ("per_core_s", "Delivered for a second of the servers' CPU", "updates"),
        ("per_s", "Delivered a second", "updates"),
        ("share", "Delivered, of all that changed", "%"),
    ):
        for name in names:
            means = [_mean(turns, name, point, column) for point in points]
            words: list[float | str] = [point.replace(" sockets, ", "\n") for point in points]
            found.append(Curve(picture, "bars", name, words, means, "sockets, changes of each symbol", label))
    for name in names:
        for point in points:
            lates = [turn.late_ms for turn in turns if (turn.who, turn.point) == (name, point) and turn.late_ms]
            if lates:
                percents = [percent for percent in NINES if percent in range(100)]
                means = [fmean(late[int(percent)] for late in lates) for percent in percents]
                x: list[float | str] = [*percents]
                found.append(Curve(LATE, "distribution", f"{name}, {point}", x, means, "percent of all", "ms"))
    return found


def _mean(turns: list[Turn], name: str, point: str, column: str) -> float:
    """0 where it was not measured."""
    values = [getattr(turn, column) for turn in turns if (turn.who, turn.point) == (name, point)]
    return fmean(values) if values else 0.0
