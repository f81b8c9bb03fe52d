"""Coinbase Advanced Trade: level 2 books, tickers, trades and heartbeats.

`sequence_num` counts the messages of one connection, over all its channels, one by one. After a gap
nothing of the connection can be trusted: everything is subscribed anew, and each channel then opens with
a snapshot (books whole, the latest trades), which also fills most holes in the trades.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import msgspec
from msgspec import Raw, Struct

from gateway.feeds.book_handler import BookHandler, level, price_of, size_of
from gateway.feeds.guard import BadFrame
from gateway.feeds.handler import Number, Request, Send
from gateway.feeds.levels import Levels
from gateway.feeds.ticks import Level, StatusKind, Tick

WEBSOCKET_URL = "wss://advanced-trade-ws.coinbase.com"
CHANNELS = ("heartbeats", "market_trades", "level2")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


class Message(Struct):
    channel: str
    sequence_num: Number | None = None
    timestamp: datetime | None = None
    events: Raw = Raw(b"[]")


class Update(Struct):
    side: str
    price_level: str
    new_quantity: str


class BookEvent(Struct):
    type: str
    product_id: str
    updates: list[Update]


class Ticker(Struct):
    product_id: str
    best_bid: str
    best_bid_quantity: str
    best_ask: str
    best_ask_quantity: str


class TickerEvent(Struct):
    tickers: list[Ticker]


class TradeRow(Struct):
    product_id: str
    trade_id: str
    price: str
    size: str
    time: datetime
    side: str


class TradeEvent(Struct):
    trades: list[TradeRow]


MESSAGE = msgspec.json.Decoder(Message)
BOOK = msgspec.json.Decoder(list[BookEvent])
TICKERS = msgspec.json.Decoder(list[TickerEvent])
TRADES = msgspec.json.Decoder(list[TradeEvent])


class Coinbase(BookHandler):
    """Quotes come from the books, or from the ticker, which tells of trades only."""

    ttl_us = 2_500_000

    def __init__(
        self, symbols: Iterable[tuple[str, str]] | None, *, venue: str = "coinbase", quotes_from: str = "book"
    ) -> None:
        super().__init__(venue, symbols, quotes_from=quotes_from)
        self._last_trade: dict[str, int] = {}
        self._broken_books: set[str] = set()
        self.reset()

    def reset(self) -> None:
        super().reset()
        self._next: int | None = None

    def _subscribe(self) -> list[Request]:
        return self._sends("subscribe")

    def _sends(self, kind: str) -> list[Request]:
        channels = (*CHANNELS, "ticker") if self.quotes_from == "ticker" else CHANNELS
        products = list(self.symbols or ())
        bodies = [{"type": kind, "product_ids": products, "channel": channel} for channel in channels]
        return [Send(msgspec.json.encode(body).decode()) for body in bodies]

    def _feed(self, frame: bytes, receive_us: int) -> list[Tick]:
        message = MESSAGE.decode(frame)
        if message.sequence_num is None:
            raise BadFrame("refused" if message.channel == "error" else "no_sequence")
        venue_us = _us(message.timestamp)
        # Parse before the number is taken: a frame that is refused here is then missed by the next one.
        events = self._parse(message)
        ticks = self._count(message.sequence_num, receive_us)
        if ticks is None:
            return []
        for event in events:
            try:
                ticks += self._event(event, venue_us, receive_us)
            except BadFrame as error:
                # Its number is taken, so nobody will miss it: what it spoke of is no longer known.
                self.counts.count_bad(error.reason)
                ticks += self._refused(event, receive_us)
        if message.channel == "heartbeats":
            self.counts.heartbeats += 1
            ticks.append(self._status(StatusKind.ALIVE, receive_us))
        return ticks

    def _parse(self, message: Message) -> "list[ParsedBook | TickerEvent | ParsedTrade]":
        if message.channel == "l2_data":
            return [self._parse_book(event) for event in BOOK.decode(message.events)]
        if message.channel == "ticker" and self.quotes_from == "ticker":
            return list(TICKERS.decode(message.events))
        if message.channel == "market_trades":
            rows = [row for event in TRADES.decode(message.events) for row in event.trades]
            # The newest comes first.
            trades = [_parse_trade(row) for row in rows]
            trades.sort(key=lambda trade: trade.number)
            return [*trades]
        return []

    def _parse_book(self, event: BookEvent) -> "ParsedBook":
        if event.type not in ("snapshot", "update"):
            raise BadFrame("wrong_type")
        bids: list[Level] = []
        asks: list[Level] = []
        for update in event.updates:
            if update.side not in ("bid", "offer"):
                raise BadFrame("wrong_type")
            (bids if update.side == "bid" else asks).append(level(update.price_level, update.new_quantity))
        return ParsedBook(event.product_id, event.type == "snapshot", bids, asks)

    def _count(self, sequence: int, receive_us: int) -> list[Tick] | None:
        """What to tell before this message's own ticks; None for a message that was here before."""
        expected, self._next = self._next, sequence + 1
        if expected is None or sequence == expected:
            return []
        if sequence < expected:
            self._next = expected
            self.counts.repeats += 1
            return None
        self.counts.gaps += 1
        self._broken_books.update(self.books)
        self.books.clear()
        self._tops.clear()
        self._requests += [*self._sends("unsubscribe"), *self._sends("subscribe")]
        return [self._status(StatusKind.GAP, receive_us, detail=f"{sequence - expected} messages")]

    def _event(self, event: "ParsedBook | TickerEvent | ParsedTrade", venue_us: int, receive_us: int) -> list[Tick]:
        if isinstance(event, ParsedBook):
            return self._book(event, venue_us, receive_us)
        if isinstance(event, ParsedTrade):
            return self._trade(event, receive_us)
        ticks: list[Tick] = []
        for ticker in event.tickers:
            symbol = self._ours(ticker.product_id)
            if symbol is not None:
                bid = level(ticker.best_bid, ticker.best_bid_quantity)
                ask = level(ticker.best_ask, ticker.best_ask_quantity)
                ticks.append(self.guard.quote(symbol, self.venue, *bid, *ask, venue_us, receive_us))
        return ticks

    def _refused(self, event: "ParsedBook | TickerEvent | ParsedTrade", receive_us: int) -> list[Tick]:
        if isinstance(event, ParsedTrade):
            symbol = self._ours(event.product)
            return [] if symbol is None else [self._status(StatusKind.TRADE_GAP, receive_us, symbol, "a bad trade")]
        if isinstance(event, ParsedBook):
            symbol = self._ours(event.product)
            return [] if symbol is None else self._again(symbol, receive_us, "a bad update")
        symbols = [symbol for one in event.tickers if (symbol := self._ours(one.product_id)) is not None]
        self.counts.gaps += len(symbols)
        return [self._status(StatusKind.GAP, receive_us, symbol, "a quote that can't be read") for symbol in symbols]

    def _again(self, symbol: str, receive_us: int, why: str) -> list[Tick]:
        """Give a book up and ask for everything anew."""
        self._broken_books.add(symbol)
        self._requests += [*self._sends("unsubscribe"), *self._sends("subscribe")]
        return self._broken(symbol, receive_us, why)

    def _book(self, event: "ParsedBook", venue_us: int, receive_us: int) -> list[Tick]:
        symbol = self._ours(event.product)
        if symbol is None:
            return []
        book = self.books.get(symbol)
        if event.is_snapshot:
            book = Levels(event.bids, event.asks)
            if book.crossed:
                raise BadFrame("crossed_snapshot")
            ticks = self._replace(symbol, book, venue_us, receive_us)
            if symbol in self._broken_books:
                self._broken_books.discard(symbol)
                self.counts.resubscribes += 1
                ticks.append(self._status(StatusKind.RESUBSCRIBED, receive_us, symbol))
            return ticks
        if book is None:
            self.counts.repeats += 1  # of a book that we gave up; its snapshot is on its way
            return []
        if not self._apply_levels(book, event.bids, event.asks):
            return self._again(symbol, receive_us, "not a possible book")
        return self._changed(symbol, event.bids, event.asks, venue_us, receive_us)

    def _trade(self, trade: "ParsedTrade", receive_us: int) -> list[Tick]:
        symbol = self._ours(trade.product)
        if symbol is None:
            return []
        last = self._last_trade.get(symbol, 0)
        if trade.number <= last:
            self.counts.repeats += 1
            return []
        self._last_trade[symbol] = trade.number
        ticks: list[Tick] = []
        if last and trade.number != last + 1:
            self.counts.gaps += 1
            ticks.append(self._status(StatusKind.TRADE_GAP, receive_us, symbol, f"{trade.number - last - 1} trades"))
        numbers = trade.price_e9, trade.size_e9, trade.venue_us, receive_us
        ticks.append(self.guard.trade(symbol, self.venue, *numbers, str(trade.number), aggressor=trade.aggressor))
        return ticks


class ParsedBook(Struct, frozen=True, gc=False):
    product: str
    is_snapshot: bool
    bids: list[Level]
    asks: list[Level]


class ParsedTrade(Struct, frozen=True, gc=False):
    product: str
    number: int
    price_e9: int
    size_e9: int
    venue_us: int
    aggressor: str


def _parse_trade(row: TradeRow) -> ParsedTrade:
    if not (row.trade_id.isascii() and row.trade_id.isdigit() and len(row.trade_id) < 19):
        raise BadFrame("no_trade_id")
    # `side` is the resting order's; the aggressor's is the other.
    aggressor = {"SELL": "buy", "BUY": "sell"}.get(row.side, "")
    number = int(row.trade_id)
    return ParsedTrade(row.product_id, number, price_of(row.price), size_of(row.size), _us(row.time), aggressor)


def _us(time: datetime | None) -> int:
    return 0 if time is None or time.tzinfo is None else (time - EPOCH) // MICROSECOND
