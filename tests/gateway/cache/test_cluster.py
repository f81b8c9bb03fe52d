"""A gateway's cache that is a Redis Cluster of three real servers: slots that move, nodes that die, equal answers."""

import asyncio
import signal
import ssl
import time
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster.certificates import make_all
from gateway.cache.client import CacheAway, CacheClient, InvalidCacheUrl, parse
from gateway.cache.health import CacheHealth
from gateway.cache.quotes import CacheQuotes, Known
from gateway.cache.ranks import CacheRanks
from gateway.cache.rates import CacheRates
from gateway.cache.server import CacheServer
from gateway.cache.state import Elsewhere, StateCache
from gateway.events import Position
from gateway.market.nbbo import Nbbo
from tests.gateway.api.sites import market, trades
from tests.gateway.cache.cluster_of_servers import (
    SERVES_THE_REST,
    Cluster,
    Server,
    client_of,
    cluster_of_servers,
    named,
    users_of,
)
from tests.gateway.feeding import Gateway, batches, feed, shown_by_gateway, shown_by_node, until, url
from tests.node.fakes import free_ports
from tests.node.solo import Solo

KINDS = ("accounts", "books")


def quote(symbol: str, bid: int) -> tuple[str, Known]:
    return symbol, Known(Nbbo(symbol, bid, 1, "x", bid + 1, 1, "x", 5))


async def everything_once(client: CacheClient) -> list[Any]:
    """Every kind of thing that a gateway does with its cache, and all that it was answered."""
    said: list[Any] = []
    state = StateCache(client, "dc-a:test", KINDS)
    said.append(await state.position())
    many: dict[str, bytes | None] = {f"field {number}": b"%d" % number for number in range(5_000)}
    await state.write({"accounts": many, "books": {"a": b"1", "b": b"2"}}, Position(0, 1, 2, 0))
    await state.write({"accounts": {"field 7": None}, "books": {"a": b"3"}}, Position(0, 1, 3, 0))
    other = StateCache(client, "dc-a:test", KINDS)
    said.append(await other.position())
    said.append(sorted([row async for row in other.load()]))
    try:
        other.stored = "0.1.2.0"
        await other.write({"books": {"a": b"9"}}, Position(0, 1, 9, 0))
    except Elsewhere as error:
        said.append(str(error))
    quotes = CacheQuotes(client, "test")
    await quotes.write([quote(f"S{number}", number) for number in range(1_200)], 5)
    await quotes.write([quote("S1", 99)], 4)
    said.append(await quotes.read(["S0", "S1", "NOBODY"]))
    said.append(sorted([symbol async for symbol, _ in CacheQuotes(client, "test").everything()]))
    ranks = CacheRanks(client, "dc-a:test")
    for returns in ({"anna": 2.0, "bert": 1.0}, {"bert": 3.5, "cleo": -1.0}, {}, {"dora": 1.0, "cleo": 1.0}):
        await ranks.write("day", returns)
        said.append(await client.ask("ZRANGE", ranks.key("day"), 0, -1))
    rates = CacheRates(client, "test")
    users = [f"user-{number % 7}" for number in range(50)]
    said += [(user, await rates.count(user, 5, 60.0, 4, 0.5)) for user in users]
    await state.clear()
    said.append(await other.position())
    return said


async def test_a_cluster_answers_as_a_single_server_does(tmp_path: Path) -> None:
    server = CacheServer(tmp_path / "single")
    await server.start()
    async with cluster_of_servers(tmp_path) as cluster, client_of(server.url) as one, client_of(cluster.url) as many:
        assert await everything_once(many) == await everything_once(one)
        assert (one.is_cluster, many.is_cluster) == (False, True)
        keys = [await node.ask("DBSIZE") for node in cluster.servers]
        assert all(keys), f"every node has its part: {keys}"
    await server.stop()


async def test_a_projection_is_rebuilt_in_a_cluster_and_begun_with_from_there(tmp_path: Path) -> None:
    async with (
        Solo(tmp_path / "node") as solo,
        cluster_of_servers(tmp_path) as cluster,
        client_of(cluster.url) as client,
    ):
        cache = StateCache(client, "dc-a:test", KINDS)
        flow, gateway = batches(7, 400), Gateway(cache)
        async with gateway.following(url(solo)):
            feed(solo, flow, 150)
            await gateway.catches_up(solo)
            await until(lambda: cache.stored == str(gateway.projection.position))
            for server in cluster.servers:
                await server.ask("FLUSHALL")
            feed(solo, flow, 150)
            await gateway.catches_up(solo)
            await until(lambda: cache.stored == str(gateway.projection.position), within_s=10)
            assert gateway.projection.cache_state == "ok"
        again = Gateway(StateCache(client, "dc-a:test", KINDS))
        assert await again.projection.start_from_cache()
        again.books.begin_with(again.accounts.orders.values())
        async with again.following(url(solo)):
            await again.catches_up(solo)
            assert again.follower.counters["snapshots"] == 0
            assert shown_by_gateway(again) == shown_by_node(solo)


@pytest.mark.parametrize("without_slots", [0, 1], ids=["to a known node", "to a node without slots"])
async def test_a_slot_that_moves_under_a_running_gateway_is_followed(tmp_path: Path, without_slots: int) -> None:
    async with (
        Solo(tmp_path / "node") as solo,
        cluster_of_servers(tmp_path, without_slots=without_slots) as cluster,
        client_of(cluster.url) as client,
    ):
        cache = StateCache(client, "dc-a:test", KINDS)
        flow, gateway = batches(8, 400), Gateway(cache)

        async def flows(count: int) -> None:
            feed(solo, flow, count)
            await gateway.catches_up(solo)
            await until(lambda: cache.stored == str(gateway.projection.position))
            assert gateway.projection.cache_state == "ok"

        async with gateway.following(url(solo)):
            await flows(50)
            key = cache._keys()[0]
            target = next(one for one in reversed(cluster.servers) if one is not cluster.owner_of(key))
            source = await cluster.begin_to_move(key, target)
            await flows(50)  # all its keys are where they were
            while await cluster.move_keys(key, source, target):
                pass
            await flows(50)  # ASK: they are gone, and the slot is not yet
            await all_ask(client, cache, target)
            await cluster.finish_move(key, target)
            knows = client._server
            await flows(50)  # MOVED
            assert client._server is knows, "it was followed, not found anew"
        again = StateCache(client, "dc-a:test", KINDS)
        assert await again.position() == gateway.projection.position
        assert await target.ask("EXISTS", key) == 1 and await source.ask("CLUSTER", "COUNTKEYSINSLOT", 0) == 0


async def all_ask(client: CacheClient, cache: StateCache, target: Server) -> None:
    """Many at once while the slot is neither here nor there: each on a connection of its own."""
    key = cache._keys()[0]
    found = await asyncio.gather(*(client.ask("GET", key) for _ in range(100)))
    assert {raw.decode() for raw in found} == {cache.stored}
    # Each was sent there once: what comes without ASKING is refused, and may be lucky another time.
    said = await target.ask("INFO", "commandstats")
    assert said["cmdstat_get"]["rejected_calls"] == 0


async def test_a_script_whose_keys_are_on_two_nodes_waits_until_they_are_on_one(tmp_path: Path) -> None:
    async with cluster_of_servers(tmp_path) as cluster, client_of(cluster.url) as client:
        cache = StateCache(client, "dc-a:test", KINDS)
        await cache.write({kind: {"a": b"1"} for kind in KINDS}, Position(0, 1, 1, 0))
        key = cache._keys()[0]
        target = next(one for one in cluster.servers if one is not cluster.owner_of(key))
        source = await cluster.begin_to_move(key, target)
        assert await cluster.move_keys(key, source, target, most=1) == 1

        async def rest() -> None:
            await asyncio.sleep(0.05)
            await cluster.move_keys(key, source, target)

        await asyncio.gather(cache.write({"accounts": {"a": b"2"}}, Position(0, 1, 2, 0)), rest())
        assert sorted([row async for row in cache.load()]) == [("accounts", "a", b"2"), ("books", "a", b"1")]


async def test_a_gateway_serves_while_a_node_of_its_cache_is_dead_and_says_so(tmp_path: Path) -> None:
    """Also where the rest of the cluster then refuses everything, which is how a cluster is without more words."""
    async with cluster_of_servers(tmp_path) as cluster:
        more = f'[cache]\nredis_url = "{cluster.urls}"'
        async with market(tmp_path / "node", more=more) as (solo, (site,)):
            await trades(solo)
            await site.reaches(solo.log.index)
            site.quote("AAPL-USD", "99.99", "100.01")
            await until(lambda: site.core.projection.cache_state == "ok")
            dead = cluster.owner_of("{tb:test-cluster:dc-a}:x")
            dead.kill()
            await trades(solo, qty=1)
            await site.reaches(solo.log.index)
            answer = await site.ask("/v1/portfolio")
            assert answer.status == 200 and answer.body["index"] >= 1
            quoted = await site.ask("/v1/market/quotes?symbols=AAPL-USD")
            assert quoted.status == 200 and quoted.headers["X-RateLimit-Remaining"]
            await until(lambda: site.core.projection.cache_state.startswith("away"), within_s=10)
            await site.core.cache_health.look()
            status = (await site.ask("/v1/gateway", role="auditor", accounts=())).body
            assert status["cache"].startswith("away") and status["ready"]
            assert status["cache_nodes"] == {one.name: one is not dead for one in cluster.servers}
            page = (await site.ask("/metrics", bearer="")).raw.decode()
            assert f'tiebreak_gateway_cache_node_up{{node="{dead.name}"}} 0.0' in page
            assert f'tiebreak_gateway_cache_node_up{{node="{cluster.servers[0].name}"}}' in page
            dead.start()  # its file of nodes is there: it takes its place again, empty
            await until(lambda: site.core.projection.cache_state == "ok", within_s=20)
            await trades(solo, qty=2)
            await site.reaches(solo.log.index)
            await until(lambda: site.core.projection.cache.stored == str(site.core.projection.position), within_s=10)


async def test_a_node_that_hangs_holds_up_nobody_who_is_on_another(tmp_path: Path) -> None:
    async with (
        cluster_of_servers(tmp_path, 3, *SERVES_THE_REST) as cluster,
        client_of(cluster.url) as client,
    ):
        rates, users = CacheRates(client, "test"), dict(users_of(cluster))
        for user in users:
            await rates.count(user, 1, 60.0, 1_000, 0.0)
        hung = cluster.servers[1]
        hung.signal(signal.SIGSTOP)
        held_up, answered, began_s = 0, 0, time.monotonic()
        while time.monotonic() - began_s < 4.0:
            for user, server in users.items():
                asked_s = time.monotonic()
                try:
                    await rates.count(user, 1, 60.0, 1_000, 0.0)
                    assert server is not hung
                except CacheAway:
                    held_up += server is not hung
                else:
                    answered += 1
                    held_up += time.monotonic() - asked_s > 0.05
        # Now and then a busy machine is slow by itself; who waits for the hung one is so each time.
        assert answered > 20
        assert held_up < answered / 5
        hung.signal(signal.SIGCONT)
        await cluster.is_whole()
        async with asyncio.timeout(5):
            while True:
                with suppress(CacheAway):
                    assert [await rates.count(user, 1, 60.0, 1_000, 0.0) for user in users]
                    break


async def test_a_cluster_that_is_not_there_yet_is_found_when_it_is(tmp_path: Path) -> None:
    async with cluster_of_servers(tmp_path, 3, *SERVES_THE_REST) as cluster:
        for server in cluster.servers:
            server.kill()
        async with client_of(cluster.url) as first, client_of(cluster.urls) as all_of_them:
            for client in (first, all_of_them):
                with pytest.raises(CacheAway):
                    await client.ask("GET", "a")
                assert not client.is_cluster or client is all_of_them
            for server in cluster.servers:
                server.start()
            await cluster.is_whole()
            for _, key in named(cluster.servers, "key-"):
                assert await first.ask("SET", key, key)
                assert await all_of_them.ask("GET", key) == key.encode()
            cluster.servers[0].kill()  # the only one that the first was told of, and the first of the others
            async with client_of(cluster.urls) as late:
                [*_, (_, key)] = named(cluster.servers, "key-")
                assert await late.ask("EXISTS", key, timeout_s=5) == 1
                assert await first.ask("EXISTS", key, timeout_s=5) == 1


async def test_one_server_that_becomes_a_cluster_at_its_address_is_found_out_and_back(tmp_path: Path) -> None:
    async with cluster_of_servers(tmp_path) as cluster:
        first = cluster.servers[0]
        for server in cluster.servers:
            server.kill()
        alone = Server(tmp_path / "alone", first.port, first.bus_port, "--cluster-enabled", "no")
        async with client_of(cluster.url) as client:
            try:
                alone.start()
                await writes_everywhere(client, cluster)
                assert (client.is_cluster, len(await client.nodes())) == (False, 1)
                alone.kill()
                for server in cluster.servers:
                    server.start()
                await cluster.is_whole()
                await writes_everywhere(client, cluster)
                assert (client.is_cluster, len(await client.nodes())) == (True, 3)
                for server in cluster.servers:
                    server.kill()
                alone.start()
                await writes_everywhere(client, cluster)
                assert len(await client.nodes()) == 1
            finally:
                alone.kill()
                await alone.client.aclose()


async def writes_everywhere(client: CacheClient, cluster: Cluster) -> None:
    async with asyncio.timeout(10):
        for _, key in named(cluster.servers, "key-"):
            while True:
                with suppress(CacheAway):
                    await client.ask("SET", key, 1)
                    break
                await asyncio.sleep(0.05)


async def test_every_node_is_spoken_to_through_tls_and_must_prove_who_it_is(tmp_path: Path) -> None:
    """The servers that come as a wheel speak none themselves: each stands behind a door that does."""
    make_all(tmp_path / "certs", "test-cluster", ["cache"])
    ca, doors = tmp_path / "certs" / "ca.crt", free_ports(9)[6:]
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "certs" / "cache.crt", tmp_path / "certs" / "cache.key")
    async with cluster_of_servers(tmp_path, behind=doors) as cluster, AsyncExitStack() as stack:
        for server, door in zip(cluster.servers, doors, strict=True):
            listening = await asyncio.start_server(partial(lead, server.port), "127.0.0.1", door, ssl=context)
            await stack.enter_async_context(listening)
        address = f"rediss://127.0.0.1:{doors[0]}?ssl_check_hostname=false"
        async with client_of(f"{address}&ssl_ca_certs={ca}") as client:
            for server, key in named(cluster.servers, "key-"):
                await client.ask("SET", key, "1", timeout_s=10)
                assert await server.ask("EXISTS", key) == 1
            assert client.is_cluster
        async with client_of(address) as client:
            with pytest.raises(CacheAway, match=r"(?i)certificate"):
                await client.ask("GET", "a", timeout_s=10)


async def lead(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """From a client behind TLS to a server without, and back."""
    inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65_536):
                sink.write(data)
                await sink.drain()
        sink.close()

    await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))


async def test_all_nodes_are_asked_how_they_are(tmp_path: Path) -> None:
    options = ("--maxmemory", "6mb", "--maxmemory-policy", "allkeys-lru", *SERVES_THE_REST)
    async with cluster_of_servers(tmp_path, 3, *options) as cluster, client_of(cluster.url) as client:
        health = CacheHealth(client)
        await health.look()
        assert {name: (node.up, node.policy) for name, node in health.nodes.items()} == {
            server.name: (True, "allkeys-lru") for server in cluster.servers
        }
        full, key = list(named(cluster.servers, "key-"))[2]
        for number in range(300):
            await client.ask("SET", f"{{{key}}}:{number}", b"x" * 50_000)
        cluster.servers[0].signal(signal.SIGSTOP)
        await health.look()
        assert [health.nodes[server.name].up for server in cluster.servers] == [False, True, True]
        assert health.nodes[full.name].evicted > 0 == health.nodes[cluster.servers[1].name].evicted
        assert health.nodes[full.name].used_bytes > 3 << 20
        cluster.servers[0].signal(signal.SIGCONT)
        await health.look()
        assert health.nodes[cluster.servers[0].name].up


@pytest.mark.parametrize(
    ("text", "urls", "cluster"),
    [
        ("redis://h:1", ["redis://h:1"], None),
        ("rediss://u:p@h:1/0", ["rediss://u:p@h:1/0"], None),
        ("redis://h:1?cluster=true", ["redis://h:1"], True),
        ("redis://h:1?cluster=false&protocol=3", ["redis://h:1?protocol=3"], False),
        ("redis://u:p@a:1,b:2/0", ["redis://u:p@a:1/0", "redis://u:p@b:2/0"], True),
        ("rediss://a,b?ssl_ca_certs=/c", ["rediss://a?ssl_ca_certs=%2Fc", "rediss://b?ssl_ca_certs=%2Fc"], True),
        ("unix:///run/c.sock", ["unix:///run/c.sock"], False),
    ],
)  # fmt: skip
def test_an_address_says_what_it_is_or_is_asked(text: str, urls: list[str], cluster: bool | None) -> None:
    found = parse(text)
    assert (list(found.urls), found.cluster) == (urls, cluster)


@pytest.mark.parametrize(
    "text", ["", "http://h", "redis://h?cluster=maybe", "redis://a,b?cluster=false", "unix:///x?cluster=true"]
)
def test_an_address_that_contradicts_itself_is_refused(text: str) -> None:
    with pytest.raises(InvalidCacheUrl):
        parse(text)
