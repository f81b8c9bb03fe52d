"""The store alone: what is handed over is seen at once, once, and after a restart."""

import subprocess
import sys
from pathlib import Path

import pytest

from statemachine.codec import UnknownFormat
from statemachine.records import ACCOUNTS, Applied, Changes
from statemachine.results import Done, Placed
from statemachine.store import Store
from statemachine.store_files import ForeignStore, StoreError, StoreFull, StoreLocked
from statemachine.types import KEY_BUCKET_US
from tests.statemachine.store.made import START_US, Made, digest_of_key, run

MAP = 64 << 20


def opened(path: Path, **options: object) -> Store:
    return Store(path, cluster_id="c1", member="dc-a-1", **{"map_size_bytes": MAP, **options})  # type: ignore[arg-type]


def test_a_new_store_is_empty(tmp_path: Path) -> None:
    store = opened(tmp_path / "deep" / "store")
    assert (store.load(), store.stored_index, store.account("anna")) == (None, 0, None)
    store.close()


def test_what_was_flushed_is_there_after_a_restart(tmp_path: Path) -> None:
    store, made = opened(tmp_path), Made()
    run(store, made, 14)
    store.close()
    store = opened(tmp_path)
    state = store.load()
    assert state is not None
    assert (state.meta.applied_index, store.stored_index, state.meta.digest) == (14, 14, made.digest)
    assert [order.order_id for order in state.orders] == [12, 13, 14]
    account = store.account("anna")
    assert account is not None
    assert account.balances == [("USD", 14, 0)]
    store.close()


def test_what_was_not_flushed_is_for_the_log_to_bring_again(tmp_path: Path) -> None:
    store, made = opened(tmp_path), Made()
    run(store, made, 9)
    assert store.history.trade(9) is not None
    store.close()
    store = opened(tmp_path)
    assert (store.stored_index, store.history.trade(7) is not None, store.history.trade(8)) == (7, True, None)
    again = Made(stored=store.load())
    store.add(again.apply())
    store.add(again.apply())
    assert again.digest == made.digest
    store.close()


@pytest.mark.parametrize("stage", ["pending", "in flight", "written", "finished", "reopened"])
def test_every_stage_is_seen(tmp_path: Path, stage: str) -> None:
    store, made = opened(tmp_path), Made()
    run(store, made, 7)
    for _ in range(3):
        store.add(made.apply())
    if stage != "pending":
        flush = store.begin(made.changes())
        assert store.stored_index == 7
        if stage != "in flight":
            flush.write()
            assert store.stored_index == 7
        if stage in ("finished", "reopened"):
            store.finish(flush)
            assert store.stored_index == 10
        if stage == "reopened":
            store.close()
            store = opened(tmp_path)
    history = store.history
    bucket = made.time_us(10) // KEY_BUCKET_US
    for index in range(1, 11):
        key = store.key(digest_of_key(index), bucket)
        assert key is not None
        assert key.index == index
        assert isinstance(history.result(index, 0), Placed)
        assert history.result(index, 1) == Done()
        assert history.result(index, 2) is None
    assert store.key(digest_of_key(10), bucket + 1) is None
    assert store.key(digest_of_key(11), bucket) is None
    assert history.result(11, 0) is None
    assert [row.row for row in history.ledger(40, limit=100).rows] == list(range(40, 0, -3))
    assert [row.trade_id for row in history.trades_of_symbol(10, limit=100).rows] == list(range(10, 0, -1))
    assert history.closed_order(7) is not None
    assert history.closed_order(8) is None
    assert [order.order_id for order in history.closed_orders(7, limit=100).rows] == [7, 4, 1]
    assert [batch.index for batch in history.events_after(0, bytes_max=1 << 20)] == list(range(1, 11))
    assert [order.order_id for order in history.closed_log.iterate()] == [1, 2, 3, 4, 5, 6, 7]
    account = store.account("anna")
    assert account is not None
    assert account.balances[0][1] == (7 if stage == "pending" else 10)
    store.close()


def test_the_next_generation_collects_while_one_is_written(tmp_path: Path) -> None:
    store, made = opened(tmp_path), Made()
    store.add(made.apply())
    flush = store.begin(made.changes())
    store.add(made.apply())
    with pytest.raises(StoreError, match="still under way"):
        store.begin(made.changes())
    flush.write()
    store.finish(flush)
    assert (store.stored_index, store.history.trade(2) is not None) == (1, True)
    assert [batch.index for batch in store.history.events_after(0, bytes_max=1 << 20)] == [1, 2]
    store.close()


def test_an_unwritten_flush_is_not_finished(tmp_path: Path) -> None:
    store, made = opened(tmp_path), Made()
    store.add(made.apply())
    flush = store.begin(made.changes())
    with pytest.raises(StoreError, match="was not written"):
        store.finish(flush)
    store.close()


def test_a_batch_is_taken_once_and_in_order(tmp_path: Path) -> None:
    store, made = opened(tmp_path), Made()
    run(store, made, 7)
    for index in (7, 6):
        with pytest.raises(StoreError, match="applied twice"):
            store.add(Applied(index, START_US))
    made.apply()
    store.add(made.apply())  # an entry of the log that was not ours lies between
    with pytest.raises(StoreError, match="applied twice"):
        store.add(Applied(9, START_US))
    store.close()


def test_records_and_batches_must_be_of_one_index(tmp_path: Path) -> None:
    store, made = opened(tmp_path), Made()
    store.add(made.apply())
    early = made.changes()
    store.add(made.apply())
    with pytest.raises(StoreError, match="records of index 1"):
        store.begin(early)
    made.digest = bytes(32)
    with pytest.raises(StoreError, match="records of index 2"):
        store.begin(made.changes())
    store.close()


def test_a_record_is_put_or_deleted_not_both(tmp_path: Path) -> None:
    store, made = opened(tmp_path), Made()
    store.add(made.apply())
    changes = made.changes()
    changes.deletes.append((ACCOUNTS, b"anna"))
    with pytest.raises(StoreError, match="put and deleted"):
        store.flush(changes)
    store.close()


def test_buckets_are_dropped_whole(tmp_path: Path) -> None:
    store, made = opened(tmp_path), Made(step_us=KEY_BUCKET_US)
    run(store, made, 6, flush_every=2)
    first = made.time_us(1) // KEY_BUCKET_US
    assert store.key(digest_of_key(1), first) is not None
    store.add(made.apply())
    flush = store.begin(made.changes(drop_buckets_before=first + 3))
    flush.write()
    store.finish(flush)
    for reopen in (False, True):
        if reopen:
            store.close()
            store = opened(tmp_path)
        found = [index for index in range(1, 8) if store.key(digest_of_key(index), 0) is not None]
        answered = [index for index in range(1, 8) if store.history.results(index) is not None]
        assert (found, answered) == ([4, 5, 6, 7], [4, 5, 6, 7])
        assert store.history.trade(1) is not None
    store.close()


def test_a_pending_key_past_retention_does_not_bring_its_bucket_back(tmp_path: Path) -> None:
    store, made = opened(tmp_path), Made(step_us=KEY_BUCKET_US)
    for _ in range(3):
        store.add(made.apply())
    newest = made.time_us(3) // KEY_BUCKET_US
    store.flush(made.changes(drop_buckets_before=newest))
    assert [store.key(digest_of_key(index), 0) is not None for index in (1, 2, 3)] == [False, False, True]
    store.close()


def test_a_second_opener_is_refused(tmp_path: Path) -> None:
    store = opened(tmp_path)
    with pytest.raises(StoreLocked, match="pid"):
        opened(tmp_path)
    program = (
        "import sys; from pathlib import Path; from statemachine.store import Store\n"
        "Store(Path(sys.argv[1]), cluster_id='c1', member='dc-a-1')"
    )
    other = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert other.returncode != 0
    assert "is open in another process" in other.stderr
    store.close()
    opened(tmp_path).close()


def test_anothers_folder_is_refused_by_name(tmp_path: Path) -> None:
    opened(tmp_path / "a").close()
    with pytest.raises(ForeignStore, match="belongs to cluster 'c1', not to 'c2'"):
        Store(tmp_path / "a", cluster_id="c2", member="dc-a-1", map_size_bytes=MAP)
    with pytest.raises(ForeignStore, match="belongs to member 'dc-a-1', not to 'dc-b-1'"):
        Store(tmp_path / "a", cluster_id="c1", member="dc-b-1", map_size_bytes=MAP)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "letters.txt").write_text("dear")
    with pytest.raises(ForeignStore, match=r"it holds letters\.txt"):
        opened(tmp_path / "b")
    assert [entry.name for entry in (tmp_path / "b").iterdir()] == ["letters.txt"]
    with pytest.raises(ForeignStore, match="is not a folder"):
        opened(tmp_path / "b" / "letters.txt")
    opened(tmp_path / "a").close()


def test_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path).close()
    monkeypatch.setattr("statemachine.store.RECORDS_VERSION", 2)
    with pytest.raises(UnknownFormat, match="records version 1; this program knows 2"):
        opened(tmp_path)


def test_low_water_is_seen_before_the_map_is_full(tmp_path: Path) -> None:
    store, made = opened(tmp_path, map_size_bytes=2 << 20, low_water_bytes=512 << 10), Made()
    assert not store.space().low
    low_at = 0
    with pytest.raises(StoreFull, match="is full"):
        for _ in range(10_000):
            run(store, made, 70)
            low_at = low_at or (made.index if store.space().low else 0)
    stored = store.stored_index
    assert 0 < low_at < stored
    store.close()
    store = opened(tmp_path, map_size_bytes=2 << 20)
    assert store.stored_index == stored
    store.close()
    store = opened(tmp_path, map_size_bytes=8 << 20)
    again = Made(stored=store.load())
    run(store, again, 70)
    assert store.stored_index > stored
    store.close()


def test_a_full_pending_set_says_so(tmp_path: Path) -> None:
    store, made = opened(tmp_path, pending_bytes_max=5_000), Made()
    while not store.pending_full:
        store.add(made.apply())
    assert 3 < made.index < 20
    store.flush(made.changes())
    assert (store.pending_bytes, store.pending_full) == (0, False)
    store.close()


def test_bytes_are_counted_by_kind(tmp_path: Path) -> None:
    store, made = opened(tmp_path), Made()
    run(store, made, 700)
    sizes = store.bytes_on_disk()
    assert sizes["ledger"] > 700 * 4 * 20
    assert sum(sizes.values()) <= (tmp_path / "data.mdb").stat().st_size
    assert store.bytes_per_order()["ledger"] == sizes["ledger"] / 700
    store.close()


def test_nothing_changed_is_flushed_too(tmp_path: Path) -> None:
    store, made = opened(tmp_path), Made()
    run(store, made, 7)
    meta = made.changes().meta
    store.flush(Changes(meta))
    assert store.stored_index == 7
    store.close()
