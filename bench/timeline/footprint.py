"""What members take while they run: memory and disk, looked at again and again, and how fast it grows."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from bench.running import Running

KIB = 1_024


class Taken(Struct, frozen=True):
    """Of one member at one moment, in bytes. pss: with its share of what processes have in common.

    The store is mapped into memory: its pages count in rss and pss, and the system takes them back when it needs them;
    anonymous is what it can't take back.
    """

    at: float
    rss: int
    pss: int
    anonymous: int
    disk: int


class Footprint:
    """By member, in the order in which it was looked."""

    def __init__(self, cluster: Running) -> None:
        self._cluster = cluster
        self.taken: dict[str, list[Taken]] = {}

    def look(self) -> None:
        """A member that does not run is left out."""
        for name in self._cluster.launcher.members:
            pid = self._cluster.launcher.running(name)
            if pid is not None:
                rss, pss, anonymous = memory(pid)
                disk = disk_bytes(self._cluster.folder.data(name))
                self.taken.setdefault(name, []).append(Taken(time.time(), rss, pss, anonymous, disk))

    async def watch(self, every_s: float) -> None:
        """Until cancelled."""
        while True:
            await asyncio.to_thread(self.look)
            await asyncio.sleep(every_s)


def memory(pid: int) -> tuple[int, int, int]:
    """(resident, share of it, anonymous) in bytes; zeros for a process that is gone."""
    found = {"Rss": 0, "Pss": 0, "Anonymous": 0}
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, rest = line.partition(":")
        if name in found:
            found[name] = int(rest.split()[0]) * KIB
    return found["Rss"], found["Pss"], found["Anonymous"]


def disk_bytes(folder: Path) -> int:
    """What a folder takes on disk, sparse files by what they have. Files that go meanwhile are left out."""
    total = 0
    for path in folder.rglob("*"):
        try:
            status = path.stat()
        except OSError:
            continue
        if path.is_file():
            total += status.st_blocks * 512
    return total


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """How fast y grows with x, by least squares; 0 for less than two moments."""
    if len(x) < 2:
        return 0.0
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((one - mean_x) ** 2 for one in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread if spread else 0.0
