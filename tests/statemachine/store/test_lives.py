"""Random lives of a store, with flushes cut short anywhere: its reads never differ from a plain list."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from statemachine.codec import oldest_bucket
from statemachine.inspection import inspect_here
from statemachine.records import Applied
from statemachine.store import Store
from statemachine.store_flush import Flush
from statemachine.store_rows import DAY_US, Kind
from statemachine.store_sealing import Retention, Seal
from tests.statemachine.store.made import Made, digest_of_key

STEP_US = DAY_US // 4
OPEN_FOR = 6
RETENTION = Retention(events_days=1, ledger_days=3, trades_days=2, closed_orders_days=2)
OPS = ("apply", "apply", "apply", "flush", "begin", "write", "finish", "seal", "step", "publish", "prune", "restart")


def log_of(count: int) -> list[Applied]:
    made = Made(step_us=STEP_US, open_for=OPEN_FOR)
    return [made.apply() for _ in range(count)]


LOG = log_of(150)


class Life:
    """A store, and what it must answer: a list of all batches so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.flush: Flush | None = None
        self.seal: Seal | None = None
        self.open()

    def open(self) -> None:
        self.store = Store(self.path, cluster_id="c1", member="m1", map_size_bytes=32 << 20, retention=RETENTION)
        self.made = Made(step_us=STEP_US, open_for=OPEN_FOR, stored=self.store.load())
        self.flush, self.seal = None, None

    def live_from(self) -> int:
        return oldest_bucket(self.made.time_us(self.made.index))

    def do(self, op: str) -> None:
        store = self.store
        if op == "apply" and self.made.index < len(LOG):
            applied = self.made.apply()
            assert applied.digest == LOG[applied.index - 1].digest
            store.add(applied)
        elif op == "begin" and self.flush is None and self.made.dirty:
            self.flush = store.begin(self.made.changes(drop_buckets_before=self.live_from()))
        elif op == "write" and self.flush is not None and not self.flush.written:
            self.flush.write()
        elif op == "finish" and self.flush is not None and self.flush.written:
            store.finish(self.flush)
            assert store.stored_index == self.flush.meta.applied_index
            self.flush = None
        elif op == "step" and self.seal is None:
            self.seal = store.begin_seal()
            while self.seal is not None and not self.seal.step():
                pass
        elif op == "publish" and self.seal is not None:
            store.publish_seal(self.seal)
            self.seal.commit()
            self.seal = None
        elif op == "prune" and (prune := store.begin_prune()) is not None:
            prune.commit()
        elif op == "flush":
            for part in ("begin", "write", "finish"):
                self.do(part)
        elif op == "seal":
            for part in ("step", "publish"):
                self.do(part)
        elif op == "restart":
            written = self.flush.meta.applied_index if self.flush is not None and self.flush.written else 0
            expected = max(written, store.stored_index)
            store.close()
            self.open()
            assert self.store.stored_index == expected

    def check(self) -> None:
        history, newest = self.store.history, self.made.index
        log = LOG[:newest]
        gone = {kind: pruned.last_id for kind, pruned in self.store._view.pruned.items()}
        events = history.events_after(gone.get(Kind.events, 0), bytes_max=1 << 30)
        assert [(one.index, one.events) for one in events] == [
            (one.index, one.events_bytes) for one in log if one.index > gone.get(Kind.events, 0)
        ]
        rows = [row for one in log for row in one.ledger_rows if row.row > gone.get(Kind.ledger, 0)]
        assert list(history.ledger_log.iterate()) == rows
        trades = [row for one in log for row in one.trades if row.trade_id > gone.get(Kind.trades, 0)]
        assert list(history.trade_log.iterate()) == trades
        assert history.trades_of_symbol(newest, limit=1_000).rows == trades[::-1]
        gone_day = self.store._view.pruned[Kind.closed_orders].day if Kind.closed_orders in gone else 0
        closed = {
            order.order_id: order for one in log if one.time_us // DAY_US > gone_day for order in one.closed_orders
        }
        for order_id in range(1, newest + 1):
            assert history.closed_order(order_id) == closed.get(order_id)
        assert {order.order_id for order in history.closed_log.iterate()} == set(closed)
        live_from = self.live_from()
        for one in log:
            bucket, digest, record = one.keys[0]
            assert self.store.key(digest, live_from) == (record if bucket >= live_from else None)
            if bucket >= live_from:
                assert history.results(one.index) == one.results
        assert self.store.key(digest_of_key(newest + 1), 0) is None


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(OPS), min_size=20, max_size=150))
def test_reads_never_differ_from_a_plain_list(ops: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        life = Life(Path(folder) / "store")
        for op in ops:
            life.do(op)
            life.check()
        life.do("begin")
        life.do("write")
        life.do("finish")
        life.check()
        life.store.close()
        assert inspect_history(Path(folder) / "store") == []


def inspect_history(path: Path) -> list[str]:
    """The findings, save those of the machine's audit: hand-made batches keep no books."""
    words = ("ledger:", "trades:", "events:", ".seg", "data.mdb", "is closed, and open", "chain")
    return [finding for finding in inspect_here(path).findings if any(word in finding for word in words)]
