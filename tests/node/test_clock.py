"""A leader's stamps follow the wall clock, and no jump of it moves replicated time by more than a tenth."""

import asyncio
from pathlib import Path

import pytest

from cluster.consensus.engine import Role
from node.clock import SteadyClock
from tests.node.fakes import SoloEngine, make_config, running

SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US
BUY = {"symbol": "ACME-USD", "side": "buy", "type": "limit", "qty": "10", "limit_price": "99.50"}


class Clocks:
    def __init__(self) -> None:
        self.wall_us = 1_750_000_000 * SECOND_US
        self.steady_us = 77
        self.clock = SteadyClock(lambda: self.wall_us, lambda: self.steady_us)

    def passes(self, seconds: float) -> None:
        self.wall_us += int(seconds * SECOND_US)
        self.steady_us += int(seconds * SECOND_US)


def test_it_goes_as_the_wall_clock_goes() -> None:
    clocks = Clocks()
    for seconds in (0.0, 0.01, 5.0, 3_600.0):
        clocks.passes(seconds)
        assert clocks.clock() == clocks.wall_us


def test_a_jump_is_followed_slowly_in_both_directions() -> None:
    for jump_us in (DAY_US, -DAY_US):
        clocks = Clocks()
        before_us = clocks.clock()
        clocks.wall_us += jump_us
        assert clocks.clock() == before_us
        for _ in range(200):
            clocks.passes(0.01)
            clocks.clock()
        moved_us = clocks.clock() - before_us
        assert moved_us == (2_200_000 if jump_us > 0 else 1_800_000)


def test_a_small_correction_is_made_up_for() -> None:
    clocks = Clocks()
    clocks.wall_us += 400_000
    for _ in range(500):
        clocks.passes(0.01)
        clocks.clock()
    assert clocks.clock() == clocks.wall_us


def test_a_new_leadership_takes_the_wall_clock_as_it_is() -> None:
    clocks = Clocks()
    clocks.wall_us += DAY_US
    clocks.clock()
    clocks.clock.set()
    assert clocks.clock() == clocks.wall_us


@pytest.mark.parametrize(
    ("offsets_ms", "ahead_ms"),
    [
        ([], 0),
        ([-500, -499], 0),
        ([-501, -5_000], 501),
        ([-86_400_000], 86_400_000),
        ([-86_400_000, 0], 0),
        ([86_400_000], 0),
    ],
)
def test_a_new_leadership_does_not_begin_far_ahead_of_all_others(offsets_ms: list[int], ahead_ms: int) -> None:
    clocks = Clocks()
    clocks.clock.set(offsets_ms, ahead_ms_max=500)
    assert clocks.clock() == clocks.wall_us - ahead_ms * 1_000


def test_a_leader_whose_clock_jumps_does_not_carry_replicated_time_away(tmp_path: Path) -> None:
    async def main() -> None:
        engine = SoloEngine()
        async with running(make_config(tmp_path), engine) as caller:
            clocks = Clocks()
            caller.node.clock.__init__(lambda: clocks.wall_us, lambda: clocks.steady_us)  # type: ignore[misc]
            await caller.list_market()
            before_us = caller.node.machine.time_us
            clocks.wall_us += DAY_US
            await caller.ok("POST", "/v1/orders", BUY)
            assert caller.node.machine.time_us - before_us < SECOND_US
            # Another term, which it began with the clock that the others agreed to.
            engine.changed(role=Role.follower, leader="dc-b", term=2)
            engine.changed(role=Role.leader, leader="dc-a", term=3)
            assert caller.node.clock() == clocks.wall_us
            # Or set while nobody looked, just before this term.
            engine.changed(role=Role.follower, leader="dc-b", term=4)
            clocks.wall_us += DAY_US
            engine.offset_ms = -86_400_000
            engine.changed(role=Role.leader, leader="dc-a", term=5)
            assert caller.node.clock() == clocks.wall_us - DAY_US

    asyncio.run(main())
