"""liquibook: a book in C++ behind a Python module; each request is a call across that border, each fill one back."""

from collections.abc import Iterator

import liquibook

from bench.books.harness import Fill, play


class Listener(liquibook.OrderListener):  # type: ignore[misc]
    """It leaves the orders' quantities to whoever listens. A callback that is not here would be an error."""

    def __init__(self) -> None:
        super().__init__()
        self.filled: list[tuple[int, int, int]] = []

    def on_fill(self, entered: liquibook.SimpleOrder, resting: liquibook.SimpleOrder, lots: int, price: int) -> None:
        entered.fill(lots, price, 0)
        resting.fill(lots, price, 0)
        self.filled.append((resting.order_id_, price, lots))

    def on_accept(self, order: liquibook.SimpleOrder) -> None:
        pass

    def on_cancel(self, order: liquibook.SimpleOrder) -> None:
        pass


class Book:
    def __init__(self) -> None:
        self._listener = Listener()
        self._book = liquibook.DepthOrderBook()
        self._book.set_order_listener(self._listener)
        self._orders: dict[int, liquibook.SimpleOrder] = {}

    def place(self, order: int, buys: int, price: int, lots: int) -> None:
        entered = self._orders[order] = liquibook.SimpleOrder(bool(buys), price, lots)
        self._book.add(entered)

    def take(self, order: int, buys: int, price: int, lots: int) -> None:
        self._book.add(liquibook.SimpleOrder(bool(buys), price, lots), liquibook.oc_immediate_or_cancel)

    def cancel(self, order: int) -> None:
        self._book.cancel(self._orders[order])

    def fills(self) -> Iterator[Fill]:
        numbers = {entered.order_id_: order for order, entered in self._orders.items()}
        for name, price, lots in self._listener.filled:
            yield Fill(numbers[name], price, lots)


if __name__ == "__main__":
    play("liquibook", Book)
