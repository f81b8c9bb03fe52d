"""Turn recorded messages into what traders would have sent: orders, reductions, cancels and takes.

A recording says what happened to a book; we need what to ask for so that it happens again. An order
that was submitted in the recording is placed by one of the makers; an execution is an immediate-or-
cancel order of a taker at that price and size. Neither side has to know the rules of the other: the
same intents go to the bare machine (`bench.replay`) and through the public API (`bench.stream`).

What the recording does not show has to be adopted: a file of N levels says nothing of orders that
rest deeper, and nothing of who stood in the book before its first line. Such volume is placed as one
order per level, in front of what comes later, as soon as a book row shows it (or, without rows, an
execution proves it). Later messages that name an order never submitted take from it. What must be gone
(a row does not show it, an order enters across it, an execution passes it over) is canceled.
"""

from collections.abc import Iterable, Iterator
from enum import IntEnum
from heapq import heappop, heappush
from typing import NamedTuple

from bench.lobster import ASK, BID, DAY_NS, EMPTY_PRICE, HALTED, NS_PER_S, QUOTING, Kind, Message, Row
from statemachine.types import Mode, Side

TRUSTED_ABSENCE_NS = NS_PER_S

LevelKey = tuple[int, int]
"""(direction, price)."""


class Act(IntEnum):
    place = 1
    """A limit order, good till canceled."""
    reduce = 2
    """A smaller total quantity; the order keeps its place."""
    cancel = 3
    take = 4
    """An immediate-or-cancel order from the other side."""
    mode = 5


class Intent(NamedTuple):
    """One thing to ask for.

    ref: the recording's order id, or a negative number for adopted volume. For a take, the order that
        the recording says was hit.
    account: number of a maker (place, reduce, cancel) or of a taker (take).
    quantity: lots; for a reduction the new total, what has filled included; for a mode the Mode.
    certain: of a take: everything that rests at its level was submitted in view of the recording, so
        whom it hits is known.
    """

    act: int
    ref: int
    account: int
    side: int
    price: int
    quantity: int
    certain: bool = False


class Resting(NamedTuple):
    """What the recording leaves of an order. total counts what has filled, but not what was taken off."""

    key: LevelKey
    left: int
    total: int


class Flow:
    """Follows a recording and says what to ask for at each message.

    trusted_absence_ns: a level that was out of view no longer than this, and came back with the volume
        that it left with, is taken to hold the same orders. Else it is adopted anew. (In GOOG's ten
        levels every level that is known so after up to 5 s behaves; after 10 s the first do not.)
    """

    def __init__(self, makers: int, takers: int, *, trusted_absence_ns: int = TRUSTED_ABSENCE_NS) -> None:
        self._makers = makers
        self._takers = takers
        self._trusted_absence_ns = trusted_absence_ns
        self._orders: dict[int, Resting] = {}
        self._levels: dict[LevelKey, dict[int, None]] = {}
        self._visible: dict[LevelKey, int] = {}
        self._hidden: dict[LevelKey, int] = {}
        """Levels out of view, with the time at which they went."""
        self._prices: dict[int, list[int]] = {BID: [], ASK: []}
        """Heaps, best first; a level that is gone stays in them until it is the best."""
        self._adopted = 0
        self._takes = 0

    def step(self, message: Message, row: Row | None = None) -> list[Intent]:
        """What to ask for at this message. row: the book after it, where the recording has one."""
        intents: list[Intent] = []
        if row is not None and message.kind in _MOVES_BOOK:
            self._look(message, row, intents)
        match message.kind:
            case Kind.submit:
                if message.order_id not in self._orders:
                    self._disprove(-message.direction, message.price, intents)
                    self._place(message.order_id, (message.direction, message.price), message.size, intents)
            case Kind.reduce | Kind.delete:
                self._take_off(message, intents)
            case Kind.execute:
                self._execute(message, intents)
            case Kind.halt:
                intents.append(Intent(Act.mode, 0, 0, 0, 0, _MODES.get(message.price, Mode.trading)))
            case _:
                pass  # hidden executions and crosses do not touch the visible book
        if row is not None and message.kind in _MOVES_BOOK:
            # Wrong trust shows here: a message named an order that had come and gone out of view.
            touched = (message.direction, message.price)
            volume = self._visible.get(touched, 0)
            if touched in self._visible and self._volume(touched) != volume:
                self._anew(touched, volume, intents)
        return intents

    def resting(self) -> dict[LevelKey, int]:
        """Lots by level, as the recording leaves them."""
        return {key: self._volume(key) for key, refs in self._levels.items() if refs}

    def left(self, ref: int) -> int:
        """Lots of an order that the recording leaves; 0 when it is gone."""
        order = self._orders.get(ref)
        return 0 if order is None else order.left

    def rebase(self, ref: int, total: int) -> Intent:
        """The same order as the book has it now: its quantity in total is `total`. Returns how to place it anew."""
        order = self._orders[ref] = self._orders[ref]._replace(total=total)
        return Intent(Act.place, ref, self._maker(ref), _SIDES[order.key[0]], order.key[1], total)

    def _volume(self, key: LevelKey) -> int:
        return sum(self._orders[ref].left for ref in self._levels.get(key, ()))

    def _maker(self, ref: int) -> int:
        return (ref * 2_654_435_761 >> 16) % self._makers

    def _place(self, ref: int, key: LevelKey, lots: int, intents: list[Intent]) -> None:
        self._orders[ref] = Resting(key, lots, lots)
        if key not in self._levels:
            self._levels[key] = {}
            heappush(self._prices[key[0]], -key[0] * key[1])
        self._levels[key][ref] = None
        intents.append(Intent(Act.place, ref, self._maker(ref), _SIDES[key[0]], key[1], lots))

    def _adopt(self, key: LevelKey, lots: int, intents: list[Intent]) -> None:
        self._adopted -= 1
        self._place(self._adopted, key, lots, intents)

    def _drop(self, ref: int) -> None:
        key = self._orders.pop(ref).key
        level = self._levels[key]
        del level[ref]
        if not level:
            del self._levels[key]
            self._hidden.pop(key, None)

    def _disprove(self, direction: int, price: int, intents: list[Intent]) -> None:
        """Cancel levels of a side at this price and better: a message shows that they can't be there."""
        prices = self._prices[direction]
        while prices and prices[0] <= -direction * price:
            key = (direction, -direction * heappop(prices))
            for ref in list(self._levels.get(key, ())):
                self._cancel(ref, intents)

    def _cancel(self, ref: int, intents: list[Intent]) -> None:
        key = self._orders[ref].key
        intents.append(Intent(Act.cancel, ref, self._maker(ref), _SIDES[key[0]], key[1], 0))
        self._drop(ref)

    def _shrink(self, ref: int, lots: int, intents: list[Intent]) -> None:
        order = self._orders[ref]
        if lots >= order.left:
            self._cancel(ref, intents)
            return
        self._orders[ref] = Resting(order.key, order.left - lots, order.total - lots)
        side = _SIDES[order.key[0]]
        intents.append(Intent(Act.reduce, ref, self._maker(ref), side, order.key[1], order.total - lots))

    def _take_off(self, message: Message, intents: list[Intent]) -> None:
        if message.order_id in self._orders:
            if message.kind == Kind.delete:
                self._cancel(message.order_id, intents)
            else:
                self._shrink(message.order_id, message.size, intents)
            return
        left = message.size
        for ref in self._adopted_at((message.direction, message.price)):
            lots = min(left, self._orders[ref].left)
            self._shrink(ref, lots, intents)
            left -= lots
            if not left:
                return

    def _adopted_at(self, key: LevelKey) -> list[int]:
        return [ref for ref in self._levels.get(key, ()) if ref < 0]

    def _execute(self, message: Message, intents: list[Intent]) -> None:
        key = (message.direction, message.price)
        # Executions are at the best price.
        self._disprove(message.direction, message.price + message.direction, intents)
        adopted = self._adopted_at(key)
        certain = not adopted and key in self._levels
        hit = [message.order_id] if message.order_id in self._orders else adopted
        missing = message.size - sum(self._orders[ref].left for ref in hit)
        if missing > 0:
            self._adopt(key, missing, intents)
            hit = [*hit, self._adopted]
        self._takes += 1
        side = _SIDES[-message.direction]
        taker = self._takes % self._takers
        intents.append(Intent(Act.take, message.order_id, taker, side, message.price, message.size, certain))
        left = message.size
        for ref in hit:
            order = self._orders[ref]
            lots = min(left, order.left)
            left -= lots
            if lots == order.left:
                self._drop(ref)
            else:
                self._orders[ref] = order._replace(left=order.left - lots)

    def _look(self, message: Message, row: Row, intents: list[Intent]) -> None:
        """Adopt what the row shows for the first time and drop what it proves to be gone, as before the message."""
        now = _levels(row)
        before = self._visible
        if now.keys() != before.keys():
            for key in before:
                if key not in now and key in self._levels:
                    self._hidden[key] = message.time_ns
            touched = (message.direction, message.price)
            for key in self._gone(row, now, touched):
                for ref in list(self._levels[key]):
                    self._cancel(ref, intents)
            for key in now:
                if key not in before:
                    change = message.size if message.kind == Kind.submit else -message.size
                    volume = now[key] - (change if key == touched else 0)
                    absent_ns = message.time_ns - self._hidden.pop(key, -DAY_NS)
                    if absent_ns > self._trusted_absence_ns or self._volume(key) != volume:
                        self._anew(key, volume, intents)
        self._visible = now

    def _gone(self, row: Row, now: dict[LevelKey, int], touched: LevelKey) -> list[LevelKey]:
        """Levels out of view that would be in view if they were there."""
        if not self._hidden:
            return []
        worst_bid = row[-1].bid_price if row[-1].bid_size else 0
        worst_ask = row[-1].ask_price if row[-1].ask_size else EMPTY_PRICE
        gone: list[LevelKey] = []
        for key in self._hidden:
            inside = key[1] > worst_bid if key[0] == BID else key[1] < worst_ask
            # The level that this message empties is not in the row either; the message itself sees to it.
            if inside and key not in now and key != touched:
                gone.append(key)
        return sorted(gone)

    def _anew(self, key: LevelKey, volume: int, intents: list[Intent]) -> None:
        """Forget who rests at a level: adopt its volume."""
        for ref in list(self._levels.get(key, ())):
            self._cancel(ref, intents)
        if volume > 0:
            self._adopt(key, volume, intents)


_SIDES = {BID: int(Side.buy), ASK: int(Side.sell)}
_MODES = {HALTED: int(Mode.halted), QUOTING: int(Mode.post_only)}
_MOVES_BOOK = (Kind.submit, Kind.reduce, Kind.delete, Kind.execute)


def _levels(row: Row) -> dict[LevelKey, int]:
    now: dict[LevelKey, int] = {}
    for ask_price, ask_size, bid_price, bid_size in row:
        if ask_size:
            now[(ASK, ask_price)] = ask_size
        if bid_size:
            now[(BID, bid_price)] = bid_size
    return now


def intents(messages: Iterable[Message], rows: Iterable[Row], flow: Flow) -> Iterator[Intent]:
    """All intents of a recording; where the rows end first, the rest goes on without them."""
    following = iter(rows)
    for message in messages:
        yield from flow.step(message, next(following, None))
