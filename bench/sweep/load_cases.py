"""The benchmarks of orders that come when they come: by door, by offered load, by distance between the sites."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from msgspec import Struct

from bench import host
from bench.progress import steps
from bench.report import Curve, Figure, Report, at_least, at_most, distribution, exactly
from bench.running import LIMITS, Running, run_loop, running
from bench.stats import Spread
from bench.sweep.arrivals import Step
from bench.sweep.doors import DOORS, DoorWord
from bench.sweep.openloop import GENERATOR, Spec
from bench.sweep.playing import ACCOUNTS, Played, open_market, pids_of, play, tokens_of
from bench.sweep.trades import Flow
from bench.watching import leader_of

OPEN_LIMITS = {**LIMITS, "connections_per_address_max": 10_000}
"""All clients come from one address."""
SHAPES = ("1+1+1", "2+2+1")
CLIENTS = (1, 64, 1_000)
DOOR_RATES = (1_000, 5_000)
RATES = (1_000, 2_000, 5_000, 10_000, 15_000, 20_000, 30_000)
ROUND_TRIPS_MS = (0.0, 10.0, 40.0)
FILLS = (2_000, 10_000)
FILLS_GOAL = 10_000
ROUND_TRIP_GOAL_MS = 10.0
P99_GOAL_MS = 50.0
WAN_FROM_MS = 20.0
"""From this round trip on, members have the timing of a WAN."""
LATE_MS_MAX = 10.0
Site = Literal["leader", "other"]
SITES: tuple[Site, ...] = ("leader", "other")


class Asked(Struct, frozen=True):
    """One cell: how it is asked."""

    door: DoorWord = "msgpack"
    clients: int = 64
    rate_per_s: float = 1_000
    site: Site = "leader"
    frame: int = 1
    seconds: float = 4.0
    warmup_s: float = 1.0
    drain_s: float = 5.0
    processes: int = 1


async def ask(cluster: Running, flow: Flow, asked: Asked) -> Played:
    """One run against a market that is open. Raises RunError."""
    async with cluster.client("auditor", ("*",)) as auditor:
        leader = await leader_of(cluster, auditor)
    sites = {member.name: member.site for member in cluster.folder.topology().members}
    other = next((name for name in cluster.replicas if sites[name] != sites[leader]), leader)
    spec = Spec(
        urls=[cluster.url(leader if asked.site == "leader" else other)],
        tokens=tokens_of(cluster, flow),
        flow=flow,
        run=f"open-{time.time_ns():x}",
        door=asked.door,
        connections=asked.clients,
        steps=[Step(asked.seconds, asked.rate_per_s)],
        warmup_s=asked.warmup_s,
        drain_s=asked.drain_s,
        frame_max=asked.frame,
        pids=pids_of(cluster),
    )
    return await play(spec, processes=asked.processes)


def figures_of(name: str, asked: Asked, found: Played, *, p99: Figure | None = None) -> list[Figure]:
    return [
        Figure(f"{name}: done", found.done_per_s, "/s"),
        Figure("  p50", found.latency.p50_ms, "ms"),
        p99 or Figure("  p99", found.latency.p99_ms, "ms"),
        Figure("  p99.9", found.latency.p999_ms, "ms"),
        Figure("  refused, unknown", found.refused + found.unknown),
        Figure("  CPU of the members for one", _cpu_us(found), "us"),
        Figure("  CPU of the load generator", 100 * found.cpu_s.get(GENERATOR, 0.0) / asked.seconds, "% of a core"),
        Figure("  the sender's own lateness, p99", found.late.p99_ms, "ms"),
    ]


def notes_of(name: str, found: Played) -> list[str]:
    notes = [f"{name}: {count} {word}" for word, count in sorted(found.words.items())]
    if found.late.p99_ms > LATE_MS_MAX:
        notes.append(
            f"{name}: the sender itself was up to {found.late.p99_ms:.0f} ms late (p99), which its latencies include"
        )
    return notes


SETTINGS: dict[str, str | int | float | bool] = {
    "accounts": ACCOUNTS,
    "loop": "open: arrivals drawn beforehand (Poisson), latency from when it was due",
}


def doors(
    folder: Path,
    *,
    seconds: float = 3,
    clients: tuple[int, ...] = CLIENTS,
    offered: tuple[int, ...] = DOOR_RATES,
) -> Report:
    """HTTP, WebSocket with JSON and with msgpack, by 1, 64 and 1,000 clients, one order a message, at rates."""
    began = time.monotonic()
    figures: list[Figure] = []
    notes: list[str] = []
    percentiles: dict[str, Spread] = {}
    cells: dict[tuple[DoorWord, int, int], Played] = {}
    wanted = [(door, count, rate) for count in clients for rate in offered for door in DOORS]
    with running(folder / "load-doors", limits=OPEN_LIMITS) as cluster, steps("cells", len(wanted)) as begin:
        flow = run_loop(open_market(cluster))
        for door, count, rate in wanted:
            name = f"{door}, {_clients(count)}, {rate:,}/s"
            begin(name)
            asked = Asked(door=door, clients=count, rate_per_s=rate, seconds=seconds, drain_s=3)
            found = cells[door, count, rate] = run_loop(ask(cluster, flow, asked))
            figures += figures_of(name, asked, found)
            notes += notes_of(name, found)
            percentiles[name] = found.latency
    curves = [
        _line(f"p99, {_clients(count)}", door, offered, [cells[door, count, rate].latency.p99_ms for rate in offered])
        for count in clients
        for door in DOORS
    ]
    curves += [
        Curve(
            f"CPU of the members for an order at {offered[0]:,}/s",
            "bars",
            door,
            [_clients(count) for count in clients],
            [_cpu_us(cells[door, count, offered[0]]) for count in clients],
            "",
            "us",
        )
        for door in DOORS
    ]
    return Report(
        benchmark="load-doors",
        figures=figures,
        settings={"members": 3, "seconds": seconds, **SETTINGS},
        host=host.describe(folder),
        seconds=time.monotonic() - began,
        notes=["with one HTTP client, one request is under way: what it can't take waits", *notes],
        curves=curves,
        percentiles=percentiles,
    )


def latency(
    folder: Path,
    *,
    seconds: float = 4,
    offered: tuple[int, ...] = RATES,
    shapes: tuple[str, ...] = SHAPES,
    connections: int = 64,
    frame: int = 1,
) -> Report:
    """Latency against offered load, for 1+1+1 and 2+2+1: orders at fixed rates over WebSockets, msgpack."""
    began = time.monotonic()
    figures: list[Figure] = []
    notes: list[str] = []
    curves: list[Curve] = []
    percentiles: dict[str, Spread] = {}
    middle = sorted(offered)[len(offered) // 2]
    distributions: list[Curve] = []
    with steps("cells", len(shapes) * len(offered)) as begin:
        for shape in shapes:
            found_at: dict[int, Played] = {}
            with running(folder / "load-latency" / shape, shape=shape, limits=OPEN_LIMITS) as cluster:
                flow = run_loop(open_market(cluster))
                for rate in sorted(offered):
                    name = f"{shape}, {rate:,}/s"
                    begin(name)
                    asked = Asked(clients=connections, rate_per_s=rate, seconds=seconds, frame=frame)
                    found = found_at[rate] = run_loop(ask(cluster, flow, asked))
                    figures += figures_of(name, asked, found)
                    notes += notes_of(name, found)
                    percentiles[name] = found.latency
                    if rate == middle:
                        distributions.append(distribution(f"at {rate:,}/s", shape, found.samples.latency_ms))
            rates = sorted(found_at)
            for word, read in _PERCENTILES.items():
                values = [read(found_at[rate].latency) for rate in rates]
                curves.append(_line("latency against offered load", f"{shape}, {word}", rates, values))
            carried = [found_at[rate].done_per_s for rate in rates]
            curves.append(Curve("carried", "line", shape, [*map(float, rates)], carried, "offered, orders/s", "done/s"))
    return Report(
        benchmark="load-latency",
        figures=figures,
        settings={
            "shapes": ", ".join(shapes),
            "connections": connections,
            "frame": f"up to {frame} that are due in one millisecond",
            "seconds": seconds,
            **SETTINGS,
        },
        host=host.describe(folder),
        seconds=time.monotonic() - began,
        notes=notes,
        curves=[*_grouped(curves), *distributions],
        percentiles=percentiles,
    )


def wan(
    folder: Path,
    *,
    seconds: float = 4,
    round_trip_ms: tuple[float, ...] = ROUND_TRIPS_MS,
    fills: tuple[int, ...] = FILLS,
    makers: int = 1,
    connections: int = 8,
    frame: int = 50,
    pipeline: int = 0,
) -> Report:
    """10,000 trades a second with 0, 10 and 40 ms between the sites, asked at the leader's and at the other site."""
    began = time.monotonic()
    figures: list[Figure] = []
    notes: list[str] = []
    percentiles: dict[str, Spread] = {}
    p99: dict[tuple[int, Site], list[float]] = {}
    distributions: list[Curve] = []
    limits = {**OPEN_LIMITS, **({"pipeline": pipeline} if pipeline else {})}
    orders_per_fill = 1.0
    with steps("cells", len(round_trip_ms) * len(fills) * len(SITES)) as begin:
        for apart_ms in round_trip_ms:
            links = "wan" if apart_ms >= WAN_FROM_MS else "lan"
            root = folder / "load-wan" / f"{apart_ms:g}"
            with running(root, limits=limits, round_trip_ms=apart_ms, links=links) as cluster:
                flow = run_loop(open_market(cluster, makers=makers))
                orders_per_fill = flow.orders_per_fill()
                for rate in sorted(fills):
                    for site in SITES:
                        name = f"{apart_ms:g} ms, {rate:,} fills/s, client at the {_site(site)}"
                        begin(name)
                        asked = Asked(
                            clients=connections,
                            rate_per_s=rate * orders_per_fill,
                            site=site,
                            frame=frame,
                            seconds=seconds,
                        )
                        found = run_loop(ask(cluster, flow, asked))
                        judged = apart_ms == ROUND_TRIP_GOAL_MS and rate >= FILLS_GOAL
                        figures += _fills(name, asked, found, rate, judged=judged)
                        notes += notes_of(name, found)
                        percentiles[name] = found.latency
                        p99.setdefault((rate, site), []).append(found.latency.p99_ms)
                        if apart_ms == ROUND_TRIP_GOAL_MS:
                            words = f"{rate:,} fills/s, {_site(site)}"
                            distributions.append(
                                distribution(f"{apart_ms:g} ms round trip", words, found.samples.latency_ms)
                            )
    curves = [
        Curve(
            "p99 by round trip between sites",
            "line",
            f"{rate:,} fills/s, client at the {_site(site)}",
            [*round_trip_ms],
            values,
            "round trip, ms",
            "ms",
            log_y=True,
        )
        for (rate, site), values in p99.items()
    ]
    return Report(
        benchmark="load-wan",
        figures=figures,
        settings={
            "members": 3,
            "connections": connections,
            "orders_per_fill": orders_per_fill,
            "frame": f"up to {frame} that are due in one millisecond on one connection",
            "pipeline": pipeline or "default",
            "seconds": seconds,
            "timing": f"wan from {WAN_FROM_MS:g} ms of round trip on, else lan",
            **SETTINGS,
        },
        host=host.describe(folder),
        seconds=time.monotonic() - began,
        notes=notes,
        curves=[*curves, *distributions],
        percentiles=percentiles,
    )


def _fills(name: str, asked: Asked, found: Played, rate: int, *, judged: bool) -> list[Figure]:
    if not judged:
        first = Figure(f"{name}: fills", found.fills_per_s, "/s")
        return [first, *figures_of("  orders", asked, found)]
    p99 = at_most("  p99", found.latency.p99_ms, P99_GOAL_MS, "ms")
    first = at_least(f"{name}: fills", found.fills_per_s, rate * 0.98, "/s")
    return [
        first,
        *figures_of("  orders", asked, found, p99=p99),
        exactly("  unknown", found.unknown, 0),
    ]


_PERCENTILES: dict[str, Callable[[Spread], float]] = {
    "p50": lambda one: one.p50_ms,
    "p99": lambda one: one.p99_ms,
    "p99.9": lambda one: one.p999_ms,
}


def _line(picture: str, series: str, rates: Iterable[int], values: list[float]) -> Curve:
    return Curve(
        picture, "line", series, [*map(float, rates)], values, "offered, orders/s", "ms", log_x=True, log_y=True
    )


def _grouped(curves: list[Curve]) -> list[Curve]:
    """Pictures in the order of their names, so that those of one lie together."""
    return sorted(curves, key=lambda curve: curve.picture != "latency against offered load")


def _clients(count: int) -> str:
    return "1 client" if count == 1 else f"{count:,} clients"


def _site(site: Site) -> str:
    return "leader's site" if site == "leader" else "other site"


def _cpu_us(found: Played) -> float:
    """0 where nothing was answered in time."""
    spent = sum(spent for who, spent in found.cpu_s.items() if who != GENERATOR)
    return spent / found.done_within * 1e6 if found.done_within else 0.0
