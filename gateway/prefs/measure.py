"""What two sites' stores take, for benchmarks: writes per second, filling a site that lost its disk; a gap to cut."""

import asyncio
import contextlib
import random
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from msgspec import Struct

from cluster.certificates import client_context, make_all, server_context, tls_files
from gateway.cache.client import connect
from gateway.cache.server import CacheServer
from gateway.prefs.alert import Condition, Terms
from gateway.prefs.link import Sites, certificate_name
from gateway.prefs.seal import Keyring
from gateway.prefs.service import KNOWN_MAX, Prefs
from gateway.prefs.store import Store

HOST = "127.0.0.1"
SITES = ("dc-a", "dc-b")


class Filled(Struct, frozen=True):
    users: int
    bytes_per_user: int
    seconds: float


class Written(Struct, frozen=True):
    """clients: writers that each wait for their answer before the next."""

    clients: int
    writes_per_s: int
    writes_per_sync: float
    ms_p50: float
    ms_p99: float


class ReadTimes(Struct, frozen=True):
    """Microseconds of one read, at the median and the slowest of a hundred: of a user whose preferences are in memory,
    of one whose document is read from the store and opened, and of the same bytes in a cache server."""

    users: int
    memory_us: tuple[float, float]
    store_us: tuple[float, float]
    cache_us: tuple[float, float]


class Gap:
    """A TCP proxy. While `cut`, bytes vanish and the connections stay up, as in a real partition."""

    def __init__(self, port: int) -> None:
        self._to_port = port
        self._open: set[asyncio.StreamWriter] = set()
        self.cut = False
        self.port = 0
        self._server: asyncio.Server

    async def start(self) -> None:
        self.port = _free_port()
        self._server = await asyncio.start_server(self._serve, HOST, self.port)

    async def stop(self) -> None:
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        await asyncio.sleep(0.05)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(HOST, self._to_port)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while data := await reader.read(1 << 16):
                if not self.cut and not writer.is_closing():
                    writer.write(data)
        except OSError:
            pass
        finally:
            self._open.discard(writer)
            writer.transport.abort()


class Side:
    """One gateway's store and links."""

    def __init__(self, folder: Path, site: str) -> None:
        self.folder = folder / site
        self.site = site
        self.ring = Keyring({1: b"m" * 32})
        self.store: Store
        self.links: Sites
        self.prefs: Prefs
        self._certificates = folder / "certs"

    async def start(self, listen_port: int, dial_port: int) -> None:
        files = tls_files(self._certificates, certificate_name(self.site))
        other = SITES[self.site == SITES[0]]
        self.store = Store(self.folder, cluster_id="measure", site=self.site)
        self.prefs = Prefs(self.store, self.ring)
        self.links = Sites(
            self.store,
            listen=(HOST, listen_port),
            peers={other: (HOST, dial_port)},
            server_tls=server_context(files),
            client_tls=client_context(files),
        )
        await self.links.start()

    async def stop(self) -> None:
        await self.links.stop()
        await self.store.close()


class Two:
    """Both sides, with the gap between them."""

    def __init__(self, folder: Path) -> None:
        make_all(folder / "certs", "measure", [certificate_name(site) for site in SITES])
        self.a, self.b = Side(folder, "dc-a"), Side(folder, "dc-b")
        self._ports = _free_port(), _free_port()
        self.gap = Gap(self._ports[0])

    async def start(self) -> None:
        await self.gap.start()
        for side in (self.a, self.b):
            await self.start_side(side)

    async def start_side(self, side: Side) -> None:
        await side.start(self._ports[side is self.b], self.gap.port)

    async def stop(self) -> None:
        await self.a.stop()
        await self.b.stop()
        await self.gap.stop()

    def equal(self) -> bool:
        return self.a.store.digests.sums() == self.b.store.digests.sums()

    async def until_equal(self, within_s: float) -> float:
        """Seconds; -1: not within."""
        began = time.monotonic()
        while not self.equal():
            if time.monotonic() - began > within_s:
                return -1.0
            await asyncio.sleep(0.005)
        return time.monotonic() - began


@contextlib.asynccontextmanager
async def _two(folder: Path) -> AsyncIterator[Two]:
    with tempfile.TemporaryDirectory(prefix="tiebreak-prefs-", dir=folder) as name:
        two = Two(Path(name))
        await two.start()
        try:
            await two.until_equal(10)
            yield two
        finally:
            await two.stop()


async def measure_fill(users: int, folder: Path) -> Filled:
    """The time until a site that lost its disk has all again. folder: on the disk that is measured."""
    async with _two(folder) as two:
        await two.b.stop()
        terms = Terms("AAPL", Condition.above, price_e9=200_000_000_000)
        for first in range(0, users, 1_000):
            chunk = range(first, min(first + 1_000, users))
            await asyncio.gather(*(two.a.prefs.change(f"user-{n}", {"leaderboard_name": f"Bull {n}"}) for n in chunk))
            await asyncio.gather(*(two.a.prefs.put_alert(f"user-{n}", "x", terms) for n in chunk))
        size = sum(len(two.a.store.raw(f"user-{n}") or b"") for n in range(min(users, 100))) // min(users, 100)
        shutil.rmtree(two.b.folder)
        began = time.monotonic()
        await two.start_side(two.b)
        if await two.until_equal(600) < 0:
            raise RuntimeError("not filled within 10 minutes")
        return Filled(users, size, round(time.monotonic() - began, 2))


async def measure_writes(clients: int, seconds: float, folder: Path) -> Written:
    """One site, no link: what group commit makes of one disk."""
    with tempfile.TemporaryDirectory(prefix="tiebreak-prefs-", dir=folder) as name:
        store = Store(Path(name) / "store", cluster_id="measure", site="dc-a")
        prefs = Prefs(store, Keyring({1: b"m" * 32}))
        times: list[float] = []
        end = time.monotonic() + seconds

        async def client(number: int) -> None:
            while (now := time.monotonic()) < end:
                await prefs.change(f"user-{number}", {"leaderboard_name": f"Bull {len(times)}"})
                times.append(time.monotonic() - now)

        await asyncio.gather(*(client(number) for number in range(clients)))
        syncs = store.syncs
        await store.close()
        times.sort()
        at = [round(times[len(times) * share // 100] * 1_000, 2) for share in (50, 99)]
        return Written(clients, round(len(times) / seconds), round(len(times) / syncs, 1), at[0], at[1])


async def measure_reads(users: int, folder: Path) -> ReadTimes:
    """One reader, one read after the other. The cache server is ours, on a unix socket: nearer than any other."""
    with tempfile.TemporaryDirectory(prefix="tiebreak-prefs-", dir=folder) as name:
        store, server = (
            Store(Path(name) / "store", cluster_id="measure", site="dc-a"),
            CacheServer(Path(name) / "cache"),
        )
        prefs = Prefs(store, Keyring({1: b"m" * 32}))
        names = [f"user-{number}" for number in range(users)]
        for first in range(0, users, 1_000):
            await asyncio.gather(
                *(
                    prefs.change(one, {"leaderboard_name": f"Bull of {one}", "email": f"{one}@example.com"})
                    for one in names[first : first + 1_000]
                )
            )
        await server.start()
        cache = connect(server.url)
        try:
            for one in names:
                await cache.ask("SET", one, store.raw(one) or b"")
            from_store = _each(names, prefs.preferences)
            in_memory = _each(names[-KNOWN_MAX:], prefs.preferences)
            in_cache: list[float] = []
            for one in names:
                began = time.perf_counter()
                await cache.ask("GET", one)
                in_cache.append(time.perf_counter() - began)
        finally:
            await cache.aclose()
            await server.stop()
            await store.close()
        return ReadTimes(users, _shares(in_memory), _shares(from_store), _shares(in_cache))


def _each(names: list[str], read: Callable[[str], object]) -> list[float]:
    took: list[float] = []
    for one in names:
        began = time.perf_counter()
        read(one)
        took.append(time.perf_counter() - began)
    return took


def _shares(took_s: list[float]) -> tuple[float, float]:
    took_s.sort()
    return round(took_s[len(took_s) // 2] * 1e6, 1), round(took_s[len(took_s) * 99 // 100] * 1e6, 1)


def _free_port() -> int:
    for _ in range(200):
        port = random.randint(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise RuntimeError("no free ports")
