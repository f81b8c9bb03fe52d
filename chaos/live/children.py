"""Processes of a bed that are neither member nor gateway: caches and the venue. They end with us, however we end."""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.launcher import KILL_TIMEOUT_MS, LaunchError, StillRuns, death_wish

READY_TIMEOUT_S = 15.0
POLL_S = 0.05


class Child:
    """One command that is started again and again. Its output goes to `log`."""

    def __init__(self, name: str, command: Sequence[str], log: Path, *, port: int) -> None:
        """port: where it listens on loopback once it is ready."""
        self.name = name
        self.port = port
        self.command = list(command)
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """One that runs is left alone. The thread that calls this must live as long as the child shall."""
        if self.pid is not None:
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=death_wish(os.getpid()),  # noqa: PLW1509 - prctl alone, which takes no lock
            )

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            # Not reaped yet, so the pid is still this child's.
            self._process.send_signal(number)

    async def ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until it listens. Raises LaunchError."""
        deadline = time.monotonic() + timeout_s
        while self.pid is not None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.transport.abort()
                return
            await asyncio.sleep(POLL_S)
        raise LaunchError(f"{self.name} does not listen on port {self.port}; its last words: {self.last_words()}")

    def last_words(self) -> str:
        with contextlib.suppress(OSError):
            return self.log.read_text("utf-8", "replace")[-500:].strip()
        return ""


async def gone(pid: int, timeout_s: float) -> bool:
    """Wait until the last thread of a process has ended, the loop going on meanwhile. False: not in time."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        async with asyncio.timeout(timeout_s):
            await ended.wait()
        return True
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def must_go(name: str, pid: int) -> None:
    """Wait for the end of what was killed. Raises StillRuns."""
    if not await gone(pid, KILL_TIMEOUT_MS / 1000):
        raise StillRuns(f"{name} (pid {pid}) was killed and is not gone after {KILL_TIMEOUT_MS / 1000:g} s")
