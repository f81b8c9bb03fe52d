"""Carries a plan of faults out: each in its time, never two that share a part, and every step written down."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from random import Random
from typing import Any

from msgspec import Struct
from rich.markup import escape

from chaos.faults.nemeses import NEMESES
from chaos.faults.nemesis import Nemesis, Struck
from chaos.faults.target import Target
from chaos.history.file import HistoryWriter
from chaos.history.run import Planned
from chaos.live.markers import Markers
from chaos.net.links import NotCut
from chaos.report.timeline import TOOK_MS
from cluster.launcher import LaunchError

FAILURES = (NotCut, LaunchError, OSError)
"""What a fault may raise that is the tool's failure, and makes the run invalid."""
SEVERING = frozenset({"dc-cut", "isolate", "majorities-ring", "one-way", "stall", "refused"})
"""Faults of links between members through which nothing passes while they last."""
STOPPING = frozenset({"kill", "pause", "power-cut", "lost-disk"})


class InForce(Struct):
    """A fault that is there now. targets: what it hit. said: the same in words."""

    planned: Planned
    targets: list[str]
    said: str


class Strikes:
    """The faults of one run. `now`: those in force. alone: one at a time, whatever they lay hands on."""

    def __init__(
        self,
        target: Target,
        writer: HistoryWriter,
        plan: Sequence[Planned],
        *,
        seed: int,
        alone: bool,
        markers: Markers,
        say: Callable[[str], None],
    ) -> None:
        self._target = target
        self._writer = writer
        self._plan = plan
        self._seed = seed
        self._alone = alone
        self.markers = markers
        self._say = say
        self._locks: dict[str, asyncio.Lock] = {}
        self.now: dict[int, InForce] = {}

    async def run(self, seconds: float) -> None:
        """Return when the last fault has been taken back. One whose turn comes after `seconds` is left out."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for planned in self._plan:
                group.create_task(self._when_due(planned, began, began + max(seconds, planned.at_s + 0.5)))

    async def _when_due(self, planned: Planned, began: float, until: float) -> None:
        await asyncio.sleep(max(0.0, began + planned.at_s - time.monotonic()))
        parts = ["all"] if self._alone else sorted(NEMESES[planned.nemesis].parts)
        async with AsyncExitStack() as held:
            for part in parts:
                # In one order for all, so that no two wait for each other.
                await held.enter_async_context(self._locks.setdefault(part, asyncio.Lock()))
            if time.monotonic() <= until or not self._alone:
                await self._strike(planned)

    async def _strike(self, planned: Planned) -> None:
        """A cancelled run leaves the fault as it is: whoever cancels ends the cluster."""
        nemesis = NEMESES[planned.nemesis]()
        reason = nemesis.available(self._target)
        if reason:
            self._failed(planned, reason)
            return
        try:
            await self._hold(nemesis, planned)
        except FAILURES as error:
            self._failed(planned, str(error))
        made = await self._marks(planned)
        try:
            await nemesis.end(self._target)
        except FAILURES as error:
            self._failed(planned, f"not taken back: {error}")
        since = time.monotonic()
        self.now.pop(planned.number, None)
        self._writer.fault(
            planned.number, planned.nemesis, "end", detail={"told": nemesis.told} if nemesis.told else {}
        )
        self._say(f"{planned.nemesis} ends{f': {escape(nemesis.told)}' if nemesis.told else ''}")
        if made and not self._cuts_sites():
            await self.markers.seen(made, since)

    async def _marks(self, planned: Planned) -> dict[str, str]:
        """Just before the sites can reach each other again: something at each that the other does not know."""
        force = self.now.get(planned.number)
        return await self.markers.set() if force is not None and self._cuts(force) else {}

    def _cuts(self, force: InForce) -> bool:
        sites = {link.name for link in self._target.links if link.kind == "site"}
        return force.planned.nemesis in ("dc-cut", "site-cut") and bool(sites & set(force.targets))

    def _cuts_sites(self) -> bool:
        return any(self._cuts(force) for force in self.now.values())

    async def _hold(self, nemesis: Nemesis, planned: Planned) -> None:
        began = time.monotonic()
        rng = Random(f"{self._seed} fault {planned.number}")
        struck = await nemesis.begin(self._target, rng, planned.detail)
        took_ms = int((time.monotonic() - began) * 1000)
        detail = {**struck.detail, **reach(self._target, planned.nemesis, struck), TOOK_MS: took_ms}
        self._writer.fault(planned.number, planned.nemesis, "begin", targets=struck.targets, detail=detail)
        self.now[planned.number] = InForce(planned, struck.targets, told(struck))
        self._say(f"[red]{planned.nemesis}[/] {escape(told(struck))}")
        seen = await nemesis.bite(self._target, struck)
        self._writer.fault(planned.number, planned.nemesis, "bite", targets=struck.targets, detail={"seen": seen})
        await asyncio.sleep(max(0.0, began + planned.for_s - time.monotonic()))

    def _failed(self, planned: Planned, why: str) -> None:
        self._writer.fault(planned.number, planned.nemesis, "failed", detail={"why": why})
        self._say(f"[red]{planned.nemesis} failed[/]: {escape(why)}")


def told(struck: Struck) -> str:
    """What was hit, short enough for a line."""
    drawn = {name: value for name, value in struck.detail.items() if isinstance(value, str | int | float)}
    said = ", ".join(f"{name} {value}" for name, value in drawn.items())
    names = struck.targets if len(struck.targets) <= 3 else [f"{len(struck.targets)} links or processes"]
    return f"{', '.join(names)}{f' ({said})' if said else ''}"


def reach(target: Target, nemesis: str, struck: Struck) -> dict[str, Any]:
    """Who can reach a majority under this fault, and who can't; nothing where it cuts nobody off."""
    members = target.members
    if nemesis in SEVERING:
        return _split(members, members, cut=_pairs(target, struck.targets))
    if nemesis in STOPPING:
        return _split(members, [name for name in members if name not in struck.targets], cut=set())
    return {}


def _pairs(target: Target, names: Iterable[str]) -> set[frozenset[str]]:
    named = set(names)
    return {frozenset((link.dialer, link.target)) for link in target.links if link.name in named}


def _split(members: Sequence[str], alive: Sequence[str], cut: set[frozenset[str]]) -> dict[str, Any]:
    """A member reaches those that it has a link of its own to: nobody passes on for others."""
    majority = [
        name
        for name in alive
        if sum(other == name or frozenset((name, other)) not in cut for other in alive) > len(members) // 2
    ]
    return {"majority": majority, "minority": [name for name in members if name not in majority]}
