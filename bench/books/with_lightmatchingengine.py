"""lightmatchingengine: a dictionary of lists, the best price looked for each time. All its orders may rest."""

from collections.abc import Iterator

from lightmatchingengine.lightmatchingengine import LightMatchingEngine, Order, Side, Trade

from bench.books.harness import Fill, play

SYMBOL = "BENCH"
SIDES = (Side.SELL, Side.BUY)


class Book:
    def __init__(self) -> None:
        self._engine = LightMatchingEngine()
        self._orders: dict[int, Order] = {}
        self._trades: list[list[Trade]] = []

    def place(self, order: int, buys: int, price: int, lots: int) -> None:
        self._orders[order], trades = self._engine.add_order(SYMBOL, price, lots, SIDES[buys])
        if trades:
            self._trades.append(trades)

    def take(self, order: int, buys: int, price: int, lots: int) -> None:
        self.place(order, buys, price, lots)
        entered = self._orders[order]
        if entered.leaves_qty:
            self._engine.cancel_order(entered.order_id, SYMBOL)

    def cancel(self, order: int) -> None:
        self._engine.cancel_order(self._orders[order].order_id, SYMBOL)

    def fills(self) -> Iterator[Fill]:
        numbers = {entered.order_id: order for order, entered in self._orders.items()}
        for trades in self._trades:
            taker = trades[0].order_id
            for trade in trades:
                # It tells each trade from both sides, the taker's summed up by price.
                if trade.order_id != taker:
                    yield Fill(numbers[trade.order_id], trade.trade_price, trade.trade_qty)


if __name__ == "__main__":
    play("lightmatchingengine", Book)
