"""Kraken (WebSocket v1): books checked by their CRC32, tickers and trades.

There are no sequence numbers; instead each book message carries the CRC32 of the ten best levels of both
sides: asks from low to high, then bids from high to low, of each level the price and the quantity, without
the dot and without leading zeros. All levels of a message go in first, then the book is cut to its depth.
"""

import zlib
from collections.abc import Iterable, Sequence

import msgspec
from msgspec import Raw, Struct, field

from gateway.feeds.book_handler import BookHandler, level, price_of, size_of
from gateway.feeds.guard import BadFrame
from gateway.feeds.handler import Request, Send
from gateway.feeds.levels import Levels
from gateway.feeds.ticks import E9, RECEIVE_TIME, Level, StatusKind, Tick, e9

WEBSOCKET_URL = "wss://ws.kraken.com"
CHECKED_LEVELS = 10


class Event(Struct):
    event: str
    status: str = ""
    pair: str = ""
    channelName: str = ""
    errorMessage: str = ""


class BookPart(Struct):
    """`as` and `bs` of a snapshot, `a` and `b` of an update; a level is price, quantity, time and perhaps `r`."""

    ask_snapshot: list[list[str]] | None = field(default=None, name="as")
    bid_snapshot: list[list[str]] | None = field(default=None, name="bs")
    a: list[list[str]] | None = None
    b: list[list[str]] | None = None
    c: str | None = None


class TickerPart(Struct):
    """[price, whole lots, lots] of the best ask and bid."""

    a: tuple[str, int, str]
    b: tuple[str, int, str]


EVENT = msgspec.json.Decoder(Event)
MESSAGE = msgspec.json.Decoder(list[Raw])
TEXT = msgspec.json.Decoder(str)
BOOK = msgspec.json.Decoder(BookPart)
TICKER = msgspec.json.Decoder(TickerPart)
TRADES = msgspec.json.Decoder(list[tuple[str, str, str, str, str, str]])


class Kraken(BookHandler):
    """Quotes come from the books, or from `ticker`, which has no time and comes some seconds late."""

    ttl_us = 2_500_000

    def __init__(
        self,
        symbols: Iterable[tuple[str, str]] | None,
        *,
        venue: str = "kraken",
        quotes_from: str = "book",
        depth: int = 100,
    ) -> None:
        super().__init__(venue, symbols, quotes_from=quotes_from)
        self.depth = depth
        self._digits: dict[str, int] = {}
        self._trade_count = 0
        self._broken_once: set[str] = set()
        self._halted = False

    def _subscribe(self) -> list[Request]:
        pairs = list(self.symbols or ())
        subscriptions: list[dict[str, object]] = [{"name": "book", "depth": self.depth}, {"name": "trade"}]
        if self.quotes_from == "ticker":
            subscriptions.append({"name": "ticker"})
        return [self._send("subscribe", pairs, subscription) for subscription in subscriptions]

    def _send(self, event: str, pairs: Sequence[str], subscription: dict[str, object]) -> Send:
        body = {"event": event, "pair": pairs, "subscription": subscription}
        return Send(msgspec.json.encode(body).decode())

    def _feed(self, frame: bytes, receive_us: int) -> list[Tick]:
        if not frame.lstrip().startswith(b"["):
            return self._event(EVENT.decode(frame), receive_us)
        parts = MESSAGE.decode(frame)
        if len(parts) < 4:
            raise BadFrame("wrong_type")
        channel, pair = TEXT.decode(parts[-2]), TEXT.decode(parts[-1])
        symbol = self._ours(pair)
        if symbol is None:
            return []
        try:
            if channel.startswith("book-"):
                return self._book(symbol, pair, channel, [BOOK.decode(part) for part in parts[1:-2]], receive_us)
            if channel == "trade":
                return self._trades(symbol, TRADES.decode(parts[1]), receive_us)
            if channel == "ticker":
                return self._ticker(symbol, TICKER.decode(parts[1]), receive_us)
        except (BadFrame, msgspec.MsgspecError) as error:
            # There are no numbers by which the next message would show that this one is missing.
            self.counts.count_bad(error.reason if isinstance(error, BadFrame) else "wrong_type")
            return self._missed(symbol, pair, channel, receive_us)
        return []

    def _missed(self, symbol: str, pair: str, channel: str, receive_us: int) -> list[Tick]:
        """What is no longer known when a message of a channel can't be read."""
        if channel.startswith("book-"):
            return self._again(symbol, pair, channel, receive_us, "a bad update")
        if channel == "trade":
            return [self._status(StatusKind.TRADE_GAP, receive_us, symbol, "a bad trade")]
        if self.quotes_from != "ticker":
            return []
        self.counts.gaps += 1
        return [self._status(StatusKind.GAP, receive_us, symbol, "a quote that can't be read")]

    def _again(self, symbol: str, pair: str, channel: str, receive_us: int, why: str) -> list[Tick]:
        """Give a book up and ask for it anew."""
        depth = channel.removeprefix("book-")
        subscription: dict[str, object] = {"name": "book", "depth": int(depth) if depth.isdecimal() else self.depth}
        self._requests += [self._send("unsubscribe", [pair], subscription)]
        self._requests += [self._send("subscribe", [pair], subscription)]
        self._broken_once.add(symbol)
        return self._broken(symbol, receive_us, why)

    def _event(self, event: Event, receive_us: int) -> list[Tick]:
        if event.event == "heartbeat":
            self.counts.heartbeats += 1
            return [self._status(StatusKind.ALIVE, receive_us)]
        if event.event == "subscriptionStatus" and event.status == "error":
            raise BadFrame("refused")
        if event.event != "systemStatus":
            return []
        if event.status != "online":
            self._halted = True
            self._tops.clear()
            return [self._status(StatusKind.HALTED, receive_us, detail=event.status[:64])]
        if not self._halted:
            return []
        self._halted = False
        quotes = [quote for one, book in self.books.items() for quote in self._quotes(one, book, 0, receive_us)]
        return [self._status(StatusKind.RESUMED, receive_us), *quotes]

    def _ticker(self, symbol: str, part: TickerPart, receive_us: int) -> list[Tick]:
        if self.quotes_from != "ticker":
            return []
        bid, ask = level(part.b[0], part.b[2]), level(part.a[0], part.a[2])
        return [self.guard.quote(symbol, self.venue, *bid, *ask, 0, receive_us, RECEIVE_TIME)]

    def _trades(self, symbol: str, trades: list[tuple[str, str, str, str, str, str]], receive_us: int) -> list[Tick]:
        parsed = [(price_of(price), size_of(size), _us(time), side) for price, size, time, side, _, _ in trades]
        ticks: list[Tick] = []
        for price_e9, size_e9, venue_us, side in parsed:
            # v1 has no trade ids: the receive time and a count of ours tell them apart.
            self._trade_count += 1
            trade_id, aggressor = f"{receive_us}-{self._trade_count}", "buy" if side == "b" else "sell"
            ticks.append(
                self.guard.trade(
                    symbol, self.venue, price_e9, size_e9, venue_us, receive_us, trade_id, aggressor=aggressor
                )
            )
        return ticks

    def _book(self, symbol: str, pair: str, channel: str, parts: list[BookPart], receive_us: int) -> list[Tick]:
        depth_text = channel.removeprefix("book-")
        if not depth_text.isdecimal() or not 0 < len(depth_text) < 6:
            raise BadFrame("wrong_type")
        depth = int(depth_text)
        bids: list[Level] = []
        asks: list[Level] = []
        snapshot, checksum, venue_us = False, None, 0
        for part in parts:
            snapshot |= part.ask_snapshot is not None or part.bid_snapshot is not None
            for side, rows in ((asks, part.ask_snapshot), (bids, part.bid_snapshot), (asks, part.a), (bids, part.b)):
                for row in rows or ():
                    if len(row) not in (3, 4):
                        raise BadFrame("wrong_type")
                    side.append(level(row[0], row[1]))
                    venue_us = max(venue_us, _us(row[2]))
                    if snapshot:
                        self._digits[symbol] = len(row[0].partition(".")[2])
            checksum = part.c or checksum
        if snapshot:
            return self._snapshot(symbol, pair, Levels(bids, asks), venue_us, receive_us)
        book = self.books.get(symbol)
        if book is None:
            self.counts.repeats += 1  # an update of a book that we gave up; a snapshot is on its way
            return []
        possible = self._apply_levels(book, bids, asks)
        dropped_bids, dropped_asks = book.truncate(depth)
        if not possible or checksum is None or int_or_none(checksum) != self.checksum(symbol):
            return self._again(symbol, pair, channel, receive_us, "checksum differs")
        return self._changed(symbol, bids + dropped_bids, asks + dropped_asks, venue_us, receive_us)

    def _snapshot(self, symbol: str, pair: str, book: Levels, venue_us: int, receive_us: int) -> list[Tick]:
        if book.crossed:
            raise BadFrame("crossed_snapshot")
        ticks = self._replace(symbol, book, venue_us, receive_us)
        if symbol in self._broken_once:
            self._broken_once.discard(symbol)
            self.counts.resubscribes += 1
            ticks.append(self._status(StatusKind.RESUBSCRIBED, receive_us, symbol))
        return ticks

    def checksum(self, symbol: str) -> int:
        """The CRC32 that Kraken would send of this book."""
        book, unit = self.books[symbol], 10 ** (9 - self._digits[symbol])
        best = (*book.best_asks(CHECKED_LEVELS), *book.best_bids(CHECKED_LEVELS))
        # A quantity has 8 decimals. str() of a whole number has neither a dot nor leading zeros.
        text = "".join([f"{price_e9 // unit}{size_e9 // 10}" for price_e9, size_e9 in best])
        return zlib.crc32(text.encode())


def int_or_none(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else None


def _us(text: str) -> int:
    """Seconds with decimals as microseconds, without a float between."""
    try:
        return e9(text) // (E9 // 1_000_000)
    except ValueError as error:
        raise BadFrame("bad_time") from error
