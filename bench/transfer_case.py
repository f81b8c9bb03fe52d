"""The benchmark of planned hand-overs: leadership goes back and forth under load, and nobody may notice."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from bench import host, load
from bench.driver import Driver, longest_gap_s
from bench.flow import Act, Intent
from bench.lines import Line
from bench.market import Market
from bench.report import Figure, Report, at_most, exactly
from bench.running import LIMITS, RunError, Running, run_loop, running
from bench.stats import percentile, spread
from bench.watching import LOOK_S, WAIT_S, caught_up, leader_of
from cluster.client import Client, ClientError

SYMBOL = "BENCH"
PAUSE_MS_MAX = 200.0
BETWEEN_S = 1.0
BEFORE_S = 0.2
AFTER_S = 1.0
"""Commands that were due from shortly before a hand-over until so long after it count as around it."""
TIMEOUT_MS = 10_000
RESENT = "tiebreak_commands_resent_total"
UNDER_WAY_MAX = 1_000_000
"""Frames: as many as are due. The load is an open loop."""


class HandOver(NamedTuple):
    """began: when it was asked for, by time.monotonic(). took_s: until another member was known to lead."""

    began: float
    took_s: float


def transfer(
    folder: Path, *, transfers: int = 20, rate_per_s: int = 1_000, by: str = "api", seed: int = 1, path: str = ""
) -> Report:
    """Planned hand-overs under load: no request may fail, no pause may last 200 ms."""
    began = time.monotonic()
    market = Market(SYMBOL)
    with running(folder / "transfer", limits=LIMITS) as cluster:
        timing = cluster.folder.topology().timing
        intents = load.intents_of(path, seed)
        way = WAYS[by]
        figures = run_loop(_transfers(cluster, market, intents, transfers=transfers, rate_per_s=rate_per_s, way=way))
    return Report(
        benchmark="transfer",
        figures=figures,
        settings={
            "transfers": transfers,
            "by": by,
            "rate_per_s": rate_per_s,
            "deadline_ms": TIMEOUT_MS,
            "members": len(cluster.members),
            "flow": path or f"generator, seed {seed}",
            "heartbeat_ms": timing.heartbeat_ms,
            "election_ms": f"{timing.election_ms_min} to {timing.election_ms_max}",
        },
        host=host.describe(folder),
        seconds=time.monotonic() - began,
        notes=[
            "open loop: commands are sent one by one when due, and latency counts from then",
            "failed: anything but the command's own outcome, after what the client library tries within its deadline",
            f"around a hand-over: due from {BEFORE_S} s before it is asked for until {AFTER_S} s after another led",
        ],
    )


async def _transfers(
    cluster: Running, market: Market, intents: Iterator[Intent], *, transfers: int, rate_per_s: int, way: "Way"
) -> list[Figure]:
    await cluster.open_market(market)
    over: list[HandOver] = []
    async with (
        cluster.client("trader", market.accounts, timeout_ms=TIMEOUT_MS) as trader,
        cluster.client("operator", timeout_ms=TIMEOUT_MS) as operator,
        cluster.client("auditor", ("*",)) as auditor,
    ):
        driver = Driver(
            trader,
            market,
            intents,
            run=f"transfer-{time.time_ns():x}",
            frame=1,
            frames_under_way=UNDER_WAY_MAX,
            rate_per_s=rate_per_s,
        )
        sending = asyncio.create_task(driver.send(1 << 60))
        try:
            for _ in range(transfers):
                await asyncio.sleep(BETWEEN_S)
                over.append(await way(cluster, operator, auditor))
                if sending.done():
                    sending.result()
            await asyncio.sleep(BETWEEN_S)
            driver.stop()
            await sending
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        probe = market.request(Intent(Act.place, 0, 0, 1, 100, 1), f"probe-{time.time_ns():x}", "", "")
        checked = await driver.check(probe)
    by_members = sum([await _resent(cluster, name) for name in cluster.replicas])
    pauses = [longest_gap_s(driver.answered_at, one.began, after_s=one.took_s + AFTER_S) * 1e3 for one in over]
    around, quiet = _split(driver, over)
    return [
        exactly("requests failed", driver.turned_away.total() + len(driver.unknown), 0),
        *(Figure(f"  {error}", count) for error, count in driver.turned_away.items()),
        *([Figure("  outcome unknown", len(driver.unknown))] if driver.unknown else []),
        exactly("acknowledged, then lost", checked.lost, 0),
        exactly("answered otherwise when asked again", checked.changed, 0),
        exactly("executed twice", checked.twice, 0),
        Figure("longest pause between two answers around a hand-over, p50", percentile(pauses, 50), "ms"),
        at_most("  of all hand-overs", max(pauses), PAUSE_MS_MAX, "ms"),
        Figure("longest pause at any time, restarts included", _longest_ms(driver), "ms"),
        Figure("another member led after, p50", percentile([one.took_s for one in over], 50) * 1e3, "ms"),
        Figure("  longest", max(one.took_s for one in over) * 1e3, "ms"),
        Figure("sent again by the client library", driver.resent),
        Figure("sent again by members, each since it was started last", by_members),
        *_latency("latency around a hand-over", around),
        *_latency("latency at other times", quiet),
        Figure("the sender's own worst lateness", driver.late_max_ms, "ms"),
        Figure("requests", driver.answered),
    ]


async def _resent(cluster: Running, name: str) -> int:
    line = await Line.open(cluster.url(name), cluster.token("auditor", ("*",)))
    try:
        lines = (await line.get("/metrics")).body.decode().splitlines()
    finally:
        line.close()
    return int(sum(float(text.split()[-1]) for text in lines if text.startswith(RESENT)))


def _longest_ms(driver: Driver) -> float:
    ordered = sorted(driver.answered_at)
    return max((later - earlier for earlier, later in pairwise(ordered)), default=0.0) * 1e3


def _latency(name: str, values_ms: list[float]) -> list[Figure]:
    found = spread(values_ms)
    shown = {"p50": found.p50_ms, "p99": found.p99_ms, "p99.9": found.p999_ms, "longest": found.max_ms}
    return [Figure(f"{name}, {what}", value, "ms") for what, value in shown.items()]


def _split(driver: Driver, over: list[HandOver]) -> tuple[list[float], list[float]]:
    """Latencies in ms of what was due around a hand-over, and of the rest."""
    parts: tuple[list[float], list[float]] = ([], [])
    for answered_at, latency_ms in zip(driver.answered_at, driver.latencies_ms, strict=True):
        due = answered_at - latency_ms / 1e3
        near = any(one.began - BEFORE_S <= due <= one.began + one.took_s + AFTER_S for one in over)
        parts[0 if near else 1].append(latency_ms)
    return parts


async def by_api(cluster: Running, operator: Client, auditor: Client) -> HandOver:
    """An operator asks for it. Raises RunError."""
    leader = await leader_of(cluster, auditor)
    target = next(name for name in cluster.replicas if name != leader)
    began = time.monotonic()
    try:
        await operator.transfer_leadership(target, source=leader)
    except ClientError as error:
        raise RunError(f"leadership was not handed from {leader} to {target}: {error}") from error
    found = HandOver(began, time.monotonic() - began)
    if await leader_of(cluster, auditor) != target:
        raise RunError(f"{target} does not lead")
    return found


async def by_sigterm(cluster: Running, operator: Client, auditor: Client) -> HandOver:
    """The leader is asked to leave, as in a rolling deploy, and started again. Raises RunError."""
    leader = await leader_of(cluster, auditor)
    began = time.monotonic()
    cluster.launcher.signal(leader, signal.SIGTERM)
    while await cluster.leader(auditor) in ("", leader):
        if time.monotonic() - began > WAIT_S:
            raise RunError(f"nobody followed {leader} within {WAIT_S} s")
        await asyncio.sleep(LOOK_S / 5)
    found = HandOver(began, time.monotonic() - began)
    while cluster.launcher.running(leader) is not None:
        if time.monotonic() - began > WAIT_S:
            raise RunError(f"{leader} was asked to leave and still runs after {WAIT_S} s")
        await asyncio.sleep(LOOK_S)
    cluster.launcher.start(leader, die_with_us=True)
    await caught_up(auditor, leader)
    return found


Way = Callable[[Running, Client, Client], Awaitable[HandOver]]
WAYS: dict[str, Way] = {"api": by_api, "sigterm": by_sigterm}
