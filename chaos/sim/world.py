"""Virtual time: a heap of what happens next, the clock that the engine reads, and a trace with a digest."""

from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from heapq import heappop, heappush
from typing import Any

import msgspec

LINES_MAX = 500


class Clock(list[float]):
    """What the library's monotonic clock answers: the time of the member that runs now.

    A list of one, because the library asks a few times for every event: `read` is C, without a Python frame.
    """

    def __init__(self) -> None:
        super().__init__([0.0])
        self.read: Callable[[], float] = partial(self.__getitem__, 0)


def _plain(word: Any) -> object:
    """What the digest takes in of something that msgpack does not know; never what differs between processes."""
    return word.traced


_encode = msgspec.msgpack.Encoder(enc_hook=_plain).encode


class World:
    """Times are whole microseconds since the run began. Two runs of one seed give one digest.

    tell: gets every line of the trace, for people; None is quicker.
    """

    def __init__(self, tell: Callable[[str], None] | None = None) -> None:
        self.now_us = 0
        self.events = 0
        self.clock = Clock()
        self.tell = tell
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._hash = blake2b(digest_size=16)
        self._lines: list[tuple[int, tuple[Any, ...]]] = []

    def at(self, delay_us: int, action: Callable[..., None], *arguments: Any) -> None:
        """Do it later. Of what is due at one moment, what was asked for first comes first."""
        self._count += 1
        heappush(self._heap, (self.now_us + delay_us, self._count, action, arguments))

    def run_until(self, end_us: int, done: Callable[[], bool] | None = None) -> None:
        """Up to end_us, or until `done()`, which is asked after each event."""
        heap = self._heap
        while heap and heap[0][0] <= end_us:
            self.now_us, _, action, arguments = heappop(heap)
            self.events += 1
            action(*arguments)
            if done is not None and done():
                return
        self.now_us = max(self.now_us, end_us)

    def trace(self, *words: Any) -> None:
        """Words are strings, numbers and messages. Messages are digested whole; for people they are shortened."""
        self._lines.append((self.now_us, words))
        if len(self._lines) > LINES_MAX:
            self._digest_lines()
        if self.tell is not None:
            self.tell(f"{self.now_us / 1e6:11.6f} " + " ".join(map(readable, words)))

    def _digest_lines(self) -> None:
        self._hash.update(_encode(self._lines))
        self._lines.clear()

    @property
    def digest(self) -> str:
        """Of all lines so far, and of how many events there were."""
        self._digest_lines()
        whole = self._hash.copy()
        whole.update(f"{self.events} {self._count}".encode())
        return whole.hexdigest()


def readable(word: Any) -> str:
    """A word of the trace for people: of a message its kind and its fields, of what is long a digest or a length."""
    names = getattr(word, "__struct_fields__", None)
    if names is None:
        return str(word)
    fields = [f"{name}={_short(getattr(word, name))}" for name in names]
    return f"{type(word).__name__}({', '.join(fields)})"


def _short(value: Any) -> object:
    if isinstance(value, bytes):
        return blake2b(value, digest_size=6).hexdigest()
    value = getattr(value, "traced", value)
    return len(value) if isinstance(value, list) else readable(value)
