"""akhil4n-orderbook: levels in a sorted dictionary, their orders in an ordered one. All its orders may rest."""

from collections.abc import Iterator

import orderbook

from bench.books.harness import Fill, play

SIDES = (orderbook.OrderSide.ASK, orderbook.OrderSide.BID)


class Book:
    def __init__(self) -> None:
        self._book = orderbook.OrderBook()
        self._orders: dict[int, orderbook.Order] = {}

    def place(self, order: int, buys: int, price: int, lots: int) -> None:
        # Whole numbers for prices: faster than the decimals that it names, and all that it does is compare them.
        entered = self._orders[order] = orderbook.Order(SIDES[buys], price, lots)
        self._book.add_limit_order(entered)

    def take(self, order: int, buys: int, price: int, lots: int) -> None:
        self.place(order, buys, price, lots)
        entered = self._orders[order]
        if entered.remaining_quantity:
            self._book.cancel_order(entered.order_id)

    def cancel(self, order: int) -> None:
        self._book.cancel_order(self._orders[order].order_id)

    def fills(self) -> Iterator[Fill]:
        numbers = {entered.order_id: order for order, entered in self._orders.items()}
        for trade in self._book.trade_log:
            yield Fill(numbers[trade.filler_id], trade.price, trade.quantity_filled)


if __name__ == "__main__":
    play("akhil4n-orderbook", Book)
