"""Alerts on one rising value, sorted by level: a tick that reaches none of them costs one comparison."""

from bisect import bisect_left, insort

Key = tuple[str, str]
"""(user, alert id)"""
NEVER = 1 << 80
"""A level beyond all prices."""


class Ladder:
    """Armed alerts wait for the value to reach their level, resting ones for it to fall back to theirs.

    For "below" the caller turns the sign of levels and values alike.
    """

    def __init__(self) -> None:
        # Both are sorted so that what is reached next is last, where taking it away costs nothing.
        self._armed: list[tuple[int, Key]] = []
        self._resting: list[tuple[int, Key]] = []
        self._armed_at: dict[Key, int] = {}
        self._resting_at: dict[Key, int] = {}
        self.lowest_armed = NEVER
        self.highest_resting = -NEVER
        """A value strictly between the two changes nothing."""

    def __len__(self) -> int:
        return len(self._armed) + len(self._resting)

    def arm(self, key: Key, level: int) -> None:
        """It must not be on the ladder."""
        insort(self._armed, (-level, key))
        self._armed_at[key] = level
        self._mark()

    def rest(self, key: Key, level: int) -> None:
        """It must not be on the ladder."""
        insort(self._resting, (level, key))
        self._resting_at[key] = level
        self._mark()

    def remove(self, key: Key) -> None:
        """Take it off the ladder, if it is on it."""
        if (level := self._armed_at.pop(key, None)) is not None:
            del self._armed[bisect_left(self._armed, (-level, key))]
        elif (level := self._resting_at.pop(key, None)) is not None:
            del self._resting[bisect_left(self._resting, (level, key))]
        self._mark()

    def reached(self, value: int) -> list[Key]:
        """Armed alerts whose level is at or below the value, lowest first; they are off the ladder then."""
        found: list[Key] = []
        armed = self._armed
        while armed and -armed[-1][0] <= value:
            key = armed.pop()[1]
            del self._armed_at[key]
            found.append(key)
        self._mark()
        return found

    def fallen(self, value: int) -> list[Key]:
        """Resting alerts whose level is at or above the value; they are off the ladder then."""
        found: list[Key] = []
        resting = self._resting
        while resting and resting[-1][0] >= value:
            key = resting.pop()[1]
            del self._resting_at[key]
            found.append(key)
        self._mark()
        return found

    def _mark(self) -> None:
        self.lowest_armed = -self._armed[-1][0] if self._armed else NEVER
        self.highest_resting = self._resting[-1][0] if self._resting else -NEVER
