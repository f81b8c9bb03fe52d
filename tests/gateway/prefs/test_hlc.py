"""Stamps only grow, whatever the wall clock does, and a clock that is far ahead is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.prefs.errors import ClockAhead
from gateway.prefs.hlc import CLOCK_AHEAD_MS_MAX, STEP_MAX, Clock, Stamp, new_incarnation, site_of


class Wall:
    def __init__(self, ms: int = 1_000_000) -> None:
        self.ms = ms

    def __call__(self) -> int:
        return self.ms


def clock(wall: Wall, writer: str = "dc-a.1") -> Clock:
    return Clock(writer, wall=wall)


def test_a_stamp_is_the_wall_clock_and_counts_within_a_millisecond() -> None:
    wall = Wall()
    ours = clock(wall)
    assert ours.next() == Stamp(1_000_000, 0, "dc-a.1")
    assert ours.next() == Stamp(1_000_000, 1, "dc-a.1")
    wall.ms += 1
    assert ours.next() == Stamp(1_000_001, 0, "dc-a.1")


def test_time_that_is_set_back_does_not_go_back() -> None:
    wall = Wall()
    ours = clock(wall)
    before = ours.next()
    wall.ms -= 3_600_000
    assert ours.next() > before
    assert ours.ahead_ms() == 3_600_000


def test_a_count_that_is_used_up_takes_the_next_millisecond() -> None:
    ours = Clock("dc-a.1", last=Stamp(1_000_000, STEP_MAX, "dc-b.1"), wall=Wall())
    assert ours.next() == Stamp(1_000_001, 0, "dc-a.1")


def test_the_bound_of_a_clock_ahead_is_exact() -> None:
    ours = clock(Wall())
    ours.observe(Stamp(1_000_000 + CLOCK_AHEAD_MS_MAX, 7, "dc-b.1"))
    with pytest.raises(ClockAhead, match=r"10001 ms ahead"):
        ours.observe(Stamp(1_000_000 + CLOCK_AHEAD_MS_MAX + 1, 0, "dc-b.1"))
    assert ours.next() == Stamp(1_000_000 + CLOCK_AHEAD_MS_MAX, 8, "dc-a.1")


def test_an_answer_is_later_than_what_it_answers() -> None:
    ours = clock(Wall())
    theirs = clock(Wall(1_004_000), "dc-b.1")
    seen = theirs.next()
    ours.observe(seen)
    assert ours.next() > seen


def test_incarnations_of_one_site_differ() -> None:
    one, other = new_incarnation("dc-a"), new_incarnation("dc-a")
    assert one != other
    assert site_of(one) == site_of(other) == "dc-a"


steps = st.lists(
    st.one_of(
        st.just(("next", 0)),
        st.tuples(st.just("wall"), st.integers(-5_000, 5_000)),
        st.tuples(st.just("observe"), st.integers(-20_000, 20_000)),
    ),
    max_size=60,
)


@given(steps, st.integers(0, STEP_MAX))
def test_stamps_grow_past_all_that_was_seen(taken: list[tuple[str, int]], count: int) -> None:
    wall = Wall()
    ours = clock(wall)
    greatest = Stamp(0, 0, "")
    for what, amount in taken:
        if what == "wall":
            wall.ms += amount
        elif what == "observe":
            seen = Stamp(wall.ms + amount, count, "dc-b.1")
            if amount > CLOCK_AHEAD_MS_MAX:
                with pytest.raises(ClockAhead):
                    ours.observe(seen)
            else:
                ours.observe(seen)
                greatest = max(greatest, seen)
        else:
            stamp = ours.next()
            assert stamp > greatest
            greatest = stamp
