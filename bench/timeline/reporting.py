"""What all runs over time have in their reports: how requests ended, and latency before, during and after."""

from collections.abc import Collection, Container, Mapping

from bench.report import Curve, Figure, distribution, exactly
from bench.stats import Spread, spread
from bench.sweep.samples import DONE, REFUSED, UNKNOWN
from bench.timeline.drawing import latencies_within, named
from bench.timeline.watched import Watched

Spans = Mapping[str, tuple[float, float]]
"""By what happens in them: from when to when, in seconds."""
AUDIT = "fills answered and in no account, or there and answered by nobody"


def audit(unaccounted: int) -> Figure:
    return exactly(AUDIT, unaccounted, 0)


def endings(found: Watched, *, all_done: Collection[str] = ()) -> list[Figure]:
    """How many requests of each group ended how. all_done: groups that ask again until they are answered."""
    figures: list[Figure] = []
    for name, part in found.parts.items():
        figures.append(Figure(named(name, "requests due"), len(part)))
        for outcome, word in ((DONE, "  done"), (REFUSED, "  refused"), (UNKNOWN, "  of unknown outcome")):
            count = part.count(outcome)
            goal = name in all_done and outcome != DONE
            figures.append(exactly(word, count, 0) if goal else Figure(word, count))
    late = max((result.late for result in found.results.values()), key=lambda one: one.p99_ms)
    return [*figures, Figure("the sender's own lateness, p99", late.p99_ms, "ms")]


def notes(found: Watched) -> list[str]:
    """Why requests were refused or are unknown, where some were."""
    words = ", ".join(f"{word} {count:,}" for word, count in sorted(found.words.items(), key=lambda one: -one[1]))
    return [f"refused or unknown: {words}"] if words else []


def latencies(
    found: Watched, spans: Spans, *, drawn: Container[str] | None = None
) -> tuple[list[Figure], dict[str, Spread], list[Curve]]:
    """Of what was due in each span, by group: figures, percentiles, and how they are distributed.

    drawn: the spans whose distribution is; all without.
    """
    figures: list[Figure] = []
    spreads: dict[str, Spread] = {}
    lines: list[Curve] = []
    for name, part in found.parts.items():
        for word, (begin_s, end_s) in spans.items():
            values = latencies_within(part, begin_s, end_s)
            if not values:
                continue
            whole = named(name, word)
            spreads[whole] = spread(values)
            figures += [
                Figure(f"latency, {whole}: p50", spreads[whole].p50_ms, "ms"),
                Figure("  p99", spreads[whole].p99_ms, "ms"),
                Figure("  longest", spreads[whole].max_ms, "ms"),
            ]
            if drawn is None or word in drawn:
                lines.append(distribution("Latency", whole, values))
    return figures, spreads, lines
