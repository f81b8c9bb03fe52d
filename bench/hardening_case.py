"""The benchmark of what safety costs: the product beside itself without parts of it, and on the library itself."""

import sys
import time
from pathlib import Path
from statistics import fmean

from msgspec import Struct

from bench import host, load
from bench.cluster_cases import load_leader, spec_of
from bench.market import Market
from bench.report import Figure, Report
from bench.running import LIMITS, RunError, run_loop, running
from bench.stats import percentile
from cluster.launcher import MEMBER_PROGRAM

SYMBOL = "BENCH"
SHIPPED = "shipped"
_UNSAFE = (sys.executable, "-P", "-m", "bench.unsafe_member")
VARIANTS: dict[str, tuple[str, ...]] = {
    SHIPPED: MEMBER_PROGRAM,
    "no-sync": (*_UNSAFE, "no-sync"),
    "memory": (*_UNSAFE, "memory"),
    "plain-tcp": (*_UNSAFE, "plain-tcp"),
    "memory+plain-tcp": (*_UNSAFE, "memory", "plain-tcp"),
    "stock": (sys.executable, "-P", "-m", "bench.stock_member"),
}
"""What runs as a member, by the name of the variant."""
WORDS = {
    SHIPPED: "the product",
    "no-sync": "the journal's commits wait for no disk",
    "memory": "the journal is a dictionary",
    "plain-tcp": "no TLS between members",
    "memory+plain-tcp": "both",
    "stock": "the library as published: its journal, pickle over TCP, its thread; set to send each entry at once",
}


class Cell(Struct, frozen=True):
    """One variant in one round."""

    per_s: float
    frame_p99_ms: float
    one_p50_ms: float
    one_p99_ms: float
    cpu_us: float
    fdatasync_p50_ms: float
    truncated: int


def _round(cell: Cell) -> str:
    return f"{cell.per_s:,.0f}/s (fdatasync p50 {cell.fdatasync_p50_ms:.2f} ms)"


TRUNCATED = b"truncating already-applied log entries"
"""What the library says of it."""


def _count(path: Path, words: bytes) -> int:
    return path.read_bytes().count(words)


SHOWN = {
    "per_s": ("order commands a second, pipelined", "/s"),
    "frame_p99_ms": ("a frame of 50, p99", "ms"),
    "cpu_us": ("CPU of all members for a command, pipelined", "us"),
    "one_p50_ms": ("one command at a time, p50", "ms"),
    "one_p99_ms": ("one command at a time, p99", "ms"),
}


def hardening(
    folder: Path,
    *,
    seconds: float = 5,
    rounds: int = 2,
    variants: tuple[str, ...] = tuple(VARIANTS),
    seed: int = 1,
    path: str = "",
) -> Report:
    """Throughput and latency as shipped, without syncs, without TLS, and on the stock library: A B, A B, in one run."""
    began = time.monotonic()
    names = list(dict.fromkeys((SHIPPED, *variants)))
    cells: dict[str, list[Cell]] = {name: [] for name in names}
    failed: list[str] = []
    for at in range(rounds):
        for name in names:
            try:
                cells[name].append(_cell(folder / "hardening" / f"{at}-{name}", name, seconds, seed, path))
            except RunError as error:
                # What has no safety may fall over, and the stock library does. That is a finding, too.
                if name == SHIPPED:
                    raise
                failed.append(f"{name} did not get through round {at + 1}: {error}")
    for name in names:
        if not cells[name]:
            raise RunError("; ".join(failed))
    figures: list[Figure] = []
    for field, (words, unit) in SHOWN.items():
        shipped = fmean(getattr(cell, field) for cell in cells[SHIPPED])
        for name in names:
            mean = fmean(getattr(cell, field) for cell in cells[name])
            figures.append(Figure(f"{words}: {name}", mean, unit))
            if name != SHIPPED:
                figures.append(Figure("  to shipped", mean / shipped if shipped else 0.0, "x"))
    for name in names:
        truncated = sum(cell.truncated for cell in cells[name])
        if truncated:
            figures.append(
                Figure(f"times that a member cut entries from its log that it had applied: {name}", truncated)
            )
    return Report(
        benchmark="hardening",
        figures=figures,
        settings={
            "rounds": rounds,
            "order": ", ".join(names),
            "seconds": seconds,
            "members": 3,
            "load": "WebSocket to the leader, msgpack: 16 frames of 50 under way, then one command at a time",
            "flow": path or f"generator, seed {seed}",
        },
        host=host.describe(folder),
        seconds=time.monotonic() - began,
        notes=[
            *(f"{name}: {WORDS[name]}" for name in names),
            *(f"{name}, each round: {', '.join(map(_round, cells[name]))}" for name in names),
            "the state machine's store syncs in all of them; it is not on the way of an answer",
            *failed,
            "figures are means of the rounds; no variant but the first keeps what it acknowledged",
        ],
    )


def _cell(root: Path, name: str, seconds: float, seed: int, path: str) -> Cell:
    market = Market(SYMBOL)
    specs = [spec_of("one", seconds / 2, seed, path), spec_of("pipelined", seconds, seed, path)]
    for spec in specs:
        spec.warmup_s = min(spec.warmup_s, seconds)
    with running(root, limits=LIMITS, program=VARIANTS[name]) as cluster:
        run_loop(cluster.open_market(market))
        one, piped = (run_loop(load_leader(cluster, market, spec))[0] for spec in specs)
        syncs_ms = percentile(host.sync_times_ms(root), 50)
    spent_s = sum(spent for who, spent in piped.cpu_s.items() if who != load.GENERATOR)
    return Cell(
        per_s=piped.per_s,
        frame_p99_ms=piped.latency.p99_ms,
        one_p50_ms=one.latency.p50_ms,
        one_p99_ms=one.latency.p99_ms,
        cpu_us=spent_s / max(1, piped.commands) * 1e6,
        fdatasync_p50_ms=syncs_ms,
        truncated=sum(_count(cluster.folder.log(member), TRUNCATED) for member in cluster.launcher.members),
    )
