"""WebSocket /v1/stream: pipelined order entry, private events, cancel on disconnect.

One task reads, one writes; a frame of commands costs no task of its own. Answers come as their commands
are applied, so frames may be answered out of order: `id` says which.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, cast

import msgspec
import structlog
from aiohttp import WSMsgType, web
from msgspec import Struct

from cluster import wire
from node.auth import Principal, Role
from node.beats import Beats
from node.bodies import refused_body
from node.channel import (
    CLOSE_MALFORMED,
    CLOSE_SHUTDOWN,
    CLOSE_UNAUTHENTICATED,
    Channel,
)
from node.context import PRINCIPAL, Node
from node.door import Unseen
from node.errors import (
    Forbidden,
    InternalError,
    Malformed,
    NodeError,
    NotReady,
    OutcomeUnknown,
    Overloaded,
    RateLimited,
    Unauthenticated,
)
from node.event_views import EventViews, View
from node.limits import TRACE
from node.order_guard import OrderGuard
from node.outcomes import RuleRefused, answer
from node.private_events import PrivateEvents, resume_position
from node.submit import Outcome, Prepared
from node.tracing import TraceContext, record
from statemachine.codes import Code
from statemachine.events import SessionChanged
from statemachine.records import Applied
from statemachine.results import SessionOpened

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.stream")

JSON_PROTOCOL = "tiebreak.json"
MSGPACK_PROTOCOL = "tiebreak.msgpack"
AUTHENTICATE_TIMEOUT_S = 10.0
PING_S = 20.0
STALL_S = 15.0
IN_FLIGHT_MAX = 20_000
WAITED_S = 0.000_1
TURN_S = 0.002
"""How long one client's frames are taken before the loop turns to what else is due."""
IN_FLIGHT_CANCELS_RESERVED = 2_000
SESSIONS_PER_STREAM_MAX = 16
CATCH_UP_BYTES_MAX = 1024 * 1024
"""While more than this waits to be written, reading the past pauses."""


class _RawSubmit(Struct, frozen=True, forbid_unknown_fields=True, tag="submit", tag_field="action"):
    """A frame of commands of which some may be malformed."""

    id: int
    commands: list[msgspec.Raw]
    timeout_ms: int = 5_000


class _KeyOnly(Struct, frozen=True):
    key: str = ""
    client_order_id: str = ""


class Format:
    """JSON in text frames or msgpack in binary ones."""

    def __init__(self, opcode: WSMsgType) -> None:
        codec = msgspec.json if opcode is WSMsgType.TEXT else msgspec.msgpack
        self.opcode = opcode
        self.encode: Callable[[object], bytes] = codec.Encoder().encode
        self.action: Callable[[bytes], wire.AnyAction] = codec.Decoder(wire.AnyAction).decode
        self.raw_submit: Callable[[bytes], _RawSubmit] = codec.Decoder(_RawSubmit).decode
        self.request: Callable[[msgspec.Raw], wire.AnyRequest] = codec.Decoder(wire.AnyRequest).decode
        self.key: Callable[[msgspec.Raw], _KeyOnly] = codec.Decoder(_KeyOnly).decode


JSON = Format(WSMsgType.TEXT)
MSGPACK = Format(WSMsgType.BINARY)
# What a decoder may raise for hostile bytes: too deep, not UTF-8, or a length that memory can't hold.
UNREADABLE = (msgspec.MsgspecError, RecursionError, ValueError, MemoryError, OverflowError)


def unreadable(error: BaseException) -> NodeError:
    """A decoder's error in our words, with the field where it names one."""
    if isinstance(error, msgspec.ValidationError):
        return refused_body(error)
    if isinstance(error, RecursionError):
        return Malformed("nested too deeply")
    return Malformed("neither JSON in a text frame nor msgpack in a binary one")


def key_of(request: wire.AnyRequest) -> str:
    return getattr(request, "client_order_id", "")


class _Frame:
    """One Submit under way. refused: answers that were ready before it was submitted, by position."""

    __slots__ = ("began_ns", "format", "id", "prepared", "refused", "size", "trace")

    def __init__(
        self, number: int, prepared: list[Prepared], refused: dict[int, wire.Answer], size: int, how: Format
    ) -> None:
        self.id = number
        self.prepared = prepared
        self.refused = refused
        self.size = size
        self.format = how
        self.trace: TraceContext | None = None
        self.began_ns = time.perf_counter_ns()


class Connection:
    """One client's stream."""

    def __init__(self, hub: "StreamHub", socket: web.WebSocketResponse, request: web.Request) -> None:
        self.hub = hub
        self.socket = socket
        self.principal: Principal | None = request.get(PRINCIPAL)
        self.accounts: frozenset[str] | None = frozenset()
        self.position = ""
        self.in_flight = 0
        self.opened_at_s = time.monotonic()
        self.format = MSGPACK if socket.ws_protocol == MSGPACK_PROTOCOL else JSON
        self.guard = OrderGuard(hub.node.submitter, hub.beats, hub.node.door.unguard)
        self.leaving = False
        self._live = False
        self._unseen: Callable[[], None] | None = None
        self._behind: NodeError | None = None
        self._close_code = 0
        self._close_reason = ""
        trace = request.get(TRACE)
        self._trace = trace if trace is not None and trace.sampled else None
        self._node = hub.node
        self._listening: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self.channel = Channel(
            request.transport,
            bytes_max=hub.node.config.limits.stream_buffer_bytes_max,
            stall_s=STALL_S,
            on_slow=self._on_slow,
        )

    async def run(self) -> None:
        """Read frames until the stream ends, then let go of everything it held."""
        try:
            if self.principal is not None:
                self._authorized(self.principal)
            receive = self.socket.receive
            taken_s = time.monotonic()
            while True:
                # What has arrived is received without a pause. Others' frames, and commits, must have their turns.
                asked_s = time.monotonic()
                if asked_s - taken_s > TURN_S:
                    await asyncio.sleep(0)
                    taken_s = asked_s = time.monotonic()
                message = await receive()
                now_s = time.monotonic()
                if now_s - asked_s > WAITED_S:
                    taken_s = now_s  # it had to come first: a new burst begins
                if message.type is WSMsgType.BINARY:
                    self.format = MSGPACK
                elif message.type is WSMsgType.TEXT:
                    self.format = JSON
                else:
                    break
                if self.channel.is_cut:
                    continue  # the goodbye is said; what still comes is not taken, and not answered
                if not self._take(cast(bytes, message.data)):
                    break
                if self._unseen is not None:
                    await self._look_again()
            await self._close_after_error()
        finally:
            self.channel.ended()
            self.hub.private.leave(self)
            if self._listening is not None:
                self._listening.cancel()
            if self.leaving:
                self.guard.leave()
            else:
                self.guard.disconnected()
            await self.channel.stop()

    # ---- what clients send ----

    def _take(self, data: bytes) -> bool:
        """Act on one frame. False: the stream must be closed."""
        try:
            action = self.format.action(data)
        except UNREADABLE as error:
            return self._salvage(data, error)
        if self.principal is None and not isinstance(action, wire.Authenticate):
            return self._fail(Unauthenticated("authenticate first"), CLOSE_UNAUTHENTICATED)
        if type(action) is wire.Submit:
            self._submit(action.id, action.commands, action.timeout_ms, None, len(action.commands))
            return True
        try:
            match action:
                case wire.Authenticate():
                    self._authenticate(action)
                case wire.Listen():
                    self._listen(action)
                case wire.GuardOrders():
                    self._open_guard(action)
                case wire.Ping():
                    self.send(wire.Pong(action.id))
        except Unauthenticated as error:
            return self._fail(error, CLOSE_UNAUTHENTICATED)
        except NodeError as error:
            self.send(stream_error(error))
        return True

    def _salvage(self, data: bytes, error: BaseException) -> bool:
        """A frame whose envelope can be read is answered command by command; any other ends the stream."""
        try:
            raw = self.format.raw_submit(data)
        except UNREADABLE:
            return self._fail(unreadable(error), CLOSE_MALFORMED)
        if self.principal is None:
            return self._fail(Unauthenticated("authenticate first"), CLOSE_UNAUTHENTICATED)
        size = len(raw.commands)
        if not (0 <= raw.id <= 2**53 and 10 <= raw.timeout_ms <= 60_000 and 0 < size <= wire.COMMANDS_PER_FRAME_MAX):
            return self._fail(unreadable(error), CLOSE_MALFORMED)
        requests: list[wire.AnyRequest] = []
        malformed: dict[int, wire.Answer] = {}
        for place, command in enumerate(raw.commands):
            try:
                requests.append(self.format.request(command))
            except UNREADABLE as reason:
                malformed[place] = refusal(unreadable(reason), self._key_of(command))
        self._submit(raw.id, requests, raw.timeout_ms, malformed, size)
        return True

    def _key_of(self, command: msgspec.Raw) -> str:
        try:
            found = self.format.key(command)
        except UNREADABLE:
            return ""
        return (found.key or found.client_order_id)[:64]

    def _submit(
        self,
        number: int,
        requests: list[wire.AnyRequest],
        timeout_ms: int,
        malformed: dict[int, wire.Answer] | None,
        size: int,
        looked: bool = False,
    ) -> None:
        """malformed: answers to those of the `size` commands that are not among the requests, by place.
        looked: this node was brought up to date since these requests named something unknown."""
        principal = self.principal
        if principal is None:
            return
        envelope = self._node.door.envelope
        prepared: list[Prepared] = []
        refused = dict(malformed) if malformed else {}
        places = [place for place in range(size) if place not in malformed] if malformed else range(size)
        cancels = 0
        for place, request in zip(places, requests, strict=True):
            try:
                one = envelope(request, principal, looked=looked and self._behind is None)
            except Unseen as error:
                if not looked:
                    # This node may be behind. Nothing of the frame was submitted; the reader waits, so that
                    # later frames stay behind this one.
                    self._unseen = partial(self._submit, number, requests, timeout_ms, malformed, size, True)
                    return
                refused[place] = refusal(self._behind or error, request.key or key_of(request))
                continue
            except NodeError as error:
                refused[place] = refusal(error, request.key or key_of(request))
                continue
            except Exception:
                log.exception("a request broke the door", kind=type(request).__name__)
                refused[place] = refusal(InternalError("we were wrong; nothing was logged"), request.key)
                continue
            prepared.append(one)
            cancels += one.is_cancel
        if refused:
            self._node.limiter.take(principal.subject, commands=len(refused))
        commands = len(prepared) - cancels
        room = IN_FLIGHT_MAX - self.in_flight
        if not self._node.limiter.admit(principal.subject, commands, cancels):
            grant = self._node.limiter.take(principal.subject, commands=commands, cancels=cancels)
            prepared = self._shed(prepared, places, refused, grant.commands, grant.cancels, grant.retry_after_s)
        elif len(prepared) > room:
            prepared = self._shed(prepared, places, refused, commands, cancels, 0.0)
        frame = _Frame(number, prepared, refused, size, self.format)
        if not prepared:
            self._answer(frame, [])
            return
        self.in_flight += len(prepared)
        self._idle.clear()
        traceparent = ""
        if self._trace is not None:
            frame.trace = self._trace.child()
            traceparent = frame.trace.traceparent
        future = self._node.submitter.start(prepared, timeout_ms=timeout_ms, traceparent=traceparent)
        future.add_done_callback(partial(self._done, frame))

    async def _look_again(self) -> None:
        """Bring this node up to date, then submit the frame that named something unknown."""
        submit, self._unseen, self._behind = self._unseen, None, None
        try:
            await self._node.reads.linearizable()
        except NodeError as error:
            self._behind = error  # whether it exists is not known
        if submit is not None:
            submit()

    def _shed(
        self,
        prepared: list[Prepared],
        places: range | list[int],
        refused: dict[int, wire.Answer],
        commands: int,
        cancels: int,
        retry_after_s: float,
    ) -> list[Prepared]:
        """Keep what the rate and this stream's bound allow, in order; refuse the rest before it is logged."""
        kept: list[Prepared] = []
        free = [place for place in places if place not in refused]
        for place, one in zip(free, prepared, strict=True):
            room = IN_FLIGHT_MAX - self.in_flight - len(kept)
            error: NodeError
            if (cancels if one.is_cancel else commands) <= 0:
                error = RateLimited("the bucket of commands is empty", retry_after_s=retry_after_s)
            elif room + (IN_FLIGHT_CANCELS_RESERVED if one.is_cancel else 0) <= 0:
                error = Overloaded(f"this stream has {IN_FLIGHT_MAX} commands under way: wait for answers")
            else:
                kept.append(one)
                if one.is_cancel:
                    cancels -= 1
                else:
                    commands -= 1
                continue
            refused[place] = refusal(error, one.envelope.key)
        self._node.metrics.shed.labels("stream").inc(len(prepared) - len(kept))
        return kept

    def _authenticate(self, action: wire.Authenticate) -> None:
        principal = self._node.authenticator.verify(action.token)
        before = self.principal
        if before is not None:
            if (before.subject, before.role) != (principal.subject, principal.role):
                raise Unauthenticated("a stream may renew its token, not change who it is")
            if not (principal.all_accounts or (not before.all_accounts and before.accounts <= principal.accounts)):
                # It may be listening to them, or hold sessions of them.
                raise Unauthenticated("a stream's new token must name all accounts of the old one: open another stream")
        self.principal = principal
        self._authorized(principal)

    def _authorized(self, principal: Principal) -> None:
        accounts = [] if principal.all_accounts else sorted(principal.accounts)
        self.send(wire.Authorized(principal.role, accounts))

    def _listen(self, action: wire.Listen) -> None:
        principal, private = self.principal, self.hub.private
        if principal is None:
            return
        if principal.role not in (Role.trader, Role.auditor):
            raise Forbidden(f"a {principal.role} reads no private events")
        for account in action.accounts:
            if not principal.may_touch(account):
                raise RuleRefused(Code.account_not_found)
        after = resume_position(action.after, group=private.group, epoch=private.epoch) if action.after else None
        private.leave(self)
        self._live = False
        if self._listening is not None:
            self._listening.cancel()
        named = frozenset(action.accounts)
        self.accounts = named or (None if principal.all_accounts else principal.accounts)
        self.position = str(after or private.now)
        self.send(wire.Listening(sorted(self.accounts or ()), self.position))

        async def join() -> None:
            try:
                await private.listen(self, after)
                self._live = True
            except NodeError as error:
                self.send(stream_error(error))

        self._listening = asyncio.get_running_loop().create_task(join(), name="listen")

    def _open_guard(self, action: wire.GuardOrders) -> None:
        principal = self.principal
        if principal is None:
            return
        if len(self.guard.sessions) >= SESSIONS_PER_STREAM_MAX:
            raise Overloaded(f"a stream holds at most {SESSIONS_PER_STREAM_MAX} sessions")
        prepared = self._node.door.guard(action, principal)
        self._node.limiter.require(principal.subject)
        timeout_ms = self._node.config.timing.command_timeout_ms
        future = self._node.submitter.start([prepared], timeout_ms=timeout_ms)
        future.add_done_callback(partial(self._guard_opened, prepared.account, action))

    def _guard_opened(self, account: str, action: wire.GuardOrders, future: asyncio.Future[list[Outcome]]) -> None:
        if future.cancelled():
            return
        outcome = future.result()[0]
        if isinstance(outcome.result, SessionOpened):
            self.guard.opened(account, action.key, action.timeout_ms)
            if self.socket.closed:  # it left before its answer came
                if self.leaving:
                    self.guard.leave()
                else:
                    self.guard.disconnected()
            else:
                self.send(wire.Guarding(account, action.key, action.timeout_ms))
        elif isinstance(outcome.result, NodeError):
            self.send(stream_error(outcome.result))
        else:
            code = getattr(outcome.result, "code", Code.session_not_found)
            self.send(stream_error(RuleRefused(code, key=action.key)))

    # ---- what clients get ----

    def send(self, message: Struct) -> None:
        self.channel.send(self.format.encode(message), self.format.opcode)

    def _done(self, frame: _Frame, future: asyncio.Future[list[Outcome]]) -> None:
        self.in_flight -= len(frame.prepared)
        if not self.in_flight:
            self._idle.set()
        if not future.cancelled():
            self._answer(frame, future.result())

    def _answer(self, frame: _Frame, outcomes: list[Outcome]) -> None:
        for one, outcome in zip(frame.prepared, outcomes, strict=True):
            if one.instrument is None:
                self._node.answers.complete(one, outcome)
        results = [answer(one, outcome) for one, outcome in zip(frame.prepared, outcomes, strict=True)]
        index = 0
        for outcome in outcomes:
            index = max(index, outcome.index)
        if frame.refused:
            rest = iter(results)
            refused = frame.refused
            results = [refused[place] if place in refused else next(rest) for place in range(frame.size)]
        token = self._node.session_tokens.issue(index) if index else ""
        self.channel.send(frame.format.encode(wire.Answers(frame.id, results, token)), frame.format.opcode)
        self.hub.observe(frame.began_ns, results)
        if frame.trace is not None:
            record("stream submit", frame.trace, frame.began_ns, commands=frame.size, index=index)

    def deliver(self, position: str, events: list[View]) -> None:
        self.position = position
        self.send(wire.OrderUpdates(position, events))
        self.hub.events_sent.inc(len(events))

    async def room(self) -> None:
        while self.channel.waiting_bytes > CATCH_UP_BYTES_MAX and not self.channel.is_cut:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    def tick(self, now_s: float) -> None:
        """Once a second: heartbeat, slow consumers, tokens that ran out."""
        self.channel.check_progress(now_s)
        principal = self.principal
        if principal is None:
            if now_s - self.opened_at_s > AUTHENTICATE_TIMEOUT_S:
                self._end(Unauthenticated(f"no token within {AUTHENTICATE_TIMEOUT_S:g} s"), CLOSE_UNAUTHENTICATED)
            return
        if principal.expires_at_s <= time.time():
            self._end(Unauthenticated("the token has expired"), CLOSE_UNAUTHENTICATED)
            return
        if self._live:
            self.position = str(self.hub.private.now)
        self.send(wire.Heartbeat(self.position))

    # ---- the end ----

    def _on_slow(self) -> str:
        self.hub.slow_consumers.inc()
        return self.position

    def _fail(self, error: NodeError, code: int) -> bool:
        self.send(stream_error(error))
        self._close_code = code
        self._close_reason = error.error
        return False

    def _end(self, error: NodeError, code: int) -> None:
        self.send(stream_error(error))
        self.hub.later(self.channel.close(code, error.error))

    async def _close_after_error(self) -> None:
        if self._close_code:
            await self.channel.flush()
            await self.socket.close(code=self._close_code, message=self._close_reason.encode())

    async def drain(self, *, timeout_s: float) -> None:
        """Wait for what is under way, say where to resume, close."""
        self.leaving = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            pass  # its client asks again with its keys
        self.send(wire.Closing("draining", self.position))
        await self.channel.close(CLOSE_SHUTDOWN, f"draining resume={self.position}")


class StreamHub:
    """All streams of one node."""

    def __init__(self, node: Node, views: EventViews, *, applied_index: int, group: int = 0) -> None:
        self.node = node
        self.connections: set[Connection] = set()
        self.beats = Beats(node.submitter)
        self.private = PrivateEvents(node.history, views, group=group, epoch=node.epoch, applied_index=applied_index)
        self.events_sent = node.metrics.events_sent.labels("stream")
        self.slow_consumers = node.metrics.slow_consumers.labels("stream")
        self._done = node.metrics.commands.labels("stream", "done")
        self._refused = node.metrics.commands.labels("stream", "refused")
        self._failed = node.metrics.commands.labels("stream", "failed")
        self._unknown = node.metrics.commands.labels("stream", "unknown")
        self._seconds = node.metrics.stage_seconds["answer"]
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticker: asyncio.Task[None] | None = None
        node.metrics.watch_connections(
            lambda: len(self.connections), kind="stream", bound=node.config.limits.connections_max
        )

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/stream."""
        node = self.node
        if not node.ready or node.draining:
            raise NotReady("this node starts or drains: connect to another member")
        socket = web.WebSocketResponse(
            protocols=(MSGPACK_PROTOCOL, JSON_PROTOCOL),
            compress=False,
            max_msg_size=node.config.limits.frame_bytes_max,
            heartbeat=PING_S,
            timeout=2.0,
            decode_text=False,
        )
        await socket.prepare(request)
        connection = Connection(self, socket, request)
        self.connections.add(connection)
        if self._ticker is None:
            self._ticker = asyncio.get_running_loop().create_task(self._tick(), name="streams")
        try:
            await connection.run()
        finally:
            self.connections.discard(connection)
        return socket

    def applied(self, applied: Applied) -> None:
        """Hook of Node.on_applied."""
        if self.connections:
            self._sessions_ended(applied)
        self.private.applied(applied)

    def _sessions_ended(self, applied: Applied) -> None:
        for event in applied.events:
            if type(event) is SessionChanged and not event.open:
                for connection in self.connections:
                    timeout_ms = connection.guard.sessions.get((event.account, event.session), 0)
                    if connection.guard.ended(event.account, event.session):
                        connection.send(wire.Guarding(event.account, event.session, timeout_ms, open=False))

    def observe(self, began_ns: int, results: list[wire.Answer]) -> None:
        self._seconds.observe((time.perf_counter_ns() - began_ns) / 1e9)
        done = 0
        for one in results:
            if not one.error:
                done += 1
            elif one.error == OutcomeUnknown.error:
                self._unknown.inc()
            else:
                (self._refused if one.code % 100_000 < 1_000 else self._failed).inc()
        self._done.inc(done)

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            now_s = time.monotonic()
            for connection in list(self.connections):
                connection.tick(now_s)

    async def drain(self, *, timeout_ms: int) -> None:
        """Close all streams in steps spread over the timeout, each with the position to resume from."""
        connections = list(self.connections)
        if connections:
            timeout_s = timeout_ms / 1000
            pause_s = timeout_s / 2 / len(connections)
            drains: list[asyncio.Task[None]] = []
            for connection in connections:
                drains.append(asyncio.create_task(connection.drain(timeout_s=timeout_s / 4), name="drain"))
                await asyncio.sleep(pause_s)
            for ended in await asyncio.gather(*drains, return_exceptions=True):
                if ended is not None:
                    log.error("a stream could not be drained", error=repr(ended))
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None


def refusal(error: NodeError, key: str) -> wire.Answer:
    """The answer to a command that was turned away before it was logged."""
    return wire.Answer(key=key, error=error.error, code=error.code, message=error.message, field=error.field)


def stream_error(error: NodeError) -> wire.StreamError:
    return wire.StreamError(code=error.code, error=error.error, message=error.message, field=error.field)


def add_routes(app: web.Application, node: Node, views: EventViews) -> StreamHub:
    """Serve /v1/stream, and the same at /v1/orders/stream, where gateways have it. Call once the node's machine,
    history and door stand; drains with the node."""
    hub = StreamHub(node, views, applied_index=node.machine.applied_index)
    for path in ("/v1/stream", "/v1/orders/stream"):
        app.router.add_get(path, hub.handle)
    node.on_applied.append(hub.applied)
    node.on_drain.append(hub)
    return hub
