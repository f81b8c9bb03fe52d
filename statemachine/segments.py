"""Sealed segments: one immutable file per kind of history and UTC day, compressed, indexed and hashed.

File: magic, blocks (zlib over a msgpack array of rows), index (msgpack), footer (offset and length of
the index, its CRC, sha256 of all before it, magic). A reader checks the CRC of what it reads; an audit
checks the sha256 of the whole, which the manifest in LMDB repeats.
"""

import hashlib
import os
import zlib
from bisect import bisect_right
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from statemachine.records import Record, encode_record
from statemachine.store_files import StoreDamaged, fsync_folder
from statemachine.store_rows import SEALED_BLOCK_BYTES, Kind, pack, split_block

MAGIC = b"TBSEG\x01\r\n"
FOOTER_BYTES = 8 + 8 + 4 + 32 + len(MAGIC)
COMPRESSION_LEVEL = 6
TEMPORARY = ".part"


class SegmentDamaged(StoreDamaged):
    """A sealed file is not what was sealed. The message names the file and what differs."""


class BlockEntry(Record, frozen=True):
    first_id: int
    last_id: int
    offset: int
    length: int
    crc: int


class SegmentIndex(Record, frozen=True):
    kind: Kind
    day: int
    rows: int
    raw_bytes: int
    blocks: list[BlockEntry]


class SegmentEntry(Record, frozen=True):
    """What the manifest says of one segment.

    first_id and last_id: of the rows that were opened on that day too; 0 and 0 if there is none (only
        closed orders can have others, the strays).
    chain_before, chain_after: the ledger's hash chain around the segment; empty for other kinds.
    """

    kind: Kind
    day: int
    file: str
    first_id: int
    last_id: int
    rows: int
    raw_bytes: int
    file_bytes: int
    sha256: bytes
    chain_before: bytes
    chain_after: bytes


_index_decoder = msgspec.msgpack.Decoder(SegmentIndex)
decode_entry = msgspec.msgpack.Decoder(SegmentEntry).decode


def entry_key(kind: Kind, day: int) -> bytes:
    return f"{kind}.{day:08d}".encode()


def segment_name(kind: Kind, day: int) -> str:
    date = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)
    return f"{kind}-{date:%Y-%m-%d}.seg"


class SegmentWriter:
    """Writes one segment under a temporary name; `finish` makes it durable, then gives it its name."""

    def __init__(self, folder: Path, kind: Kind, day: int) -> None:
        self._folder = folder
        self._kind = kind
        self._day = day
        self.path = folder / segment_name(kind, day)
        self._temporary = self.path.with_name(self.path.name + TEMPORARY)
        self._hash = hashlib.sha256()
        self._file = self._temporary.open("wb")
        self._blocks: list[BlockEntry] = []
        self._offset = 0
        self._held: list[tuple[int, bytes]] = []
        self._held_bytes = 0
        self.rows = 0
        self.raw_bytes = 0
        self._write(MAGIC)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._offset += len(data)

    def add(self, rows: Iterable[tuple[int, bytes]]) -> None:
        """Rows as (id, encoded), in id order."""
        for number, encoded in rows:
            self._held.append((number, encoded))
            self._held_bytes += len(encoded)
            self.rows += 1
            self.raw_bytes += len(encoded)
            if self._held_bytes >= SEALED_BLOCK_BYTES:
                self._write_held()

    def _write_held(self) -> None:
        for first, last, block in pack(self._held, SEALED_BLOCK_BYTES * 2):
            packed = zlib.compress(block, COMPRESSION_LEVEL)
            self._blocks.append(BlockEntry(first, last, self._offset, len(packed), zlib.crc32(packed)))
            self._write(packed)
        self._held = []
        self._held_bytes = 0

    def finish(self) -> tuple[int, bytes]:
        """Returns the length of the file and its sha256, once both the file and its name are on disk."""
        self._write_held()
        index = encode_record(SegmentIndex(self._kind, self._day, self.rows, self.raw_bytes, self._blocks))
        index_at = self._offset
        self._write(index)
        self._write(index_at.to_bytes(8, "big") + len(index).to_bytes(8, "big") + zlib.crc32(index).to_bytes(4, "big"))
        digest = self._hash.digest()
        self._file.write(digest + MAGIC)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.rename(self.path)
        fsync_folder(self._folder)
        return self._offset + len(digest) + len(MAGIC), digest

    def discard(self) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)


class Segment:
    """Reads one sealed file. It is opened at the first read and checked as far as it is read."""

    def __init__(self, folder: Path, entry: SegmentEntry) -> None:
        self.entry = entry
        self.path = folder / entry.file
        self._fd = -1
        self._index: SegmentIndex | None = None
        self._firsts: list[int] = []

    def index(self) -> SegmentIndex:
        if self._index is None:
            self._open()
        if self._index is None:
            raise SegmentDamaged(f"{self.path.name}: no index")
        return self._index

    def _open(self) -> None:
        try:
            self._fd = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise SegmentDamaged(f"{self.path.name}: {error.strerror}, but the manifest has it") from error
        length = os.fstat(self._fd).st_size
        if length != self.entry.file_bytes:
            raise SegmentDamaged(f"{self.path.name}: {length} bytes, the manifest says {self.entry.file_bytes}")
        footer = os.pread(self._fd, FOOTER_BYTES, length - FOOTER_BYTES)
        index_at, index_length = int.from_bytes(footer[:8], "big"), int.from_bytes(footer[8:16], "big")
        if footer[-len(MAGIC) :] != MAGIC or index_at + index_length + FOOTER_BYTES != length:
            raise SegmentDamaged(f"{self.path.name}: the footer is damaged")
        raw = os.pread(self._fd, index_length, index_at)
        if zlib.crc32(raw) != int.from_bytes(footer[16:20], "big"):
            raise SegmentDamaged(f"{self.path.name}: the index is damaged")
        self._index = _index_decoder.decode(raw)
        self._firsts = [block.first_id for block in self._index.blocks]

    def block_of(self, number: int) -> int:
        """The position of the block that holds this id, if any does; -1 when it is before all."""
        self.index()
        return bisect_right(self._firsts, number) - 1

    def block(self, position: int) -> list[msgspec.Raw]:
        """The rows of one block, still encoded."""
        entry = self.index().blocks[position]
        packed = os.pread(self._fd, entry.length, entry.offset)
        if zlib.crc32(packed) != entry.crc:
            raise SegmentDamaged(f"{self.path.name}: block {position} at byte {entry.offset} is damaged")
        return split_block(zlib.decompress(packed))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._index = None


def verify_segment(folder: Path, entry: SegmentEntry) -> str | None:
    """Read the whole file and compare its sha256 with the manifest's. Returns what is wrong, or None."""
    path = folder / entry.file
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry.file_bytes:
                return f"{path.name}: {size} bytes, the manifest says {entry.file_bytes}"
            digest = hashlib.sha256()
            left = size - 32 - len(MAGIC)
            while left > 0:
                data = file.read(min(left, 1 << 20))
                digest.update(data)
                left -= len(data)
            tail = file.read()
    except OSError as error:
        return f"{path.name}: {error.strerror}, but the manifest has it"
    if digest.digest() != entry.sha256:
        return f"{path.name}: sha256 is {digest.hexdigest()}, the manifest says {entry.sha256.hex()}"
    if tail != entry.sha256 + MAGIC:
        return f"{path.name}: the footer is damaged"
    return None
