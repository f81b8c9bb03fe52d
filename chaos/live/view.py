"""What a run looks like while it goes on: a screen that changes in place, or a line every few seconds."""

import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any, Protocol

from msgspec import Struct
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

EVERY_S = 0.25
PLAIN_EVERY_S = 5.0
SAID_MAX = 6
OUTCOMES = ("ok", "fail", "unknown")
STYLES = {"ok": "green", "fail": "yellow", "unknown": "magenta"}


class Row(Struct):
    """One member or gateway. per_s: by outcome, over the last second or so."""

    name: str
    site: str
    up: bool
    state: str = ""
    term: int = 0
    commit: int = 0
    per_s: dict[str, float] = {}


class Picture(Struct):
    """What a view shows. faults: those in force, in words. counts: operations so far, by outcome."""

    title: str
    phase: str
    at_s: float
    of_s: float
    rows: list[Row]
    faults: list[str]
    counts: dict[str, int]

    @property
    def leader(self) -> str:
        """Who leads in the highest term, with that term, or that nobody is known to."""
        leading = max((row for row in self.rows if row.state == "leader"), key=lambda row: row.term, default=None)
        return f"{leading.name} leads term {leading.term}" if leading is not None else "nobody leads"


class View(Protocol):
    """Where a run shows itself."""

    def show(self, picture: Picture) -> None:
        """Called some times a second."""
        ...

    def say(self, text: str) -> None:
        """Something happened; text may hold rich markup."""
        ...

    def close(self) -> None: ...


class Rates:
    """Operations per second over about a second, from counts that grow."""

    def __init__(self) -> None:
        self._past: deque[tuple[float, Counter[tuple[str, str]]]] = deque()

    def of(self, tally: Counter[tuple[str, str]], now: float) -> dict[str, dict[str, float]]:
        """By target and outcome."""
        self._past.append((now, Counter(tally)))
        while len(self._past) > 2 and now - self._past[0][0] > 1.2:
            self._past.popleft()
        then, before = self._past[0]
        per_s: dict[str, dict[str, float]] = {}
        for (target, outcome), count in tally.items():
            rate = (count - before[target, outcome]) / max(now - then, EVERY_S)
            per_s.setdefault(target, {})[outcome] = rate
        return per_s


def rows(
    names: Iterable[tuple[str, str]], latest: dict[str, dict[str, Any] | None], rates: dict[str, dict[str, float]]
) -> list[Row]:
    """names: (name, site) of each. latest: what each last said of itself."""
    made = []
    for name, site in names:
        status = latest.get(name)
        row = Row(name, site, status is not None, per_s=rates.get(name, {}))
        if status is not None:
            row.state = str(status.get("state", ""))
            row.term = int(status.get("term", 0))
            row.commit = int(status.get("commit_index", 0))
        made.append(row)
    return made


class Screen:
    """For a terminal."""

    def __init__(self, console: Console) -> None:
        self._said: deque[str] = deque(maxlen=SAID_MAX)
        self._picture: Picture | None = None
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def show(self, picture: Picture) -> None:
        self._picture = picture
        self._live.update(self._drawn(picture), refresh=True)

    def say(self, text: str) -> None:
        self._said.append(f"[dim]{time.strftime('%H:%M:%S')}[/] {text}")
        if self._picture is not None:
            self.show(self._picture)

    def close(self) -> None:
        self._live.stop()

    def _drawn(self, picture: Picture) -> Group:
        table = Table(box=None, pad_edge=False)
        for title, justify in (("", "left"), ("state", "left"), ("term", "right"), ("commit", "right")):
            table.add_column(title, justify="right" if justify == "right" else "left")
        for outcome, title in zip(OUTCOMES, ("answered/s", "refused/s", "unknown/s"), strict=True):
            table.add_column(title, justify="right", style=STYLES[outcome], min_width=10)
        for row in picture.rows:
            state = Text(row.state if row.up else "not reached", style=_style(row))
            rates = (f"{row.per_s[outcome]:.0f}" if row.per_s.get(outcome) else "" for outcome in OUTCOMES)
            table.add_row(row.name, state, str(row.term or ""), str(row.commit or ""), *rates)
        cut = Text.from_markup(
            f"[red]in force[/]: {escape('; '.join(picture.faults))}" if picture.faults else "no fault in force"
        )
        at = f"{picture.at_s:.0f} of {picture.of_s:.0f} s" if picture.of_s else f"{picture.at_s:.0f} s"
        head = Text.from_markup(f"[bold]{picture.title}[/]   {picture.phase}   {at}   {picture.leader}")
        counts = "   ".join(f"{picture.counts.get(name, 0):,} {word}" for name, word in _WORDS)
        return Group(head, cut, table, Text(counts, style="dim"), *map(Text.from_markup, self._said))


_WORDS = (("ok", "answered"), ("fail", "refused"), ("unknown", "unknown"))


def _style(row: Row) -> str:
    if not row.up:
        return "red"
    return "bold green" if row.state == "leader" else "yellow" if row.state == "candidate" else ""


class Lines:
    """For a log, a pipe, a test: a line every few seconds, and whenever something happens."""

    def __init__(self, console: Console, *, every_s: float = PLAIN_EVERY_S) -> None:
        self._console = console
        self._every_s = every_s
        self._next = 0.0

    def show(self, picture: Picture) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._every_s
        done = [
            f"{row.name} " + "/".join(f"{row.per_s.get(outcome, 0):.0f}" for outcome in OUTCOMES)
            for row in picture.rows
            if row.per_s
        ]
        faults = f"   in force: {escape('; '.join(picture.faults))}" if picture.faults else ""
        rates = f"   answered/refused/unknown per s: {', '.join(done)}" if done else ""
        self._line(f"{picture.at_s:5.0f} s {picture.phase}   {picture.leader}{rates}{faults}")

    def say(self, text: str) -> None:
        self._line(f"        {text}")

    def close(self) -> None: ...

    def _line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)


class Silent:
    """For those who want the verdict alone."""

    def show(self, picture: Picture) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


def view_for(console: Console) -> View:
    return Screen(console) if console.is_terminal else Lines(console)
