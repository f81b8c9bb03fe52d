"""What an open loop found, request by request: when it was due, how long it took from then, how it ended."""

from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from bench.stats import Spread, spread

DONE, REFUSED, UNKNOWN = 0, 1, 2
"""Done: it has taken effect. Refused: it never will. Unknown: it may have, nobody said in time."""


class Samples:
    """Three columns of one length, in the order in which requests were due.

    due_s: seconds from the beginning of the measured time. latency_ms: from that moment to the answer; where none came,
    to the moment at which it was given up. outcome: DONE, REFUSED or UNKNOWN.
    """

    def __init__(self, due_s: "array[float]", latency_ms: "array[float]", outcome: "array[int]") -> None:
        self.due_s = due_s
        self.latency_ms = latency_ms
        self.outcome = outcome

    @classmethod
    def none(cls) -> Self:
        return cls(array("d"), array("f"), array("b"))

    def __len__(self) -> int:
        return len(self.due_s)

    @property
    def columns(self) -> "tuple[array[float], array[float], array[int]]":
        return self.due_s, self.latency_ms, self.outcome

    def write(self, path: Path) -> None:
        with path.open("wb") as file:
            for column in self.columns:
                column.tofile(file)

    @classmethod
    def read(cls, path: Path, count: int) -> Self:
        """Raises EOFError: there are not that many in the file."""
        found = cls.none()
        if path.stat().st_size != count * sum(column.itemsize for column in found.columns):
            raise EOFError(f"{path} does not hold {count} samples")
        with path.open("rb") as file:
            for column in found.columns:
                column.fromfile(file, count)
        return found

    @classmethod
    def merged(cls, parts: Iterable["Samples"]) -> Self:
        """All of several generators that began together."""
        found = cls.none()
        for part in parts:
            found.due_s.extend(part.due_s)
            found.latency_ms.extend(part.latency_ms)
            found.outcome.extend(part.outcome)
        return found

    def count(self, outcome: int) -> int:
        return self.outcome.count(outcome)

    def latency(self) -> Spread:
        """Of all that were due, however they ended: a stall costs each request that should have been sent."""
        return spread(self.latency_ms)

    def answered_per_s(self, seconds: float, width_s: float) -> tuple[list[float], list[float]]:
        """(middle of each slice, what was done in it a second), over the measured time, by when the answer came."""
        slices = [0] * max(1, round(seconds / width_s))
        for due_s, latency_ms, outcome in zip(self.due_s, self.latency_ms, self.outcome, strict=True):
            at = int((due_s + latency_ms / 1e3) / width_s)
            if outcome == DONE and at < len(slices):
                slices[at] += 1
        return [(at + 0.5) * width_s for at in range(len(slices))], [count / width_s for count in slices]

    def by_slice(self, seconds: float, width_s: float) -> list[Spread]:
        """Latency of what was due in each slice of the measured time."""
        slices: list[array[float]] = [array("f") for _ in range(max(1, round(seconds / width_s)))]
        for due_s, latency_ms in zip(self.due_s, self.latency_ms, strict=True):
            slices[min(len(slices) - 1, int(due_s / width_s))].append(latency_ms)
        return [spread(values) for values in slices]
