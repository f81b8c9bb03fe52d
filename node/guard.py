"""What stands between the listener and HTTP: bounds on connections, in all and by address, and on idle time.

It knows no node, so that a gateway is guarded by the same.
"""

import asyncio
import json
import math
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import msgspec
import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from msgspec import Struct

from node import errors
from node.errors import NodeError, error_body

if TYPE_CHECKING:
    from node.config import NodeLimits

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.http")


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
        self.on_entered: Callable[[Connection], None] = _nothing
        self.on_left: Callable[[Connection], None] = _nothing
        """Told of each one that counts: who counts them with other processes' may turn one away."""
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
        self.on_left(connection)


def _nothing(_connection: "Connection") -> None:
    """Nobody else counts."""


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

    __slots__ = (
        "_busy_since_s", "_first_byte_at_s", "_guard", "_handed_over", "_idle_since_s", "_inner", "_transport",
        "address", "is_stream",
    )  # fmt: skip

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
        self._handed_over = False

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
        self._guard.on_entered(self)

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

    def hand_over(self, inner: asyncio.Protocol) -> None:
        """Another protocol has the connection from here on, and its time limits; it is counted as before.

        aiohttp believes that the client left: whatever its handler still answers goes nowhere.
        """
        before, self._inner, self._handed_over = self._inner, inner, True
        if isinstance(before, web.RequestHandler):
            before.transport = None  # else it would close it
            before.connection_lost(None)
        if self._transport is not None:
            inner.connection_made(self._transport)

    def is_overdue(self, now_s: float) -> bool:
        limits = self._guard.limits
        if self.is_stream or self._handed_over:
            return False
        if self._busy_since_s:
            return now_s - self._busy_since_s > limits.request_timeout_s
        if self._first_byte_at_s:
            return now_s - self._first_byte_at_s > limits.header_timeout_s
        return now_s - self._idle_since_s > limits.idle_timeout_s

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def turn_away(self) -> None:
        """End a connection that was let in before it was known that there are too many."""
        if self._transport is None or self._transport.is_closing():
            return
        self._guard.refused += 1
        if self._busy_since_s or self._handed_over:
            self._transport.abort()  # in the middle of an answer nothing else can be said
        else:
            self._transport.write(_too_many_connections())
            self._transport.close()


def _too_many_connections() -> bytes:
    error = errors.TooManyConnections("too many connections, from your address or in all")
    body = json.dumps({"code": error.code, "error": error.error, "message": error.message, "definite": True}).encode()
    return (
        f"HTTP/1.1 {error.status} Too Many Requests\r\nContent-Type: application/json\r\nConnection: close\r\n"
        f"Retry-After: {math.ceil(error.retry_after_s)}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
