"""Market data as streams show it: what changed, for those who read it, in both formats, and books that add up."""

import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from gateway.fanout import views
from gateway.fanout.fragment import BOTH, Fragment
from gateway.fanout.hub import Hub, Reader, Round, Topic
from gateway.fanout.market import MarketPublisher, changed
from gateway.fanout.ring import Rings
from gateway.fanout.topics import CHANNELS
from gateway.feeds.ticks import E9, BookDiff, BookSnapshot, Level, Quote, Status, StatusKind, Tick, Trade
from gateway.market.intake import MarketData
from gateway.market.nbbo import Nbbo
from gateway.stream.metrics import COUNTERS, GAUGES, StreamCollector

START_US = 1_700_000_000_000_000
MINUTE_US = 60_000_000


class Collecting(Reader):
    """Takes everything, decoded from both formats."""

    def __init__(self) -> None:
        super().__init__()
        self.json: list[dict[str, Any]] = []
        self.msgpack: list[Any] = []

    def take(self, topic: Topic, fragment: Fragment, seq: int) -> None:
        self.take_diff(topic, fragment)

    def take_diff(self, topic: Topic, fragment: Fragment) -> None:
        self.json.append(msgspec.json.decode(fragment.json()))
        self.msgpack.append(msgspec.msgpack.decode(fragment.msgpack()))

    def write(self, now: Round) -> int:
        for topic in self.dirty:
            self.json.append(msgspec.json.decode(topic.json))
            self.msgpack.append(msgspec.msgpack.decode(topic.msgpack))
        self.dirty.clear()
        return 0


class Market:
    """Market data under a clock of the test's, with one reader."""

    def __init__(self) -> None:
        self.now_us = START_US
        self.data = MarketData(lambda: self.now_us)
        self.hub, self.rings = Hub(1), Rings(1)
        self.publisher = MarketPublisher(self.data, self.hub, self.rings)
        self.reader = Collecting()

    def read(self, channel: str, symbol: str) -> Fragment | None:
        found = self.publisher.providers()[channel](symbol)
        self.hub.subscribe(self.reader, (channel, symbol), formats=BOTH)
        return found

    async def tick(self, *ticks: Tick) -> None:
        self.data.take(list(ticks))
        self.publisher.take(list(ticks))
        changed(self.data, self.publisher)
        await self.hub.flush()

    def quote(self, symbol: str = "AAPL", venue: str = "arca", bid: int = 10_000, ask: int = 10_001) -> Quote:
        return Quote(symbol, venue, bid * E9 // 100, 5 * E9, ask * E9 // 100, 7 * E9, self.now_us, self.now_us)

    def trade(self, number: int, price: int = 10_000) -> Trade:
        return Trade("AAPL", "arca", price * E9 // 100, E9, self.now_us, self.now_us, str(number))


async def test_quotes_are_decimal_text_in_json_and_whole_numbers_in_msgpack() -> None:
    market = Market()
    with pytest.raises(LookupError, match="'AAPL'"):
        market.read("nbbo", "AAPL")
    await market.tick(market.quote(), market.quote(venue="bats", bid=10_002))
    found = market.read("nbbo", "AAPL")
    assert found is not None and msgspec.json.decode(found.json())["bid"] == "100.02"
    market.read("quotes", "AAPL")
    market.now_us += 100_000
    await market.tick(market.quote(venue="bats", bid=9_990), market.quote("MSFT"))
    by_channel = {one["channel"]: one for one in market.reader.json}
    assert len(market.reader.json) == 2, "nobody reads MSFT"
    nbbo = by_channel["nbbo"]
    assert (nbbo["bid"], nbbo["bid_size"], nbbo["bid_venue"], nbbo["ask"]) == ("100", "5", "arca", "100.01")
    assert [(one["venue"], one["bid"]) for one in by_channel["quotes"]["quotes"]] == [("arca", "100"), ("bats", "99.9")]
    packed = {one[0]: one for one in market.reader.msgpack}
    assert packed[2][1][:4] == ["AAPL", 100 * E9, 5 * E9, "arca"]
    assert packed[1][1] == "AAPL" and packed[1][2][0][0] == "q"


async def test_every_trade_is_kept_and_sent() -> None:
    market = Market()
    await market.tick(market.trade(0))
    market.read("trades", "AAPL")
    for number in range(1, 20, 3):
        await market.tick(*(market.trade(number + more) for more in range(3)))
    sent = [one["trade_id"] for update in market.reader.json for one in update["trades"]]
    assert sent == [str(number) for number in range(1, 22)]
    kept = [
        one
        for update in market.rings.rings["trades"].updates
        for one in msgspec.json.decode(update.fragment.json())["trades"]
    ]
    assert [one["trade_id"] for one in kept] == [str(number) for number in range(22)]
    assert [trade[7] for update in market.reader.msgpack for trade in update[2]] == sent


async def test_the_end_of_a_bar_is_told_with_the_next() -> None:
    market = Market()
    await market.tick(market.trade(0, 10_000))
    market.read("candles.1m", "AAPL")
    await market.tick(market.trade(1, 10_100))
    market.now_us += MINUTE_US
    await market.tick(market.trade(2, 10_050))
    bars = market.reader.json[-1]["bars"]
    assert [(bar["close"], bar["trades"]) for bar in bars] == [("101", 2), ("100.5", 1)]
    assert market.reader.msgpack[-1][0] == 4


async def test_a_reader_of_diffs_has_the_book() -> None:
    """From a snapshot midway, with ticks of several diffs, a gap, and a new snapshot of the venue's."""
    chance, market = random.Random(3), Market()
    market.data.take([BookSnapshot("AAPL", "x", 1, ((100, 5),), ((101, 5),), START_US, START_US)])
    sides: tuple[dict[str, str], dict[str, str]] = ({}, {})
    seq, shown_seq, broken = 1, 0, 0

    def show(update: dict[str, Any]) -> None:
        nonlocal shown_seq, broken
        if update["type"] == "broken":
            broken += 1
            shown_seq = 0
        elif update["type"] == "snapshot":
            for side, name in zip(sides, ("bids", "asks"), strict=True):
                side.clear()
                side.update(update[name])
            shown_seq = update["seq"]
        elif shown_seq and update["seq"] > shown_seq:
            assert update["first_seq"] <= shown_seq + 1, "a hole"
            for side, name in zip(sides, ("bids", "asks"), strict=True):
                for price, size in update[name]:
                    side[price] = size
                    if size == "0":
                        del side[price]
            shown_seq = update["seq"]

    def levels() -> tuple[Level, ...]:
        return ((chance.randrange(90, 100), chance.randrange(3)),)

    first = market.read("book", "AAPL@x")
    assert first is not None
    show(msgspec.json.decode(first.json()))
    for turn in range(60):
        diffs: list[Tick] = []
        for _ in range(chance.randrange(4)):
            seq += 1
            asks = ((chance.randrange(101, 110), chance.randrange(3)),)
            diffs.append(BookDiff("AAPL", "x", seq, levels(), asks, market.now_us, market.now_us))
        if turn == 30:
            diffs.append(Status("x", StatusKind.BOOK_GAP, market.now_us, "AAPL"))
        if turn == 32:
            seq += 10
            diffs.append(BookSnapshot("AAPL", "x", seq, ((95, 9),), ((105, 9),), market.now_us, market.now_us))
        await market.tick(*diffs)
        for update in market.reader.json:
            show(update)
        market.reader.json.clear()
        view = market.data.books.view("AAPL", "x", depth=1_000)
        if view is not None:
            expected = [
                {views.text(price): views.text(size) for price, size in side} for side in (view.bids, view.asks)
            ]
            assert [sides[0], sides[1]] == expected, turn
    assert broken and shown_seq == seq
    seq += 2  # a gap that no status tells of
    await market.tick(BookDiff("AAPL", "x", seq, levels(), (), market.now_us, market.now_us))
    assert [one["type"] for one in market.reader.json] == ["broken"]
    with pytest.raises(LookupError, match="whole"):
        market.read("book", "AAPL@x")


def test_msgpack_is_less_than_half_of_json() -> None:
    """The figures of DESIGN.md, Fan-out."""
    quote = Nbbo("AAPL", 18_901 * E9 // 100, 300 * E9, "nasdaq", 18_902 * E9 // 100, 200 * E9, "arca", START_US)
    trades = [Trade("AAPL", "arca", 18_901 * E9 // 100, 100 * E9, START_US, START_US, "1234567")]
    diff = [BookDiff("BTCUSDT", "kraken", 77, ((67_001 * E9, E9 // 3), (67_000 * E9, 0)), (), START_US, START_US)]
    sizes = {}
    for name, fragment in (
        ("nbbo", views.nbbo(quote)),
        ("trades", views.trades("AAPL", trades)),
        ("book", views.merged(diff)),
    ):
        sizes[name] = len(fragment.json()), len(fragment.msgpack())
    assert sizes == {"nbbo": (211, 68), "trades": (214, 68), "book": (177, 61)}


def test_counts_are_prometheus_metrics() -> None:
    registry = CollectorRegistry()
    StreamCollector(registry, lambda: {"core": {"connections": 3.0, "cut": 2.0}, "0": {"connections": 5.0}})
    text = generate_latest(registry).decode()
    assert 'tiebreak_gateway_stream_connections{process="0"} 5.0' in text
    assert 'tiebreak_gateway_stream_cut_total{process="core"} 2.0' in text
    assert len(COUNTERS) + len(GAUGES) == text.count("# HELP")


def test_channels_have_codes_of_their_own() -> None:
    codes: Sequence[int] = [channel.code for channel in CHANNELS.values()]
    assert len(set(codes)) == len(codes)
