"""The simulator repeats itself exactly, passes our engine, fails the library's, and sees when a batch is hollow."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from chaos.sim.batch import Batch, one, read
from chaos.sim.cli import app
from chaos.sim.engines import Hardened
from chaos.sim.run import Run, draw_plan

SEEDS_MIN, SEEDS_MAX = 60, 200
"""The gate's share; more only until everything that is required has happened."""
SEEDS = (11, 1104)
"""The second sends snapshots and changes the members, too."""
DIGESTS = f"from chaos.sim.batch import one; print([one((seed, 'hardened', None)).digest for seed in {SEEDS}])"


def digests_in_a_process(hash_seed: str) -> str:
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    ran = subprocess.run([sys.executable, "-c", DIGESTS], env=environment, capture_output=True, text=True, check=True)
    return ran.stdout.strip()


def test_two_processes_with_one_seed_have_one_trace() -> None:
    here = [one((seed, "hardened", None)) for seed in SEEDS]
    digests = [outcome.digest for outcome in here]
    assert digests_in_a_process("1") == digests_in_a_process("2") == str(digests)
    assert len(set(digests)) == 2
    assert here[1].counters["snapshots_sent"] > 0 < here[1].counters["changed_promote"]


def test_our_engine_keeps_every_promise_and_the_batch_counts() -> None:
    batch = Batch("hardened", 1, None)
    for seed in range(1, SEEDS_MAX + 1):
        batch.add(one((seed, "hardened", None)))
        if seed >= SEEDS_MIN and not batch.missing:
            break
    assert [(outcome.seed, outcome.detail) for outcome in batch.broken] == []
    assert batch.missing == []
    assert batch.verdict == "pass"


@pytest.mark.parametrize("promise", ["committed_changed", "converges"])
def test_the_library_as_published_breaks_promises_within_100_seeds(promise: str) -> None:
    for seed in range(100):
        if one((seed, "stock", None)).broken == promise:
            return
    pytest.fail(f"stock kept {promise} for 100 seeds")


def test_a_batch_in_which_little_happened_is_invalid(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    ran = CliRunner().invoke(app, ["run", "--seeds", "2", "--ledger", str(ledger), "--shape", "1+1+1"])
    assert ran.exit_code == 2, ran.output
    (entry,) = read(ledger)
    assert (entry.verdict, entry.seeds, entry.engine) == ("invalid", 2, "hardened")
    assert "crash_truncated" in entry.missing


def test_a_run_without_faults_is_dull() -> None:
    outcome = Run(draw_plan(5).with_faults([]), Hardened()).play()
    assert (outcome.broken, outcome.counters["elections"], outcome.counters.get("crashes", 0)) == ("", 1, 0)


def test_logging_is_as_it_was_after_a_simulated_run(caplog: pytest.LogCaptureFixture) -> None:
    one((1, "hardened", None))
    logging.getLogger("tiebreak").error("heard")
    assert [record.message for record in caplog.records] == ["heard"]
