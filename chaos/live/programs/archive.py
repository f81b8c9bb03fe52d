"""Keeps what a member trims from its log, so that the whole committed log can be judged when the run is over.

The file is outside the member's disk: records of a head and the entry, as they were in the journal.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster.consensus.journal import Change, Entry, StartAfter, TrimTo
from cluster.consensus.storage import LmdbStorage

_head = struct.Struct(">QQI")  # index, term, bytes of the command
READ_ENTRIES = 1_000
NO_OP = b"\x01"
"""The whole of an entry that says nothing: a leader's first one, or one that stands for what was there before."""


def keep(path: Path) -> None:
    """From now on, whatever this process trims is first appended to the file. A repeat is possible, a gap is not."""
    real = LmdbStorage.write
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    first_index: dict[LmdbStorage, int] = {}

    def write(self: LmdbStorage, changes: Sequence[Change]) -> None:
        for change in changes:
            if isinstance(change, StartAfter):
                first_index[self] = change.index
            if isinstance(change, TrimTo):
                first = first_index.get(self) or self.load(tail_bytes_max=0).first_index
                while first < change.index:
                    entries = self.read(first, min(READ_ENTRIES, change.index - first))
                    os.write(
                        file, b"".join(_head.pack(at, term, len(command)) + command for command, at, term in entries)
                    )
                    first += len(entries) or change.index
                first_index[self] = change.index
        real(self, changes)

    LmdbStorage.write = write  # type: ignore[method-assign]


def kept(path: Path) -> Iterator[Entry]:
    """What was trimmed, in the order of trimming. A torn end, of a member that was killed, is left out.

    So is the first entry of a log that began anew: it stands for whatever was there.
    """
    previous = 0
    for command, index, term in _records(path):
        if index == previous + 1 or command != NO_OP:
            yield command, index, term
        previous = index


def _records(path: Path) -> Iterator[Entry]:
    data, offset = path.read_bytes(), 0
    while offset + _head.size <= len(data):
        index, term, size = _head.unpack_from(data, offset)
        offset += _head.size
        if offset + size > len(data):
            return
        yield data[offset : offset + size], index, term
        offset += size
