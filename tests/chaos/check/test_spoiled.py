"""A good run passes; each way of spoiling it turns the right checkers red, and no checker is there for nothing."""

from pathlib import Path

import pytest

from chaos.check.run import check_run
from chaos.check.verdict import Verdict
from chaos.history.records import Fault
from chaos.history.run import RunUnreadable
from tests.chaos.check.made import GATEWAYS, make
from tests.chaos.check.spoiled import SPOILED, Spoiled, ask_a_gateway_too_seldom, fail_to_answer_at_a_gateway

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


@pytest.mark.parametrize(
    ("missed", "asked", "word"),
    [
        (0, 1_000, "pass"),
        (1, 1_000, "pass"),
        (2, 1_000, "fail"),
        (0, 999, "invalid"),
        # One of 999 is more than one in a thousand.
        (1, 999, "fail"),
    ],
)
def test_a_gateway_may_miss_one_read_in_a_thousand(missed: int, asked: int, word: str, tmp_path: Path) -> None:
    parts = make(SEED)
    for gateway in GATEWAYS:
        ask_a_gateway_too_seldom(parts, asked, gateway)
    fail_to_answer_at_a_gateway(parts, missed)
    verdict = check_run(parts.write(tmp_path / "run"))
    assert verdict.verdict == word
    check = next(check for check in verdict.checks if check.name == "gateways")
    assert check.verdict == word
    assert (check.counts["reads"], check.counts["answered"]) == (2 * asked, 2 * asked - missed)


def test_a_late_answer_of_a_gateway_is_none(tmp_path: Path) -> None:
    """Its client had hung up: whether it was written later is nobody's answer."""
    parts = make(SEED)
    fail_to_answer_at_a_gateway(parts, 2, error="lost: timeout")
    assert named(check_run(parts.write(tmp_path / "run")), "fail") == {"gateways"}


@pytest.mark.parametrize(("after_ns", "word"), [(-1, "pass"), (1_000_000_000, "fail")])
def test_what_clients_lost_by_a_cut_of_their_own_is_no_gateways_miss(after_ns: int, word: str, tmp_path: Path) -> None:
    """Under way while they were cut it is excused; asked a second later it is not."""
    parts = make(SEED)
    missed = fail_to_answer_at_a_gateway(parts, 2)
    at_ns = min(call.at_ns for call in missed) - after_ns
    detail = {"took_ms": 1, "share": 1.0}
    cut = [Fault(9, at_ns, "client-cut", "begin", [GATEWAYS[0]], detail), Fault(9, at_ns, "client-cut", "bite")]
    ends_ns = max(call.at_ns for call in missed) + 10
    parts.history += [*cut, Fault(9, ends_ns, "client-cut", "end")]
    parts.history.sort(key=lambda line: line.at_ns)
    assert check_run(parts.write(tmp_path / "run")).verdict == word


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
