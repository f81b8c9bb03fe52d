"""The benchmark of where the time of one order goes: parse, queue, replicate, sync, apply, answer."""

import signal
import sys
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean

from msgspec import Struct

from bench import host
from bench.progress import steps
from bench.report import Curve, Figure, Report
from bench.running import LIMITS, RunError, Running, asked_of_process, run_loop, running
from bench.spans import staged
from bench.spans.order_kinds import TRACED_EVERY, Applied, Asked, Batch, Disk, In, Out, Sent
from bench.spans.order_load import Result, Spec
from bench.spans.order_path import GROUPS, STAGES, Cluster, Orders
from bench.spans.staged import Passed
from bench.spans.stamps import Stamps
from bench.stats import Spread, percentile, spread
from bench.sweep.playing import open_market, tokens_of
from bench.watching import leader_of
from cluster.launcher import MEMBER_PROGRAM

ROUND_TRIPS_MS = (0.0, 10.0)
FRAMES_EACH = 10_000_000
"""Numbers of frames that each load may use; the set-up's own are below the first."""
WRITTEN_S = 10.0


class Load(Struct, frozen=True):
    clients: int
    under_way: int
    batch: int
    all_traced: bool = True


LOADS = {"1 client": Load(1, 1, 1), "64 clients": Load(64, 1, 1, False), "8 x frames of 50": Load(1, 8, 50)}
"""Each client has one connection, and so many frames under way on it."""


class Traced(Struct):
    """One load. cpu_us: of the leader for an order, by what it was spent on."""

    result: Result
    orders: list[Passed]
    per_s: float
    own_ms: list[float]
    """From the proposal of an entry until the leader's own disk has it."""
    other_ms: list[float]
    """Until so many others have said that theirs do that it is committed."""
    cpu_us: dict[str, float]
    entry_orders: float
    """Orders in an entry of the log, on the mean."""
    refused: int = 0


def order(folder: Path, *, seconds: float = 2, round_trip_ms: Sequence[float] = ROUND_TRIPS_MS) -> Report:
    """Where the time of one order goes, stage by stage: one client, 64, and frames of 50; also with sites apart."""
    began = time.monotonic()
    root = folder / "spans-order"
    figures: list[Figure] = []
    notes: list[str] = []
    percentiles: dict[str, Spread] = {}
    curves: list[Curve] = []
    cpu: dict[str, dict[str, float]] = {}
    runs = len(LOADS) * (1 + len(round_trip_ms))
    with steps("loads", runs) as begin:
        bare = _bare(root / "bare", seconds, begin)
        for distance_ms in round_trip_ms:
            found = _traced(root / f"{distance_ms:g}", seconds, distance_ms, begin)
            for name, one in found.items():
                what = name if not distance_ms else f"{name}, {distance_ms:g} ms"
                figures += _figures(what, one, bare[name] if not distance_ms else None)
                title = name if not distance_ms else f"{name}, sites {distance_ms:g} ms apart"
                curves += staged.stacks(title, one.orders, GROUPS, "mean of orders")
                percentiles |= staged.spreads(what, one.orders, STAGES)
                percentiles[f"{what}: leader's own disk"] = spread(one.own_ms)
                percentiles[f"{what}: majority of the others"] = spread(one.other_ms)
                notes.append(staged.note(what, one.orders, STAGES))
                if one.refused:
                    notes.append(f"{what}: refused {one.result.refused}")
            if not distance_ms:
                cpu = {name: one.cpu_us for name, one in found.items()}
    return Report(
        benchmark="spans-order",
        figures=figures,
        settings={
            "members": 3,
            "seconds": seconds,
            "round_trip_ms": ", ".join(f"{one:g}" for one in round_trip_ms),
            "connection": "WebSocket to the leader, msgpack; the next frame when one is answered",
            "flow": "every second order fills the one before it",
            "files in": staged.place(folder),
        },
        host=host.describe(folder),
        seconds=time.monotonic() - began,
        notes=[
            "the members are bench.spans.member: the product's parts, and a moment noted at each stage; what that "
            "costs stands beside it, from members as shipped",
            f"of 64 clients' frames one in {TRACED_EVERY} is traced, of the other loads' all",
            "own journal and replication run beside each other: the stages are those of the one that was later",
            "in the middle: mean of those between p45 and p55 by latency; slow: between p98 and p99.5; means add up",
            "a frame of 50 is answered when its last order is, and its stages are those of that order's log entry",
            *notes,
        ],
        curves=[*curves, *_cpu_curves(cpu)],
        percentiles=percentiles,
    )


def _figures(what: str, one: Traced, bare: tuple[float, float] | None) -> list[Figure]:
    whole = staged.latency(one.orders)
    figures = [
        *staged.check(what, one.orders),
        Figure("  orders a second", one.per_s, "/s"),
        Figure("  p50", whole.p50_ms, "ms"),
        Figure("  p99", whole.p99_ms, "ms"),
    ]
    if bare is not None:
        figures += [Figure("  orders a second, members as shipped", bare[0], "/s"), Figure("  p50", bare[1], "ms")]
    later = sum(other > own for own, other in zip(one.own_ms, one.other_ms, strict=True))
    figures += [
        Figure("  orders in an entry of the log, mean", one.entry_orders),
        Figure("  from its proposal to the leader's disk, p50", percentile(one.own_ms, 50) * 1e3, "us"),
        Figure("  to the other member's word, p50", percentile(one.other_ms, 50) * 1e3, "us"),
        Figure("  entries for which the leader waited for the other", 100 * later / max(1, len(one.own_ms)), "%"),
        *(Figure(f"  CPU of the leader for an order: {name}", us, "us") for name, us in one.cpu_us.items()),
        Figure("  CPU of the leader for an order: all of these", sum(one.cpu_us.values()), "us"),
    ]
    return [*figures, *staged.tables(one.orders, GROUPS)]


def _cpu_curves(cpu: dict[str, dict[str, float]]) -> list[Curve]:
    names = dict.fromkeys(chain.from_iterable(cpu.values()))
    picture = "CPU of the leader for an order"
    return [
        Curve(picture, "stacked", name, [*cpu], [round(one[name], 2) for one in cpu.values()], "", "us")
        for name in names
    ]


# ---- runs ----


def _bare(root: Path, seconds: float, begin: Callable[[str], object]) -> dict[str, tuple[float, float]]:
    """(orders a second, p50) of each load, on members as shipped."""
    found = {}
    for name, (result, asked) in _played(root, MEMBER_PROGRAM, seconds, 0.0, begin)[0].items():
        within = _within(result, asked)
        took = [(one.received - one.began) / 1e6 for one in within]
        found[name] = sum(one.orders for one in within) / seconds, percentile(took, 50)
    return found


def _traced(root: Path, seconds: float, distance_ms: float, begin: Callable[[str], object]) -> dict[str, Traced]:
    folder = root / "stamps"
    program = (sys.executable, "-P", "-m", "bench.spans.member", str(folder))
    played, members, leader = _played(root, program, seconds, distance_ms, begin)
    orders = Orders(Cluster(members, leader))
    return {name: _joined(orders, members[leader], result, asked) for name, (result, asked) in played.items()}


def _played(
    root: Path, program: Sequence[str], seconds: float, distance_ms: float, begin: Callable[[str], object]
) -> tuple[dict[str, tuple[Result, list[Asked]]], dict[int, Stamps], int]:
    """All loads against one cluster: what they noted, what its members noted, and which of these led."""
    folder = root / "stamps"
    folder.mkdir(parents=True, exist_ok=True)
    played: dict[str, tuple[Result, list[Asked]]] = {}
    with running(root / "cluster", limits=LIMITS, program=program, round_trip_ms=distance_ms) as cluster:
        flow = run_loop(open_market(cluster))
        leader = run_loop(_leader(cluster))
        for number, (name, load) in enumerate(LOADS.items()):
            begin(name if not distance_ms else f"{name}, {distance_ms:g} ms")
            path = folder / f"load-{number}"
            spec = Spec(
                url=cluster.url(leader),
                tokens=tokens_of(cluster, flow),
                flow=flow,
                run=f"spans-{time.time_ns():x}",
                stamps=str(path),
                clients=load.clients,
                under_way=load.under_way,
                batch=load.batch,
                first_frame=(number + 1) * FRAMES_EACH,
                all_traced=load.all_traced,
                seconds=seconds,
            )
            result = run_loop(asked_of_process("bench.spans.order_load", spec, Result))
            played[name] = result, [Asked._make(row) for row in Stamps.read(path).rows("Asked")]
        if run_loop(_leader(cluster)) != leader:
            raise RunError("the leader changed while orders were traced")
        members = _written(cluster, folder) if program != MEMBER_PROGRAM else {}
        names = [member.name for member in cluster.folder.topology().members]
    return played, members, names.index(leader)


async def _leader(cluster: Running) -> str:
    async with cluster.client("auditor", ("*",)) as auditor:
        return await leader_of(cluster, auditor)


def _written(cluster: Running, folder: Path) -> dict[int, Stamps]:
    """Ask all members for what they noted. Raises RunError."""
    names = [member.name for member in cluster.folder.topology().members]
    paths = [folder / f"{name}.stamps" for name in names]
    for name in names:
        cluster.launcher.signal(name, signal.SIGUSR1)
    deadline = time.monotonic() + WRITTEN_S
    while not all(path.exists() for path in paths):
        if time.monotonic() > deadline:
            raise RunError("a member did not write what it noted")
        time.sleep(0.02)
    return {number: Stamps.read(path) for number, path in enumerate(paths)}


# ---- what came of it ----


def _within(result: Result, asked: Sequence[Asked]) -> list[Asked]:
    return [one for one in asked if result.began <= one.began and one.received <= result.ended]


def _joined(orders: Orders, leader: Stamps, result: Result, asked: Sequence[Asked]) -> Traced:
    mine = _within(result, asked)
    count = sum(one.orders for one in mine)
    traced = [one for one in mine if one.frame % TRACED_EVERY == 0]
    entries_had = [row.commands for row in map(Batch._make, leader.rows("Batch")) if _during(result, row.taking)]
    indexes = sorted({orders.index_of(one) for one in traced} - {0})
    entries = [entry for index in indexes if (entry := orders.cluster.entry(index)) is not None]
    return Traced(
        result=result,
        orders=[orders.passed(one) for one in traced],
        per_s=count / ((result.ended - result.began) / 1e9),
        own_ms=[entry.own_ns / 1e6 for entry in entries],
        other_ms=[entry.other_ns / 1e6 for entry in entries],
        cpu_us=_cpu_us(leader, result, count, sum(one.orders for one in traced)),
        entry_orders=fmean(entries_had) if entries_had else 0.0,
        refused=sum(one.refused for one in mine),
    )


def _during(result: Result, at: int) -> bool:
    return result.began <= at <= result.ended


def _cpu_us(leader: Stamps, result: Result, orders: int, traced: int) -> dict[str, float]:
    """CPU time of the leader's threads for an order, by what they did; wall time would count others' turns, too.

    orders: of all frames, which share entries; traced: of those of which each was noted by itself.
    """
    came = [row for row in map(In._make, leader.rows("In")) if _during(result, row.taken)]
    batches = [row for row in map(Batch._make, leader.rows("Batch")) if _during(result, row.taking)]
    sent = [row for row in map(Sent._make, leader.rows("Sent")) if _during(result, row.writing)]
    disk = [row for row in map(Disk._make, leader.rows("Disk")) if _during(result, row.handed)]
    applied = [row for row in map(Applied._make, leader.rows("Applied")) if _during(result, row.tick)]
    out = [row for row in map(Out._make, leader.rows("Out")) if _during(result, row.answering)]
    shared = {
        "batch": sum(row.encode_cpu for row in batches),
        "links": sum(row.cpu for row in sent),
        "journal": sum(row.put_cpu for row in disk),
        "sync": sum(row.sync_cpu for row in disk),
        "apply": sum(row.apply_cpu for row in applied),
        "outcomes, listeners": sum(row.tell_cpu for row in applied),
    }
    own = {
        "answer": sum(row.answer_cpu for row in out),
        "write": sum(row.write_cpu for row in out),
    }
    return {
        "door": sum(row.door_cpu for row in came) / max(1, traced) / 1e3,
        **{name: ns / max(1, orders) / 1e3 for name, ns in shared.items()},
        **{name: ns / max(1, traced) / 1e3 for name, ns in own.items()},
    }
