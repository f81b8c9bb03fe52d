"""What a gateway writes to the cache as it goes is all that it knows, and no more than what changed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.cache.client import connect
from gateway.cache.server import CacheServer
from gateway.cache.state import Changes, StateCache
from gateway.events import Position
from tests.gateway.api.sites import market, trades
from tests.gateway.feeding import batches, feed, until, url
from tests.gateway.views.test_basis import Watched
from tests.node.solo import Solo, order, run

KINDS = ("accounts", "books", "portfolios")


class Counting(StateCache):
    """Remembers how many fields each write had."""

    sizes: list[int]

    async def write(self, changes: Changes, position: Position) -> None:
        self.sizes.append(sum(len(fields) for fields in changes.values()))
        await super().write(changes, position)


@asynccontextmanager
async def counting(folder: Path) -> AsyncIterator[Counting]:
    server = CacheServer(folder / "c")
    await server.start()
    client = connect(server.url)
    try:
        cache = Counting(client, "test", KINDS)
        cache.sizes = []
        yield cache
    finally:
        await client.aclose()
        await server.stop()


async def same_after_a_restart(gateway: Watched, cache: Counting) -> None:
    await until(lambda: cache.stored == str(gateway.projection.position))
    again = Watched(StateCache(cache._client, "test", KINDS))
    assert await again.projection.start_from_cache()
    assert again.accounts.accounts == gateway.accounts.accounts
    assert again.accounts.orders == gateway.accounts.orders
    assert again.accounts.instruments == gateway.accounts.instruments
    assert again.portfolios.books == gateway.portfolios.books
    assert again.portfolios.unknown == gateway.portfolios.unknown


def test_what_is_written_piece_by_piece_is_the_whole(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo, counting(tmp_path) as cache:
            flow, gateway = batches(31, 400), Watched(cache)
            async with gateway.following(url(solo)):
                for _ in range(6):
                    feed(solo, flow, 50)
                    await gateway.catches_up(solo)
                    await same_after_a_restart(gateway, cache)
            assert len(cache.sizes) > 5

    run(talk())


def test_also_after_a_snapshot_whose_costs_were_found_out(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo, counting(tmp_path) as cache:
            flow, gateway = batches(32, 300), Watched(cache)
            feed(solo, flow, 150)
            solo.flush()
            gateway.projection.begin_snapshot()
            gateway.projection.rebuilding = False
            async with gateway.following(url(solo)):
                gateway.follower._snapshot_needed = True
                feed(solo, flow, 20)
                await gateway.catches_up(solo)
                await same_after_a_restart(gateway, cache)
                assert gateway.portfolios.unknown
                async with gateway.asking(url(solo)):
                    await until(lambda: not gateway.portfolios.unknown)
                feed(solo, flow, 20)
                await gateway.catches_up(solo)
                await same_after_a_restart(gateway, cache)

    run(talk())


async def test_a_fill_of_a_busy_account_writes_what_it_changed(tmp_path: Path) -> None:
    async with market(tmp_path) as (solo, (site,)):
        projection = site.core.projection
        cache = projection.cache
        sizes: list[int] = []
        plain = cache.write

        async def counted(changes: Changes, position: Position) -> None:
            sizes.append(sum(len(fields) for kind, fields in changes.items() if kind != "leaderboard"))
            await plain(changes, position)

        cache.write = counted
        anna = await solo.stream("trader", "anna")
        for number in range(30):
            await trades(solo, qty=1)
            await anna.submit(order("buy", 1, f"{50 + number}.00"))
        await anna.close()
        await site.reaches(solo.log.index)
        await until(lambda: cache.stored == str(projection.position))
        whole = sum(1 for projector in projection.projectors for _ in projector.fields())
        sizes.clear()
        await trades(solo, qty=1)
        await site.reaches(solo.log.index)
        await until(lambda: cache.stored == str(projection.position))
        # Two orders, two balances of each, a holding of each, a lot of each, a sale; written in one go or in several.
        assert whole > 80 and 5 < sum(sizes) <= 30, (whole, sizes)
