"""The benchmarks over time, small and for real: faults are in the picture, and every answer is in the accounts."""

from pathlib import Path

import pytest

from bench.report import Mark, Report
from bench.stats import spread
from bench.sweep.samples import DONE, UNKNOWN
from bench.timeline import faults, opening, soak
from bench.timeline.drawing import ANSWERED, LATENCY
from bench.timeline.reporting import AUDIT
from tests.bench.timeline.test_drawing import samples, watched

RATE_PER_S = 60


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("CALM_S", 1.0), ("AWAY_S", 1.5), ("AFTER_S", 1.5), ("SNAPSHOT_S", 4.0)):
        monkeypatch.setattr(faults, name, seconds)
    monkeypatch.setattr(faults, "CONNECTIONS", 4)
    for name in ("BEFORE_S", "AFTER_S", "STEADY_S"):
        monkeypatch.setattr(opening, name, 1.0)
    monkeypatch.setattr(soak, "PROBE_S", 1.0)


def value(report: Report, beginning: str) -> float:
    return next(figure.value for figure in report.figures if figure.name.startswith(beginning))


def marks(report: Report) -> list[Mark]:
    (found,) = {tuple(curve.marks) for curve in report.curves if curve.picture in (ANSWERED, LATENCY)}
    return list(found)


def test_a_leader_that_is_killed_costs_time_and_nothing_else(tmp_path: Path) -> None:
    report = faults.time_leader_kill(tmp_path, rate_per_s=RATE_PER_S)
    assert value(report, AUDIT) == 0
    assert value(report, "  refused") == value(report, "  of unknown outcome") == 0
    assert value(report, "longest time without an answer") > 100
    gone, back = marks(report)
    assert gone.end < back.begin < back.end
    assert gone.end - gone.begin > 0.1
    assert {"before", "meanwhile"} <= set(report.percentiles)


def test_a_site_that_is_cut_off_is_served_again_and_the_others_all_the_time(tmp_path: Path) -> None:
    report = faults.time_partition(tmp_path, rate_per_s=RATE_PER_S, cut_s=2.5)
    assert value(report, AUDIT) == 0
    (cut,) = marks(report)
    assert cut.end - cut.begin >= 2.4
    silent = [figure for figure in report.figures if figure.name.startswith("longest time without")]
    here, there = silent
    assert there.value > 2_400 > here.value
    done = {curve.series: curve for curve in report.curves if curve.picture == ANSWERED}
    assert len(done) >= 2


def test_a_replica_that_lost_its_disk_is_filled_with_a_snapshot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(faults, "LOG_RESERVE", 10)  # of 3,000 orders a log of 100 entries has the most
    report = faults.time_snapshot(tmp_path, rate_per_s=RATE_PER_S, commands=3_000)
    assert value(report, AUDIT) == 0
    assert value(report, "  refused") == value(report, "  of unknown outcome") == 0
    assert value(report, "the replica was back") > 0
    (filled,) = marks(report)
    assert filled.end > filled.begin + 0.5


def test_a_market_opens_with_ten_times_the_load(tmp_path: Path) -> None:
    report = opening.market_open(tmp_path, seconds=3.0, rate_per_s=300)
    assert value(report, AUDIT) == 0
    (due,) = (curve for curve in report.curves if curve.series == "due")
    calm, busy = due.y[0], due.y[4]
    assert busy > 4 * calm
    (opened,) = marks(report)
    assert opened.end - opened.begin == pytest.approx(3.0, abs=0.2)
    assert value(report, "p99 is under 50 ms again after") <= 3.0


def test_a_soak_says_what_members_take(tmp_path: Path) -> None:
    report = soak.soak(tmp_path, seconds=4.0, rate_per_s=300)
    assert value(report, AUDIT) == 0
    assert value(report, "orders a second, all the time") > 100
    assert not report.passed  # it is not the goal's rate
    for name in ("dc-a", "dc-b", "tiebreaker"):
        assert value(report, f"{name}, resident memory: at the end") > 20
        assert value(report, f"{name}, disk: at the end") > 0
        assert any(curve.series == name and curve.picture == "Of each member: disk" for curve in report.curves)


def test_a_rate_is_held_where_no_queue_grows() -> None:
    rows = [(at / 1_000, 10.0, DONE) for at in range(4_000)]
    assert soak.held(watched(a=samples(*rows)))
    behind = watched(a=samples(*rows))
    behind.results["a"].done_within = 3_600
    assert not soak.held(behind)
    rows[5] = (0.005, 10.0, UNKNOWN)
    assert not soak.held(watched(a=samples(*rows)))


def test_latency_that_does_not_come_back_is_a_target_missed() -> None:
    slow = watched(12.0, a=samples(*((at / 10, 500.0 if at >= 10 else 5.0, DONE) for at in range(120))))
    (figure,) = opening.recovery(slow, 6.0)
    assert (figure.value, figure.passed) == (5.0, False)
    fast = watched(12.0, a=samples(*((at / 10, 500.0 if 10 <= at < 20 else 5.0, DONE) for at in range(120))))
    (figure,) = opening.recovery(fast, 6.0)
    assert (figure.value, figure.passed) == (1.0, True)
    assert spread(fast.samples.latency_ms).max_ms == 500.0
