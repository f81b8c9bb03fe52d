"""Virtual time: a heap of what happens next, the clock that the engine reads, and a trace with a digest."""

from collections.abc import Callable
from hashlib import blake2b
from heapq import heappop, heappush
from typing import Any


class Clock:
    """What the library's monotonic clock answers: the time of the member that runs now."""

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


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
        self._lines: list[str] = []

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

    def trace(self, *words: object) -> None:
        line = f"{self.now_us} " + " ".join(map(str, words))
        self._lines.append(line)
        if len(self._lines) > 500:
            self._digest_lines()
        if self.tell is not None:
            self.tell(line)

    def _digest_lines(self) -> None:
        self._hash.update("\n".join([*self._lines, ""]).encode())
        self._lines.clear()

    @property
    def digest(self) -> str:
        """Of all lines so far, and of how many events there were."""
        self._digest_lines()
        whole = self._hash.copy()
        whole.update(f"{self.events} {self._count}".encode())
        return whole.hexdigest()
