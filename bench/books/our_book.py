"""Our book alone as one of the books: the machine's orders and price levels, without money, accounts, keys or events.

The walk is that of `statemachine.matching.sweep` as far as limit orders of different accounts need it.
"""

from collections.abc import Iterator

from bench.books.harness import Fill, play
from bench.books.steps import SYMBOL
from bench.market import Market
from bench.replay import Engine
from statemachine.accounts import Account
from statemachine.book import BookSide
from statemachine.instrument import Instrument
from statemachine.order import Order
from statemachine.types import OrderType, SelfTrade, Side, TimeInForce

LIMIT = OrderType.limit
GTC = TimeInForce.gtc
CANCEL_NEWEST = SelfTrade.cancel_newest
SIDES = (Side.sell, Side.buy)


class Book:
    def __init__(self) -> None:
        engine = Engine(Market(SYMBOL))
        engine.open()
        record = engine.machine.instrument(SYMBOL)
        if record is None:
            raise AssertionError(f"no instrument {SYMBOL}")
        self._instrument = Instrument(record, 0, 0)
        self._account = Account("anyone", 1)
        self._books = (BookSide(-1), BookSide(1))
        self._orders: dict[int, Order] = {}
        self._fills: list[Fill] = []

    def place(self, order: int, buys: int, price: int, lots: int) -> None:
        entered = self._enter(order, buys, price, lots)
        if entered.leaves_lots:
            self._books[buys].append(entered)
            self._orders[order] = entered

    def take(self, order: int, buys: int, price: int, lots: int) -> None:
        self._enter(order, buys, price, lots)

    def _enter(self, order: int, buys: int, price: int, lots: int) -> Order:
        taker = Order(
            order, self._account, self._instrument, SIDES[buys], LIMIT, GTC, price, lots, 0, 0, False, CANCEL_NEWEST,
            None, "", "", 0, 0, 0, 0, 0,
        )  # fmt: skip
        makers = self._books[1 - buys]
        ranks = makers.ranks
        rank_min = price * makers.sign
        while ranks and ranks[-1] >= rank_min and taker.leaves_lots:
            level = makers.levels[ranks[-1]]
            maker = level.oldest
            if maker is None:
                raise AssertionError("an empty level in the book")
            traded = min(maker.leaves_lots, taker.leaves_lots)
            level.lots -= traded
            maker.leaves_lots -= traded
            taker.leaves_lots -= traded
            self._fills.append(Fill(maker.order_id, maker.price_ticks, traded))
            if maker.leaves_lots == 0:
                makers.remove(maker, level)
                del self._orders[maker.order_id]
        return taker

    def cancel(self, order: int) -> None:
        found = self._orders.pop(order)
        if found.level is None:
            raise AssertionError("an order that does not rest")
        self._books[found.side is Side.buy].remove(found, found.level)

    def fills(self) -> Iterator[Fill]:
        return iter(self._fills)


if __name__ == "__main__":
    play("tiebreak", Book)
