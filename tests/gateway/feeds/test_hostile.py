"""Whatever a venue sends, a handler gives ticks that could be true, or counts; it never raises."""

import json
import struct
from collections.abc import Callable
from datetime import date

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.feeds import levels
from gateway.feeds.binance import Binance
from gateway.feeds.coinbase import Coinbase
from gateway.feeds.guard import AHEAD_US_MAX
from gateway.feeds.handler import FRAME_BYTES_MAX, SYMBOLS_MAX, Handler
from gateway.feeds.iex import IexTops
from gateway.feeds.kraken import Kraken
from gateway.feeds.lean import LeanTicks
from gateway.feeds.lobster import Lobster
from gateway.feeds.recorded import open_recording
from gateway.feeds.ticks import CROSSED, E9_MAX, SUSPECT, BookDiff, BookSnapshot, Quote, Status, StatusKind, Tick, Trade
from tests.gateway.feeds import frames
from tests.gateway.feeds.frames import NOW_US, kinds, quotes, recorded, trades

# Eight decimals, as Kraken's checksums want them.
BIDS = [("100.0", "1.00000000"), ("99.5", "2.00000000")]
ASKS = [("101.0", "1.00000000"), ("102.5", "2.00000000")]
ENCODER = msgspec.msgpack.Encoder()


def binance_start(quotes_from: str = "ticker") -> Handler:
    handler = Binance(None, quotes_from=quotes_from)
    handler.feed(frames.binance_diff(1, 1), NOW_US)
    handler.fetched("BTCUSDT", frames.binance_snapshot(1, BIDS, ASKS), NOW_US)
    return handler


def kraken_start() -> Handler:
    handler = Kraken(None)
    handler.feed(frames.kraken_snapshot(BIDS, ASKS), NOW_US)
    return handler


def coinbase_start() -> Handler:
    handler = Coinbase(None)
    handler.feed(frames.coinbase_book(0, BIDS, ASKS, snapshot=True), NOW_US)
    return handler


def iex_start() -> Handler:
    handler = IexTops()
    handler.feed(frames.iex_segment(1, [frames.iex_quote("A", 1_000_000, 1_010_000)]), NOW_US)
    return handler


def lobster_start() -> Handler:
    handler = Lobster("AAPL", date(2012, 6, 21))
    handler.feed(b"34200.1,1,11,18,1000000,1\n1010000,200,1000000,18", NOW_US)
    return handler


def lean_start() -> Handler:
    handler = LeanTicks("IBM", date(2013, 10, 7))
    handler.feed(b"14400241,1000000,300,1010000,1,P,1,0", NOW_US)
    return handler


STARTS: dict[str, tuple[Callable[[], Handler], list[bytes]]] = {
    "binance": (
        binance_start,
        [
            frames.binance_diff(2, 3, [("100.5", "3.0")], [("101.0", "0.0")]),
            frames.binance_ticker(5, "100.0", "101.0"),
            frames.binance_trade(7, "100.5"),
            frames.binance_snapshot(1, BIDS, ASKS),
        ],
    ),
    "binance by book": (
        lambda: binance_start("book"),
        [frames.binance_diff(2, 3, [("100.5", "3.0")]), frames.binance_snapshot(1, BIDS, ASKS)],
    ),
    "kraken": (
        kraken_start,
        [
            frames.kraken_snapshot(BIDS, ASKS),
            frames.kraken_update(frames.kraken_crc(BIDS, ASKS), BIDS[:1]),
            frames.kraken_trade("100.5", "1.0"),
            b'{"event":"heartbeat"}',
        ],
    ),
    "coinbase": (
        coinbase_start,
        [
            frames.coinbase_book(1, [("100.5", "3.0")]),
            frames.coinbase_book(1, BIDS, ASKS, snapshot=True),
            frames.coinbase_trades(1, [5, 6], "100.5"),
            frames.coinbase(1, "heartbeats", [{"heartbeat_counter": 1}]),
        ],
    ),
    "iex": (
        iex_start,
        [frames.iex_segment(2, [frames.iex_quote("A", 1_000_000, 1_010_000), frames.iex_trade("B", 5, 1)])],
    ),
    "lobster": (lobster_start, [b"34201,4,11,18,1000000,1\n1010000,200,990000,18", b"34201,1,11,18,990000,1"]),
    "lean": (lean_start, [b"14400300,1000100,283,P,20,0", b"14400300,0,0,1010000,100,Q,1,0"]),
}
NASTY = [b"", b"\x00", b"\xff" * 40, b"null", b"[]", b"{}", b"[1,2,3,4]", b"0", b'"x"', b"[[[[", b"[" * 100_000,
         b'{"a":' * 5_000, b"NaN", b"1e999", b'{"stream":"x@depth","data":null}', b'[1,{},"book-1",2]',
         b'[1,{},"book-99999999999","X"]', b'[1,{"b":[]},"book-10","XBT/USD"]', b'{"channel":"l2_data"}',
         b'{"channel":"l2_data","sequence_num":-1}', b'{"channel":"l2_data","sequence_num":1e30}']  # fmt: skip


def check(handler: Handler, ticks: list[Tick]) -> None:
    """What no tick may be, whatever came in."""
    for tick in ticks:
        assert ENCODER.encode(tick), "it fits into the tick log"
        if isinstance(tick, Quote):
            assert 0 <= tick.bid_e9 <= E9_MAX
            assert 0 <= tick.ask_e9 <= E9_MAX
            assert tick.marks & CROSSED or not tick.ask_e9 or tick.bid_e9 <= tick.ask_e9
        if isinstance(tick, Trade):
            assert 0 < tick.price_e9 <= E9_MAX
            assert 0 < tick.size_e9 <= E9_MAX
        if isinstance(tick, BookDiff | BookSnapshot):
            assert all(0 < price <= E9_MAX and 0 <= size <= E9_MAX for price, size in (*tick.bids, *tick.asks))
        if isinstance(tick, Quote | Trade | BookDiff | BookSnapshot):
            assert tick.venue_us <= NOW_US + AHEAD_US_MAX
            assert tick.symbol
            assert len(tick.symbol) <= 32
    # An odd frame is the venue's fault. That a handler failed would be ours.
    assert "handler_failed" not in handler.counts.bad


@pytest.mark.parametrize("name", STARTS)
def test_the_frames_that_are_changed_below_are_good_ones(name: str) -> None:
    start, good = STARTS[name]
    for frame in good:
        handler = start()
        ticks = handler.fetched("BTCUSDT", frame, NOW_US) if b"lastUpdateId" in frame else handler.feed(frame, NOW_US)
        assert ticks
        assert (handler.counts.bad, handler.counts.gaps) == ({}, 0)


@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize("frame", NASTY, ids=range(len(NASTY)))
def test_nasty_frames(name: str, frame: bytes) -> None:
    handler = STARTS[name][0]()
    check(handler, handler.feed(frame, NOW_US))
    check(handler, handler.fetched("BTCUSDT", frame, NOW_US))


@pytest.mark.parametrize("name", STARTS)
@given(st.binary(max_size=300))
@settings(max_examples=100)
def test_garbage(name: str, frame: bytes) -> None:
    handler = STARTS[name][0]()
    check(handler, handler.feed(frame, NOW_US))


@pytest.mark.parametrize("name", STARTS)
@given(st.data())
@settings(max_examples=150)
def test_good_frames_with_some_bytes_changed(name: str, data: st.DataObject) -> None:
    start, good = STARTS[name]
    handler = start()
    for _ in range(data.draw(st.integers(1, 3))):
        frame = bytearray(data.draw(st.sampled_from(good)))
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(frame) - 1))
            how = data.draw(st.sampled_from(["set", "digit", "cut", "double", "minus"]))
            if how == "set":
                frame[at] = data.draw(st.integers(0, 255))
            elif how == "digit":
                frame[at] = data.draw(st.sampled_from(b"0123456789"))
            elif how == "cut":
                del frame[at:]
            elif how == "double":
                frame[at:at] = frame[at : at + 20]
            else:
                frame[at:at] = b"-"
            if not frame:
                break
        fetched = b"lastUpdateId" in frame
        ticks = handler.fetched("BTCUSDT", bytes(frame), NOW_US) if fetched else handler.feed(bytes(frame), NOW_US)
        check(handler, ticks)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.sampled_from(
        ["-1", "0", "1e400", "9" * 40, "100.5", "BTCUSDT", "bid", "offer", "snapshot", "update"]
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@pytest.mark.parametrize("name", ["binance", "binance by book", "kraken", "coinbase"])
@given(st.data())
@settings(max_examples=200)
def test_any_field_of_any_type(name: str, data: st.DataObject) -> None:
    """One value, somewhere in a good frame, becomes something else."""
    start, good = STARTS[name]
    frame = json.loads(data.draw(st.sampled_from([one for one in good if b"lastUpdateId" not in one])))
    place = frame
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = data.draw(JSON)
        break
    handler = start()
    check(handler, handler.feed(json.dumps(frame).encode(), NOW_US))


@given(st.integers(0, 255), st.integers(0, 255), st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
@example(0x51, 0, -1, 2**63 - 1)
@settings(max_examples=100)
def test_any_number_in_a_binary_message(kind: int, flags: int, first: int, second: int) -> None:
    handler = iex_start()
    message = struct.pack("<BBq8sIqqI", kind, flags, first, b"A       ", 5, second, first, 5)
    check(handler, handler.feed(frames.iex_segment(2, [message]), NOW_US))


def test_a_frame_that_is_too_large_is_not_even_looked_at() -> None:
    handler = coinbase_start()
    assert handler.feed(b" " * (FRAME_BYTES_MAX + 1), NOW_US) == []
    assert handler.counts.bad == {"too_large": 1}


def test_a_venue_can_not_fill_the_memory_with_names() -> None:
    handler = IexTops()
    handler._seen.update(f"S{number}" for number in range(SYMBOLS_MAX))
    assert quotes(handler.feed(frames.iex_segment(1, [frames.iex_quote("NEW", 1, 2)]), NOW_US)) == []
    assert handler.counts.bad == {"bad_symbol": 1}


def test_a_failing_handler_is_counted_and_logged_and_goes_on() -> None:
    class Odd(Handler):
        def _feed(self, frame: bytes, receive_us: int) -> list[Tick]:
            raise ZeroDivisionError

    handler = Odd("odd", None)
    assert handler.feed(b"x", NOW_US) == []
    assert handler.counts.bad == {"handler_failed": 1}


def test_the_bad_inputs_that_the_issue_names() -> None:
    """Negative price, a jump of more than 50 %, time going backwards: never a wrong number shown as fresh."""
    handler = Binance(None)
    (good,) = quotes(handler.feed(frames.binance_ticker(1, "100.0", "101.0"), NOW_US))
    assert not good.marks & SUSPECT
    (negative,) = handler.feed(frames.binance_ticker(2, "-100.0", "101.0"), NOW_US)
    assert isinstance(negative, Status)
    assert (negative.kind, negative.symbol) == (StatusKind.GAP, "BTCUSDT")
    (jumped,) = quotes(handler.feed(frames.binance_ticker(3, "160.0", "161.0"), NOW_US))
    assert jumped.marks & SUSPECT
    assert trades(handler.feed(frames.binance_trade(1, "100.0"), NOW_US))[0].marks == 0
    back = trades(handler.feed(frames.binance_trade(2, "100.0", at_ms=frames.NOW_MS - 5_000), NOW_US))
    assert back[0].marks != 0
    assert handler.counts.bad == {"bad_price": 1}
    assert (handler.counts.suspect, handler.counts.late) == (1, 1)


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["COINBASE", "KRAKEN"])
def test_each_recorded_frame_lost_is_found(name: str) -> None:
    """Drop one book update of a recording: the handler tells a gap at the next message that shows it."""
    recording = open_recording(recorded(f"exchange_ws/{name}.jsonl.zst"))
    all_frames = list(recording.frames())
    mark = b'"book-' if name == "KRAKEN" else b'"l2_data"'
    updates = [at for at, frame in enumerate(all_frames) if mark in frame.data and b'"as"' not in frame.data]
    # Of one symbol's many updates; a lost change of a deep level is outside of Kraken's checksum.
    lost = next(at for at in updates if at > len(all_frames) // 2)
    handler = recording.handler
    handler.opening()
    told: list[int] = []
    for at, frame in enumerate(all_frames):
        if at != lost and StatusKind.GAP in kinds(handler.feed(frame.data, frame.receive_us)):
            told.append(at)
    if name == "COINBASE":
        assert told == [lost + 1]
    assert handler.counts.gaps == len(told)


UNREADABLE = [
    # handler, frame, the kind and symbol told at once
    ("binance", frames.binance_ticker(9, "-1", "101.0"), StatusKind.GAP, "BTCUSDT"),
    ("binance", frames.binance_ticker(9, "100.0", "many"), StatusKind.GAP, "BTCUSDT"),
    ("binance", b'{"stream":"btcusdt@bookTicker","data":{"s":1}}', StatusKind.GAP, "BTCUSDT"),
    ("binance", b"garbage", StatusKind.GAP, ""),
    ("kraken", frames.kraken_update("1", [("-100.0", "1.00000000")]), StatusKind.GAP, "XBT/USD"),
    ("kraken", b'[1,{"b":[[1]]},"book-10","XBT/USD"]', StatusKind.GAP, "XBT/USD"),
    ("kraken", frames.kraken_trade("-1", "1"), StatusKind.TRADE_GAP, "XBT/USD"),
    ("coinbase", frames.coinbase_book(1, [("101", "1")], [("100", "1")], snapshot=True), StatusKind.GAP, "BTC-USD"),
    ("iex", frames.iex_segment(2, [frames.iex_quote("A", -1, 2)]), StatusKind.GAP, "A"),
]


@pytest.mark.parametrize(("name", "frame", "kind", "symbol"), UNREADABLE)
def test_what_can_not_be_read_leaves_no_older_number_standing(
    name: str, frame: bytes, kind: StatusKind, symbol: str
) -> None:
    """Where nothing else would show that something is missing, it is told at once."""
    handler = STARTS[name][0]()
    ticks = handler.feed(frame, NOW_US)
    assert [(tick.kind, tick.symbol) for tick in ticks if isinstance(tick, Status)] == [(kind, symbol)]
    assert len(ticks) == 1
    assert sum(handler.counts.bad.values()) == 1


def test_a_bad_part_does_not_cost_the_good_ones_of_its_message() -> None:
    handler = coinbase_start()
    rows = [
        {"product_id": "BTC-USD", "trade_id": number, "price": "100", "size": size, "time": "2023-11-14T22:13:20Z",
         "side": "BUY"}
        for number, size in (("1", "1"), ("2", "0"), ("3", "1"))
    ]  # fmt: skip
    ticks = handler.feed(frames.coinbase(1, "market_trades", [{"trades": rows}]), NOW_US)
    assert [trade.trade_id for trade in trades(ticks)] == ["1", "3"]
    assert kinds(ticks) == [StatusKind.TRADE_GAP]


@pytest.mark.parametrize("name", ["binance by book", "kraken", "coinbase"])
def test_a_book_with_too_many_levels_is_given_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = STARTS[name][0]()
    monkeypatch.setattr(levels, "LEVELS_MAX", 2)
    more = [("98.0", "1.00000000")]
    frame = {
        "binance by book": frames.binance_diff(2, 2, more),
        "kraken": frames.kraken_update(frames.kraken_crc([*BIDS, *more], ASKS), more),
        "coinbase": frames.coinbase_book(1, more),
    }[name]
    ticks = handler.feed(frame, NOW_US)
    assert (kinds(ticks), len(ticks)) == ([StatusKind.GAP], 1)
    assert handler.counts.bad == {"too_many_levels": 1}
    assert handler.wants()
