"""What our own proxy does beyond toxiproxy: resets, old bytes after newer ones, bounds; and how it ends."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from chaos.net.lanes import QUEUE_BYTES_MAX
from chaos.net.links import NotCut
from chaos.net.proxy import OwnNetwork
from tests.chaos.net.echo import NAME, free_port, place, until


def test_standing_connections_are_reset() -> None:
    async def run() -> None:
        network = OwnNetwork()
        async with place(network) as at:
            with pytest.raises(NotCut, match="no connection to reset"):
                await network.reset(NAME)
            clients = [await at.dial(), await at.dial()]
            for client in clients:
                await client.talk(b"before")
            await network.reset(NAME)
            assert [await client.end() for client in clients] == ["reset", "reset"]
            await until(lambda: at.echo.ended == [True, True], "the target sees it as well")
            await (await at.dial()).talk(b"after")

    asyncio.run(run())


def test_held_bytes_come_after_those_of_a_newer_connection() -> None:
    async def run() -> None:
        network = OwnNetwork()
        async with place(network, echoes=False) as at:
            with pytest.raises(NotCut, match="no connection to hold"):
                await network.hold_old(NAME)
            old = await at.dial()
            old.say(b"first ")
            await until(lambda: at.echo.got == [b"first "], "it arrives")
            await network.hold_old(NAME)
            old.say(b"old")
            await old.writer.drain()
            new = await at.dial()
            new.say(b"new")
            await until(lambda: at.echo.got == [b"first ", b"new"], "only what is new arrives")
            # Its sender is gone long before its words arrive.
            await until_queued(network, 3)
            old.close()
            await asyncio.sleep(0.2)
            assert at.echo.ended == [False, False]
            await network.heal(NAME)
            await until(lambda: at.echo.got == [b"first old", b"new"], "the old arrives")
            await until(lambda: at.echo.ended == [True, False], "and its end")
            assert at.echo.arrivals == [b"first ", b"new", b"old"]

    asyncio.run(run())


async def until_queued(network: OwnNetwork, size: int) -> None:
    for _ in range(500):
        if (await network.look(NAME)).queued_bytes == size:
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"{size} bytes are not queued")


def test_what_is_held_is_bounded_and_all_arrives() -> None:
    async def run() -> None:
        network = OwnNetwork()
        async with place(network, echoes=False) as at:
            client = await at.dial()
            await network.stall(NAME)
            said = bytes(range(251)) * 80_000
            client.say(said)
            queued = -1
            while (now := (await network.look(NAME)).queued_bytes) != queued:
                queued = now
                await asyncio.sleep(0.3)
            assert QUEUE_BYTES_MAX <= queued < QUEUE_BYTES_MAX + (1 << 20)
            await network.heal(NAME)
            await until(lambda: len(at.echo.got[0]) == len(said), "all of it arrives")
            assert at.echo.got == [said]
            assert (await network.look(NAME)).passed == (len(said), 0)

    asyncio.run(run())


def test_a_half_closed_connection_is_answered() -> None:
    async def run() -> None:
        network = OwnNetwork()
        async with place(network) as at:
            client = await at.dial()
            client.say(b"question")
            client.writer.write_eof()
            assert await client.hear(8) == b"question"
            assert await client.end() == "eof"
            await asyncio.sleep(0.2)
            assert (await network.look(NAME)).connections == 0

    asyncio.run(run())


def test_a_reset_is_passed_on() -> None:
    async def run() -> None:
        network = OwnNetwork()
        async with place(network) as at:
            client = await at.dial()
            await client.talk(b"before")
            await network.stall(NAME, "to_target")
            client.close()
            await asyncio.sleep(0.3)
            assert at.echo.ended == [False], "a stall hides the end as well"
            await network.heal(NAME)
            await until(lambda: at.echo.ended == [True], "then it is seen")

    asyncio.run(run())


def test_an_ended_process_is_named() -> None:
    async def run() -> None:
        network = OwnNetwork()
        async with place(network):
            os.kill(network.pid, signal.SIGKILL)
            with pytest.raises(NotCut, match="the proxy has ended"):
                await network.stall(NAME)

    asyncio.run(run())


RUN = """
import asyncio, sys
from chaos.net.links import Link
from chaos.net.proxy import OwnNetwork

async def run():
    network = OwnNetwork()
    await network.open([Link("a", "peer", "dc-b", "dc-a", ("127.0.0.1", int(sys.argv[1])), ("127.0.0.1", 1))])
    print(network.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(run())
"""


def test_the_proxy_ends_with_a_run_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", RUN, str(free_port())], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        handle = os.pidfd_open(int(process.stdout.readline()))
        process.kill()

    async def gone() -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(handle, ended.set)
        async with asyncio.timeout(10):
            await ended.wait()
        loop.remove_reader(handle)

    asyncio.run(gone())
    os.close(handle)
