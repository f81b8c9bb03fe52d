"""What handlers share that keep whole books: levels in, snapshots, diffs and quotes out."""

from collections.abc import Iterable, Sequence

from gateway.feeds.guard import BadFrame
from gateway.feeds.handler import Handler
from gateway.feeds.levels import Levels
from gateway.feeds.ticks import BookDiff, BookSnapshot, Level, Quote, StatusKind, Tick, e9


class BookHandler(Handler):
    """quotes_from: `book` makes quotes of the books' best levels; `ticker` leaves them to the subclass."""

    def __init__(self, venue: str, symbols: Iterable[tuple[str, str]] | None, *, quotes_from: str) -> None:
        super().__init__(venue, symbols)
        if quotes_from not in ("book", "ticker"):
            raise ValueError(f"quotes_from {quotes_from!r}: book or ticker")
        self.quotes_from = quotes_from
        self.books: dict[str, Levels] = {}
        self._seqs: dict[str, int] = {}
        self._tops: dict[str, tuple[int, int, int, int]] = {}

    def reset(self) -> None:
        self.books.clear()
        self._tops.clear()

    def _replace(self, symbol: str, book: Levels, venue_us: int, receive_us: int) -> list[Tick]:
        self.books[symbol] = book
        self._tops.pop(symbol, None)
        seq = self._seqs[symbol] = self._seqs.get(symbol, 0) + 1
        at_us = self.guard.time(venue_us, receive_us)
        bids, asks = book.best_bids(), book.best_asks()
        self.counts.ticks += 1
        snapshot = BookSnapshot(symbol, self.venue, seq, bids, asks, at_us, receive_us)
        return [snapshot, *self._quotes(symbol, book, venue_us, receive_us)]

    def _changed(
        self, symbol: str, bids: Sequence[Level], asks: Sequence[Level], venue_us: int, receive_us: int
    ) -> list[Tick]:
        """What to tell of levels that were applied to this symbol's book."""
        seq = self._seqs[symbol] = self._seqs.get(symbol, 0) + 1
        self.counts.ticks += 1
        at_us = self.guard.time(venue_us, receive_us)
        diff = BookDiff(symbol, self.venue, seq, tuple(bids), tuple(asks), at_us, receive_us)
        return [diff, *self._quotes(symbol, self.books[symbol], venue_us, receive_us)]

    def _apply_levels(self, book: Levels, bids: Sequence[Level], asks: Sequence[Level]) -> bool:
        """False: the book is no longer one that can be (crossed, or too many levels); the caller breaks it."""
        try:
            book.apply(bids, asks)
        except BadFrame as error:
            self.counts.count_bad(error.reason)
            return False
        return not book.crossed

    def _quotes(self, symbol: str, book: Levels, venue_us: int, receive_us: int) -> list[Quote]:
        if self.quotes_from != "book":
            return []
        top = book.top()
        if self._tops.get(symbol) == top:
            return []
        self._tops[symbol] = top
        return [self.guard.quote(symbol, self.venue, *top, venue_us, receive_us)]

    def _broken(self, symbol: str, receive_us: int, detail: str) -> list[Tick]:
        """Forget a book that can't be trusted, and say so once."""
        self.counts.gaps += 1
        self.books.pop(symbol, None)
        self._tops.pop(symbol, None)
        kind = StatusKind.GAP if self.quotes_from == "book" else StatusKind.BOOK_GAP
        return [self._status(kind, receive_us, symbol, detail)]


def level(price: str, size: str) -> Level:
    """One level of text.

    Raises:
        BadFrame: a price that is not above 0, or what `e9` refuses.
    """
    price_e9 = price_of(price)
    try:
        return price_e9, e9(size)
    except ValueError as error:
        raise BadFrame("bad_size") from error


def price_of(text: str) -> int:
    try:
        price_e9 = e9(text)
    except ValueError as error:
        raise BadFrame("bad_price") from error
    if not price_e9:
        raise BadFrame("bad_price")
    return price_e9


def size_of(text: str) -> int:
    try:
        return e9(text)
    except ValueError as error:
        raise BadFrame("bad_size") from error
