"""Relays what is for a node to one: the nearest that answers, unchanged both ways, errors too.

A command that may have been sent is never sent again from here: its sender has the key, and asks or repeats with it.
"""

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import aiohttp
import msgspec
import structlog
from aiohttp import web
from aiohttp.client_middlewares import ClientHandlerType
from msgspec import Struct
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from gateway.api.errors import AnswerTooLarge, NoNode
from node.errors import NodeError, OutcomeUnknown, Overloaded, ReadTimeout

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.relay")

UNDER_WAY_MAX = 1_000
"""Requests at nodes at once; the next is told to come back, before anything is sent."""
CONNECT_S = 0.5
ANSWER_S = 12.0
"""A node gives up a command after its own deadline, 10 s at most when nobody asks for more."""
ANSWER_S_MAX = 62.0
AWAY_S = 1.0
"""A node that could not be reached is asked last for so long."""
ANSWER_BYTES_MAX = 64 << 20

# Of one connection and not of what is said on it, or made anew by whoever sends it on.
HOP = frozenset(
    {
        "connection", "content-length", "date", "host", "keep-alive", "proxy-authenticate", "proxy-authorization",
        "server", "te", "trailer", "transfer-encoding", "upgrade", "expect", "accept-encoding", "content-encoding",
    }
)  # fmt: skip


def exact(url: str) -> URL:
    """The address letter by letter. Made tidy, `%2e%2e` would lead to another path than the one that was looked at."""
    return URL(url, encoded=True)


class AnswerLost(aiohttp.ClientError):
    """A command was sent, and its connection broke before the answer."""


async def sent_once(request: aiohttp.ClientRequest, handler: ClientHandlerType) -> aiohttp.ClientResponse:
    """For aiohttp's middlewares. It sends a PUT or DELETE again by itself when a connection that was kept breaks."""
    try:
        return await handler(request)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
        raise  # nothing was sent
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        if request.method in ("GET", "HEAD"):
            raise
        raise AnswerLost(str(error)) from error


async def up_to(content: aiohttp.StreamReader, bytes_max: int) -> bytes:
    """A whole body. One that is longer is cut a little behind `bytes_max`: whoever asks must look."""
    pieces, size = [], 0
    async for piece in content.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size > bytes_max:
            break
    return b"".join(pieces)


class Said(Struct, frozen=True):
    """What a node answered."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes
    node: str


class Relay:
    """nodes: base addresses, the nearest first. site: names the gateway in the header Via.

    tls: how connections to nodes that serve https are made now.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        nodes: Callable[[], Sequence[str]],
        site: str,
        *,
        tls: Callable[[], ssl.SSLContext | bool] = lambda: True,
    ) -> None:
        self._session = session
        self.tls = tls
        self._nodes = nodes
        self.via = f"1.1 gateway-{site}"
        self._away: dict[str, float] = {}
        self.under_way = 0
        self.counters: Counter[str] = Counter()

    def order(self) -> list[str]:
        """Whom to ask: the nearest first, those that were away a moment ago last."""
        now_s = time.monotonic()
        nodes = list(self._nodes())
        return sorted(nodes, key=lambda node: self._away.get(node, 0.0) > now_s)

    async def send(
        self,
        method: str,
        path: str,
        *,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        key: str = "",
        timeout_s: float = ANSWER_S,
    ) -> Said:
        """Ask the nodes in turn until one answers.

        Raises: Overloaded: too many under way. NoNode: none could be reached, nothing was sent. OutcomeUnknown: a
        command was sent and its answer did not come. ReadTimeout: no node answered a read. AnswerTooLarge: to a read.
        """
        if self.under_way >= UNDER_WAY_MAX:
            self.counters["overloaded"] += 1
            raise Overloaded(f"{self.under_way} requests are at nodes already; nothing was sent")
        is_read = method in ("GET", "HEAD")
        url = path + (f"?{query}" if query else "")
        kept = CIMultiDict((name, value) for name, value in (headers or {}).items() if name.lower() not in HOP)
        kept["Via"] = self.via
        last: Said | None = None
        failed = False
        self.under_way += 1
        try:
            for node in self.order():
                try:
                    said = await self._ask(method, node, url, kept, body, timeout_s)
                except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
                    self.is_away(node, "unreachable")
                    continue
                except (aiohttp.ClientError, OSError, TimeoutError) as error:
                    self.is_away(node, type(error).__name__)
                    if is_read:
                        failed = True
                        continue
                    self.counters["unknown"] += 1
                    raise OutcomeUnknown(
                        "a node was asked and did not answer; the command may still take effect: ask "
                        "GET /v1/commands/{key}, or send it again with the same key",
                        key=key,
                    ) from error
                if said.status == 503 and _is_leaving(said.body):
                    # It starts or leaves, and says for certain that nothing was logged.
                    last = said
                    continue
                self.counters["answered"] += 1
                return said
        finally:
            self.under_way -= 1
        if last is not None:
            return last
        self.counters["no_node"] += 1
        if failed:
            raise ReadTimeout("no node answered in time")
        raise NoNode("no node can be reached from this site; nothing was sent")

    def is_away(self, node: str, why: str) -> None:
        """Ask this one last for a while."""
        self.counters["failed"] += 1
        self._away[node] = time.monotonic() + AWAY_S
        log.info("a node did not answer", node=node, why=why)

    async def _ask(
        self, method: str, node: str, url: str, headers: CIMultiDict[str], body: bytes, timeout_s: float
    ) -> Said:
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S)
        async with self._session.request(
            method, exact(node + url), headers=headers, data=body or None, timeout=timeout, allow_redirects=False,
            ssl=self.tls(), middlewares=(sent_once,),
        ) as response:  # fmt: skip
            found = await up_to(response.content, ANSWER_BYTES_MAX)
            if len(found) > ANSWER_BYTES_MAX:
                if method not in ("GET", "HEAD"):
                    raise AnswerLost("the answer is too large")
                raise AnswerTooLarge(f"the answer has more than {ANSWER_BYTES_MAX} bytes: ask for less at once")
            return Said(response.status, response.headers, found, node)


class _Word(Struct, frozen=True):
    error: str = ""
    definite: bool = True


_decode_word = msgspec.json.Decoder(_Word).decode


def _is_leaving(body: bytes) -> bool:
    try:
        said = _decode_word(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return said.error == "not_ready" and said.definite


class _Key(Struct, frozen=True):
    key: str = ""
    client_order_id: str = ""


_decode_key = msgspec.json.Decoder(_Key).decode
_decode_key_msgpack = msgspec.msgpack.Decoder(_Key).decode


def key_of(request: web.Request, body: bytes) -> str:
    """The key that a command came with, for whoever must ask what became of it."""
    given = request.headers.get("Idempotency-Key", "")
    if given or not body:
        return given
    try:
        found = (_decode_key_msgpack if request.content_type == "application/msgpack" else _decode_key)(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ""
    return found.key or found.client_order_id


def timeout_s_of(request: web.Request) -> float:
    """A little longer than the node was asked to wait."""
    given = request.query.get("timeout_ms") or request.query.get("wait_ms", "")
    asked_s = int(given) / 1000 + 2.0 if given.isascii() and given.isdigit() and len(given) < 7 else ANSWER_S
    return min(max(asked_s, 2.0), ANSWER_S_MAX)


async def relayed(relay: Relay, request: web.Request) -> web.Response:
    """One request to a node and its answer back. Raises NodeError."""
    body = await request.read()
    said = await relay.send(
        request.method,
        request.rel_url.raw_path,
        query=request.rel_url.raw_query_string,
        headers=request.headers,
        body=body,
        key=key_of(request, body),
        timeout_s=timeout_s_of(request),
    )
    return read_of(request, said) if request.method in ("GET", "HEAD") else answer_of(said)


def read_of(request: web.Request, said: Said) -> web.Response:
    """A node's answer to a read. What one replica has, if at a token's index, may be of any age: that is said."""
    response = answer_of(said)
    if not is_linearizable(request):
        response.headers["X-As-Of"], response.headers["X-Staleness-Ms"] = "never", "-1"
    return response


def is_linearizable(request: web.Request) -> bool:
    """Whether a node asks the others before it answers this read, as nodes see it."""
    return (
        request.query.get("consistency", "linearizable") == "linearizable" and "X-Session-Token" not in request.headers
    )


def answer_of(said: Said) -> web.Response:
    response = web.Response(body=said.body, status=said.status)
    response.headers.popall("Content-Type", None)
    for name, value in said.headers.items():
        if name.lower() not in HOP:
            response.headers.add(name, value)
    response.headers["X-Relayed-From"] = said.node
    return response


async def settled(relay: Relay, *, timeout_ms: int) -> None:
    """Wait for what is under way at nodes, no longer than this."""
    deadline_s = time.monotonic() + timeout_ms / 1000
    while relay.under_way and time.monotonic() < deadline_s:  # noqa: ASYNC110 - each ends by itself
        await asyncio.sleep(0.01)


__all__ = ["NodeError", "Relay", "Said", "answer_of", "is_linearizable", "key_of", "read_of", "relayed", "settled"]
