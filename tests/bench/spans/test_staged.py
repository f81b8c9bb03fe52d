"""Whether stages add up is judged by what each took itself, and pictures have what adds up."""

from pathlib import Path

import pytest

from bench.spans import staged
from bench.spans.stamps import Stamps, span_number

WAY: list[staged.Stage] = [("parse", 1_000, 1_200), ("queue", 1_200, 1_700), ("answer", 1_700, 2_000)]


def test_what_adds_up_passes_and_what_lacks_a_stage_does_not() -> None:
    whole = staged.passed(1_000, WAY)
    assert whole.adds_up
    assert whole.took == {"parse": 200, "queue": 500, "answer": 300}
    assert [figure.passed for figure in staged.check("all", [whole, whole])] == [None, True, None]
    for dropped in range(len(WAY)):
        part = staged.passed(1_000, WAY[:dropped] + WAY[dropped + 1 :])
        assert not part.adds_up
        assert [figure.passed for figure in staged.check("all", [whole, part])] == [None, False, None]


@pytest.mark.parametrize(
    ("queue", "took", "adds_up"),
    [
        (("queue", 1_200, 1_700), 500, True),
        (("queue", 1_250, 1_700), 450, True),  # 5 % off
        (("queue", 1_251, 1_700), 449, False),
        (("queue", 0, 1_700), 0, False),  # not known when it began
        (("queue", 1_700, 1_200), 0, False),  # it ended before it began: another's stamp
        (("queue", 1_200, 1_751), 551, False),  # into the next one
    ],
)
def test_each_stage_counts_by_its_own_stamps(queue: staged.Stage, took: int, adds_up: bool) -> None:
    found = staged.passed(1_000, [WAY[0], queue, WAY[2]])
    assert (found.took.get("queue", 0), found.adds_up) == (took, adds_up)


def test_a_write_ends_at_the_latest_when_the_other_side_has_read() -> None:
    assert staged.sent_on("write", 10, 20, "way", 50) == [("write", 10, 20), ("way", 20, 50)]
    assert staged.sent_on("write", 10, 60, "way", 50) == [("write", 10, 50), ("way", 50, 50)]


def test_bars_are_of_requests_around_the_percent_and_as_high_as_these_took() -> None:
    found = [
        staged.passed(n * 1_000_000, [("a", 1, n * 400_000 + 1), ("b", 1, n * 600_000 + 1)]) for n in range(1, 101)
    ]
    assert [one.latency // 1_000_000 for one in staged.between(found, staged.MIDDLE)] == list(range(46, 56))
    assert [one.latency // 1_000_000 for one in staged.between(found, staged.TAIL)] == [99, 100]
    assert len(staged.between(found[:1], staged.TAIL)) == 1
    curves = staged.stacks("here", found, {"first": ("a",), "then": ("b", "c")}, "mean")
    assert [(curve.picture, curve.series, curve.x, curve.y) for curve in curves] == [
        ("here", "first", ["p50", "p99"], [20.2, 39.8]),
        ("here", "then", ["p50", "p99"], [30.3, 59.7]),
    ]


def test_stamps_are_read_as_they_were_written(tmp_path: Path) -> None:
    stamps = Stamps({"In": 2, "Out": 3})
    stamps.add("In", 1, 2**62)
    stamps.add("In", 3, -4)
    stamps.write(tmp_path / "a.stamps")
    found = Stamps.read(tmp_path / "a.stamps")
    assert (found.rows("In"), found.rows("Out")) == ([(1, 2**62), (3, -4)], [])
    stamps.add("Out", 1)
    with pytest.raises(ValueError, match="no rows of 3"):
        stamps.rows("Out")


def test_span_ids_become_numbers_that_fit() -> None:
    assert (span_number("00000000000000ff"), span_number("")) == (255, 0)
    assert span_number("f" * 16) == 2**63 - 1
