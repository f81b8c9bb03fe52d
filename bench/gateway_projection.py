"""The benchmark of a gateway's projection behind a real cluster: events a second, and how far behind the node it is."""

import asyncio
import sys
import time
from bisect import bisect_left
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from bench import host, load
from bench.cluster_cases import load_leader, spec_of
from bench.gateway_following import Result, Spec
from bench.market import CASH, Market
from bench.report import Figure, Report
from bench.running import LIMITS, RunError, Running, check, run_loop, running
from bench.stats import Spread, spread
from bench.watching import applied
from cluster.wire import TransferFunds
from gateway.feeds.clock import now_us
from gateway.tasks import end

SYMBOL = "BENCH"
RATE_PER_S = 1_000
PROBES_PER_S = 20
"""Commands by which it is found when a gateway knows what a client was told."""
READY_S = 30.0
SETTLE_S = 1.0
END_S = 5.0
CATCH_UP_S = 300.0
LINE_BYTES_MAX = 64 << 20


def projection(
    folder: Path, *, seconds: float = 5, rate_per_s: int = RATE_PER_S, seed: int = 1, path: str = ""
) -> Report:
    """A gateway follows a cluster under load: lag and CPU at a rate, at the most there is, and from far behind."""
    began = time.monotonic()
    market = Market(SYMBOL)
    with running(folder / "gateway-projection", limits=LIMITS) as cluster:
        figures, snapshots = run_loop(_measured(cluster, market, seconds, rate_per_s, seed, path))
    return Report(
        benchmark="gateway-projection",
        figures=figures,
        settings={
            "members": len(cluster.members),
            "seconds": seconds,
            "rate_per_s": rate_per_s,
            "probes_per_s": PROBES_PER_S,
            "projectors": "accounts, books, portfolios, leaderboard",
            "cache": "a server of its own on a unix socket, every 50 ms what changed",
            "flow": path or f"generator, seed {seed}",
        },
        host=host.describe(folder),
        seconds=time.monotonic() - began,
        notes=[
            "behind the leader's stamp: includes the commit; of the oldest event of each message",
            "behind an answer: from when a client had its answer until the gateway knew it (what a session waits)",
            "cluster, load generator, cache server and gateway share the machine",
            *([f"{snapshots} snapshots were read: the feed's beginning was gone"] if snapshots else []),
        ],
    )


async def _measured(
    cluster: Running, market: Market, seconds: float, rate_per_s: int, seed: int, path: str
) -> tuple[list[Figure], int]:
    await cluster.open_market(market)
    nodes = [cluster.url(name) for name in cluster.replicas]
    token = cluster.token("auditor", ("*",))
    figures: list[Figure] = []
    async with _following(Spec(nodes, token, cached=True)) as gateway:
        await gateway.ready()
        for mode, title in (("open", f"{rate_per_s:,} commands/s"), ("pipelined", "the most that the cluster takes")):
            wanted = spec_of(mode, seconds, seed, path)
            wanted.rate_per_s = rate_per_s
            wanted.warmup_s = min(wanted.warmup_s, seconds)
            answered: list[tuple[int, int]] = []
            await gateway.say("measure")
            probes = asyncio.create_task(_probe(cluster, market.accounts[0], answered))
            try:
                sent, _ = await load_leader(cluster, market, wanted)
            finally:
                await end(probes)
            await asyncio.sleep(SETTLE_S)
            await gateway.say("report")
            found = await gateway.result()
            figures += _live(title, sent, found, behind(answered, found.reached))
    async with cluster.client("auditor", ("*",)) as auditor:
        until = await applied(auditor)
    snapshots = 0
    for cached in (False, True):
        spec = Spec(nodes, token, cached=cached, until_index=until)
        async with _following(spec) as gateway:
            found = await gateway.result(within_s=CATCH_UP_S)
        snapshots += found.snapshots
        figures += _from_behind("with the cache" if cached else "without a cache", found, cached=cached)
    return figures, snapshots


class _Gateway:
    """The process that follows."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        if process.stdin is None or process.stdout is None:
            raise ValueError("the process was started without pipes")
        self._process, self._in, self._out = process, process.stdin, process.stdout

    async def say(self, word: str) -> None:
        self._in.write(word.encode() + b"\n")
        await self._in.drain()

    async def hear(self, within_s: float) -> bytes:
        try:
            async with asyncio.timeout(within_s):
                line = await self._out.readline()
        except TimeoutError:
            raise RunError(f"the gateway said nothing for {within_s:g} s") from None
        if not line:
            raise RunError(f"the gateway ended with exit code {await self._process.wait()}")
        return line

    async def ready(self) -> None:
        await self.hear(READY_S)

    async def result(self, within_s: float = READY_S) -> Result:
        return msgspec.json.decode(await self.hear(within_s), type=Result)

    async def end(self) -> None:
        """It ends when nothing more can be said to it, and its cache server with it."""
        self._in.close()
        try:
            async with asyncio.timeout(END_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def _following(spec: Spec) -> AsyncIterator[_Gateway]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.gateway_following", stdin=pipe, stdout=pipe, limit=LINE_BYTES_MAX
    )
    gateway = _Gateway(process)
    try:
        await gateway.say(msgspec.json.encode(spec).decode())
        yield gateway
    finally:
        await gateway.end()


async def _probe(cluster: Running, account: str, answered: list[tuple[int, int]]) -> None:
    """A command now and then: (its log index, when its answer was here), until cancelled."""
    async with cluster.client("custodian", ("*",)) as custodian:
        while True:
            done = check(
                await custodian.submit(TransferFunds(kind="deposit", account=account, asset=CASH, amount="0.01"))
            )
            answered.append((done.index, now_us()))
            await asyncio.sleep(1 / PROBES_PER_S)


def behind(answered: list[tuple[int, int]], reached: list[tuple[int, int]]) -> Spread:
    """How much later than its client the gateway knew each of them; below 0: sooner."""
    indexes = [index for index, _ in reached]
    behind_ms: list[float] = []
    for index, at_us in answered:
        place = bisect_left(indexes, index)
        if place < len(reached):
            behind_ms.append((reached[place][1] - at_us) / 1e3)
    return spread(behind_ms)


def _live(title: str, sent: load.Result, found: Result, behind: Spread) -> list[Figure]:
    events = max(found.events, 1)
    return [
        Figure(f"{title}: order commands a second", sent.per_s, "/s"),
        Figure("  events projected", found.events),
        Figure("  events projected in the busiest second", found.busiest_per_s, "/s"),
        Figure("  behind the leader's stamp, p50", found.lag.p50_ms, "ms"),
        Figure("  behind the leader's stamp, p99", found.lag.p99_ms, "ms"),
        Figure("  behind an answer, p50", behind.p50_ms, "ms"),
        Figure("  behind an answer, p99", behind.p99_ms, "ms"),
        Figure("  behind an answer, longest", behind.max_ms, "ms"),
        Figure("  answers compared", behind.count),
        Figure("  events in a message", events / max(found.messages, 1)),
        Figure("  CPU of the gateway for an event", found.cpu_s / events * 1e6, "us"),
        Figure("  CPU of the cache server for an event", found.cache_cpu_s / events * 1e6, "us"),
    ]


def _from_behind(title: str, found: Result, *, cached: bool) -> list[Figure]:
    events = max(found.events, 1)
    figures = [
        Figure(f"from the feed's beginning, {title}: events a second", found.events / found.seconds, "/s"),
        Figure("  events", found.events),
        Figure("  events for a second of its CPU", found.events / max(found.cpu_s, 1e-9), "/s"),
        Figure("  CPU for an event", found.cpu_s / events * 1e6, "us"),
    ]
    if cached:
        return [*figures, Figure("  the cache had it all after another", found.cache_behind_ms, "ms")]
    return [*figures, Figure("a portfolio's view and its JSON, of CPU", found.view_us, "us")]
