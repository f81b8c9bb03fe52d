"""Faults of disks: power cut, full, lost, and damaged behind the member's back."""

import asyncio
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from chaos.disk.children import Failed
from chaos.disk.mounts import LoopDisk
from chaos.faults import disks, processes
from chaos.faults.nemesis import Detail, Nemesis, Struck, choose, drawn, felt
from chaos.faults.network import together
from chaos.faults.process import MEMBERS
from chaos.faults.target import Target
from chaos.net.links import NotCut

BALLAST = "ballast"
CHUNK_BYTES = 1 << 20
REJOIN_S = 60.0
ONE_DISK = ("one", "leader", "replica")
DAMAGED = ("journal/data.mdb", "store/data.mdb", "store/segments/*", "snapshots/*")
"""What a member keeps, below its data folder."""


def _disk(target: Target, name: str) -> LoopDisk:
    disk = disks.disk_of(target.folder_of(name))
    if disk is None:
        raise NotCut(f"{name} has no disk of its own")
    return disk


def _no_disks(target: Target) -> str:
    if all(disks.disk_of(target.folder_of(name)) is not None for name in target.members):
        return ""
    return disks.unavailable() or "the members have no disks of their own in this run"


class PowerCut(Nemesis):
    """All that the page cache held and the disk did not is gone. The process dies with the power.

    detail: `who`: all is the loss of power everywhere at once.
    """

    name = "power-cut"
    line = "cut the power of one, a minority or all members: what was not synced is lost"
    parts = MEMBERS

    def __init__(self) -> None:
        self.down: list[str] = []
        self.seen = ""

    def available(self, target: Target) -> str:
        return _no_disks(target)

    async def begin(self, target: Target, rng: Random, detail: Detail) -> Struck:
        who = drawn(detail, "who", lambda: rng.choice((*ONE_DISK, "minority", "all")))
        names = await choose(target, rng, who)
        for name in names:
            processes.must_run(target, name)
        found = [_disk(target, name) for name in names]
        self.down = names
        for disk in found:
            disk.cut()
        refused = [name for name in names if _refuses(target.folder_of(name))]
        self.seen = f"nothing can be written any more: {', '.join(refused)}" if refused == names else ""
        await together(target.kill(name) for name in names)
        return Struck(names, {"who": who})

    async def bite(self, target: Target, struck: Struck) -> str:
        if not self.seen:
            raise NotCut(f"power-cut: after the cut something could be written by one of {', '.join(self.down)}")
        return self.seen

    async def end(self, target: Target) -> None:
        down, self.down = self.down, []
        await together(power_again(target, name) for name in down)
        await processes.bring_back(target, down)


async def power_again(target: Target, name: str) -> None:
    """The file system finds out what it still has."""
    await target.kill(name)
    disk = _disk(target, name)

    def again() -> None:
        disk.unmount()
        disk.mount()

    try:
        await asyncio.to_thread(again)
    except Failed as error:
        raise NotCut(f"the disk of {name} does not come back: {error}") from error


def _refuses(folder: Path) -> bool:
    probe = folder / ".probe"
    try:
        probe.write_bytes(b"x")
    except OSError as error:
        return error.errno in (errno.EIO, errno.EROFS)
    probe.unlink()
    return False


class DiskFull(Nemesis):
    """detail: `who`; `left_bytes`: what stays free; 0: every write fails, and a member that must write leaves."""

    name = "disk-full"
    line = "fill the disk of one, the leader or all members: little room, or none"
    parts = MEMBERS

    def __init__(self) -> None:
        self.full: list[str] = []
        self.left_bytes = 0

    def available(self, target: Target) -> str:
        return _no_disks(target)

    async def begin(self, target: Target, rng: Random, detail: Detail) -> Struck:
        who = drawn(detail, "who", lambda: rng.choice(("leader", "one", "all")))
        self.left_bytes = drawn(detail, "left_bytes", lambda: rng.choice((0, 8 << 20)))
        names = await choose(target, rng, who)
        places = [_disk(target, name).path / BALLAST for name in names]
        self.full = names
        for place in places:
            await asyncio.to_thread(_fill, place, self.left_bytes)
        return Struck(names, {"who": who, "left_bytes": self.left_bytes})

    async def bite(self, target: Target, struck: Struck) -> str:
        async def look() -> str:
            seen = []
            for name in self.full:
                if target.pid(name) is None:
                    seen.append(f"{name} left")
                    continue
                status = await target.status(name)
                if status is None or status["disk_free_bytes"] > self.left_bytes + CHUNK_BYTES:
                    return ""
                seen.append(f"{name} has {status['disk_free_bytes']} bytes left")
            return "; ".join(seen)

        return await felt(look, f"disk-full: little room for {', '.join(self.full)}")

    async def end(self, target: Target) -> None:
        full, self.full = self.full, []
        for name in full:
            (_disk(target, name).path / BALLAST).unlink(missing_ok=True)
        left = [name for name in full if target.pid(name) is None]
        self.told = f"left for want of room: {', '.join(left)}" if left else ""
        await processes.bring_back(target, full)


def _fill(place: Path, left_bytes: int) -> None:
    with place.open("wb", buffering=0) as file:
        try:
            size_bytes = max(0, shutil.disk_usage(place.parent).free - left_bytes)
            os.posix_fallocate(file.fileno(), 0, size_bytes) if size_bytes else None
            while not left_bytes:
                file.seek(0, os.SEEK_END)
                file.write(bytes(4096))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


class LostDisk(Nemesis):
    """A voter on a new disk does not count until it has caught up, so one at a time.

    detail: `who`.
    """

    name = "lost-disk"
    line = "a member loses its whole disk, and joins again with an empty one"
    parts = MEMBERS

    def __init__(self) -> None:
        self.down = ""
        self.files = 0

    async def begin(self, target: Target, rng: Random, detail: Detail) -> Struck:
        who = drawn(detail, "who", lambda: rng.choice(ONE_DISK))
        name = (await choose(target, rng, who))[0]
        processes.must_run(target, name)
        self.down = name
        await target.kill(name)
        self.files = _files(target.folder_of(name))
        await target.wipe(name)
        return Struck([name], {"who": name})

    async def bite(self, target: Target, struck: Struck) -> str:
        left = _files(target.folder_of(self.down))
        if left or not self.files:
            raise NotCut(f"lost-disk: {self.down} had {self.files} files and has {left}")
        return f"{self.down} had {self.files} files and has none"

    async def end(self, target: Target) -> None:
        name, self.down = self.down, ""
        if name:
            await rejoin(target, name)
            self.told = f"{name} joined with an empty disk"


def _files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


async def rejoin(target: Target, name: str) -> None:
    """Start one whose disk is new and wait until it counts again. Raises NotCut."""
    await processes.bring_back(target, [name])

    async def look() -> str:
        status = await target.status(name)
        return name if status is not None and not status["rejoining"] else ""

    await felt(look, f"{name} has joined with its new disk", within_s=REJOIN_S)


async def start_or_rejoin(target: Target, name: str) -> str:
    """Start one whose disk is damaged. If it says so and leaves, it gets an empty folder, as it asks. Returns which."""
    try:
        await processes.bring_back(target, [name])
        return f"{name} started"
    except NotCut:
        if target.pid(name) is not None:
            raise
    await target.wipe(name)
    await rejoin(target, name)
    return f"{name} refused to start, and joined with an empty folder"


class Damage(Nemesis):
    """While the member is down. One that notices does not start, says so, and is given an empty folder, as it asks.

    detail: `who`; `file`: a pattern below the data folder.
    """

    parts = MEMBERS
    damage: Callable[[Path, Random], str]

    def __init__(self) -> None:
        self.down = ""
        self.seen = ""

    async def begin(self, target: Target, rng: Random, detail: Detail) -> Struck:
        who = drawn(detail, "who", lambda: rng.choice(("follower", "replica")))
        pattern = drawn(detail, "file", lambda: rng.choice(DAMAGED[:2]))
        name = (await choose(target, rng, who))[0]
        processes.must_run(target, name)
        self.down = name
        await target.kill(name)
        files = sorted(path for path in target.folder_of(name).glob(pattern) if path.is_file() and path.stat().st_size)
        if not files:
            raise NotCut(f"{self.name}: {name} has no {pattern}")
        file = rng.choice(files)
        self.seen = f"{name}: {file.relative_to(target.folder_of(name))}, {type(self).damage(file, rng)}"
        return Struck([name], {"who": name, "file": pattern})

    async def bite(self, target: Target, struck: Struck) -> str:
        if not self.seen:
            raise NotCut(f"{self.name}: nothing was damaged")
        return self.seen

    async def end(self, target: Target) -> None:
        name, self.down = self.down, ""
        if not name:
            return
        self.told = await start_or_rejoin(target, name)


def _flip(file: Path, rng: Random) -> str:
    size_bytes = file.stat().st_size
    at, bit = rng.randrange(size_bytes), rng.randrange(8)
    with file.open("r+b") as opened:
        opened.seek(at)
        was = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([was ^ 1 << bit]))
        opened.flush()
        os.fsync(opened.fileno())
        opened.seek(at)
        now = opened.read(1)[0]
    return f"byte {at} of {size_bytes} was {was} and is {now}" if now != was else ""


def _truncate(file: Path, rng: Random) -> str:
    size_bytes = file.stat().st_size
    kept = rng.randrange(size_bytes)
    os.truncate(file, kept)
    return f"{kept} of {size_bytes} bytes kept"


class BitFlip(Damage):
    name = "bit-flip"
    line = "one bit of a member's journal or store is another when it starts again"
    damage = staticmethod(_flip)


class Truncated(Damage):
    name = "truncated"
    line = "the end of a member's journal or store is missing when it starts again"
    damage = staticmethod(_truncate)
