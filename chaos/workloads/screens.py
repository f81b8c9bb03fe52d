"""screens: what traders look at, read from each gateway at its own pace, whatever is slow or cut."""

import asyncio
import time
from collections import deque
from collections.abc import Mapping

from chaos.workloads import at_gateways
from chaos.workloads.context import Context
from chaos.workloads.process import Process, SetupFailed

NAME = "screens"
WARM_S = 30.0


async def warm(context: Context, workload: str) -> None:
    """Wait until each gateway has quotes and a ranking. Raises SetupFailed."""
    deadline = time.monotonic() + WARM_S
    wanted = (at_gateways.read_quotes(context.symbols), at_gateways.read_leaderboard())
    for gateway in context.gateways:
        process = Process(context, workload, gateway)
        try:
            for request in wanted:
                while (reply := await process.ask(request, gateway)).outcome != "ok":
                    if time.monotonic() >= deadline:
                        raise SetupFailed(f"{gateway} does not answer {request.kind}: {reply.error}")
                    await asyncio.sleep(0.1)
        finally:
            await process.close()


class Screens:
    """Reads that only a gateway answers, `per_s` of each gateway.

    Each is sent when it is due and waits for no other. Readers that wait for their answers would ask a gateway that
    hangs a few times only, and its silence would hardly count.
    """

    def __init__(self, context: Context, per_s: float) -> None:
        self._context = context
        self._per_s = per_s
        self._stopping = asyncio.Event()
        self._pacers: list[asyncio.Task[None]] = []
        self._looks: set[asyncio.Task[None]] = set()
        self._idle: Mapping[str, deque[Process]] = {gateway: deque() for gateway in context.gateways}
        self._accounts: list[str] = []

    def start(self) -> None:
        self._pacers = [asyncio.create_task(self._pace(gateway)) for gateway in self._context.gateways]

    async def stop(self) -> None:
        """No more are sent; those under way end. Raises what one raised."""
        self._stopping.set()
        try:
            await asyncio.gather(*self._pacers)
            await asyncio.gather(*self._looks)
        finally:
            for task in (*self._pacers, *self._looks):
                task.cancel()
            await asyncio.gather(*self._pacers, *self._looks, return_exceptions=True)
            for idle in self._idle.values():
                for process in idle:
                    await process.close()

    async def _pace(self, gateway: str) -> None:
        chance = self._context.chance(NAME, gateway)
        due = time.monotonic()
        while not self._stopping.is_set():
            # What this process was too late for is sent all the same: nothing that was due is left out.
            due += chance.expovariate(self._per_s)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            look = asyncio.create_task(self._look(gateway))
            self._looks.add(look)
            look.add_done_callback(self._ended)

    def _ended(self, look: asyncio.Task[None]) -> None:
        # One that failed stays, for `stop` to raise.
        if not look.cancelled() and look.exception() is None:
            self._looks.discard(look)

    async def _look(self, gateway: str) -> None:
        context, idle = self._context, self._idle[gateway]
        process = idle.popleft() if idle else Process(context, NAME, gateway)
        drawn = process.chance.random()
        if len(self._accounts) != len(context.accounts):
            self._accounts = sorted(context.accounts)
        if drawn < 0.3 and self._accounts:
            request = at_gateways.read_portfolio(process.chance.choice(self._accounts))
        elif drawn < 0.4:
            request = at_gateways.read_leaderboard()
        else:
            request = at_gateways.read_quotes(context.symbols)
        await process.ask(request, gateway)
        idle.append(process)
