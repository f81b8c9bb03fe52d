"""Drives workloads: so many processes, each at its pace, until they are told to stop."""

import asyncio
import time
from collections.abc import Sequence

from chaos.workloads.context import Context
from chaos.workloads.process import Process
from chaos.workloads.screens import NAME, Screens, warm
from chaos.workloads.workload import Workload
from chaos.workloads.workloads import WORKLOADS

PROCESSES = 15
RATE_PER_S = 300.0
BEHIND_S = 0.5
"""Steps that are due for longer than this are left out: after a cut nobody makes up for it with a flood."""


class Crew:
    """The processes of one run. rate_per_s: steps in all, mostly one call each. screens_per_s: reads of each gateway
    beside these.

    A process waits for each of its calls, so a side that does not answer is asked `processes` at a time, no more;
    reads of screens wait for nothing.
    """

    def __init__(
        self,
        context: Context,
        workloads: Sequence[str],
        *,
        rate_per_s: float = RATE_PER_S,
        processes: int = PROCESSES,
        screens_per_s: float = 0.0,
    ) -> None:
        """There are at least as many processes as workloads.

        Raises KeyError: no such workload. ValueError: one that asks gateways, and there are none.
        """
        self.context = context
        self.workloads = [WORKLOADS[name](context) for name in workloads]
        alone = [one.name for one in self.workloads if one.home == "gateways" and not context.gateways]
        if alone:
            raise ValueError(f"{', '.join(alone)} asks gateways, and there are none")
        self._count = max(processes, len(self.workloads))
        self._per_process_per_s = rate_per_s / self._count
        self._tasks: list[asyncio.Task[None]] = []
        self.processes: list[Process] = []
        self._stopping = asyncio.Event()
        self._screens = Screens(context, screens_per_s) if screens_per_s and context.gateways else None

    async def setup(self) -> None:
        """Raises SetupFailed."""
        for workload in self.workloads:
            await workload.setup()
        if self._screens:
            await warm(self.context, NAME)

    def start(self) -> None:
        """Begin; what a step raises ends its process, and `stop` raises it."""
        homes = {"members": list(self.context.members), "gateways": list(self.context.gateways)}
        for number in range(self._count):
            # Workloads take turns, and the processes of each take turns at its homes.
            turn, place = divmod(number, len(self.workloads))
            workload = self.workloads[place]
            process = Process(self.context, workload.name, homes[workload.home][turn % len(homes[workload.home])])
            self.processes.append(process)
            self._tasks.append(asyncio.create_task(self._run(process, workload)))
        if self._screens:
            self._screens.start()

    async def _run(self, process: Process, workload: Workload) -> None:
        due = time.monotonic() + process.chance.expovariate(self._per_process_per_s)
        while not self._stopping.is_set():
            wait_s = due - time.monotonic()
            if wait_s > 0 and await self._stops_within(wait_s):
                return
            await workload.step(process)
            due = max(due, time.monotonic() - BEHIND_S) + process.chance.expovariate(self._per_process_per_s)

    async def _stops_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._stopping.wait()
        except TimeoutError:
            return False

    async def stop(self) -> None:
        """Let each finish the step that it is at, and no more. Raises what a step raised."""
        self._stopping.set()
        try:
            await asyncio.gather(*self._tasks, *([self._screens.stop()] if self._screens else []))
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for process in self.processes:
                await process.close()

    @property
    def failed(self) -> bool:
        """A process ended by an error of ours; the run shows less than it should."""
        return any(task.done() and not task.cancelled() and task.exception() is not None for task in self._tasks)
