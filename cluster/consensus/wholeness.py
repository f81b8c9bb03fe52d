"""Whether an LMDB file shows its newest state: it has two roots and no checksums, so one bit may hide a commit."""

import struct
from pathlib import Path

# Of LMDB 0.9 on 64 bits: a page header, then magic, version, address, map size, two tables, last page, transaction.
_META = struct.Struct("=16xIIQQ48s48sQQ")
_PAGE_BYTES = struct.Struct("=I")
MAGIC = 0xBEEFC0DE

# A group may end with pages that it made and gave up again: they are counted, and never written.
UNWRITTEN_BYTES_MAX = 256 << 20


class NotWhole(Exception):
    """The file's own words about itself do not agree."""


def check_roots(path: Path) -> int:
    """How many bytes the file should have. One that is shorter is to be made longer before LMDB maps it: a page beyond
    the end would be SIGBUS, one of zeros is an error with a name.

    Raises NotWhole when it is much shorter, and unless its two roots are of one transaction and of the one before it.

    LMDB writes them in turn, and believes the newer: where its number is damaged, the older would be believed, and
    what was acknowledged last would be gone. Call it before the file is opened for writing.

    One bit escapes: where the newer number ends in binary 10 or 11, without its second last bit it is what the older
    one follows.
    """
    with path.open("rb") as file:
        first = file.read(_META.size)
        if len(first) < _META.size:
            raise NotWhole("it is cut short in its first page")
        page_bytes = int(_PAGE_BYTES.unpack_from(_META.unpack(first)[4])[0])
        file.seek(page_bytes)
        second = file.read(_META.size)
    if len(second) < _META.size:
        raise NotWhole("it is cut short in its second page")
    numbers: list[int] = []
    pages = 0
    for place, raw in enumerate((first, second)):
        magic, version, _, _, _, _, last_page, number = _META.unpack(raw)
        if (magic, version) != (MAGIC, 1):
            raise NotWhole(f"root {place} is none of LMDB's")
        pages = last_page + 1 if number >= max(numbers, default=0) else pages
        numbers.append(number)
    even, odd = numbers
    if even % 2 or not odd % 2 or abs(even - odd) != 1:
        raise NotWhole(f"its roots are of transactions {even} and {odd}, which do not follow each other")
    wanted, found = pages * page_bytes, path.stat().st_size
    if found < wanted - UNWRITTEN_BYTES_MAX:
        raise NotWhole(f"it is cut short: {found} bytes, of {wanted} that its root speaks of")
    return int(wanted)
