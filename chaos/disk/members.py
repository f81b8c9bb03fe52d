"""What whole members do on disks that fail, wait or fill up: a real cluster, real requests, strace on one member."""

import asyncio
import os
import random
import socket
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from msgspec import Struct

from chaos.disk.children import Failed, dies_with_us
from chaos.disk.inject import EXIT_STORE_FAILED
from chaos.disk.mounts import small_memory_disk
from cluster import folder as cluster_folder
from cluster.client import Client, Done, Outcome, Refused, members_of
from cluster.consensus.settings import EXIT_DISK_FAILED
from cluster.folder import API_PORT_OFFSET, ClusterFolder
from cluster.launcher import Launcher, run_down
from node.auth import issue_token

MIB = 1 << 20
DISK_BYTES = 96 * MIB
LOW_WATER = {"disk_free_bytes_min": 24 * MIB, "disk_free_bytes_ok": 40 * MIB}
PORTS = range(21_000, 29_000)
CLIENTS = 8
CASE_TIMEOUT_S = 60
SECONDS = 2.5
"""How long a case looks before, while and after."""
ACCOUNT, ASSET = "anna", "USD"
REFUSED_FOR_ROOM = {"disk_low", "overloaded"}


class Seen(Struct, frozen=True):
    """One thing that was done to a disk, and what came of it. wrong: empty when it is as it should be.

    Times in milliseconds: the middle and the 99th of 100 requests before and while it lasted.
    """

    case: str
    member: str = ""
    wrong: str = ""
    told: str = ""
    before_p50: float = 0.0
    before_p99: float = 0.0
    while_p50: float = 0.0
    while_p99: float = 0.0
    terms: int = 0
    done: int = 0
    unknown: int = 0
    refused: dict[str, int] = {}


class Load:
    """Deposits of one cent each, each with its own key, counted by how they ended."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._number = 0
        self._run = random.randbytes(6).hex()
        self._running = True
        self.done = 0
        self.unknown = 0
        self.refused: Counter[str] = Counter()
        self.latencies_ms: list[float] = []

    async def _one(self) -> None:
        while self._running:
            self._number += 1
            began = time.monotonic()
            self._count(await self._client.deposit(ACCOUNT, ASSET, "0.01", key=f"{self._run}-{self._number}"))
            self.latencies_ms.append(1000 * (time.monotonic() - began))

    def _count(self, outcome: Outcome) -> None:
        if isinstance(outcome, Done):
            self.done += 1
        elif isinstance(outcome, Refused):
            self.refused[outcome.error] += 1
        else:
            self.unknown += 1

    @asynccontextmanager
    async def going(self) -> AsyncIterator["Load"]:
        tasks = [asyncio.create_task(self._one()) for _ in range(CLIENTS)]
        try:
            yield self
        finally:
            self._running = False
            await asyncio.gather(*tasks)

    def since(self, mark: int) -> tuple[float, float]:
        """p50 and p99 of the requests that ended after the first `mark`."""
        chosen = sorted(self.latencies_ms[mark:])
        if not chosen:
            return 0.0, 0.0
        return round(statistics.median(chosen), 1), round(chosen[len(chosen) * 99 // 100], 1)


class Bench:
    """A cluster of 1+1+1 whose replicas each have a small disk of their own. Call mounts.own_mounts first."""

    def __init__(self, root: Path, launcher: Launcher, disks: dict[str, Path], seconds: float) -> None:
        self.seconds = seconds
        self.folder = ClusterFolder(root)
        self.launcher = launcher
        self.disks = disks
        self.members = members_of(self.folder.topology_path)
        self._key = self.folder.token_key.read_text("utf-8")

    def client(self, role: str, *, timeout_ms: int = 10_000) -> Client:
        accounts = () if role == "operator" else ("*",)
        token = issue_token(self._key, subject=f"disk-{role}", role=role, accounts=accounts)
        return Client(self.members, token=token, timeout_ms=timeout_ms)

    async def leader(self) -> tuple[str, int]:
        """The replica that leads, and its term. Raises Failed when there is none for long."""
        async with self.client("auditor") as auditor:
            for _ in range(200):
                for health in await auditor.members():
                    view = health.view
                    if view is not None and view.role == "replica" and view.state == "leader" and view.has_quorum:
                        return view.name, view.term
                await asyncio.sleep(0.05)
        raise Failed("nobody leads")

    async def open(self) -> None:
        async with self.client("operator", timeout_ms=20_000) as operator:
            await operator.add_asset(ASSET, scale=2, supply_max="1000000000")
        async with self.client("custodian", timeout_ms=20_000) as custodian:
            outcome = await custodian.open_account(ACCOUNT)
            if not isinstance(outcome, Done):
                raise Failed(f"the account could not be opened: {outcome}")

    async def cents(self) -> int:
        async with self.client("auditor") as auditor:
            view = await auditor.account(ACCOUNT)
            for balance in view.balances:
                if balance.asset == ASSET:
                    return round(float(balance.available) * 100)
        return 0


@contextmanager
def bench(seconds: float = SECONDS) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="tiebreak-disk-") as name:
        root = Path(name) / "cluster"
        cluster_folder.create(root, base_port=_free_base_port())
        folder = ClusterFolder(root)
        launcher = Launcher(folder)
        replicas = [one for one, member in launcher.members.items() if member.role != "witness"]
        for one in launcher.members:
            _limit(folder.config(one), LOW_WATER)
        with _disks(folder, replicas) as disks:
            try:
                for one in launcher.members:
                    launcher.start(one, die_with_us=True)
                launcher.wait_ready()
                yield Bench(root, launcher, disks, seconds)
            finally:
                run_down(launcher)


@contextmanager
def _disks(folder: ClusterFolder, replicas: list[str]) -> Iterator[dict[str, Path]]:
    first, second = replicas
    with small_memory_disk(DISK_BYTES) as one, small_memory_disk(DISK_BYTES) as two:
        disks = {first: one, second: two}
        for name, disk in disks.items():
            (disk / "data").mkdir()
            folder.data(name).symlink_to(disk / "data", target_is_directory=True)
        yield disks


def _limit(config: Path, limits: dict[str, int]) -> None:
    text = config.read_text("utf-8")
    lines = "".join(f"{name} = {value}\n" for name, value in limits.items())
    heading = next(line for line in text.splitlines() if line.startswith("[limits]"))
    config.write_text(text.replace(heading, f"{heading}\n{lines}", 1), "utf-8")


def _free_base_port() -> int:
    for base in random.sample(PORTS, 50):
        try:
            for port in (*range(base, base + 3), *range(base + API_PORT_OFFSET, base + API_PORT_OFFSET + 3)):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return base
    raise Failed("no ports are free")


@contextmanager
def tampered(pid: int, words: str) -> Iterator[None]:
    """strace's injection on a process that runs, all of its threads, for as long as this lasts."""
    with tempfile.TemporaryFile() as talk:
        tracer = subprocess.Popen(
            ["strace", "-f", "-q", "-p", str(pid), "-o", "/dev/null", "-e", "trace=fdatasync", "-e", words],
            stderr=talk,
            preexec_fn=dies_with_us,  # noqa: PLW1509 - prctl alone, which takes no lock
        )
        try:
            deadline = time.monotonic() + 10
            while f"TracerPid:\t{tracer.pid}" not in Path(f"/proc/{pid}/status").read_text("ascii"):
                if time.monotonic() > deadline or tracer.poll() is not None:
                    talk.seek(0)
                    raise Failed(f"strace does not attach: {talk.read()!r}")
                time.sleep(0.01)
            yield
        finally:
            tracer.terminate()
            try:
                tracer.wait(5)
            except subprocess.TimeoutExpired:
                # It may wait for ever for a thread that it holds back. Killed, it lets go of all of them.
                tracer.kill()
                tracer.wait()


# -- the cases -------------------------------------------------------------------------------------


async def slow_disk(cluster: Bench, delay_ms: int, *, of_leader: bool) -> Seen:
    """Every sync of one replica takes longer. Latency rises; nobody loses leadership, nothing is refused."""
    leader, term = await cluster.leader()
    member = leader if of_leader else next(name for name in cluster.disks if name != leader)
    case = f"slow disk of the {'leader' if of_leader else 'follower'}, {delay_ms} ms"
    pid = cluster.launcher.running(member)
    if pid is None:
        raise Failed(f"{member} does not run")
    async with cluster.client("custodian") as client, Load(client).going() as load:
        await asyncio.sleep(cluster.seconds)
        before, mark = load.since(0), len(load.latencies_ms)
        with tampered(pid, f"inject=fdatasync:delay_enter={delay_ms * 1000}"):
            await asyncio.sleep(cluster.seconds)
        during = load.since(mark)
    after, new_term = await cluster.leader()
    wrong = ""
    if (after, new_term) != (leader, term):
        wrong = f"{leader} led in term {term}; now {after} leads in term {new_term}"
    elif load.refused or load.unknown:
        wrong = f"refused {dict(load.refused)}, unknown {load.unknown}"
    elif of_leader and during[0] < before[0] + delay_ms / 4:
        wrong = "the delay is not seen: did the fault strike?"
    return Seen(case, member, wrong, "", *before, *during, new_term - term, load.done, load.unknown, dict(load.refused))


async def failing_disk(cluster: Bench) -> Seen:
    """One sync of the leader fails. It leaves by its named code; the others go on; what was acknowledged is there."""
    leader, term = await cluster.leader()
    pid = cluster.launcher.running(leader)
    if pid is None:
        raise Failed(f"{leader} does not run")
    cents_before = await cluster.cents()
    async with cluster.client("custodian") as client:
        load = Load(client)
        async with load.going():
            await asyncio.sleep(cluster.seconds / 2)
            before, mark = load.since(0), len(load.latencies_ms)
            with tampered(pid, "inject=fdatasync:error=EIO:when=1"):
                code = await asyncio.to_thread(_exit_code, cluster, leader, pid)
            await asyncio.sleep(cluster.seconds)
            during = load.since(mark)
    _, new_term = await cluster.leader()
    cents = await cluster.cents() - cents_before
    wrong = ""
    if code not in (EXIT_DISK_FAILED, EXIT_STORE_FAILED):
        wrong = f"it left with {code}"
    elif not load.done <= cents <= load.done + load.unknown:
        wrong = f"{load.done} acknowledged, {load.unknown} unknown, but {cents} are there"
    elif load.refused:
        wrong = f"refused {dict(load.refused)}"
    cluster.launcher.start(leader, die_with_us=True)
    await asyncio.to_thread(cluster.launcher.wait_ready, [leader])
    told = f"left with {code}; {load.done} acknowledged, {cents} there; came back"
    case, terms = "EIO at a sync of the leader", new_term - term
    return Seen(case, leader, wrong, told, *before, *during, terms, load.done, load.unknown)


def _exit_code(cluster: Bench, member: str, pid: int) -> int:
    deadline = time.monotonic() + 20
    while cluster.launcher.running(member) is not None:
        if time.monotonic() > deadline:
            raise Failed(f"{member} goes on after a sync failed")
        time.sleep(0.02)
    tail = "\n".join(cluster.launcher.log_tail(member, lines=40))
    for code in (EXIT_DISK_FAILED, EXIT_STORE_FAILED):
        if f'"exit_code": {code}' in tail or f'"exit_code":{code}' in tail or f"with code {code}" in tail:
            return code
    raise Failed(f"{member} (pid {pid}) ended and does not say why: {tail[-500:]}")


async def full_disk(cluster: Bench) -> Seen:
    """Both replicas run out of room: writes are refused, reads go on; with room again, writes do."""
    cents_before = await cluster.cents()
    ballast = [disk / "ballast" for disk in cluster.disks.values()]
    async with cluster.client("custodian", timeout_ms=2_000) as client:
        load = Load(client)
        async with load.going():
            await asyncio.sleep(cluster.seconds / 2)
            before, mark = load.since(0), len(load.latencies_ms)
            for path in ballast:
                _fill(path, LOW_WATER["disk_free_bytes_min"] // 2)
            await asyncio.sleep(cluster.seconds)
            outcome = await client.deposit(ACCOUNT, ASSET, "0.01", key=random.randbytes(8).hex())
            told = outcome.error if isinstance(outcome, Refused) else type(outcome).__name__
            done = load.done
            during = load.since(mark)
            runs = all(cluster.launcher.running(name) for name in cluster.disks)
            readable = await cluster.cents() >= cents_before
            await asyncio.sleep(0.5)
            stopped = load.done == done
            for path in ballast:
                path.unlink()
            await asyncio.sleep(cluster.seconds)
            recovered = load.done > done
    cents = await cluster.cents() - cents_before
    wrong = ""
    if told not in REFUSED_FOR_ROOM or not stopped:
        wrong = f"with {LOW_WATER['disk_free_bytes_min'] // 2} bytes left: {told}; writes stopped: {stopped}"
    elif not runs or not readable:
        wrong = f"members run: {runs}; reads: {readable}"
    elif not recovered:
        wrong = f"with room again nothing is taken: {dict(load.refused)}"
    elif not load.done <= cents <= load.done + load.unknown:
        wrong = f"{load.done} acknowledged, {load.unknown} unknown, but {cents} are there"
    said = f"{told}, then taken again"
    return Seen("both disks full", "", wrong, said, *before, *during, 0, load.done, load.unknown, dict(load.refused))


def _fill(path: Path, leave_bytes: int) -> None:
    room = os.statvfs(path.parent)
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - leave_bytes)


CASES = ("slow-leader", "slow-follower", "full", "eio")


async def run_case(cluster: Bench, case: str) -> list[Seen]:
    async with asyncio.timeout(CASE_TIMEOUT_S):
        return await _case(cluster, case)


async def _case(cluster: Bench, case: str) -> list[Seen]:
    match case:
        case "slow-leader":
            return [await slow_disk(cluster, delay_ms, of_leader=True) for delay_ms in (50, 200)]
        case "slow-follower":
            return [await slow_disk(cluster, 200, of_leader=False)]
        case "full":
            return [await full_disk(cluster)]
        case _:
            return [await failing_disk(cluster)]
