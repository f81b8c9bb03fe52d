"""One batch reaches every part, and a market of simulated venues goes through all of it as it should."""

from pathlib import Path

import pytest

from gateway.feeds.recorded import open_recording
from gateway.feeds.simulator import Simulator, SimulatorSettings
from gateway.feeds.ticks import BookSnapshot, Quote, Status, StatusKind, Tick, Trade
from gateway.market.intake import MarketData
from gateway.market.tickreader import TickReader, replay_day
from tests.gateway.feeds.frames import NOW_US, recorded


class Clock:
    def __init__(self) -> None:
        self.now_us = NOW_US

    def __call__(self) -> int:
        return self.now_us


def test_a_batch_reaches_every_part(tmp_path: Path) -> None:
    clock = Clock()
    market = MarketData(clock, log_folder=tmp_path)
    market.take([
        Quote("A", "x", 10, 1, 12, 1, NOW_US, NOW_US),
        Trade("A", "x", 11, 2, NOW_US, NOW_US, "1"),
        BookSnapshot("A", "x", 1, ((10, 1),), ((12, 1),), NOW_US, NOW_US),
    ])  # fmt: skip
    changes = market.changes()
    assert [one.bid_e9 for one in changes.quotes] == [10]
    assert (changes.traded, changes.closed) == (["A"], [])
    last, view = market.tape.last("A"), market.books.view("A", "x")
    assert last is not None
    assert last.price_e9 == 11
    assert view is not None
    market.take([Status("x", StatusKind.DOWN, NOW_US)])
    assert [one.bid_e9 for one in market.changes().quotes] == [0]
    assert market.books.view("A", "x") is None
    clock.now_us += 3_700_000_000
    assert [one.interval for one in market.changes().closed] == ["1m", "5m", "1h"]
    market.close()
    batch = TickReader(tmp_path, "one").read()
    assert batch is not None
    assert [type(tick) for tick in batch.ticks] == [Quote, Trade, Status]
    assert market.ticks == 4


def test_venues_with_slow_heartbeats_may_be_silent_for_longer() -> None:
    clock = Clock()
    market = MarketData(clock)
    market.take([Quote("A", venue, 10, 1, 12, 1, NOW_US, NOW_US) for venue in ("kraken", "other")])
    seen = []
    for passed_us in (999_999, 1_000_000, 2_499_999, 2_500_000):
        clock.now_us = NOW_US + passed_us
        seen.append([quote.venue for quote in market.nbbo.quotes("A", clock.now_us)])
    assert seen == [["kraken", "other"], ["kraken"], ["kraken"], []]


def test_a_day_replayed_from_the_log_gives_the_same_bars(tmp_path: Path) -> None:
    clock = Clock()
    market = MarketData(clock, log_folder=tmp_path)
    simulator = Simulator(["A", "B", "C"], settings=SimulatorSettings(updates_per_s=500, late_share=0.1))
    for _ in range(300):
        clock.now_us += 500_000
        market.take(simulator.ticks(clock.now_us))
    market.close()
    again, now = MarketData(clock), Clock()
    again.clock = now
    for ticks in replay_day(tmp_path, "2023-11-14"):
        for tick in ticks:
            now.now_us = tick.receive_us
            again.take([tick])
    for symbol in "ABC":
        for interval in ("1m", "5m", "1h"):
            assert again.candles.bars(symbol, interval) == market.candles.bars(symbol, interval) != []
        assert again.tape.last(symbol) == market.tape.last(symbol)


@pytest.mark.real_data
def test_a_recording_goes_through() -> None:
    """Binance's own stream of best prices is what the NBBO of one venue is."""
    clock = Clock()
    market = MarketData(clock)
    quote: Tick | None = None
    for now_us, ticks in open_recording(recorded("binance/spot_btcusdt_20240808.gz")).batches():
        clock.now_us = now_us
        market.take(ticks)
        for tick in ticks:
            if isinstance(tick, Quote):
                quote = tick
                best = market.nbbo.at("BTCUSDT", now_us)
                assert best is not None
                assert (best.bid_e9, best.ask_e9) == (quote.bid_e9, quote.ask_e9)
    assert quote is not None
    bars = market.candles.bars("BTCUSDT", "1m")
    assert len(bars) == 7
    assert sum(bar.trades for bar in bars) == 9_757
    assert market.books.breaks == 0
