"""`tiebreak bench` and `tiebreak replay`: what they print, what they refuse, and that targets decide the exit code."""

import json
from itertools import islice
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench import cli, replay_cli
from bench.generator import Market
from bench.report import Figure, at_least, at_most, exactly, number
from bench.running import running
from tests.bench import files

run = CliRunner().invoke


def test_list_says_what_there_is() -> None:
    listed = json.loads(run(cli.app, ["list", "--json"]).stdout)
    assert set(listed) == set(cli.BENCHMARKS)
    assert all(listed.values())


def test_engine_prints_figures_targets_and_the_machine() -> None:
    result = run(cli.app, ["run", "engine", "--commands", "3000", "--json"])
    (report,) = json.loads(result.stdout)
    figures = {figure["name"]: figure for figure in report["figures"]}
    assert figures["order commands a second (floor)"]["target"] == ">= 40,000"
    assert figures["commands"]["value"] == 3_000
    assert figures["fills"]["value"] > 50
    assert report["host"]["fdatasync_p99_ms"] >= report["host"]["fdatasync_p50_ms"] > 0
    assert report["host"]["commit"]
    assert report["settings"]["batch"] == 50
    assert result.exit_code == (0 if report["passed"] else 1)


def test_store_start_measures_a_process_of_its_own() -> None:
    result = run(cli.app, ["run", "store-start", "--accounts", "1000", "--json"])
    (report,) = json.loads(result.stdout)
    figures = {figure["name"]: figure["value"] for figure in report["figures"]}
    assert 0 < figures["start"] < 5
    assert 10 < figures["memory at its peak"] < 2_048


def test_a_whole_cluster_is_measured_from_another_process(tmp_path: Path) -> None:
    arguments = ["run", "cluster-one", "--seconds", "0.5", "--json", "--folder", str(tmp_path)]
    (report,) = json.loads(run(cli.app, arguments).stdout)
    figures = {figure["name"]: figure["value"] for figure in report["figures"]}
    assert 0 < figures["p50"] <= figures["p99"] <= figures["longest"]
    # Half a second is fifty ticks of the system's account of CPU time: on a busy machine it may give us none.
    assert 0 <= figures["CPU of the load generator"] <= 200
    assert report["settings"]["members"] == 3
    assert not any((tmp_path / one).exists() for one in ("cluster-one", "data"))


WRONG = [
    (["run", "nothing"], "one of engine"),
    (["run", "engine", "--kills", "3"], "kills means nothing to engine"),
    (["run", "hardening", "--variant", "nothing"], "one of shipped, no-sync"),
    (["run", "kill", "--pause-s", "5"], "pause-s means nothing to kill"),
    (["run", "load-latency", "--shape", "3+3"], "3+3: one of 1+1+1"),
    (["run", "load-doors", "--round-trip-ms", "10"], "round-trip-ms means nothing to load-doors"),
    (["run", "cluster-one", "--accounts", "3"], "accounts means nothing"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG)
def test_what_can_not_be_is_refused(arguments: list[str], said: str) -> None:
    result = run(cli.app, arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())


def test_targets_decide() -> None:
    assert at_least("x", 10, 10).passed
    assert not at_least("x", 9.9, 10).passed
    assert at_most("x", 9.9, 10).passed
    assert not at_most("x", 10, 10).passed
    assert not exactly("x", 1, 0).passed
    assert Figure("x", 1).passed is None


def test_numbers_are_written_for_people() -> None:
    assert [number(value) for value in (0.1234, 1.5, 467.39, 123_456.7, 3.0, 0)] == [
        "0.123",
        "1.5",
        "467.4",
        "123,457",
        "3",
        "0",
    ]


def test_fit_prints_both_columns_side_by_side(tmp_path: Path) -> None:
    path = files.plain(tmp_path)
    columns = json.loads(run(cli.app, ["fit", "--path", str(path), "--events", "2000", "--json"]).stdout)
    assert list(columns) == ["XYZ", "generator, seed 7"]
    assert columns["XYZ"]["events"] == 7
    assert columns["XYZ"]["deletes"] == pytest.approx(100 * 2 / 3)


def test_replay_compares_book_and_named_orders(tmp_path: Path) -> None:
    result = run(replay_cli.app, ["lobster", str(files.zipped(tmp_path)), "--json"])
    assert result.exit_code == 0, result.output
    replayed = json.loads(result.stdout)
    assert (replayed["compared"], replayed["same_touch"]) == (10, 10)
    assert (replayed["certain_executions"], replayed["certain_hits"]) == (1, 1)
    assert replayed["fills"] == 1


def test_replay_sends_a_recording_to_a_cluster(tmp_path: Path) -> None:
    path = files.write_market(tmp_path, islice(Market(5).messages(), 600), 50)
    with running(tmp_path / "cluster"):
        arguments = ["lobster", str(path), "--cluster", str(tmp_path / "cluster"), "--json"]
        first, second = (run(replay_cli.app, arguments) for _ in range(2))
    assert (first.exit_code, second.exit_code) == (0, 0), first.output
    replayed = json.loads(first.stdout)
    assert replayed["commands"] > 500
    assert replayed["orders"] > 300
    assert replayed["unknown"] == 0
    assert set(replayed["refused"]) <= {"order_not_found"}
    assert json.loads(second.stdout)["orders"] > 300  # the market was there already


def test_replay_without_a_cluster_to_send_to(tmp_path: Path) -> None:
    result = run(replay_cli.app, ["lobster", str(files.plain(tmp_path)), "--cluster", str(tmp_path / "absent")])
    assert result.exit_code == 1
    assert "no cluster in" in " ".join(result.output.split())


def test_replay_names_file_and_line_of_what_is_bad(tmp_path: Path) -> None:
    path = files.plain(tmp_path)
    path.write_text(path.read_text() + "rubbish\n")
    result = run(replay_cli.app, ["lobster", str(path)])
    assert result.exit_code == 1
    assert "_message_1.csv:11: 1 columns" in "".join(result.output.split("\n"))
