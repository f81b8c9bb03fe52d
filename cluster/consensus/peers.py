"""What a member knows of another beside the log: when it was heard, and how far its clock is off."""

import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.consensus.connection import Connection

CLOCK_SAMPLES = 8


def steady_us() -> int:
    """A clock that nobody sets; where it can, it goes on while the machine sleeps."""
    return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)) // 1000


class ClockSamples:
    """The offset of a peer's wall clock, from the quickest of the last few round trips.

    Kept against our steady clock, not our wall clock: when that is set, the offset to all peers is another at once,
    while what was measured stays true.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[int, int]] = deque(maxlen=CLOCK_SAMPLES)  # (round trip, theirs - steady), us

    def add(self, sent_us: int, theirs_us: int, now_us: int) -> None:
        """sent_us, now_us: our steady clock when we asked and when the answer came; theirs_us: their wall clock."""
        round_trip_us = now_us - sent_us
        if round_trip_us >= 0:
            self._samples.append((round_trip_us, theirs_us - sent_us - round_trip_us // 2))

    def offset_ms(self, *, wall_us: int, steady_us: int) -> int | None:
        """Their wall clock minus ours, now."""
        return round((min(self._samples)[1] + steady_us - wall_us) / 1000) if self._samples else None


class Peer:
    """What outlives a connection: who it is, where it is dialed, when it was heard, how its clock differs."""

    def __init__(self, name: str, address: tuple[str, int]) -> None:
        self.name = name
        self.address = address
        self.connection: Connection | None = None
        self.heard_at = 0.0
        self.incarnation = 0
        self.clock = ClockSamples()
