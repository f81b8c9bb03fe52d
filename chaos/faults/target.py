"""The cluster under test, as faults see it. `chaos.live.bed` is one."""

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from chaos.net.links import Link, Network
from cluster.client import Client
from cluster.wire import AddMember


class Target(Protocol):
    """Members and gateways by name (`dc-a-1`, `tiebreaker`, `gateway-dc-a`). Everything runs on loopback.

    `pid`, `start`, `kill`, `stop` and `signal` also take `cache-dc-a`, the cache of that site's gateway, and `venue`,
    which all feeds come from; `start` without an end of waiting is `ready_timeout_ms=0`.
    """

    @property
    def network(self) -> Network: ...

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
        """Where a process keeps its data. Its power can be cut where this lies on a disk of `disks.py`."""
        ...

    @property
    def addresses(self) -> Mapping[str, str]:
        """The URL at which clients find each member and gateway; no proxy between."""
        ...

    def pid(self, name: str) -> int | None:
        """None: it does not run."""
        ...

    def cache_pid(self, gateway: str) -> int | None: ...

    async def status(self, name: str) -> dict[str, Any] | None:
        """What a member says of itself on /v1/status, or a gateway on /v1/gateway; asked directly, no proxy between.

        None: no answer within 1 s.
        """
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

    def operator(self) -> Client:
        """A client that may change members; whoever asks for it closes it."""
        ...

    async def make_member(self, name: str, *, like: str) -> AddMember:
        """Ports, files and links of one more member, at the site of `like` and with its role.

        It is not started, and the cluster has not heard of it. `name` sorts after all others: of each pair the later
        dials, so all links of the new member are its own, and no running member has to learn of a proxy.
        """
        ...

    async def forget_member(self, name: str) -> None:
        """It was removed for good: from now on it is in no list. Its process is ended if it runs."""
        ...
