"""Looks at every member and gateway some times a second, and writes down what it says of itself."""

import asyncio
import re
import time
from collections.abc import Sequence
from typing import Any

from chaos.history.file import HistoryWriter
from chaos.live.bed import Bed
from chaos.report.coverage import COUNTERS, WORD

EVERY_S = 0.15
COUNTERS_EVERY_S = 2.0
NEWCOMERS_EVERY_S = 0.5
SILENT_S = 0.7
"""One that does not answer for so long is written down as not reached."""
LINE = re.compile(r'^tiebreak_consensus_events_total\{event="(\w+)"\} (\S+)$', re.MULTILINE)


class Watcher:
    """`latest`: the last answer of each, None while it is not reached. Ends when its task is cancelled."""

    def __init__(self, bed: Bed, writer: HistoryWriter) -> None:
        self._bed = bed
        self._writer = writer
        self.latest: dict[str, dict[str, Any] | None] = {}
        self._counted: dict[str, float] = {}
        self._counters: dict[str, dict[str, int]] = {}

    async def run(self) -> None:
        """Members may be added and removed meanwhile."""
        watched: set[str] = set()
        async with asyncio.TaskGroup() as group:
            while True:
                there = {*self._bed.members, *self._bed.gateways}
                for name in there - watched:
                    group.create_task(self._watch(name))
                watched = there
                await asyncio.sleep(NEWCOMERS_EVERY_S)

    async def _watch(self, name: str) -> None:
        while name in self._bed.addresses:
            began = time.monotonic()
            status = await self._status(name)
            self.latest[name] = status
            self._write(name, status)
            await asyncio.sleep(max(0.02, EVERY_S - (time.monotonic() - began)))
        self.latest.pop(name, None)

    async def _status(self, name: str) -> dict[str, Any] | None:
        try:
            async with asyncio.timeout(SILENT_S):
                status = await self._bed.status(name)
                if status is not None and time.monotonic() - self._counted.get(name, 0) > COUNTERS_EVERY_S:
                    self._counted[name] = time.monotonic()
                    await self._count(name)
                return status
        except TimeoutError:
            return None

    async def _count(self, name: str) -> None:
        page = await self._bed.ask(name, "/metrics", timeout_s=SILENT_S)
        if page is not None and page.status == 200:
            self._counters[name] = counters(page.body.decode("utf-8", "replace"))

    def _write(self, name: str, status: dict[str, Any] | None) -> None:
        if status is None:
            self._writer.seen(name, up=False)
            return
        detail: dict[str, Any] = {
            key: status[key] for key in ("pid", "leader", "has_quorum", "ready", "cache") if key in status
        }
        if name in self._counters:
            detail[WORD] = self._counters.pop(name)
        self._writer.seen(
            name,
            up=True,
            state=str(status.get("state", "")),
            term=int(status.get("term", 0)),
            commit=int(status.get("commit_index", 0)),
            applied=int(status.get("applied_index", 0)),
            detail=detail,
        )


def counters(page: str, wanted: Sequence[str] = tuple(COUNTERS)) -> dict[str, int]:
    """Those of a page of metrics that a report shows."""
    return {word: int(float(value)) for word, value in LINE.findall(page) if word in wanted}
