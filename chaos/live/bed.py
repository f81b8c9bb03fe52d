"""The cluster under test: real processes, each link of theirs cut at will, none left when the run ends.

Everything is done on the loop's thread, and children die with that thread: run the loop on the main thread.
"""

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGTERM, Signals
from types import TracebackType
from typing import Any, Self

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from chaos.live.asking import Answer, get
from chaos.live.children import Child, gone, must_go
from chaos.live.programs import ARCHIVE, SHIPPED, STOCK, program
from chaos.live.wiring import CACHE_PREFIX, HOST, VENUE, Settings, Wiring, make, widen
from chaos.net.links import Link, Network
from cluster.client import Client, members_of
from cluster.folder import ClusterFolder
from cluster.launcher import READY_TIMEOUT_MS, STOP_TIMEOUT_MS, DiedAtStart, Launcher, NotReady
from cluster.topology import GATEWAY_PREFIX, MemberRole
from cluster.wire import AddMember
from gateway.cache.server import find_server
from node.auth import issue_token
from node.cli.joining import topology_of

STATUS_TIMEOUT_S = 1.0
POLL_S = 0.05
OPEN_TIMEOUT_MS = 120_000
"""Eight processes that start at once, perhaps beside other work."""
TOKEN_S = 30 * 86_400
"""Longer than any clock fault jumps."""
LEADER = "leader"


class Running(Struct, frozen=True):
    """How processes are started. program: see `programs`. environment, prefix: by name of a member or gateway.

    A prefix is a command that becomes the process, such as `ip netns exec NAME`.
    """

    program: str = SHIPPED
    environment: Mapping[str, Mapping[str, str]] = {}
    prefix: Mapping[str, Sequence[str]] = {}


class Bed:
    """Implements chaos.faults.target.Target.

    Besides members and gateways it runs, where there are gateways, a cache for each (`cache-dc-a`) and one venue
    (`venue`); `pid`, `start`, `kill`, `stop` and `signal` take these names as well. While a member is down its
    links stand, and refuse.
    """

    def __init__(
        self,
        root: Path,
        network: Network,
        settings: Settings | None = None,
        running: Running | None = None,
        *,
        seed: int = 1,
    ) -> None:
        """root: empty or not there; the cluster's folder is made in it, now.

        Raises FolderError, InvalidTopology, NoPorts or UnknownProgram.
        """
        self.network = network
        self.settings = settings or Settings()
        self.running = running or Running()
        program(self.running.program)
        self.wiring: Wiring = make(root, self.settings)
        self.folder: ClusterFolder = self.wiring.folder
        self.launcher = Launcher(self.folder)
        self.links: list[Link] = list(self.wiring.links)
        self._topology = self.wiring.topology
        self._added = 0
        self._auditor = self._token("auditor")
        self._children = {child.name: child for child in self._helpers(seed)}

    def _helpers(self, seed: int) -> list[Child]:
        wiring, log = self.wiring, self.folder.log
        if not wiring.caches:
            return []
        binary = str(find_server())
        children = []
        for gateway, port in wiring.caches.items():
            name = CACHE_PREFIX + gateway.removeprefix(GATEWAY_PREFIX)
            options = {"port": port, "bind": HOST, "save": "", "appendonly": "no", "dir": str(self.folder.root / "run")}
            words = [word for option, value in options.items() for word in (f"--{option}", str(value))]
            children.append(Child(name, [binary, *words], log(name), port=port))
        symbols = [f"{symbol}={price}" for symbol, price in self.settings.symbols.items()]
        venue = [*program(SHIPPED)[:-1], "chaos.live.venue", str(wiring.venue_port), str(seed), *symbols]
        return [*children, Child(VENUE, venue, log(VENUE), port=wiring.venue_port)]

    # ---- from start to end ----

    async def open(self) -> Self:
        """Open the links, start everything and wait until it is ready. Raises LaunchError or NotCut, nothing left."""
        try:
            await self.network.open(self.links)
            for name in [*self._children, *self.members]:
                await self.start(name, ready_timeout_ms=0)
            await self.wait_ready([*self._children, *self.members], timeout_ms=OPEN_TIMEOUT_MS)
            for name in self.gateways:
                await self.start(name, ready_timeout_ms=0)
            await self.wait_ready(self.gateways, timeout_ms=OPEN_TIMEOUT_MS)
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self) -> None:
        """Kill everything that this bed runs, and close the links. Safe to call again. Raises StillRuns."""
        names = [*self.gateways, *self.members, *self._children]
        found = {name: pid for name in names if (pid := self.pid(name)) is not None}
        for name in found:
            self._signal(name, SIGKILL)
        await asyncio.gather(*(self._went(name, pid) for name, pid in found.items()))
        await self.network.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ---- who there is ----

    @property
    def members(self) -> list[str]:
        return [member.name for member in self._topology.members]

    @property
    def replicas(self) -> list[str]:
        return [member.name for member in self._topology.members if member.role is MemberRole.replica]

    @property
    def gateways(self) -> list[str]:
        return list(self.wiring.caches)

    @property
    def addresses(self) -> dict[str, str]:
        """Where clients find each member and gateway: direct, no proxy between."""
        places = {**self.launcher.members, **self.launcher.gateways}
        return {name: f"http://{place.api_host}:{place.api_port}" for name, place in places.items()}

    def site_of(self, name: str) -> str:
        for prefix in (GATEWAY_PREFIX, CACHE_PREFIX):
            if name.startswith(prefix):
                return name.removeprefix(prefix)
        return self._topology.member(name).site

    def folder_of(self, name: str) -> Path:
        return self.settings.disks.get(name) or self.folder.data(name)

    def archive_of(self, name: str) -> Path:
        """What a member trimmed from its log, where settings have it trim often."""
        return self.folder.root.resolve() / "trimmed" / f"{name}.log"

    def pid(self, name: str) -> int | None:
        child = self._children.get(name)
        return child.pid if child is not None else self.launcher.running(name)

    def cache_pid(self, gateway: str) -> int | None:
        return self.pid(CACHE_PREFIX + gateway.removeprefix(GATEWAY_PREFIX))

    # ---- asking ----

    async def ask(self, name: str, path: str, *, timeout_s: float = STATUS_TIMEOUT_S) -> Answer | None:
        """What a member or gateway answers to a GET by an auditor, no proxy between; None: nothing, or not in time."""
        try:
            return await get(self.addresses[name] + path, token=self._auditor, timeout_s=timeout_s)
        except (OSError, TimeoutError, ValueError):
            return None

    async def status(self, name: str) -> dict[str, Any] | None:
        answer = await self.ask(name, "/v1/gateway" if name in self.gateways else "/v1/status")
        if answer is None or answer.status != 200:
            return None
        status: dict[str, Any] = msgspec.json.decode(answer.body)
        return status

    async def leader(self) -> str:
        found = [status for status in await asyncio.gather(*map(self.status, self.members)) if status is not None]
        term = max((int(status["term"]) for status in found), default=0)
        newest = [status for status in found if status["term"] == term]
        leading = [str(status["name"]) for status in newest if status["state"] == LEADER]
        return next(iter([*leading, *(str(status["leader"]) for status in newest if status["leader"])]), "")

    async def is_ready(self, name: str) -> bool:
        answer = await self.ask(name, "/readyz")
        if answer is None or answer.status != 200:
            return False
        said = msgspec.json.decode(answer.body)
        return name in (said.get("member"), said.get("gateway"))

    async def wait_ready(self, names: Sequence[str], *, timeout_ms: int = READY_TIMEOUT_MS) -> None:
        """Raises LaunchError."""
        waiting = [name for name in names if name not in self._children]
        for name in names:
            if name in self._children:
                await self._children[name].ready(timeout_ms / 1000)
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                while waiting:
                    for name in list(waiting):
                        if self.pid(name) is None:
                            tail = "\n".join(f"  {line}" for line in self.launcher.log_tail(name))
                            raise DiedAtStart(f"{name} ended before it was ready; its last lines:\n{tail}")
                        if await self.is_ready(name):
                            waiting.remove(name)
                    if waiting:
                        await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise NotReady(f"{', '.join(waiting)} not ready after {timeout_ms / 1000:g} s") from None

    # ---- doing ----

    async def start(
        self, name: str, *, environment: Mapping[str, str] | None = None, ready_timeout_ms: int = READY_TIMEOUT_MS
    ) -> None:
        """See Target. environment: for this start alone, beside what `running` says. Raises LaunchError."""
        if name in self._children:
            self._children[name].start()
        else:
            self._start(name, environment or {})
        if ready_timeout_ms:
            await self.wait_ready([name], timeout_ms=ready_timeout_ms)

    def _start(self, name: str, environment: Mapping[str, str]) -> None:
        given = {**self.running.environment.get(name, {}), **environment}
        if self.settings.trim_often and self.running.program != STOCK and name in self.launcher.members:
            given[ARCHIVE] = str(self.archive_of(name))
        if name in self.launcher.members:
            self.launcher.program = program(self.running.program, environment=given)
        self.launcher.start(name, die_with_us=True, environment=given, prefix=self.running.prefix.get(name, ()))

    async def kill(self, name: str) -> None:
        pid = self.pid(name)
        if pid is not None:
            self._signal(name, SIGKILL)
            await self._went(name, pid)

    async def stop(self, name: str) -> None:
        """See Target; one that is not gone in time is killed. Raises StillRuns."""
        pid = self.pid(name)
        if pid is None:
            return
        self._signal(name, SIGTERM)
        self._signal(name, SIGCONT)
        if not await gone(pid, STOP_TIMEOUT_MS / 1000):
            self._signal(name, SIGKILL)
        await self._went(name, pid)

    async def signal(self, name: str, number: Signals) -> None:
        self._signal(name, number)

    def _signal(self, name: str, number: Signals) -> None:
        child = self._children.get(name)
        if child is not None:
            child.signal(number)
        else:
            self.launcher.signal(name, number)

    async def _went(self, name: str, pid: int) -> None:
        await must_go(name, pid)
        if self.pid(name) is None and name not in self._children:
            self.launcher.stop([name], timeout_ms=0)  # forgets its pid

    # ---- members that come and go ----

    def _token(self, role: str, accounts: Sequence[str] = ()) -> str:
        key = self.folder.token_key.read_text("ascii")
        return issue_token(key, subject="chaos-bed", role=role, accounts=accounts, lifetime_s=TOKEN_S)

    def operator(self) -> Client:
        return Client(members_of(self.folder.topology_path), token=self._token("operator"))

    async def make_member(self, name: str, *, like: str) -> AddMember:
        """See Target. Raises NoPorts, NotCut: the network takes no more links; or ValueError: its name sorts too early.

        At most three in one run.
        """
        asked, links = widen(self.wiring, self.settings, name, like=like, number=self._added)
        self._added += 1
        await self.network.add(links)
        self.links += links
        self._look_again()
        return asked

    async def forget_member(self, name: str) -> None:
        await self.kill(name)
        topology = self.folder.topology()
        async with self.operator() as client:
            view = await client.cluster_members()
        gone = replace(topology, members=[member for member in topology.members if member.name != name])
        self.folder.save(topology_of(gone, view))
        self.links = [link for link in self.links if name not in (link.dialer, link.target)]
        self._look_again()

    def _look_again(self) -> None:
        self._topology = self.folder.topology()
        self.launcher.look_again()

    async def wipe(self, name: str) -> None:
        """See Target; the folder itself stays, since a disk may be mounted there."""
        if self.pid(name) is not None:
            raise ValueError(f"{name} runs: stop it first")
        for path in self.folder_of(name).glob("*"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
