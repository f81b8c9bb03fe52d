"""What was handed over and is not on disk yet: one generation collects while another is being written."""

from collections.abc import Callable
from typing import Any

from statemachine.records import Applied, KeyRecord, OrderRecord
from statemachine.store_rows import EventBatch, Kind, day_of

LEDGER_ROW_BYTES = 110
TRADE_ROW_BYTES = 130
ORDER_ROW_BYTES = 220
KEY_BYTES = 120
BATCH_BYTES = 120
"""Rough cost of one row while it waits and while it is written; the bound needs no more than that."""

RELEASED_AT_ONCE = 512


class Generation:
    """History and keys of some consecutive batches, readable by id while they wait to be written."""

    __slots__ = ("by_day", "bytes", "first_index", "keys", "last_digest", "last_index", "results", "rows")

    def __init__(self) -> None:
        self.first_index = 0
        self.last_index = 0
        self.last_digest = b""
        self.bytes = 0
        self.keys: dict[bytes, tuple[int, KeyRecord]] = {}
        """Key digest to (bucket, record)."""
        self.results: dict[int, tuple[int, bytes]] = {}
        """Index to (time_us, encoded results)."""
        self.rows: dict[Kind, dict[int, Any]] = {kind: {} for kind in Kind}
        self.by_day: dict[tuple[Kind, int], list[Any]] = {}

    def add(self, applied: Applied) -> None:
        self.first_index = self.first_index or applied.index
        self.last_index = applied.index
        self.last_digest = applied.digest
        self.results[applied.index] = (applied.time_us, applied.results_bytes)
        for bucket, digest, record in applied.keys:
            self.keys[digest] = (bucket, record)
        day = day_of(applied.time_us)
        event = EventBatch(applied.index, applied.time_us, applied.events_bytes)
        self._extend(Kind.events, day, [event], lambda row: int(row.index))
        if applied.ledger_rows:
            self._extend(Kind.ledger, day, applied.ledger_rows, lambda row: int(row.row))
        if applied.trades:
            self._extend(Kind.trades, day, applied.trades, lambda row: int(row.trade_id))
        if applied.closed_orders:
            self._extend(Kind.closed_orders, day, applied.closed_orders, lambda row: int(row.order_id))
        self.bytes += (
            BATCH_BYTES
            + len(applied.results_bytes)
            + len(applied.events_bytes)
            + KEY_BYTES * len(applied.keys)
            + LEDGER_ROW_BYTES * len(applied.ledger_rows)
            + TRADE_ROW_BYTES * len(applied.trades)
            + ORDER_ROW_BYTES * len(applied.closed_orders)
        )

    def _extend(self, kind: Kind, day: int, rows: list[Any], row_id: Callable[[Any], int]) -> None:
        by_id = self.rows[kind]
        for row in rows:
            by_id[row_id(row)] = row
        held = self.by_day.get((kind, day))
        if held is None:
            self.by_day[kind, day] = list(rows)
        else:
            held.extend(rows)

    def release(self) -> None:
        """Free the rows a few at a time, in a worker: freeing them in one go would hold the loop for milliseconds."""
        for by_id in self.rows.values():
            by_id.clear()
        keys = list(self.keys.values())
        self.keys.clear()
        for held in (keys, *self.by_day.values()):
            while held:
                del held[-RELEASED_AT_ONCE:]


def is_stray(order: OrderRecord, closed_day: int) -> bool:
    """Whether an order closed on a later day than it was opened, so that its id does not tell where it is."""
    return day_of(order.opened_at_us) != closed_day
