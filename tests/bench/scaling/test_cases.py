"""The scaling benchmarks, each run once and small: with real stores, real processes and, once, a real cluster."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench import cli


def run(folder: Path, *arguments: str) -> tuple[dict[str, Any], dict[str, float]]:
    """The report, and its figures by name; an indented one goes by the name above it, too."""
    result = CliRunner().invoke(cli.app, ["run", *arguments, "--json", "--folder", str(folder)])
    assert result.stdout, result.output
    (report,) = json.loads(result.stdout)
    figures: dict[str, float] = {}
    above = ""
    for figure in report["figures"]:
        name = figure["name"]
        above = above if name.startswith("  ") else name.rpartition(":")[0]
        figures[f"{above}:{name}" if name.startswith("  ") else name] = figure["value"]
    assert not list(folder.rglob("data.mdb"))
    return report, figures


def lines(report: dict[str, Any], picture: str) -> dict[str, tuple[list[float], list[float]]]:
    return {one["series"]: (one["x"], one["y"]) for one in report["curves"] if one["picture"] == picture}


def test_accounts(tmp_path: Path) -> None:
    sizes = ["--size", "3000", "--size", "100"]
    report, figures = run(tmp_path, "scale-accounts", *sizes, "--commands", "1000", "--batch", "10")
    throughput = lines(report, "throughput")
    assert list(throughput) == ["uniform", "20 % take 80 %", "uniform, from an emptied page cache"]
    for xs, ys in throughput.values():
        assert xs == [100, 3_000]
        assert min(ys) > 100
    assert all(curve["log_x"] for curve in report["curves"] if curve["kind"] == "line")
    few, many = "100 accounts, uniform", "3,000 accounts, uniform"
    read = "  accounts read from the store for a command"
    # A hundred accounts all have open orders, so they are in memory from the start.
    assert figures[f"{few}:{read}"] < 0.01
    assert figures[f"{many}:{read}"] > 0.3
    assert figures[f"{many}:  CPU of a command"] > 0
    assert figures[f"{many}:  written to the disk for a command"] > 100
    assert figures["3,000 accounts:  it takes on disk"] > figures["100 accounts:  it takes on disk"]
    spread = report["percentiles"]["a batch's apply, 100 accounts, uniform"]
    assert spread["count"] == 100
    assert 0 < spread["p50_ms"] <= spread["p99_ms"]


def test_symbols(tmp_path: Path) -> None:
    sizes = ["--size", "1", "--size", "50"]
    report, figures = run(tmp_path, "scale-symbols", *sizes, "--commands", "1000")
    assert {series: xs for series, (xs, _) in lines(report, "throughput").items()} == {
        "uniform": [1, 50],
        "20 % take 80 %": [1, 50],
    }
    assert report["settings"]["open_orders"] == 20_000
    assert figures["50 symbols:  memory that the state takes then"] > 5


def test_open_orders(tmp_path: Path) -> None:
    sizes = ["--size", "100", "--size", "20000"]
    report, figures = run(tmp_path, "scale-open-orders", *sizes, "--commands", "1000")
    assert 300 < figures["memory of an open order, where there are 20,000"] < 10_000
    ((xs, ys),) = lines(report, "open the store and restore the machine").values()
    assert xs == [100, 20_000]
    assert 0 < ys[0] < ys[1]


def test_disk_over_days(tmp_path: Path) -> None:
    report, figures = run(tmp_path, "disk-growth", "--commands", "6000")
    assert figures["findings of the audit"] == 0
    assert figures["new orders"] > 3_000
    stacks = {one["series"]: one for one in report["curves"] if one["kind"] == "stacked"}
    assert stacks["events"]["x"] == [
        *("0.25", "0.5", "0.75", "1", "1+"),
        *("1.25", "1.5", "1.75", "2", "2+"),
        *("2.25", "2.5", "2.75", "3", "3+"),
    ]
    assert {"ledger (sealed)", "trades (sealed)", "closed_orders (sealed)", "events (sealed)"} <= set(stacks)
    for kind in ("ledger", "trades", "closed_orders", "events"):
        hot, sealed = stacks[kind]["y"], stacks[f"{kind} (sealed)"]["y"]
        # What a day has written leaves its table when it is sealed, and is smaller in its segment.
        for evening in (3, 8, 13):
            assert sealed[evening + 1] > sealed[evening]
            assert hot[evening] - hot[evening + 1] > 0.5 * (sealed[evening + 1] - sealed[evening])
        assert sealed[0] == 0
    assert min(stacks["journal, in use"]["y"]) > 0
    assert figures["a compacted copy of the store at the end"] > 0


def test_restart(tmp_path: Path) -> None:
    arguments = ["--size", "0", "--size", "2000", "--accounts", "500", "--open-orders", "200", "--rounds", "1"]
    report, figures = run(tmp_path, "restart", *arguments)
    states = ["500 accounts", "200 open orders", "0 commands to replay", "2,000 commands to replay"]
    for state in states:
        assert figures[f"{state}: ready after"] > 0
        assert figures[f"{state}:  its own memory"] > 10
        assert 0 < figures[f"{state}:  the store and the machine alone"] < 10
    lacked = "  entries of the log that its store lacked"
    # Behind the traffic the log has a few entries of the members' own.
    assert 0 <= figures[f"{states[2]}:{lacked}"] < 20
    assert 40 <= figures[f"{states[3]}:{lacked}"] < 60
    assert figures["findings of the audit after all replays"] == 0
    ((xs, _), *_) = lines(report, "restart by commands to replay").values()
    assert xs == [1, 2_000]


WRONG = [
    (["scale-accounts", "--size", "20000001"], "at most 20,000,000"),
    (["scale-symbols", "--size", "0"], "a size is 1 at least"),
    (["scale-symbols", "--size", "1000000"], "1000000 symbols need 100000 accounts at least"),
    (["scale-open-orders", "--size", "1000000000000"], "open orders are too many"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG)
def test_what_can_not_be_is_said(arguments: list[str], said: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["run", *arguments, "--folder", str(tmp_path)])
    assert result.exit_code == 1
    assert said in " ".join(result.output.split())
