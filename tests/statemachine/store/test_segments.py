"""Days that are over: sealed, read as before, pruned by retention, and a flipped byte is found and named."""

from pathlib import Path

import pytest

from statemachine.codec import Envelope, encode_batch, encode_command
from statemachine.commands import Deposit
from statemachine.inspection import inspect_here
from statemachine.machine import Machine
from statemachine.segments import SegmentDamaged, segment_name, verify_segment
from statemachine.store import Store
from statemachine.store_files import PastGone
from statemachine.store_rows import DAY_US, Kind
from statemachine.store_sealing import CHAIN_START, Retention
from tests.statemachine.store.log import setup
from tests.statemachine.store.made import START_US, Made, run

STEP_US = DAY_US // 20
DAY = START_US // DAY_US


def opened(path: Path, retention: Retention | None = None) -> Store:
    return Store(path, cluster_id="c1", member="dc-a-1", map_size_bytes=64 << 20, retention=retention)


def view(store: Store, made: Made) -> dict[str, object]:
    """All that a reader can see of the past."""
    history, newest = store.history, made.index
    return {
        "events": history.events_after(0, bytes_max=1 << 30),
        "trades": [history.trade(number) for number in range(newest + 2)],
        "symbol": history.trades_of_symbol(newest, limit=10_000),
        "account": history.trades_of_account("anna", newest, limit=10_000),
        "ledger": history.ledger(newest * 4, limit=10_000),
        "closed": [history.closed_order(number) for number in range(newest + 2)],
        "closed chain": history.closed_orders(newest - made.open_for, limit=10_000),
        "rows": list(history.ledger_log.iterate()),
    }


@pytest.mark.parametrize("open_for", [3, 45])
def test_reads_are_the_same_before_and_after_sealing(tmp_path: Path, open_for: int) -> None:
    store, made = opened(tmp_path), Made(step_us=STEP_US, open_for=open_for)
    run(store, made, 104)
    before = view(store, made)
    assert len(before["rows"]) == 416  # type: ignore[arg-type]
    sealed = []
    while (seal := store.begin_seal()) is not None:
        while not seal.step():
            pass
        assert view(store, made) == before
        store.publish_seal(seal)
        assert view(store, made) == before
        seal.commit()
        assert view(store, made) == before
        sealed.append((seal.day - DAY, str(seal.kind)))
    closing_days = [day for day in range(5) if (day + 1) * 20 > open_for + 1]
    expected = [(day, str(kind)) for day in range(4) for kind in Kind if kind != "closed_orders" or day in closing_days]
    assert sorted(sealed) == sorted(expected)
    store.close()
    store = opened(tmp_path)
    run(store, Made(stored=store.load(), step_us=STEP_US, open_for=open_for), 0)
    assert store.history.events_after(0, bytes_max=1 << 30) == before["events"][: store.stored_index]  # type: ignore[index]
    assert len(list(store.segments_path.iterdir())) == len(sealed)
    store.close()


def test_the_chain_runs_through_the_segments(tmp_path: Path) -> None:
    store, made = opened(tmp_path), Made(step_us=STEP_US)
    run(store, made, 42)
    store.flush(made.changes())
    store.seal_and_prune()
    entries = [segment.entry for segment in store.history.ledger_log.segments]
    assert entries[0].chain_before == CHAIN_START
    assert entries[1].chain_before == entries[0].chain_after
    at_39 = Made(step_us=STEP_US)
    for _ in range(39):
        at_39.apply()
    assert entries[1].chain_after == at_39.chain
    store.close()


def test_retention_deletes_whole_days_and_says_so(tmp_path: Path) -> None:
    retention = Retention(events_days=1, ledger_days=2, trades_days=3, closed_orders_days=2)
    store, made = opened(tmp_path, retention), Made(step_us=STEP_US)
    run(store, made, 119, flush_every=17)
    head = made.chain
    store.seal_and_prune()
    for reopen in (False, True):
        if reopen:
            store.close()
            store = opened(tmp_path, retention)
        names = sorted(path.name for path in store.segments_path.iterdir())
        assert names == sorted(
            segment_name(kind, DAY + day)
            for kind, first in ((Kind.events, 4), (Kind.ledger, 3), (Kind.trades, 2), (Kind.closed_orders, 3))
            for day in range(first, 5)
        )
        assert store.history.first_event_index == 80
        with pytest.raises(PastGone, match="before index 80") as gone:
            store.history.events_after(78, bytes_max=1)
        assert gone.value.first_index == 80
        assert store.history.events_after(79, bytes_max=1)[0].index == 80
        page = store.history.ledger(119 * 4, limit=1000)
        assert (page.past_gone, page.next_id, page.rows[-1].index) == (True, 0, 60)
        assert store.history.trades_of_symbol(119, limit=1000).rows[-1].trade_id == 40
        assert store.history.closed_orders(116, limit=1000).past_gone
        state = store.load()
        assert state is not None
        assert state.meta.ledger_chain == head
    store.close()


def test_pages_go_on_where_the_last_one_ended(tmp_path: Path) -> None:
    store, made = opened(tmp_path), Made(step_us=STEP_US)
    run(store, made, 50)
    store.seal_and_prune()
    whole = store.history.ledger(200, limit=1000).rows
    paged, position = [], 200
    while position:
        page = store.history.ledger(position, limit=7)
        assert len(page.rows) <= 7
        paged += page.rows
        position = page.next_id
    assert paged == whole
    assert len(whole) == 67
    events, index = [], 0
    while batch := store.history.events_after(index, bytes_max=200):
        assert sum(len(one.events) for one in batch) <= 200
        events += [one.index for one in batch]
        index = batch[-1].index
    assert events == list(range(1, 51))
    store.close()


def test_a_flipped_byte_is_found_and_named(tmp_path: Path) -> None:
    store, made = opened(tmp_path), Made(step_us=STEP_US)
    run(store, made, 21)
    store.seal_and_prune()
    store.close()
    path = tmp_path / "segments" / segment_name(Kind.trades, DAY)
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        store = opened(tmp_path)
        entry = store.history.trade_log.segments[0].entry
        found = verify_segment(store.segments_path, entry)
        assert found is not None
        assert path.name in found
        store.close()
    path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    store = opened(tmp_path)
    with pytest.raises(SegmentDamaged, match=path.name):
        store.history.trade(5)
    store.close()
    path.write_bytes(whole[:-1])
    store = opened(tmp_path)
    with pytest.raises(SegmentDamaged, match="the manifest says"):
        store.history.trade(5)
    store.close()
    path.unlink()
    store = opened(tmp_path)
    with pytest.raises(SegmentDamaged, match="the manifest has it"):
        store.history.trade(5)
    assert verify_segment(store.segments_path, entry) is not None
    store.close()


def test_leftovers_of_a_crash_are_removed(tmp_path: Path) -> None:
    store, made = opened(tmp_path), Made(step_us=STEP_US)
    run(store, made, 21)
    seal = store.begin_seal()
    assert seal is not None
    assert seal.step()
    (tmp_path / "segments" / "ledger-1999-01-01.seg.part").write_bytes(b"half")
    assert len(list(store.segments_path.iterdir())) == 2
    store.close()
    store = opened(tmp_path)
    assert list(store.segments_path.iterdir()) == []
    assert store.history.trade(5) is not None
    store.close()


def test_a_batch_larger_than_a_block_and_a_step_is_sealed_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("statemachine.store_sealing.STEP_BYTES", 10_000)
    deposits = [
        Envelope("@custodian", f"d{number}", 0, encode_command(Deposit("anna", "USD", number + 1)))
        for number in range(1_000)
    ]
    store = opened(tmp_path)
    machine = Machine(store)
    for index, commands in enumerate((setup(), deposits, deposits[:1]), start=1):
        store.add(machine.apply(index, encode_batch(START_US + index // 3 * DAY_US, commands)))
    store.flush(machine.collect())
    steps = {}
    while (seal := store.begin_seal()) is not None:
        steps[seal.kind] = 1
        while not seal.step():
            steps[seal.kind] += 1
        store.publish_seal(seal)
        seal.commit()
    assert steps[Kind.ledger] > 3
    account = machine.account("anna")
    assert account is not None
    page = store.history.ledger(account.last_ledger_row, limit=5_000)
    assert [row.delta_units for row in page.rows[:1_000]] == list(range(1_000, 0, -1))
    assert len(store.history.ledger_log.segments[0].index().blocks) > 3
    store.close()
    assert inspect_here(tmp_path).findings == []
