"""Bars are the sums of their trades: late ones amend open bars, closed bars never change, and retention holds."""

import zipfile
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.feeds.lean import LeanTicks
from gateway.feeds.recorded import open_recording
from gateway.feeds.ticks import E9, E9_MAX, SUSPECT, Trade
from gateway.market.candles import GRACE_US, INTERVALS_US, MINUTE_US, Candle, Candles, Retention
from tests.gateway.feeds.frames import recorded

HOUR_US = 60 * MINUTE_US
T0 = 472_222 * HOUR_US


def trade(price: int, at_us: int, size: int = 1, *, eligible: bool = True, symbol: str = "A", marks: int = 0) -> Trade:
    return Trade(symbol, "x", price, size, at_us, at_us, "1", eligible, "", marks)


def bar(candles: Candles, interval: str = "1m", start_us: int = T0) -> Candle:
    (found,) = candles.bars("A", interval, start_us=start_us, end_us=start_us + 1)
    return found


def test_open_high_low_close_volume_number_and_vwap() -> None:
    candles = Candles()
    candles.apply([trade(10, T0), trade(14, T0 + 1, 3), trade(8, T0 + 2), trade(9, T0 + 3, 5)], T0 + 3)
    for interval in INTERVALS_US:
        assert bar(candles, interval) == Candle("A", interval, T0, 10, 14, 8, 9, 10, 4, 105 // 10, False)


def test_what_is_not_eligible_counts_for_volume_and_number_only() -> None:
    candles = Candles()
    candles.apply([trade(99, T0, 7, eligible=False)], T0)
    assert bar(candles) == Candle("A", "1m", T0, 0, 0, 0, 0, 7, 1, 0, False)
    candles.apply([trade(10, T0 + 1), trade(1, T0 + 2, 2, eligible=False)], T0 + 2)
    assert bar(candles) == Candle("A", "1m", T0, 10, 10, 10, 10, 10, 3, 10, False)


def test_a_suspect_trade_is_in_no_bar() -> None:
    candles = Candles()
    candles.apply([trade(10, T0), trade(99, T0 + 1, marks=SUSPECT)], T0 + 1)
    assert (bar(candles).high_e9, bar(candles).trades, candles.suspect) == (10, 1, 1)


def test_a_late_trade_amends_the_bar_of_its_own_time() -> None:
    candles = Candles()
    candles.apply([trade(10, T0 + 5), trade(11, T0 + 10)], T0 + 10)
    candles.apply([trade(7, T0 + 1)], T0 + 20)
    assert (bar(candles).open_e9, bar(candles).close_e9, bar(candles).low_e9) == (7, 11, 7)
    candles.apply([trade(12, T0 + 8)], T0 + 21)
    assert (bar(candles).open_e9, bar(candles).close_e9, bar(candles).high_e9) == (7, 11, 12)
    # Two at the same time: the later one to come closes.
    candles.apply([trade(9, T0 + 10)], T0 + 22)
    assert bar(candles).close_e9 == 9


def test_a_bar_is_open_for_its_grace_and_then_never_changes() -> None:
    candles = Candles()
    end_us = T0 + MINUTE_US
    candles.apply([trade(10, T0)], T0)
    candles.apply([trade(20, end_us)], end_us)
    candles.apply([trade(11, end_us - 1)], end_us + GRACE_US - 1)
    assert (bar(candles).close_e9, bar(candles).closed) == (11, False)
    assert bar(candles, start_us=end_us).open_e9 == 20
    candles.apply([trade(99, end_us - 1)], end_us + GRACE_US)
    assert bar(candles) == Candle("A", "1m", T0, 10, 11, 10, 11, 2, 2, 10, True)
    assert candles.too_late == 1
    assert [(one.interval, one.start_us) for one in candles.closed()] == [("1m", T0)]
    assert candles.closed() == []


def test_wider_bars_are_sums_of_minutes_open_and_closed() -> None:
    candles = Candles()
    for minute in range(7):
        at_us = T0 + minute * MINUTE_US
        candles.apply([trade(10 + minute, at_us), trade(5 + minute, at_us + 1, 2)], at_us + 1)
    assert bar(candles, "5m") == Candle("A", "5m", T0, 10, 14, 5, 9, 15, 10, (60 + 2 * 35) // 15, True)
    assert bar(candles, "5m", T0 + 5 * MINUTE_US) == Candle(
        "A", "5m", T0 + 5 * MINUTE_US, 15, 16, 10, 11, 6, 4, (31 + 2 * 21) // 6, False
    )
    assert (bar(candles, "1h").open_e9, bar(candles, "1h").close_e9, bar(candles, "1h").trades) == (10, 11, 14)
    candles.advance(T0 + HOUR_US + GRACE_US)
    intervals = [one.interval for one in candles.closed()]
    assert {interval: intervals.count(interval) for interval in INTERVALS_US} == {"1m": 7, "5m": 2, "1h": 1}
    assert bar(candles, "1h").closed


def test_a_minute_without_trades_has_no_bar() -> None:
    candles = Candles()
    candles.apply([trade(1, T0)], T0)
    candles.apply([trade(2, T0 + 3 * MINUTE_US)], T0 + 3 * MINUTE_US)
    assert [one.start_us for one in candles.bars("A", "1m")] == [T0, T0 + 3 * MINUTE_US]


def test_a_time_that_is_far_ahead_opens_no_bar() -> None:
    candles = Candles()
    candles.apply([trade(1, T0 + 5_000_000)], T0)
    candles.apply([trade(1, T0 + MINUTE_US * 10)], T0)
    assert candles.ahead == 1
    assert len(candles.bars("A", "1m")) == 1


def test_paging() -> None:
    candles = Candles()
    for minute in range(10):
        candles.apply([trade(1 + minute, T0 + minute * MINUTE_US)], T0 + minute * MINUTE_US)
    pages, start_us = [], 0
    while page := candles.bars("A", "1m", start_us=start_us, limit=3):
        pages.append([(one.start_us - T0) // MINUTE_US for one in page])
        start_us = page[-1].start_us + 1
    assert pages == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    between = candles.bars("A", "1m", start_us=T0 + 2 * MINUTE_US, end_us=T0 + 4 * MINUTE_US)
    assert [one.open_e9 for one in between] == [3, 4]
    latest = candles.latest("A", "1m")
    assert latest is not None
    assert (latest.open_e9, latest.closed) == (10, False)
    assert candles.bars("nobody", "1m") == []
    assert candles.latest("nobody", "1m") is None
    with pytest.raises(KeyError):
        candles.bars("A", "2m")


def test_the_latest_bar_is_the_newest_whether_open_or_closed() -> None:
    candles = Candles()
    for minute in range(3):
        candles.apply([trade(1 + minute, T0 + minute * MINUTE_US)], T0 + minute * MINUTE_US)
    candles.advance(T0 + HOUR_US)
    latest = candles.latest("A", "1m")
    assert latest is not None
    assert (latest.open_e9, latest.closed) == (3, True)


def test_retention_keeps_the_newest() -> None:
    candles = Candles(retention=Retention(bars_1m=5, bars_5m=2, bars_1h=1))
    for minute in range(200):
        candles.apply([trade(1 + minute, T0 + minute * MINUTE_US)], T0 + minute * MINUTE_US)
    # The last minute is open, and the one before it is within its grace.
    closed = [one for one in candles.bars("A", "1m") if one.closed]
    assert [one.open_e9 for one in closed] == [194, 195, 196, 197, 198]
    assert len([one for one in candles.bars("A", "5m") if one.closed]) == 2
    assert candles.bars_kept <= 5 + 2 + 1 + 3


def test_what_is_past_retention_is_neither_shown_nor_kept_for_long() -> None:
    candles = Candles(retention=Retention(bars_1m=32))
    for minute in range(300):
        candles.apply([trade(1 + minute, T0 + minute * MINUTE_US)], T0 + minute * MINUTE_US)
        shown = [one for one in candles.bars("A", "1m") if one.closed]
        assert len(shown) == max(min(32, minute - 1), 0)
        assert len(candles._series["A"].closed["1m"]) <= 32 + 2, "some are dropped at a time"
        assert candles.bars_kept == sum(len(one) for one in candles._series["A"].closed.values())


def test_symbols_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.market.candles.SYMBOLS_MAX", 2)
    candles = Candles()
    candles.apply([trade(1, T0, symbol=symbol) for symbol in "ABCDA"], T0)
    assert candles.symbols_refused == 2
    assert candles.bars("C", "1m") == []
    assert bar(candles).trades == 2


def test_all_bars_together_are_bounded() -> None:
    candles = Candles(retention=Retention(bars_max=50))
    for minute in range(200):
        at_us = T0 + minute * MINUTE_US
        few = [trade(1, at_us, symbol="few")] if minute in (0, 1, 199) else []
        candles.apply([trade(1, at_us), *few], at_us)
    assert candles.bars_kept <= 50
    # The symbol with the most bars gives up its oldest; the other keeps what it has.
    assert len(candles.bars("few", "1m")) == 3
    assert candles.latest("A", "1m") is not None


def test_huge_volumes_are_kept_exactly() -> None:
    candles = Candles()
    candles.apply([trade(E9_MAX, T0, E9_MAX)] * 5, T0)
    candles.advance(T0 + 2 * HOUR_US)
    assert (bar(candles).volume_e9, bar(candles).vwap_e9) == (5 * E9_MAX, E9_MAX)


def test_who_had_trades() -> None:
    candles = Candles()
    candles.apply([trade(1, T0), trade(1, T0, symbol="B"), trade(1, T0)], T0)
    assert candles.changed() == ["A", "B"]
    assert candles.changed() == []


TRADES = st.lists(
    st.tuples(
        st.sampled_from("AB"),
        st.integers(1, 9),
        st.integers(1, 5),
        st.booleans(),
        st.integers(0, 400),
        st.integers(0, 3),
    ),
    max_size=60,
)


@given(TRADES)
@settings(max_examples=300)
def test_they_are_the_naive_models(rows: list[tuple[str, int, int, bool, int, int]]) -> None:
    """Trades in the order of their arrival, at most three seconds late, against sums over lists."""
    candles = Candles(grace_us=5_000_000)
    rows.sort(key=lambda row: row[4])
    kept: dict[tuple[str, str, int], list[Trade]] = defaultdict(list)
    for symbol, price, size, eligible, second, late in rows:
        now_us = T0 + second * 1_000_000
        one = trade(price, max(now_us - late * 1_000_000, T0), size, eligible=eligible, symbol=symbol)
        candles.apply([one], now_us)
        for interval, span_us in INTERVALS_US.items():
            kept[(symbol, interval, one.venue_us - one.venue_us % span_us)].append(one)

    def model(symbol: str, interval: str, start_us: int, closed: bool) -> Candle:
        trades = sorted(kept[(symbol, interval, start_us)], key=lambda one: one.venue_us)
        good = [one for one in trades if one.eligible]
        prices = [one.price_e9 for one in good]
        volume = sum(one.size_e9 for one in good)
        vwap = sum(one.price_e9 * one.size_e9 for one in good) // volume if good else 0
        four = (prices[0], max(prices), min(prices), prices[-1]) if good else (0, 0, 0, 0)
        return Candle(symbol, interval, start_us, *four, sum(one.size_e9 for one in trades), len(trades), vwap, closed)

    for _ in range(2):
        got = [one for symbol in "AB" for interval in INTERVALS_US for one in candles.bars(symbol, interval)]
        assert got == [model(one.symbol, one.interval, one.start_us, one.closed) for one in got]
        assert len(got) == len(kept)
        candles.advance(T0 + 3 * HOUR_US)
    assert all(one.closed for one in got)
    assert candles.too_late == 0


@pytest.mark.real_data
@pytest.mark.parametrize(("day", "same_bars", "same_volumes"), [("20131007", 388, 388), ("20131008", 387, 387)])
def test_the_bars_of_the_regular_session_are_the_published_ones(day: str, same_bars: int, same_volumes: int) -> None:
    """775 of 780 minutes; three of the others have the prints of an opening or closing auction, two a price that
    the vendor kept. Outside the session, where most trades are not eligible, the vendor lets them move its bars.
    """
    recording = open_recording(recorded(f"lean/tick/ibm/{day}_trade.zip"))
    handler = recording.handler
    assert isinstance(handler, LeanTicks)
    candles = Candles()
    for now_us, ticks in recording.batches():
        candles.apply(ticks, now_us)
    candles.advance(handler.midnight_us + 24 * HOUR_US)
    with zipfile.ZipFile(recorded(f"lean/minute/ibm/{day}_trade.zip")) as archive:
        rows = [[int(field) for field in line.split(b",")] for line in archive.read(archive.namelist()[0]).splitlines()]
    session = [row for row in rows if 34_200_000 <= row[0] < 57_600_000]
    ours = {one.start_us: one for one in candles.bars("IBM", "1m", limit=5_000)}
    same = volumes = 0
    for at_ms, open_, high, low, close, volume in session:
        one = ours[handler.midnight_us + at_ms * 1_000]
        prices = (one.open_e9, one.high_e9, one.low_e9, one.close_e9)
        same += prices == tuple(price * 100_000 for price in (open_, high, low, close))
        volumes += one.volume_e9 == volume * E9
    assert len(session) == 390
    assert (same, volumes, candles.too_late) == (same_bars, same_volumes, 0)
