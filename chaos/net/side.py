"""One toxiproxy server with all links of one dialer: how each is meant to be, and a new server for a wedged one."""

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from msgspec import Struct

from chaos.net.links import Link, NotCut
from chaos.net.ports import NoPort
from chaos.net.server import NoServer, Server
from chaos.net.told import Refused, Toxic, Wedged

if TYPE_CHECKING:
    from chaos.net.library import Api

T = TypeVar("T")

STARTS = 3
PORT_WAIT_S = 0.2


class Cut(Struct):
    """How a link is meant to be. proxy: its name at the server."""

    link: Link
    proxy: str
    toxics: dict[str, Toxic] = {}
    enabled: bool = True


class Side:
    """The API's calls block, so they have a thread. restarts: a sentence is added for each server started anew."""

    def __init__(self, dialer: str, log: Path, restarts: list[str]) -> None:
        self.cuts: dict[str, Cut] = {}
        self.server = Server(dialer, log)
        self._restarts = restarts
        self._lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, f"toxiproxy-{dialer}")
        self._api: Api | None = None

    def add(self, link: Link) -> None:
        # Names go into paths: the library does not escape them, and the server takes no slash in any form.
        plain = re.sub(r"[^A-Za-z0-9]+", "-", link.name)
        self.cuts[link.name] = Cut(link, f"{len(self.cuts)}-{plain}")

    async def start(self) -> None:
        """A new server, told how all links are meant to be. Raises NotCut, Wedged, NoServer, NoPort."""
        try:
            from chaos.net.library import Api  # noqa: PLC0415 - its packages are of the extra `chaos`
        except ModuleNotFoundError as error:
            raise NoServer(f"{error.name} is not installed: make toxiproxy") from error
        await self.server.start()
        self._api = await self._blocking(partial(Api, self.server.port))
        for name, cut in self.cuts.items():
            await self._run(name, partial(_build, cut=cut))

    async def tell(self, name: str, what: Callable[["Api"], None]) -> None:
        """A server that does not answer is replaced by one that has all faults, as `cuts` has them.

        Raises NotCut: refused, or there is no server any more.
        """
        async with self._lock:
            try:
                await self._run(name, what)
            except Wedged as error:
                await self._again(f"was wedged ({error})")

    async def revive(self) -> None:
        """A server that died takes links with it that nobody cut. Raises NotCut: it does not come back."""
        if not self.server.pid and not self._lock.locked():
            async with self._lock:
                await self._again("had died")

    def end(self) -> None:
        self.server.kill()
        self._thread.shutdown(wait=False)

    async def _again(self, why: str) -> None:
        self._restarts.append(f"toxiproxy of {self.server.name} {why} and was started again")
        last = ""
        for _ in range(STARTS):
            try:
                await self.start()
                return
            except (Wedged, NoServer, NoPort, NotCut) as error:
                last = str(error)
                self.server.kill()
                await asyncio.sleep(PORT_WAIT_S)
        raise NotCut(f"toxiproxy of {self.server.name} {why} and does not come back: {last}")

    async def _run(self, name: str, what: Callable[["Api"], None]) -> None:
        if self._api is None:
            raise NotCut(f"{name}: the network is not open")
        try:
            await self._blocking(partial(what, self._api))
        except Refused as error:
            raise NotCut(f"{name}: {error}") from error

    async def _blocking(self, what: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, what)


def _build(api: "Api", cut: Cut) -> None:
    """Faults first, so that nothing passes before they stand."""
    (host, port), (target_host, target_port) = cut.link.listen, cut.link.target_at
    api.create(cut.proxy, f"{host}:{port}", f"{target_host}:{target_port}")
    if cut.toxics:
        api.put(cut.proxy, list(cut.toxics.values()))
    if cut.enabled:
        api.enable(cut.proxy, True)
