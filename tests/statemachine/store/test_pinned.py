"""A pinned state stays at its index while the store goes on, and a copy of it is a whole store for another member."""

from pathlib import Path

import pytest

from statemachine.inspection import inspect_here, opened, state_digest
from statemachine.machine import Machine
from statemachine.records import ACCOUNTS
from statemachine.store import Store
from statemachine.store_copy import adopt
from statemachine.store_files import ForeignStore, StoreError
from statemachine.store_view import decode_account
from tests.statemachine.store.log import make_log

BATCHES = 90


def store_at(path: Path, member: str = "m1") -> Store:
    return Store(path, cluster_id="c1", member=member, map_size_bytes=64 << 20)


def apply(store: Store, machine: Machine, last: int) -> None:
    log = make_log(BATCHES)
    for index in range(machine.applied_index + 1, last + 1):
        store.add(machine.apply(index, log[index - 1]))
    store.flush(machine.collect())


def test_a_pinned_stays_where_it_is(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    machine = Machine(store)
    apply(store, machine, 30)
    pinned = store.pin()
    rows = pinned.page(ACCOUNTS, b"", limit=100)
    whole = [decode_account(value) for _, value in rows]
    state = pinned.load()
    apply(store, machine, 70)
    store.seal_and_prune()
    apply(store, machine, BATCHES)
    assert (pinned.index, store.stored_index) == (30, BATCHES)
    paged, last = [], b""
    while page := pinned.page(ACCOUNTS, last, limit=3):
        paged += page
        last = page[-1][0]
    assert paged == rows
    assert pinned.load() == state != store.load()
    assert [account.account for account in whole] == sorted(account.account for account in whole)
    assert whole != [store.account(account.account) for account in whole]
    assert sum(units + held for account in whole for asset, units, held in account.balances if asset == "USD") == 0
    pinned.close()
    store.close()


def test_a_copy_is_a_store_for_another_member(tmp_path: Path) -> None:
    store = store_at(tmp_path / "a")
    machine = Machine(store)
    apply(store, machine, 70)
    store.seal_and_prune()
    pinned = store.pin()
    store.add(machine.apply(71, make_log(BATCHES)[70]))
    flush = store.begin(machine.collect())
    flush.write()
    pinned.copy_to(tmp_path / "b")
    pinned.close()
    store.finish(flush)
    apply(store, machine, BATCHES)
    store.close()
    with pytest.raises(ForeignStore, match="belongs to member 'm1'"):
        store_at(tmp_path / "b", "m2")
    with pytest.raises(ForeignStore, match="store of 'c1', not of 'c2'"):
        adopt(tmp_path / "b", cluster_id="c2", member="m2")
    adopt(tmp_path / "b", cluster_id="c1", member="m2")
    assert inspect_here(tmp_path / "b").findings == []
    other = store_at(tmp_path / "b", "m2")
    assert other.stored_index == 70
    again = Machine(other, other.load())
    apply(other, again, BATCHES)
    assert again.digest == machine.digest
    other.close()
    assert state_digest(tmp_path / "b") == state_digest(tmp_path / "a")
    with opened(tmp_path / "a") as one, opened(tmp_path / "b") as two:
        assert list(one.history.ledger_log.iterate()) == list(two.history.ledger_log.iterate())


def test_a_copy_that_misses_a_segment_says_so(tmp_path: Path) -> None:
    store = store_at(tmp_path / "a")
    apply(store, Machine(store), 70)
    store.seal_and_prune()
    pinned = store.pin()
    next(store.segments_path.iterdir()).unlink()
    with pytest.raises(StoreError, match="the copy to"):
        pinned.copy_to(tmp_path / "b")
    pinned.close()
    store.close()


def test_what_is_no_store_is_not_adopted(tmp_path: Path) -> None:
    with pytest.raises(ForeignStore, match="is no store"):
        adopt(tmp_path, cluster_id="c1", member="m1")
    assert list(tmp_path.iterdir()) == []
