"""One log, one state: live, replayed, restored, under any hash seed, and however it was cut into batches."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from statemachine.audit import audit
from statemachine.machine import Machine
from statemachine.memory import MemoryBacking
from statemachine.results import AnyResult, Placed, Refused
from tests.statemachine.flow import payloads, run, state_digest

ROOT = Path(__file__).parents[2]
SEEDS = (1, 2, 3)
COUNT = 300


def fresh() -> tuple[Machine, MemoryBacking]:
    backing = MemoryBacking()
    return Machine(backing), backing


@pytest.mark.parametrize("seed", SEEDS)
def test_the_flow_reaches_the_rules(seed: int) -> None:
    """Otherwise the tests below would compare nothing with nothing."""
    machine, backing = fresh()
    results: list[AnyResult] = []
    for applied in run(machine, backing, payloads(seed, COUNT)):
        results.extend(applied.results)
    assert not machine.writes_stopped
    assert len(backing.trades) > 60
    assert len(backing.closed_orders) > 250
    assert sum(isinstance(result, Placed) for result in results) > 300
    assert len({result.code for result in results if isinstance(result, Refused)}) > 12


@pytest.mark.parametrize("seed", SEEDS)
def test_the_audit_finds_nothing_after_any_batch(seed: int) -> None:
    machine, backing = fresh()
    for payload in payloads(seed, COUNT):
        run(machine, backing, [payload])
        backing.store(machine.collect())
        assert audit(backing.state(), backing.accounts(), backing.ledger) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_snapshot_and_tail_are_a_full_replay(seed: int) -> None:
    batches = payloads(seed, COUNT)
    live, live_backing = fresh()
    snapshots: list[tuple[int, MemoryBacking]] = []
    for position, payload in enumerate(batches):
        if position % 13 == 0:
            live_backing.store(live.collect())
            snapshots.append((position, copy.deepcopy(live_backing)))
        run(live, live_backing, [payload])
    expected = (live.digest, state_digest(live, live_backing))

    replayed, replayed_backing = fresh()
    run(replayed, replayed_backing, batches)
    assert (replayed.digest, state_digest(replayed, replayed_backing)) == expected

    for position, backing in snapshots:
        restored = Machine(backing, backing.state())
        run(restored, backing, batches[position:])
        assert (restored.digest, state_digest(restored, backing)) == expected, f"from position {position}"


def test_a_small_cache_changes_no_answer() -> None:
    batches = payloads(4, COUNT)
    roomy, roomy_backing = fresh()
    tight_backing = MemoryBacking()
    tight = Machine(tight_backing, accounts_cached=0)
    evicted = 0
    for payload in batches:
        run(roomy, roomy_backing, [payload])
        run(tight, tight_backing, [payload])
        tight_backing.store(tight.collect())
        evicted += len(tight._state.accounts) < len(roomy._state.accounts)
        assert tight.digest == roomy.digest
    assert evicted > 10


def test_hash_seed_and_interpreter_change_nothing() -> None:
    said = set()
    for hash_seed in ("0", "1", "4242"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-m", "tests.statemachine.flow", "5"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        said.add(done.stdout)
    machine, backing = fresh()
    run(machine, backing, payloads(5, COUNT))
    said.add(f"{machine.digest.hex()} {state_digest(machine, backing)}\n")
    assert len(said) == 1, said


MASKED = {"at_us", "time_us", "opened_at_us", "updated_at_us", "deadline_us", "index", "opened_index", "ordinal"}
MASKED_META = {"applied_index", "digest", "ledger_chain", "time_us"}


def masked(struct: Any) -> Any:
    """A struct without what says when and in which batch it came to be."""
    fields = {name: getattr(struct, name) for name in struct.__struct_fields__}
    hidden = MASKED | (MASKED_META if type(struct).__name__ == "MetaRecord" else set())
    if "need" in fields:  # refusals may name a time
        hidden = hidden | {"need", "have"}
    return type(struct).__name__, {name: value for name, value in fields.items() if name not in hidden}


def everything(seed: int, per_batch: int) -> list[Any]:
    """All answers, events, history and records of a flow cut into batches of a size, masked."""
    machine, backing = fresh()
    applied = run(machine, backing, payloads(seed, COUNT, per_batch=per_batch))
    backing.store(machine.collect())
    structs: list[msgspec.Struct] = []
    for one in applied:
        structs += one.results
    for one in applied:
        structs += one.events
    structs += [*backing.ledger, *backing.trades, *backing.closed_orders, backing.meta]
    for table in backing.tables:
        structs += backing.records(table)
    return [masked(struct) for struct in structs]


@pytest.mark.parametrize("seed", SEEDS)
def test_batch_boundaries_change_nothing_but_times(seed: int) -> None:
    by_second = everything(seed, 0)
    assert everything(seed, 1) == by_second
    assert everything(seed, 5) == by_second
