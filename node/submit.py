"""Takes commands to the log and brings their answers back, and knows at each moment whether one may take effect.

Whoever waits for (scope, key) is answered by the local apply of the entry that holds them, on the leader
and on followers alike; so an answer can never belong to another command, and no answer travels back.
"""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import msgspec
import structlog
from msgspec import Struct

from cluster import wire
from cluster.consensus.engine import ConsensusError, Engine, EngineStatus, Role
from cluster.topology import Standing
from node.batcher import DROPPED, IDLE, SENT, Batcher, Item, clock_us
from node.config import NodeLimits, NodeTiming
from node.errors import DiskLow, InternalError, NodeError, NoLeader, NoQuorum, NotReady, OutcomeUnknown, Overloaded
from node.market import Market
from node.metrics import Metrics
from node.tracing import TraceContext, record, sampled_child
from statemachine.codec import Envelope, UnknownFormat, decode_batch, decode_command, encode_command
from statemachine.codes import Code
from statemachine.commands import INTERNAL, Command
from statemachine.records import Applied
from statemachine.results import Refused, Repeat, Result

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.submit")

FORWARD = "forward"
REFUSED = "refused"
FORWARD_COMMANDS_MAX = 1_000
TICK_S = 0.05
NOT_FOR_GOOD = frozenset((Code.sent_in_future, Code.key_quota_exceeded, Code.writes_stopped))
"""Refusals that are not kept under the key and may end by themselves: a later copy may be executed."""


class Prepared:
    """One command on its way: what the client asked, what goes into the log, and what its answer is written with.

    request is None for what a stream or the node itself makes. instrument is None where none is named.
    scale: decimals of the asset that a transfer names.

    state, tainted, frame, position, twin belong to the submitter. tainted: an earlier try may be in a log.
    """

    __slots__ = (
        "account",
        "envelope",
        "frame",
        "instrument",
        "is_cancel",
        "position",
        "request",
        "scale",
        "state",
        "tainted",
        "twin",
    )

    def __init__(
        self,
        envelope: Envelope,
        request: wire.AnyRequest | None = None,
        *,
        account: str = "",
        instrument: Market | None = None,
        scale: int = 0,
        is_cancel: bool = False,
    ) -> None:
        self.envelope = envelope
        self.request = request
        self.account = account
        self.instrument = instrument
        self.scale = scale
        self.is_cancel = is_cancel
        self.state = IDLE
        self.tainted = False
        self.frame: _Frame | None = None
        self.position = 0
        self.twin: Prepared | None = None


class Outcome(Struct, frozen=True, gc=False):
    """How one command ended.

    index: the log entry that decided it; 0 when result is a NodeError.
    replay: the key was used before and this is its first answer.
    """

    index: int
    result: Result | NodeError
    replay: bool = False


class Forward(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Commands of one frame for the leader. attempt tells a late refusal from one of this try."""

    frame: int
    attempt: int
    traceparent: str
    positions: list[int]
    commands: list[Envelope]


class Refusal(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The leader did not log these; word is that of a NodeError."""

    frame: int
    attempt: int
    word: str
    positions: list[int]


_encode = msgspec.msgpack.Encoder().encode
_decode_forward = msgspec.msgpack.Decoder(Forward).decode
_decode_refusal = msgspec.msgpack.Decoder(Refusal).decode


class Answers(Protocol):
    """Where the answer of a repeated key is found."""

    def result(self, index: int, ordinal: int) -> Result | None: ...


class _Frame:
    """Commands that are waited for together: one future and one timer for all of them."""

    __slots__ = (
        "attempt", "began_ns", "future", "left", "number", "outcomes",
        "parked", "prepared", "resend_at", "timer", "trace",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        prepared: Sequence[Prepared],
        future: asyncio.Future[list[Outcome]],
        trace: TraceContext | None,
    ) -> None:
        self.number = number
        self.prepared = prepared
        self.outcomes: list[Outcome | None] = [None] * len(prepared)
        self.left = len(prepared)
        self.future = future
        self.trace = trace
        self.began_ns = time.perf_counter_ns()
        self.timer: asyncio.TimerHandle | None = None
        self.attempt = 0
        self.resend_at = 0.0
        self.parked = False


class _Guest:
    """A command that another member forwarded; it waits there, here it only passes."""

    __slots__ = ("attempt", "envelope", "frame", "member", "position", "state")

    def __init__(self, envelope: Envelope, member: str, frame: int, attempt: int, position: int) -> None:
        self.envelope = envelope
        self.member = member
        self.frame = frame
        self.attempt = attempt
        self.position = position
        self.state = IDLE


class _Told:
    """An internal command: idempotent by its nature, so nobody waits for it."""

    __slots__ = ("envelope", "state")

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope
        self.state = IDLE


class Submitter:
    """Submits commands and waits for the local apply of the entry that holds them. One event loop, no locks."""

    def __init__(
        self,
        engine: Engine,
        answers: Answers,
        limits: NodeLimits,
        timing: NodeTiming,
        *,
        witnesses: Iterable[str] = (),
        clock: Callable[[], int] = clock_us,
        metrics: Metrics | None = None,
    ) -> None:
        self.refusal: NodeError | None = NotReady("this node is starting; try again or ask another member")
        """Set: new commands are refused with it (not started, draining, disk low)."""
        self.refused = 0
        self.resent = 0
        self.forwarded = 0
        """Commands sent to a leader, repeats not counted."""
        self.taken_in = 0
        """Commands that other members forwarded to this leader, repeats included."""
        self._engine = engine
        self._answers = answers
        self._limits = limits
        self._timing = timing
        self.witnesses = frozenset(witnesses)
        """Members that may lead for a moment and take no commands."""
        self.batcher = Batcher(engine, limits, self._failed, clock=clock, metrics=metrics)
        self._waiting: dict[tuple[str, str], Prepared] = {}
        self._frames: dict[int, _Frame] = {}
        self._parked: deque[_Frame] = deque()
        # A member that starts again must not take a refusal that was meant for its former self.
        self._next_frame = secrets.randbits(48)
        self._commands = 0
        self._status: EngineStatus | None = None
        self._ticking = False

    @property
    def waiting(self) -> int:
        """Commands whose outcome is not known yet."""
        return self._commands

    def set_refusal(self, error: NodeError | None) -> None:
        """From now on refuse what comes, here and from other members, or (None) take it again."""
        self.refusal = error
        self.batcher.closed = error if isinstance(error, DiskLow | Overloaded) else None

    # ---- what clients do ----

    async def submit(self, prepared: Sequence[Prepared], *, timeout_ms: int, traceparent: str = "") -> list[Outcome]:
        """Put the commands in the log, in order, and wait until they are applied here or the time is over.

        Never raises for a command: each has its own outcome, in the order given. The time over, a command
        that was neither logged nor forwarded ends as NoLeader, NoQuorum or Overloaded; any other as
        OutcomeUnknown.
        """
        return await self.start(prepared, timeout_ms=timeout_ms, traceparent=traceparent)

    def start(
        self, prepared: Sequence[Prepared], *, timeout_ms: int, traceparent: str = ""
    ) -> asyncio.Future[list[Outcome]]:
        """The same without a task: for whoever has thousands under way and waits with a callback."""
        loop = asyncio.get_running_loop()
        if not prepared:
            empty: asyncio.Future[list[Outcome]] = loop.create_future()
            empty.set_result([])
            return empty
        self._next_frame += 1
        frame = _Frame(self._next_frame, prepared, loop.create_future(), sampled_child(traceparent))
        accepted = self._accept(frame)
        if accepted:
            frame.timer = loop.call_later(timeout_ms / 1000, self._expire, frame)
            self._frames[frame.number] = frame
            if self._parked:
                self._park(frame)  # behind those that came before it
            else:
                self._route(frame, accepted)
        return frame.future

    async def settled(self, *, timeout_ms: int) -> bool:
        """Wait until nothing waits for its outcome any more.

        False: the time was over first, and whoever still waited was told what is known.
        """
        futures = [frame.future for frame in self._frames.values()]
        if futures:
            await asyncio.wait(futures, timeout=timeout_ms / 1000)
        late = list(self._frames.values())
        for frame in late:
            self._expire(frame)
        return not late

    def tell(self, *commands: Command) -> None:
        """Submit internal commands without waiting: what is lost is said again by whoever says it."""
        told: list[Item] = []
        for command in commands:
            if not isinstance(command, INTERNAL):
                raise TypeError(f"{type(command).__name__} needs a key: submit it")
            told.append(_Told(Envelope("", "", 0, encode_command(command))))
        status = self._status
        if self.refusal is not None and not isinstance(self.refusal, NotReady):
            return
        if status is not None and status.role is Role.leader:
            self.batcher.put(told)
        elif status is not None and status.leader and status.leader not in self.witnesses:
            body = _encode(Forward(0, 0, "", [], [item.envelope for item in told]))
            self._engine.send(status.leader, FORWARD, body)

    def _accept(self, frame: _Frame) -> Sequence[Prepared]:
        """Register the commands as waiting. Those that can't wait here get their outcome at once."""
        prepared = frame.prepared
        limits = self._limits
        free = limits.waiting_max - limits.cancels_reserved - self._commands
        accepted: Sequence[Prepared] = prepared
        if self.refusal is not None or len(prepared) > free:
            accepted = self._fitting(frame, free)
        waiting = self._waiting
        for position, item in enumerate(prepared):
            item.frame = frame
            item.position = position
        self._commands += len(accepted)
        for item in accepted:
            envelope = item.envelope
            earlier = waiting.setdefault((envelope.scope, envelope.key), item)
            if earlier is not item:
                while earlier.twin is not None:
                    earlier = earlier.twin
                earlier.twin = item
        return accepted

    def _fitting(self, frame: _Frame, free: int) -> list[Prepared]:
        accepted: list[Prepared] = []
        for position, item in enumerate(frame.prepared):
            room = free + self._limits.cancels_reserved if item.is_cancel else free
            if self.refusal is not None:
                self._refuse(frame, position, self.refusal)
            elif len(accepted) < room:
                accepted.append(item)
            else:
                self._refuse(frame, position, Overloaded("too many commands wait on this node; try again"))
        return accepted

    def _refuse(self, frame: _Frame, position: int, error: NodeError) -> None:
        """End a command that was never registered as waiting."""
        self.refused += 1
        frame.outcomes[position] = Outcome(0, error)
        frame.left -= 1
        self._maybe_done(frame)

    # ---- towards the log ----

    def _route(self, frame: _Frame, items: Sequence[Prepared]) -> None:
        """Queue here when this member leads, else forward to who does, else park."""
        status = self._status
        if status is None:
            self._park(frame)
        elif status.role is Role.leader:
            if self.batcher.closed is not None:
                self._end_all(items, self.batcher.closed)
            elif refused := self.batcher.put(items, frame.trace):
                self._end_all(refused, Overloaded("the leader's queue is full; try again"))
        elif status.leader is None or status.leader in self.witnesses:
            self._park(frame)
        else:
            self._forward(frame, items, status.leader)

    def _forward(self, frame: _Frame, items: Sequence[Prepared], leader: str) -> None:
        frame.attempt += 1
        frame.resend_at = time.monotonic() + self._timing.resend_ms / 1000 * min(2 ** (frame.attempt - 1), 16)
        self._tick_soon()
        for start in range(0, len(items), FORWARD_COMMANDS_MAX):
            part = items[start : start + FORWARD_COMMANDS_MAX]
            positions = [] if len(items) == len(frame.prepared) and start == 0 else [item.position for item in part]
            trace = frame.trace.traceparent if frame.trace is not None else ""
            message = Forward(frame.number, frame.attempt, trace, positions, [item.envelope for item in part])
            if self._engine.send(leader, FORWARD, _encode(message)):
                self.forwarded += len(part) if frame.attempt == 1 else 0
                for item in part:
                    item.state = SENT
                continue
            # Not sent: as definite as never asked. A full buffer is load, a missing link may come back.
            if self._connected(leader):
                self._end_all(items[start:], Overloaded("the link to the leader is full; try again"))
            else:
                self._park(frame)
            return

    def _connected(self, member: str) -> bool:
        return any(peer.name == member and peer.connected for peer in self._engine.status().peers)

    def _park(self, frame: _Frame) -> None:
        if not frame.parked and frame.left:
            frame.parked = True
            self._parked.append(frame)
            self._tick_soon()

    def _unpark(self) -> None:
        """Try what waits for a leader again, in the order in which it came."""
        parked, self._parked = self._parked, deque()
        for frame in parked:
            frame.parked = False
        for frame in parked:
            if self._parked:
                self._park(frame)
            elif idle := [item for item in self._unresolved(frame) if item.state == IDLE]:
                self._route(frame, idle)

    def _unresolved(self, frame: _Frame) -> list[Prepared]:
        return [item for item, outcome in zip(frame.prepared, frame.outcomes, strict=True) if outcome is None]

    # ---- what the engine tells ----

    def role_changed(self) -> None:
        """Role, leader, term or quorum changed. What was sent under another leader is sent again, with its key."""
        before, status = self._status, self._engine.status()
        self._status = status
        if before is not None and (before.leader, before.term, before.role) == (
            status.leader,
            status.term,
            status.role,
        ):
            if status.has_quorum and not before.has_quorum:
                self._unpark()
            return
        dropped = self.batcher.leave()
        self._refuse_guests(dropped, NoLeader.error)
        self._parked.clear()
        for frame in self._frames.values():
            frame.parked = False
            for item in self._unresolved(frame):
                if item.state == SENT:
                    item.tainted = True
                    self.resent += 1
                item.state = IDLE
            self._park(frame)
        self._unpark()

    def received(self, member: str, kind: str, body: bytes) -> None:
        """A message of another member: commands for this leader, or a leader's refusal of ours.

        Raises ValueError: not a message of this program; the link should be dropped.
        """
        try:
            if kind == FORWARD:
                self._take_in(member, _decode_forward(body))
            elif kind == REFUSED:
                self._turned_away(_decode_refusal(body))
        except (msgspec.MsgspecError, UnknownFormat) as error:
            raise ValueError(f"message {kind!r} of {member}: {error}") from error

    def _take_in(self, member: str, forward: Forward) -> None:
        began_ns = time.perf_counter_ns()
        trace = sampled_child(forward.traceparent)
        positions: Sequence[int] = forward.positions or range(len(forward.commands))
        guests: list[Item] = []
        for position, envelope in zip(positions, forward.commands, strict=True):
            # A body that this program can't read would stop every member once it is logged.
            command = decode_command(envelope.body)
            if not envelope.key and not isinstance(command, INTERNAL):
                raise ValueError(f"a {type(command).__name__} of {member} without a key")
            guests.append(_Guest(envelope, member, forward.frame, forward.attempt, position))
        self.taken_in += len(guests)
        status = self._status
        if status is None or status.role is not Role.leader:
            self._refuse_guests(guests, NoLeader.error)
        elif self.batcher.closed is not None:
            self._refuse_guests(guests, self.batcher.closed.error)
        else:
            self._refuse_guests(self.batcher.put(guests, trace), Overloaded.error)
        if trace is not None:
            record("take in", trace, began_ns, commands=len(guests), of=member)

    def _refuse_guests(self, items: Sequence[Item], word: str) -> None:
        groups: dict[tuple[str, int, int], list[int]] = {}
        for item in items:
            if isinstance(item, _Guest) and item.frame:
                groups.setdefault((item.member, item.frame, item.attempt), []).append(item.position)
        for (member, frame, attempt), positions in groups.items():
            # When this can't be sent, the other member sends the commands again after a while.
            self._engine.send(member, REFUSED, _encode(Refusal(frame, attempt, word, positions)))

    def _turned_away(self, refusal: Refusal) -> None:
        frame = self._frames.get(refusal.frame)
        if frame is None or frame.attempt != refusal.attempt:
            return
        for position in refusal.positions:
            if position >= len(frame.prepared) or frame.outcomes[position] is not None:
                continue
            item = frame.prepared[position]
            if item.state != SENT:
                continue
            item.state = IDLE
            if item.tainted or refusal.word == NoLeader.error:
                self._park(frame)
            elif refusal.word == DiskLow.error:
                self._end(item, Outcome(0, DiskLow("the leader's disk is nearly full; try again later")))
            else:
                self._end(item, Outcome(0, Overloaded("the leader's queue is full; try again")))

    def _failed(self, items: list[Item], error: ConsensusError) -> None:
        """The engine would not log these, though this member thought that it leads."""
        self._refuse_guests(items, NoLeader.error)
        for item in items:
            if isinstance(item, Prepared) and item.frame is not None and item.state != DROPPED:
                item.state = IDLE
                self._park(item.frame)

    # ---- answers ----

    def applied(self, applied: Applied, payload: bytes) -> None:
        """An entry was applied here: end what it decides, let the next batch go."""
        self.batcher.applied(payload, applied.index)
        if not self._waiting:
            return
        waiting = self._waiting
        commands: list[Envelope] | None = None
        for ordinal, pair in enumerate(applied.scopes_and_keys):
            item = waiting.get(pair)
            if item is None:
                continue
            if commands is None:
                commands = decode_batch(payload).commands
            envelope = commands[ordinal]
            mine = item.envelope
            if item.twin is not None or mine.body != envelope.body or mine.sent_at_us != envelope.sent_at_us:
                self._answer_twins(pair, envelope, applied, ordinal)
                continue
            del waiting[pair]
            outcome = self._outcome(applied, ordinal)
            self._finish(item, _unsure(item, outcome) if item.tainted else outcome)

    def _outcome(self, applied: Applied, ordinal: int) -> Outcome:
        result = applied.results[ordinal]
        if type(result) is not Repeat:
            return Outcome(applied.index, result)
        if result.index == applied.index:
            return Outcome(result.index, applied.results[result.ordinal], True)
        first = self._answers.result(result.index, result.ordinal)
        if first is None:
            return Outcome(0, InternalError(f"the answer at {result.index}/{result.ordinal} is gone"))
        return Outcome(result.index, first, True)

    def _answer_twins(self, pair: tuple[str, str], envelope: Envelope, applied: Applied, ordinal: int) -> None:
        """Several wait for one key, or another body used it first: only those with the same body are answered."""
        item: Prepared | None = self._waiting.pop(pair)
        outcome = self._outcome(applied, ordinal)
        last: Prepared | None = None
        while item is not None:
            following, item.twin = item.twin, None
            if item.envelope.body == envelope.body and item.envelope.sent_at_us == envelope.sent_at_us:
                self._finish(item, _unsure(item, outcome))
                outcome = Outcome(outcome.index, outcome.result, True)
            elif last is None:
                self._waiting[pair] = last = item
            else:
                last.twin = last = item
            item = following

    def _finish(self, item: Prepared, outcome: Outcome) -> None:
        """End a command that is no longer in the table of those that wait."""
        self._commands -= 1
        item.state = DROPPED
        # The frame holds the item: without the way back both are freed at once, not by the next collection.
        frame, item.frame = item.frame, None
        if frame is None or frame.outcomes[item.position] is not None:
            return
        frame.outcomes[item.position] = outcome
        frame.left -= 1
        if not frame.left:
            self._maybe_done(frame)

    def _end(self, item: Prepared, outcome: Outcome) -> None:
        """End a command that still waits."""
        self._forget(item)
        self._finish(item, outcome)

    def _forget(self, item: Prepared) -> None:
        pair = (item.envelope.scope, item.envelope.key)
        first = self._waiting.get(pair)
        if first is item:
            del self._waiting[pair]
            if item.twin is not None:
                self._waiting[pair] = item.twin
        while first is not None and first is not item:
            if first.twin is item:
                first.twin = item.twin
                break
            first = first.twin
        item.twin = None

    def _end_all(self, items: Sequence[Item], error: NodeError) -> None:
        """Turn commands away that this try did not log; one that an earlier try may have logged waits on."""
        self.refused += len(items)
        for item in items:
            if not isinstance(item, Prepared):
                continue
            item.state = IDLE
            if item.tainted and item.frame is not None:
                self._park(item.frame)
            else:
                self._end(item, Outcome(0, error))

    def _maybe_done(self, frame: _Frame) -> None:
        if frame.left:
            return
        self._frames.pop(frame.number, None)
        if frame.timer is not None:
            frame.timer.cancel()
        if frame.trace is not None:
            record("submit", frame.trace, frame.began_ns, commands=len(frame.prepared))
        if not frame.future.done():
            frame.future.set_result([outcome for outcome in frame.outcomes if outcome is not None])

    def _expire(self, frame: _Frame) -> None:
        """The client's time is over: say for each command what is true of it."""
        nowhere = self._why_nowhere()
        for item in self._unresolved(frame):
            if item.state == SENT or item.tainted:
                error: NodeError = _unknown(item, "the time was over before the outcome was known")
            elif item.state == IDLE:
                error = nowhere
            else:
                error = Overloaded("the time was over before there was room for it; nothing was logged")
            self._end(item, Outcome(0, error))

    def _why_nowhere(self) -> NodeError:
        status = self._engine.status()
        voters = [True] * (status.standing is Standing.voter)
        voters += [peer.connected for peer in status.peers if peer.standing is Standing.voter]
        if sum(voters) <= len(voters) // 2 or (status.role is Role.leader and not status.has_quorum):
            return NoQuorum("this member reaches no majority; nothing was logged: try again, or ask another member")
        return NoLeader("no leader in time; nothing was logged: try again, or ask another member")

    # ---- time ----

    def _tick_soon(self) -> None:
        if not self._ticking:
            self._ticking = True
            asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        """While anything is parked or forwarded: try it again when its time has come."""
        self._ticking = False
        now = time.monotonic()
        if self._parked:
            self._unpark()
        status = self._status
        if status is not None and status.leader and status.role is not Role.leader:
            for frame in list(self._frames.values()):
                if frame.resend_at and frame.resend_at <= now and not frame.parked:
                    self._resend(frame, status.leader)
        if self._frames:
            self._tick_soon()

    def _resend(self, frame: _Frame, leader: str) -> None:
        """No answer for long: the message, or the refusal, may be lost. A repeat is answered as the first."""
        items = self._unresolved(frame)
        if not items or leader in self.witnesses:
            return
        for item in items:
            item.tainted = item.tainted or item.state == SENT
        self.resent += len(items)
        self._forward(frame, items, leader)


def _unknown(item: Prepared, why: str) -> OutcomeUnknown:
    return OutcomeUnknown(
        f"{why}; it may still take effect: ask GET /v1/commands/{{key}} or send it again with the same key",
        key=item.envelope.key,
    )


def _unsure(item: Prepared, outcome: Outcome) -> Outcome:
    """The outcome of a command of which other copies may be on their way: one that binds them, or unknown."""
    result = outcome.result
    if isinstance(result, Refused) and result.code in NOT_FOR_GOOD:
        return Outcome(0, _unknown(item, f"it was sent more than once, and refused once ({result.code.name})"))
    return outcome


def _leadership(status: EngineStatus) -> tuple[str | None, int, Role]:
    return status.leader, status.term, status.role
