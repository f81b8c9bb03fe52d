"""Each channel's updates: objects with decimal text in JSON, arrays with whole numbers of 1e-9 in msgpack.

msgpack: [code of the channel, then what the array's own struct says (gateway/feeds/ticks.py, market/*.py)].
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

from gateway.fanout.fragment import JSON, Fragment
from gateway.fanout.topics import CHANNELS, Key
from gateway.feeds.ticks import BookDiff, Level, Quote, Trade, decimal_text
from gateway.market.books import BookView
from gateway.market.candles import Candle
from gateway.market.nbbo import Nbbo

text = lru_cache(maxsize=65_536)(decimal_text)
"""Prices and sizes repeat: a look-up costs a tenth of the division."""


def nbbo(found: Nbbo) -> Fragment:
    return Fragment(partial(_nbbo, found), found.as_of_us)


def _nbbo(found: Nbbo, formats: int) -> Any:
    if formats != JSON:
        return 2, found
    return {
        "channel": "nbbo",
        "symbol": found.symbol,
        "bid": text(found.bid_e9),
        "bid_size": text(found.bid_size_e9),
        "bid_venue": found.bid_venue,
        "ask": text(found.ask_e9),
        "ask_size": text(found.ask_size_e9),
        "ask_venue": found.ask_venue,
        "as_of_us": found.as_of_us,
        "crossed": found.crossed,
        "locked": found.locked,
        "stale": found.stale,
    }


def quotes(symbol: str, now: Callable[[], Sequence[Quote]], born_us: int) -> Fragment:
    """now: the trusted quotes of all venues, read when the first reader is served."""

    def make(formats: int) -> Any:
        found = now()
        if formats != JSON:
            return 1, symbol, found
        return {
            "channel": "quotes",
            "symbol": symbol,
            "quotes": [
                {
                    "venue": one.venue,
                    "bid": text(one.bid_e9),
                    "bid_size": text(one.bid_size_e9),
                    "ask": text(one.ask_e9),
                    "ask_size": text(one.ask_size_e9),
                    "venue_us": one.venue_us,
                    "receive_us": one.receive_us,
                }
                for one in found
            ],
        }

    return Fragment(make, born_us)


def trades(symbol: str, found: Sequence[Trade]) -> Fragment:
    """All trades of a symbol in one tick."""

    def make(formats: int) -> Any:
        if formats != JSON:
            return 3, symbol, found
        return {
            "channel": "trades",
            "symbol": symbol,
            "trades": [
                {
                    "venue": one.venue,
                    "price": text(one.price_e9),
                    "size": text(one.size_e9),
                    "trade_id": one.trade_id,
                    "eligible": one.eligible,
                    "aggressor": one.aggressor,
                    "venue_us": one.venue_us,
                    "receive_us": one.receive_us,
                    "marks": one.marks,
                }
                for one in found
            ],
        }

    return Fragment(make, found[0].receive_us)


def candles(symbol: str, interval: str, now: Callable[[], Sequence[Candle]], born_us: int) -> Fragment:
    """now: the newest bars, oldest first; the last closed one among them, so that conflation does not lose its end."""
    channel = CHANNELS[f"candles.{interval}"]

    def make(formats: int) -> Any:
        found = now()
        if formats != JSON:
            return channel.code, symbol, found
        return {
            "channel": channel.name,
            "symbol": symbol,
            "bars": [
                {
                    "start_us": one.start_us,
                    "open": text(one.open_e9),
                    "high": text(one.high_e9),
                    "low": text(one.low_e9),
                    "close": text(one.close_e9),
                    "volume": text(one.volume_e9),
                    "trades": one.trades,
                    "vwap": text(one.vwap_e9),
                    "closed": one.closed,
                }
                for one in found
            ],
        }

    return Fragment(make, born_us)


def _levels(levels: Sequence[Level]) -> list[tuple[str, str]]:
    return [(text(price_e9), text(size_e9)) for price_e9, size_e9 in levels]


def book(found: BookView, channel: str) -> Fragment:
    """A whole book, of `book` (then its diffs follow) or of `book_top`."""
    code = CHANNELS[channel].code

    def make(formats: int) -> Any:
        if formats != JSON:
            return code, "snapshot", found
        return {
            "channel": channel,
            "type": "snapshot",
            "symbol": found.symbol,
            "venue": found.venue,
            "seq": found.seq,
            "bids": _levels(found.bids),
            "asks": _levels(found.asks),
            "venue_us": found.venue_us,
            "checksum": found.checksum,
        }

    return Fragment(make, found.receive_us)


def merged(diffs: Sequence[BookDiff]) -> Fragment:
    """Diffs of one book in a row as one: from the first's seq to the last's. Sizes are absolute, so the newest wins."""
    first, last = diffs[0], diffs[-1]
    bids: dict[int, int] = {}
    asks: dict[int, int] = {}
    for diff in diffs:
        bids.update(diff.bids)
        asks.update(diff.asks)

    def make(formats: int) -> Any:
        if formats != JSON:
            return (
                7, "diff", first.symbol, first.venue, first.seq, last.seq, list(bids.items()), list(asks.items()),
                last.venue_us,
            )  # fmt: skip
        return {
            "channel": "book",
            "type": "diff",
            "symbol": first.symbol,
            "venue": first.venue,
            "first_seq": first.seq,
            "seq": last.seq,
            "bids": _levels(list(bids.items())),
            "asks": _levels(list(asks.items())),
            "venue_us": last.venue_us,
        }

    return Fragment(make, last.receive_us)


def broken(key: Key) -> Fragment:
    """A book that missed something at its venue: what is shown of it can't be trusted until a snapshot comes."""
    symbol, _, venue = key[1].rpartition("@")
    channel = CHANNELS[key[0]]

    def make(formats: int) -> Any:
        if formats != JSON:
            return channel.code, "broken", symbol, venue
        return {"channel": channel.name, "type": "broken", "symbol": symbol, "venue": venue}

    return Fragment(make)


def plain(channel: str, symbol: str, value: Any, born_us: int = 0) -> Fragment:
    """For views that others make: what JSON encodes is a member named after the channel; it is a map in msgpack too."""
    found = CHANNELS[channel]

    def make(formats: int) -> Any:
        if formats != JSON:
            return found.code, symbol, value
        return {"channel": channel, "symbol": symbol, channel: value}

    return Fragment(make, born_us)
