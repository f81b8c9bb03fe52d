"""Moments that a process notes while it runs: rows of whole numbers, cheap to add, written to a file when asked.

All times are time.monotonic_ns (time.perf_counter_ns is the same clock on Linux): one clock for all processes of a
machine.
"""

from array import array
from collections.abc import Mapping
from pathlib import Path

import msgspec

Row = tuple[int, ...]


class Stamps:
    """Rows by kind. kinds: how many numbers a row of each kind has."""

    def __init__(self, kinds: Mapping[str, int]) -> None:
        self._widths = dict(kinds)
        self._numbers = {kind: array("q") for kind in kinds}

    def add(self, kind: str, *row: int) -> None:
        """One row. Its width is checked when it is read: this is called while something is measured."""
        self._numbers[kind].extend(row)

    def rows(self, kind: str) -> list[Row]:
        """In the order in which they were added. Raises ValueError: rows of another width were added."""
        numbers, width = self._numbers[kind], self._widths[kind]
        if len(numbers) % width:
            raise ValueError(f"{len(numbers)} numbers of {kind!r} make no rows of {width}")
        found = iter(numbers)
        return list(zip(*[found] * width, strict=True))

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        fresh = path.with_suffix(".new")
        kinds = {kind: (self._widths[kind], numbers.tobytes()) for kind, numbers in self._numbers.items()}
        fresh.write_bytes(msgspec.msgpack.encode(kinds))
        fresh.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Stamps":
        found = msgspec.msgpack.decode(path.read_bytes(), type=dict[str, tuple[int, bytes]])
        stamps = cls({kind: width for kind, (width, _) in found.items()})
        for kind, (_, numbers) in found.items():
            stamps._numbers[kind].frombytes(numbers)
        return stamps


def span_number(word: str) -> int:
    """A trace's span id, or none, as a number that a row holds."""
    return int(word, 16) & (2**63 - 1) if word else 0
