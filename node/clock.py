"""The clock that a leader stamps batches with: it goes by the wall clock, but never jumps while the member leads.

Replicated time only goes forward, for ever: a day too far ends all day orders, sessions and keys at once, and no
later entry can take it back. A wall clock that jumps is found by the clock guard, but only at its next look.
"""

import time
from collections.abc import Callable, Iterable

from node.batcher import clock_us

SLEW = 10
"""The wall clock is followed by at most one part in so many: a jump moves stamps by a tenth of the time it lasts."""


def steady_us() -> int:
    return time.monotonic_ns() // 1000


class SteadyClock:
    """Microseconds since 1970. One event loop."""

    def __init__(self, wall_us: Callable[[], int] = clock_us, steady_us: Callable[[], int] = steady_us) -> None:
        self._wall_us = wall_us
        self._steady_us = steady_us
        self._read_at_us = 0
        self._now_us = 0
        self.set()

    def set(self, offsets_ms: Iterable[int] = (), *, ahead_ms_max: int = 0) -> None:
        """Take the wall clock, for a leadership that begins.

        offsets_ms: other members' clocks minus the wall clock. Where it is further than ahead_ms_max ahead of all of
        them, the latest of theirs is taken: the clock guard may have looked just before the wall clock was set.
        """
        self._read_at_us = self._steady_us()
        self._now_us = self._wall_us()
        latest_ms = max(offsets_ms, default=0)
        if latest_ms < -ahead_ms_max:
            self._now_us += latest_ms * 1_000

    def __call__(self) -> int:
        read_at_us = self._steady_us()
        elapsed_us = read_at_us - self._read_at_us
        self._read_at_us = read_at_us
        expected_us = self._now_us + elapsed_us
        slack_us = elapsed_us // SLEW
        self._now_us = min(max(self._wall_us(), expected_us - slack_us), expected_us + slack_us)
        return self._now_us
