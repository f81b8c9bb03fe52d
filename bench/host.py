"""What a measurement was made on: the machine, the commit, and how fast this disk syncs right now."""

import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path

from msgspec import Struct

from bench.stats import percentile

SYNCS = 200
SYNC_BYTES = 4_096
CORES_MIN = 2
"""Targets are for a machine with as many."""


class Host(Struct, frozen=True):
    """fdatasync: of 4 KiB appended to one file, in milliseconds, measured in this run."""

    commit: str
    cpu: str
    cores: int
    memory_gib: float
    system: str
    python: str
    fdatasync_p50_ms: float
    fdatasync_p99_ms: float


def describe(folder: Path) -> Host:
    """folder: where the measured files are; the disk that is synced."""
    syncs = sync_times_ms(folder)
    return Host(
        commit=commit(),
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        fdatasync_p50_ms=round(percentile(syncs, 50), 3),
        fdatasync_p99_ms=round(percentile(syncs, 99), 3),
    )


def shortage(found: Host) -> str:
    """What to say of a machine that has less than the targets are for; "" when it has enough."""
    if found.cores >= CORES_MIN:
        return ""
    return f"{found.cores} core: members, peers and load take turns on it; targets are for {CORES_MIN} cores or more"


def commit() -> str:
    """The commit of this checkout, with `+` when files of it are changed; `unknown` outside of git."""
    here = Path(__file__).parent
    try:
        head = _git(here, "rev-parse", "--short=12", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


def _git(here: Path, *arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True)
    return run.stdout.strip()


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def sync_times_ms(folder: Path, count: int = SYNCS) -> list[float]:
    """How long each of `count` appends of 4 KiB takes to be on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    times: list[float] = []
    with tempfile.TemporaryFile(dir=folder) as file:
        block = os.urandom(SYNC_BYTES)
        for _ in range(count):
            file.write(block)
            file.flush()
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - began) * 1e3)
    return times
