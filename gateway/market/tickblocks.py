"""The bytes of a tick log: blocks of ticks with checksums, and how to find the next good one.

A file holds one UTC day. A block is a header (magic, payload bytes, ticks, first seq, first receive time,
CRC32 of the payload, CRC32 of the header, little-endian) and its payload: a msgpack array of ticks.
"""

import mmap
import os
import re
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from struct import Struct as Layout

import msgspec
from msgspec import Struct

from gateway.feeds.ticks import Quote, Status, Tick, Trade

MAGIC = b"TBT1"
HEADER = Layout("<4sIIQQII")
HEADER_BODY_BYTES = HEADER.size - 4
PAYLOAD_BYTES_MAX = 8 << 20
TICKS_MAX = 2_000
"""Per block: some 120 KiB."""

ENCODER = msgspec.msgpack.Encoder()
DECODER = msgspec.msgpack.Decoder(list[Quote | Trade | Status])


class Block(Struct, frozen=True, gc=False):
    """Where a good block lies, and the seqs of its ticks: first_seq to first_seq + count - 1."""

    offset: int
    payload_bytes: int
    count: int
    first_seq: int
    first_us: int
    payload_crc: int

    @property
    def end(self) -> int:
        return self.offset + HEADER.size + self.payload_bytes

    @property
    def next_seq(self) -> int:
        return self.first_seq + self.count


def encode(ticks: list[Tick], first_seq: int) -> bytes:
    """One block. ticks: 1 to TICKS_MAX, without books."""
    payload = ENCODER.encode(ticks)
    body = HEADER.pack(MAGIC, len(payload), len(ticks), first_seq, max(ticks[0].receive_us, 0), zlib.crc32(payload), 0)[
        :HEADER_BODY_BYTES
    ]
    return b"".join((body, zlib.crc32(body).to_bytes(4, "little"), payload))


def header_at(data: bytes, offset: int) -> Block | None:
    """The block whose header is the first bytes of `data`, which lie at `offset` of the file; None: not good."""
    if len(data) < HEADER.size:
        return None
    magic, payload_bytes, count, first_seq, first_us, payload_crc, header_crc = HEADER.unpack_from(data)
    if magic != MAGIC or zlib.crc32(data[:HEADER_BODY_BYTES]) != header_crc or payload_bytes > PAYLOAD_BYTES_MAX:
        return None
    return Block(offset, payload_bytes, count, first_seq, first_us, payload_crc)


def read_header(descriptor: int, offset: int) -> Block | None:
    return header_at(os.pread(descriptor, HEADER.size, offset), offset)


def read_payload(descriptor: int, block: Block) -> list[Tick] | None:
    """The ticks of a block; None where the payload is not whole or not what was written."""
    payload = os.pread(descriptor, block.payload_bytes, block.offset + HEADER.size)
    if len(payload) < block.payload_bytes or zlib.crc32(payload) != block.payload_crc:
        return None
    try:
        ticks = DECODER.decode(payload)
    except msgspec.MsgspecError:
        return None
    return list(ticks)


def is_whole(descriptor: int, block: Block) -> bool:
    payload = os.pread(descriptor, block.payload_bytes, block.offset + HEADER.size)
    return len(payload) == block.payload_bytes and zlib.crc32(payload) == block.payload_crc


def next_whole(descriptor: int, offset: int) -> Block | None:
    """The first good block at or after an offset, whatever lies before it."""
    size = os.fstat(descriptor).st_size
    if offset >= size:
        return None
    with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as data:
        at = data.find(MAGIC, offset)
        while at >= 0:
            block = header_at(data[at : at + HEADER.size], at)
            if block is not None and is_whole(descriptor, block):
                return block
            at = data.find(MAGIC, at + 1)
    return None


def headers(descriptor: int, offset: int = 0) -> Iterator[Block]:
    """Blocks one after the other, by their headers, up to the first that is not good or not there in full."""
    size = os.fstat(descriptor).st_size
    while (block := read_header(descriptor, offset)) is not None and block.end <= size:
        yield block
        offset = block.end


def day_text(us: int) -> str:
    return datetime.fromtimestamp(us // 1_000_000, UTC).strftime("%Y-%m-%d")


def day_files(folder: Path) -> dict[str, Path]:
    """The files of all days, oldest first."""
    found = {path.stem: path for path in folder.glob("*.ticks") if re.fullmatch(r"\d{4}-\d\d-\d\d", path.stem)}
    return dict(sorted(found.items()))
