"""Market data on its way to the fan-out: what changed in a tick, given to those topics that someone reads."""

from collections.abc import Callable
from functools import partial

from gateway.fanout import views
from gateway.fanout.fragment import Fragment
from gateway.fanout.hub import Hub
from gateway.fanout.ring import Rings
from gateway.fanout.source import Provider
from gateway.fanout.topics import Key, book_key
from gateway.feeds.ticks import BookDiff, BookSnapshot, Quote, Status, Tick, Trade
from gateway.market.books import BREAKS
from gateway.market.candles import INTERVALS_US
from gateway.market.intake import Changes, MarketData

TOP_LEVELS = 10
SNAPSHOT_LEVELS = 200


class MarketPublisher:
    """take: a sink of ticks, behind MarketData's own. publish: once per tick, with what MarketData says changed.

    Nothing is worked out, and nothing encoded, for a symbol that nobody reads; trades are kept in the ring.
    """

    def __init__(
        self,
        market: MarketData,
        hub: Hub,
        rings: Rings,
        *,
        is_listed: Callable[[str], bool] = lambda _symbol: False,
        book_depth: int = SNAPSHOT_LEVELS,
    ) -> None:
        """is_listed: our own instruments, which exist before anybody quotes them."""
        self.market = market
        self.hub = hub
        self.rings = rings
        self._is_listed = is_listed
        self._depth = book_depth
        self._quoted: dict[str, int] = {}
        self._trades: dict[str, list[Trade]] = {}
        self._diffs: dict[tuple[str, str], list[BookDiff]] = {}
        self._whole: set[tuple[str, str]] = set()
        """Books that were replaced in this tick."""
        self._broken: set[tuple[str, str]] = set()

    def providers(self) -> dict[str, Provider]:
        """For LocalSource."""
        found: dict[str, Provider] = {
            "quotes": self._quotes_now,
            "nbbo": self._nbbo_now,
            "trades": self._no_state,
            "book": self._book_now,
            "book_top": self._top_now,
        }
        for interval in INTERVALS_US:
            found[f"candles.{interval}"] = partial(self._bars_now, interval)
        return found

    # ---- what comes in ----

    def take(self, ticks: list[Tick]) -> None:
        for tick in ticks:
            kind = type(tick)
            if kind is Quote:
                self._quoted[tick.symbol] = tick.receive_us
            elif isinstance(tick, Trade):
                found = self._trades.get(tick.symbol)
                if found is None:
                    self._trades[tick.symbol] = [tick]
                else:
                    found.append(tick)
            elif isinstance(tick, BookDiff):
                self._diffs.setdefault((tick.symbol, tick.venue), []).append(tick)
            elif isinstance(tick, BookSnapshot):
                self._whole.add((tick.symbol, tick.venue))
            elif isinstance(tick, Status) and tick.kind in BREAKS:
                self._break(tick)

    def _break(self, status: Status) -> None:
        for channel, symbol in self.hub.topics:
            if channel in ("book", "book_top"):
                name, _, venue = symbol.rpartition("@")
                if venue == status.venue and status.symbol in ("", name):
                    self._broken.add((name, venue))
                    self._diffs.pop((name, venue), None)

    # ---- what goes out ----

    def publish(self, changes: Changes) -> None:
        hub, topics, now_us = self.hub, self.hub.topics, self.market.clock()
        for found in changes.quotes:
            topic = topics.get(("nbbo", found.symbol))
            if topic is not None:
                hub.publish(topic, views.nbbo(found))
        quoted, self._quoted = self._quoted, {}
        for symbol, receive_us in quoted.items():
            topic = topics.get(("quotes", symbol))
            if topic is not None:
                hub.publish(topic, self._quotes(symbol, receive_us))
        traded = dict.fromkeys((*changes.traded, *(bar.symbol for bar in changes.closed)))
        for interval in INTERVALS_US:
            channel = f"candles.{interval}"
            for symbol in traded:
                topic = topics.get((channel, symbol))
                if topic is not None:
                    hub.publish(topic, self._bars(interval, symbol, now_us))
        trades, self._trades = self._trades, {}
        for symbol, ticks in trades.items():
            key = ("trades", symbol)
            kept = self.rings.append(key, views.trades(symbol, ticks))
            hub.append(key, kept.fragment, kept.seq)
        self._publish_books()

    def _publish_books(self) -> None:
        hub, topics = self.hub, self.hub.topics
        diffs, self._diffs = self._diffs, {}
        whole, self._whole = self._whole, set()
        bad, self._broken = self._broken, set()
        for symbol, venue in bad:
            for channel in ("book", "book_top"):
                key = book_key(channel, symbol, venue)
                if key in topics and (symbol, venue) not in whole:
                    self._tell(key, views.broken(key))
        for symbol, venue in whole:
            for channel in ("book", "book_top"):
                key = book_key(channel, symbol, venue)
                if key in topics:
                    self._tell(key, self._book_or_broken(key))
        for (symbol, venue), row in diffs.items():
            key = book_key("book", symbol, venue)
            if key in topics and (symbol, venue) not in whole:
                # The book has them all, or it is not whole any more: a gap that no status told of.
                is_whole = self.market.books.since(symbol, venue, row[-1].seq) is not None
                hub.diff(key, views.merged(row) if is_whole else views.broken(key))
            top = topics.get(book_key("book_top", symbol, venue))
            if top is not None:
                hub.publish(top, self._book_or_broken(top.key))

    def _book_or_broken(self, key: Key) -> Fragment:
        try:
            return self._book_now(key[1]) if key[0] == "book" else self._top_now(key[1])
        except LookupError:
            return views.broken(key)

    def _tell(self, key: Key, fragment: Fragment) -> None:
        if key[0] == "book":
            self.hub.diff(key, fragment)
        else:
            self.hub.publish(self.hub.topics[key], fragment)

    # ---- the newest state ----

    def _quotes(self, symbol: str, born_us: int) -> Fragment:
        nbbo, clock = self.market.nbbo, self.market.clock
        return views.quotes(symbol, lambda: nbbo.quotes(symbol, clock()), born_us)

    def _bars(self, interval: str, symbol: str, born_us: int) -> Fragment:
        found, width_us, clock = self.market.candles, INTERVALS_US[interval], self.market.clock
        return views.candles(
            symbol, interval, lambda: found.bars(symbol, interval, start_us=clock() - 2 * width_us), born_us
        )

    def _known(self, symbol: str) -> None:
        market = self.market
        is_known = market.nbbo.at(symbol, market.clock()) is not None or market.tape.recent(symbol, 1)
        if not is_known and not self._is_listed(symbol):
            raise LookupError(f"nothing is known of a symbol {symbol!r}")

    def _quotes_now(self, symbol: str) -> Fragment | None:
        self._known(symbol)
        return self._quotes(symbol, self.market.clock())

    def _nbbo_now(self, symbol: str) -> Fragment | None:
        self._known(symbol)
        found = self.market.nbbo.last(symbol, self.market.clock())
        return None if found is None else views.nbbo(found)

    def _no_state(self, symbol: str) -> Fragment | None:
        self._known(symbol)
        return None

    def _bars_now(self, interval: str, symbol: str) -> Fragment | None:
        self._known(symbol)
        return self._bars(interval, symbol, self.market.clock())

    def _book_now(self, symbol: str, *, channel: str = "book", depth: int = 0) -> Fragment:
        name, _, venue = symbol.rpartition("@")
        found = self.market.books.view(name, venue, depth=depth or self._depth)
        if found is None:
            venues = ", ".join(self.market.books.venues(name)) or "none"
            raise LookupError(f"there is no whole book of {name!r} at {venue!r} now; whole ones: {venues}")
        return views.book(found, channel)

    def _top_now(self, symbol: str) -> Fragment:
        return self._book_now(symbol, channel="book_top", depth=TOP_LEVELS)


def changed(market: MarketData, publisher: MarketPublisher, *others: Callable[[Changes], None]) -> Changes:
    """One tick: take what changed, once, and give it to all who want to know."""
    changes = market.changes()
    publisher.publish(changes)
    for hook in others:
        hook(changes)
    return changes
