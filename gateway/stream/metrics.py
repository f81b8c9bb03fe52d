"""What the fan-out counts, for Prometheus: of this process, or of each worker as it told the core."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

COUNTERS = {
    "opened": "Streams opened",
    "cut": "Streams cut because their clients were too slow",
    "skipped": "Rounds in which a client had no room and was conflated",
    "refused": "Streams turned away with a time to come back",
    "rounds": "Rounds of sending",
    "frames": "Data frames sent",
    "updates": "Symbol updates sent",
}
GAUGES = {
    "connections": "Open streams",
    "subscriptions": "Topics subscribed to, each client's counted",
    "topics": "Topics that someone reads",
    "tick_ms": "At most one data frame per client in so much",
    "level": "Degradation: 0 none, from 1 candles and leaderboards are shed, 4 the slowest tick",
    "round_ms": "How long the last round of sending took",
    "lag_ms": "How late the last round began",
    "source_age_ms": "Since the process heard of anything new",
}
PREFIX = "tiebreak_gateway_stream_"


class StreamCollector(Collector):
    """counts: by the name of the process, `core` or a worker's number, what StreamServer.counts gives."""

    def __init__(self, registry: CollectorRegistry, counts: Callable[[], Mapping[str, Mapping[str, float]]]) -> None:
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
