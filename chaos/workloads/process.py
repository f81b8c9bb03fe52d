"""One client of a run: it makes one call at a time, and is another process for the history after each unknown end."""

import asyncio
import time
from collections.abc import Iterable, Sequence

from chaos.workloads.connection import Connections
from chaos.workloads.context import Context
from chaos.workloads.operation import Reply, Request, operate

ELSEWHERE = 0.05
"""How often a client asks another than its home. More would make all clients wait for a side that is cut off."""
AVOIDED_S = 2.0
"""For so long after a failure a client asks nobody else there; its home it always asks."""
READS_WAIT = 1.2
"""Deadlines, for reads: a member may take a whole one to find that it can't confirm a read, and is to be heard."""
SETTLE_S = 60.0
SETTLERS = 8


class SetupFailed(Exception):
    """A cluster without faults did not take what a workload needs. The message says what was asked and answered."""


class Process:
    """home: the member or gateway that it asks, unless it is told another. number: its id in the history.

    chance: all that it draws. A call that ended unknown may yet take effect, so nobody may take the next call for a
    later one: the process is retired, and goes on here as a new one, with new connections.
    """

    def __init__(self, context: Context, workload: str, home: str) -> None:
        self.context = context
        self.workload = workload
        self.home = home
        self.session = ""
        self.seen = 0
        self.retired = 0
        self._sent = 0
        self._failed_at: dict[str, float] = {}
        self._connections = Connections()
        self._begin()

    def _begin(self) -> None:
        self.number = self.context.fresh_process()
        self.chance = self.context.chance(self.workload, self.number)

    def new_key(self) -> str:
        """A key that nobody else of this run has."""
        self._sent += 1
        return f"{self.workload}-{self.context.seed}-{self.number}-{self._sent}"

    def somewhere(self) -> str:
        """Its home; now and then another member, or gateway where its home is one."""
        if self.chance.random() >= ELSEWHERE:
            return self.home
        return self.elsewhere() or self.home

    def elsewhere(self) -> str:
        """Another of the kind of its home that did not fail lately; an empty string when there is none."""
        group = self.context.gateways if self.home in self.context.gateways else self.context.members
        now = time.monotonic()
        others = [one for one in group if one != self.home and now - self._failed_at.get(one, -AVOIDED_S) >= AVOIDED_S]
        return self.chance.choice(others) if others else ""

    async def ask(self, request: Request, target: str = "", *, timeout_ms: int = 0) -> Reply:
        """Ask once and write both ends into the history. target: where, else as `somewhere` says.

        timeout_ms: when to hang up, where it is not the run's deadline; the member is not told.
        """
        context = self.context
        target = target or self.somewhere()
        if request.key:
            context.keys[request.key] = request.scope
        token = context.tokens.token(request.role, request.accounts, subject=f"{self.workload}-{self.number}")
        op = context.writer.call(
            process=self.number,
            workload=self.workload,
            kind=request.kind,
            target=target,
            key=request.key,
            args=request.args,
        )
        reply = await operate(
            self._connections,
            context.address(target),
            request,
            token=token,
            timeout_s=(timeout_ms or context.deadline_ms) / 1000 * (READS_WAIT if request.is_read else 1.0),
            waits_s=context.deadline_ms / 1000,
        )
        context.writer.ret(
            op,
            reply.outcome,
            index=reply.index,
            replay=reply.replay,
            answer=reply.answer,
            error=reply.error,
            age_ms=reply.age_ms,
        )
        context.tally[target, reply.outcome] += 1
        if reply.outcome != "ok":
            self._failed_at[target] = time.monotonic()
        if reply.outcome == "unknown":
            await self._retire()
        elif reply.index >= self.seen and reply.session:
            self.session, self.seen = reply.session, reply.index
        return reply

    async def _retire(self) -> None:
        await self._connections.close()
        self.retired += 1
        self.session, self.seen = "", 0
        self._begin()

    async def must(self, request: Request) -> Reply:
        """Ask with one key until it is done, wherever it can be. Raises SetupFailed: refused, or not in time."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            for target in self.context.members:
                reply = await self.ask(request, target)
                if reply.outcome == "ok":
                    if "error" in reply.answer:
                        raise SetupFailed(f"{request.kind} {request.args}: {reply.answer['error']}")
                    return reply
            if time.monotonic() >= deadline:
                raise SetupFailed(f"{request.kind} {request.args}: {reply.error}, for {SETTLE_S:g} s")
            await asyncio.sleep(0.1)

    async def close(self) -> None:
        await self._connections.close()


async def settle(context: Context, workload: str, rows: Iterable[Sequence[Request]]) -> None:
    """Do all of it, some rows at a time, each row in its order. Raises SetupFailed."""
    waiting = list(rows)[::-1]

    async def work(process: Process) -> None:
        try:
            while waiting:
                for request in waiting.pop():
                    await process.must(request)
        finally:
            await process.close()

    home = next(iter(context.members))
    tasks = [asyncio.ensure_future(work(Process(context, workload, home))) for _ in range(min(SETTLERS, len(waiting)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
