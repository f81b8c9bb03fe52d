"""Lines over time of what an open loop found: answers a second and latency, with what was broken as bands."""

from array import array
from collections.abc import Sequence

from bench.report import Curve, Mark
from bench.stats import Spread
from bench.sweep.samples import DONE, REFUSED, UNKNOWN, Samples
from bench.timeline.watched import Watched

SECONDS = "seconds"
ANSWERED = "Answered, by when the answer came"
LATENCY = "Latency, by when the order was due"
LINES_MAX = 240
"""Slices of a line; more would be finer than a picture shows."""
ENDINGS = {REFUSED: "refused", UNKNOWN: "unknown"}


def width_of(seconds: float, width_s: float) -> float:
    """`width_s`, or as much more as a long run needs."""
    while seconds / width_s > LINES_MAX:
        width_s *= 2
    return width_s


def curves(found: Watched, *, width_s: float, offered: bool = False) -> list[Curve]:
    """Both pictures. Of one group of clients its p50 and p99 are drawn, of several the p99 of each.

    offered: the load is drawn, too.
    """
    width_s = width_of(found.seconds, width_s)
    return [*throughput(found, width_s, offered=offered), *latency(found, width_s)]


def throughput(found: Watched, width_s: float, *, offered: bool) -> list[Curve]:
    lines: list[Curve] = []
    for name, part in found.parts.items():
        x, per_s = part.answered_per_s(found.seconds, width_s)
        if offered:
            due = due_per_s(part, None, found.seconds, width_s)
            lines.append(_line(ANSWERED, named(name, "due"), x, due, "orders/s", found.marks))
        lines.append(_line(ANSWERED, named(name, "done"), x, per_s, "orders/s", found.marks))
        for outcome, word in ENDINGS.items():
            if part.count(outcome):
                counts = due_per_s(part, outcome, found.seconds, width_s)
                lines.append(_line(ANSWERED, named(name, word), x, counts, "orders/s", found.marks))
    return lines


def latency(found: Watched, width_s: float) -> list[Curve]:
    lines: list[Curve] = []
    for name, part in found.parts.items():
        slices = part.by_slice(found.seconds, width_s)
        x = [(at + 0.5) * width_s for at in range(len(slices))]
        there = [at for at, one in enumerate(slices) if one.count]
        for word, values in (("p50", [one.p50_ms for one in slices]), ("p99", [one.p99_ms for one in slices])):
            if word == "p99" or len(found.parts) == 1:
                y = [values[at] for at in there]
                lines.append(
                    _line(LATENCY, named(name, word), [x[at] for at in there], y, "ms", found.marks, log_y=True)
                )
    return lines


def named(name: str, word: str) -> str:
    return f"{name}: {word}" if name else word


def _line(
    picture: str, series: str, x: Sequence[float], y: Sequence[float], label: str, marks: list[Mark],
    *, log_y: bool = False,
) -> Curve:  # fmt: skip
    return Curve(picture, "line", series, [*x], [round(value, 3) for value in y], SECONDS, label, marks, log_y=log_y)


def due_per_s(part: Samples, outcome: int | None, seconds: float, width_s: float) -> list[float]:
    """How many that were due in each slice ended so (None: in any way), a second."""
    slices = [0] * max(1, round(seconds / width_s))
    for due_s, ended in zip(part.due_s, part.outcome, strict=True):
        if outcome is None or ended == outcome:
            slices[min(len(slices) - 1, int(due_s / width_s))] += 1
    return [count / width_s for count in slices]


def latencies_within(part: Samples, begin_s: float, end_s: float) -> "array[float]":
    """Of what was due between two moments, in milliseconds."""
    values = array("f")
    for due_s, latency_ms in zip(part.due_s, part.latency_ms, strict=True):
        if begin_s <= due_s < end_s:
            values.append(latency_ms)
    return values


def longest_silence_s(part: Samples, begin_s: float, end_s: float) -> float:
    """The longest time between two answers that said done, around what was broken from begin_s to end_s."""
    moments = sorted(
        due_s + latency_ms / 1e3
        for due_s, latency_ms, outcome in zip(part.due_s, part.latency_ms, part.outcome, strict=True)
        if outcome == DONE
    )
    longest, before = 0.0, begin_s
    for moment in moments:
        if moment < begin_s:
            continue
        longest = max(longest, moment - before)
        before = moment
        if moment > end_s:
            return longest
    return max(longest, end_s - before)


def back_under(
    slices: Sequence[Spread], width_s: float, from_s: float, limit_ms: float, *, for_s: float, end_s: float
) -> float | None:
    """Seconds after from_s from which the p99 of each slice stays under a limit for for_s, within end_s; None: never.

    0: it never rose above it.
    """
    first, last = int(from_s / width_s), min(len(slices), int(end_s / width_s))
    needed = max(1, round(for_s / width_s))
    good = 0
    for at in range(first, last):
        good = good + 1 if slices[at].p99_ms < limit_ms else 0
        if good == needed:
            return max(0.0, (at + 1 - needed) * width_s - from_s)
    return None
