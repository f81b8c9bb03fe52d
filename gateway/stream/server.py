"""`GET /v1/stream`: who is let in, what all of them share, and how they are sent away when the gateway leaves.

The handshake is aiohttp's request like any other; behind it the connection is handed over to a small protocol of our
own: what aiohttp keeps per WebSocket is several times what we need, and there are a hundred thousand of them.
"""

import asyncio
import base64
import binascii
import hashlib
import random
import socket
import time
from collections.abc import Callable

import msgspec
import structlog
from aiohttp import web

from gateway.fanout.fragment import JSON, MSGPACK
from gateway.fanout.hub import Hub, Round, wall_us
from gateway.fanout.ring import Place
from gateway.fanout.source import Opened, Source
from gateway.stream.admission import StreamLimits
from gateway.stream.connection import Connection
from gateway.stream.places import STREAM, SUBSCRIPTION, Done, Door, OwnDoor
from gateway.stream.words import Heartbeat, Status
from node.auth import Authenticator, Principal
from node.errors import InternalError, Malformed, NotReady, Overloaded
from node.guard import Connection as GuardedConnection

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.stream")

JSON_PROTOCOL = "tiebreak.json"
MSGPACK_PROTOCOL = "tiebreak.msgpack"
SWEEP_SLICE = 500
"""So many connections are looked at in one turn of the loop."""
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


class StreamServer:
    """All streams of one process. is_ready: false while the cache is cold; new streams are told to come back.

    door: where places are counted; this process's own, if not given. counters: for metrics, beside those of `hub`.
    """

    def __init__(
        self,
        hub: Hub,
        source: Source,
        authenticator: Authenticator,
        *,
        limits: StreamLimits | None = None,
        is_ready: Callable[[], bool] = lambda: True,
        door: Door | None = None,
    ) -> None:
        self.hub = hub
        self.source = source
        self.authenticator = authenticator
        self.limits = limits or StreamLimits()
        self.door = door or OwnDoor(self.limits)
        self.admission = self.door.admission
        self.connections: set[Connection] = set()
        self.counters = {"opened": 0, "cut": 0, "skipped": 0, "refused": 0}
        self.draining = False
        self._is_ready = is_ready
        self._subscriptions = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._told = self.status
        self._heartbeats: dict[int, bytes] = {}

    # ---- the endpoint ----

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """An aiohttp handler. Raises NodeError: not ready, too many at once, a bad token, no WebSocket."""
        if self.draining or not self._is_ready():
            raise NotReady("this gateway starts or drains: come back, or go to the other site", retry_after_s=1.0)
        wait_s = await self.door.admit()
        if request.transport is None:
            raise NotReady("the client went away")
        if wait_s:
            self.counters["refused"] += 1
            error = NotReady(
                f"too many come at once; come back in {wait_s * 1000:.0f} ms (retry_after_ms)", retry_after_s=wait_s
            )
            error.headers["X-Retry-After-Ms"] = f"{wait_s * 1000:.0f}"
            raise error
        header = request.headers.get("Authorization")
        principal = self.authenticator.verify_header(header) if header is not None else None
        accept = _accept(request)
        transport, guarded = request.transport, _guarded(request)
        offered = [one.strip() for one in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
        protocol = next((one for one in offered if one in (MSGPACK_PROTOCOL, JSON_PROTOCOL)), "")
        lines = [
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
            accept,
            f"\r\nSec-WebSocket-Protocol: {protocol}".encode() if protocol else b"",
            b"\r\n\r\n",
        ]
        sock = transport.get_extra_info("socket")
        if sock is not None and self.limits.send_buffer_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.limits.send_buffer_bytes)
        transport.write(b"".join(lines))
        connection = Connection(self, transport, MSGPACK if protocol == MSGPACK_PROTOCOL else JSON, principal)
        guarded.hand_over(connection)
        self.counters["opened"] += 1
        if not connection.is_ended:
            self.connections.add(connection)
        return web.Response()  # to nobody: the connection has left aiohttp

    # ---- what connections tell ----

    def entered(self, principal: Principal, done: Done) -> None:
        """Asks for a place. done: told at once, or soon, whether this user may hold one more stream."""
        self.door.take(STREAM, principal.subject, 1, done)

    def gave_up(self, principal: Principal) -> None:
        """A stream ended before it was told that it has a place."""
        self.door.free(STREAM, principal.subject, 1)

    def check_room(self, connection: Connection, more: int) -> None:
        """Raises Overloaded: this stream itself has no room for so many more subscriptions."""
        most = self.limits.subscriptions_per_connection_max
        if len(connection.topics) + more > most:
            raise Overloaded(
                f"{len(connection.topics)} subscriptions and {more} more: a stream holds at most {most}",
                field="symbols",
            )

    def wants(self, principal: Principal, more: int, done: Done) -> None:
        """Asks for room for a user's further subscriptions."""
        self.door.take(SUBSCRIPTION, principal.subject, more, done)

    def subscribed(self, connection: Connection, wanted: int, more: int) -> None:
        """Of those that were asked for, so many more are read now; the others' room is free again."""
        self._subscriptions += more
        if wanted != more and connection.principal is not None:
            self.door.free(SUBSCRIPTION, connection.principal.subject, wanted - more)

    def unsubscribed(self, connection: Connection, less: int) -> None:
        self._subscriptions -= less
        if less and connection.principal is not None:
            self.door.free(SUBSCRIPTION, connection.principal.subject, less)

    def left(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self.counters["skipped"] += connection.skipped
        if connection.has_place and connection.principal is not None:
            self.gave_up(connection.principal)
        self.unsubscribed(connection, len(connection.topics))
        self.hub.leave(connection)

    def unread(self, opened: Opened) -> None:
        """Topics were opened for a client that left meanwhile: nobody reads them."""
        for key in opened.states:
            topic = self.hub.topics.get(key)
            if topic is None:
                self.hub.forget(key)

    def write_now(self, connection: Connection) -> None:
        """Send what it has at once, not with the next round."""
        now = Round()
        now.begin(wall_us(), time.monotonic(), self.hub.seq)
        connection.write(now)

    def lost_past(self, channels: list[str]) -> None:
        """The source began anew (another epoch): whoever reads these channels is told that something is missing."""
        for connection in list(self.connections):
            mine = sorted({key[0] for key in connection.topics if key[0] in channels})
            if mine:
                connection.lost_past(mine)

    def counts(self) -> dict[str, float]:
        """What this process did and does, for metrics; see metrics.py for the words."""
        hub, pace = self.hub, self.hub.pace
        return {
            **{name: float(count) for name, count in (*self.counters.items(), *hub.counters.items())},
            "skipped": float(self.counters["skipped"] + sum(one.skipped for one in self.connections)),
            "connections": float(len(self.connections)),
            "subscriptions": float(self._subscriptions),
            "topics": float(len(hub.topics)),
            "tick_ms": float(pace.tick_ms),
            "level": float(pace.level),
            "round_ms": pace.round_ms,
            "lag_ms": pace.lag_ms,
            "source_age_ms": float(self.source.age_ms),
        }

    # ---- time ----

    @property
    def status(self) -> Status:
        return Status(
            epoch=self.hub.epoch,
            tick_ms=self.hub.pace.tick_ms,
            shed=[name for name in self.hub.shed if name in self.source.channels],
            source="live" if self.source.is_live else "lost",
            age_ms=self.source.age_ms,
        )

    def start(self) -> None:
        """Begin to send, and to look after connections; needs the running loop."""
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self.hub.run(), name="fan-out"),
            loop.create_task(self._sweep(), name="streams"),
        ]
        for task in self._tasks:
            task.add_done_callback(_report)

    async def _sweep(self) -> None:
        while True:
            began_s = time.monotonic()
            status = self._new_status()
            self._heartbeats = {}
            for number, connection in enumerate(list(self.connections), 1):
                connection.tick(began_s, self._heartbeat)
                if status is not None and connection.principal is not None and not connection.is_ended:
                    connection.say(status)
                if number % SWEEP_SLICE == 0:
                    self._heartbeats = {}
                    await asyncio.sleep(0)
            await asyncio.sleep(max(0.1, began_s + 1.0 - time.monotonic()))

    def _new_status(self) -> Status | None:
        """How the stream is served, when that is not what was told last; the age alone is no change."""
        now, before = self.status, self._told
        if (now.epoch, now.tick_ms, now.shed, now.source) == (before.epoch, before.tick_ms, before.shed, before.source):
            return None
        self._told = now
        return now

    def _heartbeat(self, formats: int) -> bytes:
        found = self._heartbeats.get(formats)
        if found is None:
            message = Heartbeat(position=str(Place(self.hub.epoch, self.hub.seq)), age_ms=self.source.age_ms)
            found = msgspec.json.encode(message) if formats == JSON else msgspec.msgpack.encode(message)
            self._heartbeats[formats] = found
        return found

    # ---- the end ----

    async def drain(self, *, timeout_ms: int, spread_ms: int | None = None) -> None:
        """Send everyone away in steps spread over the timeout, each with where to resume and when to come back.

        spread_ms: how long the returns are spread; as the admitted rate of the others can take them, if not given.
        """
        self.draining = True
        connections = list(self.connections)
        random.shuffle(connections)
        if spread_ms is None:
            spread_ms = int(1_000 + len(connections) * 1_000 / self.admission.limits.admitted_per_s)
        began_s, step_s = time.monotonic(), timeout_ms / 1000 / max(1, len(connections))
        for number, connection in enumerate(connections):
            connection.drain(random.randrange(spread_ms + 1))
            wait_s = began_s + (number + 1) * step_s - time.monotonic()
            if wait_s > 0.005:
                await asyncio.sleep(wait_s)

    async def stop(self) -> None:
        """End the tasks, and at once whatever is still open."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in list(self.connections):
            connection.transport.abort()


def _accept(request: web.Request) -> bytes:
    """What proves that we read the key. Raises Malformed."""
    headers = request.headers
    if (
        request.method != "GET"
        or headers.get("Upgrade", "").strip().lower() != "websocket"
        or "upgrade" not in headers.get("Connection", "").lower()
    ):
        raise Malformed("this path speaks WebSocket: send an upgrade")
    if headers.get("Sec-WebSocket-Version") != "13":
        raise Malformed("Sec-WebSocket-Version must be 13", field="Sec-WebSocket-Version")
    key = headers.get("Sec-WebSocket-Key", "")
    try:
        size = len(base64.b64decode(key, validate=True))
    except (binascii.Error, ValueError):
        size = 0
    if size != 16:
        raise Malformed("Sec-WebSocket-Key must be 16 bytes in base64", field="Sec-WebSocket-Key")
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest())


def _guarded(request: web.Request) -> GuardedConnection:
    connection = request.transport.get_protocol() if request.transport is not None else None
    if not isinstance(connection, GuardedConnection):
        raise InternalError("streams need the connection guard in front of aiohttp")
    return connection


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.critical("the fan-out ended", error=repr(task.exception()), exc_info=task.exception())
