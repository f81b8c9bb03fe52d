"""One client's stream: what it may ask, what it is answered, and how it ends."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from msgspec import Struct

from cluster.wire import Authenticate, Authorized, Pong, StreamError
from gateway.fanout.fragment import JSON, MSGPACK
from gateway.fanout.frames import BINARY, CLOSE, PING, PONG, TEXT
from gateway.fanout.ring import After, Place, parse_after
from gateway.fanout.source import Opened, resume_seq, subscribe
from gateway.fanout.topics import CHANNELS, Channel, Key, Kind
from gateway.stream.admission import Allowance
from gateway.stream.outlet import Outlet
from gateway.stream.parser import CLOSE_MALFORMED, CLOSE_PROTOCOL, BadFrames, Parser
from gateway.stream.words import (
    AnyAction,
    Closing,
    Gap,
    RefusedSymbol,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Unsubscribed,
)
from node.auth import Principal, Role
from node.errors import (
    Forbidden,
    InvalidField,
    Malformed,
    NodeError,
    NotFound,
    NotReady,
    Overloaded,
    RateLimited,
    Unauthenticated,
)

if TYPE_CHECKING:
    from gateway.stream.server import StreamServer

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.stream")

CLOSE_SHUTDOWN = 1012
CLOSE_NORMAL = 1000
CLOSE_POLICY = 1008
CLOSE_UNAUTHENTICATED = 4401
CLOSE_SLOW = 4008
CLOSE_RATE = 4429
GOODBYE_S = 2.0
"""How long the other side's goodbye is waited for."""
UNREAD_BYTES_MAX = 64 * 1024
"""Answers that a client lets lie; it asks and does not read."""

_action: dict[int, Callable[[bytes], AnyAction]] = {
    TEXT: msgspec.json.Decoder(AnyAction).decode,
    BINARY: msgspec.msgpack.Decoder(AnyAction).decode,
}
# What a decoder may raise for hostile bytes: too deep, not UTF-8, or a length that memory can't hold.
_UNREADABLE = (msgspec.MsgspecError, RecursionError, ValueError, MemoryError, OverflowError)


class _Opening(Struct, frozen=True):
    """A subscription under way. wanted: room that was asked for it; what is not used of it is given back."""

    action: Subscribe
    channel: Channel
    keys: list[Key]
    after: After | None
    wanted: int


class Connection(Outlet, asyncio.Protocol):
    """The protocol of a connection after its upgrade. principal: None: its first message must authenticate."""

    __slots__ = (
        "_allowance", "_closing", "_heard_s", "_opened_s", "_parser", "_pending", "_pinged_s", "_server", "_wanted",
        "has_place", "is_ended", "principal",
    )  # fmt: skip

    def __init__(
        self, server: "StreamServer", transport: asyncio.Transport, formats: int, principal: Principal | None
    ) -> None:
        super().__init__(transport, formats)
        now_s = time.monotonic()
        self.principal: Principal | None = None
        self.has_place = self.is_ended = False
        self._server = server
        self._parser = Parser(server.limits.message_bytes_max)
        self._allowance = Allowance(server.limits, now_s)
        self._pending = self._wanted = 0  # subscriptions that are asked for, and how many topics they would add
        self._closing: asyncio.TimerHandle | None = None
        self._opened_s = self._heard_s = self._pinged_s = self.sent_at_s = now_s
        self.position_seq = server.hub.seq
        if principal is not None:
            self._enter(principal)

    # ---- the transport ----

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        if self._closing is not None:
            self._closing.cancel()

    def data_received(self, data: bytes) -> None:
        self._heard_s = time.monotonic()
        if self._closing is not None and self.is_ended:
            if b"\x88" in data:  # its goodbye
                self.transport.close()
            return
        try:
            for message in self._parser.feed(data):
                self._take(message.opcode, message.payload)
                if self.is_ended:
                    return
        except BadFrames as error:
            self.fail(Malformed(str(error)), error.code)

    def eof_received(self) -> bool:
        return False

    # ---- what clients send ----

    def _take(self, opcode: int, payload: bytes) -> None:
        if not self._allowance.take(self._server.limits, self._heard_s):
            self.fail(RateLimited("more messages than are taken; see the limits"), CLOSE_RATE)
            return
        if opcode == PING:
            self.control(payload, PONG)
        elif opcode == CLOSE:
            code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else CLOSE_NORMAL
            self.goodbye(code if 1000 <= code <= 4999 else CLOSE_PROTOCOL, "")
            self._end()
            self.transport.close()
        elif opcode != PONG:
            self._act(opcode, payload)
        if self.transport.get_write_buffer_size() > UNREAD_BYTES_MAX + 64 * self._server.limits.message_bytes_max:
            self.transport.abort()

    def _act(self, opcode: int, payload: bytes) -> None:
        formats = JSON if opcode == TEXT else MSGPACK
        if formats != self.formats:
            if self.topics or self._pending:
                self.fail(Malformed("a stream keeps its format once it is subscribed"), CLOSE_MALFORMED)
                return
            self.use(formats)
        try:
            action = _action[opcode](payload)
        except _UNREADABLE as error:
            self._unreadable(error)
            return
        try:
            if isinstance(action, Authenticate):
                self._authenticate(action)
            elif self.principal is None:
                self.fail(Unauthenticated("authenticate first"), CLOSE_UNAUTHENTICATED)
            elif isinstance(action, Subscribe):
                self._subscribe(action, self.principal)
            elif isinstance(action, Unsubscribe):
                self._unsubscribe(action, self.principal)
            else:
                self.say(Pong(action.id))
        except Unauthenticated as error:
            self.fail(error, CLOSE_UNAUTHENTICATED)
        except NodeError as error:
            self.refuse(error, getattr(action, "id", 0))

    def _unreadable(self, error: BaseException) -> None:
        """A message of ours with a wrong field is answered; what is no message at all ends the stream."""
        if self.principal is None:
            self.fail(Unauthenticated("authenticate first"), CLOSE_UNAUTHENTICATED)
        elif isinstance(error, msgspec.ValidationError):
            self.refuse(Malformed(str(error)[:300]), 0)
        else:
            self.fail(Malformed("neither JSON in a text frame nor msgpack in a binary one"), CLOSE_MALFORMED)

    def _authenticate(self, action: Authenticate) -> None:
        principal = self._server.authenticator.verify(action.token)
        before = self.principal
        if before is None:
            self._enter(principal)
            return
        if (before.subject, before.role) != (principal.subject, principal.role):
            raise Unauthenticated("a stream may renew its token, not change who it is")
        if not (principal.all_accounts or (not before.all_accounts and before.accounts <= principal.accounts)):
            raise Unauthenticated("a stream's new token must name all accounts of the old one: open another stream")
        self.principal = principal
        self.say(Authorized(principal.role, _accounts(principal)))

    def _enter(self, principal: Principal) -> None:
        """It is let in while others are asked whether this user holds too many: they answer in a moment."""
        self.principal = principal
        self._server.entered(principal, partial(self._placed, principal))
        if not self.is_ended:
            self.say(Authorized(principal.role, _accounts(principal)))
            self.say(self._server.status)

    def _placed(self, principal: Principal, granted: bool) -> None:
        if self.is_ended:
            if granted:
                self._server.gave_up(principal)
        elif granted:
            self.has_place = True
        else:
            most = self._server.limits.connections_per_user_max
            self.fail(Overloaded(f"a user holds at most {most} streams"), CLOSE_POLICY)

    # ---- subscriptions ----

    def _subscribe(self, action: Subscribe, principal: Principal) -> None:
        channel, keys = self._keys(action, principal)
        if action.rate == "1s" and channel.kind is not Kind.newest:
            raise InvalidField(f"{channel.name} loses nothing, so it comes as it comes", field="rate")
        after: After | None = None
        if action.after:
            if channel.kind is not Kind.every:
                raise InvalidField(f"{channel.name} begins with its newest state; leave out `after`", field="after")
            try:
                after = parse_after(action.after)
            except ValueError as error:
                raise InvalidField(str(error), field="after") from error
        if self._pending >= self._server.limits.pending_max:
            raise Overloaded(f"{self._pending} subscriptions are under way: wait for their answers")
        wanted = sum(1 for key in keys if key not in self.topics)
        self._server.check_room(self, self._wanted + wanted)
        self._pending += 1
        self._wanted += wanted
        self._server.wants(principal, wanted, partial(self._has_room, _Opening(action, channel, keys, after, wanted)))

    def _has_room(self, opening: "_Opening", granted: bool) -> None:
        if granted and not self.is_ended:
            self._server.source.open(opening.keys, self.formats, opening.after, partial(self._opened, opening))
            return
        self._settled(opening)
        if granted:
            self._server.subscribed(self, opening.wanted, 0)
        elif not self.is_ended:
            most = self._server.limits.subscriptions_per_user_max
            self.refuse(Overloaded(f"a user holds at most {most} subscriptions", field="symbols"), opening.action.id)

    def _settled(self, opening: "_Opening") -> None:
        self._pending -= 1
        self._wanted -= opening.wanted

    def _keys(self, action: Subscribe | Unsubscribe, principal: Principal) -> tuple[Channel, list[Key]]:
        """Raises NodeError: no such channel, not theirs, or none named."""
        channel = CHANNELS.get(action.channel)
        served = self._server.source.channels
        if channel is None or action.channel not in served:
            raise NotFound(f"there is no channel {action.channel!r}: {', '.join(served)}", field="channel")
        if channel.by_venue != bool(action.venue) and not (isinstance(action, Unsubscribe) and not action.symbols):
            raise InvalidField("name the venue of a book, and of nothing else", field="venue")
        symbols = list(dict.fromkeys(action.symbols))
        if channel.name == "leaderboard":
            if symbols:
                raise InvalidField(f"{channel.name} takes no symbols", field="symbols")
            symbols = [""]
        elif channel.owned:
            symbols = symbols or sorted(principal.accounts)
            if principal.role not in (Role.trader, Role.auditor):
                raise Forbidden(f"a {principal.role} reads no private events")
            for account in symbols:
                if not principal.may_touch(account):
                    raise NotFound(f"there is no account {account!r}", field="symbols")
        if not symbols and isinstance(action, Subscribe):
            raise InvalidField("name at least one symbol", field="symbols")
        if action.venue:
            symbols = [f"{symbol}@{action.venue}" for symbol in symbols]
        return channel, [(channel.name, symbol) for symbol in symbols]

    def _opened(self, opening: "_Opening", opened: Opened) -> None:
        action, channel, after = opening.action, opening.channel, opening.after
        self._settled(opening)
        hub = self._server.hub
        if self.is_ended:
            self._server.unread(opened)
            self._server.subscribed(self, opening.wanted, 0)
            return
        if opened.away:
            self._server.subscribed(self, opening.wanted, 0)
            self.refuse(NotReady(opened.away), action.id)
            return
        before = len(self.topics)
        hub.seq = max(hub.seq, opened.seq)
        subscribe(hub, self, opened, formats=self.formats, slow=action.rate == "1s")
        self._server.subscribed(self, opening.wanted, len(self.topics) - before)
        if not self.queue:
            self.position_seq = hub.seq
        self.position_seq = min(self.position_seq, resume_seq(opened, after, hub.seq))
        self.say(
            Subscribed(
                channel=channel.name,
                symbols=[key[1].partition("@")[0] if channel.by_venue else key[1] for key in opened.states],
                position=self.position,
                venue=action.venue,
                recovered=None if after is None else opened.missed is not None,
                refused=[
                    RefusedSymbol(key[1].partition("@")[0] if channel.by_venue else key[1], NotFound.error, message)
                    for key, message in opened.refused.items()
                ],
                id=action.id,
            )
        )
        if channel.kind is Kind.diffs:
            for key, fragment in opened.states.items():
                self.forget(hub.topics[key])
                if fragment is not None:
                    self.put(fragment, opened.seq, recovered=True)
        for seq, _, fragment in opened.missed or ():
            self.put(fragment, seq, recovered=True)
        self._server.write_now(self)

    def _unsubscribe(self, action: Unsubscribe, principal: Principal) -> None:
        channel, keys = self._keys(action, principal)
        if not action.symbols:
            keys = [key for key in self.topics if key[0] == channel.name]
        gone = []
        for key in keys:
            topic = self.topics.get(key)
            if topic is not None:
                self.forget(topic)
                self._server.hub.unsubscribe(self, key)
                gone.append(key)
        self._server.unsubscribed(self, len(gone))
        symbols = [key[1].partition("@")[0] if channel.by_venue else key[1] for key in gone]
        self.say(Unsubscribed(channel=channel.name, symbols=symbols, venue=action.venue, id=action.id))

    # ---- what clients get ----

    @property
    def position(self) -> str:
        return str(Place(self._server.hub.epoch, self.position_seq))

    def refuse(self, error: NodeError, number: int) -> None:
        more: dict[str, Any] = {"id": number} if number else {}
        self.say(StreamError(code=error.code, error=error.error, message=error.message, field=error.field, **more))

    def lost_past(self, channels: list[str]) -> None:
        """What was sent before belongs to another run of the gateway, and something between is missing."""
        self.position_seq = self._server.hub.seq
        self.say(Gap(channels=channels, position=self.position, message="updates are missing: take snapshots"))

    def tick(self, now_s: float, heartbeat: Callable[[int], bytes]) -> None:
        """Once a second: heartbeat, pings, readers that are stuck or gone, tokens that ran out."""
        if self.is_ended:
            return
        limits, principal = self._server.limits, self.principal
        if principal is None:
            if now_s - self._opened_s > limits.authenticate_s:
                message = f"no token within {limits.authenticate_s:g} s"
                self.fail(Unauthenticated(message), CLOSE_UNAUTHENTICATED)
        elif principal.expires_at_s <= time.time():
            self.fail(Unauthenticated("the token has expired"), CLOSE_UNAUTHENTICATED)
        elif self.full_since_s and now_s - self.full_since_s > limits.stuck_s:
            self.cut("slow_consumer", CLOSE_SLOW)
        elif now_s - self._heard_s > limits.silent_s:
            self.transport.abort()  # half-open: nobody is there to be told
        else:
            if now_s - self._heard_s > limits.ping_s and now_s - self._pinged_s > limits.ping_s:
                self._pinged_s = now_s
                self.control(b"", PING)
            if (
                now_s - self.sent_at_s >= limits.heartbeat_s
                and not self.queue
                and not self.transport.get_write_buffer_size()
            ):
                self.sent_at_s, self.position_seq = now_s, self._server.hub.seq
                self.send(heartbeat(self.formats))

    # ---- the end ----

    def full(self) -> None:
        self.cut("slow_consumer", CLOSE_SLOW)

    def cut(self, reason: str, code: int) -> None:
        """What waits is dropped: the close frame with the token comes next, if it gets through at all."""
        if not self.is_ended:
            self._server.counters["cut"] += 1
            self._leave(code, f"{reason} resume={self.position}")

    def fail(self, error: NodeError, code: int) -> None:
        self.refuse(error, 0)
        self._leave(code, error.error)

    def drain(self, retry_after_ms: int) -> None:
        if not self.is_ended:
            self._server.write_now(self)
            self.say(Closing(reason="draining", resume=self.position, retry_after_ms=retry_after_ms))
            self._leave(CLOSE_SHUTDOWN, f"draining resume={self.position} retry_after_ms={retry_after_ms}")

    def _leave(self, code: int, reason: str) -> None:
        if self.is_ended:
            return
        self.goodbye(code, reason)
        self._end()
        self._closing = asyncio.get_running_loop().call_later(GOODBYE_S, self._finish)

    def _finish(self) -> None:
        """It did not say goodbye. What the kernel has still gets to a slow reader; what it has no room for does not."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _end(self) -> None:
        """Nothing more is sent or taken."""
        if self.is_ended:
            return
        self.is_ended = True
        self.queue, self.queued_bytes = [], 0
        self.diffs.clear()
        self.broken.clear()
        self._server.left(self)


def _accounts(principal: Principal) -> list[str]:
    return [] if principal.all_accounts else sorted(principal.accounts)
