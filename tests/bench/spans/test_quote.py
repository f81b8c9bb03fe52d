"""The way of a quote, traced from a venue to real clients of a gateway's worker: its stages are the whole of it."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from bench import cli
from bench.spans.quote_case import LOADS
from bench.spans.quote_path import GROUPS, STAGES

run = CliRunner().invoke


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    result = run(cli.app, ["run", "spans-quote", "--seconds", "1", "--json"])
    found: dict[str, Any] = json.loads(result.stdout)[0]
    return found


def test_the_stages_of_each_quote_add_up(report: dict[str, Any]) -> None:
    off = [one for one in report["figures"] if one["name"].startswith("  whose stages are more than")]
    assert [(one["value"], one["passed"]) for one in off] == [(0, True)] * len(LOADS)
    traced = {one["name"]: one["value"] for one in report["figures"] if one["name"].endswith(": traced")}
    assert {f"{name}: traced" for name in LOADS} == traced.keys()
    assert min(traced.values()) > 30


def test_every_stage_is_seen(report: dict[str, Any]) -> None:
    seen = report["percentiles"]
    for stage in STAGES:
        assert any(f"{name}: {stage}" in seen for name in LOADS), stage
    for name in LOADS:
        assert seen[f"{name}: in the cache"]["p50_ms"] > 0


def test_a_bar_is_as_high_as_the_latency_that_it_stands_for(report: dict[str, Any]) -> None:
    for name in LOADS:
        curves = [one for one in report["curves"] if one["picture"] == f"A quote from venue to client: {name}"]
        assert [one["series"] for one in curves] == list(GROUPS)
        middle, slow = (sum(one["y"][at] for one in curves) for at in (0, 1))
        assert middle == pytest.approx(report["percentiles"][name]["p50_ms"], rel=0.25)
        assert middle < slow <= report["percentiles"][name]["max_ms"] + 0.01  # each stage is rounded
