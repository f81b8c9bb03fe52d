"""Plays recorded steps into one order book and times it; nothing but the standard library, as it runs where peers live.

A program of this room is `python -m bench.books.with_x STEPS FILLS`: it reads the steps, writes what traded to FILLS
and prints one JSON object. Files are arrays of 64-bit whole numbers: (act, order, buys, price, lots) for each step,
(maker, price, lots) for each fill, in the order in which they happened.
"""

import gc
import json
import sys
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

PLACE, TAKE, CANCEL = 0, 1, 2
SLICE = 1_000
"""Steps that are timed as one."""


class Step(NamedTuple):
    """One request. order: its number, which counts from 1 in the order of entry. lots, price: 0 for a cancel."""

    act: int
    order: int
    buys: int
    price: int
    lots: int


class Fill(NamedTuple):
    """What traded, at the maker's price."""

    maker: int
    price: int
    lots: int


class Book(Protocol):
    """What a peer is made to look like. Only what the book itself does belongs into the first three."""

    def place(self, order: int, buys: int, price: int, lots: int) -> None:
        """A limit order, good till canceled."""

    def take(self, order: int, buys: int, price: int, lots: int) -> None:
        """A limit order of which nothing may rest."""

    def cancel(self, order: int) -> None:
        """Take a resting order out."""

    def fills(self) -> Iterable[Fill]:
        """All that traded, asked for when the clock has stopped."""


def read(path: Path) -> list[Step]:
    numbers = array("q", path.read_bytes())
    return [Step(*numbers[at : at + len(Step._fields)]) for at in range(0, len(numbers), len(Step._fields))]


def write(path: Path, rows: Iterable[Sequence[int]]) -> None:
    path.write_bytes(array("q", [number for row in rows for number in row]).tobytes())


def play(package: str, make: Callable[[], Book]) -> None:
    """The whole program of a peer. package: the name of its distribution, whose version is told."""
    steps = read(Path(sys.argv[1]))
    book = make()
    place, take, cancel = book.place, book.take, book.cancel

    def some(part: list[Step]) -> None:
        for act, order, buys, price, lots in part:
            if act == PLACE:
                place(order, buys, price, lots)
            elif act == CANCEL:
                cancel(order)
            else:
                take(order, buys, price, lots)

    tell(f"{package} {version(package)}", len(steps), timed(some, sliced(steps)), book.fills())


def sliced(steps: Iterable[Step]) -> list[list[Step]]:
    left = iter(steps)
    return list(iter(lambda: list(islice(left, SLICE)), []))


def timed(do: Callable[[Any], None], parts: Sequence[Any]) -> tuple[float, list[float]]:
    """Seconds by the clock of all, and of CPU of each part. The collector is off: nobody pays for another's garbage."""
    gc.collect()
    gc.freeze()
    gc.disable()
    spent: list[float] = []
    wall = time.perf_counter()
    for part in parts:
        began = time.process_time()
        do(part)
        spent.append(time.process_time() - began)
    return time.perf_counter() - wall, spent


def tell(name: str, steps: int, took: tuple[float, list[float]], fills: Iterable[Fill]) -> None:
    write(Path(sys.argv[2]), fills)
    seconds, spent = took
    said = {"version": name, "steps": steps, "cpu_s": sum(spent), "seconds": seconds, "slices_s": spent}
    sys.stdout.write(json.dumps(said) + "\n")
