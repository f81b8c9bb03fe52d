"""Disks that are slow, fail or lie: strace changes what system calls of a running member do."""

import asyncio
import contextlib
import re
import signal
import subprocess
import tempfile
from abc import abstractmethod
from pathlib import Path
from random import Random

from chaos.disk.children import dies_with_us
from chaos.disk.tracing import strace_missing
from chaos.faults import processes
from chaos.faults.disk import PowerCut, power_again, start_or_rejoin
from chaos.faults.nemesis import Detail, Nemesis, Struck, choose, drawn, felt
from chaos.faults.network import together
from chaos.faults.process import MEMBERS
from chaos.faults.target import Target
from chaos.net.links import NotCut

ATTACH_S = 10.0
SLOW_MS = (50, 2_000)
SYNC = "fdatasync"


class Tampering:
    """strace on one process, all of its threads, from `attach` to `detach`. words: what it injects."""

    def __init__(self, words: str, *, calls: str = SYNC) -> None:
        self._words, self._calls = words, calls
        self._folder = tempfile.TemporaryDirectory(prefix="tiebreak-strace-")
        self._log = Path(self._folder.name) / "log"
        self._process: subprocess.Popen[bytes] | None = None

    async def attach(self, pid: int) -> None:
        """Raises NotCut."""
        process = self._process = self._spawn(pid)

        async def look() -> str:
            if process.poll() is not None and self.struck():
                return "it struck, and the process has left"
            if process.poll() is not None:
                raise NotCut(f"strace ended: {(Path(self._folder.name) / 'talk').read_text().strip()}")
            return "attached" if processes.tracer(pid) == process.pid else ""

        await felt(look, f"strace on process {pid}", within_s=ATTACH_S)

    def _spawn(self, pid: int) -> subprocess.Popen[bytes]:
        command = ["strace", "-f", "-qq", "-p", str(pid), "-o", str(self._log)]
        command += ["-e", f"trace={self._calls}", "-e", f"inject={self._calls}:{self._words}"]
        with (Path(self._folder.name) / "talk").open("wb") as talk:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=talk,
                stderr=talk,
                start_new_session=True,
                preexec_fn=dies_with_us,  # noqa: PLW1509 - prctl alone, which takes no lock
            )

    def struck(self) -> int:
        """How many calls were changed."""
        try:
            return len(re.findall(r"\((?:INJECTED|DELAYED)\)", self._log.read_text("ascii", "replace")))
        except OSError:
            return 0

    async def detach(self) -> None:
        """Let the process go, as it is."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(process.wait, 5)
            except subprocess.TimeoutExpired:
                # It may wait for ever for a thread that it holds back. Killed, it lets go of all of them.
                process.kill()
                await asyncio.to_thread(process.wait)
        self._folder.cleanup()


class Tampered(Nemesis):
    """detail: `who`."""

    parts = MEMBERS

    def __init__(self) -> None:
        self.who = ""
        self.tampering: Tampering | None = None

    def available(self, target: Target) -> str:
        return strace_missing()

    @abstractmethod
    def words(self, rng: Random, detail: Detail) -> tuple[str, Detail]:
        """What strace injects, and what was drawn."""

    async def begin(self, target: Target, rng: Random, detail: Detail) -> Struck:
        who = drawn(detail, "who", lambda: rng.choice(("leader", "one")))
        words, more = self.words(rng, detail)
        self.who = (await choose(target, rng, who))[0]
        self.tampering = Tampering(words)
        await self.tampering.attach(processes.must_run(target, self.who))
        return Struck([self.who], {"who": self.who, **more})

    async def bite(self, target: Target, struck: Struck) -> str:
        tampering = self.tampering
        if tampering is None:
            raise NotCut(f"{self.name}: strace is not attached")

        async def look() -> str:
            count = tampering.struck()
            return f"{count} syncs of {self.who} were changed" if count else ""

        return await felt(look, f"{self.name}: a sync of {self.who}", within_s=20)

    async def end(self, target: Target) -> None:
        if self.tampering is not None:
            await self.tampering.detach()
            self.tampering = None
        if self.who:
            left = target.pid(self.who) is None
            self.told = f"{self.who} had left" if left else ""
            await processes.bring_back(target, [self.who])


class SlowSync(Tampered):
    """detail: `who`; `delay_ms`."""

    name = "slow-sync"
    line = "each sync of a member's disk takes 50 to 2,000 ms more"

    def words(self, rng: Random, detail: Detail) -> tuple[str, Detail]:
        delay_ms = drawn(detail, "delay_ms", lambda: rng.choice((50, 200, 500, 2_000)))
        return f"delay_enter={delay_ms * 1_000}", {"delay_ms": delay_ms}


class SyncError(Tampered):
    """A member that can't say what is on its disk leaves."""

    name = "sync-error"
    line = "one sync of a member's disk fails with EIO"

    def words(self, rng: Random, detail: Detail) -> tuple[str, Detail]:
        return "error=EIO:when=1", {}


class LyingDisk(Tampered):
    """The power is cut at the end, so that the lie comes out. A member on such a disk breaks its word.

    detail: `who`.
    """

    name = "lying-disk"
    line = "a member's disk says that it synced and did not; then its power is cut"
    promised = False

    def available(self, target: Target) -> str:
        return super().available(target) or PowerCut().available(target)

    def words(self, rng: Random, detail: Detail) -> tuple[str, Detail]:
        return "retval=0", {}

    async def end(self, target: Target) -> None:
        cut = PowerCut()
        try:
            if self.who and target.pid(self.who) is not None:
                await cut.begin(target, Random(0), {"who": [self.who]})
        finally:
            if self.tampering is not None:
                await self.tampering.detach()
                self.tampering = None
            await together(power_again(target, name) for name in cut.down)
            if self.who:
                self.told = await start_or_rejoin(target, self.who)
