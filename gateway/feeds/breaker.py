"""A circuit breaker per feed: a venue that keeps failing is left alone for a while, then tried with care.

closed ──(20 points of failure within 60 s)──▶ open ──(its time is over)──▶ half-open ──(5 s without a
failure, then a good frame)──▶ closed. Any failure while half-open opens it again, for twice as long: 5 s
at first, 300 s at most. A lost or refused connection is 4 points, a gap 2, a bad frame 1.
"""

from collections import deque
from enum import IntEnum

from msgspec import Struct

POINTS = {"connection": 4, "gap": 2, "bad_frame": 1}


class State(IntEnum):
    """As metrics show it."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class BreakerSettings(Struct, frozen=True, kw_only=True):
    points_max: int = 20
    window_us: int = 60_000_000
    open_us_min: int = 5_000_000
    open_us_max: int = 300_000_000
    probe_us: int = 5_000_000

    def __post_init__(self) -> None:
        if self.open_us_min > self.open_us_max:
            raise ValueError(f"open_us_min {self.open_us_min} is above open_us_max {self.open_us_max}")


class Breaker:
    """Times are the caller's, in microseconds of any clock that does not go back."""

    def __init__(self, settings: BreakerSettings | None = None) -> None:
        self.settings = settings or BreakerSettings()
        self.state = State.CLOSED
        self.trips = 0
        """How often it opened."""
        self.since_us = 0
        self.retry_us = 0
        """When an open breaker lets one attempt through."""
        self._open_us = self.settings.open_us_min
        self._failures: deque[tuple[int, int]] = deque()
        self._points = 0

    def allows(self, now_us: int) -> bool:
        """Whether to connect, or to stay connected. An open breaker whose time is over becomes half-open."""
        if self.state is State.OPEN and now_us >= self.retry_us:
            self._become(State.HALF_OPEN, now_us)
        return self.state is not State.OPEN

    def failed(self, now_us: int, kind: str) -> None:
        """kind: `connection`, `gap` or `bad_frame`."""
        if self.state is State.OPEN:
            return
        if self.state is State.HALF_OPEN:
            self._open_us = min(self._open_us * 2, self.settings.open_us_max)
            self._trip(now_us)
            return
        points = POINTS[kind]
        self._failures.append((now_us, points))
        self._points += points
        while self._failures[0][0] <= now_us - self.settings.window_us:
            self._points -= self._failures.popleft()[1]
        if self._points >= self.settings.points_max:
            self._trip(now_us)

    def worked(self, now_us: int) -> None:
        """A good frame came."""
        if self.state is not State.HALF_OPEN:
            return
        if now_us - self.since_us >= self.settings.probe_us:
            self._open_us = self.settings.open_us_min
            self._become(State.CLOSED, now_us)

    def _trip(self, now_us: int) -> None:
        self.trips += 1
        self._failures.clear()
        self._points = 0
        self.retry_us = now_us + self._open_us
        self._become(State.OPEN, now_us)

    def _become(self, state: State, now_us: int) -> None:
        self.state, self.since_us = state, now_us
