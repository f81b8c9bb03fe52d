"""The audit of a stopped member's disk: quiet on a good one, and each kind of damage found and named."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from statemachine.inspection import inspect_here, inspect_store, state_digest
from statemachine.machine import Machine
from statemachine.records import encode_record, id_key
from statemachine.segments import segment_name
from statemachine.store import Store
from statemachine.store_files import ForeignStore, StoreDamaged, StoreLocked
from statemachine.store_rows import DAY_US, Kind
from statemachine.store_tables import Tables
from statemachine.store_view import View
from tests.statemachine.store.crash_child import live
from tests.statemachine.store.log import START_US, make_log

BATCHES = 80


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    live(path, BATCHES, lambda _step: None)
    return path


def store_at(path: Path) -> Store:
    return Store(path, cluster_id="c1", member="m1", map_size_bytes=64 << 20)


def test_a_good_disk_has_no_findings(stopped: Path) -> None:
    found = inspect_store(stopped)
    assert (found.findings, found.holds) == ([], True)
    assert (found.cluster_id, found.member, found.applied_index) == ("c1", "m1", BATCHES)
    assert found.counts["accounts"] == 8
    assert found.counts["ledger rows"] > 100
    assert found.counts["closed orders"] + found.counts["open orders"] <= found.orders_entered
    assert found.state_digest == state_digest(stopped)
    assert found.bytes_per_order["ledger (sealed)"] == found.bytes_on_disk["ledger (sealed)"] / found.orders_entered
    assert found.first_event_index > 1
    assert inspect_store(stopped) == found


def test_replicas_that_stopped_at_one_index_agree_however_they_flushed(tmp_path: Path) -> None:
    log = make_log(BATCHES)
    digests = []
    for name, flush_every in (("a", 3), ("b", 17), ("c", 80)):
        store = store_at(tmp_path / name)
        machine = Machine(store, accounts_cached=1)
        for index, payload in enumerate(log, start=1):
            store.add(machine.apply(index, payload))
            if index % flush_every == 0 or index in (BATCHES - 1, BATCHES):
                store.flush(machine.collect())
            if index == BATCHES - 1 and name == "c":
                one_before = store._view.digest()
        store.close()
        digests.append(state_digest(tmp_path / name))
    assert digests[0] == digests[1] == digests[2] != one_before.hex()


def test_a_running_member_is_left_alone(stopped: Path) -> None:
    store = store_at(stopped)
    with pytest.raises(StoreLocked, match="stop the member first"):
        inspect_store(stopped)
    store.close()
    assert inspect_store(stopped).holds


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ForeignStore, match="is no store"):
        inspect_store(tmp_path)
    with pytest.raises(ForeignStore, match="is no store"):
        inspect_store(tmp_path / "nowhere")
    (tmp_path / "data.mdb").write_bytes(b"a letter to a friend, of some length" * 1000)
    (tmp_path / "owner.lock").write_bytes(b"")
    with pytest.raises(StoreDamaged):
        inspect_store(tmp_path)
    (tmp_path / "data.mdb").write_bytes(b"")
    with pytest.raises(StoreDamaged):
        inspect_store(tmp_path)


def test_a_store_that_died_while_it_was_made_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(_tables: Tables, _identity: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Tables, "create_fixed", die)
        store_at(tmp_path)
    with pytest.raises(ForeignStore, match="never written to"):
        inspect_store(tmp_path)
    store_at(tmp_path).close()
    assert inspect_store(tmp_path).holds


def test_a_damaged_page_is_an_error_not_a_crash(stopped: Path) -> None:
    path = stopped / "data.mdb"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreDamaged, match=r"data\.mdb"):
        inspect_store(stopped)
    path.write_bytes(whole[: 20 * 4096] + bytes(4096 * 60) + whole[80 * 4096 :])
    with pytest.raises(StoreDamaged, match=r"data\.mdb"):
        inspect_store(stopped)


def test_a_crash_of_the_audit_is_a_finding(stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nkill -BUS $$\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    found = inspect_store(stopped)
    assert not found.holds
    assert "killed by SIGBUS" in found.findings[0]


def test_a_tampered_segment_is_named(stopped: Path) -> None:
    path = stopped / "segments" / segment_name(Kind.ledger, START_US // DAY_US + 1)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    found = inspect_store(stopped)
    assert any(path.name in finding for finding in found.findings)
    path.unlink()
    assert any(path.name in finding for finding in inspect_store(stopped).findings)


def swap_row(view: View) -> None:
    """Give one ledger row of the present day another amount, as a patient forger would."""
    (_, handle), *_ = sorted(view.tables.families["ledger"].items())
    with view.tables.env.begin(write=True) as txn:
        cursor = txn.cursor(handle)
        assert cursor.first()
        value = cursor.value()
        txn.put(cursor.key(), value[:60] + bytes([value[60] ^ 1]) + value[61:], db=handle)


def drop_trades(view: View) -> None:
    (_, handle), *_ = sorted(view.tables.families["trades"].items())
    with view.tables.env.begin(write=True) as txn:
        cursor = txn.cursor(handle)
        assert cursor.last()
        txn.delete(cursor.key(), db=handle)


def open_a_closed_order(view: View) -> None:
    order = next(view.history.closed_log.iterate())
    handle = view.tables.fixed["orders"]
    with view.tables.env.begin(write=True) as txn:
        txn.put(id_key(order.order_id), encode_record(order), db=handle)


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (swap_row, "the chain over row"),
        (drop_trades, "trades: the last is"),
        (open_a_closed_order, "is closed, and open"),
    ],
)
def test_each_damage_is_found(stopped: Path, damage: Callable[[View], None], word: str) -> None:
    store = store_at(stopped)
    damage(store._view)
    store.close()
    found = inspect_here(stopped)
    assert any(word in finding for finding in found.findings), found.findings
