"""Keeps worker processes running: starts them, starts again those that end, ends them with the gateway."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence

import structlog

from gateway.tasks import end

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.workers")

PAUSE_S = 0.2
PAUSE_S_MAX = 10.0
HELD_S = 10.0
"""Who ran for so long is started again at once."""


class Supervisor:
    """command: the arguments of worker `number`, from 0. The workers' output is this process's."""

    def __init__(self, command: Callable[[int], Sequence[str]], count: int) -> None:
        self.count = count
        self.restarts = 0
        self.pids: dict[int, int] = {}
        """Of those that run, by number."""
        self._command = command
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._keep(number), name=f"worker {number}") for number in range(self.count)]

    def kill(self, pid: int) -> None:
        """End a worker that does not do its work; another takes its place. Of strangers nothing is killed."""
        if pid in self.pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def stop(self, *, timeout_s: float) -> None:
        """SIGTERM, so that they drain; SIGKILL for those that are still there after the timeout."""
        self._stopping.set()
        for pid in list(self.pids.values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=timeout_s)
            if late:
                for pid in list(self.pids.values()):
                    log.error("a worker did not end in time", pid=pid)
                    self.kill(pid)
                await asyncio.wait(late, timeout=1.0)
        await end(*self._tasks)

    async def _keep(self, number: int) -> None:
        pause_s = PAUSE_S
        while True:
            began_s = time.monotonic()
            try:
                process = await asyncio.create_subprocess_exec(*self._command(number))
            except OSError as error:
                log.error("a worker can't be started", number=number, error=str(error))
            else:
                self.pids[number] = process.pid
                code = await process.wait()
                del self.pids[number]
                if self._stopping.is_set():
                    return
                self.restarts += 1
                log.error("a worker ended", number=number, pid=process.pid, code=code)
            pause_s = PAUSE_S if time.monotonic() - began_s > HELD_S else min(PAUSE_S_MAX, pause_s * 2)
            await asyncio.sleep(pause_s)
            if self._stopping.is_set():
                return
