"""Packets dropped between real connections, in a namespace of the test's own."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from chaos.net import netns
from chaos.net.links import NotCut, Way
from chaos.net.netns import NamespaceNetwork
from tests.chaos.net.echo import AWHILE_S, NAME, WITHIN_S, Client, Place, chatter, place, until

Talk = Callable[[NamespaceNetwork, Place], Awaitable[None]]

WAYS: tuple[Way, ...] = ("to_target", "to_dialer")

needed = pytest.mark.skipif(bool(netns.unavailable()), reason=netns.unavailable() or "there")


def inside(talk: Talk) -> None:
    """On a thread of its own: the namespace goes with it."""
    failed: list[BaseException] = []

    async def run() -> None:
        network = NamespaceNetwork()
        async with place(network) as at:
            await talk(network, at)

    def enter_and_run() -> None:
        try:
            netns.enter()
            asyncio.run(run())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=enter_and_run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


@needed
def test_what_is_stalled_arrives_later_and_no_connection_comes_about() -> None:
    async def talk(network: NamespaceNetwork, at: Place) -> None:
        client = await at.dial()
        await client.talk(b"before")
        await network.stall(NAME)
        client.say(b"held")
        assert await client.silent()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(AWHILE_S):
                await asyncio.open_connection(*at.link.listen)
        assert at.echo.got == [b"before"]
        await network.heal(NAME)
        assert await client.hear(4) == b"held"
        await (await at.dial()).talk(b"after")

    inside(talk)


@needed
@pytest.mark.parametrize("way", WAYS)
def test_one_way_alone_is_cut(way: Way) -> None:
    async def talk(network: NamespaceNetwork, at: Place) -> None:
        client = await at.dial()
        await client.talk(b"before")
        await network.stall(NAME, way)
        client.say(b"said")
        if way == "to_target":
            at.echo.writers[0].write(b"push")
            assert await client.hear(4) == b"push"
        else:
            await until(lambda: at.echo.got == [b"beforesaid"], "the target hears")
        assert await client.silent()
        assert at.echo.got == [b"beforesaid" if way == "to_dialer" else b"before"]
        await network.heal(NAME)
        assert await client.hear(4) == b"said"

    inside(talk)


@needed
def test_what_is_dropped_is_lost_and_the_connection_ends() -> None:
    async def talk(network: NamespaceNetwork, at: Place) -> None:
        client = await at.dial()
        await client.talk(b"before")
        await network.drop(NAME)
        client.say(b"lost")
        assert await client.silent()
        await network.heal_all()
        client.say(b"more")
        assert await client.end() == "reset"
        await (await at.dial()).talk(b"after")
        assert at.echo.got == [b"before", b"after"]

    inside(talk)


@needed
def test_refused_links_are_reset() -> None:
    async def talk(network: NamespaceNetwork, at: Place) -> None:
        client = await at.dial()
        await client.talk(b"before")
        await network.refuse(NAME)
        assert await client.end() == "reset"
        with pytest.raises(ConnectionRefusedError):
            await Client.dial(at.link)
        await network.heal(NAME)
        await (await at.dial()).talk(b"after")

    inside(talk)


@needed
def test_standing_connections_are_reset() -> None:
    async def talk(network: NamespaceNetwork, at: Place) -> None:
        with pytest.raises(NotCut, match="no connection to reset"):
            await network.reset(NAME)
        client = await at.dial()
        await client.talk(b"before")
        await network.reset(NAME)
        assert await client.end() == "reset"
        await (await at.dial()).talk(b"after")

    inside(talk)


@needed
def test_old_packets_come_after_those_of_a_newer_connection() -> None:
    async def talk(network: NamespaceNetwork, at: Place) -> None:
        old = await at.dial()
        await old.talk(b"first")
        await network.hold_old(NAME)
        old.say(b"old")
        await (await at.dial()).talk(b"new")
        assert await old.silent()
        assert at.echo.got == [b"first", b"new"]
        await network.heal(NAME)
        assert await old.hear(3) == b"old"

    inside(talk)


@needed
def test_bytes_that_pass_are_seen() -> None:
    async def talk(network: NamespaceNetwork, at: Place) -> None:
        async with chatter(at):
            await asyncio.sleep(0.1)
            for way in WAYS:
                assert f"bytes pass {way}" in await network._passing(at.link, way)

    inside(talk)


@needed
def test_some_packets_are_lost_and_nothing_else() -> None:
    async def talk(network: NamespaceNetwork, at: Place) -> None:
        client = await at.dial()
        whole = bytes(range(251)) * 4_000

        async def once() -> float:
            client.say(whole)
            began = asyncio.get_running_loop().time()
            async with asyncio.timeout(4 * WITHIN_S):
                assert await client.reader.readexactly(len(whole)) == whole
            return asyncio.get_running_loop().time() - began

        await once()
        await network.lose(NAME, 10)
        await once()
        assert await retransmitted(at) > 0
        await network.heal(NAME)

    inside(talk)


async def retransmitted(at: Place) -> int:
    """Bytes that were sent more than once, of both ends."""
    port = at.link.target_at[1]
    process = await asyncio.create_subprocess_exec(
        "ss", "-tinH", "src", f":{port}", "or", "dst", f":{at.link.listen[1]}", stdout=subprocess.PIPE
    )
    out, _ = await process.communicate()
    return sum(int(word.split(b":")[1]) for word in out.split() if word.startswith(b"bytes_retrans:"))


@needed
def test_what_a_packet_filter_cannot_do_is_said() -> None:
    async def talk(network: NamespaceNetwork, at: Place) -> None:
        for verb in (network.slow(NAME, 10), network.slice(NAME, 10, 10), network.cut_after(NAME, 10)):
            with pytest.raises(NotCut, match="packet filter"):
                await verb

    inside(talk)


def test_the_network_of_the_machine_is_not_touched() -> None:
    assert not netns.entered()
    with pytest.raises(NotCut, match="own network is not to be touched"):
        asyncio.run(NamespaceNetwork().open([]))


def test_without_its_programs_it_is_not_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "not installed" in netns.unavailable() or "root" in netns.unavailable()
    with pytest.raises(NotCut):
        netns.enter()


RUN = """
import os, time
from chaos.net import netns
netns.enter()
print(os.readlink("/proc/self/ns/net"), flush=True)
time.sleep(600)
"""


@needed
def test_nothing_is_left_of_a_run_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", RUN], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        namespace = process.stdout.readline().strip()
        assert namespace in namespaces()
        process.kill()
    assert namespace not in namespaces()
    assert "lo" in subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout


def namespaces() -> set[str]:
    """Those of all processes."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                found.add(os.readlink(f"/proc/{name}/ns/net"))
            except OSError:
                continue
    return found
