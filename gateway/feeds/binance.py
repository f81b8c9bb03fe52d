"""Binance spot: combined streams of depth diffs, best bid and ask, and trades; snapshots by HTTP.

Diffs are numbered U to u. Those with u up to the snapshot's number are dropped, the first applied has
U <= number + 1 <= u, and from there each U is the previous u + 1.
"""

from collections import deque
from collections.abc import Iterable

import msgspec
from msgspec import Raw, Struct

from gateway.feeds.book_handler import BookHandler, level, price_of, size_of
from gateway.feeds.guard import BadFrame
from gateway.feeds.handler import Fetch, Number, Request, Send
from gateway.feeds.levels import Levels
from gateway.feeds.ticks import RECEIVE_TIME, Level, StatusKind, Tick

WAITING_MAX = 2_000
"""Diffs kept while a snapshot is on its way: 200 s of them."""
SNAPSHOT_URL = "https://api.binance.com/api/v3/depth?symbol={symbol}&limit=1000"
SYMBOLS_MAX = 341
"""Of one connection: Binance allows 1,024 streams, and we take three a symbol."""
WEBSOCKET_URL = "wss://stream.binance.com:9443/stream"


class Envelope(Struct):
    stream: str = ""
    data: Raw = Raw()


class Diff(Struct):
    s: str
    E: Number
    U: Number
    u: Number
    b: list[tuple[str, str]]
    a: list[tuple[str, str]]


class Ticker(Struct):
    s: str
    u: Number
    b: str
    B: str
    a: str
    A: str


class TradeMessage(Struct):
    """A trade (id in `t`) or an aggregate of one order's trades (id in `a`)."""

    s: str
    p: str
    q: str
    T: Number
    m: bool
    t: Number | None = None
    a: Number | None = None


class Snapshot(Struct):
    lastUpdateId: Number
    bids: list[tuple[str, str]]
    asks: list[tuple[str, str]]


ENVELOPE = msgspec.json.Decoder(Envelope)
DIFF = msgspec.json.Decoder(Diff)
TICKER = msgspec.json.Decoder(Ticker)
TRADE = msgspec.json.Decoder(TradeMessage)
SNAPSHOT = msgspec.json.Decoder(Snapshot)


class Parsed(Struct, frozen=True, gc=False):
    """A diff whose numbers were checked."""

    first: int
    last: int
    bids: list[Level]
    asks: list[Level]
    venue_us: int


class Binance(BookHandler):
    """Quotes come from bookTicker (at once, without a venue time), or from the books (every 100 ms)."""

    idle_ms = 60_000  # it sends no heartbeats, and symbols that nobody trades change once in a while

    def __init__(
        self, symbols: Iterable[tuple[str, str]] | None, *, venue: str = "binance", quotes_from: str = "ticker"
    ) -> None:
        """Raises ValueError for more symbols than a connection may have."""
        super().__init__(venue, symbols, quotes_from=quotes_from)
        if len(self.symbols or ()) > SYMBOLS_MAX:
            raise ValueError(f"{len(self.symbols or ())} symbols: a connection takes {SYMBOLS_MAX}; use several feeds")
        self.reset()

    def reset(self) -> None:
        super().reset()
        self._last: dict[str, int] = {}
        self._waiting: dict[str, deque[Parsed]] = {}
        self._ticker: dict[str, int] = {}
        self._trade: dict[str, int] = getattr(self, "_trade", {})

    def _subscribe(self) -> list[Request]:
        kinds = ("depth@100ms", "bookTicker", "trade")
        streams = [f'"{symbol.lower()}@{kind}"' for symbol in self.symbols or () for kind in kinds]
        return [Send(f'{{"method":"SUBSCRIBE","params":[{",".join(streams)}],"id":1}}')]

    def _feed(self, frame: bytes, receive_us: int) -> list[Tick]:
        envelope = ENVELOPE.decode(frame)
        _, _, kind = envelope.stream.partition("@")
        if kind.startswith("depth"):
            return self._diff(DIFF.decode(envelope.data), receive_us)
        if kind == "bookTicker":
            return self._ticker_frame(envelope, receive_us)
        if kind in ("trade", "aggTrade"):
            return self._trades(TRADE.decode(envelope.data), receive_us)
        return []  # an answer to our subscription, or a stream that we don't read

    def _ticker_frame(self, envelope: Envelope, receive_us: int) -> list[Tick]:
        try:
            return self._quote(TICKER.decode(envelope.data), receive_us)
        except (BadFrame, msgspec.MsgspecError) as error:
            # The symbol has another price now, and we don't know it.
            symbol = self._ours(envelope.stream.partition("@")[0].upper())
            if symbol is None or self.quotes_from != "ticker":
                raise
            self.counts.count_bad(error.reason if isinstance(error, BadFrame) else "wrong_type")
            self.counts.gaps += 1
            return [self._status(StatusKind.GAP, receive_us, symbol, "a quote that can't be read")]

    def _lost(self, reason: str, receive_us: int) -> list[Tick]:
        """Quotes have no numbers: what can't be read at all may have been any symbol's."""
        if self.quotes_from != "ticker" or reason not in ("garbage", "too_deep", "too_large"):
            return []
        self.counts.gaps += 1
        return [self._status(StatusKind.GAP, receive_us, detail="a frame that can't be read")]

    def _quote(self, ticker: Ticker, receive_us: int) -> list[Tick]:
        symbol = self._ours(ticker.s)
        if symbol is None or self.quotes_from != "ticker":
            return []
        if ticker.u <= self._ticker.get(symbol, 0):
            self.counts.repeats += 1
            return []
        bid, ask = level(ticker.b, ticker.B), level(ticker.a, ticker.A)
        quote = self.guard.quote(symbol, self.venue, *bid, *ask, 0, receive_us, RECEIVE_TIME)
        self._ticker[symbol] = ticker.u
        return [quote]

    def _trades(self, trade: TradeMessage, receive_us: int) -> list[Tick]:
        symbol = self._ours(trade.s)
        number = trade.a if trade.t is None else trade.t
        if symbol is None:
            return []
        if number is None:
            raise BadFrame("no_trade_id")
        ticks: list[Tick] = []
        last = self._trade.get(symbol, 0)
        if number <= last:
            self.counts.repeats += 1
            return []
        aggressor = "sell" if trade.m else "buy"
        tick = self.guard.trade(
            symbol, self.venue, price_of(trade.p), size_of(trade.q), trade.T * 1000, receive_us, str(number),
            aggressor=aggressor,
        )  # fmt: skip
        if last and number != last + 1:
            self.counts.gaps += 1
            ticks.append(self._status(StatusKind.TRADE_GAP, receive_us, symbol, f"{number - last - 1} trades"))
        self._trade[symbol] = number
        ticks.append(tick)
        return ticks

    def _diff(self, diff: Diff, receive_us: int) -> list[Tick]:
        symbol = self._ours(diff.s)
        if symbol is None:
            return []
        bids, asks = [level(*one) for one in diff.b], [level(*one) for one in diff.a]
        if not 0 < diff.U <= diff.u:
            raise BadFrame("bad_sequence")
        parsed = Parsed(diff.U, diff.u, bids, asks, diff.E * 1000)
        ticks: list[Tick] = []
        book, last = self.books.get(symbol), self._last.get(symbol, 0)
        # After a snapshot a diff may reach back behind it; sizes are absolute, so applying that again does no harm.
        if book is not None and parsed.first <= last + 1 <= parsed.last:
            return self._apply(symbol, book, parsed, receive_us)
        if book is not None and parsed.last <= last:
            self.counts.repeats += 1
            return []
        if book is not None:
            ticks = self._broken(symbol, receive_us, f"{parsed.first - last - 1} updates")
        waiting = self._waiting.get(symbol)
        if waiting is None:
            waiting = self._waiting[symbol] = deque(maxlen=WAITING_MAX)
            self._ask(diff.s)
        waiting.append(parsed)
        return ticks

    def _apply(self, symbol: str, book: Levels, diff: Parsed, receive_us: int) -> list[Tick]:
        self._last[symbol] = diff.last
        if not self._apply_levels(book, diff.bids, diff.asks):
            self._waiting[symbol] = deque(maxlen=WAITING_MAX)
            self._ask(self._theirs(symbol))
            return self._broken(symbol, receive_us, "not a possible book")
        return self._changed(symbol, diff.bids, diff.asks, diff.venue_us, receive_us)

    def _fetched(self, key: str, body: bytes, receive_us: int) -> list[Tick]:
        """A snapshot; key: the venue's symbol."""
        snapshot = SNAPSHOT.decode(body)
        symbol = self._ours(key)
        if symbol is None:
            return []
        bids, asks = [level(*one) for one in snapshot.bids], [level(*one) for one in snapshot.asks]
        book, last, venue_us = Levels(bids, asks), snapshot.lastUpdateId, 0
        waiting = self._waiting.pop(symbol, ())
        newer = [diff for diff in waiting if diff.last > last]
        for diff in newer:
            if diff.first > last + 1:
                # Older than the diffs that we hold, or a diff was lost while we waited: ask again.
                self._waiting[symbol] = deque(newer, WAITING_MAX)
                self._ask(key)
                return []
            book.apply(diff.bids, diff.asks)
            last, venue_us = diff.last, diff.venue_us
        if book.crossed:
            self._ask(key)
            raise BadFrame("crossed_snapshot")
        again = symbol in self._last
        self._last[symbol] = last
        ticks = self._replace(symbol, book, venue_us, receive_us)
        if again:
            self.counts.resubscribes += 1
            ticks.append(self._status(StatusKind.RESUBSCRIBED, receive_us, symbol))
        return ticks

    def _ask(self, symbol: str) -> None:
        self._requests.append(Fetch(SNAPSHOT_URL.format(symbol=symbol), symbol))

    def _theirs(self, symbol: str) -> str:
        return next((theirs for theirs, ours in (self.symbols or {}).items() if ours == symbol), symbol)
