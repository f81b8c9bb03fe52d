"""Runs the members and gateways of a cluster's folder as processes of this machine: start, wait, stop, kill.

A member outlives the launcher; its pid file says which process it is. A pid alone is not proof, as the system
gives it out again: the file also holds when the process started, and only a process of that start is signalled.
"""

import contextlib
import ctypes
import http.client
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from cluster.folder import ClusterFolder
from cluster.topology import GATEWAY_PREFIX, Member, MemberRole

READY_TIMEOUT_MS = 30_000
STOP_TIMEOUT_MS = 15_000
"""How long a member has to drain after SIGTERM before it is killed."""
KILL_TIMEOUT_MS = 10_000
"""A thread that is inside a disk sync ends behind it, and until then the process has its ports."""
PORTS_TIMEOUT_MS = 1_000
LEFT_TIMEOUT_MS = 12_000
"""Workers that lost their gateway send their clients away in steps."""
POLL_MS = 50
READY_BYTES_MAX = 4_096
LOG_LINES = 12
PR_SET_PDEATHSIG = 1
MEMBER_PROGRAM = (sys.executable, "-P", "-m", "node")
"""-P: a folder named `node` where the user stands is not ours."""
GATEWAY_PROGRAM = (sys.executable, "-P", "-m", "gateway")


_children: dict[int, subprocess.Popen[bytes]] = {}
"""What this process started, by pid: kept, since a child is reaped through its Popen, by whichever Launcher looks."""


class LaunchError(Exception):
    """A member could not be started or did not get ready. The message says which, why and what to do."""


class PortInUse(LaunchError):
    """Someone else listens where the member would. Nothing was started."""


class DiedAtStart(LaunchError):
    """The process ended before it was ready; the message ends with the last lines of its log."""


class NotReady(LaunchError):
    """The time was over first. The members that were started still run."""


class StillRuns(LaunchError):
    """It was killed and is not gone: the disk or the kernel holds it."""


class Process(Struct, frozen=True):
    """A process, proof against the reuse of pids. started: clock ticks after boot; boot: which boot."""

    pid: int
    started: int
    boot: str


class _Ready(Struct, frozen=True):
    """What /readyz says with 200: a member names itself, or a gateway."""

    cluster_id: str
    member: str = ""
    gateway: str = ""


class Launcher:
    """Starts and ends members and gateways of one cluster folder. Not for use from two threads.

    A gateway is meant where a name is taken and `gateways` has it; where no name is given, members are meant, save that
    `stop` ends the gateways that run, too.
    """

    def __init__(self, folder: ClusterFolder, *, program: Sequence[str] = MEMBER_PROGRAM) -> None:
        """program: what is run, with the member's file as its last argument. Raises FolderError: no cluster there."""
        self.folder = folder
        self.program = program
        self.members: dict[str, Member] = {}
        self.gateways: dict[str, Member] = {}
        """Where each gateway listens, in the form of a member; peer_port is its link_port."""
        self._cluster_id = ""
        self._started: dict[str, int] = {}
        self._log_from: dict[str, int] = {}
        self.look_again()

    def look_again(self) -> None:
        """Read the topology anew: members may have been added or removed. Raises FolderError."""
        topology = self.folder.topology()
        self.members = {member.name: member for member in topology.members}
        self.gateways = {name: self._gateway(name) for name in self.folder.gateway_names()}
        self._cluster_id = topology.cluster_id

    def _gateway(self, name: str) -> Member:
        host, port, link_port, _ = self.folder.gateway_listen(name)
        return Member(
            name=name,
            site=name.removeprefix(GATEWAY_PREFIX),
            role=MemberRole.replica,
            peer_host=host,
            peer_port=link_port,
            api_host=host,
            api_port=port,
        )

    def _place(self, name: str) -> Member:
        return self.members[name] if name in self.members else self.gateways[name]

    @property
    def left_over(self) -> list[str]:
        """Who runs here and is no member any more."""
        found = sorted(path.stem for path in self.folder.pid("*").parent.glob("*.pid"))
        known = {*self.members, *self.gateways}
        return [name for name in found if name not in known and self.running(name) is not None]

    def running(self, name: str) -> int | None:
        """The pid of a member that runs, whoever started it, or None."""
        _reap()
        process = self._read_pid(name)
        return process.pid if process is not None and _runs(process) else None

    def start(
        self,
        name: str,
        *,
        die_with_us: bool = False,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> int:
        """Start one member and return its pid, not waiting until it is ready. One that runs already is left alone.

        die_with_us: it is killed when the thread that called this ends, however it ends.
        environment: variables added to ours. prefix: a command to run it under, which becomes the member: `nice -n 5`.

        Raises PortInUse or StillRuns; nothing was started.
        """
        pid = self.running(name)
        if pid is not None:
            return pid
        self._wait_gone(name)
        self._check_ports(self._place(name))
        program = GATEWAY_PROGRAM if name in self.gateways else self.program
        log_path = self.folder.log(name)
        log_path.parent.mkdir(parents=True, exist_ok=True)
        self.folder.pid(name).parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            self._log_from[name] = log.tell()
            child = subprocess.Popen(
                [*prefix, *program, str(self.folder.config(name).resolve())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                # Of its own session, so that Ctrl-C at our terminal is not for it.
                start_new_session=True,
                # Between fork and exec it calls prctl alone, which takes no lock that a thread could hold.
                preexec_fn=death_wish(os.getpid()) if die_with_us else None,  # noqa: PLW1509
            )
        _children[child.pid] = child
        self._started[name] = child.pid
        process = _process(child.pid)
        if process is not None:
            self._write_pid(name, process)
        return child.pid

    def wait_ready(
        self,
        names: Iterable[str] | None = None,
        *,
        timeout_ms: int = READY_TIMEOUT_MS,
        on_ready: Callable[[str, int], None] | None = None,
    ) -> None:
        """Wait until each member says that it is ready. on_ready(name, milliseconds waited) is called for each.

        Raises DiedAtStart or NotReady.
        """
        began = time.monotonic()
        waiting = list(self.members if names is None else names)
        while True:
            for name in list(waiting):
                if self.running(name) is None:
                    raise DiedAtStart(self._death_notice(name))
                if self.is_ready(name):
                    waiting.remove(name)
                    if on_ready is not None:
                        on_ready(name, int((time.monotonic() - began) * 1000))
            if not waiting:
                return
            if (time.monotonic() - began) * 1000 >= timeout_ms:
                logs = ", ".join(str(self.folder.log(name)) for name in waiting)
                raise NotReady(f"{', '.join(waiting)} not ready after {timeout_ms / 1000:g} s; see {logs}")
            time.sleep(POLL_MS / 1000)

    def _any_certificate(self, name: str) -> ssl.SSLContext:
        # Asks our own machine whether a port answers; no secret is sent and none believed.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        # A member that takes no client without a certificate takes its own, when the cluster's authority is trusted.
        with contextlib.suppress(OSError):
            context.load_cert_chain(self.folder.certs / f"{name}.crt", self.folder.certs / f"{name}.key")
        return context

    def is_ready(self, name: str) -> bool:
        """Whether the member answers /readyz with 200 now, and not another cluster's on its port."""
        member = self._place(name)
        connection: http.client.HTTPConnection
        scheme = self.folder.gateway_listen(name)[3] if name in self.gateways else self.folder.scheme(name)
        if scheme == "https":
            connection = http.client.HTTPSConnection(
                member.api_host, member.api_port, timeout=1.0, context=self._any_certificate(name)
            )
        else:
            connection = http.client.HTTPConnection(member.api_host, member.api_port, timeout=1.0)
        try:
            connection.request("GET", "/readyz")
            response = connection.getresponse()
            if response.status != 200:
                return False
            said = msgspec.json.decode(response.read(READY_BYTES_MAX), type=_Ready)
            return (said.member or said.gateway, said.cluster_id) == (name, self._cluster_id)
        except (OSError, http.client.HTTPException, msgspec.MsgspecError):
            return False
        finally:
            connection.close()

    def stop(self, names: Iterable[str] | None = None, *, timeout_ms: int = STOP_TIMEOUT_MS) -> dict[str, str]:
        """End members by SIGTERM, all at once, and those that still run at the timeout by SIGKILL.

        Returns how each ended: `stopped`, `killed` or `not running`. By then they are gone, and their ports free.
        Raises StillRuns.
        """
        up = [name for name in self.gateways if self.running(name) is not None]
        wanted = [*up, *self.members] if names is None else list(names)
        ended: dict[str, str] = {}
        for name in wanted:
            ended[name] = "stopped" if self.signal(name, signal.SIGTERM) else "not running"
        deadline = time.monotonic() + timeout_ms / 1000
        for name in wanted:
            process = self._read_pid(name)
            if process is not None and not _ends(process, deadline - time.monotonic()) and self.kill(name):
                ended[name] = "killed"
            self._wait_gone(name)
        return ended

    def kill(self, name: str) -> bool:
        """End a member by SIGKILL, at once, and wait until it is gone and its ports are free. False: it did not run.

        Raises StillRuns.
        """
        if not self.signal(name, signal.SIGKILL):
            return False
        self._wait_gone(name, signal.SIGKILL)
        return True

    def _wait_gone(self, name: str, left_get: signal.Signals = signal.SIGTERM) -> None:
        """Wait for the end of a member that was told to end or that is dying, and forget it. Raises StillRuns.

        left_get: what processes get that it had started and did not end: workers of a gateway that was killed hold its
        port for some seconds longer.
        """
        process = self._read_pid(name)
        if process is None:
            return
        if not _ends(process, KILL_TIMEOUT_MS / 1000):
            raise StillRuns(f"{name} (pid {process.pid}) was killed and is not gone after {KILL_TIMEOUT_MS / 1000:g} s")
        _reap()
        left = _left_of(process)
        for pid in left:
            _signal_left(pid, process, left_get)
        deadline = time.monotonic() + (LEFT_TIMEOUT_MS if left else PORTS_TIMEOUT_MS) / 1000
        member = self.members.get(name) or self.gateways.get(
            name
        )  # none: it was removed, and nobody else needs its ports
        while member is not None and _port_in_use(member) and time.monotonic() < deadline:
            time.sleep(POLL_MS / 1000)
        self.folder.pid(name).unlink(missing_ok=True)

    def signal(self, name: str, number: signal.Signals) -> bool:
        """Send a signal to a member. False: it does not run. Never reaches another process."""
        _reap()
        process = self._read_pid(name)
        if process is None:
            return False
        try:
            # The descriptor pins the process; only then is it safe to compare and to signal.
            descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return False
        try:
            if not _runs(process):
                return False
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True

    def log_tail(self, name: str, *, lines: int = LOG_LINES) -> list[str]:
        """The last lines that the member wrote since this launcher started it (of the whole log, if it did not)."""
        try:
            with self.folder.log(name).open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_from.get(name, 0), end - 65_536))
                return log.read().decode("utf-8", "replace").splitlines()[-lines:]
        except OSError:
            return []

    def _death_notice(self, name: str) -> str:
        child = _children.get(self._started.get(name, 0))
        code = f" (exit code {child.returncode})" if child is not None and child.returncode is not None else ""
        tail = "\n".join(f"  {line}" for line in self.log_tail(name)) or "  (it wrote nothing)"
        return f"{name} ended before it was ready{code}; the end of {self.folder.log(name)}:\n{tail}"

    def _check_ports(self, member: Member) -> None:
        taken = _port_in_use(member)
        if taken is not None:
            what, address, reason = taken
            raise PortInUse(
                f"{member.name} can't listen on {address} ({reason}). Another cluster may be up; "
                f"stop it, or change {_setting(what, member)} in {self._file_of(member)}"
            )

    def _file_of(self, member: Member) -> Path:
        return self.folder.config(member.name) if member.name in self.gateways else self.folder.topology_path

    def _read_pid(self, name: str) -> Process | None:
        try:
            return msgspec.json.decode(self.folder.pid(name).read_bytes(), type=Process)
        except (OSError, msgspec.MsgspecError):
            return None

    def _write_pid(self, name: str, process: Process) -> None:
        path = self.folder.pid(name)
        fresh = path.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(process))
        fresh.replace(path)


def _setting(what: str, member: Member) -> str:
    if not member.name.startswith(GATEWAY_PREFIX):
        return f"{what} of {member.name}"
    return "listen.link_port" if what == "peer_port" else "listen.port"


def _reap() -> None:
    for child in _children.values():
        child.poll()


def ports_free(host: str, *ports: int) -> bool:
    """Whether somebody could listen on all of them now."""
    return all(_refusal(host, port) is None for port in ports)


def _refusal(host: str, port: int) -> OSError | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None


def _port_in_use(member: Member) -> tuple[str, str, str] | None:
    """(setting, address, reason) of a port that the member could not listen on now."""
    for what, host, port in (
        ("peer_port", member.peer_host, member.peer_port),
        ("api_port", member.api_host, member.api_port),
    ):
        error = _refusal(host, port)
        if error is not None:
            return what, f"{host}:{port}", error.strerror or str(error)
    return None


def _runs(process: Process) -> bool:
    return _process(process.pid) == process


def _ends(process: Process, timeout_s: float) -> bool:
    """Wait until the last thread of a process has ended, and let go of its files and sockets. False: not in time.

    The state in /proc is not enough: it is that of the first thread, and another may still be inside a sync.
    """
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        found = _stat(process.pid)
        if found is None or found[1] != process:
            return True
        ended = select.poll()
        ended.register(descriptor, select.POLLIN)
        return bool(ended.poll(max(0.0, timeout_s) * 1000))
    finally:
        os.close(descriptor)


def _process(pid: int) -> Process | None:
    """The process that has this pid now; None when there is none, or only what is left of it (a zombie)."""
    found = _stat(pid)
    return None if found is None or found[0] in ("Z", "X") else found[1]


def _stat(pid: int) -> tuple[str, Process] | None:
    """State of the first thread, and the process."""
    try:
        # The name in field 2 may hold spaces and brackets; all that follows it is split by spaces.
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        boot = _boot()
    except OSError:
        return None
    return fields[0], Process(pid, int(fields[19]), boot)


def _left_of(process: Process) -> list[int]:
    """Who still runs of the session that a process led, now that it has ended."""
    now = _stat(process.pid)
    if process.boot != _boot() or (now is not None and now[1] != process):
        # The pid was given out again. The system does not do that before a session's last process is gone.
        return []
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if pid != process.pid and _session(pid) == process.pid]


def _signal_left(pid: int, process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            if _session(pid) == process.pid:
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)


def _session(pid: int) -> int:
    """The session of a process that runs; 0: there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in ("Z", "X") else int(fields[3])


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def death_wish(parent: int) -> Callable[[], None]:
    """What the child does before it becomes the member: ask the kernel to be killed when its parent's thread ends."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def wish() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent was gone before the wish was made
            os._exit(1)

    return wish


def run_down(launcher: Launcher) -> None:
    """Kill all that this folder runs; for tests and demos that end however they end."""
    launcher.look_again()
    for name in (*launcher.gateways, *launcher.members, *launcher.left_over):
        with contextlib.suppress(OSError, StillRuns):
            launcher.kill(name)
