"""What the fan-out counts, for Prometheus: of this process, or of each worker as it told the core."""

import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from node.guard import ConnectionGuard

COUNTERS = {
    "opened": "Streams opened",
    "cut": "Streams cut because their clients were too slow",
    "skipped": "Rounds in which a client had no room and was conflated",
    "refused": "Streams turned away with a time to come back",
    "rounds": "Rounds of sending",
    "frames": "Data frames sent",
    "updates": "Symbol updates sent",
    "http_refused": "Connections refused beyond a bound",
    "http_cut": "Connections ended as idle or too slow",
    "cpu_seconds": "Processor time of the process",
}
GAUGES = {
    "connections": "Open streams",
    "http_connections": "Open connections, streams among them",
    "subscriptions": "Topics subscribed to, each client's counted",
    "topics": "Topics that someone reads",
    "tick_ms": "At most one data frame per client in so much",
    "level": "Degradation: 0 none, from 1 candles and leaderboards are shed, 4 the slowest tick",
    "round_ms": "How long the last round of sending took",
    "lag_ms": "How late the last round began",
    "source_age_ms": "Since the process heard of anything new",
}
PREFIX = "tiebreak_gateway_stream_"
Counts = Mapping[str, Mapping[str, float]]
"""By the name of the process, `core` or a worker's number, what it counted."""


def process_counts(guard: ConnectionGuard) -> dict[str, float]:
    """What a process that serves clients says of its door and itself, beside StreamServer.counts."""
    return {
        "http_connections": float(len(guard.connections)),
        "http_refused": float(guard.refused),
        "http_cut": float(guard.cut),
        "cpu_seconds": time.process_time(),
    }


def total(counts: Counts, name: str) -> float:
    """Of all processes together."""
    return sum(one.get(name, 0.0) for one in counts.values())


class StreamCollector(Collector):
    """counts: by process, what StreamServer.counts and process_counts give."""

    def __init__(self, registry: CollectorRegistry, counts: Callable[[], Counts]) -> None:
        self._counts = counts
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        found = self._counts()
        for name, text in COUNTERS.items():
            counter = CounterMetricFamily(PREFIX + name, text, labels=["process"])
            for process, counts in found.items():
                counter.add_metric([process], counts.get(name, 0.0))
            yield counter
        for name, text in GAUGES.items():
            gauge = GaugeMetricFamily(PREFIX + name, text, labels=["process"])
            for process, counts in found.items():
                gauge.add_metric([process], counts.get(name, 0.0))
            yield gauge
