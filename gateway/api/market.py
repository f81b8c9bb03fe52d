"""/v1/market: quotes, NBBO, trades, candles and books of all venues, from this gateway's memory."""

from collections.abc import Iterable
from typing import Any

from aiohttp import web

from gateway.api import context
from gateway.api.context import CORE, METRICS, Age, rfc3339
from gateway.api.errors import BookNotFound, BookNotWhole, SymbolNotFound
from gateway.core import Core
from gateway.feeds.ticks import SUSPECT, BookDiff, Level, Quote, Trade, decimal_text
from gateway.market.candles import INTERVALS_US, Candle
from gateway.market.nbbo import Nbbo
from gateway.projection.books import VENUE
from node.errors import InvalidField

SYMBOLS_MAX = 200
BARS_MAX = 1_000
DEPTH_MAX = 1_000
TRADES_MAX = 100
SECOND = "public, max-age=1"
CLOSED = "public, max-age=3600"
"""A closed bar never changes."""
Row = dict[str, Any]


def known(core: Core, symbol: str) -> bool:
    """Whether anybody quoted or traded it, or it is an instrument of ours."""
    market = core.market
    return (
        market.nbbo.at(symbol, market.clock()) is not None
        or symbol in core.accounts.instruments
        or bool(market.tape.recent(symbol, 1))
    )


def quote_row(core: Core, symbol: str) -> Row | None:
    """The newest that is known, marked when it can't be trusted; None: nobody knows the symbol."""
    if not known(core, symbol):
        return None
    market = core.market
    now_us = market.clock()
    best = market.nbbo.last(symbol, now_us)
    last = market.tape.last(symbol)
    as_of_us = best.as_of_us if best is not None and (best.bid_e9 or best.ask_e9) else last.receive_us if last else 0
    stale = best is None or best.stale or not (best.bid_e9 or best.ask_e9) or now_us - as_of_us > market.nbbo.ttl_us
    return {
        "symbol": symbol,
        **_sides(best),
        "last": decimal_text(last.price_e9) if last else None,
        "last_size": decimal_text(last.size_e9) if last else None,
        "last_venue": last.venue if last else None,
        "last_at": rfc3339(last.venue_us) if last else None,
        "as_of": rfc3339(as_of_us) if as_of_us else None,
        "staleness_ms": max(0, (now_us - as_of_us) // 1000) if as_of_us else -1,
        "stale": stale,
    }


def _sides(best: Nbbo | None) -> Row:
    found: Row = {}
    for side, price_e9, size_e9, venue in (
        ("bid", best.bid_e9, best.bid_size_e9, best.bid_venue) if best else ("bid", 0, 0, ""),
        ("ask", best.ask_e9, best.ask_size_e9, best.ask_venue) if best else ("ask", 0, 0, ""),
    ):
        found[side] = decimal_text(price_e9) if price_e9 else None
        found[f"{side}_size"] = decimal_text(size_e9) if price_e9 else None
        found[f"{side}_venue"] = venue or None
    return found | {"crossed": bool(best and best.crossed), "locked": bool(best and best.locked)}


def _symbols(request: web.Request) -> list[str]:
    given = request.query.get("symbols") or request.query.get("symbol") or ""
    names = list(dict.fromkeys(name for name in given.split(",") if name))
    if not names or len(names) > SYMBOLS_MAX or any(len(name) > context.SYMBOL_CHARS_MAX for name in names):
        raise InvalidField(f"name 1 to {SYMBOLS_MAX} symbols: symbols=AAPL,MSFT", field="symbols")
    return names


def _age_of(rows: Iterable[Row], as_of: Iterable[int]) -> Age:
    """The oldest decides: no row is older than what the header says."""
    return Age(min(as_of, default=0))


async def quotes(request: web.Request) -> web.Response:
    """Best bid, ask and last price of each symbol. Unknown ones are named; when all are unknown, it is a 404."""
    context.only(request, "symbols", "symbol")
    return await _quotes(request, with_venues=False)


async def nbbo(request: web.Request) -> web.Response:
    """As quotes, with the trusted quotes of each venue."""
    context.only(request, "symbols", "symbol")
    return await _quotes(request, with_venues=True)


async def _quotes(request: web.Request, *, with_venues: bool) -> web.Response:
    core = request.app[CORE]
    rows: list[Row] = []
    unknown: list[str] = []
    oldest_ms = 0
    symbols = _symbols(request)
    await core.quotes.recall(symbols)
    for symbol in symbols:
        row = quote_row(core, symbol)
        request.app[METRICS].read("quotes", "miss" if row is None else "stale" if row["stale"] else "hit")
        if row is None:
            unknown.append(symbol)
            continue
        if with_venues:
            row["venues"] = [_venue(one) for one in core.market.nbbo.quotes(symbol, core.market.clock())]
        oldest_ms = -1 if -1 in (oldest_ms, row["staleness_ms"]) else max(oldest_ms, row["staleness_ms"])
        rows.append(row)
    if not rows:
        raise SymbolNotFound(f"nothing is known of {', '.join(unknown)[:200]}", field="symbols")
    age = Age(context.now_us() - oldest_ms * 1000) if oldest_ms >= 0 else Age(0)
    return context.respond(request, {"items": rows, "unknown": unknown}, age, cache=SECOND)


def _venue(one: Quote) -> Row:
    return {
        "venue": one.venue,
        "bid": decimal_text(one.bid_e9) if one.bid_e9 else None,
        "bid_size": decimal_text(one.bid_size_e9),
        "ask": decimal_text(one.ask_e9) if one.ask_e9 else None,
        "ask_size": decimal_text(one.ask_size_e9),
        "venue_at": rfc3339(one.venue_us),
        "received_at": rfc3339(one.receive_us),
    }


async def trades(request: web.Request) -> web.Response:
    """The newest trades of a symbol at all venues, the newest first."""
    context.only(request, "symbol", "limit")
    core, symbol = request.app[CORE], context.symbol_of(request)
    limit = context.whole(request, "limit", TRADES_MAX, 1, TRADES_MAX)
    _require(core, symbol)
    found = core.market.tape.recent(symbol, limit)
    age = _heard(core, {one.venue for one in found})
    return context.respond(request, {"items": [_trade(one) for one in reversed(found)]}, age, cache=SECOND)


def _trade(one: Trade) -> Row:
    return {
        "symbol": one.symbol,
        "venue": one.venue,
        "price": decimal_text(one.price_e9),
        "size": decimal_text(one.size_e9),
        "at": rfc3339(one.venue_us),
        "trade_id": one.trade_id,
        "aggressor": one.aggressor or None,
        "eligible": one.eligible,
        "suspect": bool(one.marks & SUSPECT),
    }


def _heard(core: Core, venues: set[str]) -> Age:
    """When the venues that say something of this were last heard; the one heard longest ago decides."""
    heard = core.market.nbbo.venues()
    return Age(min((heard[venue] for venue in venues if venue in heard), default=max(heard.values(), default=0)))


def _require(core: Core, symbol: str) -> None:
    if not known(core, symbol):
        raise SymbolNotFound(f"nothing is known of {symbol!r}", field="symbol")


async def candles(request: web.Request) -> web.Response:
    """Bars from `start` on, oldest first, or the newest; page on with next_page_token."""
    context.only(request, "symbol", "interval", "start", "end", "limit", "page_token")
    core, symbol = request.app[CORE], context.symbol_of(request)
    interval = context.word(request, "interval", INTERVALS_US, "1m")
    limit = context.whole(request, "limit", 100, 1, BARS_MAX)
    _require(core, symbol)
    market = core.market
    now_us = market.clock()
    market.candles.advance(now_us)
    end_us = context.moment_us(request, "end", 1 << 62)
    newest = "start" not in request.query and "page_token" not in request.query
    begin_us = (min(now_us, end_us) // INTERVALS_US[interval] - limit + 1) * INTERVALS_US[interval] if newest else 0
    start_us = context.whole(request, "page_token", context.moment_us(request, "start", max(0, begin_us)), 0, 1 << 62)
    bars = market.candles.bars(symbol, interval, start_us=start_us, end_us=end_us, limit=limit + 1)
    more, bars = len(bars) > limit, bars[:limit]
    all_closed = bool(bars) and all(bar.closed for bar in bars) and (more or end_us <= now_us)
    body = {"items": [bar_row(bar) for bar in bars], "next_page_token": str(bars[-1].start_us + 1) if more else None}
    age = _heard(core, {one.venue for one in market.tape.recent(symbol)})
    return context.respond(request, body, age, cache=CLOSED if all_closed else SECOND)


def bar_row(bar: Candle) -> Row:
    """Prices are null in a bar without an eligible trade."""
    prices = {"open": bar.open_e9, "high": bar.high_e9, "low": bar.low_e9, "close": bar.close_e9, "vwap": bar.vwap_e9}
    return {
        "symbol": bar.symbol,
        "interval": bar.interval,
        "start": rfc3339(bar.start_us),
        **{name: decimal_text(value) if value else None for name, value in prices.items()},
        "volume": decimal_text(bar.volume_e9),
        "trades": bar.trades,
        "closed": bar.closed,
    }


async def book(request: web.Request) -> web.Response:
    """A book, or with `since` the numbered diffs behind that seq; where these are gone, the book (recovered: false)."""
    context.only(request, "symbol", "venue", "depth", "since")
    core, symbol = request.app[CORE], context.symbol_of(request)
    venue = request.query.get("venue", VENUE)[:40]
    depth = context.whole(request, "depth", 50, 1, DEPTH_MAX)
    since = context.whole(request, "since", -1, 0, 1 << 62)
    books = core.market.books
    age = _heard(core, {venue})
    if since >= 0:
        diffs = books.since(symbol, venue, since)
        if diffs is not None:
            view = books.view(symbol, venue, depth=1)
            body = {
                "type": "diffs",
                "symbol": symbol,
                "venue": venue,
                "seq": diffs[-1].seq if diffs else since,
                "recovered": True,
                "diffs": [_diff(one) for one in diffs],
                "checksum": view.checksum if view is not None else None,
            }
            return context.respond(request, body, age, cache=SECOND)
    found = books.view(symbol, venue, depth=depth)
    if found is None:
        if not known(core, symbol):
            raise SymbolNotFound(f"nothing is known of {symbol!r}", field="symbol")
        if venue == VENUE and symbol in core.accounts.instruments:
            # Listed, and nobody ever had an order in it.
            body = {"type": "snapshot", "symbol": symbol, "venue": venue, "seq": 0, "bids": [], "asks": []}
            return context.respond(request, body | {"recovered": since < 0, "checksum": 0}, age, cache=SECOND)
        whole = ", ".join(books.venues(symbol)) or "none"
        if not books.had(symbol, venue):
            raise BookNotFound(f"{venue!r} gives no book of {symbol!r}; whole ones: {whole}", field="venue")
        raise BookNotWhole(f"there is no whole book of {symbol!r} at {venue!r} now; whole ones: {whole}")
    body = {
        "type": "snapshot",
        "symbol": symbol,
        "venue": venue,
        "seq": found.seq,
        "recovered": since < 0,
        "bids": _levels(found.bids),
        "asks": _levels(found.asks),
        "at": rfc3339(found.venue_us),
        "checksum": found.checksum,
    }
    return context.respond(request, body, age, cache=SECOND)


def _levels(levels: Iterable[Level]) -> list[tuple[str, str]]:
    return [(decimal_text(price_e9), decimal_text(size_e9)) for price_e9, size_e9 in levels]


def _diff(one: BookDiff) -> Row:
    return {"seq": one.seq, "bids": _levels(one.bids), "asks": _levels(one.asks), "at": rfc3339(one.venue_us)}


ROUTES = [
    web.get("/v1/market/quotes", quotes),
    web.get("/v1/market/nbbo", nbbo),
    web.get("/v1/market/trades", trades),
    web.get("/v1/market/candles", candles),
    web.get("/v1/market/book", book),
]
