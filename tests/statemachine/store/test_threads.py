"""The loop reads while a worker writes, seals and drops tables: every read is right, and LMDB lives."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from random import Random

from statemachine.store import Store
from statemachine.store_rows import DAY_US
from statemachine.store_sealing import Prune, Retention, Seal
from statemachine.types import KEY_BUCKET_US
from tests.statemachine.store.made import Made, digest_of_key

BATCHES_MAX = 40_000


def read_somewhere(store: Store, made: Made, random: Random) -> int:
    """One read of each kind at random places; returns how many found something."""
    history, newest = store.history, made.index
    index = random.randrange(1, newest + 1)
    trade = history.trade(index)
    assert trade is not None
    assert trade.trade_id == index
    closed = history.closed_order(index)
    assert (closed is not None) == (index <= newest - made.open_for)
    row = history.ledger(index * 4, limit=3).rows
    assert [one.row for one in row] == [number for number in (index * 4, index * 4 - 3, index * 4 - 6) if number > 0]
    after = max(index, history.first_event_index - 1)
    events = [batch.index for batch in history.events_after(after, bytes_max=500)]
    assert events == list(range(after + 1, after + 1 + len(events)))
    assert events or after == newest
    bucket = made.time_us(index) // KEY_BUCKET_US
    live_from = max(0, made.time_us(newest) // KEY_BUCKET_US - 4)
    key = store.key(digest_of_key(index), live_from)
    assert (key is not None) == (bucket >= live_from)
    assert key is None or history.results(index) is not None
    return len(events) + (key is not None)


def test_reads_are_right_while_a_worker_writes(tmp_path: Path) -> None:
    random = Random(5)
    store = Store(tmp_path, cluster_id="c1", member="m1", map_size_bytes=256 << 20, retention=Retention(events_days=2))
    made = Made(step_us=DAY_US // 40, open_for=55)
    found = flushes = seals = prunes = 0
    flush_done: Future[None] | None = None
    seal: Seal | None = None
    prune: Prune | None = None
    seal_done: Future[object] | None = None
    with ThreadPoolExecutor(1) as flusher, ThreadPoolExecutor(1) as sealer:
        flush = None
        while made.index < BATCHES_MAX and not (flushes > 100 and seals > 50 and prunes > 5):
            time.sleep(0.0005)  # lets go of the interpreter, as a loop does that waits for sockets
            store.add(made.apply())
            found += read_somewhere(store, made, random)
            if flush_done is None and made.index % 5 == 0:
                live_from = max(0, made.time_us(made.index) // KEY_BUCKET_US - 4)
                flush = store.begin(made.changes(drop_buckets_before=live_from))
                flush_done = flusher.submit(flush.write)
            elif flush_done is not None and flush is not None and flush_done.done():
                flush_done.result()
                store.finish(flush)
                flush_done = None
                flushes += 1
            if seal_done is not None and seal_done.done():
                result, seal_done = seal_done.result(), None
                if seal is not None and result is False:
                    seal_done = sealer.submit(seal.step)
                elif seal is not None and result is True:
                    store.publish_seal(seal)
                    seal_done = sealer.submit(seal.commit)
                    seal = None
                    seals += 1
            elif seal_done is None:
                seal = store.begin_seal()
                if seal is not None:
                    seal_done = sealer.submit(seal.step)
                elif (prune := store.begin_prune()) is not None:
                    seal_done = sealer.submit(prune.commit)
                    prunes += 1
    assert (flushes > 100, seals > 50, prunes > 5) == (True, True, True), (flushes, seals, prunes)
    assert found > made.index
    store.close()
