"""What the links between members count, and when certificates end, for Prometheus."""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import structlog
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from cluster.certificates import read_certificates
from cluster.consensus.refusals import REFUSALS

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.node")


class LinkMetrics(Collector):
    """Read when someone asks. counters: by word; those of REFUSALS are there from the start, with 0.

    certificates: files by what they are for (member, authority, api). Of several in one file the first to end counts.
    """

    def __init__(self, counters: Callable[[], Mapping[str, int]], certificates: Mapping[str, Path]) -> None:
        self._counters = counters
        self._certificates = certificates

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        events = CounterMetricFamily(
            "tiebreak_consensus_events", "Refusals and other rare things, since the start", labels=["event"]
        )
        for word, count in (dict.fromkeys(REFUSALS, 0) | dict(self._counters())).items():
            events.add_metric([word], count)
        yield events
        expiry = GaugeMetricFamily(
            "tiebreak_certificate_expiry_seconds", "Until a certificate's time is over", labels=["certificate"]
        )
        for what, path in self._certificates.items():
            try:
                end = min(one.not_valid_after_utc for one in read_certificates(path))
            except (OSError, ValueError) as error:
                log.error("a certificate can't be read", certificate=str(path), error=str(error))
                continue
            expiry.add_metric([what], end.timestamp() - time.time())
        yield expiry
