"""The benchmarks that break real clusters, each run once and small: they measure, and they judge."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench import cli
from bench.hardening_case import SHIPPED


def run(folder: Path, *arguments: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The report, and its figures by name."""
    result = CliRunner().invoke(cli.app, ["run", *arguments, "--json", "--folder", str(folder)])
    assert result.stdout, result.output
    (report,) = json.loads(result.stdout)
    return report, {figure["name"]: figure for figure in report["figures"]}


def test_a_paused_leader_answers_nothing_old_and_the_judge_would_see_it(tmp_path: Path) -> None:
    report, figures = run(tmp_path, "pause", "--pause-s", "1.5", "--rounds", "1", "--rate", "200")
    correct = [figure for figure in report["figures"] if figure["target"] == "0"]
    assert len(correct) == 7
    assert all(figure["passed"] for figure in correct), correct
    teeth = figures["stale reads found when asked for local ones (the judge's teeth)"]
    assert teeth["passed"], teeth
    answered = figures["requests that waited in the paused member: answered"]["value"]
    assert answered + figures["  refused with an error"]["value"] == 32
    assert answered > 0
    assert figures["linearizable reads judged"]["value"] > 100
    assert figures["pause of 1.5 s: another leads after, p50"]["value"] > 0
    assert figures["writes acknowledged"]["value"] > 300
    assert report["settings"]["pauses"] == "1 each of 1.5 s"


@pytest.mark.parametrize(("by", "transfers"), [("api", 2), ("sigterm", 1)])
def test_leadership_is_handed_over_and_nothing_fails(by: str, transfers: int, tmp_path: Path) -> None:
    report, figures = run(tmp_path, "transfer", "--by", by, "--transfers", str(transfers), "--rate", "200")
    correct = [figure for figure in report["figures"] if figure["target"] == "0"]
    assert len(correct) == 4
    assert all(figure["passed"] for figure in correct), correct
    pause = figures["  of all hand-overs"]
    # How long it is depends on who else uses this machine; that it is measured does not.
    assert 0 < pause["value"] < 5_000
    assert pause["target"] == "< 200"
    assert figures["requests"]["value"] > 150
    assert figures["latency around a hand-over, p50"]["value"] > 0
    assert report["settings"]["by"] == by


def test_a_killed_leader_loses_nothing(tmp_path: Path) -> None:
    report, figures = run(tmp_path, "kill", "--kills", "1", "--rate", "200")
    correct = [figure for figure in report["figures"] if figure["target"] == "0"]
    assert len(correct) == 3
    assert all(figure["passed"] for figure in correct), correct
    assert 0 < figures["outage p50"]["value"] == figures["outage longest"]["value"] < 10_000
    assert figures["commands checked"]["value"] > 200


def test_members_come_and_go_and_nothing_fails(tmp_path: Path) -> None:
    report, figures = run(tmp_path, "membership", "--commands", "2000", "--rate", "100")
    correct = [figure for figure in report["figures"] if figure["target"] == "0"]
    assert len(correct) == 5
    assert all(figure["passed"] for figure in correct), correct
    assert figures["the new replica has caught up after"]["value"] > 0
    assert figures["the old one has left after"]["value"] > 0
    assert figures["the read replica has caught up after"]["value"] > 0
    assert figures["requests"]["value"] > 200


def test_what_safety_costs_is_measured_beside_the_product(tmp_path: Path) -> None:
    others = ["memory+plain-tcp", "stock"]
    arguments = ["hardening", "--rounds", "1", "--seconds", "0.5"]
    report, figures = run(tmp_path, *arguments, *(word for name in others for word in ("--variant", name)))
    assert report["settings"]["order"] == "shipped, memory+plain-tcp, stock"
    for name in (SHIPPED, *others):
        assert figures[f"order commands a second, pipelined: {name}"]["value"] > 100
        assert figures[f"one command at a time, p50: {name}"]["value"] > 0
    assert figures["  to shipped"]["unit"] == "x"
