"""Links through toxiproxy, save those that need what it can't do: these through our own proxy.

Which is which is decided when they are opened: a connection can't change its proxy, and both in a row would cost a
second hop on each message of all links.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

from chaos.net.links import Link, Network, NotCut, Way, check_links
from chaos.net.proxy import OwnNetwork
from chaos.net.toxiproxy import ToxiproxyNetwork


class MixedNetwork:
    """Implements chaos.net.links.Network; each verb is the one of the network that has the link."""

    def __init__(self, folder: Path, own: Callable[[Link], bool], *, seed: int = 0) -> None:
        """folder: for logs. own: whether a link is to be reset, or its old connections held."""
        self.toxiproxy = ToxiproxyNetwork(folder)
        self.own = OwnNetwork(seed=seed)
        self._is_own = own
        self._by_name: dict[str, Network] = {}

    @property
    def restarts(self) -> list[str]:
        return self.toxiproxy.restarts

    async def open(self, links: list[Link]) -> None:
        check_links(links)
        ours = [link for link in links if self._is_own(link)]
        rest = [link for link in links if link not in ours]
        self._by_name = {link.name: self.own for link in ours} | {link.name: self.toxiproxy for link in rest}
        try:
            await self.toxiproxy.open(rest)
            await self.own.open(ours)
        except NotCut:
            await self.close()
            raise

    async def add(self, links: list[Link]) -> None:
        ours = [link for link in links if self._is_own(link)]
        await self.toxiproxy.add([link for link in links if link not in ours])
        await self.own.add(ours)
        self._by_name |= {link.name: self.own if link in ours else self.toxiproxy for link in links}

    async def close(self) -> None:
        await self.toxiproxy.close()
        await self.own.close()

    def quiet(self, process: str) -> None:
        self.toxiproxy.quiet(process)

    def loud(self, process: str) -> None:
        self.toxiproxy.loud(process)

    async def stall(self, name: str, way: Way = "both") -> None:
        await self._of(name).stall(name, way)

    async def drop(self, name: str, way: Way = "both") -> None:
        await self._of(name).drop(name, way)

    async def slow(self, name: str, latency_ms: float, jitter_ms: float = 0) -> None:
        await self._of(name).slow(name, latency_ms, jitter_ms)

    async def slice(self, name: str, size_bytes: int, delay_us: int) -> None:
        await self._of(name).slice(name, size_bytes, delay_us)

    async def cut_after(self, name: str, size_bytes: int) -> None:
        await self._of(name).cut_after(name, size_bytes)

    async def refuse(self, name: str) -> None:
        await self._of(name).refuse(name)

    async def reset(self, name: str) -> None:
        await self._of(name).reset(name)

    async def hold_old(self, name: str) -> None:
        await self._of(name).hold_old(name)

    async def heal(self, name: str) -> None:
        await self._of(name).heal(name)

    async def heal_all(self) -> None:
        done = await asyncio.gather(self.toxiproxy.heal_all(), self.own.heal_all(), return_exceptions=True)
        for error in done:
            if isinstance(error, BaseException):
                raise error

    def _of(self, name: str) -> Network:
        if name not in self._by_name:
            raise NotCut(f"there is no link {name}")
        return self._by_name[name]
