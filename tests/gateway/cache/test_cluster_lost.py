"""A cache's cluster that has no slots, or not all, or a node that hangs: nobody's task ends, and it is found again."""

import asyncio
import itertools
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot

from gateway.cache.client import CacheAway, CacheClient
from gateway.cache.rates import CacheRates
from tests.gateway.api.sites import Site, market, trades
from tests.gateway.cache.cluster_of_servers import (
    SERVES_THE_REST,
    Server,
    client_of,
    cluster_of_servers,
    named,
    users_of,
)
from tests.gateway.feeding import until


async def looks(server: Server) -> int:
    """How often this node was asked who has which slots."""
    said = await server.ask("INFO", "commandstats")
    return int(said.get("cmdstat_cluster|slots", {"calls": 0})["calls"])


async def test_a_gateway_starts_before_its_cache_is_a_cluster_and_outlives_one_that_comes_back_blank(
    tmp_path: Path,
) -> None:
    async with cluster_of_servers(tmp_path, joined=False) as cluster:
        more = f'[cache]\nredis_url = "{cluster.urls}"'
        async with market(tmp_path / "node", more=more) as (solo, (site,)):
            core = site.core

            async def counts() -> None:
                answer = await site.ask("/v1/market/quotes?symbols=AAPL-USD")
                assert answer.status == 200 and answer.headers["X-RateLimit-Remaining"]

            async def has_everything(qty: int) -> None:
                await trades(solo, qty=qty)
                symbol = f"OWN{qty}-USD"  # nobody else quotes it, so this is its best
                await site.reaches(solo.log.index)
                await until(lambda: core.projection.cache.stored == str(core.projection.position), within_s=10)
                await until_kept(site, symbol)
                await until(lambda: len(core.cache_health.nodes) == 3, within_s=15)

            await counts()
            await cluster.join()
            await has_everything(1)
            for server in cluster.servers:
                server.kill()
            await cluster.start()
            for _ in range(5):
                await counts()
                await asyncio.sleep(0.3)  # so that everybody has asked it
            await cluster.join()
            await has_everything(2)


async def until_kept(site: Site, symbol: str) -> None:
    """A quote is written when it changes, so it changes until it is found."""
    async with asyncio.timeout(15):
        for cents in itertools.count(1):
            site.quote(symbol, f"{99 + cents / 100:.2f}", "200.00")
            await asyncio.sleep(0.1)
            with suppress(CacheAway):
                if await site.core.quotes.cache.read([symbol]):
                    return


async def test_a_node_that_hangs_is_left_for_the_one_that_took_its_place_by_who_has_less_time_than_a_socket(
    tmp_path: Path,
) -> None:
    async with (
        cluster_of_servers(tmp_path, 3, *SERVES_THE_REST, without_slots=1) as cluster,
        client_of(cluster.url) as client,
    ):
        hung, replica = cluster.servers[1], cluster.servers[3]
        await replica.ask("CLUSTER", "REPLICATE", hung.node_id)
        await until_it_follows(replica)
        user = next(user for user, server in users_of(cluster) if server is hung)
        rates = CacheRates(client, "test")
        await rates.count(user, 1, 60.0, 1_000, 0.0)
        before = [await looks(server) for server in cluster.servers]
        hung.signal(signal.SIGSTOP)
        began_s = time.monotonic()
        async with asyncio.timeout(20):
            while True:
                with suppress(CacheAway):
                    await rates.count(user, 1, 60.0, 1_000, 0.0)
                    break
                await asyncio.sleep(0.02)
        passed_s = time.monotonic() - began_s
        others = [server for server in cluster.servers if server is not hung]
        after = {server: await looks(server) for server in others}
        looked = sum(after[server] - before[cluster.servers.index(server)] for server in others)
        # A look asks one node after the other until all slots are known: most often one is enough.
        assert 1 <= looked <= len(others) * (passed_s + 1)


async def until_it_follows(replica: Server) -> None:
    async with asyncio.timeout(20):
        while (await replica.ask("INFO", "replication")).get("master_link_status") != "up":  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.05)


async def test_a_slot_that_nobody_has_costs_the_others_nothing_and_is_found_when_somebody_has_it(
    tmp_path: Path,
) -> None:
    async with cluster_of_servers(tmp_path, 3, *SERVES_THE_REST) as cluster, client_of(cluster.url) as client:
        (first, lost), (_, kept), _ = named(cluster.servers, "key-")
        await client.ask("SET", lost, "1")
        await client.ask("SET", kept, "1")
        for server in cluster.servers:
            await server.ask("CLUSTER", "DELSLOTS", key_slot(lost.encode()))
        await until_uncovered(client, lost)
        knows = client._server
        received = [await connections(server) for server in cluster.servers]
        slow = asyncio.create_task(client.ask("BLPOP", f"{{{kept}}}:list", 0.5))
        for _ in range(20):
            with pytest.raises(CacheAway, match="SlotNotCovered"):
                await client.ask("GET", lost)
        assert await slow is None, "what is asked of another node goes on"
        assert client._server is knows
        assert await client.ask("GET", kept) == b"1"
        # The counting itself is no new connection. A look makes a node's connections new.
        new = [await connections(server) - before for server, before in zip(cluster.servers, received, strict=True)]
        assert sum(new) < 20, new
        await first.ask("CLUSTER", "ADDSLOTS", key_slot(lost.encode()))
        async with asyncio.timeout(10):
            while True:
                with suppress(CacheAway):
                    assert await client.ask("GET", lost) == b"1"
                    break
                await asyncio.sleep(0.05)
        assert client._server is knows


async def until_uncovered(client: CacheClient, key: str) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                await client.ask("GET", key)
            except CacheAway as error:
                if "SlotNotCovered" in str(error):
                    return
            await asyncio.sleep(0.05)


async def connections(server: Server) -> int:
    """That were ever made to it."""
    said: dict[str, Any] = await server.ask("INFO", "stats")
    return int(said["total_connections_received"])


async def test_who_has_a_slot_is_believed_when_a_look_meanwhile_found_nobody(tmp_path: Path) -> None:
    async with cluster_of_servers(tmp_path, 3, *SERVES_THE_REST) as cluster, client_of(cluster.url) as client:
        (source, key), *_ = named(cluster.servers, "key-")
        target, slot = cluster.servers[1], key_slot(key.encode())
        await client.ask("EXISTS", key)
        await cluster.finish_move(key, target)
        source.signal(signal.SIGSTOP)
        asked = asyncio.create_task(client.ask("SET", key, "1"))
        await asyncio.sleep(0.05)
        server: Any = client._server
        del server._cluster.nodes_manager.slots_cache[slot]  # as a look leaves it that comes while a slot has nobody
        source.signal(signal.SIGCONT)
        assert await asked
        assert await target.ask("GET", key) == b"1"
