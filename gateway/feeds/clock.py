"""The time of day for market data: as the system says, but never back and never slower than half."""

import time


def system_us() -> int:
    return time.time_ns() // 1000


def monotonic_us() -> int:
    return time.monotonic_ns() // 1000


class SteadyClock:
    """Microseconds since 1970.

    When the system's clock is set back, this one goes on at half speed until the other has caught up: quotes
    then live twice as long, where a clock that waits would keep them for ever, and one that jumps back would
    make all that came before look new. When the system's clock is set forward, this one follows at once.
    """

    def __init__(self) -> None:
        self._monotonic_us = monotonic_us()
        self._now_us = system_us()

    def __call__(self) -> int:
        monotonic = monotonic_us()
        passed_us = monotonic - self._monotonic_us
        self._monotonic_us = monotonic
        ahead_us = self._now_us + passed_us - system_us()
        self._now_us += passed_us - min(ahead_us, passed_us // 2)
        return self._now_us


now_us = SteadyClock()
"""One for the process, so that all feeds and caches agree."""
