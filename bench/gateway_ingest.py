"""The benchmark of market data on its way into a gateway: thousands of symbols on one core, and how old it is there."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench import host
from bench.datasets import DATA_ENV
from bench.gateway_intake import Result, Spec
from bench.report import Figure, Report, at_least, at_most, exactly
from bench.running import RunError

LAG_P99_MS = 50.0
SYMBOLS = (5_000, 10_000)
"""The first is held against the target, the others are reported."""
PER_SYMBOL_S = 10
CAPTURES = ("*.pcap", "*.pcap.gz", "*.pcapng.gz", "*.pcap.zst")


def ingest(folder: Path, *, seconds: float = 5, symbols: Sequence[int] = SYMBOLS, seed: int = 1) -> Report:
    """Ten updates a second for each of thousands of symbols, on one core: NBBO, bars, books, tick log; lag and CPU."""
    began = time.monotonic()
    capture = capture_file()
    core = max(os.sched_getaffinity(0))
    figures: list[Figure] = []
    for place, count in enumerate(symbols):
        spec = Spec(
            symbols=count,
            per_symbol_s=PER_SYMBOL_S,
            seconds=seconds,
            capture=str(capture or ""),
            log_folder=str(folder / "gateway-ingest" / str(count)),
            core=core,
            seed=seed,
        )
        figures += _figures(spec, _measured(spec), held=place == 0)
    return Report(
        benchmark="gateway-ingest",
        figures=figures,
        settings={
            "updates_per_s_and_symbol": PER_SYMBOL_S,
            "seconds": seconds,
            "venues": 8,
            "trades": "20 % of the updates",
            "skew": f"IEX capture {capture.name}" if capture else "Zipf, exponent 0.9",
            "tick_log": "on, flushed every 100 ms, synced every second",
            "core": core,
            "seed": seed,
        },
        host=host.describe(folder),
        seconds=time.monotonic() - began,
        notes=[
            "received: when an update was due, whether or not the process was free; 10 ms of updates come at once",
            "cache: a server of its own on a unix socket, on any core; an update is there when its symbol's newest is",
            "answers come from memory: the cache is for a gateway that starts again, or another one",
            "its age when taken out for the fan-out includes up to 100 ms of waiting for the next round",
            "ticks are made beforehand: reading a venue's bytes is not in here",
        ],
    )


def capture_file() -> Path | None:
    """IEX's recording in TIEBREAK_DATA, or None."""
    given = os.environ.get(DATA_ENV, "")
    found = [path for pattern in CAPTURES for path in Path(given, "iex").glob(pattern)] if given else []
    return min(found, default=None)


def _measured(spec: Spec) -> Result:
    run = subprocess.run(
        [sys.executable, "-m", "bench.gateway_intake"],
        input=msgspec.json.encode(spec),
        capture_output=True,
        check=False,
    )
    if run.returncode != 0:
        last = run.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise RunError(f"the process that takes market data ended with exit code {run.returncode}: {' '.join(last)}")
    return msgspec.json.decode(run.stdout, type=Result)


def _figures(spec: Spec, result: Result, *, held: bool) -> list[Figure]:
    per_s = spec.symbols * spec.per_symbol_s
    what = f"{spec.symbols:,} symbols"
    p99 = "lag from received to cache, p99"
    known = "lag from received to what answers say, p99"
    return [
        at_least(f"{what}: updates a second", result.updates / result.seconds, per_s * 0.99, "/s")
        if held
        else Figure(f"{what}: updates a second", result.updates / result.seconds, "/s"),
        Figure("  lag from received to cache, p50", result.cached.p50_ms, "ms"),
        at_most(f"  {p99}", result.cached.p99_ms, LAG_P99_MS, "ms")
        if held
        else Figure(f"  {p99}", result.cached.p99_ms, "ms"),
        Figure("  lag from received to cache, longest", result.cached.max_ms, "ms"),
        Figure("  symbols written to the cache a second", result.written / result.all_seconds, "/s"),
        Figure("  symbols in a round", result.written / max(1, result.rounds)),
        Figure("  CPU of the cache server", 100 * result.cache_cpu_s / result.all_seconds, "% of a core"),
        at_most(f"  {known}", result.lag.p99_ms, LAG_P99_MS, "ms")
        if held
        else Figure(f"  {known}", result.lag.p99_ms, "ms"),
        Figure("  the same, p99.9", result.lag.p999_ms, "ms"),
        Figure("  the same, longest", result.lag.max_ms, "ms"),
        Figure("  time in which others had this core", 100 * result.waited_s / result.seconds, "%"),
        Figure("  lag on a core of its own, by CPU time, p99", result.own.p99_ms, "ms"),
        Figure("  age when taken out for the fan-out, p99", result.age.p99_ms, "ms"),
        Figure("  CPU", 100 * result.cpu_s / result.seconds, "% of a core"),
        Figure("  symbols quoted", result.quoted),
        Figure("  changed best prices given out", result.changed),
        Figure("  share of the busiest symbol", 100 * result.busiest[0], "%"),
        Figure("  share of the busiest tenth", 100 * result.busiest[1], "%"),
        Figure("  bytes in the tick log for an update", result.log_bytes_per_update, "B"),
        exactly("  updates that the tick log lost", result.log_lost, 0),
        Figure("  memory at its peak, ticks to come included", result.peak_mib, "MiB"),
        Figure("  at most, all at once: updates a second", result.most_per_s, "/s"),
        Figure("  at most, for a second of CPU", result.most_per_cpu_s, "/s"),
        Figure("  10 ms of updates, p99, of CPU", result.most_batch_ms, "ms"),
    ]
