"""How the machine over its store scales: with accounts on disk, with symbols, with orders that rest in books."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from bench import host, progress
from bench.report import Curve, Figure, Report
from bench.running import RunError
from bench.scaling.points import Load, Point, check_sizes, curves, figures, filled, measured, percentiles
from bench.scaling.traffic import Draw
from bench.scaling.world import World, store_bytes

ACCOUNTS = (1_000, 10_000, 100_000, 1_000_000)
ACCOUNTS_MAX = 20_000_000
"""The cash of more would be beyond what may exist of one asset."""
SYMBOLS = (1, 10, 100, 1_000, 10_000)
OPEN_ORDERS = (100, 1_000, 10_000, 100_000, 1_000_000)
TRADERS = 10_000
"""Accounts where something else is scaled."""
BOOKS = 10
"""Symbols where open orders are scaled."""
RESTING = 20_000
"""Open orders where symbols are scaled: two in each book of the largest."""
SKEWED = "20 % take 80 %"
EMPTIED = "from an emptied page cache"


def accounts(
    folder: Path, *, sizes: Sequence[int] = ACCOUNTS, commands: int = 60_000, batch: int = 50, seed: int = 1
) -> Report:
    """Order commands a second of the machine over its store, against the accounts on disk, drawn evenly and skewed."""
    if max(sizes) > ACCOUNTS_MAX:
        raise RunError(f"{max(sizes):,} accounts: at most {ACCOUNTS_MAX:,}")
    loads = {
        "uniform": Load(commands, batch),
        SKEWED: Load(commands, batch, accounts="skewed"),
        f"uniform, {EMPTIED}": Load(commands, batch, file_cached=False),
    }
    worlds = [World(size) for size in sizes]
    return _measured("scale-accounts", folder, "accounts", list(zip(sizes, worlds, strict=True)), loads, seed=seed)


def symbols(
    folder: Path, *, sizes: Sequence[int] = SYMBOLS, commands: int = 60_000, batch: int = 50, seed: int = 1
) -> Report:
    """Order commands a second of the machine over its store, against the symbols, drawn evenly and skewed."""
    draws: dict[str, Draw] = {"uniform": "uniform", SKEWED: "skewed"}
    loads = {series: Load(commands, batch, symbols=draw) for series, draw in draws.items()}
    worlds = [(size, World(TRADERS, size, RESTING)) for size in sizes]
    return _measured("scale-symbols", folder, "symbols", worlds, loads, seed=seed)


def open_orders(
    folder: Path, *, sizes: Sequence[int] = OPEN_ORDERS, commands: int = 60_000, batch: int = 50, seed: int = 1
) -> Report:
    """Order commands a second of the machine over its store, and memory, against the orders that rest in its books."""
    worlds = [(size, World(TRADERS, BOOKS, size)) for size in sizes]
    return _measured("scale-open-orders", folder, "open orders", worlds, {"uniform": Load(commands, batch)}, seed=seed)


def _measured(
    name: str, folder: Path, what: str, worlds: Sequence[tuple[int, World]], loads: dict[str, Load], *, seed: int
) -> Report:
    began = time.monotonic()
    if min(size for size, _ in worlds) < 1:
        raise RunError(f"{name}: a size is 1 at least")
    place = folder / name
    check_sizes(place, [world for _, world in worlds])
    points: list[Point] = []
    built: list[Figure] = []
    with progress.steps(name, len(worlds) * (1 + len(loads))) as begin:
        for size, world in sorted(worlds, key=lambda one: one[0]):
            begin(f"{size:,} {what}, filling")
            at = time.monotonic()
            root = filled(place, world)
            filled_s = time.monotonic() - at
            on_disk = sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
            built += [
                Figure(f"{size:,} {what}: filling the store took", filled_s, "s"),
                Figure("  it takes on disk", on_disk / 2**20, "MiB"),
            ]
            for series, load in loads.items():
                begin(f"{size:,} {what}, {series}")
                points.append(Point(series, size, world, measured(root, world, load, seed=seed)))
            built += [
                Figure("  open the store and restore the machine", points[-1].result.open_s, "s"),
                Figure("  memory that the state takes then", points[-1].opened_mib, "MiB"),
            ]
            shutil.rmtree(root)
    first = next(iter(loads.values()))
    largest = worlds[-1][1]
    return Report(
        benchmark=name,
        figures=[*figures(points, what), *built, *_each_order(points, name)],
        settings={
            "commands": first.commands,
            "batch": first.batch,
            "mix": "50 resting orders, 46 cancels, 4 takes in 100",
            "accounts": "as given" if name == "scale-accounts" else largest.accounts,
            "symbols": "as given" if name == "scale-symbols" else largest.symbols,
            "open_orders": "as given" if name == "scale-open-orders" else largest.open_orders,
            "seed": seed,
            "disk_of_the_largest": f"about {store_bytes(largest) / 2**20:,.0f} MiB, twice for the copy",
        },
        host=host.describe(folder),
        seconds=time.monotonic() - began,
        notes=[
            "a process of its own for each point: apply, and a worker thread that flushes every 250 ms or 8 MiB, as in "
            "a node; a quarter as many commands are applied before the clock runs; it stops when all is flushed",
            f"the store's file is in the page cache at the start, but for `{EMPTIED}`"
            if name == "scale-accounts"
            else "the store's file is in the page cache at the start",
            "nothing was refused: each take hits what rests, each cancel names an open order",
            "an account holds at most 20 symbols; the state's memory is that of the process beyond what it had before",
            "hardware counters (cache misses) are not read: virtual machines seldom have them",
        ],
        curves=[*curves(points, what), *_each_order_curve(points, name)],
        percentiles=percentiles(points, what),
    )


def _bytes_each(point: Point) -> float:
    return point.opened_mib * 2**20 / point.size


def _each_order(points: Sequence[Point], name: str) -> list[Figure]:
    if name != "scale-open-orders":
        return []
    return [
        Figure(f"memory of an open order, where there are {point.size:,}", _bytes_each(point), "B")
        for point in points
        if point.size >= 10_000
    ]


def _each_order_curve(points: Sequence[Point], name: str) -> list[Curve]:
    if name != "scale-open-orders":
        return []
    sizes: list[float | str] = [float(point.size) for point in points]
    return [
        Curve(
            "open the store and restore the machine",
            "line",
            "",
            sizes,
            [point.result.open_s for point in points],
            "open orders",
            "s",
            log_x=True,
            log_y=True,
        )
    ]
