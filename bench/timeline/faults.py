"""Latency over time while something befalls a member: a snapshot is taken and sent, the leader dies, a site is cut."""

import asyncio
import shutil
import signal
import time
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from bench import host
from bench.report import Figure, Report, at_most
from bench.running import LIMITS, RunError, Running, run_loop, running
from bench.sweep.arrivals import Step
from bench.sweep.openloop import Spec
from bench.sweep.playing import open_market, pids_of, tokens_of
from bench.sweep.trades import Flow
from bench.timeline.audit import lots_bought, unaccounted
from bench.timeline.drawing import curves, longest_silence_s
from bench.timeline.links import Links
from bench.timeline.reporting import audit, endings, latencies, notes
from bench.timeline.watched import Script, Watched, watch
from bench.watching import caught_up, leader_of
from cluster.client import Client

RATE_PER_S = 2_000
CONNECTIONS = 32
CALM_S = 8.0
"""Before anything breaks."""
AFTER_S = 10.0
AWAY_S = 8.0
"""How long a killed member stays away, and how long a site is cut off."""
WIDTH_S = 0.25
OUTAGE_MS_MAX = 1_000.0
SNAPSHOT_S = 20.0
FILLING_PER_S = 15_000
FILLING_FRAME = 50
LOG_RESERVE = 100
"""Entries that every replica's log keeps. With the default a short run would all be in the log, without a snapshot."""
CATCH_UP_S = 120.0
INSTALLS = b"leaving to install a snapshot"


class Told(NamedTuple):
    """A run, its audit, and what only this benchmark has to say."""

    found: Watched
    unaccounted: int
    all_done: tuple[str, ...]
    figures: list[Figure]
    notes: tuple[str, ...] = ()


def spec_of(cluster: Running, flow: Flow, members: list[str], rate_per_s: float, seconds: float, seed: int) -> Spec:
    """Orders one by one, asked for again as a client library does where no answer came."""
    return Spec(
        urls=[cluster.url(name) for name in members],
        tokens=tokens_of(cluster, flow),
        flow=flow,
        run=f"time-{time.time_ns():x}",
        connections=CONNECTIONS,
        steps=[Step(seconds, rate_per_s)],
        retry=True,
        drain_s=15.0,
        seed=seed,
        pids=pids_of(cluster),
    )


def time_snapshot(folder: Path, *, commands: int = 150_000, rate_per_s: int = RATE_PER_S, seed: int = 1) -> Report:
    """Latency over time while the leader takes a snapshot and a replica that lost its disk is filled with it."""
    began = time.monotonic()
    with running(folder / "time-snapshot", limits={**LIMITS, "log_reserve": LOG_RESERVE}) as cluster:
        told = run_loop(_snapshot(cluster, commands, rate_per_s, seed))
    return _report("time-snapshot", folder, told, rate_per_s, seed, began, {"commands_before": commands})


async def _snapshot(cluster: Running, commands: int, rate_per_s: int, seed: int) -> Told:
    flow = await open_market(cluster)
    members = cluster.replicas
    filling = spec_of(cluster, flow, members, FILLING_PER_S, commands / FILLING_PER_S, seed)
    filling.frame_max, filling.connections = FILLING_FRAME, 2
    filled = await watch({"": filling}, words="filling the store")
    async with cluster.client("auditor", ("*",)) as auditor:
        leader = await leader_of(cluster, auditor)
        lost = next(name for name in members if name != leader)
        store_bytes = _bytes(cluster.folder.data(leader) / "store")
        took: list[float] = []

        async def script(s: Script) -> None:
            await s.until(CALM_S)
            with s.mark("snapshot is taken, replica filled"):
                cluster.launcher.signal(lost, signal.SIGKILL)
                await asyncio.to_thread(cluster.launcher.kill, lost)
                await asyncio.to_thread(shutil.rmtree, cluster.folder.data(lost))
                # Not in a thread: a member dies with the thread that started it.
                cluster.launcher.start(lost, die_with_us=True)
                took.append(await caught_up(auditor, lost, timeout_s=CATCH_UP_S))

        before = await lots_bought(cluster, flow)
        spec = spec_of(cluster, flow, members, rate_per_s, CALM_S + SNAPSHOT_S, seed + 1)
        found = await watch({"": spec}, script, words="a replica is filled")
        lots = await lots_bought(cluster, flow) - before
    if INSTALLS not in cluster.folder.log(lost).read_bytes():
        raise RunError("the replica came back without a snapshot: there was nothing to measure")
    return Told(
        found,
        unaccounted(lots, found),
        ("",),
        [
            Figure("the replica was back and had caught up after", took[0], "s"),
            Figure("the leader's store", store_bytes / 2**20, "MiB"),
            Figure("orders before", filled.done),
        ],
    )


def time_leader_kill(folder: Path, *, rate_per_s: int = RATE_PER_S, seed: int = 1) -> Report:
    """Latency over time while the leader is killed, another leads, and it comes back."""
    began = time.monotonic()
    with running(folder / "time-leader-kill", limits=LIMITS) as cluster:
        told = run_loop(_leader_kill(cluster, rate_per_s, seed))
    return _report("time-leader-kill", folder, told, rate_per_s, seed, began, {"away_s": AWAY_S})


async def _leader_kill(cluster: Running, rate_per_s: int, seed: int) -> Told:
    flow = await open_market(cluster)
    async with cluster.client("auditor", ("*",)) as auditor:
        leader = await leader_of(cluster, auditor)
        took: list[float] = []

        async def script(s: Script) -> None:
            await s.until(CALM_S)
            began = time.monotonic()
            with s.mark("no leader"):
                cluster.launcher.signal(leader, signal.SIGKILL)  # not `kill`: that waits
                await _another_leads(cluster, leader)
            took.append(time.monotonic() - began)
            await s.until(CALM_S + AWAY_S)
            with s.mark("it comes back"):
                cluster.launcher.start(leader, die_with_us=True)
                took.append(await caught_up(auditor, leader))

        before = await lots_bought(cluster, flow)
        spec = spec_of(cluster, flow, cluster.replicas, rate_per_s, CALM_S + AWAY_S + AFTER_S, seed)
        found = await watch({"": spec}, script, words="the leader is killed")
        lots = await lots_bought(cluster, flow) - before
    silence_s = longest_silence_s(found.samples, found.marks[0].begin, found.marks[1].begin)
    return Told(
        found,
        unaccounted(lots, found),
        ("",),
        [
            at_most("longest time without an answer", silence_s * 1e3, OUTAGE_MS_MAX, "ms"),
            Figure("another leads after", took[0] * 1e3, "ms"),
            Figure("the killed one has caught up after its start", took[1] * 1e3, "ms"),
        ],
    )


async def _another_leads(cluster: Running, former: str) -> None:
    others = [cluster.url(name) for name in cluster.replicas if name != former]
    async with Client(others, token=cluster.token("auditor", ("*",))) as watcher:
        await leader_of(cluster, watcher)


def time_partition(folder: Path, *, cut_s: float = AWAY_S, rate_per_s: int = RATE_PER_S, seed: int = 1) -> Report:
    """Latency over time, at each site, while the leader's site is cut off from the others and comes back."""
    began = time.monotonic()
    with Links() as links, running(folder / "time-partition", limits=LIMITS, prepare=links.prepare) as cluster:
        told = run_loop(_partition(cluster, links, cut_s, rate_per_s, seed))
    return _report("time-partition", folder, told, rate_per_s, seed, began, {"cut_s": cut_s})


async def _partition(cluster: Running, links: Links, cut_s: float, rate_per_s: int, seed: int) -> Told:
    flow = await open_market(cluster)
    async with cluster.client("auditor", ("*",)) as auditor:
        leader = await leader_of(cluster, auditor)
        other = next(name for name in cluster.replicas if name != leader)
        took: list[float] = []

        async def script(s: Script) -> None:
            await s.until(CALM_S)
            began = time.monotonic()
            with s.mark("cut off"):
                links.cut([leader])
                await _another_leads(cluster, leader)
                took.append(time.monotonic() - began)
                await s.until(CALM_S + cut_s)
                links.heal()
            took.append(await caught_up(auditor, leader))

        before = await lots_bought(cluster, flow)
        seconds = CALM_S + cut_s + AFTER_S
        there, here = f"clients at {leader}", f"clients at {other}"
        specs: dict[str, Spec] = {}
        for number, (name, member) in enumerate(((there, leader), (here, other))):
            mine = replace(flow, groups=flow.groups[number::2])
            specs[name] = spec_of(cluster, mine, [member], rate_per_s / 2, seconds, seed + number)
            specs[name].connections = CONNECTIONS // 2
        # Nobody at a site that is cut off is served there: asking again all the while would only be a storm.
        specs[there].retry = False
        found = await watch(specs, script, words="a site is cut off")
        lots = await lots_bought(cluster, flow) - before
    (cut,) = found.marks
    silence = {name: longest_silence_s(part, cut.begin, cut.end) * 1e3 for name, part in found.parts.items()}
    return Told(
        found,
        unaccounted(lots, found),
        (here,),
        [
            Figure("another leads after", took[0] * 1e3, "ms"),
            at_most(f"longest time without an answer, {here}", silence[here], OUTAGE_MS_MAX, "ms"),
            Figure(f"longest time without an answer, {there}, which is cut off", silence[there], "ms"),
            Figure("healed, its member has caught up after", took[1] * 1e3, "ms"),
        ],
        (f"{there}: nobody is served at a site that is cut off, so they do not ask again; refused is refused",),
    )


def _report(
    name: str, folder: Path, told: Told, rate_per_s: int, seed: int, began: float, settings: dict[str, float]
) -> Report:
    found = told.found
    # As they were: a generator that was slow to begin is on a later axis than the script.
    begin_s, end_s = min(mark.begin for mark in found.marks), max(mark.end for mark in found.marks)
    spans = {"before": (0.0, begin_s), "meanwhile": (begin_s, end_s), "after": (end_s, found.seconds)}
    figures, spreads, drawn = latencies(found, spans, drawn=spans if len(found.parts) == 1 else {"meanwhile"})
    return Report(
        benchmark=name,
        figures=[audit(told.unaccounted), *told.figures, *figures, *endings(found, all_done=told.all_done)],
        settings={
            "members": "two replicas and the witness",
            "rate_per_s": rate_per_s,
            "seconds": found.seconds,
            "connections": CONNECTIONS,
            "message": "one order, msgpack",
            **settings,
            "seed": seed,
        },
        host=host.describe(folder),
        seconds=time.monotonic() - began,
        notes=[
            *notes(found),
            "open loop: each order counts from the moment at which it was due; what found no leader or lost its "
            "connection is asked for again under its key, and goes on counting",
            *told.notes,
        ],
        curves=[*curves(found, width_s=WIDTH_S), *drawn],
        percentiles=spreads,
    )


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())
