"""A store in memory, for tests, simulations and benchmarks: it keeps what the real one keeps, until it is dropped."""

from typing import Any

import msgspec

from statemachine.records import (
    ACCOUNTS,
    ASSETS,
    INSTRUMENTS,
    ORDERS,
    SESSIONS,
    SWEEPS,
    WITHDRAWALS,
    AccountRecord,
    Applied,
    AssetRecord,
    Changes,
    InstrumentRecord,
    KeyRecord,
    LedgerRow,
    MetaRecord,
    OrderRecord,
    SessionRecord,
    StoredState,
    SweepRecord,
    TradeRow,
    WithdrawalRecord,
)
from statemachine.state import empty_state

RECORD_TYPES: dict[str, Any] = {
    ASSETS: AssetRecord,
    INSTRUMENTS: InstrumentRecord,
    ACCOUNTS: AccountRecord,
    ORDERS: OrderRecord,
    WITHDRAWALS: WithdrawalRecord,
    SESSIONS: SessionRecord,
    SWEEPS: SweepRecord,
}

_decode_account = msgspec.msgpack.Decoder(AccountRecord).decode


class MemoryBacking:
    """A Backing fed by what the machine hands out: `write` each Applied, `store` each Changes.

    keep_history: also keep results, ledger rows, trades and closed orders; a benchmark does without.
    """

    def __init__(self, *, keep_history: bool = True) -> None:
        self.keep_history = keep_history
        self.meta: MetaRecord = empty_state().meta
        self.tables: dict[str, dict[bytes, bytes]] = {name: {} for name in RECORD_TYPES}
        self.buckets: dict[int, dict[bytes, KeyRecord]] = {}
        self.results: dict[int, bytes] = {}
        self.ledger: list[LedgerRow] = []
        self.trades: list[TradeRow] = []
        self.closed_orders: list[OrderRecord] = []

    # ---- what the machine reads ----

    def account(self, account: str) -> AccountRecord | None:
        stored = self.tables[ACCOUNTS].get(account.encode())
        return None if stored is None else _decode_account(stored)

    def key(self, digest: bytes, bucket_min: int) -> KeyRecord | None:
        for bucket, keys in self.buckets.items():
            record = keys.get(digest)
            if record is not None and bucket >= bucket_min:
                return record
        return None

    # ---- what it is fed ----

    def write(self, applied: Applied) -> None:
        """Take over what one batch did."""
        for bucket, digest, record in applied.keys:
            keys = self.buckets.get(bucket)
            if keys is None:
                keys = self.buckets[bucket] = {}
            keys[digest] = record
        if self.keep_history:
            self.results[applied.index] = applied.results_bytes
            self.ledger.extend(applied.ledger_rows)
            self.trades.extend(applied.trades)
            self.closed_orders.extend(applied.closed_orders)

    def store(self, changes: Changes) -> None:
        """Take over the records that changed."""
        self.meta = changes.meta
        for table, key in changes.deletes:
            self.tables[table].pop(key, None)
        for table, key, value in changes.puts:
            self.tables[table][key] = value
        for bucket in [one for one in self.buckets if one < changes.drop_buckets_before]:
            del self.buckets[bucket]

    # ---- what it gives back ----

    def records(self, table: str) -> list[Any]:
        """All records of a table by ascending key."""
        decoder = msgspec.msgpack.Decoder(RECORD_TYPES[table])
        return [decoder.decode(value) for _, value in sorted(self.tables[table].items())]

    def state(self) -> StoredState:
        """What a machine is restored from, as of the last `store`."""
        return StoredState(
            self.meta,
            self.records(ASSETS),
            self.records(INSTRUMENTS),
            self.records(ORDERS),
            self.records(WITHDRAWALS),
            self.records(SESSIONS),
            self.records(SWEEPS),
        )

    def accounts(self) -> list[AccountRecord]:
        return self.records(ACCOUNTS)
