"""A real cluster of processes with both gateways, for the tests of what asks it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chaos.history.file import HistoryWriter
from chaos.live.profile import CHAOS
from chaos.workloads.context import Context, Tokens
from cluster.folder import ClusterFolder, create
from cluster.launcher import Launcher, run_down
from cluster.topology import MemberRole
from tests.node.fakes import free_ports

PORTS = 27
DEADLINE_MS = 2_000
"""Long enough for a machine that does much else."""
SYMBOLS = ("AAPL", "MSFT")
"""What a new gateway's own venue quotes."""


def base_port() -> int:
    """The first of so many free ports in a row."""
    for port in free_ports(400):
        if free_ports(PORTS, first=port)[-1] == port + PORTS - 1:
            return port
    raise RuntimeError("no run of free ports")


class Cluster:
    def __init__(self, root: Path) -> None:
        create(root, base_port=base_port(), timing=CHAOS)
        self.root = root
        self.folder = ClusterFolder(root)
        self.launcher = Launcher(self.folder)
        self.members = {
            name: f"http://{member.api_host}:{member.api_port}"
            for name, member in self.launcher.members.items()
            if member.role is MemberRole.replica
        }
        self.gateways = {
            name: f"http://{host}:{port}"
            for name in self.folder.gateway_names()
            for host, port, _, _ in [self.folder.gateway_listen(name)]
        }

    def context(self, history: Path, *, seed: int) -> Context:
        return Context(
            HistoryWriter(history),
            members=self.members,
            gateways=self.gateways,
            tokens=Tokens.of(self.root),
            seed=seed,
            symbols=SYMBOLS,
            deadline_ms=DEADLINE_MS,
        )

    def start(self, name: str) -> None:
        self.launcher.start(name, die_with_us=True)

    async def start_again(self, *names: str) -> None:
        """Started from the loop's thread, with which they die, and waited for beside it."""
        for name in names:
            self.start(name)
        await asyncio.to_thread(self.launcher.wait_ready, list(names), timeout_ms=60_000)


@contextmanager
def running(root: Path) -> Iterator[Cluster]:
    cluster = Cluster(root)
    try:
        for name in cluster.launcher.members:
            cluster.start(name)
        cluster.launcher.wait_ready(timeout_ms=60_000)
        for name in cluster.launcher.gateways:
            cluster.start(name)
        cluster.launcher.wait_ready(list(cluster.launcher.gateways), timeout_ms=60_000)
        yield cluster
    finally:
        run_down(cluster.launcher)
