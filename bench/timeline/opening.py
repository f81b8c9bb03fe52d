"""A market opens: ten times the load from one moment to the next, for a minute; how long until latency is back."""

import time
from pathlib import Path

from bench import host
from bench.report import Figure, Report
from bench.running import LIMITS, Running, run_loop, running
from bench.sweep.arrivals import Step
from bench.sweep.openloop import Spec
from bench.sweep.playing import open_market, pids_of, tokens_of
from bench.timeline.audit import lots_bought, unaccounted
from bench.timeline.drawing import back_under, curves
from bench.timeline.reporting import audit, endings, latencies, notes
from bench.timeline.watched import Script, Watched, watch

RATE_PER_S = 10_000
TIMES = 10
CONNECTIONS = 64
BEFORE_S = 10.0
AFTER_S = 10.0
WIDTH_S = 0.5
P99_MS_MAX = 50.0
STEADY_S = 5.0
"""Under the limit for so long is back under it."""


def market_open(folder: Path, *, seconds: float = 60.0, rate_per_s: int = RATE_PER_S, seed: int = 1) -> Report:
    """Ten times the load from one moment to the next: how long until p99 is under 50 ms again, and what was refused."""
    began = time.monotonic()
    with running(folder / "market-open", limits=LIMITS) as cluster:
        found, unaccounted_ = run_loop(_open(cluster, seconds, rate_per_s, seed))
    end_s = BEFORE_S + seconds
    figures, spreads, drawn = latencies(
        found,
        {
            f"before, {rate_per_s // TIMES:,}/s": (0.0, BEFORE_S),
            f"the open, {rate_per_s:,}/s": (BEFORE_S, end_s),
            f"after, {rate_per_s // TIMES:,}/s": (end_s, found.seconds),
        },
    )
    return Report(
        benchmark="market-open",
        figures=[audit(unaccounted_), *recovery(found, end_s), *figures, *endings(found)],
        settings={
            "members": "two replicas and the witness",
            "rate_per_s": f"{rate_per_s // TIMES}, then {rate_per_s} for {seconds:g} s, then {rate_per_s // TIMES}",
            "connections": CONNECTIONS,
            "message": "one order, msgpack",
            "seed": seed,
        },
        host=host.describe(folder),
        seconds=time.monotonic() - began,
        notes=[
            *notes(found),
            f"under {P99_MS_MAX:g} ms again: from when on the p99 of each {WIDTH_S:g} s stays there for {STEADY_S:g} s",
            "open loop: each order counts from the moment at which it was due; none is asked for again",
        ],
        curves=[*curves(found, width_s=WIDTH_S, offered=True), *drawn],
        percentiles=spreads,
    )


def recovery(found: Watched, end_s: float) -> list[Figure]:
    """How soon latency was back within the open, and when all that had waited was answered."""
    back_s = back_under(
        found.samples.by_slice(found.seconds, WIDTH_S), WIDTH_S, BEFORE_S, P99_MS_MAX, for_s=STEADY_S, end_s=end_s
    )
    name = f"p99 is under {P99_MS_MAX:g} ms again after"
    if back_s is None:
        # The open was over first, so that the figure is at least this.
        return [Figure(name, end_s - BEFORE_S, "s", "within the open", False)]
    return [Figure(name, back_s, "s", "within the open", True)]


async def _open(cluster: Running, seconds: float, rate_per_s: int, seed: int) -> tuple[Watched, int]:
    flow = await open_market(cluster)
    spec = Spec(
        urls=[cluster.url(name) for name in cluster.replicas],
        tokens=tokens_of(cluster, flow),
        flow=flow,
        run=f"open-{time.time_ns():x}",
        connections=CONNECTIONS,
        steps=[
            Step(BEFORE_S, rate_per_s / TIMES),
            Step(seconds, rate_per_s),
            Step(AFTER_S, rate_per_s / TIMES),
        ],
        drain_s=15.0,
        seed=seed,
        pids=pids_of(cluster),
    )

    async def script(s: Script) -> None:
        await s.until(BEFORE_S)
        with s.mark("the market opens"):
            await s.until(BEFORE_S + seconds)

    before = await lots_bought(cluster, flow)
    found = await watch({"": spec}, script, words="the market opens")
    return found, unaccounted(await lots_bought(cluster, flow) - before, found)
