"""A venue on 127.0.0.1 that sends what a test tells it to: frames, silence, garbage, a closed door."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import WSMsgType, web

Script = Callable[["Venue", web.WebSocketResponse], Awaitable[None]]


class Venue:
    """Each connection runs the next script of `scripts`, the last one again and again."""

    def __init__(self, scripts: list[Script]) -> None:
        self.scripts = scripts
        self.connections = 0
        self.received: list[str] = []
        self.fetched = 0
        self.fetched_at: list[float] = []
        self.fetching_at_once: list[int] = [0]
        self.retry_after_s = 0
        self.body: Callable[[], bytes | int] = lambda: 404
        self.port = 0
        self.answers_pings = True
        self.told = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/ws"

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(autoping=self.answers_pings)
        await socket.prepare(request)
        script = self.scripts[min(self.connections, len(self.scripts) - 1)]
        self.connections += 1
        reader = asyncio.create_task(self._read(socket))
        try:
            await script(self, socket)
        except ConnectionError:
            pass
        finally:
            reader.cancel()
        return socket

    async def _read(self, socket: web.WebSocketResponse) -> None:
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                self.received.append(message.data)
                self.told.set()

    async def _get(self, request: web.Request) -> web.StreamResponse:
        self.fetched += 1
        self.fetched_at.append(time.monotonic())
        self.fetching_at_once.append(self.fetching_at_once[0] + 1)
        self.fetching_at_once[0] += 1
        try:
            await asyncio.sleep(0.01)
            body = self.body()
        finally:
            self.fetching_at_once[0] -= 1
        headers = {"Retry-After": str(self.retry_after_s)}
        return web.Response(status=body, headers=headers) if isinstance(body, int) else web.Response(body=body)


@asynccontextmanager
async def listening(*scripts: Script) -> AsyncIterator[Venue]:
    venue = Venue(list(scripts))
    app = web.Application()
    app.router.add_get("/ws", venue._socket)
    app.router.add_get("/depth", venue._get)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    for port in range(21_300, 21_400):
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
        except OSError:
            continue
        venue.port = port
        break
    try:
        yield venue
    finally:
        await runner.cleanup()


def says(*frames: bytes | str, then: str = "stay") -> Script:
    """Send these; then stay silent, close, or cut the line without a word."""

    async def script(venue: Venue, socket: web.WebSocketResponse) -> None:
        for frame in frames:
            await (socket.send_bytes(frame) if isinstance(frame, bytes) else socket.send_str(frame))
        if then == "stay":
            await asyncio.sleep(60)
        elif then == "close":
            await socket.close()
        else:
            transport = socket._req.transport if socket._req is not None else None
            assert transport is not None
            transport.abort()

    return script
