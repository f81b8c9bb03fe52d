"""Starts writers and judges as child processes that end with this one, and reads what they say."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import msgspec

from chaos.disk.judge import Question, Verdict

PR_SET_PDEATHSIG = 1
END_TIMEOUT_S = 20.0
JUDGE_TIMEOUT_S = 60.0
ROOT = Path(__file__).parents[2]
_libc = ctypes.CDLL(None)


def dies_with_us() -> None:
    """For preexec_fn: the kernel kills the child when the thread that started it ends, however it ends."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Failed(Exception):
    """The tool itself could not do its work: this says nothing about the disk."""


class Writer:
    """One life of chaos.disk.writer. prefix: a command to run it under, such as strace."""

    def __init__(
        self,
        kind: str,
        folder: Path,
        seed: int,
        lives: Sequence[int],
        *,
        steps: int | None = None,
        inline: bool = False,
        mutant: str = "none",
        prefix: Sequence[str] = (),
    ) -> None:
        command = [*prefix, sys.executable, "-m", "chaos.disk.writer", kind, str(folder), str(seed)]
        command += [",".join(map(str, lives)), "--mutant", mutant]
        command += ["--steps", str(steps)] if steps is not None else []
        command += ["--inline"] if inline else []
        self.acked = self.begun = lives[-1]
        self.acked_at: list[tuple[int, float]] = []
        self.opened = threading.Event()
        """Set when the folder is open, and also when the process has ended."""
        self._talk = tempfile.TemporaryFile()  # noqa: SIM115 - closed when this is left
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._talk,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
            preexec_fn=dies_with_us,  # noqa: PLW1509 - prctl alone, which takes no lock
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        if self.process.stdout is None:
            raise Failed("the writer has no output")
        for line in self.process.stdout:
            said = line.split()
            # The last line may be cut short by a kill: a number may then miss its end.
            if len(said) != 2 or not line.endswith(b"\n"):
                continue
            number = int(said[1])
            if said[0] == b"begun":
                self.begun = max(self.begun, number)
            else:
                self.acked = max(self.acked, number)
                self.begun = max(self.begun, number)
                self.acked_at.append((number, time.monotonic()))
            self.opened.set()
        self.opened.set()

    def wait(self, timeout_s: float = END_TIMEOUT_S) -> int:
        """The exit code, once all that it said is read. Raises Failed when it does not end."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed(f"the writer did not end within {timeout_s:g} s: {self.talk()}") from None
        self._reader.join()
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()

    def talk(self) -> str:
        """The last of what it said to people."""
        return _last(self._talk)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._talk.close()


def _last(talk: IO[bytes]) -> str:
    talk.seek(0)
    return re.sub(r"\s+", " ", talk.read().decode("utf-8", "replace"))[-500:]


class Judge:
    """Asks chaos.disk.judge; when that dies of what it reads, this is the verdict, and another one is started."""

    def __init__(self, *, stores_max: int = 1) -> None:
        """stores_max: so many stores are audited by one process, which keeps their sealed files open meanwhile."""
        self._process: subprocess.Popen[bytes] | None = None
        self._talk = tempfile.TemporaryFile()  # noqa: SIM115 - closed when this is left
        self._stores_max = stores_max
        self._stores = 0

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "chaos.disk.judge"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._talk,
                cwd=ROOT,
                preexec_fn=dies_with_us,  # noqa: PLW1509 - prctl alone, which takes no lock
            )
        return self._process

    def ask(self, question: Question) -> Verdict:
        process = self._started()
        if process.stdin is None or process.stdout is None:
            raise Failed("the judge has no pipes")
        overdue = threading.Timer(JUDGE_TIMEOUT_S, process.kill)
        overdue.start()
        try:
            process.stdin.write(msgspec.json.encode(question) + b"\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        finally:
            overdue.cancel()
        if answer.endswith(b"\n"):
            self._stores += question.kind == "store"
            if self._stores >= self._stores_max:
                self._close()
            return msgspec.json.decode(answer, type=Verdict)
        code = process.wait()
        self._close()
        if code >= 0:
            raise Failed(f"the judge failed with code {code} at {question}: {_last(self._talk)}")
        return Verdict("unopenable", detail=f"whoever opens it dies of {signal.Signals(-code).name}")

    def _close(self) -> None:
        if self._process is None:
            return
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()
        self._process = None
        self._stores = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        self._talk.close()
