"""Two gateways' stores on disk, linked over mutual TLS on loopback, with a proxy between them that can be cut."""

import asyncio
import shutil
import ssl
from pathlib import Path
from types import TracebackType

from cluster.certificates import TlsFiles, client_context, make_all, server_context, tls_files
from gateway.prefs.hlc import wall_ms
from gateway.prefs.link import Sites, certificate_name
from gateway.prefs.seal import Keyring
from gateway.prefs.service import Prefs
from gateway.prefs.store import Store
from tests.cluster.engines import Cut, free_port, until

RING = Keyring({1: b"k" * 32})
HOST = "127.0.0.1"
SITES = ("dc-a", "dc-b")


class Side:
    """One gateway's part of it."""

    def __init__(self, pair: "Pair", site: str) -> None:
        self._pair = pair
        self.site = site
        self.folder = pair.folder / site
        self.ahead_ms = 0
        self.store: Store
        self.links: Sites
        self.prefs: Prefs

    async def start(self, *, cluster_id: str = "c") -> None:
        self.store = Store(
            self.folder,
            cluster_id=cluster_id,
            site=self.site,
            map_bytes=1 << 28,
            free_bytes_min=0,
            wall=lambda: wall_ms() + self.ahead_ms,
        )
        self.prefs = Prefs(self.store, RING)
        other = "dc-b" if self.site == "dc-a" else "dc-a"
        self.links = Sites(
            self.store,
            listen=(HOST, self._pair.ports[self.site]),
            peers={other: (HOST, self._pair.cut.port)},
            server_tls=server_context(self._pair.tls(self.site)),
            client_tls=client_context(self._pair.tls(self.site)),
        )
        await self.links.start()

    async def stop(self) -> None:
        await self.links.stop()
        await self.store.close()

    @property
    def linked(self) -> bool:
        return len(self.links.live_sites()) == 2


class Pair:
    """`async with Pair(folder) as pair`: both run; dc-b dials dc-a through `cut`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_all(folder / "certs", "c", [certificate_name(site) for site in (*SITES, "dc-c")])
        base = free_port(2)
        self.ports = {"dc-a": base, "dc-b": base + 1}
        self.cut = Cut((HOST, self.ports["dc-a"]))
        self.a, self.b = Side(self, "dc-a"), Side(self, "dc-b")

    def tls(self, site: str) -> TlsFiles:
        return tls_files(self.folder / "certs", certificate_name(site))

    async def __aenter__(self) -> "Pair":
        await self.cut.start()
        await self.a.start()
        await self.b.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.a.stop()
        await self.b.stop()
        await self.cut.stop()

    async def linked(self) -> None:
        await until(lambda: self.a.linked and self.b.linked)

    def equal(self) -> bool:
        return self.a.store.digests.sums() == self.b.store.digests.sums()

    def lose(self, side: Side) -> None:
        """The disk of a stopped side."""
        shutil.rmtree(side.folder)


async def speak(port: int, context: ssl.SSLContext | None, name: str, said: bytes) -> bytes:
    """What comes back when this is said by a stranger; empty when it is cut off."""
    reader, writer = await asyncio.open_connection(HOST, port, ssl=context, server_hostname=name if context else None)
    try:
        writer.write(said)
        await writer.drain()
        async with asyncio.timeout(3):
            return await reader.read()
    except (OSError, ssl.SSLError):
        return b""
    finally:
        writer.transport.abort()
