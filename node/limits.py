"""What stands before every handler: bounds on connections, headers, bodies and time, request ids, errors as JSON.

Everything that is refused here was neither logged nor forwarded.
"""

import asyncio
import json
import math
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, cast

import msgspec
import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.typedefs import Middleware
from msgspec import Struct

from node import errors
from node.context import PRINCIPAL, REQUEST_ID, Node
from node.errors import NodeError, error_body
from node.tracing import TraceContext, enter, record

if TYPE_CHECKING:
    from node.config import NodeLimits

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.http")

TRACE: web.RequestKey[TraceContext] = web.RequestKey("trace", TraceContext)
"""The request's trace context; hand `.traceparent` on to the submitter."""
BODY_TYPES = frozenset({"application/json", "application/msgpack"})
STREAM_PATHS = frozenset({"/v1/stream", "/v1/feed"})
"""Here a WebSocket may bring its token in its first message, and does its own counting."""

_REQUEST_ID = re.compile(r"\A[A-Za-z0-9._:-]{1,64}\Z")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpLimits(Struct, frozen=True, kw_only=True):
    """Bounds on what strangers may take: connections, bytes and time, in seconds."""

    connections_max: int = 20_000
    connections_per_address_max: int = 2_000
    header_bytes_max: int = 8_190
    body_bytes_max: int = 262_144
    header_timeout_s: float = 10.0
    """From the first byte of a request to the end of its headers."""
    body_timeout_s: float = 10.0
    idle_timeout_s: float = 75.0
    """Between requests, and before the first one."""
    request_timeout_s: float = 120.0
    """From the end of its headers until a request's answer is taken by the client."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} {getattr(self, name)}: must be above 0")
        if self.connections_per_address_max > self.connections_max:
            raise ValueError(
                f"connections_per_address_max {self.connections_per_address_max} is above "
                f"connections_max {self.connections_max}"
            )

    @classmethod
    def of(cls, limits: "NodeLimits") -> "HttpLimits":
        """The bounds that a member's config names; those that it does not are the defaults."""
        return cls(
            connections_max=limits.connections_max,
            connections_per_address_max=limits.connections_per_address_max,
            header_bytes_max=limits.header_bytes_max,
            body_bytes_max=limits.body_bytes_max,
            header_timeout_s=limits.header_ms / 1000,
            body_timeout_s=limits.header_ms / 1000,
            idle_timeout_s=limits.idle_ms / 1000,
        )

    def runner_options(self) -> dict[str, object]:
        """Keyword arguments for aiohttp's AppRunner that belong to these bounds."""
        return {
            "max_line_size": self.header_bytes_max,
            "max_field_size": self.header_bytes_max,
            "max_headers": 100,
            "keepalive_timeout": self.idle_timeout_s,
            "lingering_time": 1.0,
            "access_log": None,
            # Compressed bodies are refused; with this aiohttp leaves the header that says so, and the bomb packed.
            "auto_decompress": False,
        }


class ConnectionGuard:
    """Counts connections, by address and in all, and ends those that are idle or slow.

    It stands between the listener and aiohttp, which bounds neither connections nor the time that a
    request's headers may take.
    """

    def __init__(self, limits: HttpLimits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self.clock = clock
        self.connections: set[Connection] = set()
        self.by_address: dict[str, int] = {}
        self.refused = 0
        self.cut = 0
        self._sweeper: asyncio.Task[None] | None = None

    def factory(self, server: web.Server) -> Callable[[], asyncio.Protocol]:
        """The protocol factory for `loop.create_server`, in place of aiohttp's own."""

        def connection() -> asyncio.Protocol:
            inner = server()
            # aiohttp has no other place to say how requests that it can't parse are answered.
            inner.__class__ = HttpProtocol
            return Connection(self, inner)

        return connection

    def start(self, *, every_s: float = 1.0) -> None:
        """Begin to look for idle and slow connections; needs the running loop."""

        async def sweep() -> None:
            while True:
                await asyncio.sleep(every_s)
                self.sweep()

        self._sweeper = asyncio.get_running_loop().create_task(sweep(), name="connection guard")

    async def stop(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
            self._sweeper = None

    def sweep(self) -> None:
        now_s = self.clock()
        for connection in list(self.connections):
            if connection.is_overdue(now_s):
                self.cut += 1
                connection.abort()

    def admit(self, address: str) -> bool:
        limits = self.limits
        if len(self.connections) >= limits.connections_max:
            return False
        return self.by_address.get(address, 0) < limits.connections_per_address_max

    def entered(self, connection: "Connection") -> None:
        self.connections.add(connection)
        self.by_address[connection.address] = self.by_address.get(connection.address, 0) + 1

    def left(self, connection: "Connection") -> None:
        self.connections.discard(connection)
        count = self.by_address.get(connection.address, 0) - 1
        if count > 0:
            self.by_address[connection.address] = count
        else:
            self.by_address.pop(connection.address, None)


class HttpProtocol(web.RequestHandler):
    """aiohttp's own, except that what is no HTTP is refused in our words, and is no error of ours in the log."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        refused: NodeError
        if isinstance(exc, LineTooLong):
            refused = errors.HeadersTooLarge(f"a line of the headers is longer than {self.max_field_size} bytes")
        else:
            refused = errors.Malformed("this is not an HTTP request that can be read")
        request_id = secrets.token_hex(8)
        log.info("refused", request_id=request_id, status=refused.status, error=refused.error, remote=request.remote)
        response = web.Response(
            body=msgspec.json.encode(error_body(refused, request_id)),
            status=refused.status,
            content_type="application/json",
            headers={"X-Request-ID": request_id},
        )
        response.force_close()
        return response


class Connection(asyncio.Protocol):
    """One accepted connection: aiohttp's protocol behind a counter and four time limits."""

    def __init__(self, guard: ConnectionGuard, inner: asyncio.Protocol) -> None:
        self.address = ""
        self.is_stream = False
        """A WebSocket: from the upgrade on its own heartbeats decide how long it lives."""
        self._guard = guard
        self._inner: asyncio.Protocol | None = inner
        self._transport: asyncio.Transport | None = None
        self._idle_since_s = guard.clock()
        self._first_byte_at_s = 0.0
        self._busy_since_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if peer else ""
        if not self._guard.admit(self.address):
            self._guard.refused += 1
            self._inner = None
            self._transport.write(_too_many_connections())
            self._transport.close()
            return
        self._guard.entered(self)
        if self._inner is not None:
            self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._inner is not None:
            self._guard.left(self)
            self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._inner is None:
            return
        if not self._busy_since_s and not self._first_byte_at_s:
            self._first_byte_at_s = self._guard.clock()
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._inner is not None else None

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()

    def request_began(self, *, is_stream: bool) -> None:
        self.is_stream = is_stream
        self._busy_since_s = self._guard.clock()
        self._first_byte_at_s = 0.0

    def request_ended(self) -> None:
        self.is_stream = False
        self._busy_since_s = 0.0
        self._idle_since_s = self._guard.clock()

    def is_overdue(self, now_s: float) -> bool:
        limits = self._guard.limits
        if self.is_stream:
            return False
        if self._busy_since_s:
            return now_s - self._busy_since_s > limits.request_timeout_s
        if self._first_byte_at_s:
            return now_s - self._first_byte_at_s > limits.header_timeout_s
        return now_s - self._idle_since_s > limits.idle_timeout_s

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def middlewares(node: Node, limits: HttpLimits | None = None) -> list[Middleware]:
    """All that a request passes before its handler, outermost first.

    1. request id, trace, errors as JSON, metrics; 2. bounds on headers and body, content types;
    3. the principal of /v1 (PRINCIPAL); 4. its token bucket and the X-RateLimit headers.
    """
    bounds = limits or HttpLimits.of(node.config.limits)

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        connection = request.transport.get_protocol() if request.transport is not None else None
        if isinstance(connection, Connection):
            connection.request_began(is_stream="Upgrade" in request.headers and request.path in STREAM_PATHS)
        given = request.headers.get("X-Request-ID", "")
        request_id = given if _REQUEST_ID.match(given) else secrets.token_hex(8)
        request[REQUEST_ID] = request_id
        request[TRACE] = trace = enter(request.headers.get("traceparent", ""))
        began_ns = time.perf_counter_ns()
        try:
            response = await _answered(request, handler, request_id)
        finally:
            if isinstance(connection, Connection):
                connection.request_ended()
        if not response.prepared:
            response.headers["X-Request-ID"] = request_id
            response.headers["traceparent"] = trace.traceparent
        node.metrics.requests.labels(request.method, str(response.status)).inc()
        if not isinstance(response, web.WebSocketResponse):
            node.metrics.request_seconds.labels(request.method).observe((time.perf_counter_ns() - began_ns) / 1e9)
            record(
                f"{request.method} {_route(request)}", trace, began_ns, status=response.status, request_id=request_id
            )
        return response

    @web.middleware
    async def bound(request: web.Request, handler: Handler) -> web.StreamResponse:
        if sum(len(name) + len(value) for name, value in request.raw_headers) > bounds.header_bytes_max:
            raise errors.HeadersTooLarge(f"the headers are larger than {bounds.header_bytes_max} bytes")
        if request.can_read_body:
            await _read_body(request, bounds)
        return await handler(request)

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        path = request.path
        if not path.startswith("/v1/"):
            return await handler(request)
        header = request.headers.get("Authorization")
        if header is None and path in STREAM_PATHS and "Upgrade" in request.headers:
            return await handler(request)
        principal = node.authenticator.verify_header(header)
        request[PRINCIPAL] = principal
        if path in STREAM_PATHS and "Upgrade" in request.headers:
            return await handler(request)
        cancel = request.method == "DELETE" and path.startswith("/v1/orders")
        grant = node.limiter.take(principal.subject, commands=not cancel, cancels=cancel)
        rate_headers = grant.headers(time.time())
        if not (grant.commands or grant.cancels):
            node.metrics.shed.labels("rate_limited").inc()
            refused = errors.RateLimited(
                f"the bucket of {grant.limit} requests is empty", retry_after_s=grant.retry_after_s
            )
            return _refusal(request, refused, rate_headers)
        try:
            response = await handler(request)
        except NodeError as error:
            return _refusal(request, error, rate_headers)
        if not response.prepared:
            response.headers.update(rate_headers)
        return response

    return [answer, bound, authenticate]


def _route(request: web.Request) -> str:
    """The route's pattern: spans of one kind have one name."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unknown"


async def _answered(request: web.Request, handler: Handler, request_id: str) -> web.StreamResponse:
    try:
        return await handler(request)
    except NodeError as error:
        return _refusal(request, error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return _refusal(request, _of_http(error), headers)
    except (asyncio.CancelledError, ConnectionError):
        raise  # the client went away
    except Exception:
        log.exception(
            "request failed",
            request_id=request_id,
            trace_id=request[TRACE].trace_id,
            method=request.method,
            path=request.path,
        )
        message = f"we were wrong; the log has it under request_id {request_id}"
        return _refusal(request, errors.InternalError(message))


async def _read_body(request: web.Request, limits: HttpLimits) -> None:
    """Read the whole body, so that handlers find it at once. Raises the NodeError that says what is wrong with it."""
    length = request.content_length
    if length is not None and length > limits.body_bytes_max:
        raise errors.TooLarge(f"the body is {length} bytes; at most {limits.body_bytes_max} are taken")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise errors.UnsupportedMediaType("compressed bodies are not taken", field="Content-Encoding")
    if request.method not in ("GET", "HEAD", "DELETE"):
        if request.content_type not in BODY_TYPES:
            raise errors.UnsupportedMediaType(
                f"Content-Type must be one of {', '.join(sorted(BODY_TYPES))}", field="Content-Type"
            )
        if (request.charset or "utf-8").lower().replace("_", "-") not in ("utf-8", "utf8"):
            raise errors.UnsupportedMediaType("the charset must be utf-8", field="Content-Type")
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            body = await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise errors.TooLarge(f"the body is larger than {limits.body_bytes_max} bytes") from error
    except TimeoutError as error:
        raise errors.RequestTimeout(f"the body did not arrive within {limits.body_timeout_s:g} s") from error
    except web.RequestPayloadError as error:
        raise errors.Malformed("the body does not have the form that its headers announce") from error
    if len(body) > limits.body_bytes_max:
        raise errors.TooLarge(f"the body is larger than {limits.body_bytes_max} bytes")


def _refusal(request: web.Request, error: NodeError, headers: dict[str, str] | None = None) -> web.Response:
    request_id = request[REQUEST_ID]
    response = web.Response(
        body=msgspec.json.encode(error_body(error, request_id)),
        status=error.status,
        content_type="application/json",
        headers=headers,
    )
    response.headers["X-Request-ID"] = request_id
    response.headers.update(error.headers)
    if error.retry_after_s or error.status in (429, 503):
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if error.status in (408, 413):
        response.force_close()  # what is still on its way belongs to no request
    say = log.warning if error.status >= 500 else log.info
    say(
        "refused",
        request_id=request_id,
        trace_id=request[TRACE].trace_id,
        method=request.method,
        path=request.path,
        status=error.status,
        error=error.error,
    )
    return response


_BY_STATUS: dict[int, type[NodeError]] = {
    404: errors.NotFound,
    405: errors.MethodNotAllowed,
    413: errors.TooLarge,
    415: errors.UnsupportedMediaType,
    431: errors.HeadersTooLarge,
}


def _of_http(error: web.HTTPException) -> NodeError:
    """aiohttp's own refusals in our words."""
    kind = _BY_STATUS.get(error.status, errors.Malformed)
    message = {404: "no such path", 405: f"use one of {error.headers.get('Allow', '')}"}.get(error.status)
    return kind(message or error.reason or kind.error)


def _too_many_connections() -> bytes:
    error = errors.TooManyConnections("too many connections, from your address or in all")
    body = json.dumps({"code": error.code, "error": error.error, "message": error.message, "definite": True}).encode()
    return (
        f"HTTP/1.1 {error.status} Too Many Requests\r\nContent-Type: application/json\r\nConnection: close\r\n"
        f"Retry-After: {math.ceil(error.retry_after_s)}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
