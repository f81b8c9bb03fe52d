"""IEX TOPS: segments are counted, quotes and trades are read to the byte, holes and halts are told."""

import struct

import pytest

from gateway.feeds.iex import IexTops
from gateway.feeds.recorded import open_recording
from gateway.feeds.ticks import E9, HALTED, Quote, Status, StatusKind
from tests.gateway.feeds.frames import (
    NOW_US,
    iex_quote,
    iex_segment,
    iex_trade,
    kinds,
    quotes,
    recorded,
    trades,
)


@pytest.fixture
def handler() -> IexTops:
    return IexTops()


def test_a_quote_and_a_trade(handler: IexTops) -> None:
    ticks = handler.feed(
        iex_segment(1, [iex_quote("AAPL", 1_489_900, 1_490_000), iex_trade("AAPL", 1_489_950, 42)]), NOW_US
    )
    assert quotes(ticks) == [
        Quote("AAPL", "iex", 148_990_000_000, 100 * E9, 149 * E9, 200 * E9, NOW_US, NOW_US)
    ]  # fmt: skip
    (trade,) = trades(ticks)
    assert (trade.price_e9, trade.size_e9, trade.trade_id, trade.eligible) == (148_995_000_000, 100 * E9, "42", True)


@pytest.mark.parametrize(("flags", "eligible"), [(0, True), (0x80, True), (0x40, False), (0x20, False), (0x10, True)])
def test_odd_lots_and_extended_hours_move_no_price(handler: IexTops, flags: int, eligible: bool) -> None:
    (trade,) = trades(handler.feed(iex_segment(1, [iex_trade("AAPL", 1, 1, flags=flags)]), NOW_US))
    assert trade.eligible is eligible


def test_a_symbol_that_is_not_active_is_marked(handler: IexTops) -> None:
    (quote,) = quotes(handler.feed(iex_segment(1, [iex_quote("AAPL", 1, 2, flags=0x80)]), NOW_US))
    assert quote.marks == HALTED


def test_halts_and_broken_trades_are_told(handler: IexTops) -> None:
    halt = struct.pack("<BBq8s4s", 0x48, ord("H"), 1, b"AAPL    ", b"T1  ")
    resume = struct.pack("<BBq8s4s", 0x48, ord("T"), 1, b"AAPL    ", b"    ")
    broken = b"\x42" + iex_trade("AAPL", 1, 77)[1:]
    ticks = handler.feed(iex_segment(1, [halt, resume, broken]), NOW_US)
    assert kinds(ticks) == [StatusKind.HALTED, StatusKind.RESUMED, StatusKind.TRADE_BROKEN]


def test_segments_are_counted(handler: IexTops) -> None:
    two = [iex_quote("A", 1, 2), iex_quote("B", 1, 2)]
    assert kinds(handler.feed(iex_segment(1, two), NOW_US)) == []
    assert handler.feed(iex_segment(1, two), NOW_US) == [], "the other multicast line's copy"
    assert handler.counts.repeats == 1
    gap = handler.feed(iex_segment(4, two), NOW_US)
    assert kinds(gap) == [StatusKind.GAP]
    assert len(quotes(gap)) == 2, "each quote is whole in itself"
    assert kinds(handler.feed(iex_segment(6, []), NOW_US)) == [StatusKind.ALIVE]
    assert kinds(handler.feed(iex_segment(6, two), NOW_US)) == []
    assert kinds(handler.feed(iex_segment(1, two, session=8), NOW_US)) == [], "a new day counts anew"


@pytest.mark.parametrize("cut", [1, 10, 39, 41, 60, 83])
def test_a_segment_that_is_cut_short_is_dropped_and_missed(handler: IexTops, cut: int) -> None:
    handler.feed(iex_segment(1, [iex_quote("A", 1, 2)]), NOW_US)
    whole = iex_segment(2, [iex_quote("A", 5, 6)])
    assert handler.feed(whole[:cut], NOW_US) == []
    assert handler.counts.bad == {"truncated": 1}
    assert kinds(handler.feed(iex_segment(3, [iex_quote("A", 7, 8)]), NOW_US)) == [StatusKind.GAP]


def test_lengths_that_lie_are_refused(handler: IexTops) -> None:
    whole = bytearray(iex_segment(1, [iex_quote("A", 1, 2), iex_quote("B", 1, 2)]))
    struct.pack_into("<H", whole, 40, 60_000)
    assert handler.feed(bytes(whole), NOW_US) == []
    short = iex_segment(1, [iex_quote("A", 1, 2)[:20], iex_quote("B", 1, 2)])
    ticks = handler.feed(short, NOW_US)
    assert [quote.symbol for quote in quotes(ticks)] == ["B"]
    assert [tick for tick in ticks if isinstance(tick, Status)] == [
        Status("iex", StatusKind.GAP, NOW_US, "", "truncated")
    ], "a name that was never seen: it may be any symbol's"
    assert handler.counts.bad == {"truncated": 2}


def test_a_negative_price_costs_only_its_own_message(handler: IexTops) -> None:
    messages = [iex_quote("A", -5, 2), iex_quote("B", 1, 2), iex_trade("C", -1, 1)]
    ticks = handler.feed(iex_segment(1, messages), NOW_US)
    assert [quote.symbol for quote in quotes(ticks)] == ["B"]
    assert handler.counts.bad == {"bad_price": 2}
    # What the venue said of A and C is not known now; what it said before is no longer true.
    assert [(tick.kind, tick.symbol) for tick in ticks if isinstance(tick, Status)] == [
        (StatusKind.GAP, "A"), (StatusKind.TRADE_GAP, "C"),
    ]  # fmt: skip


def test_messages_of_another_kind_or_longer_than_we_know_are_read_past(handler: IexTops) -> None:
    """IEX reserves the right to add kinds and to let messages grow."""
    messages = [b"\x7a" + b"?" * 30, iex_quote("A", 1, 2) + b"grown"]
    ticks = handler.feed(iex_segment(1, messages), NOW_US)
    assert len(quotes(ticks)) == 1
    assert handler.counts.bad == {}


def test_another_version_is_refused(handler: IexTops) -> None:
    deep = bytearray(iex_segment(1, [iex_quote("A", 1, 2)]))
    deep[2] = 4
    assert handler.feed(bytes(deep), NOW_US) == []
    assert handler.counts.bad == {"wrong_version": 1}


@pytest.mark.real_data
def test_the_recorded_capture_is_read_whole() -> None:
    recording = open_recording(recorded("iex/TOPS16.pcapng.gz"))
    found_quotes = found_trades = crossed = 0
    symbols: set[str] = set()
    for _, ticks in recording.batches():
        symbols.update(tick.symbol for tick in ticks if tick.symbol)
        found_trades += len(trades(ticks))
        for quote in quotes(ticks):
            found_quotes += 1
            crossed += quote.bid_e9 >= quote.ask_e9 > 0
    counts = recording.handler.counts
    assert (found_quotes, found_trades, len(symbols)) == (27_217, 6_390, 7_799)
    assert (counts.gaps, counts.repeats, counts.bad, counts.late, counts.ahead) == (0, 0, {}, 0, 0)
    assert (crossed, counts.suspect) == (0, 0)
