"""The gateway's benchmarks, each run once and small: they measure, and they judge."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench import cli
from bench.gateway_intake import on_an_own_core
from bench.gateway_partition import Kept, Key, Value, lost
from bench.gateway_projection import behind


def run(folder: Path | None, *arguments: str) -> tuple[dict[str, Any], dict[str, float]]:
    """The report, and the values of its figures by name; of several with one name, the first."""
    place = ["--folder", str(folder)] if folder is not None else []
    result = CliRunner().invoke(cli.app, ["run", *arguments, "--json", *place], catch_exceptions=False)
    reports = json.loads(result.stdout)
    assert len(reports) == 1, result.output
    (report,) = reports
    return report, {figure["name"].strip(): figure["value"] for figure in reversed(report["figures"])}


def test_market_data_is_taken_at_its_pace_and_at_most(tmp_path: Path) -> None:
    report, figures = run(tmp_path, "gateway-ingest", "--symbols", "100", "--seconds", "1")
    assert 40 <= figures["symbols quoted"] <= 100
    assert figures["updates that the tick log lost"] == 0
    assert 0 < figures["lag from received to cache, p50"] <= figures["lag from received to cache, p99"]
    assert figures["age when taken out for the fan-out, p99"] > 50
    assert figures["at most, for a second of CPU"] > 10_000
    assert 40 < figures["bytes in the tick log for an update"] < 120
    assert 0 < figures["CPU"] < 150
    assert figures["changed best prices given out"] > 100
    targets = [figure["target"] for figure in report["figures"] if figure["target"]]
    assert targets == [">= 990", "< 50", "< 50", "0"]
    assert figures["symbols written to the cache a second"] > 50


# steps of (due, took) in seconds, the lags in ms on a core of its own
QUEUES = [
    ([(0.0, 0.002), (0.010, 0.003)], [2.0, 3.0]),
    ([(0.0, 0.015), (0.010, 0.003)], [15.0, 8.0]),
    ([(0.0, 0.025), (0.010, 0.001), (0.020, 0.001), (0.030, 0.001)], [25.0, 16.0, 7.0, 1.0]),
]


@pytest.mark.parametrize(("steps", "lags"), QUEUES)
def test_a_step_waits_for_the_one_before_it(steps: list[tuple[float, float]], lags: list[float]) -> None:
    found = on_an_own_core([(due, took, 1) for due, took in steps])
    assert [round(lag, 6) for lag, _ in found] == lags


def test_preferences_are_measured_at_one_site_and_between_two(tmp_path: Path) -> None:
    _, figures = run(tmp_path, "gateway-preferences", "--seconds", "0.5", "--accounts", "200")
    assert figures["1 clients: writes a second"] < figures["100 clients: writes a second"]
    assert 0 < figures["a read from memory, p50"] < figures["a read from the site's store, opened, p50"]
    assert figures["a read of the same bytes from a cache server, p50"] > 0
    assert figures["a site without its disk has 200 users again after"] > 0


def test_a_projection_is_measured_behind_a_cluster(tmp_path: Path) -> None:
    _, figures = run(tmp_path, "gateway-projection", "--seconds", "0.5", "--rate", "200")
    assert figures["events projected"] > 100
    assert figures["answers compared"] > 5
    assert figures["behind the leader's stamp, p50"] > 0
    whole = figures["events"]
    assert whole > figures["events projected"]
    assert figures["from the feed's beginning, without a cache: events a second"] > 100
    assert figures["from the feed's beginning, with the cache: events a second"] > 100
    assert 0 < figures["a portfolio's view and its JSON, of CPU"] < 10_000


def test_a_gateway_is_asked_at_the_normal_load_and_beyond() -> None:
    # In the usual place: the path of the cache's unix socket must be short.
    report, figures = run(None, "gateway-quote", "--seconds", "1", "--rate", "20")
    by_name = [(figure["name"].strip(), figure["value"]) for figure in report["figures"]]
    assert [value for name, value in by_name if name == "refused or failed"] == [0, 0]
    assert [value for name, value in by_name if name == "not answered"] == [0, 0]
    assert all(90 < value <= 100 for name, value in by_name if name == "cache hits")
    assert figures["1 x the normal load: requests a second"] > 10
    assert figures["3 x the normal load: requests a second"] > 30
    assert figures["at most, 16 connections: requests a second"] > 20
    assert 0 < figures["quote, p50"] <= figures["quote, p99"]
    assert 0 < figures["portfolio, p50"] <= figures["portfolio, p99"]


def test_an_answer_is_compared_with_the_message_that_reached_it() -> None:
    reached = [(10, 1_000_000), (12, 1_005_000), (20, 1_030_000)]
    found = behind([(10, 999_000), (11, 1_001_000), (20, 1_040_000), (21, 1_050_000)], reached)
    assert (found.count, found.max_ms) == (3, 4.0)
    assert found.p50_ms == 1.0


def test_sites_that_were_cut_apart_lose_nothing(tmp_path: Path) -> None:
    report, figures = run(tmp_path, "gateway-partition", "--runs", "1", "--cut-s", "1", "--rate", "60")
    correct = [figure for figure in report["figures"] if figure["target"] == "0"]
    assert len(correct) == 2
    assert all(figure["passed"] for figure in correct), correct
    assert figures["writes during the cuts, both sites"] > 20
    assert figures["keys that both sites wrote"] > 0
    assert 0 < figures["equal after the heal, median"] < 30_000
    assert 0 < figures["equal after the heal"] < 30_000
    assert figures["keys whose last write only the lost disk had"] > 0


A, B = Kept(), Kept()
A.own = {("a", ""): "a 1", ("a", "x"): 7, ("a", "y"): None}
A.shared = {("both", ""): "a 2", ("both", "x"): None, ("both", "y"): 5, ("both", "z"): None}
B.shared = {("both", ""): "b 2", ("both", "x"): 9, ("both", "y"): 6, ("both", "z"): None}
GONE: dict[Key, Value] = {("lost", ""): "b 9"}
RIGHT: dict[Key, Value] = {
    ("a", ""): "a 1", ("a", "x"): 7, ("a", "y"): None, ("both", ""): "b 2", ("both", "x"): 9, ("both", "y"): 5,
    ("both", "z"): None, ("lost", ""): None,
}  # fmt: skip

WRONG = [
    # key, what a site shows instead
    (("a", ""), None),
    (("a", ""), "a 0"),
    (("a", "x"), None),
    (("a", "y"), 7),
    (("both", ""), "a 1"),
    (("both", "x"), None),
    (("both", "y"), None),
    (("both", "z"), 9),
    (("lost", ""), "b 8"),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_the_judge_finds_what_is_lost(key: Key, value: Value) -> None:
    other = RIGHT | {("both", ""): "a 2", ("both", "y"): 6}
    assert lost(RIGHT.__getitem__, A, B, GONE) == lost(other.__getitem__, A, B, GONE) == 0
    wrong = RIGHT | {key: value}
    assert lost(wrong.__getitem__, A, B, GONE) == 1
