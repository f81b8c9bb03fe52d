"""LOBSTER: NASDAQ order flow as CSV, a message per line and, where there is one, the book after it.

Times are seconds after midnight in New York, prices dollars x 10,000, the direction is the resting
order's side. A hidden execution does not move the book. Rows of the book file are taken as they are;
without them the book is the sum of the messages since the last row (or since nothing).
"""

from datetime import date

from gateway.feeds.book_handler import BookHandler
from gateway.feeds.exchange_time import midnight_us, us_after_midnight
from gateway.feeds.guard import BadFrame
from gateway.feeds.levels import Levels
from gateway.feeds.ticks import E9, E9_MAX, Level, StatusKind, Tick

PRICE_UNIT_E9 = 100_000
NO_PRICE = 9_999_999_999
NEW, CANCEL, DELETE, EXECUTION, HIDDEN, CROSS, HALT = range(1, 8)


class Lobster(BookHandler):
    """feed() takes a message line, or a message line, a line feed and the book's row after it."""

    def __init__(self, symbol: str, day: date, *, venue: str = "nasdaq") -> None:
        super().__init__(venue, None, quotes_from="book")
        self.symbol = symbol
        self.midnight_us = midnight_us(day)
        self._lines = 0

    def us_of(self, line: bytes) -> int:
        """When a message happened; recordings have no receive time of their own."""
        try:
            return self.midnight_us + us_after_midnight(line.partition(b",")[0].decode("ascii"), 1_000_000)
        except (ValueError, UnicodeDecodeError) as error:
            raise BadFrame("bad_time") from error

    def _feed(self, frame: bytes, receive_us: int) -> list[Tick]:
        line, _, row = frame.partition(b"\n")
        fields = line.rstrip(b"\r").split(b",")
        if len(fields) != 6:
            raise BadFrame("wrong_type")
        venue_us = self.us_of(line)
        kind, _, size, price, direction = (_int(field) for field in fields[1:])
        if not NEW <= kind <= HALT or direction not in (1, -1):
            raise BadFrame("wrong_type")
        if kind == HALT:
            self._lines += 1
            return [self._halt(price, receive_us)]
        if not 0 < price * PRICE_UNIT_E9 <= E9_MAX:
            raise BadFrame("bad_price")
        if not 0 < size * E9 <= E9_MAX:
            raise BadFrame("bad_size")
        book = _parse_row(row) if row else None
        self._lines += 1
        ticks: list[Tick] = []
        if kind in (EXECUTION, HIDDEN, CROSS):
            aggressor = "" if kind == CROSS else "buy" if direction == -1 else "sell"
            numbers = price * PRICE_UNIT_E9, size * E9, venue_us, receive_us
            ticks.append(self.guard.trade(self.symbol, self.venue, *numbers, str(self._lines), aggressor=aggressor))
        if book is not None:
            return ticks + self._adopt(book, venue_us, receive_us)
        if kind in (NEW, CANCEL, DELETE, EXECUTION):
            change = size * E9 if kind == NEW else -size * E9
            ticks += self._move(direction, price * PRICE_UNIT_E9, change, venue_us, receive_us)
        return ticks

    def _halt(self, price: int, receive_us: int) -> Tick:
        """-1: halted. 0: quotes again. 1: trades again."""
        kind = StatusKind.RESUMED if price == 1 else StatusKind.HALTED
        return self._status(kind, receive_us, self.symbol)

    def _adopt(self, row: tuple[list[Level], list[Level]], venue_us: int, receive_us: int) -> list[Tick]:
        bids, asks = row
        book = self.books.get(self.symbol)
        if book is None:
            return self._replace(self.symbol, Levels(bids, asks), venue_us, receive_us)
        changed_bids, changed_asks = _changes(book.bids.sizes, bids), _changes(book.asks.sizes, asks)
        if not changed_bids and not changed_asks:
            return []
        book.apply(changed_bids, changed_asks)
        return self._changed(self.symbol, changed_bids, changed_asks, venue_us, receive_us)

    def _move(self, direction: int, price_e9: int, change_e9: int, venue_us: int, receive_us: int) -> list[Tick]:
        book = self.books.get(self.symbol)
        if book is None:
            book = self.books[self.symbol] = Levels()
        side = book.bids if direction == 1 else book.asks
        before_e9 = side.sizes.get(price_e9, 0)
        if not before_e9 and change_e9 < 0:
            return []  # of an order that rested before the recording began
        changed = [(price_e9, min(max(before_e9 + change_e9, 0), E9_MAX))]
        bids, asks = (changed, []) if direction == 1 else ([], changed)
        book.apply(bids, asks)
        return self._changed(self.symbol, bids, asks, venue_us, receive_us)


def _int(text: bytes) -> int:
    digits = text[1:] if text[:1] == b"-" else text
    if not digits.isdigit() or len(digits) > 18:
        raise BadFrame("wrong_type")
    return int(text)


def _parse_row(row: bytes) -> tuple[list[Level], list[Level]]:
    """(bids, asks) of ask price, ask size, bid price, bid size per level, the best first."""
    numbers = [_int(field) for field in row.strip().split(b",")]
    if len(numbers) % 4:
        raise BadFrame("wrong_type")
    bids: list[Level] = []
    asks: list[Level] = []
    for side, start in ((asks, 0), (bids, 2)):
        for price, size in zip(numbers[start::4], numbers[start + 1 :: 4], strict=True):
            if abs(price) == NO_PRICE or not size:
                continue
            if not 0 < price * PRICE_UNIT_E9 <= E9_MAX:
                raise BadFrame("bad_price")
            if not 0 < size * E9 <= E9_MAX:
                raise BadFrame("bad_size")
            side.append((price * PRICE_UNIT_E9, size * E9))
    return bids, asks


def _changes(before: dict[int, int], after: list[Level]) -> list[Level]:
    changed = [(price_e9, size_e9) for price_e9, size_e9 in after if before.get(price_e9) != size_e9]
    kept = {price_e9 for price_e9, _ in after}
    return changed + [(price_e9, 0) for price_e9 in before if price_e9 not in kept]
