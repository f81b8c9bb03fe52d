"""`/v1/orders/stream` and `/v1/feed`: a node's WebSockets behind the gateway's one address; who may open how many."""

import asyncio
from collections import Counter
from functools import partial

from aiohttp import WSMsgType, web

from gateway.api.context import PRINCIPAL
from gateway.api.relay import Relay, answer_of
from gateway.api.relayed import SOCKETS
from gateway.api.sockets.dial import Dialed, Dialer, Refused
from gateway.api.sockets.ledger import Ledger, refusal, token_of
from gateway.api.sockets.passage import CLOSE_TRY_LATER, CLOSE_UNAUTHENTICATED, Passage
from node.auth import Authenticator, Principal
from node.errors import InvalidField, Malformed, NodeError, NotReady, Overloaded, Unauthenticated

STREAMS_MAX = 1_000
"""Of all users together; each is a connection to a node as well."""
STRANGERS_MAX = 200
"""That have not said yet who they are. They take nothing of a node."""
PROTOCOLS = ("tiebreak.msgpack", "tiebreak.json")
FRAME_BYTES_MAX = 1 << 20
"""As nodes take them."""
AUTHENTICATE_S = 10.0
PING_S = 20.0
_CLOSE_S = 2.0
_GOODBYE_MS = 200


class Streams:
    """All streams of clients that end at a node. counters: for metrics."""

    def __init__(self, relay: Relay, authenticator: Authenticator, *, per_user_max: int) -> None:
        self.counters: Counter[str] = Counter()
        self.open: set[Passage] = set()
        self.draining = False
        self._dialer = Dialer(relay)
        self._authenticator = authenticator
        self._per_user_max = per_user_max
        self._of_user: Counter[str] = Counter()
        self._strangers = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """An aiohttp handler. What a node refuses is answered in its words. Raises NodeError: nothing was sent."""
        if not web.WebSocketResponse(protocols=PROTOCOLS).can_prepare(request):
            raise Malformed("this path speaks WebSocket: send an upgrade, of version 13")
        _ends_with_node(request)
        if self.draining:
            raise NotReady("this gateway leaves: come back, or go to the other site")
        principal = request.get(PRINCIPAL)
        if principal is None:
            return await self._of_stranger(request)
        self._check_room(principal)
        self._of_user[principal.subject] += 1
        try:
            return await self._of_user_known(request)
        finally:
            self._left(principal)

    async def _of_user_known(self, request: web.Request) -> web.StreamResponse:
        try:
            dialed = await self._dial(request, request.headers["Authorization"])
        except Refused as refused:
            self.counters["refused"] += 1
            return answer_of(refused.said)
        ledger = _ledger(request, request.headers["Authorization"].partition(" ")[2])
        try:
            client = _socket(dialed)
            await client.prepare(request)
        except BaseException:
            await dialed.close()
            raise
        await self._serve(request, client, dialed, ledger)
        return client

    async def _of_stranger(self, request: web.Request) -> web.StreamResponse:
        """Its first message says who it is, as at a node; the node hears of it only then."""
        if self._strangers >= STRANGERS_MAX:
            raise Overloaded("too many streams that have not authenticated; send the token in a header")
        client = _socket(None)
        self._strangers += 1
        try:
            await client.prepare(request)
            opcode, data = await _first(client)
        finally:
            self._strangers -= 1
        if client.closed:
            return client
        try:
            token = token_of(data, opcode) if data else ""
            if not token:
                raise Unauthenticated(f"authenticate first, within {AUTHENTICATE_S:g} s")
            principal = self._authenticator.verify(token)
            self._check_room(principal)
        except NodeError as error:
            code = CLOSE_UNAUTHENTICATED if isinstance(error, Unauthenticated) else CLOSE_TRY_LATER
            await _end(client, error, opcode, code)
            return client
        self._of_user[principal.subject] += 1
        try:
            await self._of_user_told(request, client, token, opcode)
        finally:
            self._left(principal)
        return client

    async def _of_user_told(
        self, request: web.Request, client: web.WebSocketResponse[bool], token: str, opcode: WSMsgType
    ) -> None:
        try:
            dialed = await self._dial(request, f"Bearer {token}")
        except Refused as refused:
            self.counters["refused"] += 1
            await client.send_frame(refused.said.body, opcode)
            await _close(client, CLOSE_TRY_LATER, f"HTTP {refused.said.status}")
        except NodeError as error:
            await _end(client, error, opcode, CLOSE_TRY_LATER)
        else:
            await self._serve(request, client, dialed, _ledger(request, token))

    async def _serve(
        self, request: web.Request, client: web.WebSocketResponse[bool], dialed: Dialed, ledger: Ledger | None
    ) -> None:
        passage = Passage(
            client,
            dialed,
            redial=partial(self._redial, request, ledger),
            ledger=ledger,
            counters=self.counters,
            ends_with_node=_ends_with_node(request),
        )
        self.counters["opened"] += 1
        self.open.add(passage)
        if self.draining:
            passage.leave(wait_s=0)  # it dialed, or said who it is, when the others were told
        try:
            await passage.run()
        finally:
            self.open.discard(passage)

    async def _redial(self, request: web.Request, ledger: Ledger | None) -> Dialed:
        token = ledger.token if ledger is not None else ""
        return await self._dial(request, f"Bearer {token}")

    async def _dial(self, request: web.Request, authorization: str) -> Dialed:
        offered = [one.strip() for one in request.headers.get("Sec-WebSocket-Protocol", "").split(",") if one.strip()]
        path = SOCKETS[request.path]
        query = request.rel_url.raw_query_string
        headers = request.headers.copy()
        headers["Authorization"] = authorization
        return await self._dialer.dial(path + (f"?{query}" if query else ""), headers, offered)

    # ---- bounds ----

    def _check_room(self, principal: Principal) -> None:
        if self._of_user.total() >= STREAMS_MAX:  # those that dial are streams already
            raise Overloaded(f"{STREAMS_MAX} streams to nodes are open here: come back, or go to the other site")
        if self._of_user[principal.subject] >= self._per_user_max:
            raise Overloaded(f"a user holds at most {self._per_user_max} streams to nodes")

    def _left(self, principal: Principal) -> None:
        self._of_user[principal.subject] -= 1
        if self._of_user[principal.subject] <= 0:
            del self._of_user[principal.subject]

    # ---- the end ----

    async def drain(self, *, timeout_ms: int) -> None:
        """Take no more; wait for what is under way; send everybody away with where to resume."""
        self.draining = True
        for passage in self.open:
            passage.leave(wait_s=timeout_ms / 2000)
        deadline_s = asyncio.get_running_loop().time() + timeout_ms / 1000
        while self._of_user and asyncio.get_running_loop().time() < deadline_s:  # noqa: ASYNC110 - each ends by itself
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        """End at once what is still open."""
        await self.drain(timeout_ms=_GOODBYE_MS)
        await self._dialer.close()


def _ends_with_node(request: web.Request) -> bool:
    """Raises InvalidField."""
    asked = request.query.get("on_node_lost", "replace")
    if asked not in ("replace", "close"):
        raise InvalidField("on_node_lost is replace or close", field="on_node_lost")
    return asked == "close"


def _ledger(request: web.Request, token: str) -> Ledger | None:
    if request.path == "/v1/feed":
        return None
    ledger = Ledger()
    ledger.token = token
    return ledger


def _socket(dialed: Dialed | None) -> web.WebSocketResponse[bool]:
    """The client's side. Its protocol is the one that the node chose; of strangers we choose as nodes do."""
    if dialed is None:
        protocols: tuple[str, ...] = PROTOCOLS
    else:
        protocols = (dialed.socket.protocol,) if dialed.socket.protocol else ()
    return web.WebSocketResponse(
        protocols=protocols, compress=False, max_msg_size=FRAME_BYTES_MAX, heartbeat=PING_S, timeout=_CLOSE_S,
        decode_text=False,
    )  # fmt: skip


async def _first(client: web.WebSocketResponse[bool]) -> tuple[WSMsgType, bytes]:
    """The first message, empty where none came in time or the client left."""
    try:
        message = await client.receive(timeout=AUTHENTICATE_S)
    except TimeoutError:
        return WSMsgType.TEXT, b""
    return (message.type, message.data) if message.type in (WSMsgType.TEXT, WSMsgType.BINARY) else (message.type, b"")


async def _end(client: web.WebSocketResponse[bool], error: NodeError, opcode: WSMsgType, code: int) -> None:
    await client.send_frame(*refusal(error, opcode))
    await _close(client, code, error.error)


async def _close(client: web.WebSocketResponse[bool], code: int, reason: str) -> None:
    try:
        async with asyncio.timeout(_CLOSE_S):
            await client.close(code=code, message=reason.encode()[:120])
    except TimeoutError:
        pass  # the transport goes with the handler
