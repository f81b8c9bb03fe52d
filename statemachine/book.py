"""One side of an order book: price levels in order of price, orders within a level in order of time."""

from bisect import bisect_left, insort

from statemachine.order import Level, Order


class BookSide:
    """The resting orders of one side.

    sign: 1 for bids, -1 for asks. A level's rank is its price times the sign, so that on both sides the
    best price has the highest rank and stands at the end of `ranks`, where lists are quick.
    """

    __slots__ = ("levels", "ranks", "sign")

    def __init__(self, sign: int) -> None:
        self.sign = sign
        self.ranks: list[int] = []
        self.levels: dict[int, Level] = {}

    def append(self, order: Order) -> None:
        """Put an order behind all others of its price."""
        rank = order.price_ticks * self.sign
        level = self.levels.get(rank)
        if level is None:
            level = Level(rank)
            self.levels[rank] = level
            ranks = self.ranks
            if not ranks or rank > ranks[-1]:
                ranks.append(rank)
            else:
                insort(ranks, rank)
        newest = level.newest
        if newest is None:
            level.oldest = order
        else:
            newest.newer = order
            order.older = newest
        level.newest = order
        level.count += 1
        level.lots += order.leaves_lots
        order.level = level

    def remove(self, order: Order, level: Level) -> None:
        """Take an order out of the level that it stands in."""
        older = order.older
        newer = order.newer
        if older is None:
            level.oldest = newer
        else:
            older.newer = newer
            order.older = None
        if newer is None:
            level.newest = older
        else:
            newer.older = older
            order.newer = None
        level.count -= 1
        level.lots -= order.leaves_lots
        order.level = None
        if level.oldest is None:
            ranks = self.ranks
            rank = level.rank
            del self.levels[rank]
            if ranks[-1] == rank:
                ranks.pop()
            else:
                del ranks[bisect_left(ranks, rank)]

    def best(self, depth: int) -> list[tuple[int, int, int]]:
        """(price_ticks, lots, orders) of the best `depth` levels, the best first."""
        levels = self.levels
        sign = self.sign
        found = []
        for rank in reversed(self.ranks[-depth:] if depth > 0 else []):
            level = levels[rank]
            found.append((rank * sign, level.lots, level.count))
        return found
