"""A book for display can be followed by its numbers, resumed, and is never shown with a hole in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.feeds.recorded import open_recording
from gateway.feeds.ticks import BookDiff, BookSnapshot, Level, Status, StatusKind, Tick
from gateway.market.books import DIFFS_KEPT, Books, checksum
from tests.gateway.feeds.frames import recorded

T0 = 1_000


def snapshot(seq: int, bids: tuple[Level, ...] = ((10, 1),), asks: tuple[Level, ...] = ((12, 1),)) -> BookSnapshot:
    return BookSnapshot("A", "x", seq, bids, asks, T0, T0 + 1)


def diff(seq: int, bids: tuple[Level, ...] = (), asks: tuple[Level, ...] = ()) -> BookDiff:
    return BookDiff("A", "x", seq, bids, asks, T0, T0 + seq)


def test_a_snapshot_and_its_diffs() -> None:
    books = Books()
    books.apply([snapshot(5), diff(6, ((10, 0), (9, 4))), diff(7, ((11, 2),), ((12, 3), (14, 1)))])
    view = books.view("A", "x")
    assert view is not None
    assert (view.seq, view.bids, view.asks, view.receive_us) == (7, ((11, 2), (9, 4)), ((12, 3), (14, 1)), T0 + 7)
    shallow = books.view("A", "x", depth=1)
    assert shallow is not None
    assert (shallow.bids, shallow.asks) == (((11, 2),), ((12, 3),))
    assert shallow.checksum == view.checksum == checksum(view.bids, view.asks)
    assert books.venues("A") == ["x"]


def test_a_hole_takes_the_book_down_until_a_snapshot() -> None:
    books = Books()
    books.apply([snapshot(5), diff(7)])
    assert books.view("A", "x") is None
    assert books.breaks == 1
    books.apply([diff(8)])
    assert books.view("A", "x") is None
    books.apply([snapshot(9)])
    assert books.view("A", "x") is not None


@pytest.mark.parametrize(("status", "left"), [
    (Status("x", StatusKind.GAP, T0), False),
    (Status("x", StatusKind.BOOK_GAP, T0, "A"), False),
    (Status("x", StatusKind.DOWN, T0), False),
    (Status("x", StatusKind.GAP, T0, "B"), True),
    (Status("y", StatusKind.GAP, T0), True),
    (Status("x", StatusKind.TRADE_GAP, T0), True),
    (Status("x", StatusKind.ALIVE, T0), True),
])  # fmt: skip
def test_what_a_status_takes_down(status: Status, left: bool) -> None:
    books = Books()
    books.apply([snapshot(1), status])
    assert (books.view("A", "x") is not None) == left
    assert books.breaks == (not left)


def test_a_reader_resumes_where_the_diffs_are_still_held() -> None:
    books = Books()
    books.apply([snapshot(5), diff(6), diff(7), diff(8)])
    for seq, expected in [(5, [6, 7, 8]), (7, [8]), (8, []), (4, None), (9, None)]:
        got = books.since("A", "x", seq)
        assert (None if got is None else [one.seq for one in got]) == expected
    assert books.since("B", "x", 1) is None
    books.apply([diff(seq) for seq in range(9, 9 + DIFFS_KEPT)])
    assert books.since("A", "x", 7) is None
    resumed = books.since("A", "x", 8)
    assert resumed is not None
    assert len(resumed) == DIFFS_KEPT
    books.apply([snapshot(9 + DIFFS_KEPT)])
    assert books.since("A", "x", 8 + DIFFS_KEPT) is None, "over a snapshot there are no diffs"
    assert books.since("A", "x", 9 + DIFFS_KEPT) == []


LEVELS = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 3)), max_size=4).map(tuple)


@given(st.lists(st.tuples(LEVELS, LEVELS), max_size=20), st.integers(0, 20))
def test_who_resumes_has_the_book_of_who_never_left(changes: list[tuple[tuple[Level, ...], ...]], at: int) -> None:
    books, left = Books(), Books()
    ticks: list[Tick] = [snapshot(1), *(diff(2 + number, *sides) for number, sides in enumerate(changes))]
    books.apply(ticks)
    left.apply(ticks[: at + 1])
    seen = left.view("A", "x")
    assert seen is not None
    missed = books.since("A", "x", seen.seq)
    assert missed is not None
    left.apply(missed)
    assert left.view("A", "x") == books.view("A", "x")


@pytest.mark.real_data
def test_recorded_books_are_followed_by_their_numbers() -> None:
    recording = open_recording(recorded("exchange_ws/KRAKEN.jsonl.zst"))
    books = Books()
    for _, ticks in recording.batches():
        books.apply(ticks)
    assert books.breaks == 0
    for symbol, book in recording.handler.books.items():  # type: ignore[attr-defined]
        view = books.view(symbol, "kraken", depth=100_000)
        assert view is not None
        assert (view.bids, view.asks) == (book.best_bids(), book.best_asks())
