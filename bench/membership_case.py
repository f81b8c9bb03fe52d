"""The benchmark of members that come and go: a replica is replaced under load, and a read replica is added."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench import host, load
from bench.driver import Driver, longest_gap_s
from bench.flow import Act, Intent
from bench.market import Market
from bench.report import Figure, Report, exactly
from bench.running import LIMITS, RunError, Running, run_loop, running
from bench.stats import spread
from bench.watching import LOOK_S, WAIT_S, leader_of, views
from cluster.client import Client, ClientError
from cluster.folder import add_member
from cluster.topology import MemberRole, Standing
from node.cli import joining

SYMBOL = "BENCH"
TIMEOUT_MS = 10_000
UNDER_WAY_MAX = 1_000_000
LOG_RESERVE = 100
"""Entries that every replica's log keeps. With the default a new member would find all of a short run in the log, and
need no snapshot."""
QUIET_S = 1.0
CATCH_UP_S = 300.0
CLOSE_ENTRIES = 10
INSTALLS = b"leaving to install a snapshot"
DIGEST_TRIES = 50


class Step(NamedTuple):
    """began: by time.monotonic(). took_s: until it was done."""

    name: str
    began: float
    took_s: float


def membership(
    folder: Path, *, commands: int = 100_000, rate_per_s: int = 1_000, seed: int = 1, path: str = ""
) -> Report:
    """A replica is replaced and a read replica added, under load: no request may fail."""
    began = time.monotonic()
    market = Market(SYMBOL)
    with running(folder / "membership", limits={**LIMITS, "log_reserve": LOG_RESERVE}) as cluster:
        intents = load.intents_of(path, seed)
        figures = run_loop(_run(cluster, market, intents, commands=commands, rate_per_s=rate_per_s))
    return Report(
        benchmark="membership",
        figures=figures,
        settings={
            "commands_before": commands,
            "rate_per_s": rate_per_s,
            "log_reserve": LOG_RESERVE,
            "deadline_ms": TIMEOUT_MS,
            "flow": path or f"generator, seed {seed}",
        },
        host=host.describe(folder),
        seconds=time.monotonic() - began,
        notes=[
            "caught up: from the start of its process until it lacked at most "
            f"{CLOSE_ENTRIES} entries of the leader's log; the process starts on the machine that is measured",
            "open loop: commands are sent one by one when due, and latency counts from then",
        ],
    )


async def _run(
    cluster: Running, market: Market, intents: Iterator[Intent], *, commands: int, rate_per_s: int
) -> list[Figure]:
    await cluster.open_market(market)
    run = f"membership-{time.time_ns():x}"
    async with (
        cluster.client("trader", market.accounts, timeout_ms=TIMEOUT_MS) as trader,
        cluster.client("operator", timeout_ms=TIMEOUT_MS) as operator,
        cluster.client("auditor", ("*",)) as auditor,
    ):
        # What is there before the first member comes is checked afterwards, too, so it is kept by a driver as well.
        filling = Driver(trader, market, intents, run=f"{run}-before")
        await filling.send(commands)
        driver = Driver(
            trader, market, intents, run=run, frame=1, frames_under_way=UNDER_WAY_MAX, rate_per_s=rate_per_s
        )
        sending = asyncio.create_task(driver.send(1 << 60))
        try:
            steps = await _steps(cluster, operator, auditor)
            if sending.done():
                sending.result()
            driver.stop()
            await sending
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        driver.kept[:0] = filling.kept
        driver.unknown[:0] = filling.unknown
        probe = market.request(Intent(Act.place, 0, 0, 1, 100, 1), f"probe-{time.time_ns():x}", "", "")
        checked = await driver.check(probe)
    async with cluster.client("auditor", ("*",)) as auditor:
        differing = await _differing_digests(auditor)
    sent = spread(driver.latencies_ms)
    store_bytes = _bytes(cluster.folder.data(cluster.replicas[0]) / "store")
    return [
        exactly("requests failed", driver.turned_away.total() + len(driver.unknown) - len(filling.unknown), 0),
        exactly("acknowledged, then lost", checked.lost, 0),
        exactly("answered otherwise when asked again", checked.changed, 0),
        exactly("executed twice", checked.twice, 0),
        exactly("replicas whose digest differs at the end", differing, 0),
        *(Figure(f"{step.name} after", step.took_s * 1e3, "ms") for step in steps),
        *(_pause(driver, step) for step in steps),
        Figure("snapshots that new members installed", sum(_installs(cluster, name) for name in cluster.replicas)),
        Figure("a replica's store at the end", store_bytes / 2**20, "MiB"),
        Figure("latency while members changed, p50", sent.p50_ms, "ms"),
        Figure("  p99", sent.p99_ms, "ms"),
        Figure("  longest", sent.max_ms, "ms"),
        Figure("the sender's own worst lateness", driver.late_max_ms, "ms"),
        Figure("sent again by the client library", driver.resent),
        Figure("requests", len(driver.latencies_ms)),
    ]


async def _steps(cluster: Running, operator: Client, auditor: Client) -> list[Step]:
    steps: list[Step] = []
    await asyncio.sleep(QUIET_S)
    leader = await leader_of(cluster, auditor)
    old = next(name for name in cluster.replicas if name != leader)
    new, reader = f"{old}-new", f"{old}-read"

    def done(name: str, began: float) -> None:
        steps.append(Step(name, began, time.monotonic() - began))

    try:
        began = time.monotonic()
        await _add(cluster, operator, new, like=old, standing=Standing.learner)
        done("a replica is added, as a learner", began)
        began = time.monotonic()
        cluster.launcher.start(new, die_with_us=True)
        await _caught_up(operator, new)
        done("the new replica has caught up", began)
        began = time.monotonic()
        joining.save(cluster.folder, await operator.promote_member(new, timeout_ms=int(WAIT_S * 1e3)))
        done("the new replica votes", began)
        began = time.monotonic()
        joining.save(cluster.folder, await operator.remove_member(old, timeout_ms=int(WAIT_S * 1e3)))
        cluster.look_again()
        done("the old one is removed", began)
        while cluster.launcher.running(old) is not None:
            if time.monotonic() - began > WAIT_S:
                raise RunError(f"{old} was removed and still runs after {WAIT_S} s")
            await asyncio.sleep(LOOK_S)
        done("the old one has left", began)
        await asyncio.sleep(QUIET_S)
        began = time.monotonic()
        await _add(cluster, operator, reader, like=new, standing=Standing.read_replica)
        done("a read replica is added", began)
        began = time.monotonic()
        cluster.launcher.start(reader, die_with_us=True)
        await _caught_up(operator, reader)
        done("the read replica has caught up", began)
    except ClientError as error:
        raise RunError(f"after {steps[-1].name if steps else 'nothing'}: {error}") from error
    await asyncio.sleep(QUIET_S)
    return steps


async def _add(cluster: Running, operator: Client, name: str, *, like: str, standing: Standing) -> None:
    folder = cluster.folder
    site = folder.topology().member(like).site
    asked = joining.plan(folder, name, None, site=site, role=MemberRole.replica, standing=standing, peer="", api="")
    await asyncio.to_thread(add_member, folder, name)  # a key takes long to make, and the load is not to wait
    joining.save(folder, await operator.add_member(asked))
    cluster.look_again()


async def _caught_up(operator: Client, name: str) -> None:
    began = time.monotonic()
    while time.monotonic() - began < CATCH_UP_S:
        found = joining.of_view(await operator.cluster_members(), name)
        if found is not None and found.connected and found.joined and (found.lag or 0) <= CLOSE_ENTRIES:
            return
        await asyncio.sleep(LOOK_S)
    raise RunError(f"{name} has not caught up within {CATCH_UP_S} s")


async def _differing_digests(auditor: Client) -> int:
    """How many replicas have another digest than the first, at one index that all have applied. Raises RunError."""
    for _ in range(DIGEST_TRIES):
        seen = [view for view in views(await auditor.members()) if view.role == "replica"]
        index = min((view.applied_index for view in seen), default=0)
        digests = {
            view.name: view.digest
            for view in views(await auditor.members(digest_at=index))
            if view.role == "replica" and view.digest_index == index and view.digest
        }
        if seen and len(digests) == len(seen):
            return sum(digest != digests[seen[0].name] for digest in digests.values())
        await asyncio.sleep(LOOK_S)
    raise RunError("the replicas told no digests at one index")


def _pause(driver: Driver, step: Step) -> Figure:
    pause_s = longest_gap_s(driver.answered_at, step.began, after_s=step.took_s)
    return Figure(f"longest pause between two answers: {step.name}", pause_s * 1e3, "ms")


def _installs(cluster: Running, name: str) -> int:
    return cluster.folder.log(name).read_bytes().count(INSTALLS)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())
