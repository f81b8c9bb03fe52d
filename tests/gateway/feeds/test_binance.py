"""Binance's snapshot and diffs become one book without a gap, and agree with its own stream of best prices."""

import json

import pytest

from gateway.feeds.binance import WAITING_MAX, Binance
from gateway.feeds.handler import Fetch, Send
from gateway.feeds.recorded import open_recording
from gateway.feeds.ticks import E9, BookDiff, BookSnapshot, Status, StatusKind, e9
from tests.gateway.feeds.frames import (
    NOW_US,
    binance_diff,
    binance_snapshot,
    binance_ticker,
    binance_trade,
    kinds,
    quotes,
    recorded,
    trades,
)

BOOK = [("100.0", "1.0")], [("101.0", "1.0")]


@pytest.fixture
def handler() -> Binance:
    return Binance([("BTCUSDT", "BTC-USDT")], quotes_from="book")


def synced(handler: Binance, last: int = 10) -> None:
    handler.feed(binance_diff(last, last), NOW_US)
    handler.wants()
    handler.fetched("BTCUSDT", binance_snapshot(last, *BOOK), NOW_US)


def test_the_first_diff_asks_for_a_snapshot_once(handler: Binance) -> None:
    assert handler.feed(binance_diff(5, 7), NOW_US) == []
    (wanted,) = handler.wants()
    assert isinstance(wanted, Fetch)
    assert wanted.key == "BTCUSDT"
    assert "symbol=BTCUSDT" in wanted.url
    assert handler.feed(binance_diff(8, 9), NOW_US) == []
    assert handler.wants() == []


# the snapshot's number, the diffs that wait (U, u), what is applied: the book's last number, or None: ask again
SYNC = [
    (10, [(5, 9)], 10),
    (10, [(5, 10)], 10),
    (10, [(5, 11)], 11),
    (10, [(5, 9), (10, 12), (13, 14)], 14),
    (10, [(11, 12)], 12),
    (10, [(12, 13)], None),
    (10, [(5, 9), (10, 12), (14, 15)], None),
    (10, [], 10),
]


@pytest.mark.parametrize(("number", "waiting", "last"), SYNC)
def test_the_snapshot_meets_the_diffs_that_wait(
    handler: Binance, number: int, waiting: list[tuple[int, int]], last: int | None
) -> None:
    for first, end in waiting:
        handler.feed(binance_diff(first, end, [("99.0", str(end))]), NOW_US)
    handler.wants()
    ticks = handler.fetched("BTCUSDT", binance_snapshot(number, *BOOK), NOW_US)
    if last is None:
        assert ticks == []
        assert [type(wanted) for wanted in handler.wants()] == [Fetch]
        # What waited is still there for a newer snapshot.
        later = handler.fetched("BTCUSDT", binance_snapshot(waiting[-1][0] - 1, *BOOK), NOW_US)
        assert isinstance(later[0], BookSnapshot)
        assert later[0].bids[-1] == (99 * E9, waiting[-1][1] * E9)
        return
    (snapshot,) = [tick for tick in ticks if isinstance(tick, BookSnapshot)]
    newest = max((end for _, end in waiting if end > number), default=None)
    assert snapshot.bids == ((100 * E9, E9), *(((99 * E9, newest * E9),) if newest else ()))
    # The next diff must continue exactly there.
    assert kinds(handler.feed(binance_diff(last + 2, last + 3), NOW_US)) == [StatusKind.GAP]


def test_a_diff_that_reaches_back_behind_the_snapshot_is_taken(handler: Binance) -> None:
    synced(handler, 10)
    ticks = handler.feed(binance_diff(8, 12, [("100.5", "1")]), NOW_US)
    assert next(type(tick) for tick in ticks) is BookDiff
    assert quotes(ticks)[0].bid_e9 == 100_500_000_000
    assert handler.feed(binance_diff(9, 12), NOW_US) == []
    assert handler.counts.repeats == 1


def test_a_gap_drops_the_book_and_a_snapshot_brings_it_back(handler: Binance) -> None:
    synced(handler)
    gap = handler.feed(binance_diff(13, 14), NOW_US)
    assert kinds(gap) == [StatusKind.GAP]
    assert (gap[0].venue, handler.counts.gaps) == ("binance", 1)
    assert "BTC-USDT" not in handler.books
    assert handler.feed(binance_diff(15, 16, [("100.5", "1")]), NOW_US) == [], "no number is shown from behind a gap"
    assert [type(wanted) for wanted in handler.wants()] == [Fetch]
    back = handler.fetched("BTCUSDT", binance_snapshot(14, *BOOK), NOW_US)
    assert kinds(back) == [StatusKind.RESUBSCRIBED]
    assert quotes(back)[0].bid_e9 == 100_500_000_000


def test_book_numbers_go_on_over_a_gap(handler: Binance) -> None:
    synced(handler)
    seqs = [tick.seq for tick in handler.feed(binance_diff(11, 11), NOW_US) if isinstance(tick, BookDiff)]
    handler.feed(binance_diff(13, 14), NOW_US)
    back = handler.fetched("BTCUSDT", binance_snapshot(14, *BOOK), NOW_US)
    seqs += [tick.seq for tick in back if isinstance(tick, BookSnapshot)]
    assert seqs == [2, 3]


def test_a_bad_diff_is_dropped_whole_and_found_as_a_gap(handler: Binance) -> None:
    synced(handler)
    assert handler.feed(binance_diff(11, 12, [("100.5", "1"), ("-3", "1")]), NOW_US) == []
    assert handler.counts.bad == {"bad_price": 1}
    assert handler.books["BTC-USDT"].top()[0] == 100 * E9, "nothing of it was applied"
    assert kinds(handler.feed(binance_diff(13, 14), NOW_US)) == [StatusKind.GAP]


def test_a_book_that_crosses_itself_is_dropped(handler: Binance) -> None:
    synced(handler)
    ticks = handler.feed(binance_diff(11, 11, [("101.0", "5")]), NOW_US)
    assert kinds(ticks) == [StatusKind.GAP]
    assert quotes(ticks) == []
    (wanted,) = handler.wants()
    assert isinstance(wanted, Fetch)
    assert wanted.key == "BTCUSDT"


def test_a_snapshot_that_crosses_itself_is_asked_for_again(handler: Binance) -> None:
    handler.feed(binance_diff(5, 7), NOW_US)
    handler.wants()
    assert handler.fetched("BTCUSDT", binance_snapshot(7, [("102.0", "1")], [("101.0", "1")]), NOW_US) == []
    assert handler.counts.bad == {"crossed_snapshot": 1}
    assert len(handler.wants()) == 1


@pytest.mark.parametrize(("quotes_from", "frame", "told"), [
    ("ticker", b"garbage", [StatusKind.GAP]),
    ("ticker", b'{"stream":"btcusdt@depth","data":{"s":1}}', []),
    ("ticker", b'{"stream":"btcusdt@trade","data":{"s":1}}', []),
    ("book", b"garbage", []),
    ("book", b'{"stream":"btcusdt@bookTicker","data":{"s":1}}', []),
])  # fmt: skip
def test_only_quotes_without_numbers_are_given_up_for_a_frame_that_can_not_be_read(
    quotes_from: str, frame: bytes, told: list[StatusKind]
) -> None:
    """Diffs and trades are numbered: the next one shows what is missing."""
    handler = Binance(None, quotes_from=quotes_from)
    assert kinds(handler.feed(frame, NOW_US)) == told
    assert sum(handler.counts.bad.values()) == 1


def test_diffs_that_wait_are_bounded(handler: Binance) -> None:
    for number in range(1, WAITING_MAX + 100):
        handler.feed(binance_diff(number, number), NOW_US)
    # The first of them are gone: the snapshot is older than what is left, and is asked for again.
    handler.wants()
    assert handler.fetched("BTCUSDT", binance_snapshot(50, *BOOK), NOW_US) == []
    assert len(handler.wants()) == 1
    assert handler.fetched("BTCUSDT", binance_snapshot(WAITING_MAX, *BOOK), NOW_US) != []


def test_a_new_connection_starts_anew_and_names_its_streams(handler: Binance) -> None:
    synced(handler)
    (opening,) = handler.opening()
    assert isinstance(opening, Send)
    asked = json.loads(opening.text)
    assert asked["method"] == "SUBSCRIBE"
    assert set(asked["params"]) == {"btcusdt@depth@100ms", "btcusdt@bookTicker", "btcusdt@trade"}
    assert handler.feed(binance_diff(50, 51), NOW_US) == [], "not a gap: a new beginning"
    assert len(handler.wants()) == 1


def test_the_best_prices_come_without_a_time_and_never_go_back() -> None:
    handler = Binance([("BTCUSDT", "BTC-USDT")])
    (quote,) = quotes(handler.feed(binance_ticker(7, "100.0", "101.0"), NOW_US))
    assert (quote.symbol, quote.bid_e9, quote.ask_size_e9, quote.venue_us) == ("BTC-USDT", 100 * E9, 2 * E9, NOW_US)
    assert handler.feed(binance_ticker(7, "100.0", "101.0"), NOW_US) == []
    assert handler.feed(binance_ticker(6, "90.0", "91.0"), NOW_US) == []
    assert handler.counts.repeats == 2


def test_trades_are_numbered() -> None:
    handler = Binance(None)
    (first,) = trades(handler.feed(binance_trade(5, "100.5", "0.25"), NOW_US))
    assert (first.price_e9, first.size_e9, first.trade_id, first.aggressor) == (100_500_000_000, E9 // 4, "5", "sell")
    assert handler.feed(binance_trade(5, "100.5"), NOW_US) == []
    after = handler.feed(binance_trade(8, "100.5", maker=False), NOW_US)
    assert isinstance(after[0], Status)
    assert (after[0].kind, after[0].detail) == (StatusKind.TRADE_GAP, "2 trades")
    assert trades(after)[0].aggressor == "buy"
    handler.opening()
    assert handler.feed(binance_trade(8, "100.5"), NOW_US) == [], "a trade that an older connection gave"


def test_symbols_that_were_not_asked_for_are_counted(handler: Binance) -> None:
    assert handler.feed(binance_diff(1, 2, symbol="DOGEUSDT"), NOW_US) == []
    ticker = Binance([("BTCUSDT", "BTC-USDT")])
    assert ticker.feed(binance_ticker(1, "1.0", "2.0", symbol="DOGEUSDT"), NOW_US) == []
    assert handler.feed(binance_ticker(1, "1.0", "2.0"), NOW_US) == [], "quotes come from the book here"
    assert (handler.counts.unwanted, handler.counts.bad) == (1, {})
    assert handler.wants() == []


@pytest.mark.real_data
@pytest.mark.parametrize(("symbol", "diffs", "best", "trade_count"), [
    ("btcusdt", 3_448, 28_040, 9_757),
    ("ethusdt", 3_432, 24_077, 6_106),
])  # fmt: skip
def test_a_recorded_book_has_no_gap_and_agrees_with_the_stream_of_best_prices(
    symbol: str, diffs: int, best: int, trade_count: int
) -> None:
    """After each diff, the book's best levels are those of the last best-price message up to its number."""
    recording = open_recording(recorded(f"binance/spot_{symbol}_20240808.gz"))
    handler = recording.handler
    assert isinstance(handler, Binance)
    name = symbol.upper()
    told: list[tuple[int, tuple[int, ...]]] = []
    applied: list[tuple[int, tuple[int, ...]]] = []
    counted = {BookDiff: 0, BookSnapshot: 0}
    found = 0
    for frame in recording.frames():
        if b"@bookTicker" in frame.data:
            row = json.loads(frame.data)["data"]
            told.append((row["u"], tuple(e9(row[key]) for key in "bBaA")))
        ticks = handler.fetched(frame.key, frame.data, frame.receive_us) if frame.key else handler.feed(
            frame.data, frame.receive_us
        )  # fmt: skip
        found += len(trades(ticks))
        for tick in ticks:
            if isinstance(tick, BookDiff | BookSnapshot):
                counted[type(tick)] += 1
                applied.append((handler._last[name], handler.books[name].top()))
    assert (counted, len(told), found) == ({BookDiff: diffs, BookSnapshot: 1}, best, trade_count)
    assert (handler.counts.gaps, handler.counts.bad, handler.counts.suspect) == (0, {}, 0)
    compared = equal = 0
    at = 0
    for number, top in applied:
        while at + 1 < len(told) and told[at + 1][0] <= number:
            at += 1
        if told[at][0] <= number:
            compared += 1
            equal += told[at][1] == top
    assert compared >= diffs - 1
    assert equal == compared
