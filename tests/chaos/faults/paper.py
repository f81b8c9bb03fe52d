"""A cluster on paper: members, gateways and links by name, a network that notes what it is told, real sleepers."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chaos.faults.processes import STOPPED, state
from chaos.faults.target import Target
from chaos.net.links import Kind, Link, NotCut, Way
from cluster.client import Client
from cluster.folder import SHAPES
from cluster.launcher import death_wish
from cluster.topology import TIEBREAKER_SITE
from cluster.wire import AddMember

SLEEPER = "import time; time.sleep(600)"


class PaperNetwork:
    """told: each verb with its link. faults: of the links that are not healed. paused: who is quiet."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []
        self.faults: dict[str, list[str]] = {}
        self.paused: set[str] = set()
        self.refuses: set[str] = set()

    def _note(self, verb: str, name: str, *more: object) -> None:
        if name in self.refuses:
            raise NotCut(f"{name} is out of order")
        self.told.append((verb, name, *map(str, more)))
        self.faults.setdefault(name, []).append(verb)

    def quiet(self, process: str) -> None:
        self.paused.add(process)

    def loud(self, process: str) -> None:
        self.paused.discard(process)

    async def open(self, links: list[Link]) -> None: ...

    async def add(self, links: list[Link]) -> None: ...

    async def close(self) -> None: ...

    async def stall(self, name: str, way: Way = "both") -> None:
        self._note("stall", name, way)

    async def drop(self, name: str, way: Way = "both") -> None:
        self._note("drop", name, way)

    async def slow(self, name: str, latency_ms: float, jitter_ms: float = 0) -> None:
        self._note("slow", name, latency_ms, jitter_ms)

    async def slice(self, name: str, size_bytes: int, delay_us: int) -> None:
        self._note("slice", name, size_bytes, delay_us)

    async def cut_after(self, name: str, size_bytes: int) -> None:
        self._note("cut_after", name, size_bytes)

    async def refuse(self, name: str) -> None:
        self._note("refuse", name)

    async def reset(self, name: str) -> None:
        self._note("reset", name)

    async def hold_old(self, name: str) -> None:
        self._note("hold_old", name)

    async def heal(self, name: str) -> None:
        self.told.append(("heal", name))
        self.faults.pop(name, None)

    async def heal_all(self) -> None:
        self.faults.clear()


class PaperTarget:
    """Processes are real, and answer as long as they run and are not stopped. Close it."""

    def __init__(self, shape: str, folder: Path) -> None:
        self.network: PaperNetwork = PaperNetwork()
        self.sites = {name: site for site, names in SHAPES[shape].items() for name in names}
        sites = [site for site in SHAPES[shape] if site != TIEBREAKER_SITE]
        self.gateway_sites = {f"gateway-{site}": site for site in sites}
        self.folder = folder
        self.leads = self.replicas[0]
        self.says: dict[str, dict[str, Any]] = {}
        self.events: list[tuple[str, str]] = []
        self.given: dict[str, dict[str, str]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        peers = [self._link("peer", a, b) for a in self.members for b in self.members if b < a]
        nodes = [self._link("node", gateway, name) for gateway in self.gateways for name in self.replicas]
        site = self._link("site", f"gateway-{sites[1]}", f"gateway-{sites[0]}")
        rest = [self._link(kind, gateway, kind) for gateway in self.gateways for kind in ("feed", "cache")]
        self._links = [*peers, *nodes, site, *rest]

    def _link(self, kind: Kind, dialer: str, target: str) -> Link:
        return Link(f"{dialer}->{target}", kind, dialer, target, ("127.0.0.1", 1), ("127.0.0.1", 2))

    @property
    def links(self) -> list[Link]:
        return self._links

    @property
    def members(self) -> list[str]:
        return list(self.sites)

    @property
    def replicas(self) -> list[str]:
        return [name for name, site in self.sites.items() if site != TIEBREAKER_SITE]

    @property
    def gateways(self) -> list[str]:
        return list(self.gateway_sites)

    @property
    def addresses(self) -> Mapping[str, str]:
        return {name: f"http://127.0.0.1:{port}" for port, name in enumerate([*self.members, *self.gateways], 1)}

    def site_of(self, name: str) -> str:
        return self.sites.get(name) or self.gateway_sites[name]

    def folder_of(self, name: str) -> Path:
        return self.folder / name

    def pid(self, name: str) -> int | None:
        process = self._processes.get(name)
        return process.pid if process is not None and process.poll() is None else None

    def cache_pid(self, gateway: str) -> int | None:
        return self.pid(f"cache-{self.site_of(gateway)}")

    async def status(self, name: str) -> dict[str, Any] | None:
        pid = self.pid(name)
        if pid is None or state(pid) == STOPPED:
            return None
        return {"name": name, "role": "replica", "ready": True, "peers": [], **self.says.get(name, {})}

    async def leader(self) -> str:
        return self.leads

    async def start(
        self, name: str, *, environment: Mapping[str, str] | None = None, ready_timeout_ms: int = 30_000
    ) -> None:
        self.events.append(("start", name))
        self.given[name] = dict(environment or {})
        if self.pid(name) is None:
            self._processes[name] = self._sleeper()

    def _sleeper(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-S", "-c", SLEEPER],
            preexec_fn=death_wish(os.getpid()),  # noqa: PLW1509 - prctl alone, which takes no lock
        )

    async def kill(self, name: str) -> None:
        self.events.append(("kill", name))
        if name in self._processes:
            self._processes[name].kill()
            self._processes[name].wait()

    async def stop(self, name: str) -> None:
        await self.kill(name)

    async def signal(self, name: str, number: signal.Signals) -> None:
        self.events.append((number.name, name))
        self._processes[name].send_signal(number)

    async def wipe(self, name: str) -> None:
        for path in self.folder_of(name).glob("*"):
            path.unlink()

    def operator(self) -> Client:
        raise NotImplementedError

    async def make_member(self, name: str, *, like: str) -> AddMember:
        raise NotImplementedError

    async def forget_member(self, name: str) -> None:
        raise NotImplementedError

    async def start_all(self) -> "PaperTarget":
        for name in (*self.members, *self.gateways):
            await self.start(name)
        self.events.clear()
        return self

    def close(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()


def as_target(paper: PaperTarget) -> Target:
    """That it is one is for the type checker to say."""
    return paper
