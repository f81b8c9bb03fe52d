"""Sends a flow through the public API with the client library and remembers what came back, to check it later."""

import asyncio
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise

from msgspec import Struct

from bench.dispatch import Asked, Dispatcher
from bench.flow import Act, Intent
from bench.market import Market
from cluster.client import Client, Done, Outcome, Refused, Stream, Unknown
from cluster.client_answers import NODE_CODES_FROM
from cluster.wire import AnyRequest

FRAME = 50
FRAMES_UNDER_WAY = 16
_NONE = ("", "0")
CHECK_AT_ONCE = 4_000


class Kept(Struct):
    """One command, and what the cluster acknowledged: the order's id, or the word of the refusal."""

    request: AnyRequest
    act: int
    id: str = ""
    refused: str = ""


class Checked(Struct, frozen=True):
    """What the cluster says afterwards of every command that it had answered.

    lost: acknowledged, but not known under its key any more. changed: another answer than the first.
    twice: one order id under two keys, or ids that no acknowledged command explains.
    """

    asked: int
    lost: int
    changed: int
    twice: int

    @property
    def holds(self) -> bool:
        return not (self.lost or self.changed or self.twice)


class Driver:
    """Runs intents through one pipelined stream, in frames, at most so many under way at once.

    rate_per_s: commands a second, evenly; 0 sends as fast as answers come. With a rate, and room for all frames under
        way, it is an open loop: commands are sent when due, and latency counts from then.
    """

    def __init__(
        self,
        client: Client,
        market: Market,
        intents: Iterator[Intent],
        *,
        run: str,
        frame: int = FRAME,
        frames_under_way: int = FRAMES_UNDER_WAY,
        rate_per_s: int = 0,
    ) -> None:
        self._client = client
        self._market = market
        self._dispatcher = Dispatcher(intents, run)
        self._frame = frame
        self._room = asyncio.Semaphore(frames_under_way)
        self._rate_per_s = rate_per_s
        self._waiting: list[tuple[int, asyncio.Event]] = []
        self._under_way: dict[str, Kept] = {}
        self.kept: list[Kept] = []
        """Every command that the machine answered, in the order of the answers."""
        self.unknown: list[Kept] = []
        self.acts: Counter[int] = Counter()
        self.refused: Counter[str] = Counter()
        self.turned_away: Counter[str] = Counter()
        self.latencies_ms = array("d")
        """Of each frame, from the moment at which it was given to the stream; with a rate, from when it was due."""
        self.answered_at = array("d")
        """time.monotonic() of each frame's answers."""
        self.seconds = 0.0
        self.resent = 0
        """Commands that the client library sent again."""
        self.late_max_ms = 0.0
        """With a rate: the furthest that sending itself fell behind its schedule."""
        self._stopping = False
        self.filled = 0
        """Orders that traded on entry, in part at least."""

    @property
    def answered(self) -> int:
        return len(self.kept) + len(self.unknown) + self.turned_away.total()

    async def reached(self, commands: int) -> None:
        """Wait until so many commands were answered."""
        event = asyncio.Event()
        self._waiting.append((commands, event))
        await event.wait()

    def stop(self) -> None:
        """Send no more; `send` waits for what is under way, and returns."""
        self._stopping = True

    async def send(self, commands: int) -> None:
        """Send so many commands (fewer where the flow ends) and wait for all of their answers."""
        began = time.monotonic()
        async with self._client.stream() as stream:
            try:
                await self._send_all(stream, commands, began)
            finally:
                self.resent += stream.resent
        self.seconds += time.monotonic() - began

    async def _send_all(self, stream: Stream, commands: int, began: float) -> None:
        async with asyncio.TaskGroup() as group:
            sent = 0
            while sent < commands and not self._stopping:
                await self._room.acquire()
                taken = self._dispatcher.take(min(self._frame, commands - sent))
                if not taken:
                    self._room.release()
                    break
                now = time.monotonic()
                due = began + sent / self._rate_per_s if self._rate_per_s else now
                self.late_max_ms = max(self.late_max_ms, (now - due) * 1e3)
                sent += len(taken)
                group.create_task(self._send(stream, taken, due))
                if self._rate_per_s:
                    await asyncio.sleep(max(0.0, began + sent / self._rate_per_s - time.monotonic()))

    def abandon(self) -> None:
        """After `send` was canceled: what had no answer yet is unknown."""
        self.unknown.extend(self._under_way.values())
        self._under_way.clear()

    async def _send(self, stream: Stream, taken: list[Asked], due: float) -> None:
        sent_at = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        kept: list[Kept] = []
        for asked in taken:
            request = self._market.request(asked.intent, asked.key, asked.order, sent_at)
            kept.append(Kept(request, asked.intent.act))
            self._under_way[request.key] = kept[-1]
        try:
            outcomes = await stream.submit([one.request for one in kept])
        finally:
            self._room.release()
        now = time.monotonic()
        for one in kept:
            del self._under_way[one.request.key]
        self.latencies_ms.append((now - due) * 1e3)
        self.answered_at.append(now)
        for one, asked, outcome in zip(kept, taken, outcomes, strict=True):
            if isinstance(outcome, Refused):
                self._dispatcher.refused(asked)
            self._take(one, outcome)
        for count, event in self._waiting:
            if self.answered >= count:
                event.set()

    def _take(self, one: Kept, outcome: Outcome) -> None:
        match outcome:
            case Done():
                one.id = outcome.id
                self.filled += one.act != Act.cancel and outcome.answer.filled_qty not in _NONE
                self.acts[one.act] += 1
                self.kept.append(one)
            case Refused() if outcome.code % 100_000 >= NODE_CODES_FROM:
                self.turned_away[outcome.error] += 1  # nothing was logged: there is nothing to check
            case Refused():
                one.refused = outcome.error
                self.refused[outcome.error] += 1
                self.kept.append(one)
            case Unknown():
                self.unknown.append(one)

    async def check(self, probe: AnyRequest | None = None, on_checked: Callable[[int], None] | None = None) -> Checked:
        """Send every command again, byte for byte, and compare: the cluster must repeat what it said.

        An acknowledged command that was lost would be taken for new: it answers without the mark of a
        replay. One that was executed twice would have used up an order id that no key accounts for: ids
        are given without gaps, so as many must have been given as were told. probe: an order whose id
        shows how many were given so far; nobody else may trade meanwhile.
        """
        verdicts: Counter[str] = Counter()
        again = [*self.kept, *self.unknown]
        twice = 0
        async with self._client.stream() as stream:
            for start in range(0, len(again), CHECK_AT_ONCE):
                part = again[start : start + CHECK_AT_ONCE]
                outcomes = await stream.submit([one.request for one in part])
                verdicts.update(map(compare, part, outcomes))
                if on_checked is not None:
                    on_checked(start + len(part))
            if probe is not None:
                (outcome,) = await stream.submit([probe])
                told = [one.id for one in again if one.id and one.act != Act.cancel]
                given = int(outcome.id) - 1 if isinstance(outcome, Done) else -1
                twice = len(told) - len(set(told)) + abs(given - len(set(told)))
        return Checked(len(again), verdicts["lost"], verdicts["changed"], twice)


def compare(one: Kept, outcome: Outcome) -> str:
    """What a repeated command's answer says of the first one: same, changed, lost, or resolved."""
    if isinstance(outcome, Done):
        if not (one.id or one.refused):
            one.id = outcome.id  # its outcome was unknown until now
            return "resolved"
        if not outcome.answer.replay:
            return "lost"
        return "same" if outcome.id == one.id else "changed"
    if isinstance(outcome, Refused):
        if not (one.id or one.refused):
            one.refused = outcome.error
            return "resolved"
        return "same" if outcome.error == one.refused else "changed"
    return "changed"


def longest_gap_s(times: Sequence[float], around: float, *, before_s: float = 0.2, after_s: float = 15.0) -> float:
    """The longest time without an answer that touches the moment `around` or begins up to after_s behind it."""
    ordered = sorted(at for at in times if around - before_s <= at <= around + after_s)
    return max((later - earlier for earlier, later in pairwise(ordered)), default=0.0)
