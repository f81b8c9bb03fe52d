"""The durable log of quotes, trades and statuses: one file per UTC day, checksummed, cut where it is torn.

What `flush` has written survives the death of the process; what `sync` has synced survives a power cut. The
owner flushes every 100 ms and syncs every second from a thread: market data comes again, money does not pass
here. A disk that fails or is nearly full costs ticks, never the gateway: they are counted, and readers are
told how many are missing.
"""

import fcntl
import hashlib
import json
import os
import threading
from pathlib import Path

import msgspec
import structlog

from gateway.feeds.ticks import Quote, Status, Tick, Trade
from gateway.market.tickblocks import (
    TICKS_MAX,
    Block,
    day_files,
    day_text,
    encode,
    headers,
    is_whole,
    next_whole,
)
from gateway.market.tickcursors import cursors
from gateway.market.tickseals import Seal, TickLogError, read_seal

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.ticklog")

__all__ = ["TickLog", "TickLogError", "prune", "seal", "unsealed_days"]

FREE_BYTES_MIN = 1 << 30


class TickLog:
    """The one writer of a folder. Not thread-safe, save `sync`, which may run beside `append`."""

    def __init__(self, folder: Path, *, quotes: bool = True, free_bytes_min: int = FREE_BYTES_MIN) -> None:
        """Open, and cut what a crash tore. Raises TickLogError where another process writes here.

        quotes: false keeps trades and statuses only. 50,000 quotes/s are 12 GB an hour.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.free_bytes_min = free_bytes_min
        self._kinds = {Trade, Status, Quote} if quotes else {Trade, Status}
        self.day = ""
        self.next_seq = 0
        self.lost = 0
        """Ticks that could not be written since this was opened."""
        self.cut_bytes = 0
        self.sync_errors = 0
        self.paused = False
        """No ticks are written, because the disk is nearly full."""
        self._pending: list[Tick] = []
        self._descriptor = -1
        self._offset = 0
        self._rolling = threading.Lock()
        self._lock = _lock(folder)
        try:
            self._open_last()
        except (TickLogError, OSError):
            os.close(self._lock)
            raise

    def append(self, ticks: list[Tick], now_us: int) -> None:
        """Take ticks; books are left out. Written by the next flush, or at once when a block is full."""
        day = day_text(now_us)
        if day > self.day:
            self.flush()
            self._roll(day)
        for tick in ticks:
            if type(tick) in self._kinds:
                self._pending.append(tick)
        if len(self._pending) >= TICKS_MAX:
            self.flush()

    def flush(self) -> None:
        """Hand what was appended to the operating system: it then survives this process."""
        pending, self._pending = self._pending, []
        for start in range(0, len(pending), TICKS_MAX):
            self._write(pending[start : start + TICKS_MAX])

    def sync(self) -> None:
        """Make what was flushed survive a power cut. Blocks; call it from a thread, about every second."""
        with self._rolling:
            descriptor, offset, day = self._descriptor, self._offset, self.day
        if descriptor < 0:
            return
        try:
            space = os.statvfs(self.folder)
            self.paused = space.f_bavail * space.f_frsize < self.free_bytes_min
            os.fdatasync(descriptor)
            _write_synced(self.folder / f"{day}.synced", offset)
        except OSError as error:
            self.sync_errors += 1
            log.warning("tick log not synced", error=str(error))

    def close(self) -> None:
        self.flush()
        self.sync()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        os.close(self._lock)

    @property
    def file_bytes(self) -> int:
        """Of the day's file, without what is still to be flushed."""
        return self._offset

    def _write(self, ticks: list[Tick]) -> None:
        first_seq = self.next_seq
        # The number moves on whatever happens: a hole in the numbers is how readers learn of the loss.
        self.next_seq += len(ticks)
        if self.paused:
            self.lost += len(ticks)
            return
        data = encode(ticks, first_seq)
        try:
            written = os.pwrite(self._descriptor, data, self._offset)
            if written < len(data):
                raise OSError("short write")
        except OSError as error:
            self.lost += len(ticks)
            log.warning("tick log not written", error=str(error), ticks=len(ticks))
            return  # what was half written lies past the offset: the next block overwrites it
        self._offset += written

    def _roll(self, day: str) -> None:
        if self._descriptor >= 0:
            self.sync()
        with self._rolling:
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self.day, self._offset = day, 0
            self._descriptor = os.open(self.folder / f"{day}.ticks", os.O_RDWR | os.O_CREAT, 0o640)
        sync_folder(self.folder)
        self._cut()

    def _open_last(self) -> None:
        seals = [read_seal(path) for path in sorted(self.folder.glob("*.seal.json"))]
        self.next_seq = max((seal.next_seq for seal in seals), default=0)
        days = day_files(self.folder)
        for path in days.values():
            # The newest may have no block yet; and a day that has no seal yet says itself where it ended.
            if not (self.folder / f"{path.stem}.seal.json").exists() and path.stem != max(days):
                self.next_seq = max(self.next_seq, end_seq(path))
        if days:
            self._roll(max(days))
        # Readers may have seen what a power cut then took: their numbers must not be used again.
        self.next_seq = max(self.next_seq, *cursors(self.folder).values(), 0)

    def _cut(self) -> None:
        """Find the end of the open file's last good block, and cut what lies behind it."""
        descriptor, size = self._descriptor, os.fstat(self._descriptor).st_size
        synced = _read_synced(self.folder / f"{self.day}.synced")
        last: Block | None = None
        end = 0
        while True:
            for block in headers(descriptor, end):
                if block.end > synced and not is_whole(descriptor, block):
                    break
                last, end = block, block.end
            following = next_whole(descriptor, end) if end < size else None
            if following is None:
                break
            log.warning("tick log damaged", day=self.day, offset=end, bytes=following.offset - end)
            end = following.offset
        if end < size:
            self.cut_bytes += size - end
            log.warning("tick log cut where it was torn", day=self.day, offset=end, bytes=size - end)
            os.ftruncate(descriptor, end)
        self._offset = end
        if last is not None:
            self.next_seq = max(self.next_seq, last.next_seq)


def end_seq(path: Path) -> int:
    """The seq after the last good block of a day; 0 if there is none."""
    end = seq = 0
    with path.open("rb") as file:
        while (block := next_whole(file.fileno(), end)) is not None:
            # Headers are enough, as far as they are good.
            for one in headers(file.fileno(), block.offset):
                block = one
            end, seq = block.end, block.next_seq
    return seq


def seal(folder: Path, day: str) -> Seal:
    """Finish a day that is no longer written: count it, hash it, write its seal. Blocks; run it in a thread.

    Raises:
        TickLogError: no such day, or the day is still the newest.
    """
    days = day_files(folder)
    if day not in days:
        raise TickLogError(f"{day}: no such day in {folder}")
    if day == max(days):
        raise TickLogError(f"{day}: still being written")
    path, digest = days[day], hashlib.sha256()
    ticks = end = damaged = 0
    first_seq: int | None = None
    next_seq = 0
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
        size = file.tell()
        while (block := next_whole(file.fileno(), end)) is not None:
            damaged += block.offset - end
            ticks, end, next_seq = ticks + block.count, block.end, block.next_seq
            first_seq = block.first_seq if first_seq is None else first_seq
    made = Seal(day, first_seq or 0, next_seq, ticks, size, digest.hexdigest(), damaged + size - end)
    write_whole(folder / f"{day}.seal.json", msgspec.json.format(msgspec.json.encode(made)))
    (folder / f"{day}.synced").unlink(missing_ok=True)
    return made


def unsealed_days(folder: Path) -> list[str]:
    """Finished days that have no seal yet, oldest first."""
    days = day_files(folder)
    return [day for day in days if day != max(days) and not (folder / f"{day}.seal.json").exists()]


def prune(folder: Path, *, before_day: str) -> list[str]:
    """Delete the sealed files of days before one; the seals stay. Gives the days deleted."""
    gone = [day for day, _ in day_files(folder).items() if day < before_day and (folder / f"{day}.seal.json").exists()]
    for day in gone:
        (folder / f"{day}.ticks").unlink()
    return gone


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file so that a crash leaves the old one or the new one."""
    draft = path.with_name(path.name + ".new")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """So that the names in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(folder: Path) -> int:
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise TickLogError(f"{folder}: another process writes here") from error
    return descriptor


def _write_synced(path: Path, offset: int) -> None:
    """Up to here the file is on the disk: it need not be checked again. Not synced itself; older is only slower."""
    path.write_bytes(json.dumps({"offset": offset}).encode())


def _read_synced(path: Path) -> int:
    try:
        offset = json.loads(path.read_bytes())["offset"]
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return offset if isinstance(offset, int) else 0
