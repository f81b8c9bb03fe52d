"""Clients of a gateway's HTTP API, a process of its own: `python -m bench.gateway_asking` reads a Spec on stdin.

It is lean, since it shares the machine with what it measures: HTTP/1.1 over connections that stay, no client library.
"""

import asyncio
import os
import random
import sys
import time
from array import array
from collections import Counter
from itertools import accumulate
from typing import cast

import msgspec
import uvloop
from msgspec import Struct

from bench.load import SLICE_S, cpu_s, waited_s
from bench.stats import Spread, spread

CLIENTS = "the clients"
DRAIN_S = 5.0
HEAD_END = b"\r\n\r\n"


class Ask(Struct, frozen=True):
    """One thing that is asked for. kind: under which it is counted; weight: its share of all."""

    kind: str
    path: str
    token: str
    weight: float


class Spec(Struct):
    """rate_per_s: an open loop, asked when due whether or not answers come; 0: each connection asks when it is
    answered. pids: processes whose CPU time is taken."""

    host: str
    port: int
    asks: list[Ask]
    rate_per_s: float = 0.0
    connections: int = 64
    warmup_s: float = 1.0
    seconds: float = 5.0
    seed: int = 1
    pids: dict[str, int] = {}


class Result(Struct):
    """latency: by kind, from when an answer was to be asked for. waited_s: by process, while others had its core."""

    requests: int
    seconds: float
    latency: dict[str, Spread]
    statuses: dict[str, int]
    unanswered: int
    late_max_ms: float
    cpu_s: dict[str, float]
    waited_s: dict[str, float]


class Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, clients: "Clients") -> None:
        self._clients = clients
        self._transport: asyncio.Transport
        self._received = b""
        self._need = 0
        self._ask: tuple[Ask, float] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, ask: Ask, request: bytes, due: float) -> None:
        self._ask = ask, due
        self._received, self._need = b"", 0
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._need:
            head = self._received.find(HEAD_END)
            if head < 0:
                return
            self._need = head + len(HEAD_END) + _length(self._received[:head])
        if len(self._received) >= self._need and self._ask is not None:
            (ask, due), self._ask = self._ask, None
            self._clients.answered(self, ask, due, self._received[9:12].decode("ascii"))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._ask is not None:
            self._clients.broken += 1
        self._clients.lost = True

    def close(self) -> None:
        self._transport.abort()


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


class Clients:
    """All connections, and what they were answered."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._chance = random.Random(spec.seed)
        self._weights = list(accumulate(ask.weight for ask in spec.asks))
        self._requests = {id(ask): _request(spec, ask) for ask in spec.asks}
        self._idle: list[Connection] = []
        self._waiting: list[float] = []
        """When what found no connection was due."""
        self._from = self._to = 0.0
        self._late_max_s = 0.0
        self.latencies: dict[str, array[float]] = {ask.kind: array("d") for ask in spec.asks}
        self.statuses: Counter[str] = Counter()
        self.under_way = self.broken = 0
        self.lost = False

    async def run(self) -> Result:
        spec, loop = self._spec, asyncio.get_running_loop()
        everyone: list[Connection] = []
        for _ in range(spec.connections):
            _, connection = await loop.create_connection(lambda: Connection(self), spec.host, spec.port)
            everyone.append(connection)
        self._idle = list(everyone)
        began = time.perf_counter()
        self._from = began + spec.warmup_s
        self._to = self._from + spec.seconds
        watching = asyncio.create_task(self._watch_cpu())
        if spec.rate_per_s:
            await self._open_loop(began)
        else:
            while self._idle:
                self._send(self._idle.pop(), began)
            await asyncio.sleep(self._to - time.perf_counter())
        for _ in range(round(DRAIN_S / 0.01)):
            if self.under_way and not self.lost:
                await asyncio.sleep(0.01)
        unanswered = self.under_way + len(self._waiting) if spec.rate_per_s else self.broken
        for connection in everyone:
            connection.close()
        used, waited = await watching
        return Result(
            requests=sum(map(len, self.latencies.values())),
            seconds=spec.seconds,
            latency={kind: spread(times) for kind, times in self.latencies.items()},
            statuses=dict(self.statuses),
            unanswered=unanswered,
            late_max_ms=self._late_max_s * 1e3,
            cpu_s=used,
            waited_s=waited,
        )

    async def _open_loop(self, began: float) -> None:
        gap_s, number = 1 / self._spec.rate_per_s, 0
        while (now := time.perf_counter()) < self._to:
            while (due := began + number * gap_s) <= now:
                self._late_max_s = max(self._late_max_s, now - due if due >= self._from else 0.0)
                number += 1
                if self._idle:
                    self._send(self._idle.pop(), due)
                else:
                    self._waiting.append(due)
            await asyncio.sleep(SLICE_S)

    def _send(self, connection: Connection, due: float) -> None:
        (ask,) = self._chance.choices(self._spec.asks, cum_weights=self._weights)
        self.under_way += 1
        connection.send(ask, self._requests[id(ask)], due)

    def answered(self, connection: Connection, ask: Ask, due: float, status: str) -> None:
        now = time.perf_counter()
        self.under_way -= 1
        # By when it was due in an open loop, by when it came in a closed one.
        if self._from <= (due if self._spec.rate_per_s else now) <= self._to:
            self.latencies[ask.kind].append((now - due) * 1e3)
            self.statuses[status] += 1
        if self._waiting:
            self._send(connection, self._waiting.pop(0))
        elif not self._spec.rate_per_s and now < self._to:
            self._send(connection, now)
        else:
            self._idle.append(connection)

    async def _watch_cpu(self) -> tuple[dict[str, float], dict[str, float]]:
        pids = {**self._spec.pids, CLIENTS: os.getpid()}
        await asyncio.sleep(self._from - time.perf_counter())
        cpu, waited = ({name: read(pid) for name, pid in pids.items()} for read in (cpu_s, waited_s))
        await asyncio.sleep(self._to - time.perf_counter())
        return (
            {name: cpu_s(pid) - cpu[name] for name, pid in pids.items()},
            {name: waited_s(pid) - waited[name] for name, pid in pids.items()},
        )


def _request(spec: Spec, ask: Ask) -> bytes:
    return (
        f"GET {ask.path} HTTP/1.1\r\nHost: {spec.host}:{spec.port}\r\nAuthorization: Bearer {ask.token}\r\n\r\n"
    ).encode("ascii")


if __name__ == "__main__":
    found = uvloop.run(Clients(msgspec.json.decode(sys.stdin.buffer.read(), type=Spec)).run())
    sys.stdout.buffer.write(msgspec.json.encode(found))
