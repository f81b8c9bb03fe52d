"""What the relay does when a node can't be connected to, hangs up, or says more than is passed on."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway.api import proxy as proxy_module
from gateway.api import relay as relay_module
from gateway.api.errors import AnswerTooLarge
from gateway.api.proxy import Proxy
from gateway.api.relay import Relay
from gateway.api.sockets import dial
from gateway.api.sockets.dial import Dialer, Refused
from node.errors import OutcomeUnknown

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
Respond = Callable[[bytes, asyncio.StreamWriter], None]


class Node:
    """Speaks HTTP by hand. respond: is given each head and where to write."""

    def __init__(self, respond: Respond) -> None:
        self.heard: list[bytes] = []
        self.respond = respond
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                self.heard.append(head.partition(b" ")[0])
                self.respond(head, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def relaying(*responds: Respond) -> AsyncIterator[tuple[Relay, list[Node]]]:
    nodes = [Node(respond) for respond in responds]
    servers = [await asyncio.start_server(node.serve, "127.0.0.1", 0) for node in nodes]
    for node, server in zip(nodes, servers, strict=True):
        node.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with aiohttp.ClientSession() as session:
        try:
            yield Relay(session, lambda: [node.url for node in nodes], "dc-a"), nodes
        finally:
            for server in servers:
                server.close()


def answers(_head: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(ANSWER)


class AnswersOnce:
    """Then it takes a request on the kept connection, and hangs up."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, _head: bytes, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        if self.asked == 1:
            writer.write(ANSWER)
        else:
            writer.close()


@pytest.fixture
def full() -> Any:
    """The address of a listener whose queue is full: a connection to it takes for ever."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        queued = []
        for _ in range(4):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
            queued.append(one)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for one in queued:
            one.close()


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_a_node_that_could_not_be_connected_to_in_time_was_sent_nothing(full: str, method: str) -> None:
    async with relaying(answers) as (relay, (node,)):
        relay._nodes = lambda: [full, node.url]
        assert (await relay.send(method, "/v1/orders")).status == 200
        assert node.heard == [method.encode()]


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_a_command_on_a_kept_connection_that_breaks_is_not_sent_again(method: str) -> None:
    async with relaying(AnswersOnce(), answers) as (relay, (node, other)):
        await relay.send("GET", "/v1/accounts")
        with pytest.raises(OutcomeUnknown):
            await relay.send(method, "/v1/orders")
        assert node.heard == [b"GET", method.encode()] and not other.heard


async def test_a_read_on_a_kept_connection_that_breaks_is_asked_again() -> None:
    async with relaying(AnswersOnce(), answers) as (relay, (node, other)):
        for _ in range(2):
            assert (await relay.send("GET", "/v1/accounts")).status == 200
        assert len(node.heard) == 3 and len(other.heard) == 1


async def test_an_answer_that_is_too_large_is_refused_and_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "ANSWER_BYTES_MAX", 100)

    def sized(head: bytes, writer: asyncio.StreamWriter) -> None:
        size = int(head.split(b"/")[2].split(b" ")[0])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * (size // 2))
        asyncio.get_running_loop().call_later(0.05, writer.write, b"x" * (size - size // 2))

    async with relaying(sized) as (relay, (node,)):
        assert (await relay.send("GET", "/v1/100")).body == b"x" * 100
        with pytest.raises(AnswerTooLarge):
            await relay.send("GET", "/v1/101")
        with pytest.raises(OutcomeUnknown):
            await relay.send("POST", "/v1/101")
        assert len(node.heard) == 3


async def test_a_refused_upgrade_is_passed_on_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_parts(_head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 10\r\n\r\n01234")
        asyncio.get_running_loop().call_later(0.05, writer.write, b"56789")

    async with relaying(in_parts) as (relay, _):
        dialer = Dialer(relay)
        with pytest.raises(Refused) as refused:
            await dialer.dial("/v1/stream", {}, ())
        assert refused.value.said.body == b"0123456789"
        monkeypatch.setattr(dial, "REFUSAL_BYTES_MAX", 4)
        with pytest.raises(Refused) as refused:
            await dialer.dial("/v1/stream", {}, ())
        assert len(refused.value.said.body) < 10
        await dialer.close()


@asynccontextmanager
async def proxied(path: Path, respond: Respond) -> AsyncIterator[tuple[str, Node]]:
    """A worker's way to a core, which is the node."""
    core = Node(respond)
    server = await asyncio.start_unix_server(core.serve, str(path))
    proxy = Proxy(str(path))
    app = web.Application()
    app.cleanup_ctx.append(proxy.life)
    app.router.add_route("*", "/{tail:.*}", proxy.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", core
    finally:
        await runner.cleanup()
        server.close()


async def test_a_long_answer_of_the_core_is_passed_on_for_as_long_as_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_module, "ANSWER_S_MAX", -1.6)

    def slowly(_head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
        for number in range(5):
            asyncio.get_running_loop().call_later(0.2 * number, writer.write, b"xx")

    async with (
        proxied(tmp_path / "core.sock", slowly) as (url, _),
        aiohttp.ClientSession() as session,
        session.get(url) as response,
    ):
        assert await response.read() == b"x" * 10


async def test_a_worker_sends_a_command_once(tmp_path: Path) -> None:
    async with proxied(tmp_path / "core.sock", AnswersOnce()) as (url, core), aiohttp.ClientSession() as session:
        async with session.get(url) as response:
            assert response.status == 200
        async with session.delete(url) as response:
            assert response.status >= 500
        assert core.heard == [b"GET", b"DELETE"]
