"""How often is sent, and what is left out: 100 ms while there is time, up to 500 ms when rounds take too long.

Candles and leaderboards go first, then the tick grows. It comes back step by step, later than it went, so that a load
near a step does not make it flutter.
"""

from collections.abc import Callable, Sequence

from gateway.fanout.topics import SHED

STEPS_MS = (100, 100, 200, 350, 500)
"""By level. From level 1 on candles and leaderboards are shed."""
BUSY = 0.6
"""A round that takes more of its tick than this is one too many."""
CALM = 0.25
LAG_MS_MAX = 50.0
"""A loop that wakes so late has more to do than it can."""
ROUNDS_UP = 3
ROUNDS_DOWN = 20


class Pace:
    """Moved by `observe`, once per round."""

    def __init__(self, steps_ms: Sequence[int] = STEPS_MS) -> None:
        self.level = 0
        self.changes = 0
        self.round_ms = 0.0
        """How long the last round took."""
        self.lag_ms = 0.0
        """How late the last one began."""
        self.on_change: list[Callable[[], None]] = []
        self._steps_ms = tuple(steps_ms)
        self._busy = self._calm = 0

    @property
    def tick_ms(self) -> int:
        return self._steps_ms[self.level]

    @property
    def shed(self) -> tuple[str, ...]:
        return SHED if self.level else ()

    def observe(self, round_ms: float, lag_ms: float) -> None:
        """One round took so long, and began so late."""
        self.round_ms, self.lag_ms = round_ms, lag_ms
        share = round_ms / self.tick_ms
        if share > BUSY or lag_ms > LAG_MS_MAX:
            self._busy, self._calm = self._busy + 1, 0
        elif share < CALM and lag_ms < LAG_MS_MAX / 2:
            self._busy, self._calm = 0, self._calm + 1
        else:
            self._busy = self._calm = 0
        if self._busy >= ROUNDS_UP and self.level < len(self._steps_ms) - 1:
            self._move(self.level + 1)
        elif self._calm >= ROUNDS_DOWN and self.level:
            self._move(self.level - 1)

    def _move(self, level: int) -> None:
        self.level = level
        self.changes += 1
        self._busy = self._calm = 0
        for hook in self.on_change:
            hook()
