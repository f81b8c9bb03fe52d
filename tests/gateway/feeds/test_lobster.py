"""LOBSTER's messages and rows give the published best prices; without rows the sum of the messages does."""

from datetime import date
from itertools import islice

import pytest

from gateway.feeds.lobster import Lobster
from gateway.feeds.recorded import open_recording
from gateway.feeds.ticks import E9, BookDiff, BookSnapshot, StatusKind
from gateway.market.books import Books
from tests.gateway.feeds.frames import NOW_US, kinds, quotes, recorded, trades

DAY = date(2012, 6, 21)
MIDNIGHT_US = 1_340_251_200_000_000
CENT_E9 = E9 // 100


@pytest.fixture
def handler() -> Lobster:
    return Lobster("AAPL", DAY)


def test_times_are_new_yorks_and_exact(handler: Lobster) -> None:
    assert handler.us_of(b"34200.004241176,1,1,1,1,1") == MIDNIGHT_US + 34_200_004_241
    assert Lobster("AAPL", date(2012, 1, 3)).us_of(b"0,") == 1_325_566_800_000_000, "in winter an hour later"


def test_messages_alone_add_up(handler: Lobster) -> None:
    handler.feed(b"34200.1,1,11,100,5850000,1", NOW_US)
    (quote,) = quotes(handler.feed(b"34200.2,1,12,50,5851000,-1", NOW_US))
    assert (quote.bid_e9, quote.bid_size_e9) == (585 * E9, 100 * E9)
    assert (quote.ask_e9, quote.ask_size_e9) == (58_510 * CENT_E9, 50 * E9)
    (less,) = quotes(handler.feed(b"34200.3,2,11,30,5850000,1", NOW_US))
    assert less.bid_size_e9 == 70 * E9
    ticks = handler.feed(b"34200.4,4,12,50,5851000,-1", NOW_US)
    (trade,) = trades(ticks)
    assert (trade.price_e9, trade.size_e9, trade.aggressor) == (58_510 * CENT_E9, 50 * E9, "buy")
    assert quotes(ticks)[0].ask_e9 == 0
    assert quotes(handler.feed(b"34200.5,3,11,70,5850000,1", NOW_US))[0].bid_e9 == 0


def test_a_hidden_execution_is_a_trade_and_leaves_the_book(handler: Lobster) -> None:
    handler.feed(b"34200.1,1,11,100,5850000,1", NOW_US)
    ticks = handler.feed(b"34200.2,5,0,10,5850500,1", NOW_US)
    assert [type(tick).__name__ for tick in ticks] == ["Trade"]


def test_an_order_from_before_the_recording_changes_nothing(handler: Lobster) -> None:
    assert handler.feed(b"34200.1,3,99,100,5850000,1", NOW_US) == []


def test_rows_are_taken_as_they_are(handler: Lobster) -> None:
    row = b"5859400,200,5853300,18,9999999999,0,-9999999999,0"
    ticks = handler.feed(b"34200.1,1,11,18,5853300,1\n" + row, NOW_US)
    (snapshot,) = [tick for tick in ticks if isinstance(tick, BookSnapshot)]
    assert snapshot.bids == ((585_330_000_000, 18 * E9),)
    assert snapshot.asks == ((585_940_000_000, 200 * E9),)
    row = b"5859400,100,5853000,7,9999999999,0,-9999999999,0"
    ticks = handler.feed(b"34200.2,4,12,100,5859400,-1\n" + row, NOW_US)
    (diff,) = [tick for tick in ticks if isinstance(tick, BookDiff)]
    assert diff.bids == ((585_300_000_000, 7 * E9), (585_330_000_000, 0))
    assert diff.asks == ((585_940_000_000, 100 * E9),)


def test_a_halt_is_told(handler: Lobster) -> None:
    halt, quoting, trading = (f"34200.1,7,0,0,{price},-1".encode() for price in (-1, 0, 1))
    assert kinds(handler.feed(halt, NOW_US)) == [StatusKind.HALTED]
    assert kinds(handler.feed(quoting, NOW_US)) == [StatusKind.HALTED]
    assert kinds(handler.feed(trading, NOW_US)) == [StatusKind.RESUMED]


BAD = [b"", b"1,2,3", b"x,1,1,1,1,1", b"34200.1,9,1,1,1,1", b"34200.1,1,1,1,-1,1", b"34200.1,1,1,1,1,2",
       b"34200.1,1,1,0,1,1", b"34200.1,1,1,1,1,1\n1,2,3", b"34200.1,1,1,1,1,1\n-5,2,3,4", b"1e4,1,1,1,1,1",
       b"34200.1,1,1,1," + b"9" * 30 + b",1"]  # fmt: skip


@pytest.mark.parametrize("frame", BAD)
def test_a_bad_line_is_counted(handler: Lobster, frame: bytes) -> None:
    assert handler.feed(frame, NOW_US) == []
    assert sum(handler.counts.bad.values()) == 1
    assert "handler_failed" not in handler.counts.bad


@pytest.mark.real_data
def test_an_hour_of_messages_gives_the_published_best_prices() -> None:
    """Seeded with its first published row. 25,623 of 25,641 is what level arithmetic can reach."""
    deep = open_recording(recorded("lobster/AAPL_2012-06-21_34200000_37800000_message_50.csv.gz"))
    best = open_recording(recorded("lobster/LOBSTER_SampleFile_AAPL_2012-06-21_1.zip"))
    handler = deep.handler
    assert isinstance(handler, Lobster)
    with recorded("lobster/order-chronicles_AAPL_book.csv").open("rb") as rows:
        seed = rows.readline().strip()
    published = best.frames()
    message, _, row = next(published).data.partition(b"\n")
    same = seen = 0
    for number, frame in enumerate(deep.frames()):
        handler.feed(frame.data if number else frame.data + b"\n" + seed, frame.receive_us)
        # The shallow file holds the messages that touch the best level, and writes their times as this one.
        if frame.data == message:
            ask, ask_size, bid, bid_size = (int(field) for field in row.split(b","))
            top = handler.books["AAPL"].top()
            seen += 1
            same += top == (bid * 100_000, bid_size * E9, ask * 100_000, ask_size * E9)
            message, _, row = next(published).data.partition(b"\n")
    assert (seen, same) == (25_641, 25_623)
    assert handler.counts.bad == {}


@pytest.mark.real_data
def test_ten_levels_are_followed_row_by_row() -> None:
    """The first 20,000 messages of a day: after each, the book is the published row."""
    recording = open_recording(recorded("lobster/LOBSTER_SampleFile_GOOG_2012-06-21_10.zip"))
    handler, books = recording.handler, Books()
    assert isinstance(handler, Lobster)
    counted = {"Trade": 0, "Quote": 0, "BookDiff": 0, "BookSnapshot": 0}
    for frame in islice(recording.frames(), 20_000):
        ticks = handler.feed(frame.data, frame.receive_us)
        books.apply(ticks)
        for tick in ticks:
            counted[type(tick).__name__] += 1
        row = [int(field) for field in frame.data.partition(b"\n")[2].split(b",")]
        view = books.view("GOOG", "nasdaq")
        assert view is not None
        expected = [number * (E9 if at % 2 else 100_000) for at, number in enumerate(row)]
        assert [number for level in view.asks for number in level] == [
            number for at, number in enumerate(expected) if at % 4 < 2
        ]
        assert [number for level in view.bids for number in level] == [
            number for at, number in enumerate(expected) if at % 4 >= 2
        ]
    assert counted == {"Trade": 1_173, "Quote": 7_461, "BookDiff": 19_470, "BookSnapshot": 1}
    counts = handler.counts
    assert (counts.bad, counts.late, counts.suspect, counts.crossed) == ({}, 0, 0, 0)
