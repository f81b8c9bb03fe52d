"""Readers of LOBSTER files: limit order messages and book levels, plain, gzipped or inside a zip.

A message file has a line per event: time (seconds after midnight, with decimals), type, order
id, size, price (dollars times 10,000), direction. The book file has a line per message: ask price, ask
size, bid price, bid size for each level, best first, as they stand after it. What is easy to get wrong:

- The direction is that of the resting order, for executions too: 1 is a bid.
- Times do not fit a float. They are kept as whole nanoseconds; nine decimals are the rule, but AAPL's
  50-level sample has one line with twelve (a float's noise), so more are rounded, half up.
- An empty level says price +-9999999999, size 0.
- A file of N levels holds only what touched the best N: orders resting deeper are not in it.
"""

import gzip
import io
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import IO, NamedTuple

from msgspec import Struct

EMPTY_PRICE = 9_999_999_999
PRICE_SCALE = 4
"""Prices are dollars times 10**4."""
NS_PER_S = 1_000_000_000
DAY_NS = 86_400 * NS_PER_S


class LobsterError(ValueError):
    """A file is not what it says it is. The text begins with the file and the line."""


class Kind(IntEnum):
    """Types of messages."""

    submit = 1
    reduce = 2
    """Part of an order was deleted; the rest keeps its place."""
    delete = 3
    execute = 4
    execute_hidden = 5
    """Does not move the visible book."""
    cross = 6
    """An auction's trade; does not move the visible book."""
    halt = 7


BID = 1
ASK = -1

HALTED = -1
QUOTING = 0
TRADING = 1
"""What a halt message's price says."""


class Message(NamedTuple):
    """One event. price is in dollars times 10**PRICE_SCALE, save for Kind.halt."""

    time_ns: int
    kind: int
    order_id: int
    size: int
    price: int
    direction: int


class Level(NamedTuple):
    """One price of the visible book; size 0 is a level that is not there."""

    ask_price: int
    ask_size: int
    bid_price: int
    bid_size: int


Row = tuple[Level, ...]

_NAME = re.compile(
    r"(?P<symbol>[A-Z0-9.]+)_(?P<date>\d{4}-\d\d-\d\d)_(?P<start>\d+)_(?P<end>\d+)"
    r"_(?P<what>message|orderbook)_(?P<levels>\d+)\.csv(\.gz)?\Z"
)
_TIME = re.compile(r"(\d{1,5})(?:\.(\d{1,9})(\d{0,9}))?\Z", re.ASCII)


class File(Struct, frozen=True):
    """One LOBSTER file: on its own, or a member of a zip."""

    path: Path
    member: str = ""

    @property
    def name(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    def _named(self, group: str, otherwise: str) -> str:
        match = _NAME.search(self.member or self.path.name)
        return match[group] if match else otherwise

    @property
    def symbol(self) -> str:
        """The ticker in the file's name; LOB where it has none."""
        return self._named("symbol", "LOB")

    @property
    def levels(self) -> int:
        """How many levels the file's name says that it covers; 0 where it does not say."""
        return int(self._named("levels", "0"))

    @property
    def what(self) -> str:
        return self._named("what", "")

    @contextmanager
    def open(self) -> Iterator[IO[str]]:
        """The file's lines as text, whatever it is packed in."""
        if self.member:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as raw:
                yield io.TextIOWrapper(raw, encoding="ascii", newline=None)
        elif self.path.suffix == ".gz":
            with gzip.open(self.path, "rt", encoding="ascii") as text:
                yield text
        else:
            with self.path.open(encoding="ascii") as text:
                yield text


class Recording(Struct, frozen=True):
    """A message file and, where there is one, the book file that belongs to it line by line."""

    messages: File
    book: File | None


def find(path: Path) -> Recording:
    """The recording at `path`: a message file, or a zip that holds one; its book file is looked for beside it.

    Raises LobsterError when there is none.
    """
    if not path.is_file():
        raise LobsterError(f"{path}: no such file")
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            inside = [File(path, name) for name in sorted(archive.namelist())]
        messages = [file for file in inside if file.what == "message"]
        if len(messages) != 1:
            raise LobsterError(f"{path}: {len(messages)} message files inside; exactly one was expected")
        wanted = messages[0].member.replace("_message_", "_orderbook_")
        return Recording(messages[0], next((file for file in inside if file.member == wanted), None))
    if path.suffix not in {".csv", ".gz"}:
        raise LobsterError(f"{path}: neither .csv, .csv.gz nor .zip")
    beside = path.with_name(path.name.replace("_message_", "_orderbook_"))
    return Recording(File(path), File(beside) if beside != path and beside.is_file() else None)


def time_ns(text: str) -> int:
    """Decimal seconds as whole nanoseconds, rounded half up. Raises ValueError for anything else."""
    match = _TIME.match(text)
    if match is None:
        raise ValueError(f"time {text!r} is not seconds with up to 18 decimals")
    nanoseconds = int(match[1]) * NS_PER_S + int((match[2] or "").ljust(9, "0")) + ((match[3] or "0") >= "5")
    if nanoseconds >= DAY_NS:
        raise ValueError(f"time {text!r} is past the end of the day")
    return nanoseconds


def parse_message(line: str) -> Message:
    """Raises ValueError, saying what is wrong with the line."""
    fields = line.split(",")
    if len(fields) != 6:
        raise ValueError(f"{len(fields)} columns; a message has 6")
    at_ns = time_ns(fields[0])
    kind, order_id, size, price, direction = map(_integer, fields[1:])
    if not Kind.submit <= kind <= Kind.halt:
        raise ValueError(f"type {kind} is not one of 1 to 7")
    if direction not in (BID, ASK):
        raise ValueError(f"direction {direction} is neither 1 nor -1")
    if kind == Kind.halt:
        if price not in (HALTED, QUOTING, TRADING):
            raise ValueError(f"a halt says -1, 0 or 1 in the price's place, not {price}")
    elif size <= 0 or price <= 0 or price >= EMPTY_PRICE or order_id < 0:
        raise ValueError(f"size {size}, price {price}, order id {order_id}: out of bounds")
    return Message(at_ns, kind, order_id, size, price, direction)


def parse_row(line: str) -> Row:
    """Raises ValueError, saying what is wrong with the line."""
    fields = [_integer(field) for field in line.split(",")]
    if not fields or len(fields) % 4:
        raise ValueError(f"{len(fields)} columns; a level has 4")
    levels = tuple(Level(*fields[at : at + 4]) for at in range(0, len(fields), 4))
    for level in levels:
        for price, size in ((level.ask_price, level.ask_size), (level.bid_price, level.bid_size)):
            if (abs(price) == EMPTY_PRICE) != (size == 0) or size < 0:
                raise ValueError(f"price {price} with size {size}")
    return levels


def _integer(text: str) -> int:
    # int() alone would take "1_000", " 7" and digits of other scripts.
    if not text.lstrip("-").isdecimal() or not text.isascii():
        raise ValueError(f"{text[:40]!r} is not a whole number")
    return int(text)


def read_messages(file: File, limit: int | None = None) -> Iterator[Message]:
    """The messages in the file's order, which is time's. Raises LobsterError at the first bad line."""
    before_ns = 0
    for number, line in _lines(file, limit):
        try:
            message = parse_message(line)
        except ValueError as error:
            raise LobsterError(f"{file.name}:{number}: {error}") from error
        if message.time_ns < before_ns:
            raise LobsterError(f"{file.name}:{number}: goes back in time")
        before_ns = message.time_ns
        yield message


def read_rows(file: File, limit: int | None = None) -> Iterator[Row]:
    """The book after each message. Raises LobsterError at the first bad line."""
    for number, line in _lines(file, limit):
        try:
            yield parse_row(line)
        except ValueError as error:
            raise LobsterError(f"{file.name}:{number}: {error}") from error


def _lines(file: File, limit: int | None) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with file.open() as text:
            for number, line in enumerate(text, 1):
                if limit is not None and number > limit:
                    return
                yield number, line.rstrip("\r\n")
    except (OSError, EOFError, UnicodeDecodeError, zipfile.BadZipFile, KeyError) as error:
        raise LobsterError(f"{file.name}:{number + 1}: {error}") from error
