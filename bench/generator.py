"""Order flow made up from a seed: the same messages on every machine, shaped like a real morning.

A zero-intelligence market: who does what is drawn from fixed tables, the book does the rest. The
tables are fitted by hand to the first trading hour of AAPL on 2012-06-21 (LOBSTER's 50-level sample,
89,796 visible events); `tiebreak bench fit --path FOLDER` prints the same figures for the recording
and for this generator beside each other. What was fitted (recording, then generator):

- per 100 new orders: deletions 92.7 / 94.3, partial cancels 1.1 / 1.2, orders that trade at once 7.4 / 7.7;
- gaps: 25 % under 46 / 45 us, half under 0.49 / 0.49 ms, 10 % over 106 / 107 ms;
- new orders that improve their side 20 / 18 %, that join it 8 / 10 %; for the others
  P(distance >= k cents) = 13 / (12 + k), a power law with exponent 1 (at least 10, 20, 50 and 100
  cents: 64, 40, 21, 9 / 59, 40, 21, 12 %);
- sizes: 100 53 / 53 %, not a round lot 36 / 37 %;
- age of deleted orders: 10 % under 3 / 2 ms, half under 374 / 422 ms, 10 % over 11 / 7 s;
- spread: median 19 / 19 cents, 10 to 90 %: 10 to 31 / 1 to 53; resting orders 314 / 337.

What was not: the day's shape, correlation between events (bursts answer bursts), sides that take turns
in trends, takes that sweep (1.24 / 1.09 orders hit on average). It loads an order book as a market
does; it is no model to trade on.
"""

from collections import deque
from collections.abc import Iterator
from itertools import pairwise

from bench.lobster import ASK, BID, Kind, Message

SIDES = (BID, ASK)
START_NS = 34_200 * 1_000_000_000
CENT = 100
"""One cent in the units of prices."""
START_PRICE = 585 * 10_000
DISTANCE_SCALE = 13
DISTANCE_CENTS_MAX = 600
RESTING_TARGET = 330
FIRST_LEVELS = 50
RECENT_SCALE = 3
FLEETING = 20
"""Percent of deletions that take the newest order of a best level: most orders that improve do not stay."""
ORDERS_KEPT_MIN = 20
"""A side with fewer resting orders is not taken from: a market without one side ends every run."""

# Weights of kinds, per 100,000 new orders; deletions are pulled by the number that rest.
SUBMITS, DELETES, REDUCES, TAKES = 100_000, 92_600, 1_100, 7_430

GAPS_NS = (
    (0, 100), (5, 900), (10, 3_700), (25, 46_000), (50, 491_000), (75, 8_177_000), (90, 106_138_000),
    (95, 245_207_000), (99, 658_149_000), (100, 1_478_234_000),
)  # fmt: skip
"""Quantiles: (percent, nanoseconds)."""
IMPROVES_CENTS = ((0, 1), (30, 1), (50, 2), (75, 5), (95, 15), (100, 20))
SIZES = ((60, 1, 9), (35, 10, 16), (250, 17, 23), (22, 24, 99), (528, 100, 100), (75, 200, 200), (30, 1000, 1000))
"""(weight, lowest, highest)."""
TAKE_SIZES = ((40, 1, 1), (160, 2, 20), (250, 21, 99), (360, 100, 100), (90, 101, 199), (65, 200, 200), (35, 201, 900))
TAKE_HITS = ((83, 1, 1), (13, 2, 2), (3, 3, 4), (1, 5, 9))
"""Most resting orders that one take hits: takers look before they take."""
IMPROVES, JOINS, DEEPER = 20, 8, 72


class Random:
    """SplitMix64: whole numbers only, the same everywhere and for ever."""

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        self._state = seed & 0xFFFF_FFFF_FFFF_FFFF

    def bits(self) -> int:
        """The next 64 bits."""
        self._state = (self._state + 0x9E37_79B9_7F4A_7C15) & 0xFFFF_FFFF_FFFF_FFFF
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58_476D_1CE4_E5B9) & 0xFFFF_FFFF_FFFF_FFFF
        z = ((z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB) & 0xFFFF_FFFF_FFFF_FFFF
        return z ^ (z >> 31)

    def below(self, bound: int) -> int:
        """A number from 0 to bound - 1."""
        return self.bits() * bound >> 64

    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)

    def weighted(self, weights: tuple[int, ...]) -> int:
        """The number of the entry drawn."""
        draw = self.below(sum(weights))
        for number, weight in enumerate(weights):
            draw -= weight
            if draw < 0:
                return number
        raise AssertionError("weights sum to more than they are")

    def quantile(self, table: tuple[tuple[int, int], ...]) -> int:
        """A draw from a table of (percent, value), straight lines between its points."""
        draw = self.below(100_000)
        for (low, at_low), (high, at_high) in pairwise(table):
            if draw < high * 1_000:
                return at_low + (at_high - at_low) * (draw - low * 1_000) // ((high - low) * 1_000)
        return table[-1][1]

    def range(self, table: tuple[tuple[int, int, int], ...]) -> int:
        _, low, high = table[self.weighted(tuple(row[0] for row in table))]
        return self.between(low, high)

    def power_law(self, scale: int) -> int:
        """k >= 0 with P(draw >= k) close to scale / (scale + k)."""
        draw = self.below(1 << 32) + 1
        return scale * ((1 << 32) - draw) // draw


class _Side:
    """One side of the book: orders by price, oldest first."""

    def __init__(self, direction: int) -> None:
        self.direction = direction
        self.levels: dict[int, deque[int]] = {}
        self.best = 0
        self.count = 0

    def add(self, price: int, order_id: int) -> None:
        if price not in self.levels:
            self.levels[price] = deque()
            if not self.best or (price - self.best) * self.direction > 0:
                self.best = price
        self.levels[price].append(order_id)
        self.count += 1

    def remove(self, price: int, order_id: int) -> None:
        level = self.levels[price]
        level.remove(order_id)
        self.count -= 1
        if not level:
            del self.levels[price]
            if price == self.best:
                self.best = (max if self.direction == BID else min)(self.levels, default=0)


class Market:
    """A made-up market. `messages` never ends; take as many as are wanted."""

    def __init__(self, seed: int, *, start_price: int = START_PRICE) -> None:
        self._random = Random(seed)
        self._sides = {direction: _Side(direction) for direction in SIDES}
        self._left: dict[int, int] = {}
        self._where: dict[int, tuple[int, int]] = {}
        self._by_age: list[int] = []
        self._next_id = 1
        self._now_ns = START_NS
        self._start_price = start_price

    def messages(self) -> Iterator[Message]:
        for level in range(1, FIRST_LEVELS + 1):
            for direction in SIDES:
                price = self._start_price - direction * level * level * CENT // 2 // CENT * CENT - direction * 5 * CENT
                yield self._submit(direction, price)
        random = self._random
        while True:
            self._now_ns += random.quantile(GAPS_NS)
            pull = DELETES * len(self._left) // RESTING_TARGET
            match random.weighted((SUBMITS, pull, REDUCES, TAKES)):
                case 0:
                    yield self._submit_somewhere()
                case 1 if len(self._left) > 2 * ORDERS_KEPT_MIN:
                    yield from self._delete()
                case 2:
                    yield from self._reduce()
                case 3:
                    yield from self._take()
                case _:
                    pass

    def _submit(self, direction: int, price: int) -> Message:
        order_id, self._next_id = self._next_id, self._next_id + 1
        size = self._random.range(SIZES)
        self._left[order_id] = size
        self._where[order_id] = (direction, price)
        self._by_age.append(order_id)
        self._sides[direction].add(price, order_id)
        return Message(self._now_ns, Kind.submit, order_id, size, price, direction)

    def _submit_somewhere(self) -> Message:
        random = self._random
        direction = SIDES[random.below(2)]
        best, opposite = self._sides[direction].best, self._sides[-direction].best
        place = random.weighted((IMPROVES, JOINS, DEEPER))
        away = 0
        if place == 0:
            room = (opposite - best) * direction // CENT - 1
            away = -min(room, max(random.quantile(IMPROVES_CENTS), random.below(1 + room // 2)))
        elif place == 2:
            away = min(DISTANCE_CENTS_MAX, 1 + random.power_law(DISTANCE_SCALE))
        return self._submit(direction, max(CENT, best - direction * away * CENT))

    def _pick(self) -> int:
        """A resting order, recent ones first."""
        if self._random.below(100) < FLEETING:
            side = self._sides[SIDES[self._random.below(2)]]
            return side.levels[side.best][-1]
        if len(self._by_age) > 4 * len(self._left):
            self._by_age = [order_id for order_id in self._by_age if order_id in self._left]
        at = len(self._by_age) - 1 - self._random.power_law(RECENT_SCALE)
        while at >= 0:
            if self._by_age[at] in self._left:
                return self._by_age[at]
            at -= 1
        return next(iter(self._left))

    def _forget(self, order_id: int) -> None:
        direction, price = self._where.pop(order_id)
        self._sides[direction].remove(price, order_id)
        del self._left[order_id]

    def _delete(self) -> Iterator[Message]:
        order_id = self._pick()
        direction, price = self._where[order_id]
        if self._sides[direction].count > ORDERS_KEPT_MIN:
            size = self._left[order_id]
            self._forget(order_id)
            yield Message(self._now_ns, Kind.delete, order_id, size, price, direction)

    def _reduce(self) -> Iterator[Message]:
        order_id = self._pick()
        if self._left[order_id] > 1:
            direction, price = self._where[order_id]
            size = self._random.between(1, self._left[order_id] - 1)
            self._left[order_id] -= size
            yield Message(self._now_ns, Kind.reduce, order_id, size, price, direction)

    def _take(self) -> Iterator[Message]:
        side = self._sides[SIDES[self._random.below(2)]]
        left = self._random.range(TAKE_SIZES)
        hits = self._random.range(TAKE_HITS)
        while left and hits and side.count > ORDERS_KEPT_MIN:
            order_id, price = side.levels[side.best][0], side.best
            size = min(left, self._left[order_id])
            left -= size
            hits -= 1
            self._left[order_id] -= size
            if not self._left[order_id]:
                self._forget(order_id)
            yield Message(self._now_ns, Kind.execute, order_id, size, price, side.direction)
