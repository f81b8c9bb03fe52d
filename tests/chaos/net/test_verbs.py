"""Each fault on each network, measured at both ends of real connections to a real server."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from chaos.net import server
from chaos.net.links import Network, NotCut
from chaos.net.proxy import OwnNetwork
from chaos.net.toxiproxy import ToxiproxyNetwork
from tests.chaos.net.echo import AWHILE_S, NAME, Client, place, until

Make = Callable[[], Network]


@pytest.fixture(params=["toxiproxy", "own"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    if request.param == "toxiproxy":
        if why := server.unavailable():
            pytest.skip(why)
        return lambda: ToxiproxyNetwork(tmp_path)
    return OwnNetwork


def test_a_stall_holds_and_loses_nothing(make: Make) -> None:
    async def run() -> None:
        async with place(make()) as at:
            client = await at.dial()
            await client.talk(b"before")
            await at.network.stall(NAME)
            client.say(b"held")
            assert await client.silent()
            later = await at.dial()
            later.say(b"too")
            assert await later.silent()
            assert at.echo.got == [b"before", b""]
            await at.network.heal(NAME)
            assert await client.hear(4) == b"held"
            assert await later.hear(3) == b"too"
            assert at.echo.got == [b"beforeheld", b"too"]

    asyncio.run(run())


def test_a_drop_loses_and_ends_the_connection_when_healed(make: Make) -> None:
    async def run() -> None:
        async with place(make()) as at:
            client = await at.dial()
            await client.talk(b"before")
            await at.network.drop(NAME)
            client.say(b"lost")
            assert await client.silent()
            await at.network.heal(NAME)
            assert await client.end() == "eof"
            assert at.echo.got[0] == b"before"
            assert await (await at.dial()).talk(b"after") < AWHILE_S

    asyncio.run(run())


@pytest.mark.parametrize("verb", ["stall", "drop"])
def test_one_way_to_the_target_is_cut_and_the_other_passes(make: Make, verb: str) -> None:
    async def run() -> None:
        async with place(make()) as at:
            client = await at.dial()
            await client.talk(b"before")
            await getattr(at.network, verb)(NAME, "to_dialer")
            client.say(b"heard")
            await until(lambda: at.echo.got[0] == b"beforeheard", "the target hears")
            assert await client.silent()
            await at.network.heal(NAME)
            if verb == "stall":
                assert await client.hear(5) == b"heard"
                await at.network.stall(NAME, "to_target")
                client.say(b"unheard")
                at.echo.writers[0].write(b"push")
                assert await client.hear(4) == b"push"
                assert await client.silent()
                assert at.echo.got[0] == b"beforeheard"
            else:
                assert await client.end() == "eof"

    asyncio.run(run())


def test_a_slow_link_takes_its_time_each_way(make: Make) -> None:
    async def run() -> None:
        async with place(make()) as at:
            client = await at.dial()
            await client.talk(b"before")
            await at.network.slow(NAME, 100)
            assert await client.talk(b"ping") >= 0.2
            await at.network.slow(NAME, 150, 20)
            assert await client.talk(b"ping") >= 0.26
            await at.network.heal(NAME)
            # Of several, for the machine may be busy with something else.
            assert min([await client.talk(b"ping") for _ in range(20)]) < 0.1

    asyncio.run(run())


def test_slices_arrive_in_order_and_small(make: Make) -> None:
    async def run() -> None:
        async with place(make(), echoes=False) as at:
            client = await at.dial()
            await at.network.slice(NAME, 20, 5_000)
            said = bytes(range(256)) * 2
            client.say(said)
            await until(lambda: at.echo.got == [said], "all of it arrives")
            assert len(at.echo.arrivals) >= 5
            assert max(map(len, at.echo.arrivals)) < len(said)

    asyncio.run(run())


def test_a_cut_comes_in_the_middle_and_again(make: Make) -> None:
    async def run() -> None:
        async with place(make(), echoes=False) as at:
            client = await at.dial()
            await at.network.cut_after(NAME, 5)
            client.say(b"123456789")
            assert await client.end() in ("eof", "reset")
            again = await at.dial()
            again.say(b"abcdefgh")
            assert await again.end() in ("eof", "reset")
            await until(lambda: at.echo.got == [b"12345", b"abcde"], "five bytes of each")
            await at.network.heal(NAME)
            whole = await at.dial()
            whole.say(b"123456789")
            await until(lambda: at.echo.got[-1] == b"123456789", "all of it passes")

    asyncio.run(run())


def test_refused_links_end_and_take_nobody(make: Make) -> None:
    async def run() -> None:
        async with place(make()) as at:
            client = await at.dial()
            await client.talk(b"before")
            await at.network.refuse(NAME)
            assert await client.end() in ("eof", "reset")
            await until(lambda: at.echo.ended == [True], "the target sees the end")
            with pytest.raises(ConnectionRefusedError):
                await Client.dial(at.link)
            await at.network.heal(NAME)
            await (await at.dial()).talk(b"after")

    asyncio.run(run())


def test_faults_add_up_and_heal_all_takes_all(make: Make) -> None:
    async def run() -> None:
        async with place(make()) as at:
            client = await at.dial()
            await at.network.slow(NAME, 50)
            await at.network.stall(NAME, "to_target")
            client.say(b"held")
            assert await client.silent()
            await at.network.heal_all()
            assert await client.hear(4) == b"held"
            assert min([await client.talk(b"ping") for _ in range(20)]) < 0.05

    asyncio.run(run())


def test_a_megabyte_passes_unharmed_through_stalls(make: Make) -> None:
    async def run() -> None:
        async with place(make()) as at:
            client = await at.dial()
            said = bytes(range(251)) * 16_000

            async def speak() -> None:
                for start in range(0, len(said), 50_000):
                    client.say(said[start : start + 50_000])
                    await client.writer.drain()

            speaking = asyncio.create_task(speak())
            hearing = asyncio.create_task(client.hear(len(said)))
            for _ in range(3):
                await at.network.stall(NAME)
                await asyncio.sleep(0.05)
                await at.network.heal(NAME)
            await speaking
            assert await hearing == said

    asyncio.run(run())


def test_a_port_in_use_is_named(make: Make) -> None:
    async def run() -> None:
        async with place(make()) as at:
            second = make()
            with pytest.raises(NotCut, match=rf"{NAME}.*(in use|{at.link.listen[1]})"):
                await second.open([at.link])
            await second.close()

    asyncio.run(run())


def test_a_link_that_is_not_there_is_named(make: Make) -> None:
    async def run() -> None:
        async with place(make()) as at:
            with pytest.raises(NotCut, match="dc-x"):
                await at.network.stall("dc-x->dc-a")

    asyncio.run(run())


def test_a_dead_target_ends_connections_and_a_live_one_is_found_again(make: Make) -> None:
    async def run() -> None:
        async with place(make()) as at:
            at.echo.stop()
            assert await (await at.dial()).end() in ("eof", "reset")
            await at.echo.start()
            await (await at.dial()).talk(b"back")

    asyncio.run(run())
