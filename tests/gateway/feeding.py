"""A real node under a random flow of every kind of command, and a gateway's projection that follows it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal

import aiohttp

from gateway.cache.state import StateCache
from gateway.feeds.ticks import Tick
from gateway.follow import Follower
from gateway.projection.accounts import Accounts
from gateway.projection.books import Books
from gateway.projection.host import Projection
from gateway.tasks import end
from statemachine.codec import encode_batch
from tests.node.solo import Solo, token
from tests.statemachine.flow import Flow


class Gateway:
    """The projecting half of one, and the ticks that its own books gave."""

    def __init__(self, cache: StateCache | None = None) -> None:
        self.ticks: list[Tick] = []
        self.accounts = Accounts()
        self.books = Books(self.ticks.extend, lambda: 0)
        self.projection = Projection([self.accounts, self.books], cache)
        self.follower: Follower

    @asynccontextmanager
    async def following(self, *nodes: str) -> AsyncIterator["Gateway"]:
        async with aiohttp.ClientSession() as session:
            self.follower = Follower(session, lambda: nodes, lambda: token("auditor"), self.projection)
            tasks = [asyncio.create_task(self.follower.run()), asyncio.create_task(self.projection.keep_cache())]
            try:
                yield self
            finally:
                await end(*tasks)

    async def reaches(self, index: int, *, within_s: float = 10.0) -> None:
        assert await self.projection.wait_for(index, timeout_ms=int(within_s * 1000)), self.projection.standing

    async def catches_up(self, solo: Solo) -> None:
        """Wait until it has all that the node has, with what the node adds meanwhile by itself: orders that expire."""
        while self.projection.position is None or self.projection.position.index < solo.log.index:
            await self.reaches(solo.log.index)


def url(solo: Solo) -> str:
    return f"http://127.0.0.1:{solo.port}"


def batches(seed: int, count: int) -> Iterator[bytes]:
    for stamp_us, envelopes in Flow(seed).groups(count):
        yield encode_batch(stamp_us, envelopes)


def feed(solo: Solo, payloads: Iterator[bytes], count: int = 10**9) -> None:
    for _, payload in zip(range(count), payloads, strict=False):
        solo.log.commit(payload)


def shown_by_node(solo: Solo) -> dict[str, object]:
    """Balances, open orders and books as the machine has them, in decimals."""
    machine, catalogue = solo.node.machine, solo.node.catalogue
    found: dict[str, object] = {}
    for name in ("anna", "bert", "cleo", "dora"):
        record = machine.account(name)
        if record is None:
            continue
        for asset, available, held in record.balances:
            money = catalogue.money(asset)
            assert money is not None
            scale = -money.scale
            found[f"{name} {asset}"] = (Decimal(available).scaleb(scale), Decimal(held).scaleb(scale))
        for order in machine.open_orders(name):
            market = catalogue.market(order.symbol)
            assert market is not None
            found[f"order {order.order_id}"] = (
                name,
                Decimal(market.price(order.price_ticks)),
                Decimal(market.quantity(order.leaves_lots)),
                Decimal(market.quantity(order.filled_lots)),
            )
    for symbol in ("AAA-USD", "BBB-USD", "BBB-AAA"):
        market, book = catalogue.market(symbol), machine.book(symbol, 1000)
        if market is not None and book is not None:
            found[symbol] = [
                [(_e9(market.price(price)), _e9(market.quantity(lots))) for price, lots, _ in side] for side in book
            ]
    return found


def _e9(text: str) -> int:
    return int(Decimal(text).scaleb(9))


def shown_by_gateway(gateway: Gateway) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, account in gateway.accounts.accounts.items():
        for asset, balance in account.balances.items():
            found[f"{name} {asset}"] = (balance.available, balance.held)
        for order in account.orders.values():
            found[f"order {order.order_id}"] = (name, order.limit_price, order.leaves_qty, order.filled_qty)
    for symbol in gateway.accounts.instruments:
        book = gateway.books.books.get(symbol)
        found[symbol] = [list(book.levels(side)) for side in ("buy", "sell")] if book is not None else [[], []]
    return found


async def until(holds: Callable[[], bool], *, within_s: float = 5.0) -> None:
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)
