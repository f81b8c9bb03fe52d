"""Reading a tick log: consumers at their own pace, in this process or another, and days replayed."""

import os
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from gateway.feeds.ticks import Tick
from gateway.market.tickblocks import Block, day_files, headers, next_whole, read_header, read_payload
from gateway.market.tickcursors import NAME, read_cursor, write_cursor
from gateway.market.tickseals import read_seal


class Batch(Struct, frozen=True):
    """Ticks with their seqs: first_seq, first_seq + 1, ... lost: how many are missing before the first."""

    first_seq: int
    ticks: list[Tick]
    lost: int = 0


class TickReader:
    """One consumer. It sees what the writer has flushed; it holds no lock and can't hold the writer up."""

    def __init__(self, folder: Path, name: str, *, from_start: bool = True) -> None:
        """Go on where `name` committed; a new name begins with the oldest tick, or (from_start false) the next.

        Raises:
            ValueError: a name that is not small letters, digits, - and _.
        """
        if not NAME.fullmatch(name):
            raise ValueError(f"consumer name {name!r}: small letters, digits, - and _, at most 64")
        self.folder = folder
        self.name = name
        self.lost = 0
        self._day = ""
        self._descriptor = -1
        self._offset = 0
        self._head: tuple[str, int, int] = ("", 0, 0)
        committed = read_cursor(folder, name)
        if committed is None:
            committed = self._oldest() if from_start else self.head()
        self.seq = committed
        """The next tick that `read` gives."""
        self.committed = committed

    def read(self, limit: int = 2_000) -> Batch | None:
        """The next ticks, at most `limit`; None: no more for now. Damage and pruned days show as `lost`."""
        while True:
            block = self._block()
            if block is None:
                return None
            ticks = read_payload(self._descriptor, block)
            if ticks is None:
                following = next_whole(self._descriptor, block.end)
                if following is None:
                    return None  # not written in full yet, or torn: the writer cuts it when it opens
                self._offset = following.offset
                continue
            lost = max(block.first_seq - self.seq, 0)
            skip = max(self.seq - block.first_seq, 0)
            batch = Batch(block.first_seq + skip, ticks[skip : skip + limit], lost)
            self.lost += lost
            self.seq = batch.first_seq + len(batch.ticks)
            if self.seq >= block.next_seq:
                self._offset = block.end
            return batch

    def commit(self) -> None:
        """Remember that everything before `seq` was dealt with."""
        write_cursor(self.folder, self.name, self.seq)
        self.committed = self.seq

    def head(self) -> int:
        """The seq after the newest tick that was flushed."""
        days = day_files(self.folder)
        if not days:
            return 0
        newest = max(days)
        day, offset, seq = self._head
        if day != newest:
            offset = 0
        with days[newest].open("rb") as file:
            for block in headers(file.fileno(), offset):
                offset, seq = block.end, block.next_seq
        self._head = (newest, offset, seq)
        return seq

    @property
    def lag(self) -> int:
        """Ticks flushed and not read yet. For metrics; it looks at headers only."""
        return max(self.head() - self.seq, 0)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _oldest(self) -> int:
        for path in day_files(self.folder).values():
            with path.open("rb") as file:
                block = next_whole(file.fileno(), 0)
            if block is not None:
                return block.first_seq
        seals = [read_seal(path) for path in self.folder.glob("*.seal.json")]
        return max((seal.next_seq for seal in seals), default=0)

    def _block(self) -> Block | None:
        """The block with `seq` in it, or the first after it."""
        while True:
            if self._descriptor < 0 and not self._open_day():
                return None
            block = read_header(self._descriptor, self._offset)
            if block is None:
                block = next_whole(self._descriptor, self._offset)
            if block is None:
                if not self._next_day():
                    return None
                continue
            self._offset = block.offset
            if block.next_seq > self.seq:
                return block
            self._offset = block.end

    def _open_day(self) -> bool:
        """The newest day that begins at or before `seq`; else the oldest."""
        chosen = ""
        for day, path in day_files(self.folder).items():
            with path.open("rb") as file:
                block = next_whole(file.fileno(), 0)
            if block is None or (chosen and block.first_seq > self.seq):
                continue
            chosen = day
        return bool(chosen) and self._open(chosen)

    def _next_day(self) -> bool:
        later = [day for day in day_files(self.folder) if day > self._day]
        return bool(later) and self._open(min(later))

    def _open(self, day: str) -> bool:
        self.close()
        try:
            self._descriptor = os.open(self.folder / f"{day}.ticks", os.O_RDONLY)
        except FileNotFoundError:
            return False
        self._day, self._offset = day, 0
        return True


def replay_day(folder: Path, day: str) -> Iterator[list[Tick]]:
    """A day's ticks in the order in which they were received, block by block; damaged blocks are left out.

    Raises:
        FileNotFoundError: no such day.
    """
    with (folder / f"{day}.ticks").open("rb") as file:
        end = 0
        while (block := next_whole(file.fileno(), end)) is not None:
            yield read_payload(file.fileno(), block) or []
            end = block.end
