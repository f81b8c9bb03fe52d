"""The way of an order, traced in a real cluster: each stage is seen, and together they are the client's latency."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from bench import cli
from bench.spans.member import Arrivals
from bench.spans.order_case import LOADS
from bench.spans.order_path import GROUPS, STAGES

run = CliRunner().invoke


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    result = run(cli.app, ["run", "spans-order", "--seconds", "0.5", "--round-trip-ms", "0", "--json"])
    found: dict[str, Any] = json.loads(result.stdout)[0]
    return found


def test_the_stages_of_each_order_add_up(report: dict[str, Any]) -> None:
    off = [one for one in report["figures"] if one["name"].startswith("  whose stages are more than")]
    assert [(one["value"], one["passed"]) for one in off] == [(0, True)] * len(LOADS)
    traced = {one["name"]: one["value"] for one in report["figures"] if one["name"].endswith(": traced")}
    assert {f"{name}: traced" for name in LOADS} == traced.keys()
    assert min(traced.values()) > 10


def test_every_stage_is_seen(report: dict[str, Any]) -> None:
    seen = report["percentiles"]
    for stage in STAGES:
        assert any(f"{name}: {stage}" in seen for name in LOADS), stage
    for name in LOADS:
        assert seen[name]["p50_ms"] > 0
        # Both are measured, whichever was on the critical path.
        assert seen[f"{name}: leader's own disk"]["p50_ms"] > 0
        assert seen[f"{name}: majority of the others"]["p50_ms"] > 0


def test_a_bar_is_as_high_as_the_latency_that_it_stands_for(report: dict[str, Any]) -> None:
    for name in LOADS:
        curves = [one for one in report["curves"] if one["picture"] == name]
        assert [one["series"] for one in curves] == list(GROUPS)
        middle, slow = (sum(one["y"][at] for one in curves) for at in (0, 1))
        assert middle == pytest.approx(report["percentiles"][name]["p50_ms"], rel=0.25)
        assert middle < slow <= report["percentiles"][name]["max_ms"] + 0.01  # each stage is rounded


def test_cpu_time_of_an_order_is_less_than_its_wall_time(report: dict[str, Any]) -> None:
    figures = [one for one in report["figures"] if one["name"] == "  CPU of the leader for an order: all of these"]
    assert len(figures) == len(LOADS)
    for one, name in zip(figures, LOADS, strict=True):
        assert 0 < one["value"] < report["percentiles"][name]["p99_ms"] * 1e3


def test_frames_are_counted_however_they_are_cut() -> None:
    def frame(opcode: int, size: int) -> bytes:
        head = bytes((0x80 | opcode,))
        head += bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
        return head + b"\0\0\0\0" + b"x" * size

    wire = frame(2, 10) + frame(0xA, 4) + frame(2, 300) + frame(1, 0) + frame(2, 125)
    for step in (1, 2, 7, 100, len(wire)):
        arrivals = Arrivals()
        for at in range(0, len(wire), step):
            arrivals.feed(wire[at : at + step], at + 1)
        assert len(arrivals.times) == 4, step
        assert arrivals.times == type(arrivals.times)(sorted(arrivals.times)), step
