"""In a worker process: hands all but its own streams to the core over a unix socket, and the answer back."""

from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from gateway.api.guard import is_socket
from gateway.api.relay import ANSWER_S_MAX, HOP, exact, sent_once
from gateway.api.sockets.tunnel import to_core
from gateway.workers.worker import Worker, refusals
from node.errors import NotReady, OutcomeUnknown
from node.guard import Connection

UNDER_WAY_MAX = 1_000
PIECE_BYTES = 64 << 10


class Proxy:
    """path: of the core's socket. Bodies of answers are passed on in pieces: an export may be long."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._session: aiohttp.ClientSession

    async def life(self, _app: web.Application) -> AsyncIterator[None]:
        """For aiohttp's cleanup_ctx."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(self._path, limit=UNDER_WAY_MAX),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            # Not for the whole: an export may be long.
            timeout=aiohttp.ClientTimeout(total=None, connect=ANSWER_S_MAX + 2.0, sock_read=ANSWER_S_MAX + 2.0),
            middlewares=(sent_once,),
        )
        yield
        await self._session.close()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        connection = request.transport.get_protocol() if request.transport is not None else None
        if isinstance(connection, Connection):
            connection.request_began(is_stream=False)
        try:
            return await self._handle(request)
        finally:
            if isinstance(connection, Connection):
                connection.request_ended()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if is_socket(request):
            return await to_core(request, self._path)
        headers = CIMultiDict((name, value) for name, value in request.headers.items() if name.lower() not in HOP)
        body = await request.read()
        try:
            answer = await self._session.request(
                request.method, exact(f"http://core{request.rel_url.raw_path_qs}"), headers=headers, data=body or None,
                allow_redirects=False,
            )  # fmt: skip
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotReady("the gateway's core is away: nothing was sent; come back") from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            if request.method in ("GET", "HEAD"):
                raise NotReady("the gateway's core went away: come back") from error
            message = "the gateway went away while it was asked: ask again with the same key"
            raise OutcomeUnknown(message, key=request.headers.get("Idempotency-Key", "")) from error
        async with answer:
            response = web.StreamResponse(status=answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in HOP:
                    response.headers.add(name, value)
            if answer.content_length is not None:
                response.content_length = answer.content_length
            await response.prepare(request)
            async for piece in answer.content.iter_chunked(PIECE_BYTES):
                await response.write(piece)
            await response.write_eof()
            return response


def add_routes(app: web.Application, worker: Worker) -> None:
    proxy = Proxy(worker.options.more["rest"])
    app.middlewares.append(refusals)
    app.cleanup_ctx.append(proxy.life)
    app.router.add_route("*", "/{tail:.*}", proxy.handle)
