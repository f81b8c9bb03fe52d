"""One member's disk: what was synced survives a power cut, what was not is lost; it can be slow, full, or broken.

A group of the journal is one LMDB transaction, so a cut leaves all of it or nothing; what real LMDB does under
cuts is another test's. A disk that lies is beyond what is promised, and is there to see that it is noticed.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from cluster.consensus.journal import (
    CONFIGURATION,
    Base,
    Change,
    Committed,
    CutFrom,
    Entry,
    Loaded,
    PeerDisks,
    Put,
    StartAfter,
    TrimTo,
    Vote,
)
from cluster.consensus.journal import Disk as DiskRecord

NO_OP = b"\1"


class DiskGap(Exception):
    """The journal wrote an entry that does not follow the last one."""


class Disk:
    """The durable image of a journal. first_index is the index of entries[0]. record: which disk this is."""

    def __init__(self, disk_id: str) -> None:
        self.record = DiskRecord(disk_id, joined=False)
        self.peer_disk_ids: dict[str, str] = {}
        self.base: Base | None = None
        self.entries: list[Entry] = []
        self.vote = Vote(0, None)
        self.commit_index = 0
        self._platter: tuple[DiskRecord, dict[str, str], Base | None, list[Entry], Vote, int] | None = None

    def lie(self) -> None:
        """From now on it says of each group that it is there, and the next power cut takes all of them back."""
        self._platter = (
            self.record,
            dict(self.peer_disk_ids),
            self.base,
            list(self.entries),
            self.vote,
            self.commit_index,
        )

    def power_cut(self) -> None:
        if self._platter is not None:
            self.record, self.peer_disk_ids, self.base, self.entries, self.vote, self.commit_index = self._platter
            self._platter = None

    @property
    def first_index(self) -> int:
        return self.entries[0][1] if self.entries else 1

    @property
    def last_index(self) -> int:
        return self.entries[-1][1] if self.entries else 0

    def holds(self, index: int, term: int) -> bool:
        """Also when the entry was trimmed: that may be done only to what all have."""
        if not self.entries:
            return False
        offset = index - self.entries[0][1]
        return offset < 0 or (offset < len(self.entries) and self.entries[offset][2] == term)

    def put(self, changes: Sequence[Change]) -> None:
        for change in changes:
            entries = self.entries
            match change:
                case Put(index, term, command):
                    if entries and entries[-1][1] != index - 1:
                        raise DiskGap(f"entry {index} written after {entries[-1][1]}")
                    entries.append((command, index, term))
                case CutFrom(index):
                    del entries[max(0, index - self.first_index) :]
                case TrimTo(index):
                    del entries[: max(0, index - self.first_index)]
                case StartAfter(index, term):
                    self.entries = [(NO_OP, index, term)]
                case Vote():
                    self.vote = change
                case Committed(index):
                    self.commit_index = index
                case DiskRecord():
                    self.record = change
                case PeerDisks(disk_ids):
                    self.peer_disk_ids = disk_ids
                case Base():
                    self.base = change


class DiskStorage:
    """The journal's `Storage` over a Disk. broken: the next write raises it, after doing its work or not."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.broken: OSError | None = None

    def load(self, *, tail_bytes_max: int) -> Loaded:
        disk = self.disk
        size = kept = 0
        for entry in reversed(disk.entries):
            size += len(entry[0])
            if kept and size > tail_bytes_max:
                break
            kept += 1
        tail = disk.entries[len(disk.entries) - kept :]
        first = disk.first_index if disk.entries else 0
        since = 0 if disk.base is None else disk.base.index
        configurations = [
            (index, command) for command, index, _ in disk.entries if command[:1] == CONFIGURATION and index > since
        ]
        return Loaded(
            first,
            disk.last_index,
            tail,
            disk.vote,
            disk.commit_index,
            disk.record,
            dict(disk.peer_disk_ids),
            disk.base,
            configurations,
        )

    def read(self, first_index: int, count: int) -> list[Entry]:
        offset = first_index - self.disk.first_index
        if offset < 0:
            raise DiskGap(f"read of entry {first_index}; the disk begins at {self.disk.first_index}")
        return self.disk.entries[offset : offset + count]

    def write(self, changes: Sequence[Change]) -> None:
        if self.broken is not None:
            raise self.broken
        self.disk.put(changes)

    def used_bytes(self) -> int:
        return 100 * len(self.disk.entries)  # near enough, and asked for at every tick

    def close(self) -> None:
        pass


class Machinery(Protocol):
    """Who runs the disk's work: the member."""

    def disk_works(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None: ...


class DiskCommitter:
    def __init__(self, machinery: Machinery) -> None:
        self._machinery = machinery

    def run(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        self._machinery.disk_works(work, done)

    def close(self) -> None:
        pass
