"""How often a user may ask: a sliding window in the cache, shared by all processes, in memory while it is away."""

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable

from msgspec import Struct

from gateway.cache.client import CacheAway
from gateway.cache.rates import CacheRates

AWAY_S = 1.0
"""A cache that did not answer is not asked again for so long: nobody waits for it."""
USERS_MAX = 100_000


class Grant(Struct, frozen=True, gc=False):
    """passed: this one may go on. reset_s: until the window is as good as empty."""

    passed: bool
    limit: int
    remaining: int
    reset_s: float
    retry_after_s: float

    def headers(self, now_s: float) -> dict[str, str]:
        """X-RateLimit-*, as the nodes have them; Reset in seconds since 1970."""
        return {
            "X-RateLimit-Limit": str(self.limit),
            "X-RateLimit-Remaining": str(self.remaining),
            "X-RateLimit-Reset": str(math.ceil(now_s + self.reset_s)),
        }


def weigh(limit: int, window_s: float, before: int, current: int, passed_s: float) -> Grant:
    """The window that ends now: all of the present slot, and of the one before the part that still is in it.

    current: with this request. Nobody who asks evenly is refused, and nobody gets more than twice the rate for a
    moment at a slot's edge.
    """
    used = before * (1.0 - passed_s / window_s) + current
    reset_s = window_s - passed_s
    if used <= limit:
        return Grant(True, limit, max(0, int(limit - used)), reset_s, 0.0)
    return Grant(False, limit, 0, reset_s, min(reset_s, max(window_s / limit, 0.001)))


class Rates:
    """requests_per_s over a window that is long enough for `burst` at once."""

    def __init__(
        self,
        cache: CacheRates | None,
        *,
        requests_per_s: float,
        burst: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.limit = burst
        self.window_s = burst / requests_per_s
        self.counters: Counter[str] = Counter()
        self._cache = cache
        self._clock = clock
        self._away_until_s = 0.0
        self._own: OrderedDict[str, tuple[int, int, int]] = OrderedDict()
        """By user: the slot, the count of the one before, the count of this one."""

    async def take(self, user: str) -> Grant:
        """Count one request of a user. Never raises for a cache that is away: each process counts for itself then."""
        now_s = self._clock()
        if self._cache is not None and now_s >= self._away_until_s:
            slot, passed_s = int(now_s // self.window_s), now_s % self.window_s
            try:
                before, current = await self._cache.count(user, slot, self.window_s, self.limit, passed_s)
            except CacheAway:
                self._away_until_s = now_s + AWAY_S
                self.counters["away"] += 1
            else:
                self.counters["cache"] += 1
                return self._told(weigh(self.limit, self.window_s, before, current, passed_s))
        self.counters["memory"] += 1
        return self._told(self._counted(user, now_s))

    def _told(self, grant: Grant) -> Grant:
        if not grant.passed:
            self.counters["refused"] += 1
        return grant

    def _counted(self, user: str, now_s: float) -> Grant:
        slot, passed_s = int(now_s // self.window_s), now_s % self.window_s
        known, before, current = self._own.pop(user, (slot, 0, 0))
        if known != slot:
            before, current = (current if known == slot - 1 else 0), 0
        grant = weigh(self.limit, self.window_s, before, current + 1, passed_s)
        if len(self._own) >= USERS_MAX:
            self._own.popitem(last=False)
        # What is refused is not counted: whoever keeps asking gets through at the rate, not never.
        self._own[user] = (slot, before, current + grant.passed)
        return grant
