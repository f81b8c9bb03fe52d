"""Reads of what is past: results, events, trades, ledger, closed orders, wherever they now are.

A row may wait to be written, stand in the table of its day, or be sealed in that day's segment; a
reader need not know. All reads are for the thread of the event loop. They take microseconds from
memory and tables, up to a millisecond for each row that lies in another block of a sealed segment.
"""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from msgspec import Raw, Struct

from statemachine.codec import decode_results
from statemachine.records import LedgerRow, OrderRecord, TradeRow, id_key
from statemachine.results import AnyResult
from statemachine.segments import Segment
from statemachine.store_files import PastGone
from statemachine.store_pending import Generation
from statemachine.store_rows import ROW_DECODERS, ROW_ID, EventBatch, Kind, decode_result_batches, split_block
from statemachine.store_tables import RESULTS, STRAYS, Cursor, Handle, Tables

CACHED_BLOCKS_MAX = 128
EVENT_BATCH_OVERHEAD_BYTES = 32

Row = TypeVar("Row")


class Page(Struct, Generic[Row], frozen=True):
    """Some rows of a chain, newest first. next_id: where the next page starts, 0 at the chain's end.

    past_gone: the chain goes on beyond what is kept.
    """

    rows: list[Row]
    next_id: int
    past_gone: bool = False


class BlockCache:
    """The blocks read last, split into rows. Blocks never change, so a cached one is never stale."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[tuple[Kind, int, bool, int], list[Raw]] = OrderedDict()

    def get(self, key: tuple[Kind, int, bool, int], read: Callable[[], list[Raw]]) -> list[Raw]:
        rows = self._blocks.get(key)
        if rows is None:
            rows = read()
            self._blocks[key] = rows
            if len(self._blocks) > CACHED_BLOCKS_MAX:
                self._blocks.popitem(last=False)
        else:
            self._blocks.move_to_end(key)
        return rows


def find_row(rows: list[Any], number: int, row_id: Callable[[Any], int]) -> Any | None:
    position = bisect_left(rows, number, key=row_id)
    if position < len(rows) and row_id(rows[position]) == number:
        return rows[position]
    return None


class RowLog(Generic[Row]):
    """One kind of history over its three places."""

    def __init__(self, kind: Kind, tables: Tables, generations: list[Generation], cache: BlockCache) -> None:
        self.kind = kind
        self.segments: list[Segment] = []
        """By day, ascending."""
        self._tables = tables
        self._generations = generations
        self._cache = cache
        self._row_id = ROW_ID[kind]
        self._decode = ROW_DECODERS[kind]

    def get(self, number: int) -> Row | None:
        for generation in reversed(self._generations):
            row: Row | None = generation.rows[self.kind].get(number)
            if row is not None:
                return row
        row = self._from_tables(number)
        return row if row is not None else self._from_segments(number)

    def _days(self) -> list[tuple[int, Handle]]:
        """Tables not sealed yet, newest first."""
        return sorted(self._tables.families[self.kind].items(), reverse=True)

    def _from_tables(self, number: int) -> Row | None:
        reader = self._tables.reader()
        for day, handle in self._days():
            if self.kind == Kind.closed_orders:
                value = reader.get(id_key(number), db=handle)
                if value is not None:
                    return self._decode(value)  # type: ignore[no-any-return]
                continue
            cursor = reader.cursor(handle)
            if seek_block(cursor, number):
                return self._find(self._hot_block(day, cursor), number)
        return None

    def _find(self, rows: list[Raw], number: int) -> Row | None:
        """Ids mostly have no gaps: look where the row should be, then search."""
        first = self._row_id(self._decode(rows[0]))
        position = number - first
        if not 0 <= position < len(rows) or self._row_id(self._decode(rows[position])) != number:
            position = bisect_left(rows, number, key=lambda row: self._row_id(self._decode(row)))
        if position == len(rows):
            return None
        row: Row = self._decode(rows[position])
        return row if self._row_id(row) == number else None

    def _hot_block(self, day: int, cursor: Cursor) -> list[Raw]:
        first = int.from_bytes(cursor.key(), "big")
        return self._cache.get((self.kind, day, False, first), lambda: split_block(cursor.value()))

    def _from_segments(self, number: int) -> Row | None:
        segment = self._segment_of(number)
        if segment is None:
            return None
        position = segment.block_of(number)
        return self._find(self._sealed_block(segment, position), number) if position >= 0 else None

    def _segment_of(self, number: int) -> Segment | None:
        if self.kind == Kind.closed_orders:
            day = self._tables.reader().get(id_key(number), db=self._tables.fixed[STRAYS])
            if day is not None:
                found = find_row(self.segments, int.from_bytes(day, "big"), lambda segment: int(segment.entry.day))
                return found if isinstance(found, Segment) else None
        for segment in reversed(self.segments):
            # A day on which nothing was opened that closed on it has no ids of its own.
            if segment.entry.last_id and segment.entry.first_id <= number:
                return segment if number <= segment.entry.last_id else None
        return None

    def _sealed_block(self, segment: Segment, position: int) -> list[Raw]:
        return self._cache.get((self.kind, segment.entry.day, True, position), lambda: segment.block(position))

    def iterate(self, first_id: int = 0) -> Iterator[Row]:
        """Rows with ids from `first_id` on, ascending. Closed orders: all of them, by day and by id within each.

        To be exhausted or dropped before the next call of the store.
        """
        last_id = 0
        for row in () if self._is_pending(first_id) else self._iterate_stored(first_id):
            last_id = self._row_id(row)
            # A flush that is written but not finished is in both places.
            if self.kind != Kind.closed_orders or not any(last_id in g.rows[self.kind] for g in self._generations):
                yield row
        if self.kind != Kind.closed_orders:
            first_id = max(first_id, last_id + 1)
        for generation in self._generations:
            yield from self._from(generation.rows[self.kind].values(), first_id)

    def _is_pending(self, first_id: int) -> bool:
        """Whether all from this id on waits in memory: so it is for whoever follows the newest."""
        oldest = next((number for g in self._generations for number in g.rows[self.kind]), None)
        return self.kind != Kind.closed_orders and oldest is not None and oldest <= first_id

    def _iterate_stored(self, first_id: int) -> Iterator[Row]:
        ordered = self.kind != Kind.closed_orders
        for segment in self.segments:
            if ordered and segment.entry.last_id < first_id:
                continue
            start = max(segment.block_of(first_id), 0) if ordered else 0
            for position in range(start, len(segment.index().blocks)):
                yield from self._from(map(self._decode, self._sealed_block(segment, position)), first_id)
        for day, handle in reversed(self._days()):
            cursor = self._tables.reader().cursor(handle)
            found = (ordered and seek_block(cursor, first_id)) or cursor.first()
            while found:
                if ordered:
                    yield from self._from(map(self._decode, self._hot_block(day, cursor)), first_id)
                else:
                    yield self._decode(cursor.value())
                found = cursor.next()

    def _from(self, rows: Iterable[Row], first_id: int) -> Iterator[Row]:
        return (row for row in rows if self._row_id(row) >= first_id)


def seek_block(cursor: Cursor, number: int) -> bool:
    """Move to the last block that starts at or before this id; False when all start after it."""
    if cursor.set_range(id_key(number)) and cursor.key() == id_key(number):
        return True
    return bool(cursor.prev() if cursor.key() else cursor.last())


class History:
    """What the store remembers. Pages start at a given id, so that the newest one comes from the machine's state."""

    def __init__(self, tables: Tables, generations: list[Generation]) -> None:
        cache = BlockCache()
        self._tables = tables
        self._generations = generations
        self.ledger_log: RowLog[LedgerRow] = RowLog(Kind.ledger, tables, generations, cache)
        self.trade_log: RowLog[TradeRow] = RowLog(Kind.trades, tables, generations, cache)
        self.closed_log: RowLog[OrderRecord] = RowLog(Kind.closed_orders, tables, generations, cache)
        self.event_log: RowLog[EventBatch] = RowLog(Kind.events, tables, generations, cache)
        self.first_event_index = 1
        """Events of this index and later are all held; those before it are gone."""

    @property
    def logs(self) -> dict[Kind, RowLog[Any]]:
        return {log.kind: log for log in (self.ledger_log, self.trade_log, self.closed_log, self.event_log)}

    def results(self, index: int) -> list[AnyResult] | None:
        """All results of one log entry; None when it is unknown or past retention."""
        for generation in reversed(self._generations):
            held = generation.results.get(index)
            if held is not None:
                return decode_results(held[1])
        reader = self._tables.reader()
        for _, handle in sorted(self._tables.families[RESULTS].items(), reverse=True):
            cursor = reader.cursor(handle)
            if seek_block(cursor, index):
                batch = find_row(decode_result_batches(cursor.value()), index, lambda row: int(row.index))
                return None if batch is None else decode_results(batch.results)
        return None

    def result(self, index: int, ordinal: int) -> AnyResult | None:
        """The answer that a repeated key refers to."""
        results = self.results(index)
        return results[ordinal] if results is not None and ordinal < len(results) else None

    def events_after(self, index: int, *, bytes_max: int) -> list[EventBatch]:
        """Batches of events of the entries after `index`, in order: up to about `bytes_max`, one at least.

        Empty when there is nothing newer. Raises PastGone when the next one is no longer held.
        """
        if index + 1 < self.first_event_index:
            raise PastGone(self.first_event_index)
        batches: list[EventBatch] = []
        size = 0
        for batch in self.event_log.iterate(index + 1):
            size += len(batch.events) + EVENT_BATCH_OVERHEAD_BYTES
            if batches and size > bytes_max:
                break
            batches.append(batch)
        return batches

    def trade(self, trade_id: int) -> TradeRow | None:
        return self.trade_log.get(trade_id)

    def trades_of_symbol(self, trade_id: int, *, limit: int) -> Page[TradeRow]:
        """From `trade_id` (an instrument's `last_trade_id`, or a page's `next_id`) back."""
        return follow(self.trade_log, trade_id, limit, lambda row: row.previous_of_symbol)

    def trades_of_account(self, account: str, trade_id: int, *, limit: int) -> Page[TradeRow]:
        """From `trade_id` (an account's `last_trade_id`, or a page's `next_id`) back."""
        return follow(
            self.trade_log,
            trade_id,
            limit,
            lambda row: row.previous_of_taker if row.taker_account == account else row.previous_of_maker,
        )

    def ledger(self, row: int, *, limit: int) -> Page[LedgerRow]:
        """From `row` (an account's `last_ledger_row`, or a page's `next_id`) back."""
        return follow(self.ledger_log, row, limit, lambda held: held.previous)

    def closed_order(self, order_id: int) -> OrderRecord | None:
        return self.closed_log.get(order_id)

    def closed_orders(self, order_id: int, *, limit: int) -> Page[OrderRecord]:
        """From `order_id` (an account's `last_closed_order_id`, or a page's `next_id`) back."""
        return follow(self.closed_log, order_id, limit, lambda order: order.previous_closed)


def follow(log: RowLog[Row], number: int, limit: int, previous: Callable[[Row], int]) -> Page[Row]:
    rows: list[Row] = []
    while number and len(rows) < limit:
        row = log.get(number)
        if row is None:
            return Page(rows, 0, past_gone=True)
        rows.append(row)
        number = previous(row)
    return Page(rows, number)
