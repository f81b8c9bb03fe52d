"""Small made-up files in LOBSTER's formats."""

import gzip
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.lobster import ASK, BID, Kind, Message

E = 9_999_999_999

MESSAGES = """\
34200.000000001,1,11,100,5850000,1
34200.5,1,12,50,5851000,-1
34200.50000001,1,13,70,5850000,1
34201,2,13,20,5850000,1
34201.25,4,11,60,5850000,1
34201.250000009,5,0,10,5850500,1
34202,3,13,50,5850000,1
34203,7,0,0,-1,-1
34204,7,0,0,1,-1
34205,3,12,50,5851000,-1
"""

BOOK = f"""\
{E},0,5850000,100
5851000,50,5850000,100
5851000,50,5850000,170
5851000,50,5850000,150
5851000,50,5850000,90
5851000,50,5850000,90
5851000,50,5850000,40
5851000,50,5850000,40
5851000,50,5850000,40
{E},0,5850000,40
"""

NAME = "XYZ_2020-01-02_34200000_57600000_{}_1.csv"


def plain(folder: Path) -> Path:
    (folder / NAME.format("message")).write_text(MESSAGES)
    (folder / NAME.format("orderbook")).write_text(BOOK)
    return folder / NAME.format("message")


def gzipped(folder: Path) -> Path:
    for what, text in (("message", MESSAGES), ("orderbook", BOOK)):
        (folder / (NAME.format(what) + ".gz")).write_bytes(gzip.compress(text.encode()))
    return folder / (NAME.format("message") + ".gz")


def zipped(folder: Path) -> Path:
    path = folder / "sample.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ReadMe.txt", "not a csv")
        archive.writestr(NAME.format("orderbook"), BOOK)
        archive.writestr(NAME.format("message"), MESSAGES)
    return path


def write_market(folder: Path, messages: Iterable[Message], levels: int) -> Path:
    """A recording of `levels` levels of a full flow: messages that do not touch them are left out, as LOBSTER does."""
    volumes: dict[int, dict[int, int]] = {BID: {}, ASK: {}}
    lines: list[str] = []
    rows: list[str] = []
    for message in messages:
        before = _row(volumes, levels)
        side = volumes[message.direction]
        side[message.price] = side.get(message.price, 0) + (
            message.size if message.kind == Kind.submit else -message.size
        )
        if not side[message.price]:
            del side[message.price]
        after = _row(volumes, levels)
        if before != after:
            seconds, nanoseconds = divmod(message.time_ns, 1_000_000_000)
            lines.append(f"{seconds}.{nanoseconds:09},{','.join(map(str, map(int, message[1:])))}\n")
            rows.append(",".join(map(str, after)) + "\n")
    path = folder / f"MADE_2020-01-02_34200000_57600000_message_{levels}.csv"
    path.write_text("".join(lines))
    path.with_name(path.name.replace("message", "orderbook")).write_text("".join(rows))
    return path


def _row(volumes: dict[int, dict[int, int]], levels: int) -> Sequence[int]:
    asks = sorted(volumes[ASK])[:levels]
    bids = sorted(volumes[BID], reverse=True)[:levels]
    row: list[int] = []
    for rank in range(levels):
        row += [asks[rank], volumes[ASK][asks[rank]]] if rank < len(asks) else [E, 0]
        row += [bids[rank], volumes[BID][bids[rank]]] if rank < len(bids) else [-E, 0]
    return row
