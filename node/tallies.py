"""Counters and histograms for what happens per frame: plain numbers, turned into Prometheus' families when asked for.

prometheus_client's own take a lock and check labels at each step, 4 us for a histogram where this takes 0.4 us. They
are for one event loop: no lock, and a scrape on another thread would see a count without its sum.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector


class Tally:
    """One series of a counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        self.value += amount


class Spread:
    """One series of a histogram. observe: a value falls into the first bucket whose bound is not below it."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """(bound, how many are not above it), as Prometheus counts."""
        found: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip((*(str(float(bound)) for bound in self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            found.append((bound, float(total)))
        return found


class TallyCounter(Collector):
    """A counter with labels; each combination is made at its first use and kept."""

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._series: dict[tuple[str, ...], Tally] = {}

    def labels(self, *values: str) -> Tally:
        """Raises ValueError unless there is a value for each label."""
        if len(values) != len(self._labels):
            raise ValueError(f"{self._name} has labels {', '.join(self._labels)}; given {values}")
        return self._series.setdefault(values, Tally())

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, tally in self._series.items():
            family.add_metric(values, tally.value)
        yield family


class SpreadHistogram(Collector):
    """A histogram with labels; bounds: ascending upper bounds of its buckets, the infinite one left out."""

    def __init__(self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._bounds = tuple(bounds)
        self._series: dict[tuple[str, ...], Spread] = {}

    def labels(self, *values: str) -> Spread:
        """Raises ValueError unless there is a value for each label."""
        if len(values) != len(self._labels):
            raise ValueError(f"{self._name} has labels {', '.join(self._labels)}; given {values}")
        return self._series.setdefault(values, Spread(self._bounds))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for values, spread in self._series.items():
            family.add_metric(values, spread.buckets(), spread.sum)
        yield family
