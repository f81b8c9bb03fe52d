"""Coinbase's messages are counted; a hole in the count takes every book down until each has its snapshot."""

import json

import pytest

from gateway.feeds.coinbase import Coinbase
from gateway.feeds.handler import Send
from gateway.feeds.recorded import open_recording
from gateway.feeds.ticks import E9, BookDiff, BookSnapshot, Status, StatusKind, e9
from tests.gateway.feeds.frames import (
    NOW_US,
    coinbase,
    coinbase_book,
    coinbase_trades,
    kinds,
    quotes,
    recorded,
    trades,
)


@pytest.fixture
def handler() -> Coinbase:
    made = Coinbase([("BTC-USD", "BTC-USD")])
    made.feed(coinbase_book(0, [("100", "1"), ("99", "2")], [("101", "3")], snapshot=True), NOW_US)
    return made


def test_updates_change_the_book(handler: Coinbase) -> None:
    ticks = handler.feed(coinbase_book(1, [("100", "0"), ("99.5", "4")]), NOW_US)
    (quote,) = quotes(ticks)
    assert (quote.bid_e9, quote.bid_size_e9, quote.ask_e9) == (99_500_000_000, 4 * E9, 101 * E9)
    assert quote.venue_us == 1_700_000_000_000_000
    assert quotes(handler.feed(coinbase_book(2, [("90", "4")]), NOW_US)) == [], "the best did not change"


def test_a_gap_takes_every_book_down_until_its_snapshot(handler: Coinbase) -> None:
    ticks = handler.feed(coinbase_book(2, [("100.5", "1")]), NOW_US)
    assert ticks == [Status("coinbase", StatusKind.GAP, NOW_US, "", "1 messages")]
    assert quotes(ticks) == []
    sent = [json.loads(wanted.text) for wanted in handler.wants() if isinstance(wanted, Send)]
    assert [one["type"] for one in sent] == ["unsubscribe"] * 3 + ["subscribe"] * 3
    assert {one["channel"] for one in sent} == {"heartbeats", "market_trades", "level2"}
    assert handler.feed(coinbase_book(3, [("100.5", "1")]), NOW_US) == []
    back = handler.feed(coinbase_book(4, [("100.5", "1")], [("101", "1")], snapshot=True), NOW_US)
    assert kinds(back) == [StatusKind.RESUBSCRIBED]
    assert quotes(back)[0].bid_e9 == 100_500_000_000
    assert handler.counts.gaps == 1


def test_a_repeat_changes_nothing(handler: Coinbase) -> None:
    assert handler.feed(coinbase_book(0, [("100.5", "1")], snapshot=True), NOW_US) == []
    assert handler.counts.repeats == 1
    assert kinds(handler.feed(coinbase_book(1, [("100.5", "1")]), NOW_US)) == []


def test_a_bad_message_is_dropped_whole_and_its_number_is_missed(handler: Coinbase) -> None:
    assert handler.feed(coinbase_book(1, [("100.5", "1"), ("-1", "1")]), NOW_US) == []
    assert handler.counts.bad == {"bad_price": 1}
    assert handler.books["BTC-USD"].top()[0] == 100 * E9
    assert kinds(handler.feed(coinbase_book(2), NOW_US)) == [StatusKind.GAP]


def test_a_book_that_crosses_itself_is_dropped(handler: Coinbase) -> None:
    ticks = handler.feed(coinbase_book(1, [("102", "1")]), NOW_US)
    assert kinds(ticks) == [StatusKind.GAP]
    assert quotes(ticks) == []
    assert len(handler.wants()) == 6


def test_trades_come_oldest_first_once_and_holes_are_told(handler: Coinbase) -> None:
    ticks = handler.feed(coinbase_trades(1, [12, 11, 10]), NOW_US)
    assert [trade.trade_id for trade in trades(ticks)] == ["10", "11", "12"]
    assert trades(ticks)[0].aggressor == "buy", "`side` is the resting order's"
    again = handler.feed(coinbase_trades(2, [15, 13, 12]), NOW_US)
    assert [trade.trade_id for trade in trades(again)] == ["13", "15"]
    assert [tick for tick in again if isinstance(tick, Status)] == [
        Status("coinbase", StatusKind.TRADE_GAP, NOW_US, "BTC-USD", "1 trades")
    ]
    assert handler.counts.gaps == 1


def test_a_heartbeat_is_a_sign_of_life(handler: Coinbase) -> None:
    ticks = handler.feed(coinbase(1, "heartbeats", [{"heartbeat_counter": 1}]), NOW_US)
    assert kinds(ticks) == [StatusKind.ALIVE]


def test_a_new_connection_counts_anew(handler: Coinbase) -> None:
    opening = [json.loads(wanted.text) for wanted in handler.opening() if isinstance(wanted, Send)]
    assert [one["channel"] for one in opening] == ["heartbeats", "market_trades", "level2"]
    assert all(one["product_ids"] == ["BTC-USD"] for one in opening)
    ticks = handler.feed(coinbase_book(0, [("100", "1")], [("101", "3")], snapshot=True), NOW_US)
    assert kinds(ticks) == []
    assert len(quotes(ticks)) == 1


@pytest.mark.real_data
def test_recorded_messages_are_counted_without_a_gap_and_books_agree_with_the_ticker() -> None:
    """The ticker tells the best bid and ask with each trade; the book was there, or got there, within a second."""
    recording = open_recording(recorded("exchange_ws/COINBASE.jsonl.zst"))
    handler = recording.handler
    counted = {BookDiff: 0, BookSnapshot: 0}
    found = 0
    tops: list[tuple[int, str, int, int]] = []
    told: list[tuple[int, str, int, int]] = []
    for frame in recording.frames():
        ticks = handler.feed(frame.data, frame.receive_us)
        found += len(trades(ticks))
        for tick in ticks:
            if isinstance(tick, BookDiff | BookSnapshot):
                counted[type(tick)] += 1
        tops += [(frame.receive_us, quote.symbol, quote.bid_e9, quote.ask_e9) for quote in quotes(ticks)]
        message = json.loads(frame.data)
        if message["channel"] == "ticker":
            rows = [row for event in message["events"] for row in event["tickers"]]
            told += [
                (frame.receive_us, row["product_id"], e9(row["best_bid"]), e9(row["best_ask"]))
                for row in rows
                if row["product_id"] in {top[1] for top in tops}
            ]
    counts = handler.counts
    assert (counts.frames, counts.gaps, counts.repeats, counts.bad, counts.heartbeats) == (1_030, 0, 0, {}, 25)
    assert counted == {BookDiff: 773, BookSnapshot: 2}
    assert found == 279
    agreed = [any(one[1:] == top[1:] and abs(one[0] - top[0]) < 1_000_000 for top in tops) for one in told]
    assert (len(agreed), sum(agreed)) == (154, 154)


def test_a_recovery_is_told_once(handler: Coinbase) -> None:
    handler.feed(coinbase_book(2), NOW_US)
    again = coinbase_book(3, [("100", "1")], [("101", "1")], snapshot=True)
    assert kinds(handler.feed(again, NOW_US)) == [StatusKind.RESUBSCRIBED]
    assert kinds(handler.feed(again.replace(b'"sequence_num": 3', b'"sequence_num": 4'), NOW_US)) == []
    assert handler.counts.resubscribes == 1


@pytest.mark.parametrize("number", ["", "12x", "-1", "1" * 19, "١"])
def test_a_trade_without_a_number_is_refused(handler: Coinbase, number: str) -> None:
    frame = coinbase_trades(1, [7]).replace(b'"trade_id": "7"', f'"trade_id": {json.dumps(number)}'.encode())
    assert handler.feed(frame, NOW_US) == []
    assert handler.counts.bad == {"no_trade_id": 1}


def test_quotes_from_the_ticker() -> None:
    handler = Coinbase([("BTC-USD", "BTC")], quotes_from="ticker")
    assert '"ticker"' in "".join(wanted.text for wanted in handler.opening() if isinstance(wanted, Send))
    row = {"product_id": "BTC-USD", "best_bid": "100", "best_bid_quantity": "1", "best_ask": "101",
           "best_ask_quantity": "2"}  # fmt: skip
    other = row | {"product_id": "ETH-USD"}
    (quote,) = quotes(handler.feed(coinbase(0, "ticker", [{"tickers": [row, other]}]), NOW_US))
    assert (quote.symbol, quote.bid_e9, quote.ask_e9, quote.ask_size_e9) == ("BTC", 100 * E9, 101 * E9, 2 * E9)
    assert quotes(handler.feed(coinbase_book(1, [("99", "1")], snapshot=True), NOW_US)) == []
    bad = row | {"best_bid": "-100"}
    (told,) = handler.feed(coinbase(2, "ticker", [{"tickers": [bad]}]), NOW_US)
    assert isinstance(told, Status)
    assert (told.symbol, told.kind) == ("BTC", StatusKind.GAP)


def test_a_message_without_a_number_or_of_an_error_is_refused(handler: Coinbase) -> None:
    assert handler.feed(b'{"type":"error","channel":"error","message":"no"}', NOW_US) == []
    assert handler.feed(b'{"channel":"l2_data","events":[]}', NOW_US) == []
    assert handler.counts.bad == {"refused": 1, "no_sequence": 1}
