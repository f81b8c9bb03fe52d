"""What the core and a worker say to each other over their unix socket: a length of four bytes, then one msgpack array.

From the worker: Hello, Open, Reopen, Close, Ask, Tally, Take, Free, Hold. From the core: Welcome, Leave, OpenedTopics,
Tick, Answer, Taken.
"""

import struct
from collections.abc import Iterator

import msgspec
from msgspec import Struct

MESSAGE_BYTES_MAX = 256 << 20
"""A worker's whole past in one answer; nothing that the other side could rightly say is larger."""
ADMISSION = "admission"
_LENGTH = struct.Struct(">I")


class Hello(Struct, frozen=True, array_like=True, tag=1):
    """run: names the core's run that started this worker; one of another run is told to leave."""

    number: int
    pid: int
    run: str


class Open(Struct, frozen=True, array_like=True, tag=2):
    """Topics of one channel. after: a position as text, or nothing."""

    id: int
    channel: str
    symbols: list[str]
    formats: int
    after: str


class Reopen(Struct, frozen=True, array_like=True, tag=3):
    """After a break: all that the worker's clients read, each with its formats, and the place that it is behind of."""

    id: int
    topics: list[tuple[str, str, int]]
    after: str


class Close(Struct, frozen=True, array_like=True, tag=4):
    topics: list[tuple[str, str]]


class Ask(Struct, frozen=True, array_like=True, tag=5):
    """A question by name; what body holds is between the asker and the core's handler of that name."""

    id: int
    name: str
    body: bytes


class Tally(Struct, frozen=True, array_like=True, tag=6):
    """Once a second: what the worker did and does (StreamServer.counts)."""

    counts: dict[str, float]


class Take(Struct, frozen=True, array_like=True, tag=7):
    """May a user or an address have so many more? kind: of stream.places, or ADMISSION: may a new stream come in?"""

    id: int
    kind: str
    name: str
    count: int


class Free(Struct, frozen=True, array_like=True, tag=8):
    rows: list[tuple[str, str, int]]


class Hold(Struct, frozen=True, array_like=True, tag=9):
    """After a break: all that this worker holds."""

    rows: list[tuple[str, str, int]]


class Welcome(Struct, frozen=True, array_like=True, tag=11):
    epoch: int
    seq: int
    channels: list[str]


class Leave(Struct, frozen=True, array_like=True, tag=12):
    why: str


class Row(Struct, frozen=True, array_like=True, gc=False):
    """One update. A format that was not asked for is empty. seq: of what may not be lost, else 0."""

    channel: str
    symbol: str
    json: bytes
    msgpack: bytes
    born_us: int
    seq: int = 0


class OpenedTopics(Struct, frozen=True, array_like=True, tag=13):
    """See source.Opened. states without bytes: the topic exists, and has no state."""

    id: int
    seq: int
    states: list[Row]
    missed: list[Row] | None
    refused: list[tuple[str, str, str]]
    away: str = ""


class Tick(Struct, frozen=True, array_like=True, tag=14):
    """All since the last one, at least twice a second. seq: everything up to here was sent. shed: by the core.

    newest: of conflated channels. lasting: of those that lose nothing, in order. diffs: of books, in order.
    """

    seq: int
    at_us: int
    newest: list[Row]
    lasting: list[Row]
    diffs: list[Row]
    shed: list[str]


class Answer(Struct, frozen=True, array_like=True, tag=15):
    """error: not empty: why there is no answer."""

    id: int
    body: bytes
    error: str = ""


class Taken(Struct, frozen=True, array_like=True, tag=16):
    """wait_s: 0: yes. Below 0: no. Above: come back in so many seconds."""

    id: int
    wait_s: float


FromWorker = Hello | Open | Reopen | Close | Ask | Tally | Take | Free | Hold
FromCore = Welcome | Leave | OpenedTopics | Tick | Answer | Taken

_encode = msgspec.msgpack.Encoder().encode
from_worker = msgspec.msgpack.Decoder(FromWorker).decode
from_core = msgspec.msgpack.Decoder(FromCore).decode


def framed(message: Struct) -> bytes:
    data = _encode(message)
    return _LENGTH.pack(len(data)) + data


class Unframer:
    """feed(data) gives the messages that are whole. Raises ValueError: longer than anything may be."""

    def __init__(self, bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        buffer = self._buffer
        buffer += data
        at, end = 0, len(buffer)
        try:
            while end - at >= 4:
                (size,) = _LENGTH.unpack_from(buffer, at)
                if size > self._bytes_max:
                    raise ValueError(f"a message of {size} bytes; at most {self._bytes_max} are taken")
                if end - at < 4 + size:
                    break
                at += 4 + size
                yield bytes(memoryview(buffer)[at - size : at])
        finally:
            del buffer[:at]
