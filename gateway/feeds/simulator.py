"""A market of several venues that nobody needs a recording for: seeded, and as unpleasant as a real one.

One common factor moves all symbols, each moves on its own as well, and a few symbols get most updates, as on
real venues. Venues follow the true price with a delay of their own, so that they lock and cross one another;
they fall silent, report trades late, and report trades that must not move a price.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from itertools import accumulate

from msgspec import Struct

from gateway.feeds.clock import now_us
from gateway.feeds.ticks import E9, Quote, Sink, Status, StatusKind, Tick, Trade

CENT_E9 = E9 // 100
HEARTBEAT_US = 500_000


class SimulatorSettings(Struct, frozen=True, kw_only=True):
    """Shares are of 1."""

    updates_per_s: float = 1_000.0
    """Of all symbols and venues together."""
    skew: float = 1.0
    """Zipf exponent of the symbols' shares; 0: all alike. IEX's capture fits 0.9."""
    trade_share: float = 0.2
    not_eligible_share: float = 0.05
    late_share: float = 0.01
    late_us_max: int = 3_000_000
    cross_share: float = 0.002
    silence_per_s: float = 0.01
    """How often a venue falls silent."""
    silence_us_max: int = 5_000_000
    volatility_per_s: float = 0.0002

    def __post_init__(self) -> None:
        if not self.updates_per_s > 0:
            raise ValueError(f"updates_per_s {self.updates_per_s}: must be above 0")


class _Stock:
    """One symbol: its true price, and how it hangs on the market."""

    __slots__ = ("beta", "moved_us", "price_e9", "symbol")

    def __init__(self, symbol: str, price_e9: int, beta: float) -> None:
        self.symbol = symbol
        self.price_e9 = float(price_e9)
        self.beta = beta
        self.moved_us = 0


class Simulator:
    """The same settings, seed and times give the same ticks."""

    def __init__(
        self,
        symbols: Sequence[str],
        *,
        venues: Sequence[str] = ("sim-a", "sim-b", "sim-c", "sim-d"),
        seed: int = 1,
        settings: SimulatorSettings | None = None,
        prices_e9: dict[str, int] | None = None,
    ) -> None:
        """prices_e9: where symbols begin; the others begin between 5 and 500."""
        if not symbols or not venues:
            raise ValueError("a market needs a symbol and a venue")
        self.settings = settings or SimulatorSettings()
        self.venues = tuple(venues)
        self._random = random.Random(seed)
        given = prices_e9 or {}
        self._stocks = [
            _Stock(
                symbol,
                given.get(symbol) or round(5 * 100 ** self._random.random() * 100) * CENT_E9,
                self._random.uniform(0.3, 1.7),
            )
            for symbol in symbols
        ]
        shares = [1 / (rank + 1) ** self.settings.skew for rank in range(len(symbols))]
        self._shares = list(accumulate(shares))
        self._market = 0.0
        self._market_us = 0
        self._delay = {venue: self._random.uniform(0.0, 0.6) for venue in self.venues}
        self._silent_until = dict.fromkeys(self.venues, 0)
        self._heartbeat_us = 0
        self._owed = 0.0
        self._trades = 0
        self._last_us = 0

    def ticks(self, now_us: int) -> list[Tick]:
        """What happened since the last call (the first call is the beginning), received now."""
        if not self._last_us:
            self._last_us = self._market_us = now_us
            return [Status(venue, StatusKind.UP, now_us) for venue in self.venues]
        passed_us = now_us - self._last_us
        if passed_us <= 0:
            return []
        self._last_us = now_us
        self._fall_silent(passed_us, now_us)
        ticks: list[Tick] = []
        if now_us - self._heartbeat_us >= HEARTBEAT_US:
            self._heartbeat_us = now_us
            ticks += [Status(venue, StatusKind.ALIVE, now_us) for venue in self.venues if self._speaks(venue, now_us)]
        self._owed += passed_us * self.settings.updates_per_s / 1e6
        count, chance = int(self._owed), self._random
        self._owed -= count
        for stock in chance.choices(self._stocks, cum_weights=self._shares, k=count):
            venue = self.venues[int(chance.random() * len(self.venues))]
            self._move(stock, now_us)
            if not self._speaks(venue, now_us):
                continue
            is_trade = chance.random() < self.settings.trade_share
            ticks.append(self._trade(stock, venue, now_us) if is_trade else self._quote(stock, venue, now_us))
        return ticks

    def _speaks(self, venue: str, now_us: int) -> bool:
        return now_us >= self._silent_until[venue]

    def _fall_silent(self, passed_us: int, now_us: int) -> None:
        for venue in self.venues:
            if self._random.random() < self.settings.silence_per_s * passed_us / 1e6:
                self._silent_until[venue] = now_us + round(self._random.random() * self.settings.silence_us_max)

    def _move(self, stock: _Stock, now_us: int) -> None:
        """Bring a symbol's true price up to now."""
        chance, volatility = self._random, self.settings.volatility_per_s
        if now_us > self._market_us:
            self._market += volatility * chance.gauss(0, 1) * ((now_us - self._market_us) / 1e6) ** 0.5
            self._market_us = now_us
        since_us = now_us - (stock.moved_us or now_us)
        stock.moved_us = now_us
        own = volatility * chance.gauss(0, 1) * (since_us / 1e6) ** 0.5
        stock.price_e9 = min(max(stock.price_e9 * (1 + own), 10.0 * CENT_E9), 1e15)

    def _seen_e9(self, stock: _Stock, venue: str) -> float:
        """The price as this venue sees it: the market's part reaches some later than others."""
        return stock.price_e9 * (1 + self._market * stock.beta * (1 - 0.1 * self._delay[venue]))

    def _quote(self, stock: _Stock, venue: str, now_us: int) -> Quote:
        chance = self._random
        middle = self._seen_e9(stock, venue)
        spread = max(middle * 0.0002, CENT_E9)
        if chance.random() < self.settings.cross_share:
            middle += chance.choice((-2.5, 2.5)) * spread
        bid_e9 = max(int((middle - spread * chance.uniform(0.3, 1.0)) // CENT_E9), 1) * CENT_E9
        ask_e9 = max(int((middle + spread * chance.uniform(0.3, 1.0)) // CENT_E9) * CENT_E9, bid_e9 + CENT_E9)
        sizes = chance.randint(1, 20) * 100 * E9, chance.randint(1, 20) * 100 * E9
        return Quote(stock.symbol, venue, bid_e9, sizes[0], ask_e9, sizes[1], now_us - chance.randint(50, 900), now_us)

    def _trade(self, stock: _Stock, venue: str, now_us: int) -> Trade:
        chance, settings = self._random, self.settings
        self._trades += 1
        side = chance.choice((-1, 1))
        middle = self._seen_e9(stock, venue)
        price_e9 = max(round((middle + side * max(middle * 0.0001, CENT_E9 / 2)) / CENT_E9), 1) * CENT_E9
        eligible = chance.random() >= settings.not_eligible_share
        if not eligible:
            price_e9 = max(price_e9 * chance.randint(98, 102) // 100 // CENT_E9, 1) * CENT_E9
        late_us = chance.randint(0, settings.late_us_max) if chance.random() < settings.late_share else 0
        venue_us = now_us - late_us - chance.randint(50, 900)
        size_e9 = (chance.randint(1, 10) * 100 if eligible else chance.randint(1, 99)) * E9
        aggressor = "buy" if side > 0 else "sell"
        return Trade(stock.symbol, venue, price_e9, size_e9, venue_us, now_us, f"s{self._trades}", eligible, aggressor)


async def simulate(
    simulator: Simulator,
    sink: Sink,
    *,
    every_ms: int = 10,
    clock: Callable[[], int] = now_us,
) -> None:
    """Give the sink what happens, every few milliseconds, until cancelled."""
    while True:
        ticks = simulator.ticks(clock())
        if ticks:
            sink(ticks)
        await asyncio.sleep(every_ms / 1000)
