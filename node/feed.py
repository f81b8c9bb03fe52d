"""/v1/feed: every committed event, in order, without gap or repeat, from any position that is still held.

Positions are the log's, so a follower may go on at any replica. A page or message is encoded once for all
followers. Who asks for a past that is gone gets `snapshot_required`, after a restore `epoch_changed`.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence

import msgspec
import structlog
from aiohttp import WSMsgType, web
from msgspec import Struct

from cluster import wire
from node.auth import Principal, Role
from node.channel import (
    CLOSE_EPOCH_CHANGED,
    CLOSE_MALFORMED,
    CLOSE_SHUTDOWN,
    CLOSE_SLOW,
    CLOSE_SNAPSHOT_REQUIRED,
    CLOSE_UNAUTHENTICATED,
)
from node.context import PRINCIPAL, Node
from node.errors import (
    EpochChanged,
    Forbidden,
    InvalidField,
    NodeError,
    NotReady,
    Overloaded,
    SnapshotRequired,
    Unauthenticated,
)
from node.event_views import Catalogue, EventViews, Position
from node.feed_snapshot import IDLE_S, Snapshots
from node.outcomes import at
from node.private_events import Past, resume_position
from statemachine.codec import decode_events
from statemachine.records import Applied
from statemachine.store_files import PastGone
from statemachine.store_rows import EventBatch
from statemachine.types import ORDINAL_MAX

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.feed")

PAGE_EVENTS = 500
PAGE_EVENTS_MAX = 5_000
READ_BYTES_MAX = 128 * 1024
CACHE_BYTES_MAX = 32 * 1024 * 1024
WAIT_MS_MAX = 20_000
HEARTBEAT_S = 1.0
STALL_S = 10.0
FOLLOWERS_MAX = 64
AUTHENTICATE_TIMEOUT_S = 10.0

_encode = msgspec.json.Encoder().encode
_decode_first = msgspec.json.Decoder(wire.Authenticate).decode


class Events(Struct, frozen=True):
    """Encoded events in order. after: the position behind the last one, also when there were none."""

    encoded: list[bytes]
    after: Position


class EventSource:
    """Reads and encodes the events of this replica; keeps what was encoded last for the next follower."""

    def __init__(self, past: Past, views: EventViews, *, group: int, epoch: int, applied_index: int) -> None:
        self.group = group
        self.epoch = epoch
        self.applied_index = applied_index
        self._past = past
        self._views = views
        self._cache: OrderedDict[int, tuple[list[bytes], int]] = OrderedDict()
        self._cache_bytes = 0
        self._news = asyncio.Event()

    @property
    def now(self) -> Position:
        """Behind everything applied here."""
        return Position.behind(self.group, self.epoch, self.applied_index)

    def applied(self, index: int) -> None:
        self.applied_index = index
        self._news.set()
        self._news = asyncio.Event()

    async def wait(self, after: Position, *, timeout_s: float) -> bool:
        """Wait until something may stand behind the position. False: the time was over first."""
        deadline = time.monotonic() + timeout_s
        while after.index > self.applied_index or (after.index == self.applied_index and after.seq >= ORDINAL_MAX):
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._news.wait()
            except TimeoutError:
                return False
        return True

    def read(self, after: Position, *, limit: int) -> Events:
        """Up to `limit` events behind a position. A position ahead of this replica has nothing behind it yet.

        Raises SnapshotRequired: what comes next is no longer held.
        """
        if after.index > self.applied_index:
            return Events([], after)
        index = after.index if after.seq >= ORDINAL_MAX else max(after.index - 1, 0)
        batches = self._batches(index)
        if not batches:
            return Events([], max(self.now, after))
        encoded: list[bytes] = []
        position = after
        for batch in batches:
            events = self._encoded(batch)
            skip = after.seq + 1 if batch.index == after.index else 0
            room = limit - len(encoded)
            if not room:
                break
            encoded += events[skip : skip + room]
            if skip + room < len(events):
                return Events(encoded, Position(self.group, self.epoch, batch.index, skip + room - 1))
            position = Position.behind(self.group, self.epoch, batch.index)
        return Events(encoded, max(position, after))

    def _batches(self, index: int) -> Sequence[EventBatch]:
        try:
            return self._past.events_after(index, bytes_max=READ_BYTES_MAX)
        except PastGone as error:
            raise SnapshotRequired(
                f"events before index {error.first_index} are no longer held: read GET /v1/feed/snapshot and go on "
                "from its position",
                field="after",
            ) from error

    def _encoded(self, batch: EventBatch) -> list[bytes]:
        held = self._cache.get(batch.index)
        if held is not None:
            return held[0]
        happened_at = at(batch.time_us)
        prefix = f"{self.group}.{self.epoch}.{batch.index}."
        events = [
            _encode(self._views.public(event, f"{prefix}{seq}", happened_at))
            for seq, event in enumerate(decode_events(batch.events))
        ]
        size = sum(map(len, events)) + 200
        self._cache[batch.index] = events, size
        self._cache_bytes += size
        while self._cache_bytes > CACHE_BYTES_MAX:
            _, (_, dropped) = self._cache.popitem(last=False)
            self._cache_bytes -= dropped
        return events


class Feed:
    """The three doors to the events: pages, a WebSocket, and the snapshot."""

    def __init__(self, node: Node, views: EventViews, catalogue: Catalogue, *, group: int = 0) -> None:
        self.node = node
        self.source = EventSource(
            node.history, views, group=group, epoch=node.epoch, applied_index=node.machine.applied_index
        )
        self.snapshots = Snapshots(node.store.pin, catalogue)
        self.followers: dict[web.WebSocketResponse, asyncio.Task[tuple[int, str]] | None] = {}
        self._sent = node.metrics.events_sent.labels("feed")
        self._slow = node.metrics.slow_consumers.labels("feed")
        self._draining = asyncio.Event()
        node.metrics.watch_connections(lambda: len(self.followers), kind="feed", bound=FOLLOWERS_MAX)

    def applied(self, applied: Applied) -> None:
        """Hook of Node.on_applied."""
        self.source.applied(applied.index)

    # ---- pages ----

    async def page(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/feed: a page, or with an upgrade the WebSocket."""
        if not self.node.ready:
            raise NotReady("this node starts or drains: ask another member")
        if "Upgrade" in request.headers:
            return await self.follow(request)
        _may_follow(request.get(PRINCIPAL))
        after = self._after(request)
        limit = _number(request, "limit", PAGE_EVENTS, 1, PAGE_EVENTS_MAX)
        wait_ms = _number(request, "wait_ms", 0, 0, WAIT_MS_MAX)
        events = self.source.read(after, limit=limit)
        if not events.encoded and wait_ms and await self.source.wait(events.after, timeout_s=wait_ms / 1000):
            events = self.source.read(events.after, limit=limit)
        self._sent.inc(len(events.encoded))
        headers = {"X-Log-Index": str(self.source.applied_index), "X-Next-Position": str(events.after)}
        if request.headers.get("Accept", "") == "application/x-ndjson":
            body = b"".join(event + b"\n" for event in events.encoded)
            return web.Response(body=body, content_type="application/x-ndjson", headers=headers)
        body = b'{"events":[%b],"next":"%b"}' % (b",".join(events.encoded), str(events.after).encode())
        return web.Response(body=body, content_type="application/json", headers=headers)

    async def snapshot(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/feed/snapshot: the state at one index, page by page; the feed goes on behind `position`."""
        if not self.node.ready:
            raise NotReady("this node starts or drains: ask another member")
        _may_follow(request.get(PRINCIPAL))
        limit = _number(request, "limit", PAGE_EVENTS, 1, PAGE_EVENTS_MAX)
        page = self.snapshots.page(request.query.get("page_token", ""), limit=limit)
        # A snapshot that is forgotten must not keep LMDB from using its pages again.
        asyncio.get_running_loop().call_later(IDLE_S + 1.0, self.snapshots.sweep)
        source = self.source
        body = {
            "position": str(Position.behind(source.group, source.epoch, page.index)),
            "table": page.table,
            "rows": page.rows,
            "next_page_token": page.next_token or None,
        }
        headers = {"X-Log-Index": str(page.index)}
        return web.Response(body=_encode(body), content_type="application/json", headers=headers)

    def _after(self, request: web.Request) -> Position:
        """The position asked for; without one, behind all that is applied: from now on."""
        given = request.query.get("after", "")
        if not given:
            return self.source.now
        return resume_position(given, group=self.source.group, epoch=self.source.epoch)

    # ---- WebSocket ----

    async def follow(self, request: web.Request) -> web.StreamResponse:
        """Messages {"stream": "feed", "position", "events"}, a heartbeat each second without news.

        A heartbeat's `newest` says whether there is nothing newer anywhere, as far as a member can know: one that is
        cut off from the majority has no news either.
        """
        if self.node.draining:
            raise NotReady("this node drains: follow another member")
        if len(self.followers) >= FOLLOWERS_MAX:
            raise Overloaded(f"{FOLLOWERS_MAX} follow the feed here: ask another member")
        socket = web.WebSocketResponse(compress=False, max_msg_size=8_192, heartbeat=20.0, timeout=2.0)
        await socket.prepare(request)
        self.followers[socket] = None
        position = self.source.now
        try:
            principal = request.get(PRINCIPAL) or await self._first_message(socket)
            _may_follow(principal)
            position = self._after(request)
            sender = asyncio.get_running_loop().create_task(self._send_all(socket, position, principal))
            self.followers[socket] = sender
            reader = asyncio.get_running_loop().create_task(_read_to_the_end(socket))
            await asyncio.wait((sender, reader), return_when=asyncio.FIRST_COMPLETED)
            # Nobody may read when the socket is closed: beside a reader aiohttp drops the connection at once,
            # and the follower would see that instead of the code.
            for task in (sender, reader):
                task.cancel()
            (ended, _) = await asyncio.gather(sender, reader, return_exceptions=True)
            if isinstance(ended, tuple):
                await _close(request, socket, *ended)
            elif isinstance(ended, Exception):
                raise ended
        except NodeError as error:
            await self._refuse(request, socket, error)
        except (ConnectionError, RuntimeError, TimeoutError):
            pass  # the follower is gone
        finally:
            del self.followers[socket]
        return socket

    async def _first_message(self, socket: web.WebSocketResponse) -> Principal:
        try:
            message = await socket.receive(timeout=AUTHENTICATE_TIMEOUT_S)
            if message.type is not WSMsgType.TEXT:
                raise Unauthenticated("authenticate first")
            token = _decode_first(message.data).token
        except (TimeoutError, msgspec.MsgspecError, RecursionError, ValueError) as error:
            raise Unauthenticated("authenticate first") from error
        return self.node.authenticator.verify(token)

    async def _send_all(self, socket: web.WebSocketResponse, after: Position, principal: Principal) -> tuple[int, str]:
        """Send what comes behind the position. Returns the code and reason to close with; raises NodeError to end
        with an error message."""
        source = self.source
        while not self._draining.is_set():
            if principal.expires_at_s <= time.time():
                raise Unauthenticated("the token has expired")
            events = source.read(after, limit=PAGE_EVENTS_MAX)
            position = str(events.after).encode()
            if events.encoded:
                message = b'{"stream":"feed","position":"%b","events":[%b]}' % (position, b",".join(events.encoded))
                self._sent.inc(len(events.encoded))
            elif await source.wait(events.after, timeout_s=HEARTBEAT_S):
                after = events.after
                continue
            else:
                newest = b"true" if self._is_newest() else b"false"
                message = b'{"stream":"heartbeat","position":"%b","newest":%b}' % (position, newest)
            try:
                async with asyncio.timeout(STALL_S):
                    await socket.send_frame(message, WSMsgType.TEXT)
            except TimeoutError:
                # The goodbye may not get through; the position is what the follower last had.
                self._slow.inc()
                log.info("slow follower cut off", position=str(after))
                return CLOSE_SLOW, f"slow_consumer resume={after}"
            after = events.after
            await asyncio.sleep(0)  # a follower that catches up lets others have a turn
        async with asyncio.timeout(2.0):
            await socket.send_frame(_encode(wire.Closing("draining", str(after))), WSMsgType.TEXT)
        return CLOSE_SHUTDOWN, f"draining resume={after}"

    def _is_newest(self) -> bool:
        # By the engine's count: a leader's first entry is none of the machine's, and nothing to be told.
        status = self.node.engine.status()
        return status.has_quorum and status.applied_index >= status.commit_index

    async def _refuse(self, request: web.Request, socket: web.WebSocketResponse, error: NodeError) -> None:
        message = wire.StreamError(code=error.code, error=error.error, message=error.message, field=error.field)
        code = {
            SnapshotRequired: CLOSE_SNAPSHOT_REQUIRED,
            EpochChanged: CLOSE_EPOCH_CHANGED,
            InvalidField: CLOSE_MALFORMED,
        }.get(type(error), CLOSE_UNAUTHENTICATED)
        try:
            async with asyncio.timeout(2.0):
                await socket.send_frame(_encode(message), WSMsgType.TEXT)
        except (TimeoutError, ConnectionError, RuntimeError):
            return
        await _close(request, socket, code, error.error)

    async def drain(self, *, timeout_ms: int) -> None:
        """Tell each follower where to go on, close its connection; those still open then are cut."""
        self._draining.set()
        self.source.applied(self.source.applied_index)
        senders = [task for task in self.followers.values() if task is not None]
        if senders:
            await asyncio.wait(senders, timeout=timeout_ms / 1000)
        self.snapshots.close()


async def _read_to_the_end(socket: web.WebSocketResponse) -> None:
    """Answer pings; a follower has nothing else to say."""
    while (message := await socket.receive()).type in (WSMsgType.TEXT, WSMsgType.BINARY):
        if len(message.data) > 1_024:
            return


async def _close(request: web.Request, socket: web.WebSocketResponse, code: int, reason: str) -> None:
    try:
        async with asyncio.timeout(2.0):
            await socket.close(code=code, message=reason.encode()[:120])
    except TimeoutError:
        log.info("a follower did not close in time", code=code)
        if request.transport is not None:
            request.transport.abort()


def _may_follow(principal: Principal | None) -> None:
    if principal is None:
        raise Unauthenticated("authenticate first")
    if principal.role is not Role.auditor:
        raise Forbidden("the feed holds everyone's events: only an auditor may follow it")


def _number(request: web.Request, name: str, default: int, low: int, high: int) -> int:
    given = request.query.get(name)
    if given is None:
        return default
    if not (given.isascii() and given.isdigit() and len(given) <= 9 and low <= int(given) <= high):
        raise InvalidField(f"{name} must be a whole number from {low} to {high}", field=name)
    return int(given)


def add_routes(app: web.Application, node: Node, views: EventViews, catalogue: Catalogue) -> Feed:
    """Serve /v1/feed and /v1/feed/snapshot. Call once the node's machine and store stand; drains with the node."""
    feed = Feed(node, views, catalogue)
    app.router.add_get("/v1/feed", feed.page, allow_head=False)
    app.router.add_get("/v1/feed/snapshot", feed.snapshot, allow_head=False)
    node.on_applied.append(feed.applied)
    node.on_drain.append(feed)
    return feed
