"""The clock never goes back, follows forward at once, and lets a clock that was set back catch up."""

import itertools

import pytest

from gateway.feeds import clock
from gateway.feeds.clock import SteadyClock

SECOND = 1_000_000


class Times:
    """The system's two clocks, set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall_us, self.monotonic_us = 1_000 * SECOND, 50 * SECOND
        monkeypatch.setattr(clock, "system_us", lambda: self.wall_us)
        monkeypatch.setattr(clock, "monotonic_us", lambda: self.monotonic_us)

    def pass_s(self, seconds: float) -> None:
        self.wall_us += round(seconds * SECOND)
        self.monotonic_us += round(seconds * SECOND)


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Times:
    return Times(monkeypatch)


def test_it_is_the_systems(times: Times) -> None:
    steady = SteadyClock()
    for _ in range(5):
        times.pass_s(0.3)
        assert steady() == times.wall_us


def test_a_clock_that_is_set_forward_is_followed_at_once(times: Times) -> None:
    steady = SteadyClock()
    times.wall_us += 3_600 * SECOND
    times.pass_s(1)
    assert steady() == times.wall_us


def test_a_clock_that_is_set_back_is_waited_for_at_half_speed(times: Times) -> None:
    steady = SteadyClock()
    before = steady()
    times.wall_us -= 10 * SECOND
    seen = [before]
    for _ in range(30):
        times.pass_s(1)
        seen.append(steady())
    steps = [after - earlier for earlier, after in itertools.pairwise(seen)]
    assert steps == [SECOND // 2] * 20 + [SECOND] * 10
    assert seen[-1] == times.wall_us
