"""pyorderbook: levels in a heap, orders in dictionaries, prices as decimals. All its orders may rest."""

from collections.abc import Iterator

import pyorderbook

from bench.books.harness import Fill, play

SIDES = (pyorderbook.Side.ASK, pyorderbook.Side.BID)


class Book:
    def __init__(self) -> None:
        self._book = pyorderbook.Book()
        self._orders: dict[int, pyorderbook.Order] = {}
        self._blotters: list[pyorderbook.TradeBlotter] = []

    def place(self, order: int, buys: int, price: int, lots: int) -> None:
        entered = self._orders[order] = pyorderbook.Order(SIDES[buys], "BENCH", price, lots)
        blotter = self._book.match(entered)
        if blotter.trades:
            self._blotters.append(blotter)

    def take(self, order: int, buys: int, price: int, lots: int) -> None:
        self.place(order, buys, price, lots)
        entered = self._orders[order]
        if entered.quantity:
            self._book.cancel(entered)

    def cancel(self, order: int) -> None:
        self._book.cancel(self._orders[order])

    def fills(self) -> Iterator[Fill]:
        numbers = {entered.id: order for order, entered in self._orders.items()}
        for blotter in self._blotters:
            for trade in blotter.trades:
                yield Fill(numbers[trade.standing_order_id], int(trade.fill_price), trade.fill_quantity)


if __name__ == "__main__":
    play("pyorderbook", Book)
