"""What stands beside us in a comparison: how it is found, how its processes end with ours, what a measurement is."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from msgspec import Struct

from cluster.launcher import death_wish

STOP_TIMEOUT_S = 15.0
READY_TIMEOUT_S = 60.0
PORTS_FROM, PORTS_TO = 21_000, 31_000
"""Below the range from which the system takes ports for outgoing connections."""


class PeerMissing(Exception):
    """It is not installed. The message says how to get it; the other rows of a comparison still run."""


class PeerFailed(Exception):
    """It did not start, or is not set up as the comparison promises. The message says what it wrote."""


class Measured(Struct, frozen=True):
    """Jobs that were durably answered. p50_ms, p99_ms: of one request, a batch being one. cpu_s: of its servers."""

    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_s: float = 0.0
    wrong: int = 0
    """Requests that were refused or failed."""


class Server:
    """One process of a peer. It dies with us, and its output is in a file."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        *,
        user: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                user=user,
                group=user,
                extra_groups=[] if user is not None else None,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
                preexec_fn=death_wish(os.getpid()),  # noqa: PLW1509
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def check_runs(self) -> None:
        """Raises PeerFailed, with the end of its log."""
        code = self._process.poll()
        if code is not None:
            raise PeerFailed(f"{self.name} ended with exit code {code}:\n{tail(self.log)}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self._process.poll() is not None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Peer(ABC):
    """Servers that are up between `with` and its end, whose files go with them."""

    ends_by = signal.SIGTERM

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._servers: list[Server] = []

    @abstractmethod
    def start(self) -> None:
        """Raises PeerFailed."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for server in reversed(self._servers):
            server.stop(self.ends_by)
        self._servers.clear()
        shutil.rmtree(self._folder, ignore_errors=True)


def tail(log: Path, lines: int = 12) -> str:
    with contextlib.suppress(OSError):
        return "\n".join(log.read_text("utf-8", "replace").splitlines()[-lines:])
    return "(it wrote nothing)"


def find(name: str, folders: Sequence[Path] = ()) -> Path | None:
    """A program: the newest of the folders first, then PATH."""
    for folder in folders:
        if os.access(folder / name, os.X_OK):
            return folder / name
    found = shutil.which(name)
    return Path(found) if found else None


def unprivileged(name: str) -> str | None:
    """The user that a server which refuses to run as root runs as; None where we are not root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(name).pw_name
    except KeyError:
        return pwd.getpwnam("nobody").pw_name


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now, all below the range of outgoing connections."""
    found: list[int] = []
    for port in range(PORTS_FROM + os.getpid() % 1_000 * 8, PORTS_TO):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
        if len(found) == count:
            return found
    raise PeerFailed("no free ports found on 127.0.0.1")


def tree_cpu_s(pids: Sequence[int]) -> float:
    """CPU time of processes and of all that came from them and still runs, in seconds."""
    parents: dict[int, int] = {}
    spent: dict[int, float] = {}
    ticks = os.sysconf("SC_CLK_TCK")
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, IndexError, ValueError):
                fields = (entry / "stat").read_text("utf-8").rpartition(")")[2].split()
                parents[int(entry.name)] = int(fields[1])
                # With the children that ended and were waited for.
                spent[int(entry.name)] = sum(map(int, fields[11:15])) / ticks
    wanted = set(pids)
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in wanted} - wanted
        wanted |= more
        grown = bool(more)
    return sum(spent.get(pid, 0.0) for pid in wanted)


def wait(servers: Sequence[Server], what: str, timeout_s: float = READY_TIMEOUT_S) -> Iterator[None]:
    """Yields until the caller breaks off, 20 times a second. Raises PeerFailed: one ended, or it took too long."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for server in servers:
            server.check_runs()
        yield
        time.sleep(0.05)
    raise PeerFailed(f"{what}: not after {timeout_s:g} s; {servers[-1].log}:\n{tail(servers[-1].log)}")
