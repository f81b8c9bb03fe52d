"""Bars of one minute, five minutes and one hour, from trades, by the venues' time.

All trades count for volume and number; only eligible ones for open, high, low, close and VWAP; suspect ones
for nothing. A bar stays open for `grace_us` past its end and a late trade amends it; then it is closed and
never changes. What comes later still is counted and dropped. A trade touches the minute's bar only: five
minutes and hours are sums of minutes, made when they close or are asked for.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from struct import Struct as Layout

from msgspec import Struct

from gateway.feeds.ticks import SUSPECT, Tick, Trade

MINUTE_US = 60_000_000
INTERVALS_US = {"1m": MINUTE_US, "5m": 5 * MINUTE_US, "1h": 60 * MINUTE_US}
GRACE_US = 2_000_000
AHEAD_US_MAX = 5_000_000
SYMBOLS_MAX = 50_000


class Retention(Struct, frozen=True, kw_only=True):
    """How many closed bars are kept per symbol. A closed bar takes 72 bytes."""

    bars_1m: int = 1_440
    bars_5m: int = 2_016
    bars_1h: int = 2_160
    bars_max: int = 4_000_000
    """Of all symbols together; past it the symbols with the most bars give up their oldest."""


class Candle(Struct, frozen=True, gc=False, array_like=True):
    """One bar of [start_us, start_us + interval). Prices are 0 where no trade was eligible.

    volume_e9: of all trades. vwap_e9: of the eligible ones, rounded down.
    """

    symbol: str
    interval: str
    start_us: int
    open_e9: int
    high_e9: int
    low_e9: int
    close_e9: int
    volume_e9: int
    trades: int
    vwap_e9: int
    closed: bool


class _Bar:
    """A bar that still changes."""

    __slots__ = (
        "close_e9", "eligible_e9", "first_us", "high_e9", "last_us", "low_e9", "notional", "open_e9",
        "start_us", "trades", "volume_e9",
    )  # fmt: skip

    def __init__(self, start_us: int) -> None:
        self.start_us = start_us
        self.first_us = self.last_us = 0
        self.open_e9 = self.high_e9 = self.low_e9 = self.close_e9 = 0
        self.volume_e9 = self.trades = self.eligible_e9 = self.notional = 0

    def add(self, trade: Trade) -> None:
        size_e9 = trade.size_e9
        self.volume_e9 += size_e9
        self.trades += 1
        if not trade.eligible:
            return
        price_e9, venue_us = trade.price_e9, trade.venue_us
        self.eligible_e9 += size_e9
        self.notional += price_e9 * size_e9
        if not self.open_e9:
            self.open_e9 = self.high_e9 = self.low_e9 = self.close_e9 = price_e9
            self.first_us = self.last_us = venue_us
            return
        if price_e9 > self.high_e9:
            self.high_e9 = price_e9
        elif price_e9 < self.low_e9:
            self.low_e9 = price_e9
        if venue_us >= self.last_us:
            self.close_e9, self.last_us = price_e9, venue_us
        elif venue_us < self.first_us:
            self.open_e9, self.first_us = price_e9, venue_us

    def merge(self, other: "_Bar") -> None:
        """Add a bar whose trades are all later than these."""
        self.volume_e9 += other.volume_e9
        self.trades += other.trades
        if not other.open_e9:
            return
        self.eligible_e9 += other.eligible_e9
        self.notional += other.notional
        if not self.open_e9:
            self.open_e9, self.low_e9 = other.open_e9, other.low_e9
        self.high_e9 = max(self.high_e9, other.high_e9)
        self.low_e9 = min(self.low_e9, other.low_e9)
        self.close_e9 = other.close_e9

    def view(self, symbol: str, interval: str, *, closed: bool) -> Candle:
        vwap_e9 = self.notional // self.eligible_e9 if self.eligible_e9 else 0
        return Candle(
            symbol, interval, self.start_us, self.open_e9, self.high_e9, self.low_e9, self.close_e9,
            self.volume_e9, self.trades, vwap_e9, closed,
        )  # fmt: skip


ROW = Layout("<9Q")
"""start, open, high, low, close, volume's low and high 64 bits, trades, VWAP."""
LOW_64 = (1 << 64) - 1


class _Closed:
    """Closed bars of one symbol and interval, 72 bytes each: there are millions, and as objects they take 400."""

    __slots__ = ("rows",)

    def __init__(self) -> None:
        self.rows = bytearray()

    def __len__(self) -> int:
        return len(self.rows) // ROW.size

    def append(self, bar: Candle) -> None:
        self.rows += ROW.pack(
            bar.start_us, bar.open_e9, bar.high_e9, bar.low_e9, bar.close_e9,
            bar.volume_e9 & LOW_64, bar.volume_e9 >> 64, bar.trades, bar.vwap_e9,
        )  # fmt: skip

    def start_us(self, at: int) -> int:
        return int.from_bytes(self.rows[at * ROW.size : at * ROW.size + 8], "little")

    def drop(self, count: int) -> None:
        del self.rows[: count * ROW.size]

    def between(self, symbol: str, interval: str, start_us: int, end_us: int, limit: int) -> list[Candle]:
        first = bisect_left(range(len(self)), start_us, key=self.start_us)
        bars = []
        for at in range(first, min(first + limit, len(self))):
            start, open_, high, low, close, volume, volume_high, trades, vwap = ROW.unpack_from(
                self.rows, at * ROW.size
            )
            if start >= end_us:
                break
            volume |= volume_high << 64
            bars.append(Candle(symbol, interval, start, open_, high, low, close, volume, trades, vwap, True))
        return bars


class _Series:
    """All bars of one symbol: per interval those that are open, by start, and those that are closed."""

    __slots__ = ("closed", "current", "open", "symbol")

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        self.current = _Bar(-1)
        self.open: dict[str, dict[int, _Bar]] = {interval: {} for interval in INTERVALS_US}
        self.closed = {interval: _Closed() for interval in INTERVALS_US}


class Candles:
    """All symbols' bars. Times come in with the calls, in microseconds, and never go back."""

    def __init__(self, *, grace_us: int = GRACE_US, retention: Retention | None = None) -> None:
        self.grace_us = grace_us
        self.now_us = 0
        self.too_late = 0
        self.ahead = 0
        self.suspect = 0
        self.symbols_refused = 0
        self.bars_kept = 0
        keep = retention or Retention()
        self._keep = {"1m": keep.bars_1m, "5m": keep.bars_5m, "1h": keep.bars_1h}
        self._bars_max = keep.bars_max
        self._series: dict[str, _Series] = {}
        self._due: dict[int, list[tuple[int, _Series, str]]] = {}
        self._next_us = 1 << 62
        self._just_closed: deque[Candle] = deque(maxlen=200_000)
        self._changed: dict[str, None] = {}

    def apply(self, ticks: Iterable[Tick], now_us: int) -> None:
        """Take in trades; other ticks are not looked at."""
        self.advance(now_us)
        now_us = self.now_us
        earliest_us = now_us - self.grace_us - MINUTE_US
        for tick in ticks:
            if type(tick) is not Trade:
                continue
            if tick.marks & SUSPECT:
                self.suspect += 1
                continue
            symbol, venue_us = tick.symbol, tick.venue_us
            start_us = venue_us - venue_us % MINUTE_US
            series = self._series.get(symbol)
            if series is None:
                if len(self._series) >= SYMBOLS_MAX:
                    self.symbols_refused += 1
                    continue
                series = self._series[symbol] = _Series(symbol)
            bar = series.current
            if bar.start_us != start_us:
                if start_us <= earliest_us:
                    self.too_late += 1
                    continue
                if venue_us > now_us + AHEAD_US_MAX:
                    self.ahead += 1
                    continue
                bar = series.open["1m"].get(start_us) or self._open(series, start_us)
                series.current = bar
            bar.add(tick)
            self._changed[symbol] = None

    def _open(self, series: _Series, start_us: int) -> _Bar:
        """A new minute's bar, and those of five minutes and an hour around it."""
        for place, (interval, span_us) in enumerate(INTERVALS_US.items()):
            began_us = start_us - start_us % span_us
            if began_us not in series.open[interval]:
                series.open[interval][began_us] = _Bar(began_us)
                due_us = began_us + span_us + self.grace_us
                self._due.setdefault(due_us, []).append((place, series, interval))
                self._next_us = min(self._next_us, due_us)
        return series.open["1m"][start_us]

    def advance(self, now_us: int) -> None:
        """Let the clock say that it is now: bars whose time and grace are over are closed."""
        self.now_us = max(self.now_us, now_us)
        if self.now_us < self._next_us:
            return
        for due_us in sorted(due_us for due_us in self._due if due_us <= self.now_us):
            # Minutes before the hours that they are part of.
            for _, series, interval in sorted(self._due.pop(due_us), key=lambda entry: entry[0]):
                self._close(series, interval, due_us - self.grace_us - INTERVALS_US[interval])
        self._next_us = min(self._due, default=1 << 62)

    def _close(self, series: _Series, interval: str, start_us: int) -> None:
        bar = series.open[interval].pop(start_us)
        if interval == "1m":
            if series.current is bar:
                series.current = _Bar(-1)
            for wider in ("5m", "1h"):
                series.open[wider][start_us - start_us % INTERVALS_US[wider]].merge(bar)
        candle = bar.view(series.symbol, interval, closed=True)
        kept = series.closed[interval]
        kept.append(candle)
        self.bars_kept += 1
        over = len(kept) - self._keep[interval]
        # Some at a time, because each drop moves the rest.
        if over > max(self._keep[interval] // 16, 0):
            self._drop(kept, over)
        if self.bars_kept > self._bars_max:
            most = max((one for each in self._series.values() for one in each.closed.values()), key=len)
            self._drop(most, (len(most) + 1) // 2)
        self._just_closed.append(candle)

    def _drop(self, kept: _Closed, count: int) -> None:
        kept.drop(count)
        self.bars_kept -= count

    def closed(self) -> list[Candle]:
        """The bars closed since the last call, oldest first; the latest 200,000 where nobody asked."""
        bars = list(self._just_closed)
        self._just_closed.clear()
        return bars

    def changed(self) -> list[str]:
        """The symbols that had trades since the last call."""
        names, self._changed = self._changed, {}
        return list(names)

    def bars(
        self, symbol: str, interval: str, *, start_us: int = 0, end_us: int = 1 << 62, limit: int = 500
    ) -> list[Candle]:
        """Bars that start in [start_us, end_us), oldest first, open ones included. Page on from the last start + 1.

        Raises:
            KeyError: an interval that is not in INTERVALS_US.
        """
        INTERVALS_US[interval]
        series = self._series.get(symbol)
        if series is None:
            return []
        kept = series.closed[interval]
        over = max(len(kept) - self._keep[interval], 0)
        if over:
            start_us = max(start_us, kept.start_us(over))
        bars = kept.between(symbol, interval, start_us, end_us, limit)
        for began_us in sorted(series.open[interval]):
            if start_us <= began_us < end_us and len(bars) < limit:
                bars.append(self._view(series, interval, began_us))
        return bars

    def latest(self, symbol: str, interval: str) -> Candle | None:
        """The newest bar, open if there is one."""
        series = self._series.get(symbol)
        if series is None:
            return None
        if series.open[interval]:
            return self._view(series, interval, max(series.open[interval]))
        kept = series.closed[interval]
        last = kept.between(symbol, interval, kept.start_us(len(kept) - 1), 1 << 62, 1) if len(kept) else []
        return last[0] if last else None

    def _view(self, series: _Series, interval: str, start_us: int) -> Candle:
        """An open bar as it is now; a wider one includes its open minutes."""
        bar = series.open[interval][start_us]
        if interval != "1m":
            whole = _Bar(start_us)
            whole.merge(bar)
            for began_us in sorted(series.open["1m"]):
                if start_us <= began_us < start_us + INTERVALS_US[interval]:
                    whole.merge(series.open["1m"][began_us])
            bar = whole
        return bar.view(series.symbol, interval, closed=False)
