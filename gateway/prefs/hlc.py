"""A hybrid logical clock: stamps that follow cause and effect across the sites and stay close to the time of day."""

import secrets
import time
from collections.abc import Callable
from typing import NamedTuple

from gateway.prefs.errors import ClockAhead

CLOCK_AHEAD_MS_MAX = 10_000
"""A stamp further ahead of our own wall clock is refused: it would win against every write until that time came."""
STEP_MAX = 0xFFFF
SITE_CHARS_MAX = 32
WRITER_CHARS_MAX = SITE_CHARS_MAX + 9


class Stamp(NamedTuple):
    """When a write was made. Ordered; no two writes have the same one.

    ms: milliseconds since 1970 UTC, never behind the writer's wall clock. step: tells writes of one millisecond
    apart. writer: the site's incarnation, the tie-break between sites.
    """

    ms: int
    step: int
    writer: str


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


def new_incarnation(site: str) -> str:
    """The site's name and a random part. One per store that was made: a site that lost its disk never reuses a dot."""
    return f"{site}.{secrets.token_hex(4)}"


def site_of(writer: str) -> str:
    return writer.rpartition(".")[0]


class Clock:
    """Stamps for one writer. Not for several threads at once.

    last: the greatest stamp known when the store was opened, so that time never goes back over a restart, even
    where the wall clock was set back meanwhile.
    """

    def __init__(self, writer: str, *, last: Stamp | None = None, wall: Callable[[], int] = wall_ms) -> None:
        self.writer = writer
        self._wall = wall
        self._ms, self._step = (last.ms, last.step) if last is not None else (0, 0)

    def next(self) -> Stamp:
        """Greater than every stamp given out or observed before."""
        now_ms = self._wall()
        if now_ms > self._ms:
            self._ms, self._step = now_ms, 0
        elif self._step < STEP_MAX:
            self._step += 1
        else:
            self._ms, self._step = self._ms + 1, 0
        return Stamp(self._ms, self._step, self.writer)

    def last(self) -> Stamp:
        return Stamp(self._ms, self._step, self.writer)

    def observe(self, stamp: Stamp) -> None:
        """Let every stamp from now on be greater than this one. Raises ClockAhead; then nothing is observed."""
        if stamp.ms > (limit_ms := self.limit_ms()):
            raise ClockAhead(
                f"{stamp.writer} wrote at {stamp.ms} ms, {stamp.ms - limit_ms + CLOCK_AHEAD_MS_MAX} ms ahead of this "
                f"site's clock; at most {CLOCK_AHEAD_MS_MAX} ms are taken"
            )
        self._ms, self._step = max((self._ms, self._step), (stamp.ms, stamp.step))

    def limit_ms(self) -> int:
        """The latest time that a stamp from elsewhere may bear now."""
        return self._wall() + CLOCK_AHEAD_MS_MAX

    def ahead_ms(self) -> int:
        """How far our own stamps run ahead of the wall clock: more than a moment means that it was set back."""
        return max(0, self._ms - self._wall())
