"""When requests are due, fixed before anything is sent: arrivals at random times, at rates that change in steps."""

import random
from collections.abc import Iterable, Iterator

from msgspec import Struct


class Step(Struct, frozen=True, array_like=True):
    """`rate_per_s` requests a second on the mean, for `seconds`."""

    seconds: float
    rate_per_s: float


def arrivals(steps: Iterable[Step], seed: int) -> Iterator[float]:
    """Seconds from the beginning, rising: a Poisson process, as of many clients who know nothing of each other.

    One seed is one schedule. Nothing that a server does moves any of these times.
    """
    draws = random.Random(seed)
    begin = 0.0
    for step in steps:
        end = begin + step.seconds
        at = begin
        while step.rate_per_s > 0:
            at += draws.expovariate(step.rate_per_s)
            if at >= end:
                break
            yield at
        begin = end


def lasting(steps: Iterable[Step]) -> float:
    """How long all steps take, in seconds."""
    return sum(step.seconds for step in steps)
