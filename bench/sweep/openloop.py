"""The open-loop load generator, a process of its own: `python -m bench.sweep.openloop` reads a Spec on stdin.

Arrival times are fixed before anything is sent, and each request counts from the moment at which it was due: sent late,
behind others on its connection, or not at all, the wait is the server's or ours, and shows. Ours is measured.
"""

import asyncio
import contextlib
import gc
import os
import random
import sys
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import uvloop
from msgspec import Struct

from bench.load import cpu_s, waited_s
from bench.stats import Spread, spread
from bench.sweep.arrivals import Step, arrivals, lasting
from bench.sweep.doors import Door, DoorWord, Said, door_of
from bench.sweep.samples import DONE, REFUSED, UNKNOWN, Samples
from bench.sweep.trades import Flow, Trades
from cluster.wire import AnyRequest

GENERATOR = "the load generator"
LOOK_S = 0.25
SILENT_S_MAX = 3.0
"""After so long without a word, with requests under way, a connection is given up: who is paused closes none."""
HANDSHAKE_S = 2.0
RECONNECT_S = 0.05
RETRY_S = 0.05
PENDING = -1
INDEFINITE = "outcome_unknown"
TEMPORARY = frozenset({"not_ready", "no_leader", "no_quorum", "overloaded"})
"""Refusals that were not logged and may end by themselves; with Spec.retry they are asked for again."""
NOT_SENT = "not sent: no connection"
NOT_ANSWERED = "not answered"
CUT = "the connection ended"


class LoadError(Exception):
    """Nothing could be measured; the message says why."""


class Spec(Struct, kw_only=True):
    """What to send.

    urls: members; connections go to each in turn, and to the next one where one ends.
    tokens: of the flow's groups of accounts, one for each; connections have them in turn.
    steps: the rates, played after warmup_s at the first of them. seed: of arrival times and orders.
    frame_max: orders due within one slice on one connection share a frame up to so many; 1: each has its own.
    slice_ms: how often it is looked what is due. More gathers orders for a frame, as a broker does; their wait counts.
    retry: as a client library does, what a lost connection or a member without a leader left open is asked for again
        under its key, until drain_s after the end; without, it ends as refused or unknown.
    connect_s: for all connections to be open.
    begin_at: wall clock, so that several processes begin together; 0: once all connections are open.
    samples: where Samples go. pids: processes whose CPU time is taken over the measured time, by name.
    """

    urls: list[str]
    tokens: list[str]
    flow: Flow
    run: str
    door: DoorWord = "msgpack"
    connections: int = 64
    steps: list[Step]
    warmup_s: float = 2.0
    frame_max: int = 1
    slice_ms: float = 1.0
    retry: bool = False
    connect_s: float = 15.0
    drain_s: float = 5.0
    timeout_ms: int = 10_000
    seed: int = 1
    begin_at: float = 0.0
    samples: str = ""
    pids: dict[str, int] = {}

    @property
    def seconds(self) -> float:
        """Of the measured time."""
        return lasting(self.steps)


class Result(Struct, kw_only=True):
    """Of what was due within the measured time.

    fills: in the answers to it, and fills_within those that came by its end. late: how far sending itself fell behind
    the schedule. waited_s: how long the generator could have run while others had its core.
    """

    requests: int
    seconds: float
    latency: Spread
    outcomes: dict[str, int]
    words: dict[str, int]
    fills: int
    fills_within: int
    done_within: int
    late: Spread
    reconnects: int
    cpu_s: dict[str, float]
    waited_s: float
    began_at: float


class OpenLoop:
    """One run."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self._trades = Trades(spec.flow, spec.run, spec.seed)
        first = spec.steps[0].rate_per_s
        self._schedule = arrivals([Step(spec.warmup_s, first), *spec.steps], spec.seed)
        self._draws = random.Random(f"connections {spec.seed}:{spec.run}")
        self._due = array("d")
        """Of each request, warm-up included, by its number; so are the next two."""
        self._latency_ms = array("f")
        self._outcome = array("b")
        self._late_ms = array("f")
        self._left = 0
        self._warm = 0
        self._began = self._from = self._to = 0.0
        self._doors: list[Door | None] = [None] * spec.connections
        """Those that are open; where one is not, its requests wait."""
        self._waiting: list[list[tuple[int, AnyRequest]]] = [[] for _ in range(spec.connections)]
        self._kept: dict[int, tuple[int, AnyRequest]] = {}
        """Requests that may have to be sent again, with their connection."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._at: dict[int, int] = {}
        self._opened = asyncio.Event()
        self._drained: asyncio.Event | None = None
        self._ending = False
        self.words: Counter[str] = Counter()
        self.fills = self.fills_within = self.done_within = self.reconnects = 0

    async def run(self) -> Result:
        """Raises LoadError: not all connections could be opened."""
        spec = self.spec
        for at in range(spec.connections):
            self._spawn(self._keep_open(at, at % len(spec.urls)))
            if at % 50 == 49:
                await asyncio.sleep(0.01)
        try:
            await asyncio.wait_for(self._opened.wait(), spec.connect_s)
        except TimeoutError:
            there = sum(door is not None for door in self._doors)
            raise LoadError(f"{there} of {spec.connections} connections could be opened at {spec.urls}") from None
        gc.freeze()
        pause_s = max(0.0, spec.begin_at - time.time())
        self._began = time.perf_counter() + pause_s
        began_at = time.time() + pause_s + spec.warmup_s
        self._from = self._began + spec.warmup_s
        self._to = self._from + spec.seconds
        watching = asyncio.create_task(self._watch_cpu())
        looking = asyncio.create_task(self._look_for_silence())
        await self._play()
        used, waited = await watching
        if self._left:
            self._drained = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._drained.wait(), spec.drain_s)
        looking.cancel()
        self._end()
        samples = self._samples()
        if spec.samples:
            samples.write(Path(spec.samples))
        return Result(
            requests=len(samples),
            seconds=spec.seconds,
            latency=samples.latency(),
            outcomes={
                "done": samples.count(DONE), "refused": samples.count(REFUSED), "unknown": samples.count(UNKNOWN)
            },
            words=dict(self.words),
            fills=self.fills,
            fills_within=self.fills_within,
            done_within=self.done_within,
            late=spread(self._late_ms),
            reconnects=self.reconnects,
            cpu_s=used,
            waited_s=waited,
            began_at=began_at,
        )  # fmt: skip

    # ---- sending ----

    async def _play(self) -> None:
        """Send what is due, millisecond by millisecond, whether or not answers come."""
        due = next(self._schedule, None)
        while due is not None:
            now = time.perf_counter()
            slice_: dict[int, list[tuple[int, AnyRequest]]] = {}
            sent_at = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
            while due is not None and self._began + due <= now:
                connection = self._draws.randrange(self.spec.connections)
                request = self._trades.next(connection % len(self.spec.tokens), sent_at)
                slice_.setdefault(connection, []).append((self._new(self._began + due), request))
                due = next(self._schedule, None)
            for connection, orders in slice_.items():
                self._send(connection, orders)
            if due is not None:
                await asyncio.sleep(max(self.spec.slice_ms / 1e3, self._began + due - time.perf_counter()))
        await asyncio.sleep(max(0.0, self._to - time.perf_counter()))

    def _new(self, due: float) -> int:
        number = len(self._due)
        self._due.append(due)
        self._latency_ms.append(0.0)
        self._outcome.append(PENDING)
        self._left += 1
        if due < self._from:
            self._warm = number + 1
        else:
            self._late_ms.append((time.perf_counter() - due) * 1e3)
        return number

    def _send(self, connection: int, orders: list[tuple[int, AnyRequest]]) -> None:
        if self.spec.retry:
            self._kept.update((number, (connection, request)) for number, request in orders)
        door = self._doors[connection]
        if door is None:
            self._waiting[connection].extend(orders)
            return
        size = self.spec.frame_max
        for at in range(0, len(orders), size):
            part = orders[at : at + size]
            door.put([number for number, _ in part], [request for _, request in part])
        door.flush()

    # ---- what doors tell ----

    def answered(self, numbers: Sequence[int], answers: Sequence[Said]) -> None:
        now = time.perf_counter()
        if len(answers) < len(numbers):
            answers = [answers[0]] * len(numbers)
        for number, said in zip(numbers, answers, strict=True):
            if not said.error:
                self._settle(number, DONE, now)
                if number >= self._warm and said.filled_qty:
                    fills = int(said.filled_qty)
                    self.fills += fills
                    if now <= self._to:
                        self.fills_within += fills
            elif self.spec.retry and not self._ending and said.error in (INDEFINITE, *TEMPORARY):
                asyncio.get_running_loop().call_later(RETRY_S, self._again, number)
            elif said.error == INDEFINITE:
                self._settle(number, UNKNOWN, now, said.error)
            else:
                self._settle(number, REFUSED, now, said.error)

    def open(self, door: Door) -> None:
        connection = self._at[id(door)]
        self._doors[connection] = door
        waiting, self._waiting[connection] = self._waiting[connection], []
        if waiting:
            self._send(connection, waiting)
        if all(one is not None for one in self._doors):
            self._opened.set()

    def lost(self, door: Door, numbers: list[int]) -> None:
        connection = self._at.pop(id(door), -1)
        if connection < 0:
            return
        self._doors[connection] = None
        now = time.perf_counter()
        for number in numbers:
            if self.spec.retry and not self._ending:
                self._again(number)
            else:
                self._settle(number, UNKNOWN, now, CUT)
        if not self._ending:
            self.reconnects += 1
            self._spawn(self._keep_open(connection, self.reconnects % len(self.spec.urls), RECONNECT_S))

    def _again(self, number: int) -> None:
        """Ask once more under the same key: executed at most once, however often it is sent."""
        if number in self._kept and self._outcome[number] == PENDING:
            connection, request = self._kept[number]
            self._send(connection, [(number, request)])

    def _settle(self, number: int, outcome: int, now: float, word: str = "") -> None:
        if self._outcome[number] != PENDING:
            return
        self._outcome[number] = outcome
        self._latency_ms[number] = (now - self._due[number]) * 1e3
        self._left -= 1
        if not self._left and self._drained is not None:
            self._drained.set()
        if self.spec.retry:
            self._kept.pop(number, None)
        if number >= self._warm:
            if word:
                self.words[word] += 1
            elif now <= self._to:
                self.done_within += 1

    def _end(self) -> None:
        """What is open now was never answered: refused where it was never sent, unknown where it was."""
        self._ending = True
        now = time.perf_counter()
        for waiting in self._waiting:
            for number, _ in waiting:
                # With retries it may have been sent before, on another connection.
                outcome, word = (UNKNOWN, NOT_ANSWERED) if self.spec.retry else (REFUSED, NOT_SENT)
                self._settle(number, outcome, now, word)
        for number, outcome in enumerate(self._outcome):
            if outcome == PENDING:
                self._settle(number, UNKNOWN, now, NOT_ANSWERED)
        for task in self._tasks:
            task.cancel()
        for door in self._doors:
            if door is not None:
                door.close()

    def _samples(self) -> Samples:
        due = array("d", (due - self._from for due in self._due[self._warm :]))
        return Samples(due, self._latency_ms[self._warm :], self._outcome[self._warm :])

    # ---- connections ----

    async def _keep_open(self, connection: int, turn: int, pause_s: float = 0.0) -> None:
        """Connect, to one member after the other, until one takes us."""
        spec, loop = self.spec, asyncio.get_running_loop()
        while not self._ending:
            await asyncio.sleep(pause_s)
            url = spec.urls[turn % len(spec.urls)]
            host, _, port = urlsplit(url).netloc.partition(":")
            door = door_of(spec.door, self, url, spec.tokens[connection % len(spec.tokens)], timeout_ms=spec.timeout_ms)
            self._at[id(door)] = connection
            try:
                await asyncio.wait_for(
                    loop.create_connection(lambda door=door: door, host, int(port)),  # type: ignore[misc]
                    HANDSHAKE_S,
                )
            except (OSError, TimeoutError):
                self._at.pop(id(door), None)
                turn, pause_s = turn + 1, min(0.5, max(RECONNECT_S, pause_s * 2))
                continue
            await asyncio.sleep(HANDSHAKE_S)
            if not door.is_open:
                door.close()  # a paused process takes connections, too; being lost, it is tried elsewhere
            return

    async def _look_for_silence(self) -> None:
        """Give up connections to whom nothing answers, where requests wait for them."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK_S)
            for door in list(self._doors):
                if door is not None and loop.time() - door.heard_at > SILENT_S_MAX and door.under_way():
                    door.close()

    async def _watch_cpu(self) -> tuple[dict[str, float], float]:
        pids = {**self.spec.pids, GENERATOR: os.getpid()}
        await asyncio.sleep(self._from - time.perf_counter())
        before, waited = {name: _cpu_s(pid) for name, pid in pids.items()}, waited_s(os.getpid())
        await asyncio.sleep(self._to - time.perf_counter())
        return {name: round(_cpu_s(pid) - before[name], 3) for name, pid in pids.items()}, waited_s(
            os.getpid()
        ) - waited

    def _spawn(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _cpu_s(pid: int) -> float:
    """0 for a process that is gone: a member may be killed while it is measured."""
    try:
        return cpu_s(pid)
    except OSError:
        return 0.0


def main() -> None:
    loop = OpenLoop(msgspec.json.decode(sys.stdin.buffer.read(), type=Spec))
    gc.set_threshold(100_000, 50, 50)
    try:
        result = uvloop.run(loop.run())
    except (LoadError, OSError) as error:
        sys.exit(f"load generator: {error}")
    sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")


if __name__ == "__main__":
    main()
