"""The breaker opens at its threshold, waits its time, tries with care, and waits longer the next time."""

import pytest

from gateway.feeds.breaker import Breaker, BreakerSettings, State

SECOND = 1_000_000


@pytest.fixture
def breaker() -> Breaker:
    return Breaker()


def state(breaker: Breaker) -> State:
    """Asked for anew: the type checker would take it for what it was."""
    return breaker.state


def trip(breaker: Breaker, now_us: int = 0) -> None:
    for _ in range(5):
        breaker.failed(now_us, "connection")


@pytest.mark.parametrize(("kind", "count"), [("connection", 5), ("gap", 10), ("bad_frame", 20)])
def test_it_opens_at_twenty_points(breaker: Breaker, kind: str, count: int) -> None:
    for _ in range(count - 1):
        breaker.failed(0, kind)
    assert state(breaker) is State.CLOSED
    breaker.failed(0, kind)
    assert state(breaker) is State.OPEN
    assert breaker.trips == 1


def test_failures_older_than_a_minute_do_not_count(breaker: Breaker) -> None:
    for second in range(0, 1_500, 16):
        breaker.failed(second * SECOND, "connection")
        assert state(breaker) is State.CLOSED
    for second in range(2_000, 2_061, 15):
        breaker.failed(second * SECOND, "connection")
    assert state(breaker) is State.CLOSED, "four within any sixty seconds"
    breaker.failed(2_061 * SECOND, "connection")
    assert state(breaker) is State.OPEN


def test_open_half_open_closed(breaker: Breaker) -> None:
    trip(breaker)
    assert not breaker.allows(5 * SECOND - 1)
    assert breaker.allows(5 * SECOND)
    assert state(breaker) is State.HALF_OPEN
    breaker.worked(9 * SECOND)
    assert state(breaker) is State.HALF_OPEN, "not for long enough"
    breaker.worked(10 * SECOND)
    assert state(breaker) is State.CLOSED
    assert breaker.since_us == 10 * SECOND
    for _ in range(4):
        breaker.failed(11 * SECOND, "connection")
    assert state(breaker) is State.CLOSED, "what failed before was forgotten"


def test_one_failure_while_half_open_opens_it_for_twice_as_long(breaker: Breaker) -> None:
    trip(breaker)
    waits = []
    now_us = 0
    for _ in range(9):
        waits.append((breaker.retry_us - now_us) // SECOND)
        now_us = breaker.retry_us
        assert breaker.allows(now_us)
        breaker.failed(now_us, "bad_frame")
        assert state(breaker) is State.OPEN
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    now_us = breaker.retry_us
    breaker.allows(now_us)
    breaker.worked(now_us + 5 * SECOND)
    trip(breaker, now_us + 6 * SECOND)
    assert breaker.retry_us == now_us + 11 * SECOND, "once it worked the waits begin anew"


def test_failures_while_open_change_nothing(breaker: Breaker) -> None:
    trip(breaker)
    before = breaker.retry_us
    breaker.failed(1, "connection")
    assert (breaker.retry_us, breaker.trips) == (before, 1)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="open_us_min 2 is above open_us_max 1"):
        BreakerSettings(open_us_min=2, open_us_max=1)
