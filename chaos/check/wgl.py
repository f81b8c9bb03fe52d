"""Is a history of calls and returns linearizable? Wing and Gong's search with Lowe's cache; it trusts no index.

The search walks the calls and returns in order of time. At a call that the model allows and that leads to a place not
seen before, the operation takes effect there, and the walk begins anew without it. At the return of an operation that
has not taken effect yet, the last choice was wrong and is taken back.
"""

import time
from collections.abc import Hashable, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar

from msgspec import Struct

State = TypeVar("State", bound=Hashable)
Answer = Literal["ok", "illegal", "unknown"]

NEVER = 2**63 - 1
_LOOK_EVERY = 4_096
"""Steps between two looks at the clock."""
SEEN_MAX = 5_000_000
"""Places that are remembered: about 1 GiB. A search that needs more ends as unknown."""


class Model(Protocol[State]):
    """One register, account or the like. States are compared by value, so they are hashable."""

    def start(self) -> State: ...

    def step(self, state: State, op: "Timed") -> State | None:
        """The state after `op`, or None: with this answer it can't take effect here.

        For an operation of unknown outcome it is total: what would not have happened leaves the state as it is.
        """
        ...


class Timed(Struct, gc=False):
    """One operation. end_at: NEVER where its outcome is unknown. doing, said: as the model understands them."""

    begin_at: int
    end_at: int
    doing: Any
    said: Any = None
    number: int = 0

    @property
    def is_known(self) -> bool:
        return self.end_at != NEVER


class Judged(Struct, frozen=True):
    """answer: unknown when the time was over first, or too much had to be remembered. longest: numbers of the
    operations of the longest history in which all is well, in their order. stuck: one that ended and could take effect
    nowhere after those."""

    answer: Answer
    longest: list[int] = []
    stuck: Timed | None = None
    steps: int = 0


class _Node:
    """A call or a return in a list that operations are taken out of and put back into."""

    __slots__ = ("after", "bit", "end", "op", "prior")

    def __init__(self, op: Timed, bit: int, end: "_Node | None") -> None:
        self.op = op
        self.bit = bit
        self.end = end  # of a call: its return
        self.prior: _Node = self
        self.after: _Node | None = None


def check(ops: Sequence[Timed], model: Model[State], *, timeout_s: float) -> Judged:
    """Judge the operations on one object. Work can grow without bound, so `timeout_s` ends it as unknown."""
    return _Search(ops, model).run(timeout_s)


class _Search(Generic[State]):
    def __init__(self, ops: Sequence[Timed], model: Model[State]) -> None:
        self.model = model
        self.head = _linked(ops)
        self.state = model.start()
        self.placed = 0
        self.stack: list[tuple[_Node, State]] = []
        self.seen: set[tuple[int, State]] = set()
        self.longest: list[int] = []
        self.stuck: Timed | None = None

    def run(self, timeout_s: float) -> Judged:
        """Most of the time of a check is spent in this loop."""
        deadline = time.monotonic() + timeout_s
        model, seen, stack, head = self.model, self.seen, self.stack, self.head
        steps = 0
        node = head.after
        while node is not None:
            steps += 1
            if steps % _LOOK_EVERY == 0 and (time.monotonic() > deadline or len(seen) > SEEN_MAX):
                return Judged("unknown", self.longest, self.stuck, steps)
            if node.end is not None:
                state = model.step(self.state, node.op)
                if state is not None and (place := (self.placed | node.bit, state)) not in seen:
                    seen.add(place)
                    stack.append((node, self.state))
                    self.placed, self.state = place
                    _take_out(node)
                    node = head.after
                else:
                    node = node.after
                continue
            if not node.op.is_known:
                break  # from here on all are of unknown outcome: they need not take effect at all
            self._note(node.op)
            if not stack:
                return Judged("illegal", self.longest, self.stuck, steps)
            call, self.state = stack.pop()
            self.placed ^= call.bit
            _put_back(call)
            node = call.after
        return Judged("ok", [call.op.number for call, _ in stack], None, steps)

    def _note(self, stuck: Timed) -> None:
        if len(self.stack) >= len(self.longest) and (self.stuck is None or len(self.stack) > len(self.longest)):
            self.longest = [call.op.number for call, _ in self.stack]
            self.stuck = stuck


def _linked(ops: Sequence[Timed]) -> _Node:
    """The head of a list of all calls and returns by time. At equal times calls come first: intervals are closed."""
    events: list[tuple[int, int, int, _Node]] = []
    for number, op in enumerate(ops):
        end = _Node(op, 1 << number, None)
        events.append((op.begin_at, 0, number, _Node(op, 1 << number, end)))
        events.append((op.end_at, 1, number, end))
    events.sort(key=lambda event: event[:3])
    head = last = _Node(Timed(0, 0, None), 0, None)
    for _, _, _, node in events:
        last.after, node.prior = node, last
        last = node
    return head


def _take_out(call: _Node) -> None:
    for node in (call, call.end):
        if node is not None:
            node.prior.after = node.after
            if node.after is not None:
                node.after.prior = node.prior


def _put_back(call: _Node) -> None:
    for node in (call.end, call):
        if node is not None:
            node.prior.after = node
            if node.after is not None:
                node.after.prior = node
