"""Many clients that each send new orders and wait for the answer, a process of its own: `python -m bench.resting`.

The orders rest: what is asked for is that money is held, the order stored under its key and the answer durable, as
it is asked of a database beside us. A Spec comes on stdin, the result goes to stdout as JSON.
"""

import asyncio
import gc
import os
import random
import sys
import time
from array import array
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import chain, count, islice

import aiohttp
import msgspec
import uvloop
from msgspec import Struct

from bench.load import FRAME_BYTES_MAX, LoadError, cpu_s
from bench.stats import percentile
from cluster.wire import AnyRequest, PlaceOrder, Submit

AHEAD_PER_S = 60_000
FRAMES_AHEAD_MAX = 100_000


class Spec(Struct):
    """clients: the accounts of each connection, with its token. Each has one request under way.

    batch: orders in a request. pids: of the servers, whose CPU time is taken.
    """

    url: str
    symbol: str
    clients: list[tuple[str, list[str]]]
    batch: int
    run: str
    warmup_s: float = 2.0
    seconds: float = 10.0
    seed: int = 1
    timeout_ms: int = 10_000
    pids: list[int] = []


class Result(Struct):
    """Orders that were answered within the measured time; latencies of requests."""

    orders: int
    seconds: float
    p50_ms: float
    p99_ms: float
    refused: dict[str, int]
    cpu_s: float
    load_cpu_s: float


class _Verdict(Struct, frozen=True):
    """What is looked at in an answer; the rest is passed over."""

    error: str = ""


class _Answers(Struct, frozen=True, tag="results", tag_field="stream"):
    id: int
    results: list[_Verdict]


class Resting:
    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.orders = 0
        self.refused: dict[str, int] = {}
        self.latencies_ms = array("d")
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(_Answers).decode
        # Made before the clock runs, as the others' generators have their statements prepared: making orders up
        # would take part of what the servers need.
        ahead = int(AHEAD_PER_S * (spec.warmup_s + spec.seconds) / spec.batch / len(spec.clients))
        self._frames = [self._made(number) for number in range(len(spec.clients))]
        self._ready = [list(islice(frames, min(ahead, FRAMES_AHEAD_MAX))) for frames in self._frames]

    async def run(self) -> Result:
        spec = self.spec
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            sockets = [await self._connect(session, token) for token, _ in spec.clients]
            self._from = time.perf_counter() + spec.warmup_s
            self._to = self._from + spec.seconds
            watching = asyncio.create_task(self._watch_cpu())
            async with asyncio.TaskGroup() as group:
                for number, socket in enumerate(sockets):
                    group.create_task(self._client(number, socket))
            spent, load_spent = await watching
        return Result(
            orders=self.orders,
            seconds=spec.seconds,
            p50_ms=percentile(self.latencies_ms, 50),
            p99_ms=percentile(self.latencies_ms, 99),
            refused=self.refused,
            cpu_s=spent,
            load_cpu_s=load_spent,
        )

    async def _connect(self, session: aiohttp.ClientSession, token: str) -> aiohttp.ClientWebSocketResponse:
        socket = await session.ws_connect(
            self.spec.url + "/v1/stream",
            headers={"Authorization": f"Bearer {token}"},
            max_msg_size=FRAME_BYTES_MAX,
            compress=0,
        )
        message = await socket.receive()  # who we are, in words
        if message.type is not aiohttp.WSMsgType.TEXT or msgspec.json.decode(message.data).get("error"):
            raise LoadError(f"the node refuses the stream: {message.data!r}")
        return socket

    def _made(self, number: int) -> Iterator[bytes]:
        """The frames of one client."""
        spec = self.spec
        draws = random.Random(f"{spec.seed}:{number}")
        mine = spec.clients[number][1]
        for frame in count():
            sent_at = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
            orders: list[AnyRequest] = [
                PlaceOrder(
                    key=f"{spec.run}-{number}-{frame}-{at}",
                    sent_at=sent_at,
                    account=draws.choice(mine),
                    symbol=spec.symbol,
                    side="buy",
                    type="limit",
                    time_in_force="gtc",
                    qty=draws.randrange(1, 101),
                    limit_price=f"{draws.randrange(9_000, 11_000) / 100:.2f}",
                )
                for at in range(spec.batch)
            ]
            yield self._encode(Submit(frame, orders, spec.timeout_ms))

    async def _client(self, number: int, socket: aiohttp.ClientWebSocketResponse) -> None:
        for frame in chain(self._ready[number], self._frames[number]):
            began = time.perf_counter()
            await socket.send_bytes(frame)
            answers = await self._receive(socket)
            now = time.perf_counter()
            if now >= self._to:
                return
            if now >= self._from:
                self.latencies_ms.append((now - began) * 1e3)
                for answer in answers.results:
                    if answer.error:
                        self.refused[answer.error] = self.refused.get(answer.error, 0) + 1
                    else:
                        self.orders += 1

    async def _receive(self, socket: aiohttp.ClientWebSocketResponse) -> _Answers:
        while True:
            message = await socket.receive()
            if message.type is aiohttp.WSMsgType.TEXT and not msgspec.json.decode(message.data).get("error"):
                continue  # a heartbeat
            if message.type is not aiohttp.WSMsgType.BINARY:
                raise LoadError(f"the node ended the stream: {message.type.name} {message.data!r}")
            try:
                return self._decode(message.data)
            except msgspec.ValidationError:
                said = msgspec.msgpack.decode(message.data)
                if said.get("stream") == "error":
                    raise LoadError(f"the node refuses: {said}") from None

    async def _watch_cpu(self) -> tuple[float, float]:
        await asyncio.sleep(self._from - time.perf_counter())
        before = [sum(map(cpu_s, self.spec.pids)), cpu_s(os.getpid())]
        await asyncio.sleep(self._to - time.perf_counter())
        return sum(map(cpu_s, self.spec.pids)) - before[0], cpu_s(os.getpid()) - before[1]


def main() -> None:
    resting = Resting(msgspec.json.decode(sys.stdin.buffer.read(), type=Spec))
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    try:
        result = uvloop.run(resting.run())
    except* (LoadError, aiohttp.ClientError, OSError) as errors:
        sys.exit(f"load generator: {errors.exceptions[0]}")
    sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")


if __name__ == "__main__":
    main()
