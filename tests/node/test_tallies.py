"""Our counters and histograms, told by the library that Prometheus' own are made of, and beside those."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from node.tallies import SpreadHistogram, TallyCounter

BOUNDS = (0.001, 0.5, 1, 10)


def page(registry: CollectorRegistry) -> list[str]:
    lines = generate_latest(registry).decode().splitlines()
    return sorted(line for line in lines if "_created" not in line)


@given(st.lists(st.tuples(st.sampled_from(["read", "flush"]), st.sampled_from([0, 0.0005, 0.001, 0.25, 1, 10, 11]))))
def test_a_histogram_reads_as_prometheus_own(seen: list[tuple[str, float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    spread = SpreadHistogram("stage_seconds", "Time", ["stage"], BOUNDS)
    ours.register(spread)
    histogram = Histogram("stage_seconds", "Time", ["stage"], buckets=BOUNDS, registry=theirs)
    for stage, value in seen:
        spread.labels(stage).observe(value)
        histogram.labels(stage).observe(value)
    assert page(ours) == page(theirs)


def test_a_counter_reads_as_prometheus_own() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally = TallyCounter("commands", "Answered", ["entry", "answer"])
    ours.register(tally)
    counter = Counter("commands", "Answered", ["entry", "answer"], registry=theirs)
    for amount in (1, 0, 49):
        tally.labels("http", "done").inc(amount)
        counter.labels("http", "done").inc(amount)
    tally.labels("stream", "refused").inc()
    counter.labels("stream", "refused").inc()
    assert page(ours) == page(theirs)


def test_a_series_without_its_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="labels entry, answer"):
        TallyCounter("commands", "Answered", ["entry", "answer"]).labels("http")
    with pytest.raises(ValueError, match="labels stage"):
        SpreadHistogram("stage_seconds", "Time", ["stage"], BOUNDS).labels()
