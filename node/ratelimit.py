"""A token bucket per principal, ahead of the batcher: what is refused here was never logged.

Cancels have a bucket of their own besides the common one: whoever has used up his orders can still
take them out of the market.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from msgspec import Struct

from node.errors import RateLimited


class Rates(Struct, frozen=True, kw_only=True):
    """Commands per second and how many may come at once. cancel_*: reserved for cancels, on top of these."""

    commands_per_s: float = 20_000.0
    burst: int = 20_000
    cancels_per_s: float = 5_000.0
    cancel_burst: int = 5_000
    principals_max: int = 100_000

    def __post_init__(self) -> None:
        for name in ("commands_per_s", "burst", "cancels_per_s", "cancel_burst", "principals_max"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} {getattr(self, name)}: must be above 0")


class Grant(Struct, frozen=True, gc=False):
    """What may pass: the first `commands` of those asked for, and the first `cancels`.

    remaining: what the common bucket still holds. reset_s: until it is full. retry_after_s: until there is
    room for one more, 0 when all passed.
    """

    commands: int
    cancels: int
    limit: int
    remaining: int
    reset_s: float
    retry_after_s: float

    def headers(self, now_s: float) -> dict[str, str]:
        """X-RateLimit-*, Alpaca's names; Reset in seconds since 1970."""
        return {
            "X-RateLimit-Limit": str(self.limit),
            "X-RateLimit-Remaining": str(self.remaining),
            "X-RateLimit-Reset": str(math.ceil(now_s + self.reset_s)),
        }


class _Bucket:
    __slots__ = ("cancels", "commands", "filled_at_s")

    def __init__(self, commands: float, cancels: float, filled_at_s: float) -> None:
        self.commands = commands
        self.cancels = cancels
        self.filled_at_s = filled_at_s


class RateLimiter:
    """The buckets of all principals; those unused for longest are forgotten past principals_max."""

    def __init__(self, rates: Rates, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.rates = rates
        self.refused = 0
        """Commands turned away since the start."""
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def admit(self, subject: str, commands: int, cancels: int) -> bool:
        """Take tokens for all of them if there are as many, else for none: then `take` says what may pass."""
        bucket = self._bucket(subject)
        shared = cancels - min(cancels, int(bucket.cancels))
        if bucket.commands < commands + shared:
            return False
        bucket.cancels -= cancels - shared
        bucket.commands -= commands + shared
        return True

    def take(self, subject: str, *, commands: int = 0, cancels: int = 0) -> Grant:
        """Take tokens for as many as there are. Cancels use their own bucket first, then the common one."""
        rates = self.rates
        bucket = self._bucket(subject)
        reserved = min(cancels, int(bucket.cancels))
        bucket.cancels -= reserved
        shared = min(cancels - reserved, int(bucket.commands))
        bucket.commands -= shared
        passed = min(commands, int(bucket.commands))
        bucket.commands -= passed
        missing = commands - passed + cancels - reserved - shared
        self.refused += missing
        if not missing:
            retry_after_s = 0.0
        elif commands > passed:
            retry_after_s = (1.0 - bucket.commands) / rates.commands_per_s
        else:
            retry_after_s = min(
                (1.0 - bucket.cancels) / rates.cancels_per_s, (1.0 - bucket.commands) / rates.commands_per_s
            )
        return Grant(
            passed,
            reserved + shared,
            rates.burst,
            int(bucket.commands),
            (rates.burst - bucket.commands) / rates.commands_per_s,
            max(retry_after_s, 0.0),
        )

    def require(self, subject: str, *, cancel: bool = False) -> Grant:
        """Take one token. Raises RateLimited, with the wait in seconds."""
        grant = self.take(subject, cancels=1) if cancel else self.take(subject, commands=1)
        if not (grant.commands or grant.cancels):
            raise rate_limited(grant)
        return grant

    def _bucket(self, subject: str) -> _Bucket:
        rates, now_s = self.rates, self._clock()
        bucket = self._buckets.get(subject)
        if bucket is None:
            if len(self._buckets) >= rates.principals_max:
                self._buckets.popitem(last=False)
            bucket = self._buckets[subject] = _Bucket(rates.burst, rates.cancel_burst, now_s)
            return bucket
        self._buckets.move_to_end(subject)
        elapsed_s = now_s - bucket.filled_at_s
        bucket.commands = min(bucket.commands + elapsed_s * rates.commands_per_s, rates.burst)
        bucket.cancels = min(bucket.cancels + elapsed_s * rates.cancels_per_s, rates.cancel_burst)
        bucket.filled_at_s = now_s
        return bucket


def rate_limited(grant: Grant) -> RateLimited:
    return RateLimited(
        f"more than {grant.limit} commands at once; try again in {grant.retry_after_s:.3f} s",
        retry_after_s=grant.retry_after_s,
    )
