"""Quotes in a real cache server: written as they change, there after a restart, and the first to go when it is full."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.cache.client import CacheAway, CacheClient, connect
from gateway.cache.keeper import QuoteKeeper
from gateway.cache.quotes import LIFE_S, CacheQuotes, Known
from gateway.cache.ranks import CacheRanks
from gateway.cache.rates import CacheRates
from gateway.cache.server import CacheServer
from gateway.cache.state import StateCache
from gateway.events import Position
from gateway.feeds.ticks import Quote, Status, StatusKind, Tick, Trade
from gateway.market.intake import MarketData
from gateway.market.nbbo import Nbbo
from tests.gateway.api.sites import sites, until

NOWHERE = "http://127.0.0.1:9"
T0 = 1_700_000_000_000_000


@asynccontextmanager
async def serving(folder: Path, **options: int) -> AsyncIterator[tuple[CacheServer, CacheClient]]:
    server = CacheServer(folder / "c", **options)
    await server.start()
    client = connect(server.url)
    try:
        yield server, client
    finally:
        await client.aclose()
        await server.stop()


class Gateway:
    """The market's half of one. Its clock stands still until it is moved."""

    def __init__(self, client: CacheClient, scope: str = "test") -> None:
        self.now_us = T0
        self.market = MarketData(lambda: self.now_us)
        self.keeper = QuoteKeeper(self.market, CacheQuotes(client, scope))

    def take(self, *ticks: Tick) -> None:
        self.market.take(list(ticks))

    def quote(self, symbol: str, bid: int, ask: int, venue: str = "x") -> None:
        self.take(Quote(symbol, venue, bid, 1, ask, 2, self.now_us, self.now_us))

    def trade(self, symbol: str, price: int) -> None:
        self.take(Trade(symbol, "x", price, 1, self.now_us, self.now_us, "7"))

    def last(self, symbol: str) -> Nbbo | None:
        return self.market.nbbo.last(symbol, self.now_us)


async def test_a_gateway_that_starts_again_has_every_quote_with_its_age(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        before = Gateway(client)
        before.quote("A", 10, 12)
        before.trade("A", 11)
        before.trade("B", 20)
        await before.keeper.round()
        before.now_us += 300_000
        before.quote("A", 11, 12)
        await before.keeper.round()
        again = Gateway(client)
        again.now_us = T0 + 5_000_000
        assert await again.keeper.load() == 2
        found = again.last("A")
        assert found is not None
        assert (found.bid_e9, found.ask_e9, found.as_of_us, found.stale) == (11, 12, T0 + 300_000, True)
        assert [again.market.tape.last(symbol).price_e9 for symbol in "AB"] == [11, 20]  # type: ignore[union-attr]
        assert again.market.tape.recent("A") == [], "its list of trades is its own"
        assert again.market.changes().quotes == [], "nothing of it is news to those who read"
        again.quote("A", 13, 14)
        fresh = again.last("A")
        assert fresh is not None and (fresh.bid_e9, fresh.stale) == (13, False)


async def test_a_round_writes_what_changed_and_the_last_value_wins(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        one = Gateway(client)
        for bid in range(1, 50):
            one.quote("A", bid, 100)
        one.quote("B", 1, 2)
        await one.keeper.round()
        assert one.keeper.counts.written == 2
        one.quote("B", 1, 2)
        await one.keeper.round()
        assert one.keeper.counts.written == 2, "nothing changed"
        # The fan-out, which comes more rarely, misses nothing of it.
        assert [(found.symbol, found.bid_e9) for found in one.market.changes().quotes] == [("A", 49), ("B", 1)]
        [(_, known)] = await one.keeper.cache.read(["A"])
        assert known.nbbo is not None and known.nbbo.bid_e9 == 49
        assert 0 < await client.ask("TTL", one.keeper.cache.key("A")) <= LIFE_S


async def test_when_nobody_quotes_it_any_more_the_cache_keeps_what_was_known(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        one = Gateway(client)
        one.quote("A", 10, 12)
        await one.keeper.round()
        one.take(Status("x", StatusKind.DOWN, one.now_us))
        await one.keeper.round()
        [(_, known)] = await one.keeper.cache.read(["A"])
        assert known.nbbo is not None and (known.nbbo.bid_e9, known.nbbo.as_of_us) == (10, T0)


async def test_of_two_gateways_the_newer_quote_stays(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        cache = CacheQuotes(client, "test")
        new, old = (Nbbo("A", bid, 1, "x", 20, 1, "x", T0) for bid in (11, 10))
        await cache.write([("A", Known(new))], T0 + 5)
        await cache.write([("A", Known(old))], T0 + 4)
        assert await cache.read(["A", "B"]) == [("A", Known(new))]
        await cache.write([("A", Known(old))], T0 + 5)
        assert await cache.read(["A"]) == [("A", Known(old))]


async def test_what_waits_while_the_cache_is_away_is_bounded_and_written_when_it_is_back(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, client):
        one = Gateway(client)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        for bid in range(1, 3):
            for symbol in range(20):
                one.quote(f"S{symbol}", bid, 100)
            with pytest.raises(CacheAway):
                await one.keeper.round()
        assert len(one.keeper._waiting) == 20
        os.kill(server.pid, signal.SIGCONT)
        await one.keeper.round()
        found = await one.keeper.cache.read([f"S{symbol}" for symbol in range(20)])
        assert {known.nbbo.bid_e9 for _, known in found if known.nbbo} == {2}
        assert not one.keeper._waiting and one.keeper.counts.lag_ms > 100


async def test_when_the_cache_is_full_old_quotes_go_and_the_projection_never(tmp_path: Path) -> None:
    async with serving(tmp_path, memory_bytes_max=6 << 20) as (_, client):
        state = StateCache(client, "test", ["accounts"])
        await state.position()
        accounts: dict[str, bytes | None] = {f"account-{number}": b"x" * 500 for number in range(2_000)}
        await state.write({"accounts": accounts}, Position(1, 1, 5, 0))
        quotes, ranks = CacheQuotes(client, "test"), CacheRanks(client, "test")

        async def fill(name: str) -> None:
            symbols = [f"{name}-{number}" for number in range(500)]
            await quotes.write([(symbol, Known(Nbbo(symbol, 1, 1, "x", 2, 1, "x", T0))) for symbol in symbols], T0)

        async def left(name: str) -> int:
            return int(await client.ask("EXISTS", *(quotes.key(f"{name}-{number}") for number in range(500))))

        for part in range(20):
            await fill(f"old-{part}")
        await asyncio.sleep(2.1)  # the server tells ages by the second
        await ranks.write("day", {"anna": 1.0})
        rates = CacheRates(client, "test")
        for _ in range(3):
            await rates.count("anna", 1, 60.0, 10, 0.0)
        evicted = parts = 0
        while evicted < 3_000:
            await fill(f"new-{parts}")
            parts += 1
            evicted = int((await client.ask("INFO", "stats"))["evicted_keys"])
        left_old = sum([await left(f"old-{part}") for part in range(20)])
        assert evicted - (10_000 - left_old) < evicted // 10, "the old ones go"
        assert (await client.ask("ZCARD", ranks.key("day")), (await rates.count("anna", 1, 60.0, 10, 0.0))[1]) == (1, 4)
        again = StateCache(client, "test", ["accounts"])
        assert await again.position() == Position(1, 1, 5, 0)
        assert sum([1 async for _ in again.load()]) == 2_000


async def test_where_nothing_may_go_writes_are_refused_and_said_to_be(tmp_path: Path) -> None:
    async with serving(tmp_path, memory_bytes_max=4 << 20) as (_, client):
        state = StateCache(client, "test", ["accounts"])
        await state.position()
        with pytest.raises(CacheAway, match=r"(?i)memory"):
            for number in range(20):
                fields: dict[str, bytes | None] = {f"{number}-{n}": b"x" * 1_000 for n in range(1_000)}
                await state.write({"accounts": fields}, Position(1, 1, number + 1, 0))
        # What was written is whole: the position is that of the last write that passed.
        again = StateCache(client, "test", ["accounts"])
        position = await again.position()
        assert position is not None
        assert sum([1 async for _ in again.load()]) == position.index * 1_000


async def test_a_second_gateway_on_the_same_cache_answers_what_it_never_heard(tmp_path: Path) -> None:
    async with (
        serving(tmp_path) as (server, _),
        sites(NOWHERE, count=2, more=f'[cache]\nredis_url = "{server.url}"') as (a, b),
    ):
        a.quote("AAPL", "99", "101")
        a.trade("AAPL", "100")
        await until(lambda: a.core.quotes.counts.written > 0)
        found = await b.ask("/v1/market/quotes?symbols=AAPL")
        assert found.status == 200
        [row] = found.body["items"]
        assert (row["bid"], row["ask"], row["last"], row["stale"]) == ("99", "101", "100", True)
        assert 0 <= row["staleness_ms"] == found.staleness_ms < 5_000
        # What neither memory nor cache knows is a clear error, and counted as a miss.
        assert (await b.ask("/v1/market/quotes?symbols=NOBODY")).body["error"] == "symbol_not_found"
        page = (await b.ask("/metrics", bearer="")).raw.decode()
        assert 'tiebreak_gateway_quotes_cached_total{what="recalled"} 1.0' in page
        assert 'cache_reads_total{outcome="miss",view="quotes"} 1.0' in page
        # Its own venue's word, once it has one, comes first.
        b.quote("AAPL", "98", "102")
        [row] = (await b.ask("/v1/market/quotes?symbols=AAPL")).body["items"]
        assert (row["bid"], row["stale"]) == ("98", False)
