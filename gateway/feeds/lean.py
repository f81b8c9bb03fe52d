"""Ticks of the US consolidated tape as QuantConnect's Lean stores them: CSV lines, one zip per symbol and day.

Times are milliseconds after midnight in New York, prices dollars x 10,000. A quote line is one side of the
national best, and the letter is the venue that set it: the last bid line and the last ask line are the NBBO
(its minute bars say so in each of 1,148 minutes). All trades count for volume; those with a condition in
`NOT_ELIGIBLE` must not move open, high, low and close. Lines that the vendor flags as suspicious are
dropped, as in its own bars.
"""

from datetime import date

from gateway.feeds.exchange_time import midnight_us, us_after_midnight
from gateway.feeds.guard import BadFrame
from gateway.feeds.handler import Handler
from gateway.feeds.ticks import E9, E9_MAX, Quote, Tick

PRICE_UNIT_E9 = 100_000
NOT_ELIGIBLE = 0x20 | 0x20000000


class LeanTicks(Handler):
    """feed() takes one line: 6 fields are a trade, at the venue `tape.` and its letter; 8 are a quote."""

    def __init__(self, symbol: str, day: date, *, venue: str = "tape") -> None:
        super().__init__(venue, None)
        self.symbol = symbol
        self.midnight_us = midnight_us(day)
        self._best = (0, 0, 0, 0)
        self._trades = 0

    def us_of(self, line: bytes) -> int:
        """When a line happened; recordings have no receive time of their own."""
        try:
            return self.midnight_us + us_after_midnight(line.partition(b",")[0].decode("ascii"), 1_000)
        except (ValueError, UnicodeDecodeError) as error:
            raise BadFrame("bad_time") from error

    def _feed(self, frame: bytes, receive_us: int) -> list[Tick]:
        fields = frame.strip().split(b",")
        if fields[-1] == b"1":
            raise BadFrame("flagged_by_vendor")
        if len(fields) == 6:
            return [self._trade(fields, self.us_of(frame), receive_us)]
        if len(fields) == 8:
            return [self._quote(fields, self.us_of(frame), receive_us)]
        raise BadFrame("wrong_type")

    def _venue(self, letter: bytes) -> str:
        if len(letter) != 1 or not letter.isalpha():
            raise BadFrame("bad_symbol")
        return f"{self.venue}.{letter.decode()}"

    def _trade(self, fields: list[bytes], venue_us: int, receive_us: int) -> Tick:
        price, size = _number(fields[1], PRICE_UNIT_E9), _number(fields[2], E9)
        venue, eligible = self._venue(fields[3]), not _flags(fields[4]) & NOT_ELIGIBLE
        self._trades += 1
        return self.guard.trade(self.symbol, venue, price, size, venue_us, receive_us, str(self._trades), eligible)

    def _quote(self, fields: list[bytes], venue_us: int, receive_us: int) -> Quote:
        bid, ask = _number(fields[1], PRICE_UNIT_E9), _number(fields[3], PRICE_UNIT_E9)
        bid_size, ask_size = _number(fields[2], E9), _number(fields[4], E9)
        self._venue(fields[5])
        _flags(fields[6])
        bid_before, bid_size_before, ask_before, ask_size_before = self._best
        if not bid and ask:
            bid, bid_size = bid_before, bid_size_before
        elif bid and not ask:
            ask, ask_size = ask_before, ask_size_before
        best = bid, bid_size, ask, ask_size
        quote = self.guard.quote(self.symbol, self.venue, *best, venue_us, receive_us)
        self._best = best
        return quote


def _number(text: bytes, unit_e9: int) -> int:
    if not text.isdigit() or len(text) > 18:
        raise BadFrame("wrong_type")
    number = int(text) * unit_e9
    if number > E9_MAX:
        raise BadFrame("bad_price")
    return number


def _flags(text: bytes) -> int:
    try:
        return int(text, 16)
    except ValueError as error:
        raise BadFrame("wrong_type") from error
