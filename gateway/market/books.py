"""Books for display: every venue's and ours, as snapshots and numbered diffs that can be resumed.

A reader takes a snapshot and then each diff whose seq is the one before plus one. After a break it asks for
what came `since` its seq; where that is no longer held, or a snapshot came between, the answer is none, and
it takes a snapshot again. A book that missed something is not shown until it is whole.
"""

import zlib
from collections import deque
from collections.abc import Iterable

from msgspec import Struct

from gateway.feeds.guard import BadFrame
from gateway.feeds.levels import Levels
from gateway.feeds.ticks import BookDiff, BookSnapshot, Level, Status, StatusKind, Tick

DIFFS_KEPT = 256
CHECKED_LEVELS = 10
BREAKS = frozenset({StatusKind.GAP, StatusKind.BOOK_GAP, StatusKind.DOWN})


class BookView(Struct, frozen=True, gc=False, array_like=True):
    """The best levels of one book at `seq`. checksum: see `checksum`, of the same book."""

    symbol: str
    venue: str
    seq: int
    bids: tuple[Level, ...]
    asks: tuple[Level, ...]
    venue_us: int
    receive_us: int
    checksum: int


class _Book:
    __slots__ = ("diffs", "levels", "receive_us", "seq", "venue_us")

    def __init__(self, snapshot: BookSnapshot) -> None:
        self.levels = Levels(snapshot.bids, snapshot.asks)
        self.seq, self.venue_us, self.receive_us = snapshot.seq, snapshot.venue_us, snapshot.receive_us
        self.diffs: deque[BookDiff] = deque(maxlen=DIFFS_KEPT)


def checksum(bids: Iterable[Level], asks: Iterable[Level]) -> int:
    """CRC32 of `price:size` of the ten best asks and then the ten best bids, in units of 1e-9, joined by commas."""
    best = (*list(asks)[:CHECKED_LEVELS], *list(bids)[:CHECKED_LEVELS])
    return zlib.crc32(",".join([f"{price_e9}:{size_e9}" for price_e9, size_e9 in best]).encode())


class Books:
    """One book per symbol and venue."""

    def __init__(self) -> None:
        self.breaks = 0
        """Books that were taken down because something of them was missed."""
        self._books: dict[tuple[str, str], _Book] = {}
        self._had: set[tuple[str, str]] = set()

    def apply(self, ticks: Iterable[Tick]) -> None:
        for tick in ticks:
            if type(tick) is BookDiff:
                self._diff(tick)
            elif type(tick) is BookSnapshot:
                self._snapshot(tick)
            elif type(tick) is Status and tick.kind in BREAKS:
                self._break(tick)

    def _snapshot(self, tick: BookSnapshot) -> None:
        self._had.add((tick.symbol, tick.venue))
        try:
            self._books[(tick.symbol, tick.venue)] = _Book(tick)
        except BadFrame:
            self._books.pop((tick.symbol, tick.venue), None)
            self.breaks += 1

    def _diff(self, tick: BookDiff) -> None:
        key = tick.symbol, tick.venue
        book = self._books.get(key)
        if book is None:
            return
        if tick.seq != book.seq + 1:
            del self._books[key]
            self.breaks += 1
            return
        try:
            book.levels.apply(tick.bids, tick.asks)
        except BadFrame:  # more levels than a book may have
            del self._books[key]
            self.breaks += 1
            return
        book.seq, book.venue_us, book.receive_us = tick.seq, tick.venue_us, tick.receive_us
        book.diffs.append(tick)

    def _break(self, status: Status) -> None:
        broken = [
            key for key in self._books if key[1] == status.venue and (not status.symbol or key[0] == status.symbol)
        ]
        for key in broken:
            del self._books[key]
        self.breaks += len(broken)

    def view(self, symbol: str, venue: str, *, depth: int = 50) -> BookView | None:
        """None: no such book, or it is not whole now."""
        book = self._books.get((symbol, venue))
        if book is None:
            return None
        bids, asks = book.levels.best_bids(depth), book.levels.best_asks(depth)
        ten = book.levels.best_bids(CHECKED_LEVELS), book.levels.best_asks(CHECKED_LEVELS)
        return BookView(symbol, venue, book.seq, bids, asks, book.venue_us, book.receive_us, checksum(*ten))

    def since(self, symbol: str, venue: str, seq: int) -> list[BookDiff] | None:
        """The diffs after `seq`, in order; None: not recovered, take a snapshot."""
        book = self._books.get((symbol, venue))
        if book is None or seq > book.seq:
            return None
        if seq == book.seq:
            return []
        if not book.diffs or seq < book.diffs[0].seq - 1:
            return None
        return [diff for diff in book.diffs if diff.seq > seq]

    def had(self, symbol: str, venue: str) -> bool:
        """Whether there ever was one, so that another is to come."""
        return (symbol, venue) in self._had

    def venues(self, symbol: str) -> list[str]:
        """Who has a whole book of this symbol, by name."""
        return sorted(venue for known, venue in self._books if known == symbol)
