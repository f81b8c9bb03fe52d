"""The gateway's fan-out: how many sockets it holds, what it delivers to them, how late, and what that costs.

This process is the core: it makes quotes and feeds worker processes, which serve the sockets. The loads are processes
of their own (fanout_load.py), on the same cores.
"""

import asyncio
import gc
import os
import random
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from msgspec import Struct
from msgspec.structs import replace

from bench import host
from bench.fanout_load import Counted, Loaded, LoadOptions
from bench.report import Figure, Report, at_least, at_most
from bench.running import RunError
from gateway.fanout import views
from gateway.fanout.fragment import Fragment
from gateway.fanout.hub import Hub
from gateway.fanout.ring import Rings
from gateway.fanout.source import LocalSource
from gateway.feeds.ticks import E9
from gateway.market.nbbo import Nbbo
from gateway.stream.admission import Admission, StreamLimits
from gateway.stream.places import Caps, Places
from gateway.tasks import end
from gateway.workers.core import Core
from gateway.workers.supervisor import Supervisor
from gateway.workers.worker import WorkerOptions
from node.auth import issue_token
from node.guard import HttpLimits

LATENCY_MS_MAX = 200
DELIVERED_GOAL_PER_S = 1_000_000
SOCKETS_PER_PROCESS_MAX = 18_000
"""A process may have 20,000 descriptors; the kernel spreads connections by chance."""
HOSTS = ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5", "127.0.0.6"]
"""From one address to one other there are 28,232 ports."""
WARM_UP_S = 3.0
TICK_S = 0.1


class Usage(Struct):
    """Of some processes together. cpu_s: since they began."""

    cpu_s: float
    rss_bytes: int


MANY = 1_000_000
LIMITS = StreamLimits(
    admitted_per_s=float(MANY),
    admitted_burst=MANY,
    connections_per_user_max=MANY,
    subscriptions_per_user_max=100 * MANY,
)
DOOR = HttpLimits(connections_max=MANY, connections_per_address_max=MANY)
"""Places are counted, as in any gateway, and never run out."""


def quote_of(chance: random.Random, symbol: str, now_us: int) -> Fragment:
    """A made-up best bid and ask."""
    bid_e9 = (10_000 + chance.randrange(50_000)) * E9 // 100
    size_e9 = chance.randrange(1, 100) * 100 * E9
    ask_e9 = bid_e9 + chance.randrange(1, 5) * E9 // 100
    return views.nbbo(Nbbo(symbol, bid_e9, size_e9, "arca", ask_e9, size_e9, "nasdaq", now_us))


class Quoting:
    """Quotes for all symbols of a made-up market, each changed `per_s` times a second."""

    def __init__(self, hub: Hub, catalogue: int, per_s: float) -> None:
        self.hub = hub
        self.names = [f"S{number}" for number in range(catalogue)]
        self.chance = random.Random(1)
        self.published = 0
        self._share = per_s * TICK_S

    def quote(self, symbol: str) -> Fragment | None:
        if not symbol.startswith("S"):
            raise LookupError(f"nothing is known of a symbol {symbol!r}")
        return self._made(symbol, time.time_ns() // 1_000)

    def _made(self, symbol: str, now_us: int) -> Fragment:
        return quote_of(self.chance, symbol, now_us)

    async def run(self) -> None:
        due_s = time.monotonic()
        while True:
            now_us = time.time_ns() // 1_000
            for symbol in self.names:
                if self._share >= 1 or self.chance.random() < self._share:
                    topic = self.hub.topics.get(("nbbo", symbol))
                    if topic is not None:
                        self.hub.publish(topic, self._made(symbol, now_us))
                        self.published += 1
            due_s = max(due_s + TICK_S, time.monotonic())
            await asyncio.sleep(due_s - time.monotonic())


class Serving:
    """A core with its workers, on free ports of the loopback addresses."""

    def __init__(self, folder: Path, *, workers: int, catalogue: int, per_s: float, hosts: Sequence[str]) -> None:
        key = Ed25519PrivateKey.generate()
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        self.public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        self.token = issue_token(private, subject="bench", role="auditor")
        self.hosts = list(hosts)
        self.port = free_port(hosts)
        self.rings = Rings(secrets.randbits(40))
        self.hub = Hub(self.rings.epoch)
        self.quoting = Quoting(self.hub, catalogue, per_s)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "core.sock"
        source = LocalSource(self.hub, self.rings, {"nbbo": self.quoting.quote})
        self.core = Core(self.path, self.hub, source, places=Places(Caps(LIMITS, DOOR)), admission=Admission(LIMITS))
        self.supervisor = Supervisor(self._command, workers)

    def _command(self, number: int) -> list[str]:
        options = WorkerOptions(
            number=number,
            core=str(self.path),
            run="",
            hosts=self.hosts,
            port=self.port,
            public_keys=[self.public],
            drain_ms=100,
            limits=LIMITS,
            http=DOOR,
            share=self.supervisor.count,
        )
        return [sys.executable, "-m", "gateway.workers.worker", options.text()]

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Serving"]:
        """Raises RunError: the workers do not come up."""
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self.hub.run()), loop.create_task(self.quoting.run())]
        await self.core.start()
        self.supervisor.start()
        try:
            async with asyncio.timeout(60):
                while len(self.core.workers) < self.supervisor.count:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)  # until they listen
            yield self
        except TimeoutError as error:
            raise RunError("the workers do not come up") from error
        finally:
            await self.supervisor.stop(timeout_s=10.0)
            await self.core.stop()
            await end(*tasks)

    def usage(self) -> Usage:
        return used([*self.supervisor.pids.values()])


class Loading:
    """The load processes."""

    def __init__(self, whole: LoadOptions, *, loads: int, module: str = "bench.fanout_load") -> None:
        """whole: its sockets are shared among `loads` processes. module: what they run."""
        self._processes: list[asyncio.subprocess.Process] = []
        self._module = module
        self._options = [
            replace(whole, sockets=whole.sockets // loads + (number < whole.sockets % loads), seed=number + 1)
            for number in range(loads)
        ]

    async def connect(self, *, timeout_s: float) -> list[Loaded]:
        """Raises RunError."""
        pipe = asyncio.subprocess.PIPE
        for options in self._options:
            text = msgspec.json.encode(options).decode()
            self._processes.append(
                await asyncio.create_subprocess_exec(
                    sys.executable, "-m", self._module, text, stdin=pipe, stdout=pipe, limit=1 << 24
                )
            )
        return [msgspec.json.decode(line, type=Loaded) for line in await self._lines(timeout_s)]

    async def measure(self, begin_s: float, end_s: float) -> list[Counted]:
        """Raises RunError."""
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.write(msgspec.json.encode((begin_s, end_s)) + b"\n")
        lines = await self._lines(end_s - time.time() + 30.0)
        return [msgspec.json.decode(line, type=Counted) for line in lines]

    async def _lines(self, timeout_s: float) -> list[bytes]:
        try:
            async with asyncio.timeout(timeout_s):
                lines = [await process.stdout.readline() for process in self._processes if process.stdout is not None]
        except TimeoutError as error:
            raise RunError(f"the loads said nothing within {timeout_s:.0f} s") from error
        if not all(lines):
            raise RunError("a load process ended early")
        return lines

    async def stop(self) -> None:
        for process in self._processes:
            if process.returncode is None:
                process.kill()
            await process.wait()


def fanout(
    folder: Path,
    *,
    sockets: int = 10_000,
    symbols: int = 10,
    workers: int = 2,
    seconds: float = 10.0,
    json: bool = False,
) -> Report:
    """10,000 sockets x 10 symbols at 10/s: time from flush to client, age added by conflation, CPU per send."""
    began_s = time.monotonic()
    made = uvloop.run(
        run_once(
            folder / "gateway-fanout",
            sockets,
            symbols,
            workers,
            seconds,
            json,
            catalogue=500,
            per_s=10,
            hosts=HOSTS[:2],
            rate="live",
        )
    )
    per_s = made.total("updates") / seconds
    frames = made.total("frames")
    notes = [
        "the load generator shares the cores; its CPU is given apart",
        "latency: from the beginning of a round of sending to the client's read; the age: from when an update became "
        "true in the core to the round that sent it",
    ]
    return Report(
        benchmark="gateway-fanout",
        figures=[
            Figure("sockets open and receiving", made.total("receiving")),
            Figure("from flush to client, p50", made.worst("latency_us", 50) / 1e3, "ms"),
            at_most("from flush to client, p99", made.worst("latency_us", 99) / 1e3, LATENCY_MS_MAX, "ms"),
            Figure("age added by conflation, p50", made.worst("age_us", 50) / 1e3, "ms"),
            Figure("age added by conflation, p99", made.worst("age_us", 99) / 1e3, "ms"),
            at_least("delivered symbol updates a second", per_s, DELIVERED_GOAL_PER_S, "/s"),
            Figure("frames a second", frames / seconds, "/s"),
            Figure("frames a socket a second", frames / seconds / max(1, made.total("receiving")), "/s"),
            Figure("bytes an update", made.total("bytes") / max(1, made.total("updates")), "B"),
            *made.costs(seconds, frames),
        ],
        settings={"sockets": sockets, "symbols": symbols, "workers": workers, "seconds": seconds, "json": json},
        host=host.describe(folder),
        seconds=time.monotonic() - began_s,
        notes=notes,
    )


EVERY_S = 2.0
"""100,000 frames a second, with their clients, need 2.3 cores of these: at one a second a fifth was cut as too slow."""


def many_sockets(
    folder: Path, *, sockets: int = 100_000, symbols: int = 5, workers: int = 0, seconds: float = 10.0
) -> Report:
    """100,000 sockets open at once, subscribed and receiving, across worker processes."""
    began_s = time.monotonic()
    workers = workers or -(-sockets // (SOCKETS_PER_PROCESS_MAX - 1_000))
    made = uvloop.run(
        run_once(
            folder / "gateway-sockets",
            sockets,
            symbols,
            workers,
            seconds,
            False,
            catalogue=500,
            per_s=1 / EVERY_S,
            hosts=HOSTS,
            rate="1s",
        )
    )
    frames = made.total("frames")
    return Report(
        benchmark="gateway-sockets",
        figures=[
            at_least("sockets open at the end", made.total("open"), sockets),
            at_least("of them receiving", made.total("receiving"), sockets * 0.99),
            Figure("connected and subscribed a second", sockets / made.connect_s, "/s"),
            Figure("connections tried again", made.retries),
            Figure("delivered symbol updates a second", made.total("updates") / seconds, "/s"),
            Figure("frames a second", frames / seconds, "/s"),
            Figure("from flush to client, p50", made.worst("latency_us", 50) / 1e3, "ms"),
            Figure("from flush to client, p99", made.worst("latency_us", 99) / 1e3, "ms"),
            Figure("age added by conflation, p99", made.worst("age_us", 99) / 1e3, "ms"),
            Figure("workers' memory", made.rss_bytes / 2**20, "MiB"),
            *made.costs(seconds, frames),
        ],
        settings={"sockets": sockets, "symbols": symbols, "workers": workers, "seconds": seconds},
        host=host.describe(folder),
        seconds=time.monotonic() - began_s,
        notes=[
            f"symbols change every {EVERY_S:g} s, clients want them at most once a second; the load shares the cores"
        ],
    )


class Made(Struct):
    """connections: as the workers' memory was read."""

    counted: list[Counted]
    connect_s: float
    retries: int
    connections: int
    rss_bytes: int
    rss_more_bytes: int
    cpu_s: float
    core_cpu_s: float
    ticks_ms: list[float] = []
    """Of each worker, at the end."""

    def total(self, name: str) -> int:
        return sum(getattr(one, name) for one in self.counted)

    def worst(self, name: str, part: int) -> int:
        return max((getattr(one, name)[part] for one in self.counted if getattr(one, name)), default=0)

    def costs(self, seconds: float, frames: int) -> list[Figure]:
        load_cpu_s = sum(one.cpu_s for one in self.counted)
        return [
            Figure("workers' CPU for a frame", self.cpu_s / max(1, frames) * 1e6, "us"),
            Figure("memory for a connection", self.rss_more_bytes / max(1, self.connections) / 1024, "KiB"),
            Figure("tick of the slowest worker at the end", max(self.ticks_ms, default=0), "ms"),
            Figure("CPU of the workers", self.cpu_s / seconds * 100, "% of a core"),
            Figure("CPU of the core", self.core_cpu_s / seconds * 100, "% of a core"),
            Figure("CPU of the loads", load_cpu_s / seconds * 100, "% of a core"),
        ]


async def run_once(
    folder: Path,
    sockets: int,
    symbols: int,
    workers: int,
    seconds: float,
    json: bool,
    *,
    catalogue: int,
    per_s: float,
    hosts: Sequence[str],
    rate: str,
) -> Made:
    serving = Serving(folder, workers=workers, catalogue=catalogue, per_s=per_s, hosts=hosts)
    gc.collect()
    gc.freeze()  # a whole collection of what this program imports would hold the core for longer than a tick
    async with serving.running():
        before = serving.usage()
        whole = LoadOptions(
            hosts=serving.hosts, port=serving.port, sockets=sockets, symbols=symbols, catalogue=catalogue,
            token=serving.token, seed=1, json=json, rate=rate,
        )  # fmt: skip
        made = await measured(
            Loading(whole, loads=loads_for(sockets)), before, serving.usage, sockets=sockets, seconds=seconds
        )
        made.ticks_ms = sorted(tally["tick_ms"] for tally in serving.core.tallies.values())
    return made


async def measured(
    loading: Loading, before: Usage, usage: Callable[[], Usage], *, sockets: int, seconds: float
) -> Made:
    """Connect all, measure, and end the loads. usage: of the servers; before: without a client. Raises RunError."""
    try:
        loaded = await loading.connect(timeout_s=60.0 + sockets / 400)
        begin_s = time.time() + WARM_UP_S
        counting = asyncio.create_task(loading.measure(begin_s, begin_s + seconds))
        await asyncio.sleep(begin_s - time.time())
        from_, own = usage(), time.process_time()
        await asyncio.sleep(begin_s + seconds - time.time())
        to, own = usage(), time.process_time() - own
        counted = await counting
    finally:
        await loading.stop()
    return Made(
        counted, max(one.connect_s for one in loaded), sum(one.retries for one in loaded),
        sum(one.connected for one in loaded), to.rss_bytes, to.rss_bytes - before.rss_bytes, to.cpu_s - from_.cpu_s,
        own,
    )  # fmt: skip


def loads_for(sockets: int) -> int:
    """How many load processes these want."""
    return max(1, min(2, sockets // 1_000), -(-sockets // SOCKETS_PER_PROCESS_MAX))


def used(pids: Sequence[int]) -> Usage:
    """CPU seconds and resident bytes, by the kernel."""
    total = Usage(0.0, 0)
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
        except OSError:
            continue
        total.cpu_s += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        total.rss_bytes += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    return total


def free_port(hosts: Sequence[str]) -> int:
    """Free on all of them, below those that the kernel gives to clients. Raises RunError."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        try:
            for host_ in hosts:
                with socket.socket() as sock:
                    sock.bind((host_, port))
        except OSError:
            continue
        return port
    raise RunError("no free port")
