"""The benchmarks that need no cluster: the engine alone, the start of a large store."""

import gc
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from bench import host, load
from bench.market import Market
from bench.replay import Engine, record
from bench.report import Figure, Report, at_least, at_most
from statemachine import compiled
from statemachine.store import Store
from statemachine.store_fill import CLUSTER_ID, MEMBER, fill_accounts

ENGINE_FLOOR_PER_S = 40_000
ENGINE_GOAL_PER_S = 100_000
STARTED_SECONDS_MAX = 5.0
STARTED_MIB_MAX = 2_048


def engine(folder: Path, *, commands: int = 200_000, batch: int = 50, seed: int = 1, path: str = "") -> Report:
    """The machine in one process: decode, apply, encode, digest, invariants on; no network, no disk.

    The flow is recorded once, which fixes the ids that cancels name; what is timed is a fresh machine
    that applies the same payloads, batch after batch.
    """
    began = time.monotonic()
    market = Market("BENCH")
    payloads, counts = record(load.intents_of(path, seed), market, commands=commands, batch=batch)
    fresh = Engine(market)
    fresh.open()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        before, cpu_before = time.perf_counter(), time.process_time()
        slices: list[float] = []
        for payload in payloads:
            start = time.perf_counter()
            fresh.apply(payload)
            slices.append((time.perf_counter() - start) * 1e3)
        seconds, cpu_s = time.perf_counter() - before, time.process_time() - cpu_before
    finally:
        gc.enable()
        gc.unfreeze()
    per_s = counts.commands / seconds
    slices.sort()
    return Report(
        benchmark="engine",
        figures=[
            at_least("order commands a second (floor)", per_s, ENGINE_FLOOR_PER_S, "/s"),
            at_least("order commands a second (goal)", per_s, ENGINE_GOAL_PER_S, "/s"),
            Figure("of them new orders a second", counts.orders / seconds, "/s"),
            Figure("fills a second", counts.fills / seconds, "/s"),
            Figure("order commands for a second of CPU", counts.commands / cpu_s, "/s"),
            Figure("microseconds a command", seconds / counts.commands * 1e6, "us"),
            Figure("a batch, p99", slices[len(slices) * 99 // 100], "ms"),
            Figure("commands", counts.commands),
            Figure("new orders", counts.orders),
            Figure("cancels", counts.canceled),
            Figure("reductions", counts.reduced),
            Figure("fills", counts.fills),
            Figure("refused (order gone before its cancel came)", sum(counts.refused.values())),
        ],
        settings={
            "engine": compiled.running(),
            "commands": commands,
            "batch": batch,
            "flow": path or f"generator, seed {seed}",
            "gc": "frozen, off",
        },
        host=host.describe(folder),
        seconds=time.monotonic() - began,
        notes=["an order command is a new order, a reduction, a cancel or a take, in the mix of the flow"],
    )


def store_start(folder: Path, *, accounts: int = 1_000_000) -> Report:
    """A process that opens a store of many accounts and restores the machine: how long, how much memory."""
    began = time.monotonic()
    root = folder / "store"
    store = Store(root, cluster_id=CLUSTER_ID, member=MEMBER)
    fill_accounts(store, accounts)
    store.close()
    filled_s = time.monotonic() - began
    run = subprocess.run(
        [sys.executable, "-m", "statemachine.store_fill", str(root)], capture_output=True, text=True, check=True
    )
    measured = msgspec.json.decode(run.stdout, type=dict[str, float])
    size_mib = sum(file.stat().st_blocks * 512 for file in root.rglob("*") if file.is_file()) / 2**20
    return Report(
        benchmark="store-start",
        figures=[
            at_most("start", measured["seconds"], STARTED_SECONDS_MAX, "s"),
            at_most("memory at its peak", measured["peak_mib"], STARTED_MIB_MAX, "MiB"),
            Figure("on disk", size_mib, "MiB"),
            Figure("filling it took", filled_s, "s"),
        ],
        settings={"accounts": accounts},
        host=host.describe(folder),
        seconds=time.monotonic() - began,
        notes=["the start is that of the store and the machine in a new process; the file was written just before"],
    )
