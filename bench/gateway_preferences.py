"""The benchmark of preferences at one site and between two: writes a second, a read, and a lost disk that is filled."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from bench import host
from bench.report import Figure, Report
from bench.running import run_loop
from gateway.prefs.measure import Filled, ReadTimes, Written, measure_fill, measure_reads, measure_writes

CLIENTS = (1, 100, 1_000)
USERS = 20_000


def preferences(folder: Path, *, seconds: float = 3, clients: Sequence[int] = CLIENTS, accounts: int = USERS) -> Report:
    """Preferences written by few and by many at one site, and read; a site that lost its disk is filled by its peer."""
    began = time.monotonic()
    root = folder / "gateway-preferences"
    root.mkdir(parents=True, exist_ok=True)
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))  # stdout is the result's
    try:
        written, read, filled = run_loop(_measured(root, seconds, clients, accounts))
    finally:
        structlog.configure(**before)
    figures: list[Figure] = []
    for one in written:
        figures += [
            Figure(f"{one.clients:,} clients: writes a second", one.writes_per_s, "/s"),
            Figure("  writes that share a sync", one.writes_per_sync),
            Figure("  a write, p50", one.ms_p50, "ms"),
            Figure("  a write, p99", one.ms_p99, "ms"),
        ]
    for where, (median_us, slow_us) in (
        ("from memory", read.memory_us),
        ("from the site's store, opened", read.store_us),
        ("of the same bytes from a cache server", read.cache_us),
    ):
        figures += [Figure(f"a read {where}, p50", median_us, "us"), Figure("  p99", slow_us, "us")]
    figures += [
        Figure(f"a site without its disk has {filled.users:,} users again after", filled.seconds, "s"),
        Figure("  bytes of a user's document", filled.bytes_per_user, "B"),
    ]
    return Report(
        benchmark="gateway-preferences",
        figures=figures,
        settings={"seconds": seconds, "clients": ", ".join(f"{count:,}" for count in clients), "users": accounts},
        host=host.describe(folder),
        seconds=time.monotonic() - began,
        notes=[
            "each client writes when its last write is answered: synced to the site's disk",
            "cuts between the sites are those of gateway-partition",
        ],
    )


async def _measured(
    folder: Path, seconds: float, clients: Sequence[int], users: int
) -> tuple[list[Written], ReadTimes, Filled]:
    written = [await measure_writes(count, seconds, folder) for count in clients]
    return written, await measure_reads(users, folder), await measure_fill(users, folder)
