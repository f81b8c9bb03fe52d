"""History rows: the kinds, their ids, and the blocks in which they are stored.

A block is one msgpack array of rows in id order. Rows of a flush are packed into blocks that fill
whole pages: one put for about a hundred rows, where one put each would cost the writer more than all
other work of a flush.
"""

from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from typing import Any

import msgspec

from statemachine.records import LedgerRow, OrderRecord, Record, TradeRow, encode_record

DAY_US = 86_400 * 1_000_000
HOT_BLOCK_BYTES = 4 * 4096 - 16
"""Four pages of LMDB less the header of an overflow page."""
SEALED_BLOCK_BYTES = 16 * 1024
"""Raw bytes. A chain reads one row of each block: 64 KiB would cost it four times as much, and save a tenth of disk."""
BLOCK_ROWS_MAX = 65_535


class Kind(StrEnum):
    """Kinds of history that are kept by day and sealed when the day is over."""

    ledger = "ledger"
    trades = "trades"
    closed_orders = "closed_orders"
    events = "events"


class EventBatch(Record, frozen=True):
    """All events of one log entry, encoded as they were served; `decode_events` reads them."""

    index: int
    time_us: int
    events: bytes


class ResultBatch(Record, frozen=True):
    """All results of one log entry, encoded; `decode_results` reads them."""

    index: int
    results: bytes


ROW_TYPES: dict[Kind, type[Record]] = {
    Kind.ledger: LedgerRow,
    Kind.trades: TradeRow,
    Kind.closed_orders: OrderRecord,
    Kind.events: EventBatch,
}

ROW_ID: dict[Kind, Callable[[Any], int]] = {
    Kind.ledger: lambda row: int(row.row),
    Kind.trades: lambda row: int(row.trade_id),
    Kind.closed_orders: lambda row: int(row.order_id),
    Kind.events: lambda row: int(row.index),
}

ROW_DECODERS: dict[Kind, Callable[[Any], Any]] = {
    kind: msgspec.msgpack.Decoder(row_type).decode for kind, row_type in ROW_TYPES.items()
}
split_block = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
"""The rows of a block, still encoded: who wants one row decodes one."""
decode_result_batches = msgspec.msgpack.Decoder(list[ResultBatch]).decode


def decode_block(kind: Kind, block: bytes) -> list[Any]:
    return list(map(ROW_DECODERS[kind], split_block(block)))


def pack(rows: Iterable[tuple[int, bytes]], block_bytes: int) -> Iterator[tuple[int, int, bytes]]:
    """Join encoded rows into blocks of at most `block_bytes` each, a single larger row apart.

    Yields (first id, last id, block).
    """
    parts: list[bytes] = []
    size = 3
    first = last = 0
    for number, encoded in rows:
        if parts and (size + len(encoded) > block_bytes or len(parts) == BLOCK_ROWS_MAX):
            yield first, last, _join(parts)
            parts = []
            size = 3
        if not parts:
            first = number
        parts.append(encoded)
        size += len(encoded)
        last = number
    if parts:
        yield first, last, _join(parts)


def _join(parts: list[bytes]) -> bytes:
    return b"\xdc" + len(parts).to_bytes(2, "big") + b"".join(parts)


def encode_rows(kind: Kind, rows: Iterable[Any]) -> Iterator[tuple[int, bytes]]:
    row_id = ROW_ID[kind]
    for row in rows:
        yield row_id(row), encode_record(row)


def day_of(time_us: int) -> int:
    """The UTC day of a replicated time, counted from 1970-01-01."""
    return time_us // DAY_US
