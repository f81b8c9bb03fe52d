"""Links through toxiproxy: a server for each process that dials, each fault read back and seen in the kernel's counts.

What toxiproxy can't do is said by NotCut: `reset` and `hold_old` are verbs of OwnNetwork.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from chaos.net.links import Link, NotCut, Way, check_links
from chaos.net.ports import NoPort
from chaos.net.server import NoServer
from chaos.net.side import Cut, Side
from chaos.net.told import Toxic, Wedged
from chaos.net.traffic import SEEN_WITHIN_S, STILL_S, Traffic, refused, traffic

if TYPE_CHECKING:
    from chaos.net.library import Api

SETTLE_S = 0.3
"""After SIGCONT a process first reads what piled up."""
WATCH_S = 0.5
UPSTREAM, DOWNSTREAM = "upstream", "downstream"
STREAMS: dict[Way, tuple[str, ...]] = {
    "both": (UPSTREAM, DOWNSTREAM),
    "to_target": (UPSTREAM,),
    "to_dialer": (DOWNSTREAM,),
}


class ToxiproxyNetwork:
    """Implements chaos.net.links.Network. Use it from the thread of one event loop, which outlives the servers.

    restarts: a sentence for each server that had to be started anew. Its faults stand again, and its connections ended.
    """

    def __init__(self, folder: Path, *, careful: bool = True) -> None:
        """folder: for the servers' logs. careful: touch no link whose receiver is seen to read nothing."""
        self.restarts: list[str] = []
        self._folder = folder
        self._careful = careful
        self._sides: dict[str, Side] = {}
        self._quiet: set[str] = set()
        self._loud_at: dict[str, float] = {}
        self._watch: asyncio.Task[None] | None = None

    async def open(self, links: list[Link]) -> None:
        """Raises NotCut: no server to be had, or a port is in use."""
        check_links(links)
        for link in links:
            side = self._sides.setdefault(link.dialer, Side(link.dialer, self._log(link.dialer), self.restarts))
            side.add(link)
        try:
            started = await asyncio.gather(*(side.start() for side in self._sides.values()), return_exceptions=True)
            if failed := [error for error in started if error is not None]:
                raise failed[0]
        except (NotCut, NoServer, NoPort, Wedged) as error:
            await self.close()
            raise NotCut(str(error)) from error
        self._watch = asyncio.create_task(self._keep_alive())

    async def add(self, links: list[Link]) -> None:
        check_links([*(cut.link for side in self._sides.values() for cut in side.cuts.values()), *links])
        for link in links:
            if link.dialer in self._sides:
                raise NotCut(f"{link.name}: the links of {link.dialer} are open already")
        sides = {link.dialer: Side(link.dialer, self._log(link.dialer), self.restarts) for link in links}
        for link in links:
            sides[link.dialer].add(link)
        for dialer, side in sides.items():
            self._sides[dialer] = side
            try:
                await side.start()
            except (NoServer, NoPort, Wedged) as error:
                raise NotCut(str(error)) from error

    def _log(self, dialer: str) -> Path:
        return self._folder / f"toxiproxy-{dialer}.log"

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        for side in self._sides.values():
            side.end()
        self._sides.clear()

    async def _keep_alive(self) -> None:
        """A server that died takes links with it that nobody cut."""
        while True:
            await asyncio.sleep(WATCH_S)
            for side in self._sides.values():
                with contextlib.suppress(NotCut):  # the next verb says so
                    await side.revive()

    def versions(self) -> dict[str, str]:
        return {f"toxiproxy of {name}": side.server.version for name, side in self._sides.items()}

    @property
    def servers(self) -> dict[str, int]:
        """The pid of each dialer's server; 0: it died."""
        return {name: side.server.pid for name, side in self._sides.items()}

    def quiet(self, process: str) -> None:
        self._quiet.add(process)

    def loud(self, process: str) -> None:
        self._quiet.discard(process)
        self._loud_at[process] = time.monotonic()

    async def stall(self, name: str, way: Way = "both") -> None:
        await self._hold_back(name, "bandwidth", {"rate": 0}, way)

    async def drop(self, name: str, way: Way = "both") -> None:
        await self._hold_back(name, "timeout", {"timeout": 0}, way)

    async def slow(self, name: str, latency_ms: float, jitter_ms: float = 0) -> None:
        """Each way, so that a round trip takes twice as much longer. Whole milliseconds."""
        await self.toxic(name, "latency", {"latency": round(latency_ms), "jitter": round(jitter_ms)})

    async def slice(self, name: str, size_bytes: int, delay_us: int) -> None:
        attributes = {"average_size": size_bytes, "size_variation": size_bytes // 2, "delay": delay_us}
        await self.toxic(name, "slicer", attributes)

    async def cut_after(self, name: str, size_bytes: int) -> None:
        """Each way has its own count."""
        await self.toxic(name, "limit_data", {"bytes": size_bytes})

    async def refuse(self, name: str) -> None:
        side, cut = await self._touch(name)
        cut.enabled = False
        await side.tell(name, lambda api: api.enable(cut.proxy, False))
        await self._seen(lambda: refused(cut.link, side.server.pid), f"{name} still takes connections")

    async def reset(self, name: str) -> None:
        raise NotCut(f"{name}: toxiproxy resets no connection that stands; open this link on OwnNetwork")

    async def hold_old(self, name: str) -> None:
        raise NotCut(f"{name}: toxiproxy holds all connections of a link or none; open this link on OwnNetwork")

    async def toxic(self, name: str, kind: str, attributes: dict[str, int], way: Way = "both") -> None:
        """Any toxic of the server's. Raises NotCut: it does not read back as it was meant."""
        side, cut = await self._touch(name)
        before = dict(cut.toxics)
        toxics = [Toxic(f"{kind}_{stream}", kind, stream, attributes) for stream in STREAMS[way]]
        cut.toxics.update((toxic.name, toxic) for toxic in toxics)
        try:
            await side.tell(name, partial(_put, proxy=cut.proxy, toxics=toxics))
        except NotCut:
            cut.toxics = before
            raise

    async def heal(self, name: str) -> None:
        side, cut = await self._touch(name)
        names, was_enabled = list(cut.toxics), cut.enabled
        cut.toxics.clear()
        cut.enabled = True
        if names or not was_enabled:
            await side.tell(name, partial(_heal, proxy=cut.proxy, toxics=names))

    async def heal_all(self) -> None:
        """Those that can't be healed are named by NotCut; all others are."""
        names = [name for side in self._sides.values() for name in side.cuts]
        done = await asyncio.gather(*map(self.heal, names), return_exceptions=True)
        for error in done:
            if isinstance(error, BaseException) and not isinstance(error, NotCut):
                raise error
        if left := [str(error) for error in done if error is not None]:
            raise NotCut("; ".join(left))

    async def traffic(self, name: str) -> Traffic:
        """What passed on this link until now, by the kernel's count."""
        side, cut = self._find(name)
        return await asyncio.to_thread(traffic, cut.link, side.server.pid)

    async def _hold_back(self, name: str, kind: str, attributes: dict[str, int], way: Way) -> None:
        await self.toxic(name, kind, attributes, way)

        async def look() -> str:
            before = await self.traffic(name)
            await asyncio.sleep(STILL_S)
            return (await self.traffic(name)).passed_since(before, way)

        await self._seen(look, f"{name}: {kind} stands, and bytes pass")

    async def _seen(self, look: Callable[[], Awaitable[str]], what: str) -> None:
        """look: empty when the fault is there, else what speaks against it. Raises NotCut."""
        deadline = time.monotonic() + SEEN_WITHIN_S
        while against := await look():
            if time.monotonic() > deadline:
                raise NotCut(f"{what}: {against}")

    def _find(self, name: str) -> tuple["Side", Cut]:
        for side in self._sides.values():
            if cut := side.cuts.get(name):
                return side, cut
        raise NotCut(f"there is no link {name}")

    async def _touch(self, name: str) -> tuple["Side", Cut]:
        """Before anything is told about a link. Raises NotCut: its receiver does not read."""
        side, cut = self._find(name)
        ends = (cut.link.dialer, cut.link.target)
        since_s = min(time.monotonic() - self._loud_at.get(end, 0) for end in ends)
        await asyncio.sleep(max(0.0, SETTLE_S - since_s))
        for end in ends:
            if end in self._quiet:
                raise NotCut(f"{name}: {end} is paused, and toxiproxy can deadlock")
        if self._careful and (stuck := await self._stuck(side, cut.link)):
            raise NotCut(f"{name}: {stuck}, and toxiproxy can deadlock")
        return side, cut

    async def _stuck(self, side: "Side", link: Link) -> str:
        before = await asyncio.to_thread(traffic, link, side.server.pid)
        if not before.unsent:
            return ""
        await asyncio.sleep(SETTLE_S)
        return (await asyncio.to_thread(traffic, link, side.server.pid)).stuck_since(before)


def _put(api: "Api", proxy: str, toxics: Sequence[Toxic]) -> None:
    api.put(proxy, toxics)


def _heal(api: "Api", proxy: str, toxics: Sequence[str]) -> None:
    api.remove(proxy, toxics)
    api.enable(proxy, True)
