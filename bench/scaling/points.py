"""One point of a curve: a filled store, a process that applies traffic to a copy of it, and what that showed."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from bench.report import Curve, Figure, distribution
from bench.running import RunError, asked_of_process, run_loop
from bench.scaling.applying import CLUSTER_ID, MEMBER, Result, Spec
from bench.scaling.traffic import Draw, Traffic
from bench.scaling.world import World, check_room, check_world, fill, forget_pages, load_pages
from bench.stats import Spread, percentile, spread
from statemachine.store import Store

WARMUP_SHARE = 4
"""One command is applied before the clock runs for so many that are measured."""


class Load(Struct, frozen=True):
    """What is sent to a filled store. file_cached: its file is in the system's memory when the process starts; else it
    is dropped from it, and each page is first read from the disk."""

    commands: int
    batch: int
    accounts: Draw = "uniform"
    symbols: Draw = "uniform"
    file_cached: bool = True


class Point(Struct, frozen=True):
    """size: of what the benchmark scales. series: which of its lines this point is of."""

    series: str
    size: int
    world: World
    result: Result

    @property
    def per_s(self) -> float:
        return self.result.commands / self.result.seconds

    @property
    def cpu_us(self) -> float:
        """CPU time of a command; comparable where others use the machine, too."""
        return self.result.cpu_s / self.result.commands * 1e6

    @property
    def batch_p99_ms(self) -> float:
        return percentile(self.result.batch_ms, 99)

    @property
    def opened_mib(self) -> float:
        """What the state takes in memory before the first command."""
        return self.result.opened.own_mib - self.result.before.own_mib

    @property
    def read_us(self) -> float:
        return self.result.read_s / self.result.reads * 1e6 if self.result.reads else 0.0


def check_sizes(folder: Path, worlds: Sequence[World]) -> None:
    """Before anything is built. Raises RunError: one of them can't be, or finds no room on the disk."""
    for world in worlds:
        check_world(world)
        check_room(folder, world)


def filled(folder: Path, world: World) -> Path:
    """A store of this world in an empty folder, closed."""
    root = folder / "filled"
    store = Store(root, cluster_id=CLUSTER_ID, member=MEMBER)
    try:
        fill(store, world)
    finally:
        store.close()
    return root


def measured(root: Path, world: World, load: Load, *, seed: int) -> Result:
    """Apply traffic to a copy of the store in `root`, in a process of its own.

    Raises RunError: something was refused.
    """
    copy, batches = root.with_name("copy"), root.with_name("batches")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(root, copy)
    traffic = Traffic(world, accounts=load.accounts, symbols=load.symbols, seed=seed)
    warmup = max(1, load.commands // WARMUP_SHARE // load.batch)
    encoded = list(traffic.batches(warmup * load.batch + load.commands, load.batch))
    batches.write_bytes(msgspec.msgpack.encode(encoded))
    forget_pages(copy)
    if load.file_cached:
        load_pages(copy)
    result = run_loop(asked_of_process("bench.scaling.applying", Spec(str(copy), str(batches), warmup), Result))
    if result.refused:
        raise RunError(f"the rules refused what traffic counts on: {result.refused}")
    shutil.rmtree(copy)
    batches.unlink()
    return result


def figures(points: Sequence[Point], what: str) -> list[Figure]:
    """The table: for each point its throughput, its CPU time, its slow batches and its reads. what: of which size."""
    found = []
    for point in points:
        result = point.result
        name = f"{point.size:,} {what}, {point.series}"
        found += [
            Figure(f"{name}: order commands a second", point.per_s, "/s"),
            Figure("  CPU of a command", point.cpu_us, "us"),
            Figure("  a batch's apply, p99", point.batch_p99_ms, "ms"),
            Figure("  a flush, p50", percentile(result.flush_ms, 50), "ms"),
            Figure("  written to the disk for a command", result.written_bytes / result.commands, "B"),
            Figure("  accounts read from the store for a command", result.reads / result.commands),
            Figure("  an account's read, mean", point.read_us, "us"),
            Figure("  pages that came from the disk for a command", result.faults / result.commands),
            Figure("  memory of the process at the end, its own", result.after.own_mib, "MiB"),
        ]
    return found


def curves(points: Sequence[Point], x_label: str) -> list[Curve]:
    """Throughput, CPU time, slow batches and memory against size, each series a line; all batches of the largest."""
    found: list[Curve] = []
    pictures: list[tuple[str, str, Callable[[Point], float]]] = [
        ("throughput", "order commands a second", lambda point: point.per_s),
        ("CPU of a command", "us", lambda point: point.cpu_us),
        ("a batch's apply, p99", "ms", lambda point: point.batch_p99_ms),
        ("memory of the process", "MiB", lambda point: point.result.after.own_mib),
    ]
    for picture, y_label, read in pictures:
        for series in dict.fromkeys(point.series for point in points):
            mine = [point for point in points if point.series == series]
            found.append(
                Curve(
                    picture,
                    "line",
                    series,
                    [float(point.size) for point in mine],
                    [read(point) for point in mine],
                    x_label,
                    y_label,
                    log_x=True,
                )
            )
    largest = max(point.size for point in points)
    found += [
        distribution(f"a batch's apply, {largest:,} {x_label}", point.series, point.result.batch_ms)
        for point in points
        if point.size == largest
    ]
    return found


def percentiles(points: Sequence[Point], what: str) -> dict[str, Spread]:
    return {
        f"a batch's apply, {point.size:,} {what}, {point.series}": spread(point.result.batch_ms) for point in points
    }
