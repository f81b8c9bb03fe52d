"""Kraken's books are those whose CRC32 it sends; one that differs is dropped and asked for anew."""

import json

import pytest

from gateway.feeds.handler import Send
from gateway.feeds.kraken import Kraken
from gateway.feeds.recorded import open_recording
from gateway.feeds.ticks import E9, BookDiff, BookSnapshot, StatusKind, e9
from tests.gateway.feeds.frames import (
    NOW_US,
    Levels,
    kinds,
    kraken_crc,
    kraken_snapshot,
    kraken_trade,
    kraken_update,
    quotes,
    recorded,
    trades,
)

ASKS = [(f"0.0500{digit}", f"0.0000050{digit}") for digit in range(10)]
BIDS = [(f"0.0499{9 - digit}", f"0.1000050{digit}") for digit in range(10)]


@pytest.fixture
def handler() -> Kraken:
    made = Kraken([("XBT/USD", "BTC-USD")], depth=10)
    made.feed(kraken_snapshot(BIDS, ASKS), NOW_US)
    return made


def test_the_checksum_is_the_one_of_the_venues_own_example() -> None:
    """From Kraken's guide to its v1 checksums."""
    asks = [("0.05005", "0.00000500"), ("0.05010", "0.00000500"), ("0.05015", "0.00000500"),
            ("0.05020", "0.00000500"), ("0.05025", "0.00000500"), ("0.05030", "0.00000500"),
            ("0.05035", "0.00000500"), ("0.05040", "0.00000500"), ("0.05045", "0.00000500"),
            ("0.05050", "0.00000500")]  # fmt: skip
    bids = [("0.05000", "0.00000500"), ("0.04995", "0.00000500"), ("0.04990", "0.00000500"),
            ("0.04980", "0.00000500"), ("0.04975", "0.00000500"), ("0.04970", "0.00000500"),
            ("0.04965", "0.00000500"), ("0.04960", "0.00000500"), ("0.04955", "0.00000500"),
            ("0.04950", "0.00000500")]  # fmt: skip
    handler = Kraken(None)
    handler.feed(kraken_snapshot(bids, asks), NOW_US)
    assert handler.checksum("XBT/USD") == 974947235


def test_an_update_with_its_checksum_is_taken(handler: Kraken) -> None:
    bids = [("0.04999", "7.00000000"), *BIDS[1:]]
    ticks = handler.feed(kraken_update(kraken_crc(bids, ASKS), bids[:1]), NOW_US)
    (diff,) = [tick for tick in ticks if isinstance(tick, BookDiff)]
    assert diff.bids == ((49_990_000, 7 * E9),)
    (quote,) = quotes(ticks)
    assert (quote.symbol, quote.bid_size_e9, quote.venue_us) == ("BTC-USD", 7 * E9, 1_700_000_000_100_000)


def test_an_update_can_empty_a_level(handler: Kraken) -> None:
    ticks = handler.feed(kraken_update(kraken_crc(BIDS[1:], ASKS), [(BIDS[0][0], "0.00000000")]), NOW_US)
    (diff,) = [tick for tick in ticks if isinstance(tick, BookDiff)]
    assert diff.bids == ((e9(BIDS[0][0]), 0),)
    assert quotes(ticks)[0].bid_e9 == e9(BIDS[1][0])


def test_a_level_that_falls_out_of_the_depth_is_told() -> None:
    new = ("0.049985", "1.00000000")
    handler = Kraken(None, depth=10)
    bids = [(f"{price}0", size) for price, size in BIDS]
    asks = [(f"{price}0", size) for price, size in ASKS]
    handler.feed(kraken_snapshot(bids, asks), NOW_US)
    kept = sorted([*bids, new], reverse=True)[:10]
    ticks = handler.feed(kraken_update(kraken_crc(kept, asks), [new]), NOW_US)
    (diff,) = [tick for tick in ticks if isinstance(tick, BookDiff)]
    assert diff.bids == ((e9(new[0]), E9), (e9(bids[-1][0]), 0))
    assert len(handler.books["XBT/USD"].bids.prices) == 10


WRONG: list[tuple[str, Levels]] = [
    ("1", [("0.04999", "7.00000000")]),
    (kraken_crc(BIDS, ASKS), [("0.04999", "7.00000000")]),
    ("not a number", [("0.04999", "0.10000500")]),
    ("", [("0.04999", "0.10000500")]),
]


@pytest.mark.parametrize(("checksum", "bids"), WRONG)
def test_another_checksum_drops_the_book_and_asks_for_it_anew(handler: Kraken, checksum: str, bids: Levels) -> None:
    ticks = handler.feed(kraken_update(checksum, bids), NOW_US)
    assert kinds(ticks) == [StatusKind.GAP]
    assert len(ticks) == 1
    sent = [json.loads(wanted.text) for wanted in handler.wants() if isinstance(wanted, Send)]
    assert [one["event"] for one in sent] == ["unsubscribe", "subscribe"]
    assert all(one["pair"] == ["XBT/USD"] and one["subscription"]["name"] == "book" for one in sent)
    assert handler.feed(kraken_update(kraken_crc(BIDS, ASKS), BIDS[:1]), NOW_US) == [], "nothing until a snapshot"
    back = handler.feed(kraken_snapshot(BIDS, ASKS), NOW_US)
    assert kinds(back) == [StatusKind.RESUBSCRIBED]
    assert len(quotes(back)) == 1
    assert (handler.counts.gaps, handler.counts.repeats, handler.counts.resubscribes) == (1, 1, 1)
    assert kinds(handler.feed(kraken_snapshot(BIDS, ASKS), NOW_US)) == [], "told once"


def test_quotes_from_the_ticker() -> None:
    handler = Kraken([("XBT/USD", "BTC-USD")], quotes_from="ticker")
    assert '"ticker"' in "".join(wanted.text for wanted in handler.opening() if isinstance(wanted, Send))
    frame = b'[7,{"a":["101.0",1,"2.0"],"b":["100.0",3,"4.0"]},"ticker","XBT/USD"]'
    (quote,) = quotes(handler.feed(frame, NOW_US))
    assert (quote.bid_e9, quote.bid_size_e9, quote.ask_e9, quote.ask_size_e9) == (100 * E9, 4 * E9, 101 * E9, 2 * E9)
    assert quotes(handler.feed(kraken_snapshot(BIDS, ASKS), NOW_US)) == []
    assert kinds(handler.feed(frame.replace(b"100.0", b"-1"), NOW_US)) == [StatusKind.GAP]
    assert handler.counts.gaps == 1
    assert Kraken(None).feed(frame, NOW_US) == [], "quotes come from the book otherwise"


def test_trades_have_times_and_sides(handler: Kraken) -> None:
    (trade,) = trades(handler.feed(kraken_trade("354.11000000", "0.89594024", "s"), NOW_US))
    assert (trade.price_e9, trade.size_e9, trade.aggressor) == (354_110_000_000, 895_940_240, "sell")
    (other,) = trades(handler.feed(kraken_trade("354.11000000", "0.89594024", "s"), NOW_US))
    assert trade.trade_id != other.trade_id


def test_a_heartbeat_is_a_sign_of_life_and_an_error_is_counted(handler: Kraken) -> None:
    assert kinds(handler.feed(b'{"event":"heartbeat"}', NOW_US)) == [StatusKind.ALIVE]
    assert handler.counts.heartbeats == 1
    assert handler.feed(b'{"event":"subscriptionStatus","status":"subscribed"}', NOW_US) == []
    refused = b'{"event":"subscriptionStatus","status":"error","errorMessage":"Currency pair not supported"}'
    assert handler.feed(refused, NOW_US) == []
    assert handler.counts.bad == {"refused": 1}


def test_after_a_halt_the_quotes_are_told_again(handler: Kraken) -> None:
    """What halts takes the quotes out of the NBBO; the books did not change meanwhile."""
    assert handler.feed(b'{"event":"systemStatus","status":"online"}', NOW_US) == []
    assert kinds(handler.feed(b'{"event":"systemStatus","status":"maintenance"}', NOW_US)) == [StatusKind.HALTED]
    ticks = handler.feed(b'{"event":"systemStatus","status":"online"}', NOW_US)
    assert kinds(ticks) == [StatusKind.RESUMED]
    assert [quote.symbol for quote in quotes(ticks)] == ["BTC-USD"]


def test_the_opening_subscribes_to_books_and_trades(handler: Kraken) -> None:
    sent = [json.loads(wanted.text) for wanted in handler.opening() if isinstance(wanted, Send)]
    assert [one["subscription"] for one in sent] == [{"name": "book", "depth": 10}, {"name": "trade"}]
    assert handler.books == {}


@pytest.mark.real_data
def test_all_recorded_checksums_reproduce() -> None:
    recording = open_recording(recorded("exchange_ws/KRAKEN.jsonl.zst"))
    counted = {BookDiff: 0, BookSnapshot: 0}
    for _, ticks in recording.batches():
        for tick in ticks:
            if isinstance(tick, BookDiff | BookSnapshot):
                counted[type(tick)] += 1
    counts = recording.handler.counts
    assert counted == {BookDiff: 4_269, BookSnapshot: 10}
    assert (counts.gaps, counts.bad, counts.heartbeats, counts.suspect) == (0, {}, 92, 0)


@pytest.mark.real_data
def test_a_recorded_frame_with_one_digit_changed_is_found() -> None:
    recording = open_recording(recorded("exchange_ws/KRAKEN.jsonl.zst"))
    handler, changed = recording.handler, 0
    for frame in recording.frames():
        data = frame.data
        if not changed and b'"c":"' in data and b'"b":[["354.15' in data:
            data, changed = data.replace(b'"b":[["354.15', b'"b":[["354.16'), 1
            assert kinds(handler.feed(data, frame.receive_us)) == [StatusKind.GAP]
            continue
        handler.feed(data, frame.receive_us)
    assert changed == 1
    assert handler.counts.gaps == 1
    assert "XMR/USD" not in handler.books  # type: ignore[attr-defined]
