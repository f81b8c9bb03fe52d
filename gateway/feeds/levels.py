"""The price levels of one symbol at one venue, kept sorted."""

from bisect import bisect_left, insort
from collections.abc import Iterable

from gateway.feeds.guard import BadFrame
from gateway.feeds.ticks import Level

LEVELS_MAX = 100_000
"""Per side. Coinbase's fullest book has some 40,000."""


class Side:
    """One side: sizes by price, and the prices in ascending order."""

    __slots__ = ("prices", "sizes")

    def __init__(self, levels: Iterable[Level] = ()) -> None:
        """Of a whole snapshot at once: level by level, 40,000 of them would move the list 40,000 times."""
        self.sizes: dict[int, int] = {price_e9: size_e9 for price_e9, size_e9 in levels if size_e9}
        self.prices: list[int] = sorted(self.sizes)
        if len(self.prices) > LEVELS_MAX:
            raise BadFrame("too_many_levels")

    def put(self, price_e9: int, size_e9: int) -> None:
        """Set a level; a size of 0 removes it, and removing what is not there does nothing."""
        if size_e9:
            if price_e9 not in self.sizes:
                if len(self.prices) >= LEVELS_MAX:
                    raise BadFrame("too_many_levels")
                insort(self.prices, price_e9)
            self.sizes[price_e9] = size_e9
        elif price_e9 in self.sizes:
            del self.sizes[price_e9]
            del self.prices[bisect_left(self.prices, price_e9)]


class Levels:
    """Both sides of a book."""

    __slots__ = ("asks", "bids")

    def __init__(self, bids: Iterable[Level] = (), asks: Iterable[Level] = ()) -> None:
        self.bids = Side(bids)
        self.asks = Side(asks)

    def apply(self, bids: Iterable[Level], asks: Iterable[Level]) -> None:
        for price_e9, size_e9 in bids:
            self.bids.put(price_e9, size_e9)
        for price_e9, size_e9 in asks:
            self.asks.put(price_e9, size_e9)

    def truncate(self, depth: int) -> tuple[list[Level], list[Level]]:
        """Drop what lies deeper than `depth` levels; gives the drops as levels of size 0."""
        bids = self.bids.prices[:-depth]
        asks = self.asks.prices[depth:]
        for price_e9 in bids:
            self.bids.put(price_e9, 0)
        for price_e9 in asks:
            self.asks.put(price_e9, 0)
        return [(price_e9, 0) for price_e9 in bids], [(price_e9, 0) for price_e9 in asks]

    def top(self) -> tuple[int, int, int, int]:
        """(bid, bid size, ask, ask size); zeros for a side that is empty."""
        bid_e9 = self.bids.prices[-1] if self.bids.prices else 0
        ask_e9 = self.asks.prices[0] if self.asks.prices else 0
        return bid_e9, self.bids.sizes.get(bid_e9, 0), ask_e9, self.asks.sizes.get(ask_e9, 0)

    def best_bids(self, depth: int | None = None) -> tuple[Level, ...]:
        prices = self.bids.prices if depth is None else self.bids.prices[-depth:]
        return tuple([(price_e9, self.bids.sizes[price_e9]) for price_e9 in reversed(prices)])

    def best_asks(self, depth: int | None = None) -> tuple[Level, ...]:
        prices = self.asks.prices if depth is None else self.asks.prices[:depth]
        return tuple([(price_e9, self.asks.sizes[price_e9]) for price_e9 in prices])

    @property
    def crossed(self) -> bool:
        bids, asks = self.bids.prices, self.asks.prices
        return bool(bids and asks and bids[-1] >= asks[0])
