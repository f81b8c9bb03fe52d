"""Recordings of venues' frames: which handler reads a file, its frames in order, and a replay at any speed.

Read, by what the file is: Binance lines (`<receive ns> <frame>`), exchange recordings (JSON lines with
`t`, `ts` and `data`; also packed with zstd), IEX TOPS captures (pcap), LOBSTER zips and message files, and
days of Lean ticks. Nothing of a recording is copied anywhere.
"""

import asyncio
import gzip
import io
import json
import re
import struct
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from heapq import merge
from importlib import import_module
from itertools import repeat
from pathlib import Path
from typing import IO, Any, cast

import msgspec
from msgspec import Struct

from gateway.feeds.binance import Binance
from gateway.feeds.clock import now_us
from gateway.feeds.coinbase import Coinbase
from gateway.feeds.exchange_time import day_of
from gateway.feeds.handler import Handler
from gateway.feeds.iex import IexTops
from gateway.feeds.kraken import Kraken
from gateway.feeds.lean import LeanTicks
from gateway.feeds.lobster import Lobster
from gateway.feeds.ticks import Status, Tick

Symbols = Iterable[tuple[str, str]] | None
LINE_BYTES_MAX = 32 << 20


class RecordingError(Exception):
    """The file can't be read as a recording; the text says what to do."""


class Frame(Struct, frozen=True, gc=False):
    """One recorded frame. key: what was asked for, of a body that was fetched by HTTP."""

    receive_us: int
    data: bytes
    key: str = ""


class Recording:
    """A file, the handler that reads it, and its frames, from the beginning on each call."""

    def __init__(self, path: Path, handler: Handler, frames: Callable[[], Iterator[Frame]]) -> None:
        self.path = path
        self.handler = handler
        self._frames = frames

    def frames(self) -> Iterator[Frame]:
        """Raises RecordingError where the file is damaged; what came before is good."""
        try:
            yield from self._frames()
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, struct.error) as error:
            raise RecordingError(f"{self.path}: damaged: {error}") from error

    def batches(self) -> Iterator[tuple[int, list[Tick]]]:
        """(receive time, ticks) of each frame, as fast as they can be read. A new connection is assumed."""
        self.handler.opening()
        for frame in self.frames():
            yield frame.receive_us, self._take(frame)

    async def replay(self, *, speed: float, clock: Callable[[], int] = now_us) -> AsyncIterator[tuple[int, list[Tick]]]:
        """Ticks at `speed` times the pace at which they were recorded, told as if they happened now.

        Receive times become what `clock` says; venue times keep the delay that they
        had when they were recorded. It never falls behind for long: what is due is given without waiting.
        """
        if not speed > 0:
            raise ValueError(f"speed {speed}: must be above 0")
        began_us: int | None = None
        started = time.monotonic()
        self.handler.opening()
        for frame in self.frames():
            began_us = frame.receive_us if began_us is None else began_us
            due = started + (frame.receive_us - began_us) / 1e6 / speed
            wait = due - time.monotonic()
            if wait > 0.001:
                await asyncio.sleep(wait)
            ticks = self._take(frame)
            if ticks:
                at_us = clock()
                yield at_us, [as_if_at(tick, at_us) for tick in ticks]

    def _take(self, frame: Frame) -> list[Tick]:
        if frame.key:
            return self.handler.fetched(frame.key, frame.data, frame.receive_us)
        return self.handler.feed(frame.data, frame.receive_us)


def as_if_at(tick: Tick, receive_us: int) -> Tick:
    """The same tick received at another time, with the delay that it had."""
    if isinstance(tick, Status):
        return msgspec.structs.replace(tick, receive_us=receive_us)
    venue_us = receive_us - (tick.receive_us - tick.venue_us)
    return msgspec.structs.replace(tick, receive_us=receive_us, venue_us=venue_us)


def open_recording(path: Path, *, symbols: Symbols = None, quotes_from: str | None = None) -> Recording:
    """Find out what a file is. symbols: (the venue's name, ours) of those wanted; None: all.

    Raises:
        RecordingError: not there, or nothing that we know.
    """
    if not path.is_file():
        raise RecordingError(f"{path}: no such file")
    options = {} if quotes_from is None else {"quotes_from": quotes_from}
    name = path.name.lower()
    try:
        if found := re.fullmatch(r"(\d{8})_(trade|quote)\.zip", name):
            return _lean(path, found[1])
        if found := re.search(r"([a-z.]+)_(\d{4}-\d\d-\d\d)_", name):
            return _lobster(path, found[1].upper(), found[2])
        head = _head(path)
        if head[:4] in PCAP_MAGIC:
            return Recording(path, IexTops(symbols), lambda: _pcap(path))
        if re.match(rb"\d{16,20} \{", head):
            return Recording(path, Binance(symbols, **options), lambda: _stamped(path))
        if head.startswith(b'{"t":"header"'):
            exchange = json.loads(next(_lines(path)))["exchange"]
            return Recording(path, EXCHANGES[exchange](symbols, **options), lambda: _exchange(path))
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise RecordingError(f"{path}: not a recording that we know: {error}") from error
    raise RecordingError(f"{path}: not a recording that we know (see `gateway/feeds/recorded.py`)")


EXCHANGES: dict[str, Callable[..., Handler]] = {"BINANCE": Binance, "COINBASE": Coinbase, "KRAKEN": Kraken}
PCAP_MAGIC = {
    b"\xd4\xc3\xb2\xa1": ("<", 1),
    b"\xa1\xb2\xc3\xd4": (">", 1),
    b"\x4d\x3c\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\x3c\x4d": (">", 1000),
}
"""Byte order and parts per microsecond of a packet's time."""


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if path.suffix == ".zst":
        try:
            arrow = import_module("pyarrow")
        except ImportError as error:
            raise RecordingError(
                f"{path}: packed with zstd; unpack it first (zstd -d), or install tiebreak[exports]"
            ) from error
        return io.BufferedReader(_Raw(arrow.CompressedInputStream(arrow.OSFile(str(path)), "zstd")))
    return path.open("rb")


class _Raw(io.RawIOBase):
    """A pyarrow stream as the standard library's readers want it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer)) or b""
        buffer[: len(data)] = data
        return len(data)


def _head(path: Path) -> bytes:
    with _open(path) as file:
        return file.read(256)


def _lines(path: Path) -> Iterator[bytes]:
    with _open(path) as file:
        while line := file.readline(LINE_BYTES_MAX):
            yield line


def _stamped(path: Path) -> Iterator[Frame]:
    symbol = ""
    for line in _lines(path):
        stamp, _, data = line.partition(b" ")
        if data.startswith(b'{"lastUpdateId"'):
            # The snapshot does not name its symbol; these files have one each.
            yield Frame(int(stamp) // 1000, data, symbol)
            continue
        if not symbol and (found := re.search(rb'"s": ?"([^"]+)"', data)):
            symbol = found[1].decode()
        yield Frame(int(stamp) // 1000, data)


def _exchange(path: Path) -> Iterator[Frame]:
    for line in _lines(path):
        record = json.loads(line)
        if record["t"] == "recv":
            yield Frame(round(record["ts"] * 1e6), record["data"].encode())
        elif record["t"] == "http" and (found := re.search(r"/depth\?symbol=(\w+)", record["url"])):
            yield Frame(round(record["ts"] * 1e6), record["data"].encode(), found[1])


def _pcap(path: Path) -> Iterator[Frame]:
    """The payloads of UDP packets over IPv4 and Ethernet."""
    with _open(path) as file:
        order, parts = PCAP_MAGIC[file.read(24)[:4]]
        layout = struct.Struct(f"{order}IIII")
        while header := file.read(layout.size):
            seconds, fraction, length, _ = layout.unpack(header)
            packet = file.read(length)
            if len(packet) < length:
                raise EOFError("the last packet is cut short")
            if len(packet) < 42 or packet[12:14] != b"\x08\x00" or packet[23] != 17:
                continue
            udp = 14 + (packet[14] & 15) * 4
            udp_bytes = int.from_bytes(packet[udp + 4 : udp + 6], "big")
            yield Frame(seconds * 1_000_000 + fraction // parts, packet[udp + 8 : udp + udp_bytes])


def _lean(path: Path, day: str) -> Recording:
    handler = LeanTicks(path.parent.name.upper(), day_of(day))

    def frames() -> Iterator[Frame]:
        both = [path.with_name(f"{day}_{kind}.zip") for kind in ("quote", "trade")]
        streams = [_zipped(part) for part in both if part.is_file()]
        for line in merge(*streams, key=lambda line: float(line.partition(b",")[0])):
            yield Frame(handler.us_of(line), line.rstrip())

    return Recording(path, handler, frames)


def _zipped(path: Path, part: str = "") -> Iterator[bytes]:
    """The lines of a zip's only file, or of the one with `part` in its name."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if part in name)
        with archive.open(name) as file:
            yield from file


def _lobster(path: Path, symbol: str, day: str) -> Recording:
    """A zip of messages and book, or a message file with its book file beside it, or alone."""
    handler = Lobster(symbol, day_of(day))

    def frames() -> Iterator[Frame]:
        if path.suffix == ".zip":
            messages: Iterator[bytes] = _zipped(path, "_message_")
            rows: Iterable[bytes] = _zipped(path, "_orderbook_")
        else:
            beside = path.with_name(path.name.replace("_message_", "_orderbook_"))
            messages = _lines(path)
            rows = _lines(beside) if beside != path and beside.is_file() else repeat(b"")
        for line, row in zip(messages, rows, strict=False):
            data = line.rstrip() + b"\n" + row.rstrip() if row else line.rstrip()
            yield Frame(handler.us_of(line), data)

    return Recording(path, handler, frames)
