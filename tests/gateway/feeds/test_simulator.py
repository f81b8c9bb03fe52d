"""The simulated market is repeatable, could be true, and is as unpleasant as it says."""

from collections import Counter

import pytest

from gateway.feeds.simulator import Simulator, SimulatorSettings
from gateway.feeds.ticks import E9, Quote, StatusKind, Tick, Trade
from gateway.market.nbbo import NbboBook
from tests.gateway.feeds.frames import NOW_US, kinds, quotes, trades

SYMBOLS = [f"S{number:03d}" for number in range(100)]


def run(simulator: Simulator, seconds: float, every_us: int = 10_000) -> list[Tick]:
    return [
        tick
        for step in range(round(seconds * 1e6 / every_us) + 1)
        for tick in simulator.ticks(NOW_US + step * every_us)
    ]


def test_the_same_seed_gives_the_same_market_and_another_another() -> None:
    first, again, other = (run(Simulator(SYMBOLS, seed=seed), 1.0) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_updates_come_at_the_rate_that_was_asked_for_and_skewed() -> None:
    settings = SimulatorSettings(updates_per_s=2_000, silence_per_s=0)
    ticks = [tick for tick in run(Simulator(SYMBOLS, settings=settings), 5.0) if isinstance(tick, Quote | Trade)]
    assert len(ticks) == 10_000
    share = Counter(tick.symbol for tick in ticks)
    assert share["S000"] > 10 * share["S050"] > 0
    assert 0.17 < len(trades(ticks)) / len(ticks) < 0.23


def test_each_tick_could_be_true() -> None:
    for tick in run(Simulator(SYMBOLS, settings=SimulatorSettings(updates_per_s=5_000, volatility_per_s=0.05)), 3.0):
        if isinstance(tick, Quote):
            assert 0 < tick.bid_e9 < tick.ask_e9
            assert tick.bid_e9 % (E9 // 100) == 0
        if isinstance(tick, Trade):
            assert tick.price_e9 > 0
            assert tick.size_e9 > 0
        if isinstance(tick, Quote | Trade):
            assert tick.venue_us < tick.receive_us


def test_symbols_move_together() -> None:
    """The market's moves are in all of them: in most seconds most symbols go the same way."""
    settings = SimulatorSettings(updates_per_s=2_000, skew=0.0, volatility_per_s=0.01, silence_per_s=0, trade_share=0)
    simulator = Simulator(SYMBOLS[:20], settings=settings, seed=3)
    simulator.ticks(NOW_US)
    before: dict[str, int] = {}
    ways = []
    for second in range(1, 16):
        last = {quote.symbol: quote.bid_e9 for quote in quotes(simulator.ticks(NOW_US + second * 1_000_000))}
        if before:
            up = sum(last[symbol] > before[symbol] for symbol in before)
            ways.append(max(up, len(before) - up) / len(before))
        before = last
    assert sum(ways) / len(ways) > 0.65


def test_venues_cross_fall_silent_and_send_late_and_odd_trades() -> None:
    settings = SimulatorSettings(updates_per_s=4_000, silence_per_s=0.2, cross_share=0.01, late_share=0.05)
    simulator = Simulator(SYMBOLS[:5], settings=settings)
    nbbo = NbboBook()
    crossed = locked = late = odd = 0
    silent: set[str] = set()
    heard = dict.fromkeys(simulator.venues, NOW_US)
    for step in range(1_000):
        now_us = NOW_US + step * 10_000
        ticks = simulator.ticks(now_us)
        nbbo.apply(ticks, now_us)
        for tick in ticks:
            heard[tick.venue] = now_us
        silent.update(venue for venue, at_us in heard.items() if now_us - at_us > 1_000_000)
        late += sum(trade.receive_us - trade.venue_us > 100_000 for trade in trades(ticks))
        odd += sum(not trade.eligible for trade in trades(ticks))
        changed = nbbo.changed(now_us)
        crossed += sum(one.crossed for one in changed)
        locked += sum(one.locked for one in changed)
    assert crossed > 20
    assert locked > 20
    assert late > 50
    assert odd > 100
    assert silent
    assert nbbo.fell_silent > 0


def test_it_begins_with_every_venue_up_and_heartbeats_follow() -> None:
    simulator = Simulator(["A"], venues=["x", "y"], settings=SimulatorSettings(updates_per_s=0.001, silence_per_s=0))
    assert kinds(simulator.ticks(NOW_US)) == [StatusKind.UP] * 2
    assert kinds(simulator.ticks(NOW_US + 600_000)) == [StatusKind.ALIVE] * 2
    assert simulator.ticks(NOW_US + 600_000) == []
    assert simulator.ticks(NOW_US) == [], "a clock that goes back"


def test_prices_can_be_given() -> None:
    simulator = Simulator(["A"], prices_e9={"A": 250 * E9}, settings=SimulatorSettings(trade_share=0, cross_share=0))
    (quote, *_) = quotes(run(simulator, 0.1))
    assert abs(quote.bid_e9 - 250 * E9) < E9


def test_an_empty_market_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a symbol"):
        Simulator([])
    with pytest.raises(ValueError, match="updates_per_s 0"):
        SimulatorSettings(updates_per_s=0)
