"""`tiebreak chaos` on what can't be right: a clear word, the right exit code, and nothing started or left."""

import json
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from chaos.check.verdict import Verdict
from chaos.live import ledger
from chaos.live.cli import app
from chaos.live.scenarios import SCENARIOS
from tests.chaos.report.made_up import failed, make_run, passed

run = CliRunner().invoke


def test_list_has_a_line_for_each_scenario() -> None:
    listed = run(app, ["list"])
    assert listed.exit_code == 0
    assert len([line for line in listed.stdout.splitlines() if line.split(maxsplit=1)[0] in SCENARIOS]) == len(
        SCENARIOS
    )
    assert {one["name"] for one in json.loads(run(app, ["list", "--json"]).stdout)} == set(SCENARIOS)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "dccut"], "did you mean dc-cut"),
        (["run", "dc-cut", "--seed", "x"], "Invalid value for '--seed'"),
        (["run", "dc-cut", "--seed", "-1"], "Invalid value for '--seed'"),
        (["run", "dc-cut", "--seconds", "soon"], "Invalid value for '--seconds'"),
        (["run", "dc-cut", "--shape", "3+3"], "1+1+1"),
        (["run", "majorities-ring", "--shape", "1+1+1"], "majorities-ring needs 2+2+1"),
        (["run", "dc-cut", "--engine", "hardend"], "shipped"),
        (["run", "dc-cut", "--network", "tin-cans"], "toxiproxy"),
        (["nightly", "--minutes", "1", "nosuch"], "no scenario is called"),
        (["teeth", "toothless"], "one of"),
        (["check", "--format", "elle", "x"], "porcupine"),
    ],
)
def test_wrong_usage_is_said_before_anything_starts(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = run(app, words, env={"COLUMNS": "200"})
    assert refused.exit_code == 2, refused.output
    assert says in refused.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_not_written_into(tmp_path: Path) -> None:
    refused = run(app, ["run", "dc-cut", "--out", str(tmp_path)], env={"COLUMNS": "400"})
    assert refused.exit_code == 2
    assert "is there already" in refused.stderr


@pytest.mark.parametrize("command", ["check", "report"])
def test_a_folder_that_is_no_run_is_refused(command: str, tmp_path: Path) -> None:
    refused = run(app, [command, str(tmp_path)])
    assert refused.exit_code == 3
    assert "is this the folder of a run?" in refused.stderr


def test_a_run_that_was_cut_off_is_invalid_and_can_be_shown(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    history = folder / "history.jsonl"
    history.write_bytes(history.read_bytes()[:-40_007])
    shown = run(app, ["report", str(folder)])
    assert (shown.exit_code, shown.stdout.strip()) == (0, str(folder / "report.html"))
    judged = run(app, ["check", str(folder), "--json"])
    assert judged.exit_code == 3, judged.output
    assert msgspec.json.decode(judged.stdout, type=Verdict).verdict == "invalid"


def test_a_torn_line_in_the_middle_is_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    history = folder / "history.jsonl"
    lines = history.read_bytes().splitlines()
    history.write_bytes(b"\n".join([*lines[:10], lines[10][:20], *lines[11:]]))
    judged = run(app, ["check", str(folder)])
    assert judged.exit_code == 3
    assert "line 11" in judged.stderr


def test_the_ledger_is_summed_up_and_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    for seed, verdict in ((1, passed()), (2, failed()), (3, None)):
        folder = make_run(tmp_path / f"run-{seed}", seed=seed, verdict=verdict)
        ledger.append(path, ledger.entry_of(folder, verdict, why="" if verdict else "it was cut off"))
    entries = ledger.read(path)
    assert [entry.verdict for entry in entries] == ["pass", "fail", "invalid"]
    assert entries[0].injections == {"dc-cut": 2, "kill": 1}
    assert entries[0].hours == pytest.approx(60 / 3600, rel=0.01)
    assert entries[1].red == ["acknowledged"]
    shown = run(app, ["ledger", "--ledger", str(path)])
    assert shown.exit_code == 0
    assert shown.stdout.split("all", 1)[1].split()[:5] == ["3", "1", "1", "1", "3"]
    assert "gateways answered 480 of 481 reads (99.792 %); sites agreed after a heal within 812 ms" in shown.stdout
    path.write_bytes(path.read_bytes() + b"{}\n")
    refused = run(app, ["ledger", "--ledger", str(path)])
    assert refused.exit_code == 3
    assert "line 4" in refused.stderr


def test_histories_of_others_are_judged(tmp_path: Path) -> None:
    lines = (
        "{:process 0, :type :invoke, :f :write, :value 1}",
        "{:process 0, :type :ok, :f :write, :value 1}",
        "{:process 1, :type :invoke, :f :read, :value nil}",
        "{:process 1, :type :ok, :f :read, :value %d}",
    )
    path = tmp_path / "history.edn"
    for value, code, word in ((1, 0, "pass"), (2, 1, "fail")):
        path.write_text("\n".join(lines) % value)
        judged = run(app, ["check", "--format", "knossos", str(path), "--json"])
        assert judged.exit_code == code, judged.output
        assert msgspec.json.decode(judged.stdout, type=Verdict).verdict == word


def test_a_night_in_which_nothing_can_run_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOXIPROXY_SERVER", str(tmp_path / "nowhere"))
    path = tmp_path / "ledger.jsonl"
    words = ["--minutes", "0.1", "--out", str(tmp_path / "runs"), "--ledger", str(path), "dc-cut"]
    night = run(app, ["nightly", *words])
    assert night.exit_code == 3, night.output
    entries = ledger.read(path)
    assert entries
    assert {(entry.scenario, entry.verdict) for entry in entries} == {("dc-cut", "invalid")}
    assert "TOXIPROXY_SERVER" in entries[0].why
    assert "tiebreak chaos run dc-cut" in night.stderr
    assert len({entry.seed for entry in entries}) == len(entries)


def test_a_mutant_whose_run_shows_nothing_is_not_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOXIPROXY_SERVER", str(tmp_path / "nowhere"))
    bitten = run(app, ["teeth", "double-credit", "--out", str(tmp_path / "runs"), "--json"])
    assert bitten.exit_code == 3
    (one,) = json.loads(bitten.stdout)
    assert (one["program"], one["noticed"], one["verdict"]) == ("double-credit", False, "invalid")
