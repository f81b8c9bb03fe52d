"""The cluster under test, as faults see it. `chaos.live.bed` is one."""

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from chaos.net.links import Link, Network


class Target(Protocol):
    """Members and gateways by name (`dc-a-1`, `tiebreaker`, `gateway-dc-a`). Everything runs on loopback."""

    network: Network

    @property
    def links(self) -> list[Link]: ...

    @property
    def members(self) -> list[str]: ...

    @property
    def replicas(self) -> list[str]:
        """Members that hold the state, witnesses left out."""
        ...

    @property
    def gateways(self) -> list[str]: ...

    def site_of(self, name: str) -> str: ...

    def folder_of(self, name: str) -> Path:
        """Where a process keeps its data."""
        ...

    def pid(self, name: str) -> int | None:
        """None: it does not run."""
        ...

    def cache_pid(self, gateway: str) -> int | None: ...

    async def status(self, name: str) -> dict[str, Any] | None:
        """What a member says of itself on /v1/status, asked directly, no proxy between; None: no answer in 1 s."""
        ...

    async def leader(self) -> str:
        """Who leads in the highest term that anybody knows of, or an empty string."""
        ...

    async def start(
        self, name: str, *, environment: Mapping[str, str] | None = None, ready_timeout_ms: int = 30_000
    ) -> None:
        """Start it and wait until it answers; 0: do not wait. One that runs is left alone."""
        ...

    async def kill(self, name: str) -> None:
        """SIGKILL, and wait until it is gone."""
        ...

    async def stop(self, name: str) -> None:
        """SIGTERM, and wait."""
        ...

    async def signal(self, name: str, number: signal.Signals) -> None: ...

    async def wipe(self, name: str) -> None:
        """Take away everything that a stopped process kept."""
        ...
