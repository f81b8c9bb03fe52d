"""The buckets: what passes, what waits, and that cancels still pass when orders are used up."""

import pytest

from node.errors import RateLimited
from node.ratelimit import RateLimiter, Rates


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def limiter(clock: Clock, **rates: float) -> RateLimiter:
    values = {"commands_per_s": 10.0, "burst": 20, "cancels_per_s": 2.0, "cancel_burst": 4, **rates}
    return RateLimiter(Rates(**values), clock=clock)  # type: ignore[arg-type]


def test_the_burst_passes_and_the_next_one_waits_for_the_rate() -> None:
    clock = Clock()
    bucket = limiter(clock)
    grant = bucket.take("ann", commands=25)
    assert (grant.commands, grant.remaining, bucket.refused) == (20, 0, 5)
    assert grant.retry_after_s == pytest.approx(0.1)
    clock.now_s += 0.099
    with pytest.raises(RateLimited) as refused:
        bucket.require("ann")
    assert refused.value.retry_after_s == pytest.approx(0.001)
    clock.now_s += 0.0011
    assert bucket.require("ann").commands == 1


def test_cancels_pass_when_orders_are_used_up() -> None:
    bucket = limiter(Clock())
    bucket.take("ann", commands=20)
    grant = bucket.take("ann", commands=3, cancels=6)
    assert (grant.commands, grant.cancels) == (0, 4)
    with pytest.raises(RateLimited):
        bucket.require("ann", cancel=True)


def test_cancels_use_their_own_room_first_then_the_common_one() -> None:
    bucket = limiter(Clock())
    assert bucket.take("ann", cancels=10).cancels == 10
    assert bucket.take("ann", commands=20).commands == 14


def test_one_principal_does_not_use_up_anothers_room() -> None:
    bucket = limiter(Clock())
    bucket.take("ann", commands=20)
    assert bucket.take("bob", commands=20).commands == 20


def test_the_headers_say_what_is_left_and_when_it_is_full() -> None:
    bucket = limiter(Clock())
    headers = bucket.take("ann", commands=5).headers(1_000.0)
    assert headers == {"X-RateLimit-Limit": "20", "X-RateLimit-Remaining": "15", "X-RateLimit-Reset": "1001"}


def test_buckets_never_hold_more_than_the_burst_and_are_bounded_in_number() -> None:
    clock = Clock()
    bucket = limiter(clock, principals_max=2)
    bucket.take("ann")
    clock.now_s += 3600
    assert bucket.take("ann", commands=100).commands == 20
    for name in ("bob", "carol", "dan"):
        bucket.take(name)
    assert len(bucket._buckets) == 2


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="burst 0"):
        Rates(burst=0)


def test_a_frame_is_admitted_whole_or_not_at_all() -> None:
    bucket = limiter(Clock())
    assert not bucket.admit("ann", 21, 0)
    assert bucket.take("ann").remaining == 20
    assert bucket.admit("ann", 18, 5)  # one cancel more than their own room holds
    assert not bucket.admit("ann", 2, 0)
    assert bucket.admit("ann", 1, 0)
    assert not bucket.admit("ann", 0, 1)
    assert bucket.take("ann", commands=1, cancels=1).commands == 0
