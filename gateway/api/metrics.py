"""What a gateway counts and measures, for Prometheus; gauges are read when someone asks."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LATENCY_S = (0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0)
STAGES = ("wait", "node", "read")
"""wait: for the index of a session token. node: a question to a node. read: a view from memory."""
Rows = Callable[[], Mapping[tuple[str, ...], float]]


class Metrics:
    """In a registry of its own, so that several gateways can share a process."""

    def __init__(self, site: str) -> None:
        self.registry = registry = CollectorRegistry()
        for collector in (ProcessCollector, GCCollector):
            collector(registry=registry)
        Gauge("tiebreak_gateway_info", "Always 1", ["site"], registry=registry).labels(site).set(1)
        self.requests = Counter(
            "tiebreak_gateway_requests", "HTTP requests", ["route", "method", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "tiebreak_gateway_request_seconds", "From headers to answer", ["route"], buckets=LATENCY_S,
            registry=registry,
        )  # fmt: skip
        self.reads = Counter(
            "tiebreak_gateway_cache_reads", "What reads found in this gateway", ["view", "outcome"], registry=registry
        )
        """outcome: hit (fresh), stale (there, and marked), miss (a node was asked, or nobody knows)."""
        self.shed = Counter("tiebreak_gateway_shed", "Turned away", ["reason"], registry=registry)
        self._stage_seconds = Histogram(
            "tiebreak_gateway_stage_seconds", "Time of one stage", ["stage"], buckets=LATENCY_S, registry=registry
        )
        self._stages = {stage: self._stage_seconds.labels(stage) for stage in STAGES}
        self._read = _Read()
        registry.register(self._read)

    def read(self, view: str, outcome: str) -> None:
        self.reads.labels(view, outcome).inc()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began_s = time.perf_counter()
        try:
            yield
        finally:
            self._stages[name].observe(time.perf_counter() - began_s)

    def watch(self, name: str, text: str, read: Callable[[], float], *, is_count: bool = False) -> None:
        """A number that is read whenever metrics are asked for."""
        self.watch_rows(name, text, (), lambda: {(): read()}, is_count=is_count)

    def watch_rows(self, name: str, text: str, labels: tuple[str, ...], read: Rows, *, is_count: bool = False) -> None:
        """Several numbers, by labels."""
        self._read.families[name] = text, labels, read, is_count

    def render(self) -> bytes:
        return generate_latest(self.registry)


class _Read(Collector):
    def __init__(self) -> None:
        self.families: dict[str, tuple[str, tuple[str, ...], Rows, bool]] = {}

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        for name, (text, labels, read, is_count) in self.families.items():
            kind = CounterMetricFamily if is_count else GaugeMetricFamily
            family = kind(name, text, labels=labels)
            for values, number in read().items():
                family.add_metric(values, number)
            yield family
