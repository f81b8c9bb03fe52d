"""Lines over time say what the samples say: silences, refusals, and when latency is back."""

from array import array

import pytest

from bench.report import Mark
from bench.stats import spread
from bench.sweep.openloop import Result
from bench.sweep.samples import DONE, REFUSED, UNKNOWN, Samples
from bench.timeline.audit import unaccounted
from bench.timeline.drawing import (
    ANSWERED,
    LATENCY,
    back_under,
    curves,
    due_per_s,
    latencies_within,
    longest_silence_s,
    width_of,
)
from bench.timeline.reporting import endings, latencies
from bench.timeline.watched import Watched


def samples(*rows: tuple[float, float, int]) -> Samples:
    """Rows of (due_s, latency_ms, outcome)."""
    due, took, ended = zip(*rows, strict=True)
    return Samples(array("d", due), array("f", took), array("b", ended))


def watched(seconds: float = 4.0, fills: int = 0, **parts: Samples) -> Watched:
    results = {
        name: Result(
            requests=len(part), seconds=seconds, latency=part.latency(), outcomes={}, words={"overloaded": 1},
            fills=fills, fills_within=fills, done_within=part.count(DONE), late=spread([0.5]), reconnects=0, cpu_s={},
            waited_s=0.0, began_at=0.0,
        )
        for name, part in parts.items()
    }  # fmt: skip
    return Watched(seconds=seconds, parts=parts, results=results, marks=[Mark(1.0, 2.0, "cut")])


STEADY = samples(*((at / 10, 10.0, DONE) for at in range(40)))
STALLED = samples(*((at / 10, 10.0 if not 10 <= at < 20 else (20 - at) * 100.0, DONE) for at in range(40)))
"""Those that were due from 1 s on are answered at 2 s."""


def test_a_silence_is_from_the_answer_before_it_to_the_one_after_it() -> None:
    assert longest_silence_s(STALLED, 1.0, 2.0) == pytest.approx(0.99, abs=0.02)
    assert longest_silence_s(STEADY, 1.0, 2.0) == pytest.approx(0.1, abs=0.02)


def test_an_answer_that_refuses_ends_no_silence() -> None:
    rows = [(at / 10, 10.0, REFUSED if 10 <= at < 20 else DONE) for at in range(40)]
    assert longest_silence_s(samples(*rows), 1.0, 2.0) == pytest.approx(1.0, abs=0.05)


def test_who_is_never_answered_again_was_silent_to_the_end() -> None:
    rows = [(at / 10, 10.0, UNKNOWN if at >= 10 else DONE) for at in range(40)]
    assert longest_silence_s(samples(*rows), 1.0, 3.0) == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize(
    ("from_s", "end_s", "back_s"), [(0.0, 4.0, 0.0), (1.0, 4.0, 1.0), (1.5, 4.0, 0.5), (1.0, 2.5, None)]
)
def test_back_under_the_limit_is_from_when_it_stays_there(from_s: float, end_s: float, back_s: float | None) -> None:
    slices = STALLED.by_slice(4.0, 0.5)
    assert back_under(slices, 0.5, from_s, 50.0, for_s=1.0, end_s=end_s) == back_s


def test_one_good_slice_is_not_yet_back() -> None:
    rows = [(at / 10, 100.0 if 10 <= at < 15 or 20 <= at < 25 else 10.0, DONE) for at in range(40)]
    assert back_under(samples(*rows).by_slice(4.0, 0.5), 0.5, 1.0, 50.0, for_s=1.0, end_s=4.0) == 1.5


def test_what_is_refused_is_drawn_where_it_was_due() -> None:
    rows = [(at / 10, 10.0, REFUSED if 10 <= at < 15 else DONE) for at in range(40)]
    assert due_per_s(samples(*rows), REFUSED, 4.0, 1.0) == [0, 5, 0, 0]
    assert due_per_s(samples(*rows), None, 4.0, 1.0) == [10, 10, 10, 10]
    named = {curve.series: curve.y for curve in curves(watched(a=samples(*rows)), width_s=1.0)}
    assert named["a: refused"] == [0, 5, 0, 0]
    assert "a: unknown" not in named


def test_each_line_has_the_fault_as_a_band() -> None:
    found = curves(watched(a=STEADY, b=STALLED), width_s=1.0, offered=True)
    assert {curve.picture for curve in found} == {ANSWERED, LATENCY}
    assert {curve.series for curve in found} == {"a: due", "a: done", "b: due", "b: done", "a: p99", "b: p99"}
    assert all(curve.marks == [Mark(1.0, 2.0, "cut")] for curve in found)
    (stalled,) = (curve for curve in found if curve.series == "b: p99")
    assert stalled.y == [10.0, 1_000.0, 10.0, 10.0]


def test_a_slice_without_requests_has_no_latency() -> None:
    found = curves(watched(a=samples((0.5, 10.0, DONE), (3.5, 20.0, DONE))), width_s=1.0)
    assert next((curve.x, curve.y) for curve in found if curve.picture == LATENCY) == ([0.5, 3.5], [10.0, 20.0])


def test_a_long_run_has_wider_slices() -> None:
    assert width_of(30.0, 0.25) == 0.25
    assert 600 / width_of(600.0, 1.0) <= 240


def test_spans_take_what_was_due_in_them() -> None:
    assert list(latencies_within(STALLED, 1.85, 2.15)) == [100.0, 10.0, 10.0]
    figures, spreads, drawn = latencies(
        watched(a=STALLED), {"before": (0, 1), "meanwhile": (1, 2)}, drawn={"meanwhile"}
    )
    assert (spreads["a: before"].p99_ms, spreads["a: meanwhile"].p99_ms) == (10.0, 1_000.0)
    assert [curve.series for curve in drawn] == ["a: meanwhile"]
    assert [figure.value for figure in figures if figure.name == "  longest"] == [10.0, 1_000.0]


def test_only_those_who_ask_again_must_all_be_done() -> None:
    rows = [(at / 10, 10.0, REFUSED if at == 3 else DONE) for at in range(10)]
    both = watched(a=samples(*rows), b=samples(*rows))
    judged = [figure.passed for figure in endings(both, all_done=("a",)) if figure.passed is not None]
    assert judged == [False, True]


@pytest.mark.parametrize(
    ("fills", "lots", "unknown", "amiss"),
    [
        (10, 10, 0, 0),
        (10, 9, 0, 1),  # answered, and in no account
        (10, 12, 0, 2),  # in the accounts, and answered by nobody
        (10, 12, 2, 0),  # two did not hear whether they were filled
        (10, 13, 2, 1),
        (10, 9, 2, 1),
    ],
)
def test_an_audit_counts_both_ways(fills: int, lots: int, unknown: int, amiss: int) -> None:
    rows = [(0.1, 10.0, DONE), *((0.2, 10.0, UNKNOWN) for _ in range(unknown))]
    assert unaccounted(lots, watched(a=samples(*rows), fills=fills)) == amiss
