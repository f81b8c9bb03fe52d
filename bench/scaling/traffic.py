"""Order commands over many accounts and symbols, as batches that a node would put in its log.

50 orders that rest, 46 cancels and 4 takes in 100 commands, the mix of `bench.generator`. It keeps a book of its own,
so that each take hits what rests and each cancel names an open order: nothing is refused. One seed is one traffic.
"""

import random
from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Literal

from bench.scaling.world import HELD_SYMBOLS, Resting, World, distance_cents, price_ticks, resting, symbol_name
from statemachine.codec import Envelope, encode_batch, encode_command
from statemachine.commands import CancelOrder, PlaceOrder
from statemachine.store_fill import account_name
from statemachine.types import OrderType, Side, TimeInForce

Draw = Literal["uniform", "skewed"]
"""skewed: one in five is drawn four times out of five; those are spread evenly over all."""
HOT_EVERY = 5
HOT_SHARE = 0.8
TAKES, CANCELS = 0.04, 0.46
RECENT_SCALE = 3
"""Cancels name recent orders first: P(at least k orders came later) = 3 / (3 + k), as in bench.generator."""
OTHERS_TRIED = 8
"""How often another taker is drawn before a take of one's own order is given up."""


def drawn(draw: float, share: float, count: int, how: Draw) -> int:
    """A number below `count`. draw, share: two independent ones from 0 to 1, 1 excluded."""
    if how == "uniform" or count < HOT_EVERY:
        return int(draw * count)
    hot = -(-count // HOT_EVERY)
    if share < HOT_SHARE:
        return int(draw * hot) * HOT_EVERY
    cold = int(draw * (count - hot))
    return cold // (HOT_EVERY - 1) * HOT_EVERY + cold % (HOT_EVERY - 1) + 1


class _Book:
    """Open orders of one symbol: by price and time on each side, and by age. Those that are gone are skipped."""

    __slots__ = ("ages", "heaps", "levels", "open")

    def __init__(self) -> None:
        self.heaps: dict[Side, list[int]] = {Side.buy: [], Side.sell: []}
        self.levels: dict[tuple[Side, int], deque[Resting]] = {}
        self.ages: list[Resting] = []
        self.open: set[int] = set()

    def add(self, order: Resting) -> None:
        key = order.side, order.price_ticks
        level = self.levels.get(key)
        if level is None:
            level = self.levels[key] = deque()
            heappush(self.heaps[order.side], -key[1] if key[0] is Side.buy else key[1])
        level.append(order)
        self.ages.append(order)
        self.open.add(order.order_id)

    def best(self, side: Side) -> Resting | None:
        """The order that a taker hits first."""
        heap = self.heaps[side]
        while heap:
            level = self.levels[side, abs(heap[0])]
            while level and level[0].order_id not in self.open:
                level.popleft()
            if level:
                return level[0]
            del self.levels[side, abs(heappop(heap))]
        return None

    def recent(self, draw: float) -> Resting | None:
        """An open order, recent ones first."""
        if len(self.ages) > 4 * len(self.open) + 64:
            self.ages = [order for order in self.ages if order.order_id in self.open]
        at = len(self.ages) - 1 - (int(RECENT_SCALE / (1.0 - draw)) - RECENT_SCALE)
        while at >= 0:
            if self.ages[at].order_id in self.open:
                return self.ages[at]
            at -= 1
        return None


class Traffic:
    """Begins where the world stands. An order's number is negative where traffic placed it: its key names it."""

    def __init__(self, world: World, *, accounts: Draw = "uniform", symbols: Draw = "uniform", seed: int = 1) -> None:
        self.world = world
        self.commands = self.placed = self.canceled = self.taken = 0
        self._accounts: Draw = accounts
        self._symbols: Draw = symbols
        self._random = random.Random(f"traffic {seed}").random
        self._books: dict[int, _Book] = {}
        self._now_us = world.start_us
        for order in resting(world):
            self._book(order.symbol).add(order)

    def batches(self, commands: int, batch: int, *, batch_us: int = 1_000) -> Iterator[bytes]:
        """Encoded batches, one every batch_us of the machine's time."""
        left = commands
        while left > 0:
            self._now_us += batch_us
            envelopes = [self._next() for _ in range(min(batch, left))]
            left -= len(envelopes)
            yield encode_batch(self._now_us, envelopes)

    def _next(self) -> Envelope:
        self.commands += 1
        draw = self._random()
        symbol = drawn(self._random(), self._random(), self.world.symbols, self._symbols)
        book = self._book(symbol)
        envelope = None
        if draw < TAKES:
            envelope = self._take(symbol, book)
        elif draw < TAKES + CANCELS:
            envelope = self._cancel(book)
        return envelope or self._place(symbol, book)

    def _book(self, symbol: int) -> _Book:
        book = self._books.get(symbol)
        if book is None:
            book = self._books[symbol] = _Book()
        return book

    def _account(self, symbol: int, side: Side) -> int:
        """Anyone may buy; who sells must hold some."""
        draw, share = self._random(), self._random()
        if side is Side.buy:
            return drawn(draw, share, self.world.accounts, self._accounts)
        group = symbol // HELD_SYMBOLS
        return group + self.world.groups * drawn(draw, share, self.world.holders(group), self._accounts)

    def _place(self, symbol: int, book: _Book) -> Envelope:
        side = Side.buy if self._random() < 0.5 else Side.sell
        price = price_ticks(side, distance_cents(self._random()))
        lots = 1 + int(self._random() * 200)
        order = Resting(-self.commands, self._account(symbol, side), symbol, side, price, lots)
        book.add(order)
        self.placed += 1
        return self._order(order, TimeInForce.gtc)

    def _take(self, symbol: int, book: _Book) -> Envelope | None:
        side = Side.buy if self._random() < 0.5 else Side.sell
        hit = book.best(Side.sell if side is Side.buy else Side.buy)
        if hit is None:
            return None
        for _ in range(OTHERS_TRIED):
            account = self._account(symbol, side)
            if account != hit.account:
                book.open.discard(hit.order_id)
                self.taken += 1
                order = Resting(-self.commands, account, symbol, side, hit.price_ticks, hit.lots)
                return self._order(order, TimeInForce.ioc)
        return None

    def _cancel(self, book: _Book) -> Envelope | None:
        order = book.recent(self._random())
        if order is None:
            return None
        book.open.discard(order.order_id)
        self.canceled += 1
        name = account_name(order.account)
        number = order.order_id
        command = CancelOrder(name, number) if number > 0 else CancelOrder(name, 0, f"t{-number}")
        return Envelope(name, f"t{self.commands}", 0, encode_command(command))

    def _order(self, order: Resting, time_in_force: TimeInForce) -> Envelope:
        name = account_name(order.account)
        command = PlaceOrder(
            name,
            symbol_name(order.symbol),
            order.side,
            OrderType.limit,
            time_in_force,
            order.price_ticks,
            order.lots,
        )
        return Envelope(name, f"t{self.commands}", 0, encode_command(command))
