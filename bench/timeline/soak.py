"""Minutes of a whole day's load: whether it is carried all the time, and what memory and disk grow by."""

import asyncio
import time
from pathlib import Path
from typing import NamedTuple

from bench import host
from bench.report import Curve, Figure, Report, at_least
from bench.running import LIMITS, RunError, Running, run_loop, running
from bench.sweep.arrivals import Step
from bench.sweep.openloop import Spec
from bench.sweep.playing import open_market, pids_of, tokens_of
from bench.sweep.trades import Flow
from bench.timeline.audit import lots_bought, unaccounted
from bench.timeline.drawing import SECONDS, curves
from bench.timeline.footprint import Footprint, Taken, slope
from bench.timeline.reporting import audit, endings, latencies, notes
from bench.timeline.watched import Watched, watch

GOAL_PER_S = 21_400
"""Ten times the mean of a day of 50 million orders within 6.5 hours."""
FRAME = 50
CONNECTIONS = 4
PROBE_S = 8.0
PROBES_MAX = 6
STEP_DOWN = 0.85
"""By how much less is tried where a rate was not held."""
HELD = 0.98
WIDTH_S = 1.0
LOOKS = 120
MIB = 2**20
DRAIN_S = 20.0


KINDS = {"rss": "resident memory", "pss": "its share of memory (PSS)", "anonymous": "anonymous memory", "disk": "disk"}


class Soaked(NamedTuple):
    """rate_per_s: that was held in a probe, and sent. taken: what members took, by name."""

    found: Watched
    unaccounted: int
    rate_per_s: float
    tried: list[float]
    taken: dict[str, list[Taken]]
    began_at: float

    @property
    def done_per_s(self) -> float:
        """Within the time; what was answered after its end was not carried."""
        return sum(result.done_within for result in self.found.results.values()) / self.found.seconds


def soak(folder: Path, *, seconds: float = 600.0, rate_per_s: int = GOAL_PER_S, seed: int = 1) -> Report:
    """21,400 orders/s for ten minutes, or what this machine holds: latency, memory and disk over time."""
    began = time.monotonic()
    with running(folder / "soak", limits=LIMITS) as cluster:
        soaked = run_loop(_soak(cluster, seconds, rate_per_s, seed))
    found = soaked.found
    thirds = {
        "first third": (0.0, seconds / 3),
        "second third": (seconds / 3, 2 * seconds / 3),
        "last third": (2 * seconds / 3, seconds),
    }
    figures, spreads, drawn = latencies(found, thirds)
    return Report(
        benchmark="soak",
        figures=[
            at_least("orders a second, all the time", soaked.done_per_s, GOAL_PER_S * 0.99, "/s"),
            audit(soaked.unaccounted),
            *endings(found, all_done=("",)),
            *figures,
            *growth(soaked),
            *(
                Figure(f"CPU of {name}", 100 * spent / found.seconds, "% of a core")
                for name, spent in next(iter(found.results.values())).cpu_s.items()
            ),
        ],
        settings={
            "members": "two replicas and the witness",
            "rate_per_s": round(soaked.rate_per_s),
            "tried_per_s": ", ".join(f"{rate:.0f}" for rate in soaked.tried),
            "seconds": seconds,
            "connections": CONNECTIONS,
            "frame": f"up to {FRAME}, gathered for {_slice_ms(soaked.rate_per_s):.1f} ms",
            "seed": seed,
        },
        host=host.describe(folder),
        seconds=time.monotonic() - began,
        notes=[
            *notes(found),
            f"a rate that was not held for {PROBE_S:g} s gives way to one of {STEP_DOWN:.0%} of it",
            "latency is from when an order was due, the broker's gathering included",
            "anonymous memory: without the pages of the mapped store, which the system takes back when it needs them",
            "growth: by least squares over the second half",
        ],
        curves=[*curves(found, width_s=WIDTH_S), *footprints(soaked), *drawn],
        percentiles=spreads,
    )


def _slice_ms(rate_per_s: float) -> float:
    """For frames of so many on each connection."""
    return 1e3 * FRAME * CONNECTIONS / rate_per_s


async def _soak(cluster: Running, seconds: float, rate_per_s: int, seed: int) -> Soaked:
    flow = await open_market(cluster)
    rate, tried = float(rate_per_s), []
    while True:
        tried.append(rate)
        probe = await watch({"": spec_of(cluster, flow, rate, PROBE_S, seed)}, words=f"probing {rate:,.0f}/s")
        if held(probe):
            break
        if len(tried) == PROBES_MAX:
            raise RunError(f"no rate from {tried[0]:,.0f}/s down to {rate:,.0f}/s was held for {PROBE_S:g} s")
        rate *= STEP_DOWN
    before = await lots_bought(cluster, flow)
    footprint = Footprint(cluster)
    looking = asyncio.create_task(footprint.watch(max(0.5, seconds / LOOKS)))
    try:
        found = await watch({"": spec_of(cluster, flow, rate, seconds, seed + 1)}, words=f"{rate:,.0f} orders/s")
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
    footprint.look()
    lots = await lots_bought(cluster, flow) - before
    began_at = next(iter(found.results.values())).began_at
    return Soaked(found, unaccounted(lots, found), rate, tried, footprint.taken, began_at)


def spec_of(cluster: Running, flow: Flow, rate_per_s: float, seconds: float, seed: int) -> Spec:
    """As few brokers send: few connections, orders gathered for frames."""
    return Spec(
        urls=[cluster.url(name) for name in cluster.replicas],
        tokens=tokens_of(cluster, flow),
        flow=flow,
        run=f"soak-{time.time_ns():x}",
        connections=CONNECTIONS,
        steps=[Step(seconds, rate_per_s)],
        frame_max=FRAME,
        slice_ms=_slice_ms(rate_per_s),
        drain_s=DRAIN_S,
        seed=seed,
        pids=pids_of(cluster),
    )


def held(found: Watched) -> bool:
    """All was done, and within the time but for what was just being gathered: no queue was growing."""
    within = sum(result.done_within for result in found.results.values())
    return not found.refused and not found.unknown and within + FRAME * CONNECTIONS >= HELD * found.requests


def growth(soaked: Soaked) -> list[Figure]:
    """Of each member: at the end, and what it grew by in a minute and for an order while the load ran."""
    figures: list[Figure] = []
    end_at = soaked.began_at + soaked.found.seconds
    for name, taken in soaked.taken.items():
        late = [one for one in taken if (soaked.began_at + end_at) / 2 <= one.at <= end_at]
        for what, words in KINDS.items():
            per_s = slope([one.at for one in late], [getattr(one, what) for one in late])
            figures += [
                Figure(f"{name}, {words}: at the end", getattr(taken[-1], what) / MIB, "MiB"),
                Figure("  grows in a minute", per_s * 60 / MIB, "MiB"),
                Figure("  for an order", per_s / max(1.0, soaked.done_per_s), "B"),
            ]
    return figures


def footprints(soaked: Soaked) -> list[Curve]:
    """Memory and disk of each member over time."""
    found: list[Curve] = []
    for what, words in KINDS.items():
        for name, taken in soaked.taken.items():
            x: list[float | str] = [round(one.at - soaked.began_at, 2) for one in taken]
            y = [round(getattr(one, what) / MIB, 3) for one in taken]
            found.append(Curve(f"Of each member: {words}", "line", name, x, y, SECONDS, "MiB"))
    return found
