"""Caps hold for a gateway, not for each of its workers: whoever serves a client, whoever dies, whoever is away."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from gateway.fanout.hub import Hub
from gateway.stream.admission import StreamLimits
from gateway.stream.places import CONNECTION, STREAM, SUBSCRIPTION, Caps, Places
from gateway.tasks import end
from gateway.workers.door import CoreDoor
from gateway.workers.link import CoreLink
from gateway.workers.words import Reopen
from node.guard import ConnectionGuard, HttpLimits
from tests.gateway.api.sites import sites
from tests.gateway.feeding import until
from tests.gateway.stream.serving import Client, Serving
from tests.gateway.workers.test_workers import Cored, connected, working
from tests.node.solo import token

FEW = StreamLimits(connections_per_user_max=6, subscriptions_per_user_max=7)
NARROW = HttpLimits(connections_max=50, connections_per_address_max=6)


async def test_streams_of_a_user_are_counted_over_all_workers(tmp_path: Path) -> None:
    async with Cored(tmp_path, limits=FEW).fanning() as core, working(tmp_path, 2, limits=FEW) as (supervisor, port):
        await both_serve(core, port)
        clients = [await connected(port) for _ in range(24)]
        inside = [client for client in clients if await is_let_in(client)]
        assert len(inside) == 6 == core.core.places.totals[STREAM]
        assert {client.close_code for client in clients} == {0, 1008}
        assert len(core.core.places._of) == 2, "both have some of them"
        inside[0].close()
        await until(lambda: core.core.places.totals[STREAM] == 5)
        clients.append(await connected(port))
        assert await is_let_in(clients[-1])
        # A worker that dies gives back what it held.
        held = {worker: core.core.places._of[worker][STREAM, "anna"] for worker in core.core.workers}
        victim = max(held, key=lambda worker: held[worker])
        os.kill(victim.pid, signal.SIGKILL)
        await until(lambda: victim not in core.core.workers)
        left = core.core.places.totals[STREAM]
        assert left == 6 - held[victim] < 6
        again = [await connected(port) for _ in range(12)]
        assert sum([await is_let_in(client) for client in again]) == 6 - left
        for client in (*clients, *again):
            client.close()
        await until(lambda: not core.core.places.totals[STREAM])
        assert supervisor.restarts == 1


async def both_serve(core: Cored, port: int) -> None:
    """Wait until the kernel gives connections to either worker."""
    seen: set[object] = set()
    async with asyncio.timeout(20):
        while len(seen) < 2:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                await until(lambda: core.core.places.totals[CONNECTION] == 1)
                seen.update(core.core.places._of)
                writer.close()
                await until(lambda: not core.core.places.totals[CONNECTION])
            await asyncio.sleep(0.05)


async def is_let_in(client: Client) -> bool:
    """False: it was told that its user has too many, and sent away."""
    client.send("ping", id=1)
    try:
        while (await client.message())["stream"] != "pong":
            pass
        await asyncio.sleep(0.05)  # the core's word may come behind it
        client.send("ping", id=2)
        while (await client.message())["stream"] != "pong":
            pass
    except ConnectionError:
        return False
    return True


async def test_subscriptions_of_a_user_are_counted_over_all_workers(tmp_path: Path) -> None:
    async with Cored(tmp_path, limits=FEW).fanning() as core, working(tmp_path, 2, limits=FEW) as (_, port):
        await both_serve(core, port)
        clients = [await connected(port) for _ in range(6)]
        answers = [await client.subscribe("nbbo", "AAPL", "MSFT") for client in clients]
        assert Counter(answer.get("error", "ok") for answer in answers) == {"ok": 3, "overloaded": 3}
        places = core.core.places
        assert places.totals[SUBSCRIPTION] == 6
        # What there is not takes no room, and is given back.
        assert (await clients[0].subscribe("quotes", "NOPE"))["refused"] and places.totals[SUBSCRIPTION] <= 7
        await until(lambda: places.totals[SUBSCRIPTION] == 6)
        first = clients[[("error" in answer) for answer in answers].index(False)]
        first.send("unsubscribe", channel="nbbo", symbols=["AAPL"])
        await first.until("unsubscribed")
        await until(lambda: places.totals[SUBSCRIPTION] == 5)
        for client in clients:
            client.close()
        await until(lambda: not places.totals[SUBSCRIPTION] and not places.totals[STREAM])


async def test_connections_of_an_address_are_counted_over_all_workers(tmp_path: Path) -> None:
    async with Cored(tmp_path, http=NARROW).fanning() as core, working(tmp_path, 2, http=NARROW) as (_, port):
        await both_serve(core, port)
        pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(24)]
        refused = [reader for reader, _ in pairs if await ends(reader)]
        assert len(refused) == 18
        assert core.core.places.totals[CONNECTION] == 6
        for _, writer in pairs:
            writer.close()
        await until(lambda: not core.core.places.totals[CONNECTION])
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        await until(lambda: core.core.places.totals[CONNECTION] == 1)
        writer.close()


async def ends(reader: asyncio.StreamReader) -> bool:
    """Whether it was sent away, in words."""
    try:
        async with asyncio.timeout(0.5):
            said = await reader.read()
    except TimeoutError:
        return False
    assert b" 429 " in said and b"too many connections" in said
    return True


async def test_a_storm_is_admitted_at_the_rate_of_the_gateway(tmp_path: Path) -> None:
    slow = StreamLimits(admitted_per_s=0.2, admitted_burst=5)
    async with Cored(tmp_path, limits=slow).fanning() as core, working(tmp_path, 2, limits=slow) as (_, port):
        await both_serve(core, port)
        waits_ms: list[float] = []
        clients: list[Client] = []
        for _ in range(15):
            try:
                clients.append(await Client.connect(port))
            except ConnectionError as error:
                waits_ms.append(float(str(error).split("X-Retry-After-Ms: ")[1].split("\r\n")[0]))
        assert len(clients) == 5
        # One queue, whichever worker was asked: the last of ten comes in at 50 s, of two times five it would be 25 s.
        assert max(waits_ms) > 38_000, waits_ms
        for client in clients:
            client.close()


async def test_a_worker_whose_core_is_away_has_its_share_and_tells_what_it_gave(tmp_path: Path) -> None:
    core, hub = Cored(tmp_path, limits=FEW), Hub(0)
    link = CoreLink(hub, tmp_path / "core.sock")
    door = CoreDoor(link, Caps(FEW), FEW, share=2)
    serving = Serving(source=link, hub=hub, limits=FEW, door=door)
    running = asyncio.create_task(link.run())
    try:
        async with serving.running():
            async with core.fanning():
                await until(lambda: link.is_live)
                first = await serving.client()
                assert await is_let_in(first)
            await until(lambda: not link.is_whole)
            clients = [await serving.client() for _ in range(5)]
            assert [await is_let_in(client) for client in clients] == [True, True, False, False, False]
            assert not core.core.places.totals[STREAM], "gone with the connection"
            async with core.fanning():
                await until(lambda: link.is_whole and core.core.places.totals[STREAM] == 3)
                more = [await serving.client() for _ in range(5)]
                assert [await is_let_in(client) for client in more] == [True, True, True, False, False]
                for client in (first, *clients, *more):
                    client.close()
                await until(lambda: not core.core.places.totals[STREAM] and not door.held)
    finally:
        await end(running)


async def test_who_ends_before_the_core_has_answered_leaves_nothing_behind(tmp_path: Path) -> None:
    async with Cored(tmp_path, http=NARROW).fanning() as core:
        link = CoreLink(Hub(0), tmp_path / "core.sock")
        door, guard = CoreDoor(link, Caps(FEW, NARROW), FEW, share=1), ConnectionGuard(NARROW)
        asked: list[Callable[[], None]] = []
        running = asyncio.create_task(link.run())
        try:
            await until(lambda: link.is_whole)
            take = link.take
            link.take = lambda *words: asked.append(lambda: take(*words))  # type: ignore[method-assign]
            serving = Serving(source=link, door=door)
            serving.guard = guard
            door.guard_by(guard)
            async with serving.running():
                _, writer = await asyncio.open_connection("127.0.0.1", serving.port)
                await until(lambda: bool(asked))
                writer.close()
                await until(lambda: not guard.connections)
                asked[0]()
                assert link._taking
                await until(lambda: not link._taking and not core.core.places.totals[CONNECTION])
        finally:
            await end(running)


def test_places_are_never_given_out_twice_nor_given_back_twice() -> None:
    places = Places(Caps(FEW, HttpLimits(connections_max=5, connections_per_address_max=3)))
    assert [places.take("one", CONNECTION, "a", 1) for _ in range(4)] == [True, True, True, False]
    assert [places.take("two", CONNECTION, "b", 1) for _ in range(3)] == [True, True, False], "of all addresses"
    assert not places.take("two", SUBSCRIPTION, "anna", 8) and places.take("two", SUBSCRIPTION, "anna", 7)
    places.free("two", CONNECTION, "a", 3)
    places.free("two", CONNECTION, "b", 9)
    assert places.totals[CONNECTION] == 3, "nobody gives back what is another's"
    places.hold("two", [(CONNECTION, "b", 4)])
    assert places.totals == {CONNECTION: 7, SUBSCRIPTION: 0} and not places.take("one", CONNECTION, "c", 1)
    for holder in ("one", "two", "three"):
        places.left(holder)
    assert not places.totals.total() and not places._of and not any(places._taken.values())


async def test_a_gateway_with_workers_keeps_the_caps_of_its_file() -> None:
    caps = "streams_per_user_max = 3\nconnections_per_address_max = 40"
    async with sites("http://127.0.0.1:9", workers=2, limits=caps) as (site,):
        core = site.app._workers
        assert core is not None
        await until(lambda: len(core.workers) == 2, within_s=20)
        clients = [await connected(site.config.listen.port, bearer=token("trader", "anna")) for _ in range(8)]
        assert sum([await is_let_in(client) for client in clients]) == 3
        assert (core.places.caps.most[CONNECTION], core.places.caps.connections_max) == (40, 100_000)
        assert core.admission.limits.admitted_per_s == site.config.limits.admitted_per_s
        for client in clients:
            client.close()
        await until(lambda: not core.places.totals[STREAM])


class Slow(CoreLink):
    """Asks for its topics only when it is let."""

    hold = False
    kept: Reopen | None = None

    def send(self, message: Struct) -> None:
        if self.hold and isinstance(message, Reopen):
            self.kept = message
        else:
            super().send(message)


async def test_what_comes_and_goes_while_topics_are_opened_again_is_told(tmp_path: Path) -> None:
    core, hub = Cored(tmp_path, limits=FEW), Hub(0)
    link = Slow(hub, tmp_path / "core.sock")
    door = CoreDoor(link, Caps(FEW), FEW, share=1)
    serving = Serving(source=link, hub=hub, limits=FEW, door=door)
    running = asyncio.create_task(link.run())
    try:
        async with serving.running():
            async with core.fanning():
                await until(lambda: link.is_live)
                stays, leaves = [await serving.client() for _ in range(2)]
                await stays.subscribe("nbbo", "AAPL")
            await until(lambda: not link.is_whole)
            link.hold = True
            async with core.fanning():
                await until(lambda: link.kept is not None)
                leaves.close()
                await until(lambda: door.held[STREAM, "anna"] == 1)
                more = [await serving.client() for _ in range(3)]
                assert [await is_let_in(client) for client in more] == [True] * 3
                link.hold = False
                if link.kept is not None:
                    link.send(link.kept)
                await until(lambda: link.is_whole and core.core.places.totals[STREAM] == 4)
                for client in (stays, *more):
                    client.close()
                await until(lambda: not core.core.places.totals[STREAM] and not door.held)
    finally:
        await end(running)
