"""What a node counts and measures, for Prometheus: enough for an alert, a chart and an autoscaler."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from cluster.consensus.engine import EngineStatus
from node.tallies import SpreadHistogram, TallyCounter

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STAGES = ("commit", "apply", "answer", "read", "flush")
"""commit: from proposed to applied, one batch. apply: one batch. answer: one frame of a stream, from the door to its
answers. read: until a read may begin. flush: one transaction of the store."""
LATENCY_S = (
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
BATCH_COMMANDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000)


class Metrics:
    """The metrics of one node, in a registry of their own, so that several nodes can share a process.

    Counters and histograms are moved where things happen, once per batch, frame or request and never once
    per command of a batch. Gauges are read when someone asks: see `watch`.
    """

    def __init__(self, member: str, role: str) -> None:
        self.registry = registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        Gauge("tiebreak_member_info", "Always 1", ["member", "role"], registry=registry).labels(member, role).set(1)
        self.commands = TallyCounter("tiebreak_commands", "Commands answered", ["entry", "answer"])
        """entry: http or stream. answer: done, refused, failed (definite) or unknown."""
        self.shed = Counter("tiebreak_shed", "Turned away before anything was logged", ["reason"], registry=registry)
        self.requests = Counter("tiebreak_http_requests", "HTTP requests", ["method", "status"], registry=registry)
        self.request_seconds = Histogram(
            "tiebreak_http_request_seconds", "From headers to answer", ["method"], buckets=LATENCY_S, registry=registry
        )
        stage_seconds = SpreadHistogram(
            "tiebreak_stage_seconds", "Time of one stage of a command's life", ["stage"], LATENCY_S
        )
        self.stage_seconds = {stage: stage_seconds.labels(stage) for stage in STAGES}
        batch_commands = SpreadHistogram("tiebreak_batch_commands", "Commands per proposed batch", [], BATCH_COMMANDS)
        self.batch_commands = batch_commands.labels()
        for tallied in (self.commands, stage_seconds, batch_commands):
            registry.register(tallied)
        self.events_sent = Counter("tiebreak_events_sent", "Events sent", ["channel"], registry=registry)
        self.slow_consumers = Counter("tiebreak_slow_consumers", "Connections cut off", ["channel"], registry=registry)
        self.connections = Gauge("tiebreak_connections", "Open connections", ["kind"], registry=registry)
        """kind: tcp, stream or feed."""
        self.connections_max = Gauge("tiebreak_connections_max", "Capacity", ["kind"], registry=registry)
        self._indexes = Gauge("tiebreak_index", "Log indexes as this member knows them", ["which"], registry=registry)
        self._lag = Gauge("tiebreak_lag_entries", "Log entries behind", ["what"], registry=registry)
        self._peer_lag = Gauge("tiebreak_peer_lag_entries", "Behind this leader", ["peer"], registry=registry)
        self._peer_up = Gauge("tiebreak_peer_connected", "1 when the link is up", ["peer"], registry=registry)
        self._peer_heard = Gauge("tiebreak_peer_heard_seconds", "Since it was last heard", ["peer"], registry=registry)
        self._clock = Gauge("tiebreak_peer_clock_offset_seconds", "Its clock minus ours", ["peer"], registry=registry)
        self._state = Gauge("tiebreak_raft_state", "1 for the present one", ["state"], registry=registry)
        self._term = Gauge("tiebreak_raft_term", "Term", registry=registry)
        self._quorum = Gauge("tiebreak_has_quorum", "1 when a majority is in reach", registry=registry)
        self._counted = Gauge("tiebreak_counted", "0 on a new disk, until this member has caught up", registry=registry)
        self._no_room = Gauge("tiebreak_log_no_room", "1 when no log of a majority has room", registry=registry)
        self._barred = Gauge("tiebreak_barred", "1 when its clock forbids it to lead", registry=registry)
        self._ready = Gauge("tiebreak_ready", "1 when this node takes traffic", registry=registry)
        self._queue = Gauge("tiebreak_queue_depth", "Commands or bytes that wait", ["queue"], registry=registry)
        self._queue_max = Gauge("tiebreak_queue_max", "Bound of a queue", ["queue"], registry=registry)
        self._disk_free = Gauge("tiebreak_disk_free_bytes", "Free on the disk of the data folder", registry=registry)
        self._counts = _Counts()
        registry.register(self._counts)

    def watch(self, read: Callable[[], float], *, queue: str, bound: float = 0.0) -> None:
        """Read a queue's depth whenever metrics are asked for. bound: its capacity, 0 if it has none."""
        self._queue.labels(queue).set_function(read)
        if bound:
            self._queue_max.labels(queue).set(bound)

    def watch_count(self, read: Callable[[], int], *, name: str, text: str) -> None:
        """Read what someone else counts, since the start, whenever metrics are asked for."""
        self._counts.read[name] = text, read

    def watch_disk(self, read: Callable[[], float]) -> None:
        self._disk_free.set_function(read)

    def watch_ready(self, read: Callable[[], bool]) -> None:
        self._ready.set_function(lambda: float(read()))

    def watch_connections(self, read: Callable[[], float], *, kind: str, bound: float) -> None:
        self.connections.labels(kind).set_function(read)
        self.connections_max.labels(kind).set(bound)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage; name is one of STAGES."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.stage_seconds[name].observe(time.perf_counter() - began)

    def observe_engine(self, status: EngineStatus) -> None:
        """Take over indexes, role and lags."""
        for which in ("first", "last", "durable", "commit", "applied", "stored"):
            self._indexes.labels(which).set(getattr(status, f"{which}_index"))
        self._lag.labels("apply").set(max(status.commit_index - status.applied_index, 0))
        self._lag.labels("store").set(max(status.applied_index - status.stored_index, 0))
        for state in ("leader", "follower", "candidate"):
            self._state.labels(state).set(status.role == state)
        self._term.set(status.term)
        self._quorum.set(status.has_quorum)
        self._counted.set(status.joined)
        self._no_room.set(bool(status.refusal))
        self._barred.set(bool(status.barred))
        self._peer_lag.clear()  # only a leader knows, and what it knew when it led is no longer so
        for peer in status.peers:
            self._peer_up.labels(peer.name).set(peer.connected)
            self._peer_heard.labels(peer.name).set(peer.heard_ms_ago / 1000)
            if peer.matched_index:
                self._peer_lag.labels(peer.name).set(max(status.last_index - peer.matched_index, 0))
            if peer.clock_offset_ms is not None:
                self._clock.labels(peer.name).set(peer.clock_offset_ms / 1000)

    def render(self, status: EngineStatus | None = None) -> bytes:
        """The page of /metrics."""
        if status is not None:
            self.observe_engine(status)
        return generate_latest(self.registry)


class _Counts(Collector):
    """Counters that are kept elsewhere, as plain numbers."""

    def __init__(self) -> None:
        self.read: dict[str, tuple[str, Callable[[], int]]] = {}

    def collect(self) -> Iterator[CounterMetricFamily]:
        for name, (text, read) in self.read.items():
            yield CounterMetricFamily(name, text, value=read())
