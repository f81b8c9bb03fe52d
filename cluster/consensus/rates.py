"""How much comes in, bounded: a bucket of tokens that fills with time and may be overdrawn once."""

import time
from collections import OrderedDict

ADDRESSES_MAX = 1024


class Bucket:
    """per_s tokens come in each second; it holds what comes in within one."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._tokens = per_s
        self._at = time.monotonic()

    def take(self, count: float, now: float) -> float:
        """Take them in any case. Seconds until the debt is paid, 0: there is none."""
        self._tokens = min(self._per_s, self._tokens + (now - self._at) * self._per_s) - count
        self._at = now
        return max(0.0, -self._tokens / self._per_s)

    def allows(self, now: float) -> bool:
        """Take one, if it is there."""
        if self.take(1, now) > 0:
            self._tokens += 1
            return False
        return True


class Handshakes:
    """So many per second of one address, and four times as many of all. The oldest addresses are forgotten first."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._all = Bucket(4 * per_s)
        self._of: OrderedDict[str, Bucket] = OrderedDict()

    def allow(self, address: str) -> bool:
        now = time.monotonic()
        bucket = self._of.pop(address, None) or Bucket(self._per_s)
        self._of[address] = bucket
        if len(self._of) > ADDRESSES_MAX:
            self._of.popitem(last=False)
        # An address beyond its own bound takes nothing away from the others.
        return bucket.allows(now) and self._all.allows(now)
