"""The benchmarks of the whole product: three members, durable, over the public API, load from another process."""

import asyncio
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import host, load
from bench.driver import Driver, longest_gap_s
from bench.flow import Act, Intent
from bench.market import Market
from bench.report import Figure, Report, at_least, at_most, exactly
from bench.running import LIMITS, Running, asked_of_process, run_loop, running
from bench.stats import spread
from bench.watching import caught_up, leader_of
from statemachine.inspection import inspect_store

SYMBOL = "BENCH"
PIPELINED_FLOOR_PER_S = 20_000
SINGLE_RATE_PER_S = 10_000
SINGLE_P99_MS = 50.0
ONE_P50_MS = 5.0
OUTAGE_P99_S = 1.0
KILL_WARMUP_S = 1.0
KILL_TIMEOUT_MS = 30_000


def pipelined(folder: Path, *, seconds: float = 10, seed: int = 1, path: str = "", frame: int = 50) -> Report:
    """WebSocket frames of 50 commands, many under way: what the product carries."""
    spec = spec_of("pipelined", seconds, seed, path)
    spec.frame = frame
    return _measured(
        "cluster-pipelined",
        folder,
        spec,
        lambda result: [
            at_least("order commands a second", result.per_s, PIPELINED_FLOOR_PER_S, "/s"),
            Figure("of them new orders a second", result.orders / result.seconds, "/s"),
            Figure("a frame of 50, p50", result.latency.p50_ms, "ms"),
            Figure("a frame of 50, p99", result.latency.p99_ms, "ms"),
            Figure("a frame of 50, longest", result.latency.max_ms, "ms"),
        ],
    )


def single(
    folder: Path, *, seconds: float = 10, seed: int = 1, path: str = "", rate_per_s: int = SINGLE_RATE_PER_S
) -> Report:
    """One command per message at a fixed rate, sent when due whether or not answers come (no coordinated omission)."""
    spec = spec_of("open", seconds, seed, path)
    spec.rate_per_s = rate_per_s
    return _measured(
        "cluster-single",
        folder,
        spec,
        lambda result: [
            at_least("order commands a second", result.per_s, rate_per_s * 0.99, "/s"),
            Figure("p50", result.latency.p50_ms, "ms"),
            at_most("p99", result.latency.p99_ms, SINGLE_P99_MS, "ms"),
            Figure("p99.9", result.latency.p999_ms, "ms"),
            Figure("longest", result.latency.max_ms, "ms"),
            exactly("not answered", result.unanswered, 0),
            Figure("the sender's own worst lateness", result.late_max_ms, "ms"),
        ],
    )


def one(folder: Path, *, seconds: float = 5, seed: int = 1, path: str = "") -> Report:
    """One command at a time: send, wait for the durable answer, send the next."""
    spec = spec_of("one", seconds, seed, path)
    return _measured(
        "cluster-one",
        folder,
        spec,
        lambda result: [
            at_most("p50", result.latency.p50_ms, ONE_P50_MS, "ms"),
            Figure("p99", result.latency.p99_ms, "ms"),
            Figure("longest", result.latency.max_ms, "ms"),
            Figure("commands a second", result.per_s, "/s"),
        ],
    )


def spec_of(mode: str, seconds: float, seed: int, path: str) -> load.Spec:
    """What to send, but to whom; see load.Spec."""
    run = f"{mode}-{time.time_ns():x}"
    return load.Spec(url="", token="", symbol=SYMBOL, mode=mode, run=run, seconds=seconds, seed=seed, path=path)


def _measured(name: str, folder: Path, spec: load.Spec, figures: Callable[[load.Result], list[Figure]]) -> Report:
    began = time.monotonic()
    market = Market(SYMBOL)
    with running(folder / name, limits=LIMITS) as cluster:
        run_loop(cluster.open_market(market))
        result, leader = run_loop(load_leader(cluster, market, spec))
    notes = []
    if result.errors:
        notes.append(f"turned away: {result.errors}")
    if result.refused:
        notes.append(f"refused by the rules: {result.refused}")
    return Report(
        benchmark=name,
        figures=[
            *figures(result),
            *(
                Figure(f"CPU of {name}", 100 * spent / spec.seconds, "% of a core")
                for name, spent in result.cpu_s.items()
            ),
            Figure("CPU of all for a command", sum(result.cpu_s.values()) / max(1, result.commands) * 1e6, "us"),
        ],
        settings={
            "members": len(cluster.members),
            "durable": True,
            "connection": f"WebSocket to the leader ({leader}), msgpack",
            "frame": spec.frame if spec.mode == "pipelined" else 1,
            "under_way": spec.frames_under_way
            if spec.mode == "pipelined"
            else 1
            if spec.mode == "one"
            else "open loop",
            "rate_per_s": spec.rate_per_s if spec.mode == "open" else 0,
            "warmup_s": spec.warmup_s,
            "seconds": spec.seconds,
            "flow": spec.path or f"generator, seed {spec.seed}",
        },
        host=host.describe(folder),
        seconds=time.monotonic() - began,
        notes=notes,
        percentiles={"a frame" if spec.mode == "pipelined" else "a command": result.latency},
    )


async def load_leader(cluster: Running, market: Market, spec: load.Spec) -> tuple[load.Result, str]:
    """Load a market that is open, from a process of its own: the result, and who led. Raises RunError."""
    async with cluster.client("auditor", ("*",)) as auditor:
        leader = await leader_of(cluster, auditor)
    spec.url = cluster.url(leader)
    spec.token = cluster.token("trader", market.accounts)
    spec.pids = {name: pid for name in cluster.launcher.members if (pid := cluster.launcher.running(name)) is not None}
    return await asked_of_process("bench.load", spec, load.Result), leader


def kill(folder: Path, *, kills: int = 50, rate_per_s: int = 1_000, seed: int = 1, path: str = "") -> Report:
    """SIGKILL of the leader under load, again and again; then every command is asked for once more."""
    began = time.monotonic()
    market = Market(SYMBOL)
    with running(folder / "kill", limits=LIMITS) as cluster:
        timing = cluster.folder.topology().timing
        figures, notes = run_loop(_kill(cluster, market, kills, rate_per_s, load.intents_of(path, seed), seed))
    return Report(
        benchmark="kill",
        figures=figures,
        settings={
            "kills": kills,
            "rate_per_s": rate_per_s,
            "members": len(cluster.members),
            "flow": path or f"generator, seed {seed}",
            "heartbeat_ms": timing.heartbeat_ms,
            "election_ms": f"{timing.election_ms_min} to {timing.election_ms_max}",
        },
        host=host.describe(folder),
        seconds=time.monotonic() - began,
        notes=[
            "outage: the longest time without an acknowledgement around a kill, as one client sees it",
            "lost and duplicated: every acknowledged command is sent again with its key after the last kill",
            *notes,
        ],
    )


async def _kill(
    cluster: Running, market: Market, kills: int, rate_per_s: int, intents: Iterator[Intent], seed: int
) -> tuple[list[Figure], list[str]]:
    await cluster.open_market(market)
    draws = random.Random(seed)
    outages: list[float] = []
    returned: list[float] = []
    trader = cluster.client("trader", market.accounts, timeout_ms=KILL_TIMEOUT_MS)
    async with trader, cluster.client("auditor", ("*",)) as auditor:
        driver = Driver(trader, market, intents, run=f"kill-{time.time_ns():x}", frame=10, rate_per_s=rate_per_s)
        sending = asyncio.create_task(driver.send(1 << 60))
        try:
            for _ in range(kills):
                await asyncio.sleep(KILL_WARMUP_S + draws.random())
                leader = await leader_of(cluster, auditor)
                at = time.monotonic()
                cluster.launcher.signal(leader, signal.SIGKILL)  # not `kill`: that waits, and the load with it
                await leader_of(cluster, auditor)
                await asyncio.sleep(1.0)
                cluster.launcher.start(leader, die_with_us=True)
                returned.append(await caught_up(auditor, leader))
                outages.append(longest_gap_s(driver.answered_at, at, after_s=5.0))
                if sending.done():
                    sending.result()
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        driver.abandon()
        probe = market.request(Intent(Act.place, 0, 0, 1, 100, 1), f"probe-{time.time_ns():x}", "", "")
        checked = await driver.check(probe)
    lasted = spread([outage * 1e3 for outage in outages])
    return [
        exactly("acknowledged, then lost", checked.lost, 0),
        exactly("answered otherwise when asked again", checked.changed, 0),
        exactly("executed twice", checked.twice, 0),
        Figure("outage p50", lasted.p50_ms, "ms"),
        at_most("outage p99", lasted.p99_ms, OUTAGE_P99_S * 1e3, "ms"),
        Figure("outage longest", lasted.max_ms, "ms"),
        Figure("killed member has caught up after, longest", max(returned, default=0.0), "s"),
        Figure("commands checked", checked.asked),
    ], [f"unknown to the client at the end: {len(driver.unknown)}"] if driver.unknown else []


def disk(folder: Path, *, commands: int = 100_000, seed: int = 1, path: str = "") -> Report:
    """What an order costs on disk, once all is stored: the store by kind of record, and the log as it stands."""
    began = time.monotonic()
    market = Market(SYMBOL)
    root = folder / "disk"
    with running(root, limits=LIMITS) as cluster:
        driver = run_loop(_fill(cluster, market, commands, load.intents_of(path, seed)))
        cluster.launcher.stop()
        replica = cluster.replicas[0]
        data = cluster.folder.data(replica)
        found = inspect_store(data / "store")
    orders = driver.acts[Act.place] + driver.acts[Act.take]
    store_bytes = sum(found.bytes_on_disk.values())
    total = sum(file.stat().st_blocks * 512 for file in data.rglob("*") if file.is_file())
    return Report(
        benchmark="disk",
        figures=[
            Figure("bytes of the store for an order", store_bytes / orders, "B"),
            *(Figure(f"  {kind}", value, "B") for kind, value in sorted(found.bytes_per_order.items())),
            Figure("bytes of the member's folder (store, log, free pages) for an order", total / orders, "B"),
            exactly("findings of the audit", len(found.findings), 0),
            Figure("new orders", orders),
            Figure("commands", driver.answered),
        ],
        settings={"commands": commands, "replica": replica, "flow": path or f"generator, seed {seed}"},
        host=host.describe(folder),
        seconds=time.monotonic() - began,
    )


async def _fill(cluster: Running, market: Market, commands: int, intents: Iterator[Intent]) -> Driver:
    await cluster.open_market(market)
    async with cluster.client("trader", market.accounts) as trader:
        driver = Driver(trader, market, intents, run=f"disk-{time.time_ns():x}")
        await driver.send(commands)
    return driver
