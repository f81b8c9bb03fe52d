"""A worker's tunnel to the core: it ends with either side, whatever the other one does not read."""

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from gateway.api.sockets import tunnel
from gateway.api.sockets.tunnel import to_core
from node.guard import ConnectionGuard, HttpLimits
from tests.gateway.api.sites import until

UPGRADE = b"GET /v1/orders/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
PIECE = bytes(16 << 10)


class CoreEnd(asyncio.Protocol):
    """The core's side of one tunnel, which the test makes write."""

    def __init__(self, core: "Core") -> None:
        self.transport: asyncio.Transport
        self.core = core
        self.is_paused = False
        self.is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.core.ends.append(self)

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True


class Core:
    """A core, and a worker before it."""

    def __init__(self) -> None:
        self.ends: list[CoreEnd] = []
        self.guard = ConnectionGuard(HttpLimits())
        self.port = 0

    async def handle(self, request: web.Request) -> web.Response:
        return await to_core(request, self.path)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Core"]:
        loop = asyncio.get_running_loop()
        with tempfile.TemporaryDirectory(prefix="tbtun") as folder:
            self.path = str(Path(folder) / "core.sock")
            core = await loop.create_unix_server(lambda: CoreEnd(self), self.path)
            app = web.Application()
            app.router.add_get("/v1/orders/stream", self.handle)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            assert runner.server is not None
            front = await loop.create_server(self.guard.factory(runner.server), "127.0.0.1", 0)
            self.port = front.sockets[0].getsockname()[1]
            try:
                yield self
            finally:
                for end in self.ends:
                    end.transport.abort()
                front.close()
                core.close()
                await runner.cleanup()

    async def client(self) -> socket.socket:
        """One that reads nothing by itself; its end of the tunnel is the last of `ends`."""
        made = socket.create_connection(("127.0.0.1", self.port))
        made.sendall(UPGRADE)
        await until(lambda: bool(self.ends))
        return made


async def test_a_client_that_reads_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel, "STALLED_S", 0.4)
    async with Core().running() as core:
        client = await core.client()
        (end,) = core.ends
        while not end.is_paused:
            end.transport.write(PIECE)
            await asyncio.sleep(0)
        end.transport.close()  # the core gives it up: the worker does not read, and so does not see it
        await until(lambda: end.is_lost and not core.guard.connections)
        client.close()


async def test_a_client_that_reads_late_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel, "STALLED_S", 0.4)
    async with Core().running() as core:
        client = await core.client()
        (end,) = core.ends
        while not end.is_paused:
            end.transport.write(PIECE)
            await asyncio.sleep(0)
        client.setblocking(False)
        await asyncio.sleep(0.2)
        while end.transport.get_write_buffer_size():
            try:
                assert client.recv(1 << 20)
            except BlockingIOError:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.4)
        assert not end.is_lost and core.guard.connections
        client.close()
        await until(lambda: end.is_lost)


async def test_what_is_left_for_a_client_that_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel, "FLUSH_S", 0.2)
    async with Core().running() as core:
        client = await core.client()
        (end,), (connection,) = core.ends, core.guard.connections
        transport = connection._transport
        assert transport is not None
        while not transport.get_write_buffer_size():
            end.transport.write(PIECE)
            await asyncio.sleep(0.001)
        end.transport.close()
        await until(lambda: not core.guard.connections)
        client.close()


async def test_a_client_that_leaves_while_the_core_is_dialed_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, go = asyncio.get_running_loop(), asyncio.Event()
    connect = loop.create_unix_connection

    async def slowly(*words: Any) -> Any:
        found = await connect(*words)
        await go.wait()
        return found

    async with Core().running() as core:
        monkeypatch.setattr(loop, "create_unix_connection", slowly)
        client = await core.client()
        client.close()
        await until(lambda: not core.guard.connections)
        assert not core.ends[0].is_lost
        go.set()
        await until(lambda: core.ends[0].is_lost)
