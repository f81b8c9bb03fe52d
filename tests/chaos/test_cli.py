"""`tiebreak sim`: what each command prints, and the codes it leaves with."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from chaos.sim import batch
from chaos.sim.batch import Batch
from chaos.sim.cli import app
from chaos.sim.engines import engine_named
from chaos.sim.run import Outcome, draw_plan, shrink

run = CliRunner().invoke


@pytest.fixture(scope="module")
def stock_fails() -> int:
    """The first seed with which the library as published breaks a promise."""
    return next(seed for seed in range(1, 101) if batch.one((seed, "stock", None)).broken)


def test_show_prints_a_run_and_repeats_a_part_of_its_faults() -> None:
    whole = run(app, ["show", "3"])
    assert whole.exit_code == 0
    assert " fault " in whole.stdout
    assert "fault" not in run(app, ["show", "3", "--only", ""]).stdout
    outcome = msgspec.json.decode(run(app, ["show", "3", "--json"]).stdout, type=Outcome)
    assert (outcome.seed, outcome.broken) == (3, "")


@pytest.mark.parametrize(
    ("only", "says"), [("a", "numbers of faults"), ("0,9999", "has faults 0 to"), ("-1", "has faults 0 to")]
)
def test_faults_that_a_seed_does_not_have_are_refused(only: str, says: str) -> None:
    refused = run(app, ["show", "3", "--only", only])
    assert refused.exit_code == 2
    assert says in refused.stderr


def test_stock_is_explained_shrunk_and_written_down(stock_fails: int, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    words = ["run", "--engine", "stock", "--seed", str(stock_fails), "--seeds", "1", "--ledger", str(ledger)]
    ran = run(app, [*words, "--shrinks", "5", "--json"])
    assert ran.exit_code == 1
    entry = msgspec.json.decode(ran.stdout, type=batch.Entry)
    assert (entry.verdict, entry.broken_seeds, entry.engine) == ("fail", [stock_fails], "stock")
    assert f"tiebreak sim show {stock_fails} --engine stock" in ran.stderr
    assert "faults are enough" in ran.stderr
    assert batch.read(ledger) == [entry]
    shown = run(app, ["ledger", "--ledger", str(ledger)])
    assert shown.exit_code == 0
    assert "stock" in shown.stdout


def test_a_shrunk_plan_fails_alike_with_fewer_faults(stock_fails: int) -> None:
    plan, engine = draw_plan(stock_fails), engine_named("stock")
    broken = batch.one((stock_fails, "stock", None)).broken
    fewer = shrink(plan, engine, broken, tries=20)
    assert len(fewer.faults) < len(plan.faults)


def test_mutants_and_scripts_say_what_they_noticed() -> None:
    ran = run(app, ["mutants", "acknowledges before", "--json"])
    assert ran.exit_code == 0
    (killed,) = msgspec.json.decode(ran.stdout).values()
    assert killed["promise"] == "durable_reply"
    scripts = run(app, ["scripts", "--json"])
    assert scripts.exit_code == 0
    assert set(msgspec.json.decode(scripts.stdout).values()) == {""}


@pytest.mark.parametrize("words", [["run", "--engine", "other"], ["show", "1", "--shape", "9+9"]])
def test_what_does_not_exist_is_refused(words: list[str]) -> None:
    assert run(app, words).exit_code == 2


def test_a_batch_without_what_is_required_is_invalid() -> None:
    outcome = Outcome(1, "1+1+1", "", "", 10**6, 1, "", dict.fromkeys(batch.REQUIRED, 1), 1.0)
    whole, hollow = Batch("hardened", 1, None), Batch("hardened", 1, None)
    for _ in range(2):
        whole.add(outcome)
        hollow.add(msgspec.structs.replace(outcome, counters=outcome.counters | {"truncations": 0}))
    assert (whole.verdict, whole.missing) == ("pass", [])
    assert (hollow.verdict, hollow.missing) == ("invalid", ["truncations"])


def test_two_processes_run_the_seeds_that_one_would(tmp_path: Path) -> None:
    words = ["run", "--seeds", "6", "--seed", "40", "--json", "--ledger"]
    alone, both = (run(app, [*words, str(tmp_path / jobs), "--jobs", jobs]) for jobs in ("1", "2"))
    first, second = (msgspec.json.decode(ran.stdout, type=batch.Entry) for ran in (alone, both))
    assert (first.seeds, first.first_seed, first.counters) == (second.seeds, second.first_seed, second.counters)
    assert first.virtual_hours == second.virtual_hours > 0
    assert batch.read(tmp_path / "2") == [second]
    digests = [[o.digest for o in batch.outcomes("hardened", range(40, 44), None, jobs)] for jobs in (1, 2)]
    assert digests[0] == digests[1]


def test_a_seed_that_fails_in_a_worker_is_explained(stock_fails: int, tmp_path: Path) -> None:
    first = max(0, stock_fails - 3)
    words = ["--engine", "stock", "--seed", str(first), "--seeds", "50", "--jobs", "2", "--shrinks", "5"]
    ran = run(app, ["run", *words, "--ledger", str(tmp_path / "ledger")])
    assert ran.exit_code == 1
    assert f"tiebreak sim show {stock_fails} --engine stock" in ran.stderr
    assert "faults are enough" in ran.stderr
    (entry,) = batch.read(tmp_path / "ledger")
    assert (entry.broken_seeds, entry.seeds) == ([stock_fails], stock_fails - first + 1)


def living_in(group: int) -> list[str]:
    """The command lines of the processes that live in a process group."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[2]) == group:
                found.append((folder / "cmdline").read_text())
    return found


def test_an_interrupt_ends_all_processes_and_what_ran_counts(tmp_path: Path) -> None:
    words = ["run", "--minutes", "5", "--jobs", "2", "--ledger", str(tmp_path / "ledger")]
    child = subprocess.Popen(
        [sys.executable, "-c", f"from chaos.sim.cli import app; app({words})"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while sum("spawn_main" in name for name in living_in(child.pid)) < 2:
            assert time.monotonic() < deadline, "no workers"
            time.sleep(0.05)
        os.killpg(child.pid, signal.SIGINT)
        said = child.communicate(timeout=60)[1]
        left = [name for name in living_in(child.pid) if "spawn_main" in name]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    assert "stopped; what ran until now counts" in said
    assert "Traceback" not in said
    (entry,) = batch.read(tmp_path / "ledger")
    assert entry.broken == {}
    assert left == []
