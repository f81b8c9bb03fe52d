"""What came of many requests that passed the same stages: do they add up, what does each take, and how it is drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from msgspec import Struct

from bench.report import Curve, Figure, exactly
from bench.stats import Spread, percentile, spread

OFF_MAX = 0.05
"""Of its latency, by which a request's stages may miss it."""
MIDDLE = (45.0, 55.0)
TAIL = (98.0, 99.5)
"""Percents of all by latency, between which the mean stands for p50 and for p99: means of stages add up."""

COSTLIEST = 3
MEMORY = Path("/dev") / "shm"

Stage = tuple[str, int, int]
"""Its name, and when it began and ended; 0: not known."""


class Passed(Struct):
    """One request, or frame of requests. latency: as its client measured it; took: by stage; all in nanoseconds.

    orders: how many had this latency. at: when it was asked.
    """

    latency: int
    took: dict[str, int]
    orders: int = 1
    at: int = 0

    @property
    def adds_up(self) -> bool:
        return abs(sum(self.took.values()) - self.latency) <= OFF_MAX * self.latency


def passed(latency: int, stages: Sequence[Stage], *, orders: int = 1, at: int = 0) -> Passed:
    """Each stage is measured by itself: one that is not known, or ended before it began, counts as nothing."""
    took: dict[str, int] = {}
    for name, began, ended in stages:
        if began and ended > began:
            took[name] = took.get(name, 0) + ended - began
    return Passed(latency, took, orders, at)


def sent_on(write: str, writing: int, written: int, way: str, received: int) -> list[Stage]:
    """A write and what comes behind it. The other side may have read it before who wrote it is on a core again."""
    gone = min(written, received)
    return [(write, writing, gone), (way, gone, received)]


def between(found: Sequence[Passed], part: tuple[float, float]) -> list[Passed]:
    """Those whose latency is between two percents of all; one at least."""
    ordered = sorted(found, key=lambda one: one.latency)
    first, last = (round(len(ordered) * percent / 100) for percent in part)
    return ordered[first : max(last, first + 1)] or ordered[-1:]


def means_ms(found: Sequence[Passed], names: Sequence[str]) -> dict[str, float]:
    """Of each of these stages, over all of them: they add up to the mean latency."""
    return {name: fmean(one.took.get(name, 0) for one in found) / 1e6 if found else 0.0 for name in names}


def times_ms(found: Sequence[Passed], name: str) -> list[float]:
    return [one.took.get(name, 0) / 1e6 for one in found]


def check(what: str, found: Sequence[Passed]) -> list[Figure]:
    """Do they add up? One that does not fails the run."""
    off = [abs(sum(one.took.values()) - one.latency) / one.latency * 100 for one in found]
    wrong = sum(not one.adds_up for one in found)
    return [
        Figure(f"{what}: traced", len(found)),
        exactly(f"  whose stages are more than {OFF_MAX:.0%} off their latency", wrong, 0),
        Figure("  furthest off", max(off, default=0.0), "%"),
    ]


def tables(found: Sequence[Passed], groups: Mapping[str, Sequence[str]]) -> list[Figure]:
    """What each group of stages, and the costliest stages, take of a request in the middle and of a slow one."""
    figures: list[Figure] = []
    names = [name for inner in groups.values() for name in inner]
    for word, part in (("p50", MIDDLE), ("p99", TAIL)):
        means = means_ms(between(found, part), names)
        for group, inner in groups.items():
            figures.append(Figure(f"  around {word}: {group}", sum(means[name] for name in inner) * 1e3, "us"))
        costliest = sorted(names, key=lambda name: -means[name])[:COSTLIEST]
        figures += [
            Figure(f"    costliest {at}: {name}", means[name] * 1e3, "us") for at, name in enumerate(costliest, 1)
        ]
    return figures


def note(what: str, found: Sequence[Passed], names: Sequence[str]) -> str:
    """p50 and p99 of each stage, in a line."""
    words = []
    for name in names:
        times = times_ms(found, name)
        if any(times):
            words.append(f"{name} {percentile(times, 50) * 1e3:,.0f} / {percentile(times, 99) * 1e3:,.0f}")
    return f"{what}, each stage by itself, p50 / p99 in us: {'; '.join(words)}"


def latency(found: Sequence[Passed]) -> Spread:
    return spread([one.latency / 1e6 for one in found for _ in range(one.orders)])


def spreads(what: str, found: Sequence[Passed], names: Sequence[str]) -> dict[str, Spread]:
    """All of it, unrounded: whole, and by stage."""
    stages = {f"{what}: {name}": spread(times_ms(found, name)) for name in names}
    return {what: latency(found), **{name: one for name, one in stages.items() if one.max_ms}}


def place(folder: Path) -> str:
    """What the files of a run are on: it says what `synced` means."""
    return "memory" if MEMORY in folder.resolve().parents else "the disk that fdatasync was timed on"


def stacks(title: str, found: Sequence[Passed], groups: Mapping[str, Sequence[str]], unit: str) -> list[Curve]:
    """A picture with two bars: a request in the middle, and a slow one.

    groups: the stages that are drawn as one, in the order in which they are passed.
    """
    bars = {"p50": between(found, MIDDLE), "p99": between(found, TAIL)}
    return [
        Curve(
            title,
            "stacked",
            group,
            [*bars],
            [round(sum(means_ms(part, names).values()), 4) for part in bars.values()],
            f"{unit} around this percent",
            "ms",
        )
        for group, names in groups.items()
    ]
