"""Clients that note when they send and are answered, a process of its own: `python -m bench.spans.order_load`.

Each has one WebSocket and `under_way` frames of `batch` orders under way; the next goes out when one is answered.
Half of the orders rest, the others fill them (bench/sweep/trades.py). A Spec comes on stdin, and what was noted goes
to the file that it names.
"""

import asyncio
import gc
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic_ns
from urllib.parse import urlsplit

import msgspec
import uvloop
from msgspec import Struct

from bench.load import LoadError
from bench.spans.order_kinds import KINDS, TRACED_EVERY
from bench.spans.stamps import Stamps
from bench.sweep.doors import Door, Said, Stream
from bench.sweep.trades import Flow, Trades

DRAIN_S = 5.0


class Spec(Struct):
    """tokens: of each group of the flow; clients take them in turn. first_frame: frames are counted from here on, and
    no two loads of one cluster may have the same. stamps: the file that is written."""

    url: str
    tokens: list[str]
    flow: Flow
    run: str
    stamps: str
    clients: int = 1
    under_way: int = 1
    batch: int = 1
    first_frame: int = TRACED_EVERY
    all_traced: bool = True
    warmup_s: float = 0.5
    seconds: float = 2.0
    seed: int = 1
    timeout_ms: int = 10_000


class Result(Struct):
    """began, ended: of the measured time, by time.monotonic_ns."""

    began: int
    ended: int
    frames: int
    refused: dict[str, int]


class Timed(Stream):
    """A stream that knows when what it reads has come."""

    received = 0

    def data_received(self, data: bytes) -> None:
        self.received = monotonic_ns()
        super().data_received(data)


class Clients:
    """Implements Owner."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.stamps = Stamps(KINDS)
        self.refused: dict[str, int] = {}
        self._trades = Trades(spec.flow, spec.run, spec.seed)
        self._number = spec.first_frame
        self._asked: dict[int, tuple[int, Timed, int, int]] = {}
        """By frame: its client and door, when it began and when it was written."""
        self._doors: list[Timed] = []
        self._open: set[Door] = set()
        self._all_open = asyncio.Event()
        self._answered = asyncio.Event()
        self._lost = False
        self._goes_on = True

    async def run(self) -> Result:
        """Raises LoadError."""
        spec, loop = self.spec, asyncio.get_running_loop()
        place = urlsplit(spec.url)
        for number in range(spec.clients):
            token = spec.tokens[number % len(spec.tokens)]
            door = Timed(self, spec.url, token, json=False, timeout_ms=spec.timeout_ms)
            self._doors.append(door)
            await loop.create_connection(lambda door=door: door, place.hostname or "", place.port or 0)  # type: ignore[misc]
        async with asyncio.timeout(10.0):
            await self._all_open.wait()
        for number, door in enumerate(self._doors):
            for _ in range(spec.under_way):
                self._send(number, door)
        await asyncio.sleep(spec.warmup_s)
        began = monotonic_ns()
        await asyncio.sleep(spec.seconds)
        ended, self._goes_on = monotonic_ns(), False
        async with asyncio.timeout(DRAIN_S):
            while self._asked and not self._lost:
                self._answered.clear()
                await self._answered.wait()
        if self._lost:
            raise LoadError("the member ended a stream")
        for door in self._doors:
            door.close()
        return Result(began, ended, len(self.stamps.rows("Asked")), self.refused)

    def _send(self, client: int, door: Timed) -> None:
        spec, frame = self.spec, self._number
        self._number += TRACED_EVERY if spec.all_traced else 1
        sent_at = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        orders = [self._trades.next(client % len(spec.flow.groups), sent_at) for _ in range(spec.batch)]
        began = monotonic_ns()
        door.put([frame], orders)
        door.flush()
        self._asked[frame] = client, door, began, monotonic_ns()

    def answered(self, numbers: Sequence[int], answers: Sequence[Said]) -> None:
        """A frame was answered: note it, and send the next."""
        for frame in numbers:
            client, door, began, written = self._asked.pop(frame)
            refused = 0
            for answer in answers:
                if answer.error:
                    refused += 1
                    self.refused[answer.error] = self.refused.get(answer.error, 0) + 1
            self.stamps.add("Asked", frame, began, written, door.received, len(answers), refused)
            if self._goes_on:
                self._send(client, door)
        self._answered.set()

    def open(self, door: Door) -> None:
        self._open.add(door)
        if len(self._open) == self.spec.clients:
            self._all_open.set()

    def lost(self, door: Door, numbers: list[int]) -> None:
        if self._goes_on or numbers:
            self._lost = True
            self._answered.set()


def main() -> None:
    spec = msgspec.json.decode(sys.stdin.buffer.read(), type=Spec)
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)

    async def run() -> Result:
        clients = Clients(spec)
        result = await clients.run()
        clients.stamps.write(Path(spec.stamps))
        return result

    try:
        result = uvloop.run(run())
    except (LoadError, OSError, TimeoutError) as error:
        sys.exit(f"load generator: {type(error).__name__}: {error}")
    sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")


if __name__ == "__main__":
    main()
