"""The leader's queue: what waits is grouped into batches and proposed, as soon as the pipe has room.

Cancels have a lane of their own: they pass what other accounts queued, and have reserved room when the
queue is full; but a cancel never passes a command of its own account that came before it.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from cluster.consensus.engine import ConsensusError, Overloaded
from node.config import NodeLimits
from node.errors import NodeError
from node.metrics import Metrics
from node.tracing import TraceContext, record
from statemachine.codec import Envelope, encode_batch, encode_command
from statemachine.commands import CancelAccountOrders, CancelInstrumentOrders, CancelOrder, CloseSession, Command

IDLE = 0
"""Nowhere: not queued here, not sent."""
QUEUED = 1
"""In this leader's queue; nothing is logged yet."""
SENT = 2
"""In this leader's log, or on its way to another's: it may take effect."""
DROPPED = 3
"""Nobody waits for it any more and it was not logged: the queue forgets it."""

_ENVELOPE_BYTES = 32
"""What an envelope adds to its body and names, rounded up."""
_RETRY_S = 0.01
GAP_S = 0.003
"""While batches are under way the next one gathers for so long, unless it is full or the pipe runs empty before.

Between near sites a batch is committed sooner than that: fuller batches, each with its price, then go one after the
other. Between far ones nobody waits for a whole round trip first.
"""


def _kind(command: Command) -> int:
    """Where the kind of a command stands in its bytes: behind one byte of array header."""
    body = encode_command(command)
    kind = type(command).__struct_config__.tag
    if body[1] != kind:
        raise RuntimeError(f"the kind of {type(command).__name__} is {kind}, its second byte {body[1]}")
    return body[1]


CANCEL_KINDS = frozenset(
    _kind(command)
    for command in (
        CancelOrder("", 0),
        CancelAccountOrders(""),
        CancelInstrumentOrders(""),
        CloseSession("", ""),
    )
)


def is_cancel(envelope: Envelope) -> bool:
    """Whether it only takes orders out of the market. Read from the bytes, which the door or a member made."""
    return envelope.body[1] in CANCEL_KINDS


class Item(Protocol):
    """One command in the queue. state: IDLE, QUEUED, SENT or DROPPED."""

    envelope: Envelope
    state: int


class Proposer(Protocol):
    def propose(self, payload: bytes) -> None:
        """Raises ConsensusError: nothing was logged."""
        ...


def clock_us() -> int:
    return time.time_ns() // 1000


class _Batch:
    """One that was proposed and not applied here yet. traces: the spans that end with it, and when each began."""

    __slots__ = ("commands", "payload", "proposed_at", "traces")

    def __init__(self, payload: bytes, commands: int, traces: Sequence[tuple[TraceContext, int]]) -> None:
        self.payload = payload
        self.commands = commands
        self.traces = traces
        self.proposed_at = time.perf_counter()


class Batcher:
    """Queues commands while this member leads. One event loop, no locks.

    on_failed(items, error): the engine would not have them; none was logged.
    """

    def __init__(
        self,
        engine: Proposer,
        limits: NodeLimits,
        on_failed: Callable[[list[Item], ConsensusError], None],
        *,
        clock: Callable[[], int] = clock_us,
        metrics: Metrics | None = None,
    ) -> None:
        self.closed: NodeError | None = None
        """Set: every command is turned away with it (no room on disk)."""
        self.batches = 0
        self.commands = 0
        self._engine = engine
        self._limits = limits
        self._on_failed = on_failed
        self._clock = clock
        self._metrics = metrics
        self._last_stamp_us = 0
        self._main: deque[Item] = deque()
        self._lane: deque[Item] = deque()
        self._in_main: dict[str, int] = {}
        self._under_way: deque[_Batch] = deque()
        self._traced: dict[Item, tuple[TraceContext, int]] = {}
        """First items of what was put in under a sampled trace, with the time; empty nearly always."""
        self._scheduled = False
        self._gap: asyncio.TimerHandle | None = None
        self._more_than_one = False
        """The batch before was full in bytes, so that something was left for another."""

    @property
    def queued(self) -> int:
        return len(self._main) + len(self._lane)

    @property
    def under_way(self) -> int:
        """Batches proposed and not applied here yet."""
        return len(self._under_way)

    def put(self, items: Sequence[Item], trace: TraceContext | None = None) -> Sequence[Item]:
        """Queue commands, in order. Returns those for which there is no room: a late cancel finds more of it.

        trace: log a span, a child of this one, for the batch that takes in the first of them.
        """
        limits = self._limits
        free = limits.queue_max - limits.cancels_reserved - len(self._main) - len(self._lane)
        refused: Sequence[Item] = ()
        if len(items) > free:
            items, refused = self._fitting(items, free)
        if trace is not None and items:
            self._traced[items[0]] = trace.child(), time.perf_counter_ns()
        main, lane, in_main = self._main, self._lane, self._in_main
        for item in items:
            item.state = QUEUED
            scope = item.envelope.scope
            if main and item.envelope.body[1] in CANCEL_KINDS and scope[:1] != "@" and scope not in in_main:
                lane.append(item)
            else:
                main.append(item)
                in_main[scope] = in_main.get(scope, 0) + 1
        # Not now but in this turn of the loop: what else has arrived meanwhile goes into the same batch.
        self._schedule()
        return refused

    def _fitting(self, items: Sequence[Item], free: int) -> tuple[list[Item], list[Item]]:
        taken: list[Item] = []
        refused: list[Item] = []
        free_for_cancels = free + self._limits.cancels_reserved
        for item in items:
            room = free_for_cancels if is_cancel(item.envelope) else free
            if len(taken) < room:
                taken.append(item)
            else:
                refused.append(item)
        return taken, refused

    def applied(self, payload: bytes, index: int = 0) -> None:
        """A committed entry was applied here; when it is the oldest of ours, the pipe has room again."""
        under_way = self._under_way
        if under_way and under_way[0].payload == payload:
            batch = under_way.popleft()
            commit_s = time.perf_counter() - batch.proposed_at
            if self._metrics is not None:
                self._metrics.stage_seconds["commit"].observe(commit_s)
            for trace, began_ns in batch.traces:
                record("batch", trace, began_ns, index=index, commands=batch.commands, commit_us=int(commit_s * 1e6))
            if self._main or self._lane:
                self._schedule()

    def leave(self) -> list[Item]:
        """This member leads no more (or in another term). Returns what was queued and not logged, in order."""
        items = [item for queue in (self._lane, self._main) for item in queue if item.state == QUEUED]
        self._lane.clear()
        self._main.clear()
        self._in_main.clear()
        self._under_way.clear()
        self._traced.clear()
        return items

    def _schedule(self, delay_s: float = 0.0) -> None:
        if self._scheduled:
            return
        self._scheduled = True
        loop = asyncio.get_running_loop()
        if delay_s:
            loop.call_later(delay_s, self._run)
        else:
            loop.call_soon(self._run)

    def _run(self) -> None:
        self._scheduled = False
        self._propose()

    def _propose(self) -> None:
        while len(self._under_way) < self._limits.pipeline and (self._main or self._lane):
            if self._gathers():
                return
            items = self._take()
            if not items:
                return
            stamp_us = self._last_stamp_us = max(self._clock(), self._last_stamp_us + 1)
            payload = encode_batch(stamp_us, [item.envelope for item in items])
            try:
                self._engine.propose(payload)
            except Overloaded:
                self._put_back(items)
                self._schedule(_RETRY_S)
                return
            except ConsensusError as error:
                self._on_failed(items + self.leave(), error)
                return
            self._under_way.append(_Batch(payload, len(items), self._traces_of(items) if self._traced else ()))
            self.batches += 1
            self.commands += len(items)
            if self._metrics is not None:
                self._metrics.batch_commands.observe(len(items))
            for item in items:
                item.state = SENT

    def _gathers(self) -> bool:
        """Whether the next batch still waits for more; it is looked at again when that is over."""
        if not self._under_way or self._more_than_one or self.queued >= self._limits.batch_commands_max:
            return False
        left_s = self._under_way[-1].proposed_at + GAP_S - time.perf_counter()
        if left_s <= 0:
            return False
        if self._gap is None:
            self._gap = asyncio.get_running_loop().call_later(left_s, self._gap_over)
        return True

    def _gap_over(self) -> None:
        self._gap = None
        self._propose()

    def _traces_of(self, items: list[Item]) -> list[tuple[TraceContext, int]]:
        traced = self._traced
        found = [traced.pop(item) for item in items if item in traced]
        if not self._main and not self._lane:
            traced.clear()  # what nobody waited for any more was never proposed
        return found

    def _take(self) -> list[Item]:
        """The next batch: cancels that may pass, then what came first."""
        main, lane, in_main = self._main, self._lane, self._in_main
        room, room_bytes = self._limits.batch_commands_max, self._limits.batch_bytes_max
        items: list[Item] = []
        self._more_than_one = False
        while room:
            if lane:
                queue = lane
            elif main:
                queue = main
            else:
                break
            item = queue[0]
            envelope = item.envelope
            room_bytes -= len(envelope.body) + len(envelope.key) + len(envelope.scope) + _ENVELOPE_BYTES
            if room_bytes < 0 and items:
                self._more_than_one = True
                break
            queue.popleft()
            if queue is main:
                scope = envelope.scope
                left = in_main[scope] - 1
                if left:
                    in_main[scope] = left
                else:
                    del in_main[scope]
            if item.state == QUEUED:
                items.append(item)
                room -= 1
        return items

    def _put_back(self, items: list[Item]) -> None:
        if self._lane:
            self._lane.extendleft(reversed(items))  # all of them came from there, and go before the rest
            return
        for item in reversed(items):
            self._main.appendleft(item)
            scope = item.envelope.scope
            self._in_main[scope] = self._in_main.get(scope, 0) + 1
