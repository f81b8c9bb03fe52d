"""What can be subscribed to: the channels, how each may be thinned out, and the name of one topic in it."""

from enum import Enum

from msgspec import Struct


class Kind(Enum):
    """What may happen to an update on its way to a slow reader."""

    newest = "newest"
    """Conflated: the newest wins."""
    every = "every"
    """Never conflated: queued, and the reader is cut when its queue is full. Recovered from a ring."""
    diffs = "diffs"
    """Numbered; a reader that missed one is told to take a snapshot."""


class Channel(Struct, frozen=True):
    """code: names the channel in msgpack. shed: what is left out first under load. owned: the symbol is an account.
    by_venue: the topic is of one venue, `symbol@venue`.
    """

    name: str
    code: int
    kind: Kind = Kind.newest
    shed: bool = False
    owned: bool = False
    by_venue: bool = False
    kept: int = 0
    """How many updates are kept for those who come back."""


CHANNELS = {
    channel.name: channel
    for channel in (
        Channel("quotes", 1),
        Channel("nbbo", 2),
        Channel("trades", 3, Kind.every, kept=20_000),
        Channel("candles.1m", 4, shed=True),
        Channel("candles.5m", 5, shed=True),
        Channel("candles.1h", 6, shed=True),
        Channel("book", 7, Kind.diffs, by_venue=True),
        Channel("book_top", 8, by_venue=True),
        Channel("orders", 9, Kind.every, owned=True, kept=50_000),
        Channel("alerts", 10, Kind.every, owned=True, kept=10_000),
        Channel("leaderboard", 11, shed=True),
        Channel("portfolio", 12, owned=True),
    )
}
"""Codes are in programs that others wrote: add, never renumber."""

SHED = tuple(channel.name for channel in CHANNELS.values() if channel.shed)

Key = tuple[str, str]
"""(channel, symbol); the symbol of a `by_venue` channel is symbol@venue, of an owned one the account."""


def book_key(channel: str, symbol: str, venue: str) -> Key:
    return channel, f"{symbol}@{venue}"
