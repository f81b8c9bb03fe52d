"""Batches made by hand: what a machine would hand to the store, without its rules.

Batch `index` is a pure function of what came before, so that two runs over the same indexes agree.
"""

from hashlib import blake2b

from statemachine.codec import encode
from statemachine.events import AccountOpened
from statemachine.records import (
    ACCOUNTS,
    ORDERS,
    RECORDS_VERSION,
    AccountRecord,
    Applied,
    Changes,
    KeyRecord,
    LedgerRow,
    MetaRecord,
    OrderRecord,
    StoredState,
    TradeRow,
    encode_record,
    id_key,
)
from statemachine.results import Done, Placed
from statemachine.store import Store
from statemachine.store_rows import DAY_US
from statemachine.store_sealing import CHAIN_START, extend_chain
from statemachine.types import (
    KEY_BUCKET_US,
    LedgerReason,
    OrderType,
    Reason,
    SelfTrade,
    Side,
    Status,
    TimeInForce,
)

START_US = 20_000 * DAY_US
NAMES = ("anna", "bert", "cleo")
ROWS_PER_BATCH = 4


def order(order_id: int, account: str, opened_at_us: int, closed_at_us: int, previous: int) -> OrderRecord:
    return OrderRecord(
        order_id, account, "BTC-USD", Side.buy, OrderType.limit, TimeInForce.gtc, 100, 5, 0, 0, False,
        SelfTrade.cancel_newest, "", f"key-{order_id}", 10, 20, Status.filled, Reason.filled, 5, 0, 500, 0, 500, 1, 0,
        0, 0, 0, 1, opened_at_us, closed_at_us, previous,
    )  # fmt: skip


def digest_of_key(index: int) -> bytes:
    return blake2b(b"key %d" % index, digest_size=16).digest()


class Made:
    """A made-up machine: order `index` opens in batch `index` and closes `open_for` batches later."""

    def __init__(self, *, step_us: int = 1_000, open_for: int = 3, stored: StoredState | None = None) -> None:
        self.step_us = step_us
        self.open_for = open_for
        self.index = stored.meta.applied_index if stored else 0
        self.chain = stored.meta.ledger_chain if stored else CHAIN_START
        self.digest = stored.meta.digest if stored else bytes(32)
        self.dirty: list[int] = []

    def time_us(self, index: int) -> int:
        return START_US + index * self.step_us

    def apply(self) -> Applied:
        self.index += 1
        index, now = self.index, self.time_us(self.index)
        applied = Applied(index, now)
        name = NAMES[index % 3]
        applied.results = [Placed(index, Status.new, Reason.none, 0, 5, 0, 0, now), Done()]
        applied.events = [AccountOpened(f"{name}-{index}")]
        first = (index - 1) * ROWS_PER_BATCH + 1
        for row in range(first, first + ROWS_PER_BATCH):
            previous = row - 3 if row > 3 else 0
            account = NAMES[row % 3]
            applied.ledger_rows.append(
                LedgerRow(row, index, account, "USD", 1, row, LedgerReason.deposit, 0, now, previous)
            )
        maker = NAMES[(index + 1) % 3]
        applied.trades = [
            TradeRow(
                index, index, "BTC-USD", 100, 5, 500, Side.buy, index, name, 1, index, maker, 1, now,
                index - 1, max(index - 1, 0), max(index - 2, 0),
            )
        ]  # fmt: skip
        closing = index - self.open_for
        if closing > 0:
            applied.closed_orders = [
                order(closing, NAMES[closing % 3], self.time_us(closing), now, max(closing - 3, 0))
            ]
        applied.keys = [(now // KEY_BUCKET_US, digest_of_key(index), KeyRecord(bytes(16), index, 0))]
        applied.results_bytes = encode(applied.results)
        applied.events_bytes = encode(applied.events)
        applied.ledger_bytes = encode(applied.ledger_rows)
        self.chain = extend_chain(self.chain, applied.ledger_rows)
        seen = self.digest + index.to_bytes(8, "big") + applied.results_bytes + applied.events_bytes + self.chain
        self.digest = applied.digest = blake2b(seen, digest_size=32).digest()
        self.dirty.append(index)
        return applied

    def changes(self, *, drop_buckets_before: int = 0) -> Changes:
        index = self.index
        meta = MetaRecord(
            RECORDS_VERSION, index, self.time_us(index), self.digest, self.chain, index + 1, index + 1,
            index * ROWS_PER_BATCH + 1, 1, 1, False, [],
        )  # fmt: skip
        changes = Changes(meta)
        changes.drop_buckets_before = drop_buckets_before
        for number in self.dirty:
            record = order(number, NAMES[number % 3], self.time_us(number), 0, 0)
            if number > index - self.open_for:
                changes.puts.append((ORDERS, id_key(number), encode_record(record)))
            closing = number - self.open_for
            if 0 < closing < self.dirty[0]:
                changes.deletes.append((ORDERS, id_key(closing)))
        for name in NAMES:
            account = AccountRecord(name, 10, [("USD", index, 0)], [], index * ROWS_PER_BATCH, index, index)
            changes.puts.append((ACCOUNTS, name.encode(), encode_record(account)))
        self.dirty = []
        return changes


def run(store: Store, made: Made, batches: int, *, flush_every: int = 7) -> None:
    """Apply batches and flush now and then; the last of them stay pending unless they fill a flush."""
    for _ in range(batches):
        store.add(made.apply())
        if made.index % flush_every == 0:
            store.flush(made.changes())
