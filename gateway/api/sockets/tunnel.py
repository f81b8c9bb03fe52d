"""In a worker process: hands a client's connection to the core byte by byte, from its upgrade to its end."""

import asyncio
from typing import cast

from aiohttp import web

from gateway.api.sockets.passage import STALL_S
from node.errors import InternalError, Malformed, NotReady
from node.guard import Connection

STALLED_S = STALL_S + 3.0
"""The core cuts a client that takes nothing before this, but its goodbye can't get past what that client lets lie."""
FLUSH_S = 2.0
"""So long what is left for one side is sent when the other is gone."""


class _Side(asyncio.Protocol):
    """One of two connections: what it reads the other writes, no faster than that is taken.

    stalled_s: so long it may take nothing before both are ended. None: it takes what it can, which may be nothing.
    """

    def __init__(self, stalled_s: float | None = None) -> None:
        self.other: _Side
        self._stalled_s = stalled_s
        self._transport: asyncio.Transport | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.other.write(data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, _exc: Exception | None) -> None:
        self._takes()
        transport = self.other._transport
        if transport is not None:
            transport.close()
            asyncio.get_running_loop().call_later(FLUSH_S, transport.abort)

    def pause_writing(self) -> None:
        if self.other._transport is not None:
            self.other._transport.pause_reading()  # its end is not seen either, from here on
        if self._stalled_s is not None:
            self._stalled = asyncio.get_running_loop().call_later(self._stalled_s, self._cut)

    def resume_writing(self) -> None:
        self._takes()
        if self.other._transport is not None and not self.other._transport.is_closing():
            self.other._transport.resume_reading()

    def _takes(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _cut(self) -> None:
        self.abort()
        self.other.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)


async def to_core(request: web.Request, path: str) -> web.Response:
    """path: of the core's socket. The core's answer, 101 or a refusal, goes to the client as the core wrote it.

    Raises NotReady: the core is away, nothing was sent. Malformed: an upgrade with a body.
    """
    if "Content-Length" in request.headers or "Transfer-Encoding" in request.headers:
        raise Malformed("an upgrade has no body")
    if request.transport is None:
        return web.Response()  # to nobody: the client left already
    guarded = request.transport.get_protocol()
    if not isinstance(guarded, Connection):
        raise InternalError("streams need the connection guard in front of aiohttp")
    client, core = _Side(STALLED_S), _Side()  # the core waits for nodes, which may take long
    client.other, core.other = core, client
    try:
        await asyncio.get_running_loop().create_unix_connection(lambda: core, path)
    except OSError as error:
        raise NotReady("the gateway's core is away: nothing was sent; come back") from error
    if request.transport is None or request.transport.is_closing():
        core.abort()  # the client left meanwhile: nobody would end this side
        return web.Response()
    headers = b"".join(name + b": " + value + b"\r\n" for name, value in request.raw_headers)
    core.write(f"GET {request.rel_url.raw_path_qs} HTTP/1.1\r\n".encode() + headers + b"\r\n")
    guarded.hand_over(client)
    return web.Response()  # to nobody: the connection has left aiohttp
