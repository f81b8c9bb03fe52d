"""A whole cluster for one run: made in a folder, started, given a market, and gone at the end, however it ends."""

import asyncio
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import msgspec
import uvloop

from bench.market import Market
from bench.progress import during
from cluster import folder as cluster_folder
from cluster.client import Client, Done, Outcome, Refused, members_of
from cluster.distance import distance
from cluster.folder import API_PORT_OFFSET, ClusterFolder
from cluster.launcher import MEMBER_PROGRAM, Launcher, run_down
from cluster.topology import TIMINGS
from cluster.wire import AnyRequest
from node.auth import issue_token

BASE_PORT = 7700
PORT_MAX = 32_000
"""Below the range from which the system takes ports for outgoing connections."""
SETUP_TIMEOUT_MS = 20_000
RATE_LIMIT_PER_S = 10_000_000
LIMITS = {"rate_per_s": RATE_LIMIT_PER_S, "rate_burst": RATE_LIMIT_PER_S}
"""Rate limits per principal are lifted: one principal sends all the load."""
ENDING = (signal.SIGTERM, signal.SIGHUP)

T = TypeVar("T")


class RunError(Exception):
    """The run can't go on; the message says why."""


class Running:
    """A cluster that is up. Tokens are made with the folder's own key, as `tiebreak token` does."""

    def __init__(self, root: Path, launcher: Launcher) -> None:
        self.root = root
        self.folder = ClusterFolder(root)
        self.launcher = launcher
        self.members = members_of(self.folder.topology_path)
        self._key = self.folder.token_key.read_text("utf-8")

    def look_again(self) -> None:
        """The topology changed: clients that are made from now on know its members."""
        self.launcher.look_again()
        self.members = members_of(self.folder.topology_path)

    @property
    def replicas(self) -> list[str]:
        return [member.name for member in self.members if not member.witness]

    def url(self, name: str) -> str:
        return next(member.url for member in self.members if member.name == name)

    def token(self, role: str, accounts: tuple[str, ...] | list[str] = ()) -> str:
        return issue_token(self._key, subject=f"bench-{role}", role=role, accounts=accounts)

    def client(self, role: str, accounts: tuple[str, ...] | list[str] = (), *, timeout_ms: int = 10_000) -> Client:
        return Client(self.members, token=self.token(role, accounts), timeout_ms=timeout_ms)

    async def leader(self, auditor: Client) -> str:
        """The replica that leads with a quorum now; "" when none says so."""
        for health in await auditor.members():
            view = health.view
            if view is not None and view.role == "replica" and view.state == "leader" and view.has_quorum:
                return view.name
        return ""

    async def open_market(self, market: Market) -> None:
        """List the instrument, open and fund the accounts. Raises RunError."""
        anyone = ("*",)
        async with self.client("operator", timeout_ms=SETUP_TIMEOUT_MS) as operator:
            for request in market.listing_requests():
                check(await operator.submit(request))
        async with self.client("custodian", anyone, timeout_ms=SETUP_TIMEOUT_MS) as custodian, custodian.stream() as s:
            for requests in (market.account_requests(), market.deposit_requests()):
                for outcome in await s.submit(requests):
                    check(outcome)


def check(outcome: Outcome) -> Done:
    """Raises RunError unless it was done."""
    if isinstance(outcome, Done):
        return outcome
    if isinstance(outcome, Refused):
        raise RunError(f"refused: {outcome.error}: {outcome.message}")
    raise RunError(f"outcome unknown: {outcome.cause}")


@contextmanager
def running(
    root: Path,
    *,
    shape: str = "1+1+1",
    limits: Mapping[str, int] | None = None,
    timing: Mapping[str, int] | None = None,
    program: Sequence[str] = MEMBER_PROGRAM,
    prepare: Callable[[ClusterFolder], None] | None = None,
    round_trip_ms: float = 0.0,
    links: str = "lan",
) -> Iterator[Running]:
    """Make a cluster in `root` (empty or not there), start it and wait until it is ready.

    limits, timing: settings that differ from the defaults. program: what runs as a member. round_trip_ms: between any
    two sites; links: the timing between members that suits it, `lan` or `wan`.
    prepare: called before the first start, to put something into the members' folders.
    Call it on the main thread: the members die with it.
    """
    base_port = free_base_port(len(cluster_folder.plan(shape, BASE_PORT).members))
    cluster_folder.create(root, shape=shape, base_port=base_port, timing=TIMINGS[links])
    folder = ClusterFolder(root)
    for member in folder.topology().members:
        _set(folder.config(member.name), "limits", limits or {})
        _set(folder.config(member.name), "timing", timing or {})
    if prepare is not None:
        prepare(folder)
    launcher = Launcher(folder, program=program)
    with ExitStack() as stack:
        stack.callback(run_down, launcher)
        stack.enter_context(ending_on_signals())
        if round_trip_ms:
            stack.enter_context(distance(folder, round_trip_ms))
        for name in launcher.members:
            launcher.start(name, die_with_us=True)
        launcher.wait_ready()
        yield Running(root, launcher)


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the program as Ctrl-C does: through its `finally` blocks. Inside a loop: `run_loop`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run a program's main coroutine on uvloop; SIGTERM and SIGHUP cancel it, and then end the program.

    What a signal's handler raises in the middle of a transport's callback is taken for an error of that transport,
    logged and forgotten: of 24 runs 8 went on to their end, and one never ended.
    """
    told: list[int] = []

    async def watched() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def leave(number: int) -> None:
            told.append(number)
            if task is not None:
                task.cancel()

        for number in ENDING:
            loop.add_signal_handler(number, leave, number)
        return await work

    if threading.current_thread() is not threading.main_thread():
        return uvloop.run(work)
    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        return uvloop.run(watched())
    except asyncio.CancelledError:
        if told:
            raise SystemExit(128 + told[0]) from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)  # the loop has put the system's own in their place


def free_base_port(members: int) -> int:
    """A base from which a cluster's ports are all free now. Drawn, so that runs beside each other do not meet."""
    draws = random.Random(f"{os.getpid()} {time.time_ns()}")
    for base in (draws.randrange(10_000, PORT_MAX - 100) for _ in range(200)):
        if all(_is_free(base + offset + at) for at in range(members) for offset in (0, API_PORT_OFFSET)):
            return base
    raise RunError("no free ports found on 127.0.0.1")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _set(path: Path, table: str, settings: Mapping[str, int]) -> None:
    """Write settings into one table of a member's file."""
    lines = path.read_text("utf-8").splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith(f"[{table}]"))
    lines[at + 1 : at + 1] = [f"{name} = {value}" for name, value in settings.items()]
    path.write_text("\n".join(lines) + "\n", "utf-8")


async def asked_of_process(module: str, spec: object, kind: type[T]) -> T:
    """Run a load generator as a process of its own: `spec` on its stdin, the result on its stdout. Raises RunError."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    lasts_s = getattr(spec, "warmup_s", 0.0) + getattr(spec, "seconds", 0.0)
    try:
        with during("loading", lasts_s):
            output, _ = await process.communicate(msgspec.json.encode(spec))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise RunError(f"the load generator ended with exit code {process.returncode}")
    return msgspec.json.decode(output, type=kind)


async def send_all(client: Client, requests: list[AnyRequest]) -> list[Outcome]:
    """Through one stream, pipelined."""
    async with client.stream() as stream:
        return await stream.submit(requests)
