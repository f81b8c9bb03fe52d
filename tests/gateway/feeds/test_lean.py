"""Ticks of the US tape: which trades may move a price, and the national best at each minute's end."""

import zipfile
from datetime import date

import pytest

from gateway.feeds.lean import LeanTicks
from gateway.feeds.recorded import open_recording
from gateway.feeds.ticks import E9, Trade
from gateway.market.nbbo import NbboBook
from tests.gateway.feeds.frames import NOW_US, quotes, recorded, trades

MIDNIGHT_US = 1_381_118_400_000_000


@pytest.fixture
def handler() -> LeanTicks:
    return LeanTicks("IBM", date(2013, 10, 7))


def test_a_quote_line_is_one_side_and_the_other_stays(handler: LeanTicks) -> None:
    (first,) = quotes(handler.feed(b"14400054,0,0,1836300,100,Q,1,0", NOW_US))
    assert (first.bid_e9, first.ask_e9, first.ask_size_e9) == (0, 183_630_000_000, 100 * E9)
    assert (first.venue, first.venue_us) == ("tape", MIDNIGHT_US + 14_400_054_000)
    (both,) = quotes(handler.feed(b"14400241,1800100,300,0,0,P,1,0", NOW_US))
    assert (both.bid_e9, both.bid_size_e9, both.ask_e9) == (180_010_000_000, 300 * E9, 183_630_000_000)
    (none,) = quotes(handler.feed(b"14400300,0,0,0,0,P,1,0", NOW_US))
    assert (none.bid_e9, none.ask_e9) == (0, 0)


CONDITIONS = [(b"1", True), (b"0", True), (b"2000", True), (b"20", False), (b"20000020", False), (b"20000001", False)]


@pytest.mark.parametrize(("flags", "eligible"), CONDITIONS)
def test_conditions_say_which_trades_move_a_price(handler: LeanTicks, flags: bytes, eligible: bool) -> None:
    (trade,) = trades(handler.feed(b"14430270.5,1815200,283,P," + flags + b",0", NOW_US))
    assert (trade.eligible, trade.price_e9, trade.size_e9) == (eligible, 181_520_000_000, 283 * E9)
    assert (trade.venue, trade.venue_us) == ("tape.P", MIDNIGHT_US + 14_430_270_500)


def test_what_the_vendor_flags_is_dropped(handler: LeanTicks) -> None:
    assert handler.feed(b"14430270,1815200,283,P,1,1", NOW_US) == []
    assert handler.feed(b"14400054,0,0,1836300,100,Q,1,1", NOW_US) == []
    assert handler.counts.bad == {"flagged_by_vendor": 2}


BAD = [b"", b"1,2", b"x,1,1,P,1,0", b"1,-1,1,P,1,0", b"1,1,1,PP,1,0", b"1,1,1,P,zz,0", b"1,0,1,P,1,0",
       b"1,1,1,1,1,?,1,0", b"1,1,1,1,1,P,?,0", b"1," + b"9" * 25 + b",1,P,1,0"]  # fmt: skip


@pytest.mark.parametrize("frame", BAD)
def test_a_bad_line_is_counted(handler: LeanTicks, frame: bytes) -> None:
    assert handler.feed(frame, NOW_US) == []
    assert sum(handler.counts.bad.values()) == 1
    assert "handler_failed" not in handler.counts.bad


@pytest.mark.real_data
@pytest.mark.parametrize(("day", "minutes", "found"), [("20131007", 554, 24_293), ("20131008", 594, 33_381)])
def test_the_best_prices_at_each_minutes_end_are_the_published_ones(day: str, minutes: int, found: int) -> None:
    recording = open_recording(recorded(f"lean/tick/ibm/{day}_quote.zip"))
    handler = recording.handler
    assert isinstance(handler, LeanTicks)
    with zipfile.ZipFile(recorded(f"lean/minute/ibm/{day}_quote.zip")) as archive:
        rows = [line.split(b",") for line in archive.read(archive.namelist()[0]).splitlines()]
    expected = iter([(handler.midnight_us + int(row[0]) * 1000 + 60_000_000, row) for row in rows])
    # The tape has no heartbeats, and before the opening no quote comes for many minutes.
    nbbo = NbboBook(ttl_us=3_600_000_000 * 24)
    end_us, row = next(expected)
    same = count = 0
    done = False
    for now_us, ticks in recording.batches():
        while now_us >= end_us and not done:
            best = nbbo.at("IBM", now_us)
            assert best is not None
            got = best.bid_e9, best.bid_size_e9, best.ask_e9, best.ask_size_e9
            same += got == tuple(
                int(row[column]) * unit for column, unit in ((4, 100_000), (5, E9), (9, 100_000), (10, E9))
            )
            end_us, row = next(expected, (end_us, row))
            done = end_us <= now_us and row is rows[-1]
        nbbo.apply(ticks, now_us)
        count += sum(isinstance(tick, Trade) for tick in ticks)
    best = nbbo.at("IBM", end_us)
    assert best is not None
    same += (best.bid_e9, best.ask_e9) == (int(row[4]) * 100_000, int(row[9]) * 100_000)
    assert (same, count) == (minutes, found)
