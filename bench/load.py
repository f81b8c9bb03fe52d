"""The load generator of the cluster benchmarks, a process of its own: `python -m bench.load` reads a Spec on stdin.

It is lean, since it shares the machine with what it measures: msgpack frames over one WebSocket, no client
library, no retries. One connection, because a cancel must not come before its order. What it finds goes to
stdout as one JSON document.
"""

import asyncio
import contextlib
import gc
import os
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path

import aiohttp
import msgspec
import uvloop
from msgspec import Struct

from bench import datasets, flow, lobster
from bench.dispatch import Asked, Dispatcher
from bench.flow import Act, Flow, Intent
from bench.generator import Market as MadeUpMarket
from bench.market import MAKERS, TAKERS, Market
from bench.stats import Spread, spread
from cluster.wire import Answers, Submit

GENERATOR = "the load generator"
FRAME_BYTES_MAX = 16 * 1024 * 1024
AHEAD_PER_S = {"pipelined": 30_000, "open": 10_000, "one": 500}
"""How many intents are made before a run starts, for each of its seconds."""
SLICE_S = 0.001
"""How often the open loop looks what is due."""
DRAIN_LOOKS = 500
"""How often, every 10 ms, the last answers are waited for."""


class LoadError(Exception):
    """The node turned the stream away or ended it."""


class Spec(Struct):
    """What to send.

    mode: `pipelined` keeps frames_under_way frames of `frame` commands under way; `open` sends single commands at
        rate_per_s, answered or not; `one` sends a command when the one before it was answered.
    seconds: measured after warmup_s.
    """

    url: str
    token: str
    symbol: str
    mode: str
    run: str
    frame: int = 50
    frames_under_way: int = 16
    rate_per_s: int = 10_000
    warmup_s: float = 2.0
    seconds: float = 10.0
    seed: int = 1
    path: str = ""
    timeout_ms: int = 10_000
    pids: dict[str, int] = {}
    """Processes whose CPU time is taken over the measured time, by name."""


class Result(Struct):
    """latency: of commands (open, one) from the moment at which they were due; of frames (pipelined) from sending."""

    commands: int
    seconds: float
    latency: Spread
    acts: dict[str, int]
    refused: dict[str, int]
    errors: dict[str, int]
    unanswered: int
    cpu_s: dict[str, float]
    """CPU time of each of Spec.pids, and of this generator, over the measured time."""
    late_max_ms: float
    """Open loop: the furthest that sending itself fell behind its schedule."""

    @property
    def per_s(self) -> float:
        return self.commands / self.seconds if self.seconds else 0.0

    @property
    def orders(self) -> int:
        return self.acts.get("place", 0) + self.acts.get("take", 0)


def intents_of(path: str, seed: int) -> Iterator[Intent]:
    """The flow: a recording, or without a path the generator's. Halts are left out: they are an operator's business.

    Raises LobsterError.
    """
    return (intent for intent in _all_intents(path, seed) if intent.act != Act.mode)


def _all_intents(path: str, seed: int) -> Iterator[Intent]:
    if not path:
        return flow.intents(MadeUpMarket(seed).messages(), (), Flow(MAKERS, TAKERS))
    found = datasets.recording(Path(path))
    rows = lobster.read_rows(found.book, 1 if datasets.seeds_only(found) else None) if found.book is not None else ()
    return flow.intents(lobster.read_messages(found.messages), rows, Flow(MAKERS, TAKERS))


class Load:
    """One run."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self._market = Market(spec.symbol)
        flow_of = intents_of(spec.path, spec.seed)
        # Making up the flow costs more than sending it, so most of it is made before the clock runs.
        made = list(islice(flow_of, int(AHEAD_PER_S[spec.mode] * (spec.warmup_s + spec.seconds))))
        self._dispatcher = Dispatcher(chain(made, flow_of), spec.run)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Answers).decode
        self._number = 0
        self._frames: dict[int, tuple[float, list[Asked]]] = {}
        self._from = self._to = 0.0
        self._cpu_from: dict[str, float] = {}
        self._cpu_to: dict[str, float] = {}
        self._late_max_s = 0.0
        self.commands = 0
        self.acts: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.latencies_ms = array("d")

    async def run(self) -> Result:
        spec = self.spec
        async with contextlib.AsyncExitStack() as stack:
            session = await stack.enter_async_context(aiohttp.ClientSession())
            socket = await stack.enter_async_context(
                session.ws_connect(
                    spec.url + "/v1/stream",
                    headers={"Authorization": f"Bearer {spec.token}"},
                    max_msg_size=FRAME_BYTES_MAX,
                    compress=0,
                )
            )
            self._from = time.perf_counter() + spec.warmup_s
            self._to = self._from + spec.seconds
            watching = asyncio.create_task(self._watch_cpu())
            if spec.mode == "open":
                await self._open_loop(socket)
            else:
                await self._closed_loop(socket)
            await watching
        return Result(
            commands=self.commands,
            seconds=spec.seconds,
            latency=spread(self.latencies_ms),
            acts=dict(self.acts),
            refused=dict(self.refused),
            errors=dict(self.errors),
            unanswered=len(self._frames),
            cpu_s={name: round(self._cpu_to[name] - spent, 3) for name, spent in self._cpu_from.items()},
            late_max_ms=round(self._late_max_s * 1e3, 3),
        )

    async def _closed_loop(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Keep so many frames under way until the time is over."""
        spec = self.spec
        size, under_way = (1, 1) if spec.mode == "one" else (spec.frame, spec.frames_under_way)
        for _ in range(under_way):
            await self._send(socket, size, time.perf_counter())
        while self._frames:
            answered = await self._receive(socket)
            now = time.perf_counter()
            if now >= self._to:
                return
            if answered:
                await self._send(socket, size, now)

    async def _open_loop(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """One command per message, each due at its own time; latency counts from there, sent late or not."""
        reader = asyncio.create_task(self._receive_all(socket))
        began = time.perf_counter()
        gap_s = 1 / self.spec.rate_per_s
        number = 0
        while (now := time.perf_counter()) < self._to:
            while (due := began + number * gap_s) <= now:
                self._late_max_s = max(self._late_max_s, now - due if due >= self._from else 0.0)
                await self._send(socket, 1, due)
                number += 1
            await asyncio.sleep(SLICE_S)
        for _ in range(DRAIN_LOOKS):
            if self._frames:
                await asyncio.sleep(0.01)
        if reader.done():
            reader.result()
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)

    async def _watch_cpu(self) -> None:
        pids = {**self.spec.pids, GENERATOR: os.getpid()}
        await asyncio.sleep(self._from - time.perf_counter())
        self._cpu_from = {name: cpu_s(pid) for name, pid in pids.items()}
        await asyncio.sleep(self._to - time.perf_counter())
        self._cpu_to = {name: cpu_s(pid) for name, pid in pids.items()}

    async def _receive_all(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            await self._receive(socket)

    async def _send(self, socket: aiohttp.ClientWebSocketResponse, size: int, due: float) -> None:
        taken = self._dispatcher.take(size)
        if not taken:
            self.errors["the flow ended"] += 1
            return
        sent_at = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        commands = [self._market.request(one.intent, one.key, one.order, sent_at) for one in taken]
        self._number += 1
        self._frames[self._number] = (due, taken)
        await socket.send_bytes(self._encode(Submit(self._number, commands, self.spec.timeout_ms)))

    async def _receive(self, socket: aiohttp.ClientWebSocketResponse) -> bool:
        """Take one message. True: it answered a frame."""
        message = await socket.receive()
        if message.type is aiohttp.WSMsgType.TEXT:
            said = msgspec.json.decode(message.data)
            if said.get("error"):
                raise LoadError(f"the node refuses the stream: {said}")
            return False  # who we are, in words
        if message.type is not aiohttp.WSMsgType.BINARY:
            raise LoadError(f"the node ended the stream: {message.type.name} {socket.close_code} {message.data!r}")
        try:
            answers = self._decode(message.data)
        except msgspec.ValidationError:
            said = msgspec.msgpack.decode(message.data)
            if said.get("stream") != "error":
                return False  # a heartbeat
            self.errors[str(said.get("error"))] += 1
            frame = said.get("id")
            if isinstance(frame, int) and frame in self._frames:
                for one in self._frames.pop(frame)[1]:
                    self._dispatcher.refused(one)
                return True
            return False
        now = time.perf_counter()
        due, taken = self._frames.pop(answers.id)
        counts = self._counts(due, now)
        for one, answer in zip(taken, answers.results, strict=True):
            if answer.error:
                self._dispatcher.refused(one)
            if counts:
                if not answer.error:
                    self.acts[Act(one.intent.act).name] += 1
                elif answer.code // 100_000 in (429, 503):
                    self.errors[answer.error] += 1
                    continue
                else:
                    self.refused[answer.error] += 1
                self.commands += 1
        if counts:
            self.latencies_ms.append((now - due) * 1e3)
        return True

    def _counts(self, due: float, now: float) -> bool:
        """Whether an answer belongs to the measured time: by when it came, in an open loop by when it was due."""
        moment = due if self.spec.mode == "open" else now
        return self._from <= moment <= self._to


def cpu_s(pid: int) -> float:
    """CPU time that a process has used since it started."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def waited_s(pid: int | None = None) -> float:
    """How long a process's main thread (None: this thread) could have run while others had the core; 0: not known."""
    path = "/proc/thread-self/schedstat" if pid is None else f"/proc/{pid}/schedstat"
    try:
        return int(Path(path).read_text("utf-8").split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def main() -> None:
    spec = msgspec.json.decode(sys.stdin.buffer.read(), type=Spec)
    load = Load(spec)
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    try:
        result = uvloop.run(load.run())
    except (LoadError, aiohttp.ClientError, OSError) as error:
        sys.exit(f"load generator: {error}")
    sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")


if __name__ == "__main__":
    main()
