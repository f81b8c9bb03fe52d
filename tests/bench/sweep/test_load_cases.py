"""The benchmarks of the open loop, each run once and small: what they measure, keep, draw, and hold against a goal."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench import cli


def run(folder: Path, *arguments: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report, and its figures."""
    kept = folder / "kept"
    result = CliRunner().invoke(cli.app, ["run", *arguments, "--json", "--folder", str(folder), "--out", str(kept)])
    assert "failed" not in result.stderr, result.stderr
    (report,) = json.loads(result.stdout)
    assert json.loads((kept / f"{report['benchmark']}.json").read_text()) == report
    assert (kept / f"{report['benchmark']}.png").read_bytes().startswith(b"\x89PNG")
    return report, report["figures"]


def value(figures: list[dict[str, Any]], name: str) -> float:
    (found,) = [figure["value"] for figure in figures if figure["name"] == name]
    return float(found)


def test_three_doors_beside_each_other(tmp_path: Path) -> None:
    report, figures = run(tmp_path, "load-doors", "--clients", "3", "--offered", "60", "--seconds", "0.5")
    for door in ("http", "json", "msgpack"):
        assert value(figures, f"{door}, 3 clients, 60/s: done") > 0
        found = report["percentiles"][f"{door}, 3 clients, 60/s"]
        assert found["count"] == pytest.approx(30, abs=25)
        assert 0 < found["p50_ms"] <= found["p999_ms"]
    assert sum(figure["value"] for figure in figures if figure["name"] == "  refused, unknown") == 0
    assert {curve["series"] for curve in report["curves"]} == {"http", "json", "msgpack"}
    assert not (tmp_path / "load-doors").exists()


def test_latency_against_offered_load(tmp_path: Path) -> None:
    arguments = ["--shape", "2+2+1", "--offered", "50", "--offered", "100", "--connections", "4", "--seconds", "0.5"]
    report, figures = run(tmp_path, "load-latency", *arguments)
    assert value(figures, "2+2+1, 50/s: done") > 0
    assert value(figures, "2+2+1, 100/s: done") > 0
    pictures = {curve["picture"] for curve in report["curves"]}
    assert pictures == {"latency against offered load", "carried", "at 100/s"}
    lines = [curve for curve in report["curves"] if curve["picture"] == "latency against offered load"]
    assert [curve["series"] for curve in lines] == ["2+2+1, p50", "2+2+1, p99", "2+2+1, p99.9"]
    assert all(curve["x"] == [50.0, 100.0] for curve in lines)


def test_distance_costs_a_round_trip_at_the_leader_and_two_at_the_other_site(tmp_path: Path) -> None:
    arguments = ["--round-trip-ms", "0", "--round-trip-ms", "100", "--fills", "10", "--seconds", "1"]
    report, figures = run(tmp_path, "load-wan", *arguments)
    fastest = {
        (name, site): report["percentiles"][f"{name} ms, 10 fills/s, client at the {site}"]["p50_ms"]
        for name in ("0", "100")
        for site in ("leader's site", "other site")
    }
    assert fastest["100", "leader's site"] > 100
    assert fastest["100", "other site"] > 200
    assert fastest["0", "leader's site"] < fastest["100", "leader's site"]
    # What is not the goal's round trip and rate is held against nothing.
    assert all(figure["passed"] is None for figure in figures)
    assert report["settings"]["orders_per_fill"] == 2.0


def test_the_goal_is_judged_at_its_round_trip_and_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.sweep.load_cases.FILLS_GOAL", 20)
    monkeypatch.setattr("bench.sweep.load_cases.ROUND_TRIP_GOAL_MS", 120.0)
    arguments = ["--round-trip-ms", "120", "--fills", "10", "--fills", "20", "--makers", "4", "--seconds", "0.5"]
    report, figures = run(tmp_path, "load-wan", *arguments)
    judged = [figure for figure in figures if figure["name"] == "  p99" and figure["target"]]
    assert [figure["target"] for figure in judged] == ["< 50", "< 50"]
    assert not any(figure["passed"] for figure in judged)
    assert not report["passed"]
    assert report["settings"]["orders_per_fill"] == 1.25
