"""What is peculiar to toxiproxy: its deadlock, its lenience, its library, and servers that end with us."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.net import server
from chaos.net.library import Api
from chaos.net.links import Link, NotCut
from chaos.net.server import Server
from chaos.net.told import Refused, Toxic, Wedged
from chaos.net.toxiproxy import ToxiproxyNetwork
from tests.chaos.net.echo import HOST, NAME, Client, Place, free_port, place, until

pytestmark = pytest.mark.skipif(bool(server.unavailable()), reason=server.unavailable() or "there")


FULL_BYTES = 16_000_000
"""More than all buffers between two ends take."""


async def fill(at: Place, client: Client) -> None:
    """The receiver reads nothing, and everything between is full."""
    at.echo.reads.clear()
    client.say(b"x" * FULL_BYTES)
    left = -1
    transport = client.writer.transport
    while left != transport.get_write_buffer_size():
        left = transport.get_write_buffer_size()
        await asyncio.sleep(0.3)
    assert left > 0


def test_the_deadlock_is_survived(tmp_path: Path) -> None:
    async def run() -> None:
        network = ToxiproxyNetwork(tmp_path, careful=False)
        async with place(network, echoes=False) as at:
            client = await at.dial()
            await fill(at, client)
            await network.stall(NAME)
            assert len(network.restarts) == 1
            assert "wedged" in network.restarts[0]
            # The new server has the fault: a new connection is stalled as well.
            at.echo.reads.set()
            later = await at.dial()
            later.say(b"held")
            assert await later.silent()
            await network.heal(NAME)
            await until(lambda: at.echo.got[-1] == b"held", "it passes once healed")
            assert len(network.restarts) == 1

    asyncio.run(run())


def test_a_receiver_that_reads_nothing_is_left_alone(tmp_path: Path) -> None:
    async def run() -> None:
        network = ToxiproxyNetwork(tmp_path)
        async with place(network, echoes=False) as at:
            client = await at.dial()
            await fill(at, client)
            with pytest.raises(NotCut, match="target reads nothing"):
                await network.stall(NAME)
            at.echo.reads.set()
            await until(lambda: len(at.echo.got[0]) == FULL_BYTES, "all of it arrives")
            await network.stall(NAME)
            assert network.restarts == []

    asyncio.run(run())


def test_links_of_who_is_paused_are_left_alone(tmp_path: Path) -> None:
    async def run() -> None:
        network = ToxiproxyNetwork(tmp_path)
        async with place(network):
            for process in ("dc-a", "dc-b"):
                network.quiet(process)
                for verb in (network.stall, network.heal, network.refuse):
                    with pytest.raises(NotCut, match=f"{process} is paused"):
                        await verb(NAME)
                with pytest.raises(NotCut, match=f"{process} is paused"):
                    await network.heal_all()
                network.loud(process)
            await network.stall(NAME)

    asyncio.run(run())


def test_a_server_that_hangs_or_dies_is_replaced_with_its_faults(tmp_path: Path) -> None:
    async def run() -> None:
        network = ToxiproxyNetwork(tmp_path)
        async with place(network) as at:
            await network.stall(NAME)
            for number in (signal.SIGSTOP, signal.SIGKILL):
                os.kill(network.servers[at.link.dialer], number)
                # The library would wait for ever.
                async with asyncio.timeout(20):
                    await network.slow(NAME, 10)
                client = await at.dial()
                client.say(b"held")
                assert await client.silent()
            assert len(network.restarts) == 2
            # One that dies while nobody tells it anything is missed as well.
            os.kill(network.servers[at.link.dialer], signal.SIGKILL)
            await until(lambda: len(network.restarts) == 3, "it is missed")
            await network.heal(NAME)
            await (await at.dial()).talk(b"after")

    asyncio.run(run())


BAD_TOXICS = [
    # type, attributes
    ("bandwidth", {"rat": 0}),
    ("bandwidth", {"rate": 0, "rat": 1}),
    ("bandwith", {"rate": 0}),
    ("limit_data", {}),
]


@pytest.mark.parametrize(("kind", "attributes"), BAD_TOXICS)
def test_a_misspelt_toxic_is_no_fault(tmp_path: Path, kind: str, attributes: dict[str, int]) -> None:
    async def run() -> None:
        network = ToxiproxyNetwork(tmp_path)
        async with place(network) as at:
            with pytest.raises(NotCut, match=NAME):
                await network.toxic(NAME, kind, attributes)
            await (await at.dial()).talk(b"nothing stands")
            assert network.restarts == []

    asyncio.run(run())


def test_what_toxiproxy_cannot_do_is_said(tmp_path: Path) -> None:
    async def run() -> None:
        network = ToxiproxyNetwork(tmp_path)
        async with place(network):
            for verb in (network.reset, network.hold_old):
                with pytest.raises(NotCut, match="OwnNetwork"):
                    await verb(NAME)

    asyncio.run(run())


def link(name: str, listen: int, target: int, dialer: str = "dc-b") -> Link:
    return Link(name, "peer", dialer, "dc-a", (HOST, listen), (HOST, target))


BAD_LINKS = [
    ([link("a", 20_000, 20_001), link("a", 20_002, 20_003)], "same name: a"),
    ([link("a", 20_000, 20_001), link("b", 20_000, 20_003)], "same listen"),
    ([link("a", 20_000, 20_001), link("b", 20_002, 20_001)], "another link to"),
    ([link("a", 32_768, 20_001)], "below 32768"),
]


@pytest.mark.parametrize(("links", "why"), BAD_LINKS)
def test_links_that_cannot_be_are_refused(tmp_path: Path, links: list[Link], why: str) -> None:
    with pytest.raises(NotCut, match=why):
        asyncio.run(ToxiproxyNetwork(tmp_path).open(links))


def test_links_of_any_name_are_cut(tmp_path: Path) -> None:
    """The library puts names into paths as they are."""

    async def run() -> None:
        network = ToxiproxyNetwork(tmp_path)
        odd = [link(name, free_port(), free_port()) for name in ("a/b?c%2F", "a b c", "a.b.c", "ü->ß")]
        await network.open(odd)
        for one in odd:
            await network.refuse(one.name)
            await network.heal(one.name)
        await network.close()

    asyncio.run(run())


def test_two_servers_are_told_apart(tmp_path: Path) -> None:
    """The library keeps host and port for all servers of a process in one place."""

    async def run() -> None:
        one, two = Server("one", tmp_path / "one.log"), Server("two", tmp_path / "two.log")
        await one.start()
        await two.start()
        try:
            first, second = Api(one.port), Api(two.port)
            first.create("p", f"{HOST}:{free_port()}", f"{HOST}:1")
            with pytest.raises(Refused, match="404"):
                second.proxy("p")
            first.put("p", [Toxic("t", "latency", "upstream", {"latency": 5, "jitter": 0})])
            first.put("p", [Toxic("t", "latency", "upstream", {"latency": 6, "jitter": 1})])
            with pytest.raises(Refused, match="is a latency"):
                first.put("p", [Toxic("t", "timeout", "upstream", {"timeout": 0})])
            assert [toxic.attributes for toxic in first.proxy("p").toxics] == [{"latency": 6, "jitter": 1}]
            first.remove("p", ["t"])
            first.remove("p", ["t"])
            assert first.proxy("p").toxics == []
            one.kill()
            with pytest.raises(Wedged, match="Connection"):
                first.proxy("p")
        finally:
            one.kill()
            two.kill()

    asyncio.run(run())


def test_proxies_of_the_environment_are_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{HOST}:1")

    async def run() -> None:
        async with place(ToxiproxyNetwork(tmp_path)) as at:
            await at.network.stall(NAME)
            await at.network.heal(NAME)

    asyncio.run(run())


def test_without_a_server_it_is_said_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOXIPROXY_SERVER", str(tmp_path / "nowhere"))
    assert "TOXIPROXY_SERVER" in server.unavailable()
    monkeypatch.delenv("TOXIPROXY_SERVER")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert "make toxiproxy" in server.unavailable()
    with pytest.raises(NotCut, match="make toxiproxy"):
        asyncio.run(ToxiproxyNetwork(tmp_path).open([link("a", free_port(), free_port())]))


def test_a_program_that_is_no_server_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOXIPROXY_SERVER", "/bin/false")
    with pytest.raises(NotCut, match="/bin/false for dc-b does not answer"):
        asyncio.run(ToxiproxyNetwork(tmp_path).open([link("a", free_port(), free_port())]))


RUN = """
import asyncio, sys
from pathlib import Path
from chaos.net.links import Link
from chaos.net.toxiproxy import ToxiproxyNetwork

async def run():
    network = ToxiproxyNetwork(Path(sys.argv[1]))
    await network.open([Link("a", "peer", "dc-b", "dc-a", ("127.0.0.1", int(sys.argv[2])), ("127.0.0.1", 1))])
    await network.slow("a", 1)
    print(*network.servers.values(), flush=True)
    await asyncio.sleep(600)

asyncio.run(run())
"""


def test_servers_end_with_a_run_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN, str(tmp_path), str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        handle = os.pidfd_open(pid)
        assert "toxiproxy" in Path(f"/proc/{pid}/cmdline").read_text("utf-8")
        process.kill()

    async def gone() -> None:
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(handle, ended.set)
        async with asyncio.timeout(10):
            await ended.wait()
        asyncio.get_running_loop().remove_reader(handle)

    asyncio.run(gone())
    os.close(handle)
