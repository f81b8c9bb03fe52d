"""Death at each step of a commit, a seal and a prune leaves the old or the new, and replay ends where it would have."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from statemachine.inspection import inspect_here, opened
from statemachine.machine import Machine
from statemachine.memory import MemoryBacking
from statemachine.store import Store
from statemachine.store_rows import Kind
from tests.statemachine.store.crash_child import FLUSH_EVERY, live
from tests.statemachine.store.log import make_log

BATCHES = 150

# step, which time, the index that must be stored then (None: not asked)
STEPS = [
    ("flush: before the transaction", 1, 0),
    ("flush: before the transaction", 5, 4 * FLUSH_EVERY),
    ("flush: inside the transaction", 1, 0),
    ("flush: inside the transaction", 5, 4 * FLUSH_EVERY),
    ("flush: after the transaction", 1, FLUSH_EVERY),
    ("flush: after the transaction", 5, 5 * FLUSH_EVERY),
    ("seal: before the file is durable", 2, None),
    ("seal: after the file is durable", 2, None),
    ("seal: inside the transaction", 2, None),
    ("seal: after the transaction", 2, None),
    ("prune: inside the transaction", 1, None),
    ("prune: after the transaction", 2, None),
]


def child(path: Path, *more: str) -> int:
    program = [sys.executable, "-m", "tests.statemachine.store.crash_child", str(path), str(BATCHES), *more]
    return subprocess.run(program, check=False).returncode


def held(path: Path) -> dict[str, Any]:
    """All that one stopped store holds, state and history."""
    with opened(path) as view:
        history = {str(kind): list(log.iterate()) for kind, log in view.history.logs.items()}
        files = sorted(file.name for file in view.segments_path.iterdir())
        return {"state": view.digest(), "files": files, "pruned": view.pruned, **history}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("undisturbed")
    live(path, BATCHES, lambda _step: None)
    return held(path)


def test_the_undisturbed_run_has_all_that_can_be_lost(undisturbed: dict[str, Any]) -> None:
    assert min(len(undisturbed[kind]) for kind in Kind) > 20
    assert set(undisturbed["pruned"]) == {Kind.events, Kind.ledger, Kind.closed_orders}
    assert len(undisturbed["files"]) > 6


@pytest.mark.parametrize(("step", "nth", "stored_index"), STEPS)
def test_death_at_each_step(
    tmp_path: Path, undisturbed: dict[str, Any], step: str, nth: int, stored_index: int | None
) -> None:
    assert child(tmp_path, step, str(nth)) == -signal.SIGKILL
    between = inspect_here(tmp_path)
    assert between.findings == []
    if stored_index is not None:
        assert between.applied_index == stored_index
    assert between.applied_index % FLUSH_EVERY == 0
    live(tmp_path, BATCHES, lambda _step: None)
    assert held(tmp_path) == undisturbed
    assert inspect_here(tmp_path).findings == []


def test_snapshot_and_tail_is_full_replay_is_live(tmp_path: Path) -> None:
    log = make_log(60, seed=2)
    memory = MemoryBacking()
    full = Machine(memory)
    store = Store(tmp_path, cluster_id="c1", member="m1", map_size_bytes=64 << 20)
    machine = Machine(store, accounts_cached=1)
    for index, payload in enumerate(log, start=1):
        expected = full.apply(index, payload)
        memory.write(expected)
        if index in (20, 41):
            # A restart that finds only what was flushed, some batches ago.
            store.close()
            store = Store(tmp_path, cluster_id="c1", member="m1", map_size_bytes=64 << 20)
            machine = Machine(store, store.load(), accounts_cached=1)
            assert machine.applied_index < index - 1
            for again in range(machine.applied_index + 1, index):
                store.add(machine.apply(again, log[again - 1]))
        applied = machine.apply(index, payload)
        store.add(applied)
        assert (applied.digest, applied.results) == (expected.digest, expected.results)
        if index % 11 == 0:
            store.flush(machine.collect())
            memory.store(full.collect())
    for account in ("anna", "bert", "cleo", "dora", "@fees"):
        assert machine.account(account) == full.account(account)
    for name in ("anna", "bert", "cleo", "dora"):
        account = machine.account(name)
        assert account is not None
        trades = [row for row in memory.trades if name in (row.taker_account, row.maker_account)]
        assert store.history.trades_of_account(name, account.last_trade_id, limit=10_000).rows == trades[::-1]
        rows = [row for row in memory.ledger if row.account == name]
        assert store.history.ledger(account.last_ledger_row, limit=10_000).rows == rows[::-1]
        closed = [order for order in memory.closed_orders if order.account == name]
        assert store.history.closed_orders(account.last_closed_order_id, limit=10_000).rows == closed[::-1]
        assert len(trades) > 5 < len(closed)
    assert list(store.history.trade_log.iterate()) == memory.trades
    store.close()
