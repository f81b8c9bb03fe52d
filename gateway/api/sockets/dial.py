"""Opens a WebSocket at the nearest node that takes it; a node's refusal is kept whole, so that it can be passed on."""

import asyncio
from collections.abc import Mapping, Sequence

import aiohttp
from aiohttp.client_middlewares import ClientHandlerType
from msgspec import Struct
from multidict import CIMultiDict

from gateway.api.errors import NoNode
from gateway.api.relay import CONNECT_S, HOP, Relay, Said, exact, up_to

HANDSHAKE_S = 2.0
MESSAGE_BYTES_MAX = 16 << 20
"""From a node; what clients send is bounded by far less."""
REFUSAL_BYTES_MAX = 64 << 10
_CLOSE_S = 0.5


class Refused(Exception):
    """A node answered the upgrade with something else."""

    def __init__(self, said: Said) -> None:
        super().__init__(f"HTTP {said.status}")
        self.said = said


class Dialed(Struct, frozen=True):
    socket: aiohttp.ClientWebSocketResponse[bool]
    node: str

    async def close(self, code: int = 1000) -> None:
        """Say goodbye. A node that reads nothing can't hold this up, nor who still waits for room to write to it."""
        try:
            async with asyncio.timeout(2 * _CLOSE_S):
                await self.socket.close(code=code)
        except TimeoutError:
            pass
        finally:
            self._abort()

    async def drop(self) -> None:
        """End the connection now; whoever waits for room to write goes on."""
        self._abort()
        await self.socket.close()  # sends nothing any more: the session lets go of it

    def _abort(self) -> None:
        # aiohttp has no public word for it: its close waits until the other side has taken everything.
        transport = self.socket._writer.transport
        if transport is not None:
            transport.abort()


class Dialer:
    """relay: knows the nodes, which of them are away, and their certificates."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        # Apart from requests: streams live long, and must not take their connections.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            middlewares=(_whole_refusal,),
        )

    async def dial(self, path: str, headers: Mapping[str, str], protocols: Sequence[str]) -> Dialed:
        """Raises NoNode: none could be reached. Refused: one said no, or all that answered were not ready."""
        kept = CIMultiDict(
            (name, value)
            for name, value in headers.items()
            if name.lower() not in HOP and not name.lower().startswith("sec-websocket-")
        )
        kept["Via"] = self._relay.via
        last: Refused | None = None
        for node in self._relay.order():
            try:
                async with asyncio.timeout(HANDSHAKE_S):
                    socket = await self._session.ws_connect(
                        exact(node + path), headers=kept, protocols=protocols, max_msg_size=MESSAGE_BYTES_MAX,
                        compress=0, decode_text=False, timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_S),
                        autoclose=False, ssl=self._relay.tls(),
                    )  # fmt: skip
            except Refused as refused:
                if refused.said.status != 503:
                    raise
                last = refused  # it starts, leaves or has no majority: another one may not
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                self._relay.is_away(node, type(error).__name__)
            else:
                return Dialed(socket, node)
        if last is not None:
            raise last
        raise NoNode("no node can be reached from this site; nothing was sent")

    async def close(self) -> None:
        await self._session.close()


async def _whole_refusal(request: aiohttp.ClientRequest, handler: ClientHandlerType) -> aiohttp.ClientResponse:
    response = await handler(request)
    if response.status != 101:
        async with response:
            body = await up_to(response.content, REFUSAL_BYTES_MAX)
            raise Refused(Said(response.status, response.headers, body, str(request.url.origin())))
    return response
