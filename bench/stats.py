"""Percentiles of what was measured: of all samples, never of averages."""

from collections.abc import Sequence

from msgspec import Struct


class Spread(Struct, frozen=True):
    """count samples in milliseconds."""

    count: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all do not exceed; 0 when there are none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[min(len(ordered), int(rank)) - 1]


def spread(values_ms: Sequence[float]) -> Spread:
    ordered = sorted(values_ms)
    p50, p90, p99, p999 = (round(percentile(ordered, percent), 3) for percent in (50, 90, 99, 99.9))
    return Spread(len(ordered), p50, p90, p99, p999, round(ordered[-1], 3) if ordered else 0.0)
