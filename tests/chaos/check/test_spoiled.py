"""A good run passes; each way of spoiling it turns the right checkers red, and no checker is there for nothing."""

from pathlib import Path

import pytest

from chaos.check.availability import MISSED_MAX
from chaos.check.run import check_run
from chaos.check.verdict import Verdict
from chaos.history.run import RunUnreadable
from tests.chaos.check.made import make
from tests.chaos.check.spoiled import SPOILED, Spoiled, fail_to_answer_at_a_gateway

SEED = 7


def named(verdict: Verdict, word: str) -> set[str]:
    return {check.name for check in verdict.checks if check.verdict == word}


@pytest.mark.parametrize("seed", range(12))
def test_a_good_run_passes(seed: int, tmp_path: Path) -> None:
    verdict = check_run(make(seed).write(tmp_path / "run"))
    assert verdict.verdict == "pass", [(check.name, check.why) for check in verdict.checks if check.verdict != "pass"]
    assert all(check.why for check in verdict.checks)


@pytest.mark.parametrize("spoiled", SPOILED, ids=lambda spoiled: spoiled.what.replace(" ", "_"))
def test_a_spoiled_run_is_refused(spoiled: Spoiled, tmp_path: Path) -> None:
    parts = make(SEED)
    spoiled.spoil(parts)
    verdict = check_run(parts.write(tmp_path / "run"))
    told = [(check.name, check.why) for check in verdict.checks if check.verdict != "pass"]
    assert named(verdict, "fail") == spoiled.red, told
    assert named(verdict, "invalid") == spoiled.invalid, told
    assert verdict.verdict == ("fail" if spoiled.red else "invalid")


def test_each_checker_is_needed(tmp_path: Path) -> None:
    """For each there is a fault that it alone finds. Money is needed where the log is gone: see below."""
    alone = {next(iter(found)) for one in SPOILED if len(found := one.red | one.invalid) == 1}
    verdict = check_run(make(SEED).write(tmp_path / "run"))
    assert {check.name for check in verdict.checks} - alone == {"money"}


def test_money_is_judged_without_a_log(tmp_path: Path) -> None:
    parts = make(SEED)
    parts.final.balances["bank-0"]["USD"] = ["99999999", "0"]
    folder = parts.write(tmp_path / "run")
    (folder / "log.jsonl").unlink()
    verdict = check_run(folder)
    assert named(verdict, "fail") == {"money"}
    assert "log" in named(verdict, "invalid")


@pytest.mark.parametrize(("missed", "red"), [(MISSED_MAX, set()), (MISSED_MAX + 1, {"gateways"})])
def test_a_gateway_may_miss_very_few_and_the_verdict_says_how_many(missed: int, red: set[str], tmp_path: Path) -> None:
    parts = make(SEED)
    fail_to_answer_at_a_gateway(parts, missed)
    verdict = check_run(parts.write(tmp_path / "run"))
    assert named(verdict, "fail") == red
    counts = next(check.counts for check in verdict.checks if check.name == "gateways")
    assert counts["reads"] - counts["answered"] == missed


def test_members_that_disagree_on_the_log_fail(tmp_path: Path) -> None:
    folder = make(SEED).write(tmp_path / "run")
    (folder / "log-disagreement.json").write_text('{"index": 7}')
    assert named(check_run(folder), "fail") == {"log"}


@pytest.mark.parametrize("name", ["log.jsonl", "events.jsonl", "final.json"])
def test_a_missing_file_makes_a_run_invalid(name: str, tmp_path: Path) -> None:
    folder = make(SEED).write(tmp_path / "run")
    (folder / name).unlink()
    verdict = check_run(folder)
    assert verdict.verdict == "invalid"
    assert any(name in check.why for check in verdict.checks)


@pytest.mark.parametrize("name", ["run.json", "history.jsonl"])
def test_a_folder_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    folder = make(SEED).write(tmp_path / "run")
    (folder / name).unlink()
    with pytest.raises(RunUnreadable, match=name.replace(".", r"\.")):
        check_run(folder)


def test_a_history_cut_short_is_judged_and_invalid(tmp_path: Path) -> None:
    """What was acknowledged in the part that is there still counts."""
    folder = make(SEED).write(tmp_path / "run")
    history = (folder / "history.jsonl").read_bytes()
    (folder / "history.jsonl").write_bytes(history[: len(history) // 2])
    assert "enough" in named(check_run(folder), "invalid")
