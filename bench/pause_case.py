"""The benchmark of a paused leader: who reads from it when it wakes must not see the past."""

import asyncio
import signal
import time
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
from msgspec import Struct

from bench import host
from bench.counting import LOCAL, PATH, Raiser, Seen, open_counter, read_on
from bench.driver import longest_gap_s
from bench.lines import Line
from bench.register import Verdict, judge
from bench.report import Figure, Report, at_least, at_most, exactly
from bench.running import LIMITS, RunError, Running, run_loop, running
from bench.stats import percentile
from bench.watching import caught_up, leader_of, views
from cluster.client import Client

OUTAGE_MS_MAX = 1_000.0
"""Until another leads. Clients prefer the leader, and give a silent one up after 3 s of their own."""
LOCAL_STALE_MIN = 1
SETTLED_S = 1.0
AWAKE_S = 1.0
"""Reads that the paused member answers within this time of waking are counted apart."""
ANSWERS_WAIT_S = 15.0
PINNED_PER_S = 50.0
READS_PER_S = 50.0
LOOK_S = 0.01


class Paused(Struct):
    """One pause. Times are of time.monotonic()."""

    leader: str
    pause_s: float
    stopped_at: float
    woken_at: float = 0.0
    elected_ms: float = 0.0
    waiting: Seen = msgspec.field(default_factory=Seen)
    """What came of linearizable requests that waited in the paused member's sockets."""
    local: Seen = msgspec.field(default_factory=Seen)
    """The same with consistency=local: these are stale, and the judge must say so."""


class Story(Struct):
    pauses: list[Paused]
    seen: Seen
    free: Raiser
    pinned: dict[str, Raiser]
    final: int


def pause(
    folder: Path,
    *,
    pause_s: tuple[float, ...] = (5.0, 30.0),
    rounds: int = 3,
    rate_per_s: int = 400,
    waiting: int = 40,
) -> Report:
    """SIGSTOP of the leader; reads wait in its sockets and are answered when it wakes: none may be stale."""
    began = time.monotonic()
    with running(folder / "pause", limits=LIMITS) as cluster:
        timing = cluster.folder.topology().timing
        story = run_loop(_pauses(cluster, [length for length in pause_s for _ in range(rounds)], rate_per_s, waiting))
    return Report(
        benchmark="pause",
        figures=figures(story),
        settings={
            "pauses": f"{rounds} each of {', '.join(f'{length:g} s' for length in pause_s)}",
            "rate_per_s": rate_per_s,
            "requests_waiting": waiting,
            "members": len(cluster.members),
            "heartbeat_ms": timing.heartbeat_ms,
            "election_ms": f"{timing.election_ms_min} to {timing.election_ms_max}",
        },
        host=host.describe(folder),
        seconds=time.monotonic() - began,
        notes=[
            "stale: older than a write that was acknowledged before the read was sent, by the clients' own clock",
            f"outage: longest time without an acknowledgement to any of {1 + len(story.pinned)} clients; one that was "
            "connected to the paused member hears nothing until it gives it up (client library: 3 s)",
        ],
    )


async def _pauses(cluster: Running, lengths_s: list[float], rate_per_s: int, waiting: int) -> Story:
    await open_counter(cluster)
    run = f"pause-{time.time_ns():x}"
    urls = {name: cluster.url(name) for name in cluster.replicas}
    seen = Seen()
    async with AsyncExitStack() as stack:
        auditor = await stack.enter_async_context(cluster.client("auditor", ("*",)))
        custodian = cluster.token("custodian", ("*",))
        clients = {name: Client([url], token=custodian, timeout_ms=5_000) for name, url in urls.items()}
        free = Raiser(
            await stack.enter_async_context(cluster.client("custodian", ("*",))),
            run=run,
            rate_per_s=rate_per_s,
            frame=max(1, rate_per_s // 100),
        )
        pinned = {
            name: Raiser(await stack.enter_async_context(client), run=f"{run}-{name}", rate_per_s=PINNED_PER_S)
            for name, client in clients.items()
        }
        raisers = [asyncio.create_task(raiser.run()) for raiser in (free, *pinned.values())]
        readers = [
            asyncio.create_task(read_on(url, name, cluster.token("auditor", ("*",)), seen, rate_per_s=READS_PER_S))
            for name, url in urls.items()
        ]
        pauses: list[Paused] = []
        try:
            for length_s in lengths_s:
                await asyncio.sleep(SETTLED_S)
                pauses.append(await _one(cluster, auditor, length_s, waiting))
                for task in (*raisers, *readers):
                    if task.done():
                        task.result()
            await asyncio.sleep(SETTLED_S)
            for raiser in (free, *pinned.values()):
                raiser.stop()
            await asyncio.gather(*raisers)
        finally:
            for task in (*raisers, *readers):
                task.cancel()
            await asyncio.gather(*raisers, *readers, return_exceptions=True)
        final = Seen()
        leader = await leader_of(cluster, auditor)
        line = await Line.open(urls[leader], cluster.token("auditor", ("*",)))
        await final.get(line, leader, PATH)
        line.close()
    if not final.reads:
        raise RunError(f"the counter could not be read at the end: {final.refused}")
    return Story(pauses, seen, free, pinned, final.reads[0].value)


async def _one(cluster: Running, auditor: Client, length_s: float, waiting: int) -> Paused:
    leader = await leader_of(cluster, auditor)
    url, token = cluster.url(leader), cluster.token("auditor", ("*",))
    # Every fourth connection is opened while the member is paused: the system takes it, and it waits to be accepted.
    lines = [await Line.open(url, token) if at % 4 else None for at in range(waiting)]
    for line in lines:
        if line is not None:
            await line.get(PATH)  # it is past its accept, and idle
    others = [cluster.url(name) for name in cluster.replicas if name != leader]
    async with Client(others, token=token) as watcher:
        found = Paused(leader, length_s, time.monotonic())
        cluster.launcher.signal(leader, signal.SIGSTOP)
        electing = asyncio.create_task(_elected(watcher, found))
        asked: list[asyncio.Task[None]] = []
        opened: list[Line] = []
        try:
            for at, early in enumerate(lines):
                await asyncio.sleep(found.stopped_at + length_s * (at + 0.5) / waiting - time.monotonic())
                line = early or await Line.open(url, token)
                opened.append(line)
                # Every fifth asks for what is there, whatever it is.
                seen, path = (found.local, PATH + LOCAL) if at % 5 == 4 else (found.waiting, PATH)
                asked.append(asyncio.create_task(seen.get(line, leader, path)))
            await asyncio.sleep(max(0.0, found.stopped_at + length_s - time.monotonic()))
        finally:
            found.woken_at = time.monotonic()
            cluster.launcher.signal(leader, signal.SIGCONT)
        try:
            _, late = await asyncio.wait(asked, timeout=ANSWERS_WAIT_S)
            if late:
                raise RunError(f"{len(late)} requests were not answered within {ANSWERS_WAIT_S} s of waking")
            await electing
        finally:
            for task in (*asked, electing):
                task.cancel()
            for line in opened:
                line.close()
    await caught_up(auditor, leader)
    return found


async def _elected(watcher: Client, found: Paused) -> None:
    """Note when another replica leads with a quorum."""
    while not found.elected_ms:
        await asyncio.sleep(LOOK_S)
        if any(view.state == "leader" and view.has_quorum for view in views(await watcher.members())):
            found.elected_ms = (time.monotonic() - found.stopped_at) * 1e3


def figures(story: Story) -> list[Figure]:
    """What the whole story comes to."""
    pauses, seen = story.pauses, story.seen
    raisers = [story.free, *story.pinned.values()]
    writes = [write for raiser in raisers for write in raiser.writes]
    waited = [read for one in pauses for read in one.waiting.reads]
    refused = [error for one in pauses for _, _, error in one.waiting.refused]
    verdict = judge(writes, [*seen.reads, *waited])
    local = judge(writes, [read for one in pauses for read in one.local.reads], others=[*seen.reads, *waited])
    acknowledged = sum(bool(write.returned_ns) for write in writes)
    awake = sum(
        one.woken_at <= read.returned_ns / 1e9 <= one.woken_at + AWAKE_S and read.member == one.leader
        for one in pauses
        for read in seen.reads
    )
    found = [
        *verdict_figures(verdict),
        exactly("acknowledged, then lost", max(0, acknowledged - story.final), 0),
        exactly("executed twice", max(0, story.final - len(writes)), 0),
        at_least("stale reads found when asked for local ones (the judge's teeth)", local.stale, LOCAL_STALE_MIN),
        Figure("  of so many; the oldest was out of date by", local.oldest_ms, f"ms of {local.reads} reads"),
        Figure("requests that waited in the paused member: answered", len(waited)),
        Figure("  refused with an error", len(refused)),
        Figure("  connection ended", sum(one.waiting.lost for one in pauses)),
        Figure("other reads it answered within 1 s of waking", awake),
        Figure("linearizable reads refused in all", len(seen.refused) + len(refused)),
    ]
    for length_s in dict.fromkeys(one.pause_s for one in pauses):
        some = [one for one in pauses if one.pause_s == length_s]
        elected = [one.elected_ms for one in some]
        anyone = [_outage_ms(raisers, one) for one in some]
        free = [_outage_ms([story.free], one) for one in some]
        found += [
            Figure(f"pause of {length_s:g} s: another leads after, p50", percentile(elected, 50), "ms"),
            at_most("  longest", max(elected), OUTAGE_MS_MAX, "ms"),
            Figure("  outage p50", percentile(anyone, 50), "ms"),
            Figure("  outage longest", max(anyone), "ms"),
            Figure("  outage of a client that was connected to the paused member, longest", max(free), "ms"),
        ]
    return [
        *found,
        Figure("writes acknowledged", acknowledged),
        Figure("writes of unknown outcome", sum(raiser.endings["unknown"] for raiser in raisers)),
    ]


def verdict_figures(verdict: Verdict) -> list[Figure]:
    return [
        exactly("stale reads", verdict.stale, 0),
        exactly("reads older than an earlier read", verdict.backwards, 0),
        exactly("reads at a log index before an acknowledged write's", verdict.behind, 0),
        exactly("reads of more than was sent", verdict.ahead, 0),
        exactly("reads of what was not there at their log index", verdict.mismatched, 0),
        Figure("linearizable reads judged", verdict.reads),
    ]


def _outage_ms(raisers: list[Raiser], one: Paused) -> float:
    answered = [at for raiser in raisers for at in raiser.acknowledged_at]
    return longest_gap_s(answered, one.stopped_at, after_s=one.pause_s + 5) * 1e3
