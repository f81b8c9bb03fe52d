"""Real engines over loopback TLS with LMDB on disk, all on one loop, with proxies between them that can be cut."""

import asyncio
import random
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import uvloop

from cluster.certificates import make_all, tls_files
from cluster.consensus.hardened import HardenedEngine
from cluster.consensus.settings import EngineSettings, Limits
from cluster.topology import Member, MemberRole, Topology, new_topology


def run(main: Coroutine[Any, Any, None]) -> None:
    uvloop.run(main)


def free_port(count: int = 1) -> int:
    """The first of `count` free ports in a row, below the range from which the system hands out its own."""
    for _ in range(200):
        base = random.randint(15_000, 32_000)
        probes = [socket.socket() for _ in range(count)]
        try:
            for i, probe in enumerate(probes):
                probe.bind(("127.0.0.1", base + i))
            return base
        except OSError:
            continue
        finally:
            for probe in probes:
                probe.close()
    raise RuntimeError("no free ports")


async def until(holds: Callable[[], bool], *, within: float = 5.0) -> float:
    """Seconds that it took."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    while not holds():
        assert loop.time() - start < within, f"not within {within} s"
        await asyncio.sleep(0.002)
    return loop.time() - start


class Cut:
    """A TCP proxy on one link. When cut, bytes vanish while the connections stay up, as in a real partition."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.cut = False
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server

    async def start(self) -> None:
        self.port = free_port()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.cut:
            writer.close()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.close()
            return
        self._writers |= {writer, far_writer}
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                if not self.cut:
                    writer.write(data)
        except OSError:
            pass
        finally:
            writer.close()
            self._writers.discard(writer)

    async def stop(self) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0.01)


class Cluster:
    """`async with Cluster(tmp_path) as cluster`: a1, b1 replicas, t1 witness; a2 and b2 too for 2+2+1."""

    def __init__(
        self, folder: Path, shape: str = "1+1+1", *, limits: Limits | None = None, proxied: bool = False
    ) -> None:
        self.folder = folder
        self.limits = limits or Limits(trim_reserve=100)
        count = 3 if shape == "1+1+1" else 5
        self.topology: Topology = new_topology(shape, free_port(2 * count))
        self.names = [member.name for member in self.topology.members]
        make_all(folder / "certs", self.topology.cluster_id, self.names)
        self.engines: dict[str, HardenedEngine] = {}
        self.delivered: dict[str, list[tuple[int, bytes]]] = {}
        self.messages: list[tuple[str, str, str, bytes]] = []
        self.left: list[tuple[str, int, str]] = []
        self.proxied = proxied
        self.cuts: dict[tuple[str, str], Cut] = {}
        self.before_start: Callable[[HardenedEngine], None] = lambda _engine: None
        self.settings_of: Callable[[EngineSettings], EngineSettings] = lambda settings: settings
        self.clock_of: dict[str, Callable[[], int]] = {}

    def member(self, name: str) -> Member:
        return self.topology.member(name)

    async def __aenter__(self) -> "Cluster":
        if self.proxied:
            for a in self.names:
                for b in self.names:
                    if a > b:
                        member = self.member(b)
                        self.cuts[a, b] = Cut((member.peer_host, member.peer_port))
                        await self.cuts[a, b].start()
        for name in self.names:
            await self.start(name)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self.engines):
            await self.stop(name)
        for cut in self.cuts.values():
            await cut.stop()

    async def start(self, name: str, *, applied_index: int = 0) -> HardenedEngine:
        settings = self.settings_of(
            EngineSettings(
                topology=self.topology,
                member=name,
                folder=self.folder / name,
                tls=tls_files(self.folder / "certs", name),
                limits=self.limits,
                dial={b: ("127.0.0.1", cut.port) for (a, b), cut in self.cuts.items() if a == name},
            )
        )
        clock = {"clock_us": self.clock_of[name]} if name in self.clock_of else {}
        engine = HardenedEngine(
            settings, stop_process=lambda code, reason: self.left.append((name, code, reason)), **clock
        )
        delivered = self.delivered[name] = []
        engine.on_committed = lambda index, payload: delivered.append((index, payload))
        engine.on_message = lambda member, kind, body: self.messages.append((name, member, kind, body))
        self.before_start(engine)
        await engine.start(applied_index=applied_index)
        self.engines[name] = engine
        return engine

    async def stop(self, name: str) -> None:
        await self.engines.pop(name).stop()

    def part(self, group: str) -> None:
        """Cut one member off from all others, silently."""
        for (a, b), cut in self.cuts.items():
            cut.cut = group in (a, b)

    def heal(self) -> None:
        for cut in self.cuts.values():
            cut.cut = False

    def leader_or_none(self) -> HardenedEngine | None:
        leading = [
            engine
            for engine in self.engines.values()
            if engine.status().role == "leader" and engine.member.role is MemberRole.replica
        ]
        return max(leading, key=lambda engine: engine.status().term, default=None)

    async def leader(self, *, within: float = 5.0) -> HardenedEngine:
        """A replica that leads and whose first entry is committed."""
        await until(lambda: self._led() is not None, within=within)
        engine = self._led()
        assert engine is not None
        return engine

    def _led(self) -> HardenedEngine | None:
        engine = self.leader_or_none()
        if engine is None:
            return None
        status = engine.status()
        return engine if status.commit_index == status.last_index and status.has_quorum else None

    async def propose(self, *payloads: bytes, engine: HardenedEngine | None = None) -> None:
        """Through the leader, and wait until it has applied them."""
        engine = engine or await self.leader()
        for payload in payloads:
            engine.propose(payload)
        name = engine.member.name
        await until(lambda: bool(self.delivered[name]) and self.delivered[name][-1][1] == payloads[-1])

    def others(self, engine: HardenedEngine, role: MemberRole = MemberRole.replica) -> list[HardenedEngine]:
        return [other for other in self.engines.values() if other is not engine and other.member.role is role]

    def with_limits(self, **changes: int) -> None:
        self.limits = msgspec.structs.replace(self.limits, **changes)
