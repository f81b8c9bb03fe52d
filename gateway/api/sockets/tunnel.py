"""In a worker process: hands a client's connection to the core byte by byte, from its upgrade to its end."""

import asyncio
from typing import cast

from aiohttp import web

from node.errors import InternalError, Malformed, NotReady
from node.guard import Connection


class _Side(asyncio.Protocol):
    """One of two connections: what it reads the other writes, no faster than that is taken."""

    def __init__(self) -> None:
        self.other: _Side
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.other.write(data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, _exc: Exception | None) -> None:
        if self.other._transport is not None:
            self.other._transport.close()

    def pause_writing(self) -> None:
        if self.other._transport is not None:
            self.other._transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other._transport is not None:
            self.other._transport.resume_reading()

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)


async def to_core(request: web.Request, path: str) -> web.Response:
    """path: of the core's socket. The core's answer, 101 or a refusal, goes to the client as the core wrote it.

    Raises NotReady: the core is away, nothing was sent. Malformed: an upgrade with a body.
    """
    if "Content-Length" in request.headers or "Transfer-Encoding" in request.headers:
        raise Malformed("an upgrade has no body")
    guarded = request.transport.get_protocol() if request.transport is not None else None
    if not isinstance(guarded, Connection):
        raise InternalError("streams need the connection guard in front of aiohttp")
    client, core = _Side(), _Side()
    client.other, core.other = core, client
    try:
        await asyncio.get_running_loop().create_unix_connection(lambda: core, path)
    except OSError as error:
        raise NotReady("the gateway's core is away: nothing was sent; come back") from error
    headers = b"".join(name + b": " + value + b"\r\n" for name, value in request.raw_headers)
    core.write(f"GET {request.rel_url.raw_path_qs} HTTP/1.1\r\n".encode() + headers + b"\r\n")
    guarded.hand_over(client)
    return web.Response()  # to nobody: the connection has left aiohttp
