"""Faults of processes: killed, stopped, restarted one by one or again and again."""

import asyncio
import contextlib
import signal
from random import Random

from chaos.faults import processes
from chaos.faults.nemesis import BACK_S, Detail, Nemesis, Part, Struck, choose, drawn, felt
from chaos.faults.network import together
from chaos.faults.target import Target
from chaos.net.links import NotCut

MEMBERS: frozenset[Part] = frozenset({"members"})
STORM_S = (0.02, 0.5)
SETTLE_S = 0.2
"""From healing a link to stopping its reader: what the proxy held has passed by then."""
WORDS = ("one", "leader", "minority", "majority", "site", "all")


class Kill(Nemesis):
    """Down until the end, when all of them start.

    detail: `who`: see nemesis.choose.
    """

    name = "kill"
    line = "SIGKILL of one, the leader, a minority, a majority, a datacenter or all members, started again at the end"
    parts = MEMBERS | {"gateways"}

    def __init__(self) -> None:
        self.down: list[str] = []

    def draw(self, rng: Random) -> str:
        return rng.choice(WORDS)

    async def begin(self, target: Target, rng: Random, detail: Detail) -> Struck:
        who = drawn(detail, "who", lambda: self.draw(rng))
        names = await choose(target, rng, who)
        for name in names:
            processes.must_run(target, name)
        self.down = names
        await together(target.kill(name) for name in names)
        return Struck(names, {"who": who})

    async def bite(self, target: Target, struck: Struck) -> str:
        return await felt(lambda: processes.gone(target, self.down), f"the death of {', '.join(self.down)}")

    async def end(self, target: Target) -> None:
        down, self.down = self.down, []
        await processes.bring_back(target, down)


class GatewayKill(Kill):
    """detail: `who`: a gateway's name."""

    name = "gateway-kill"
    line = "SIGKILL of a gateway, started again at the end"
    parts = frozenset({"gateways"})

    def available(self, target: Target) -> str:
        return "" if target.gateways else "this cluster has no gateways"

    async def begin(self, target: Target, rng: Random, detail: Detail) -> Struck:
        who = drawn(detail, "who", lambda: rng.choice(target.gateways))
        return await super().begin(target, rng, {**detail, "who": who})


class CacheKill(Kill):
    """detail: `who`: a gateway's name."""

    name = "cache-kill"
    line = "SIGKILL of a gateway's cache, started empty at the end"
    parts = frozenset({"cache links"})

    def available(self, target: Target) -> str:
        found = any(target.cache_pid(name) is not None for name in target.gateways)
        return "" if found else "this cluster has no caches of its own"

    async def begin(self, target: Target, rng: Random, detail: Detail) -> Struck:
        gateway = drawn(detail, "who", lambda: rng.choice(target.gateways))
        pid = target.cache_pid(gateway)
        if pid is None:
            raise NotCut(f"the cache of {gateway} does not run")
        self.down = [f"cache-{target.site_of(gateway)}"]
        await target.kill(self.down[0])
        return Struck(self.down, {"who": gateway})

    async def bite(self, target: Target, struck: Struck) -> str:
        gateway = str(struck.detail["who"])

        async def look() -> str:
            status = await target.status(gateway)
            if target.cache_pid(gateway) is not None or status is None:
                return ""
            # It says so when it next writes, which it does when something has changed.
            return f"no process; {gateway} says: cache {status['cache']}"

        return await felt(look, f"the end of the cache of {gateway}")

    async def end(self, target: Target) -> None:
        down, self.down = self.down, []
        for name in down:
            await target.start(name)


class Pause(Nemesis):
    """The order is a rule: links healed, then stopped; gone on, then links again. Else a proxy can deadlock.

    detail: `who`.
    """

    name = "pause"
    line = "SIGSTOP of a member, the leader or a minority, and SIGCONT at the end"
    parts = MEMBERS | {"peer links", "gateway links"}

    def __init__(self) -> None:
        self.stopped: list[str] = []

    def draw(self, rng: Random) -> str:
        return rng.choice(("leader", "one", "minority"))

    async def begin(self, target: Target, rng: Random, detail: Detail) -> Struck:
        who = drawn(detail, "who", lambda: self.draw(rng))
        names = await choose(target, rng, who)
        for name in names:
            processes.must_run(target, name)
        links = [link.name for link in target.links if {link.dialer, link.target} & set(names)]
        await together(target.network.heal(name) for name in links)
        await asyncio.sleep(SETTLE_S)
        self.stopped = names
        for name in names:
            target.network.quiet(name)
            await target.signal(name, signal.SIGSTOP)
        return Struck(names, {"who": who})

    async def bite(self, target: Target, struck: Struck) -> str:
        async def look() -> str:
            states = [processes.state(target.pid(name)) for name in self.stopped]
            if states != [processes.STOPPED] * len(states):
                return ""
            answers = [name for name in self.stopped if await target.status(name) is not None]
            return "" if answers else f"state {processes.STOPPED} and no answer: {', '.join(self.stopped)}"

        return await felt(look, f"the stop of {', '.join(self.stopped)}")

    async def end(self, target: Target) -> None:
        stopped, self.stopped = self.stopped, []
        for name in stopped:
            await processes.go_on(target, name)
            target.network.loud(name)
        await processes.bring_back(target, stopped)
        await asyncio.sleep(SETTLE_S)


class RollingRestart(Nemesis):
    """As an operator does it: SIGTERM, start, wait until it takes traffic, then the next.

    detail: `kill`: SIGKILL in place of SIGTERM.
    """

    name = "rolling-restart"
    line = "restart every member, one after the other, each when the last takes traffic again"
    parts = MEMBERS

    def __init__(self) -> None:
        self.done: list[str] = []
        self._last = ""
        self._task: asyncio.Task[None] | None = None
        self._enough = False

    async def begin(self, target: Target, rng: Random, detail: Detail) -> Struck:
        kill = bool(drawn(detail, "kill", lambda: rng.random() < 0.3))
        order = drawn(detail, "order", lambda: rng.sample(target.members, len(target.members)))
        self._task = asyncio.create_task(self._roll(target, order, kill))
        return Struck(order, {"kill": kill, "order": order})

    async def _roll(self, target: Target, order: list[str], kill: bool) -> None:
        for name in order:
            if self._enough:
                return
            self._last = name
            before = target.pid(name)
            await (target.kill(name) if kill else target.stop(name))
            await processes.bring_back(target, [name])
            if target.pid(name) != before:
                self.done.append(name)
            await felt(lambda name=name: _ready(target, name), f"{name} ready", within_s=BACK_S)  # type: ignore[misc]

    async def bite(self, target: Target, struck: Struck) -> str:
        async def look() -> str:
            if self._task is not None and self._task.done():
                self._task.result()
            return f"another process: {', '.join(self.done)}" if self.done else ""

        return await felt(look, "the first restart", within_s=BACK_S)

    async def end(self, target: Target) -> None:
        """The restart that is under way is finished; those that are left are left out."""
        self._enough = True
        if self._task is not None:
            await asyncio.wait([self._task])
            await processes.bring_back(target, [self._last] if self._last else [])
            self._task.result()


async def _ready(target: Target, name: str) -> str:
    status = await target.status(name)
    return name if status is not None and (status["ready"] or status["role"] == "witness") else ""


class RestartStorm(Nemesis):
    """Mostly it is killed while it still starts: in its first imports, or while it reads its log.

    detail: `who`.
    """

    name = "restart-storm"
    line = "a member is killed 20 to 500 ms after each start, again and again"
    parts = MEMBERS

    def __init__(self) -> None:
        self.kills = 0
        self._name = ""
        self._task: asyncio.Task[None] | None = None
        self._enough = asyncio.Event()

    async def begin(self, target: Target, rng: Random, detail: Detail) -> Struck:
        who = drawn(detail, "who", lambda: rng.choice(("leader", "one")))
        self._name = (await choose(target, rng, who))[0]
        processes.must_run(target, self._name)
        self._task = asyncio.create_task(self._storm(target, Random(rng.random())))
        return Struck([self._name], {"who": self._name})

    async def _storm(self, target: Target, rng: Random) -> None:
        while not self._enough.is_set():
            await target.kill(self._name)
            self.kills += 1
            await target.start(self._name, ready_timeout_ms=0)
            with contextlib.suppress(TimeoutError):
                # One start in five is let through: then it is killed as a member that has joined the others.
                await asyncio.wait_for(
                    self._enough.wait(), rng.uniform(*STORM_S) if rng.random() < 0.8 else 2 + rng.random()
                )

    async def bite(self, target: Target, struck: Struck) -> str:
        async def look() -> str:
            if self._task is not None and self._task.done():
                self._task.result()
            return f"{self._name} killed {self.kills} times" if self.kills > 2 else ""

        return await felt(look, "the third kill of a storm", within_s=20)

    async def end(self, target: Target) -> None:
        self._enough.set()
        if self._task is not None:
            await asyncio.wait([self._task])
            await processes.bring_back(target, [self._name])
            self._task.result()
