"""Follows the event feed as a client would: one member after the other, from where the last one ended."""

import asyncio
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from chaos.history.records import Event
from chaos.live.bed import Bed

WAIT_MS = 500
PAGE_EVENTS = 1_000
MOVES = 0.1
"""How often it goes on at another member though this one answers: a position is good at each."""
SILENT_S = 1.5
RETRY_S = 0.1
LAST_S = 20.0
FIRST = "0.{epoch}.0.0"
"""Before everything that ever happened."""


class Follower:
    """Writes events.jsonl. `position` is where it is; it moves on by what a member answers, and by nothing else."""

    def __init__(self, bed: Bed, path: Path, *, seed: int) -> None:
        """Raises FileExistsError."""
        self._bed = bed
        self._file = path.open("xb")
        self._chance = random.Random(f"{seed} follower")
        self._encode = msgspec.json.Encoder().encode
        self._source = bed.replicas[0]
        self.position = FIRST.format(epoch=bed.wiring.topology.epoch)
        self.read = 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            if not await self.step():
                await asyncio.sleep(RETRY_S)
                self._move()
            elif self._chance.random() < MOVES:
                self._move()

    async def rest(self, index: int) -> bool:
        """Read on up to a log index. False: not within some seconds."""
        deadline = time.monotonic() + LAST_S
        while self._index() < index:
            if time.monotonic() > deadline:
                return False
            if not await self.step():
                await asyncio.sleep(RETRY_S)
                self._move()
        return True

    def close(self) -> None:
        self._file.close()

    async def step(self) -> bool:
        """Read one page. False: this member did not answer, or is none any more."""
        if self._source not in self._bed.replicas:
            return False
        path = f"/v1/feed?limit={PAGE_EVENTS}&wait_ms={WAIT_MS}&after={self.position}"
        answer = await self._bed.ask(self._source, path, timeout_s=SILENT_S)
        if answer is None or answer.status != 200:
            return False
        page = msgspec.json.decode(answer.body)
        at_ns = time.monotonic_ns()
        for event in events(page, self._source, at_ns):
            self._file.write(self._encode(event) + b"\n")
            self.read += 1
        self._file.flush()
        self.position = str(page["next"])
        return True

    def _move(self) -> None:
        others = [name for name in self._bed.replicas if name != self._source]
        self._source = self._chance.choice(others or [self._source])

    def _index(self) -> int:
        return int(self.position.split(".")[2])


def events(page: dict[str, Any], source: str, at_ns: int) -> Iterator[Event]:
    """Of a page of the feed, as lines of events.jsonl."""
    for one in page["events"]:
        _, _, index, seq = str(one["position"]).split(".")
        fields = {name: value for name, value in one.items() if name not in ("position", "type")}
        yield Event(at_ns, source, int(index), int(seq), str(one["type"]), fields)
