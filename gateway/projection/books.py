"""Our own venue's market data, from events: books, best prices and trades, in the words of every other venue's.

Levels are what rests at the end of a batch: a taker is in the book only with what it did not trade.
"""

from collections.abc import Callable, Iterable
from decimal import Decimal

from gateway.events import OrderClosed, OrderOpened, OrderReduced, Traded
from gateway.feeds.ticks import BookDiff, BookSnapshot, Level, Quote, Tick, Trade
from gateway.projection.accounts import OpenOrder
from gateway.projection.projector import Batch, Row, Touch

VENUE = "tiebreak"


def _e9(value: Decimal) -> int:
    """Units of 1e-9, rounded down: what is shown; what is traded is exact elsewhere."""
    return int(value.scaleb(9))


class _Resting:
    __slots__ = ("leaves_e9", "price_e9", "side", "symbol")

    def __init__(self, symbol: str, side: str, price_e9: int, leaves_e9: int) -> None:
        self.symbol, self.side, self.price_e9, self.leaves_e9 = symbol, side, price_e9, leaves_e9


class OwnBook:
    """One symbol. seq counts its diffs from 1, anew after each rebuild of the projection."""

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        self.seq = 0
        self.sides: dict[str, dict[int, int]] = {"buy": {}, "sell": {}}
        self.touched: dict[str, set[int]] = {"buy": set(), "sell": set()}
        self.quote: Quote | None = None
        self._best: dict[str, int | None] = {"buy": 0, "sell": 0}
        """The best price of each side, 0 where there is none. None: its level went, and nobody has looked since."""
        self._shown = False

    def add(self, side: str, price_e9: int, size_e9: int) -> None:
        levels = self.sides[side]
        left = levels.get(price_e9, 0) + size_e9
        best = self._best[side]
        if left:
            levels[price_e9] = left
            if best is not None and (not best or (price_e9 > best if side == "buy" else price_e9 < best)):
                self._best[side] = price_e9
        else:
            levels.pop(price_e9, None)
            if price_e9 == best:
                self._best[side] = None
        self.touched[side].add(price_e9)

    def best(self, side: str) -> Level:
        """(0, 0) where nothing rests. All levels are looked at only when the best has gone: there may be thousands."""
        levels, price_e9 = self.sides[side], self._best[side]
        if price_e9 is None:
            price_e9 = self._best[side] = max(levels, default=0) if side == "buy" else min(levels, default=0)
        return (price_e9, levels[price_e9]) if price_e9 else (0, 0)

    def levels(self, side: str, depth: int | None = None) -> tuple[Level, ...]:
        """Best first."""
        return tuple(sorted(self.sides[side].items(), reverse=side == "buy")[:depth])

    def snapshot(self, at_us: int, *, receive_us: int) -> BookSnapshot:
        return BookSnapshot(self.symbol, VENUE, self.seq, self.levels("buy"), self.levels("sell"), at_us, receive_us)

    def diff(self, at_us: int, receive_us: int) -> list[Tick]:
        """What changed since the last call: the book at first, then diffs, and a quote when the best changed."""
        ticks: list[Tick] = []
        bids, asks = (
            tuple((price, self.sides[side].get(price, 0)) for price in sorted(self.touched[side]))
            for side in ("buy", "sell")
        )
        if bids or asks:
            self.seq += 1
            if self._shown:
                ticks.append(BookDiff(self.symbol, VENUE, self.seq, bids, asks, at_us, receive_us))
            else:
                self._shown = True
                ticks.append(self.snapshot(at_us, receive_us=receive_us))
            for touched in self.touched.values():
                touched.clear()
        bid, ask = self.best("buy"), self.best("sell")
        before = self.quote
        if before is None or (before.bid_e9, before.bid_size_e9, before.ask_e9, before.ask_size_e9) != (*bid, *ask):
            self.quote = Quote(self.symbol, VENUE, *bid, *ask, at_us, receive_us)
            ticks.append(self.quote)
        return ticks


class Books:
    """Implements Projector; holds nothing in the cache, as the accounts' open orders say it all.

    sink: takes the ticks of each batch.
    """

    kind = "books"

    def __init__(self, sink: Callable[[list[Tick]], None], receive_us: Callable[[], int]) -> None:
        self.touch: Touch = lambda _field: None
        self.books: dict[str, OwnBook] = {}
        self._sink = sink
        self._receive_us = receive_us
        self._orders: dict[str, _Resting] = {}

    def reset(self) -> None:
        self.books.clear()
        self._orders.clear()

    def row(self, table: str, row: Row, at_us: int) -> None:
        if table == "orders" and row["status"] in ("new", "partially_filled") and row["limit_price"]:
            self._begin(row["order_id"], row["symbol"], row["side"], row["limit_price"], row["leaves_qty"])

    def begin_with(self, orders: Iterable[OpenOrder]) -> None:
        """The orders that rest already, after a start from the cache."""
        for order in orders:
            if order.limit_price is not None and order.leaves_qty is not None:
                self._begin(order.order_id, order.symbol, order.side, order.limit_price, order.leaves_qty)

    def _begin(self, order_id: str, symbol: str, side: str, price: str | Decimal, leaves: str | Decimal) -> None:
        resting = _Resting(symbol, side, _e9(Decimal(price)), _e9(Decimal(leaves)))
        self._orders[order_id] = resting
        self._book(symbol).add(side, resting.price_e9, resting.leaves_e9)

    def show_all(self, at_us: int) -> None:
        """Give every book that there is: after a start from the cache or a snapshot."""
        receive_us = self._receive_us()
        ticks: list[Tick] = []
        for book in self.books.values():
            ticks += book.diff(at_us, receive_us)
        if ticks:
            self._sink(ticks)

    def fields(self) -> Iterable[str]:
        return ()

    def dump(self, field: str) -> bytes | None:
        return None

    def load(self, field: str, value: bytes) -> None:
        pass

    def apply(self, batch: Batch) -> None:
        receive_us = self._receive_us()
        ticks: list[Tick] = []
        touched: dict[str, None] = {}
        for event in batch.events:
            if isinstance(event, OrderOpened):
                self._opened(event)
            elif isinstance(event, Traded):
                self._leaves(event.taker_order_id, event.taker_leaves_qty)
                self._leaves(event.maker_order_id, event.maker_leaves_qty)
                ticks.append(
                    Trade(
                        event.symbol,
                        VENUE,
                        _e9(event.price),
                        _e9(event.qty),
                        batch.at_us,
                        receive_us,
                        event.trade_id,
                        aggressor=event.taker_side,
                    )
                )
            elif isinstance(event, OrderReduced):
                self._leaves(event.order_id, event.leaves_qty)
            elif isinstance(event, OrderClosed):
                self._closed(event.order_id)
            else:
                continue
            touched[event.symbol] = None
        for symbol in touched:
            ticks += self._book(symbol).diff(batch.at_us, receive_us)
        if ticks:
            self._sink(ticks)

    def _book(self, symbol: str) -> OwnBook:
        book = self.books.get(symbol)
        if book is None:
            book = self.books[symbol] = OwnBook(symbol)
        return book

    def _opened(self, event: OrderOpened) -> None:
        if event.limit_price is None or event.qty is None or event.order_type != "limit":
            return
        resting = _Resting(event.symbol, event.side, _e9(event.limit_price), _e9(event.qty - event.filled_qty))
        self._orders[event.order_id] = resting
        self._book(event.symbol).add(resting.side, resting.price_e9, resting.leaves_e9)

    def _leaves(self, order_id: str, leaves: Decimal) -> None:
        resting = self._orders.get(order_id)
        if resting is not None:
            left = _e9(leaves)
            self._book(resting.symbol).add(resting.side, resting.price_e9, left - resting.leaves_e9)
            resting.leaves_e9 = left

    def _closed(self, order_id: str) -> None:
        resting = self._orders.pop(order_id, None)
        if resting is not None and resting.leaves_e9:
            self._book(resting.symbol).add(resting.side, resting.price_e9, -resting.leaves_e9)
