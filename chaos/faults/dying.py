"""Deaths that come from within: at a failpoint inside a step, and over a memory limit."""

import asyncio
import contextlib
import os
import time
from pathlib import Path
from random import Random

from chaos.faults import processes
from chaos.faults.nemesis import Detail, Nemesis, Struck, choose, drawn, felt
from chaos.faults.process import MEMBERS
from chaos.faults.target import Target
from chaos.net.links import NotCut

FAILPOINTS = "TIEBREAK_FAILPOINTS"
"""Read by test builds alone: see chaos.live.programs.failpoints, which says what each step is."""
POINTS = ("before-append", "after-append", "before-sync", "after-sync", "before-apply", "after-apply", "before-reply")
"""Steps that a replica under load comes to within a moment."""
SENDING = ("mid-snapshot", "mid-send")
RECEIVING = ("mid-receive", "mid-install")
RARE = ("before-store", "after-store", "mid-trim", *SENDING, *RECEIVING)
"""Steps that a replica comes to when it flushes, trims its log, or when a snapshot is made for somebody. The last two
need logs that are trimmed often."""
AWAY_S = 5.0
"""Whoever was away for so long, where logs are trimmed often, comes back by a snapshot."""
CAUGHT_UP_S = 20.0
CLOSE_ENTRIES = 20
MEMORY = Path("/sys/fs/cgroup/memory")
LIMITS_BYTES = (1 << 20, 1 << 18, 1 << 16)
"""What was there before does not count, so these are for what a member takes from now on."""
LOWER_S = 3.0


class KillInside(Nemesis):
    """The member is started with the failpoint armed, and kills itself there. Snapshots are made to be needed: one that
    is to die while it receives is away first, and for one that is to die while it sends the other replica is.

    detail: `who`; `point`: of POINTS or RARE; `nth`: at which arrival.
    """

    name = "kill-inside"
    line = "a member dies inside a step: around an append, a sync, an apply or a reply, or within a trim or a snapshot"
    parts = MEMBERS

    def __init__(self) -> None:
        self._name = ""
        self._away = ""

    async def begin(self, target: Target, rng: Random, detail: Detail) -> Struck:
        who = drawn(detail, "who", lambda: rng.choice(("replica", "leader")))
        point = drawn(detail, "point", lambda: rng.choice(POINTS))
        nth = drawn(detail, "nth", lambda: rng.choice((1, 2, 5, 20, 50)))
        name = (await choose(target, rng, who))[0]
        others = [other for other in target.replicas if other != name]
        if point in SENDING and len(others) != 1:
            raise NotCut(f"{self.name}: who sends at {point} is known of two replicas only")
        processes.must_run(target, name)
        self._name = name
        await target.stop(name)
        if point in RECEIVING:
            await asyncio.sleep(AWAY_S)
        await target.start(name, environment={FAILPOINTS: f"{point.replace('-', '_')}:kill:{nth}"}, ready_timeout_ms=0)
        if point in SENDING:
            await self._leave_alone(target, others[0])
        return Struck([name], {"who": name, "point": point, "nth": nth})

    async def _leave_alone(self, target: Target, other: str) -> None:
        """The other replica is away until it needs a snapshot, which only the armed one can send."""

        async def caught_up() -> str:
            mine, theirs = await target.status(self._name), await target.status(other)
            if mine is None or theirs is None or mine["applied_index"] < theirs["applied_index"] - CLOSE_ENTRIES:
                return ""
            return f"{self._name} has what {other} has"

        await felt(caught_up, f"that {self._name} catches up", within_s=CAUGHT_UP_S)
        self._away = other
        await target.kill(other)
        await felt(lambda: self._leads(target), f"that {self._name} leads", within_s=CAUGHT_UP_S)
        await asyncio.sleep(AWAY_S)
        await target.start(other, ready_timeout_ms=0)

    async def _leads(self, target: Target) -> str:
        return f"{self._name} leads" if await target.leader() == self._name else ""

    async def bite(self, target: Target, struck: Struck) -> str:
        where = f"{struck.detail['point']}, arrival {struck.detail['nth']}"
        await felt(lambda: processes.gone(target, [self._name]), f"death of {self._name} at {where}", within_s=30)
        return f"{self._name} died at {where}"

    async def end(self, target: Target) -> None:
        # One that has not died yet is armed still.
        if self._name:
            await target.kill(self._name)
            await processes.bring_back(target, [self._name, *([self._away] if self._away else [])])


class OutOfMemory(Nemesis):
    """By a memory group of its own, whose limit it soon exceeds.

    detail: `who`.
    """

    name = "out-of-memory"
    line = "the kernel kills a member that is over its memory limit"
    parts = MEMBERS

    def __init__(self) -> None:
        self._name = ""
        self._group: Path | None = None

    def available(self, target: Target) -> str:
        if os.geteuid() != 0:
            return "memory limits need root"
        return "" if (MEMORY / "cgroup.procs").exists() else f"there are no memory groups (version 1) at {MEMORY}"

    async def begin(self, target: Target, rng: Random, detail: Detail) -> Struck:
        who = drawn(detail, "who", lambda: rng.choice(("replica", "leader")))
        name = (await choose(target, rng, who))[0]
        pid = processes.must_run(target, name)
        self._name = name
        group = MEMORY / f"tiebreak-{pid}"
        try:
            group.mkdir()
            self._group = group
            (group / "memory.limit_in_bytes").write_text(str(LIMITS_BYTES[0]))
            (group / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            raise NotCut(f"no memory group for {name}: {error}") from error
        return Struck([name], {"who": name})

    async def bite(self, target: Target, struck: Struck) -> str:
        group = self._group
        if group is None:
            raise NotCut(f"{self._name} has no memory group")
        lower = iter(LIMITS_BYTES[1:])
        due = time.monotonic() + LOWER_S

        async def look() -> str:
            nonlocal due
            if "oom_kill 0" not in (group / "memory.oom_control").read_text("ascii"):
                return f"the kernel killed {self._name} for its memory" if target.pid(self._name) is None else ""
            if time.monotonic() > due:
                due += LOWER_S
                # Refused while it holds more than this and can't let go: then the limit stays as it is.
                with contextlib.suppress(OSError):
                    (group / "memory.limit_in_bytes").write_text(str(next(lower, LIMITS_BYTES[-1])))
            return ""

        return await felt(look, f"the death of {self._name} for its memory", within_s=20)

    async def end(self, target: Target) -> None:
        if self._name:
            await target.kill(self._name)
        if self._group is not None:
            self._group.rmdir()
            self._group = None
        if self._name:
            await processes.bring_back(target, [self._name])
