"""The clock guard: a member whose wall clock is far from the others' may not lead, for the leader stamps time."""

from collections.abc import Iterable
from statistics import median


class ClockGuard:
    """Judges this member's clock by its offsets to the others'. It takes three clocks to say who is wrong.

    With fewer in reach, an earlier verdict stands, until every clock in reach agrees with this one.
    """

    def __init__(self, limit_ms: int) -> None:
        self._limit_ms = limit_ms
        self.barred: str | None = None

    def judge(self, offsets_ms: Iterable[int]) -> str | None:
        """offsets_ms: each other's clock minus this one's. Returns why this member may not lead, or None."""
        offsets = list(offsets_ms)
        if len(offsets) >= 2:
            ahead_ms = round(-median([0, *offsets]))
            if abs(ahead_ms) > self._limit_ms:
                of = len(offsets) + 1
                self.barred = f"clock is {ahead_ms} ms from the median of {of}; at most {self._limit_ms} ms may be"
            else:
                self.barred = None
        elif offsets and abs(offsets[0]) <= self._limit_ms:
            self.barred = None
        return self.barred
