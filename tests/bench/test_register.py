"""The judge of a counter's reads: what can be right passes, and each kind of lie is found."""

import pytest

from bench.register import Read, Verdict, Write, judge

MS = 1_000_000


def write(called: int, returned: int = 0, index: int = 0) -> Write:
    return Write(called * MS, returned * MS, index)


def read(called: int, returned: int, value: int, index: int) -> Read:
    return Read(called * MS, returned * MS, value, index, "a")


# Two writes, acknowledged at 20 and 40 ms, at 5 and 7 in the log; and one that nobody heard of again.
TWO = [write(10, 20, 5), write(30, 40, 7)]
UNKNOWN = [*TWO, write(50)]

# writes,  reads,                                         stale, backwards, behind, ahead, mismatched
ROWS = [
    (TWO, [read(20, 25, 0, 4)], (0, 0, 0, 0, 0)),  # acknowledged at the same moment: in no order
    (TWO, [read(21, 25, 0, 4)], (1, 0, 1, 0, 0)),  # one nanosecond would do
    (TWO, [read(21, 25, 1, 5)], (0, 0, 0, 0, 0)),
    (TWO, [read(35, 36, 1, 6)], (0, 0, 0, 0, 0)),  # the second is under way: seen or not
    (TWO, [read(35, 36, 2, 7)], (0, 0, 0, 0, 0)),
    (TWO, [read(45, 99, 1, 6)], (1, 0, 1, 0, 0)),
    (TWO, [read(45, 99, 2, 6)], (0, 0, 1, 0, 1)),  # the value is right, the index that it tells is not
    (TWO, [read(45, 99, 3, 9)], (0, 0, 0, 1, 1)),
    (TWO, [read(25, 29, 2, 7)], (0, 0, 0, 1, 0)),  # before it was sent
    (TWO, [read(35, 36, 2, 7), read(37, 38, 1, 6)], (0, 1, 0, 0, 0)),  # neither is stale, but both can't be
    (TWO, [read(35, 38, 2, 7), read(37, 39, 1, 6)], (0, 0, 0, 0, 0)),  # at the same time: in no order
    (TWO, [read(41, 42, 2, 7), read(43, 44, 2, 7)], (0, 0, 0, 0, 0)),
    # The most that anybody saw counts, not the last that somebody did.
    ([write(1), write(2)], [read(5, 8, 2, 7), read(6, 9, 1, 6), read(10, 11, 1, 6)], (0, 1, 0, 0, 0)),
    (UNKNOWN, [read(60, 61, 2, 8)], (0, 0, 0, 0, 0)),
    (UNKNOWN, [read(60, 61, 3, 8)], (0, 0, 0, 0, 0)),
    (UNKNOWN, [read(60, 61, 4, 8)], (0, 0, 0, 1, 1)),
    (UNKNOWN, [read(45, 46, 3, 8)], (0, 0, 0, 1, 0)),
    # The one that nobody heard of hides a missing one from the value; the index tells.
    (UNKNOWN, [read(60, 61, 2, 6)], (0, 0, 1, 0, 0)),
    (TWO, [], (0, 0, 0, 0, 0)),
    ([], [read(1, 2, 0, 3)], (0, 0, 0, 0, 0)),
]


@pytest.mark.parametrize(("writes", "reads", "found"), ROWS)
def test_a_read_is_judged(writes: list[Write], reads: list[Read], found: tuple[int, ...]) -> None:
    verdict = judge(writes, reads)
    assert (verdict.stale, verdict.backwards, verdict.behind, verdict.ahead, verdict.mismatched) == found
    assert verdict.wrong == sum(found)
    assert (verdict.reads, verdict.writes) == (len(reads), len(writes))


def test_how_old_it_was_is_counted_from_the_first_write_that_it_missed() -> None:
    assert judge(TWO, [read(45, 46, 0, 4), read(50, 51, 1, 6)]).oldest_ms == 25.0


def test_what_others_saw_counts_and_is_not_judged() -> None:
    others = [read(35, 36, 2, 7)]
    assert judge(TWO, [read(37, 38, 1, 6)], others=others) == Verdict(1, 2, 0, 1, 0, 0, 0, 0.0)
