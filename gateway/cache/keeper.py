"""Keeps market data's newest state in the cache: one pipeline per round, off the path of ticks, the last value wins."""

import asyncio
import time
from collections.abc import Callable

import structlog
from msgspec import Struct

from gateway.cache.client import CacheAway
from gateway.cache.quotes import CacheQuotes, Known
from gateway.market.intake import MarketData
from gateway.market.nbbo import Nbbo

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.cache")

EVERY_S = 0.02
"""From the beginning of a round to that of the next: less than half of what a change may take from its receipt to the
cache, since one that just missed a round waits for the next one's end."""
AWAY_S = 1.0
NAMED_S = 60.0
ASKED_AGAIN_S = 1.0
ASKED_MAX = 10_000


class Counts(Struct):
    """For metrics. lag_ms: of the last round, the longest that a change can have waited until it was written."""

    rounds: int = 0
    written: int = 0
    failed: int = 0
    recalled: int = 0
    lag_ms: float = 0.0


class QuoteKeeper:
    """What waits is a set of symbols, so at most all of them; values are worked out when they are written."""

    def __init__(self, market: MarketData, cache: CacheQuotes) -> None:
        self.market = market
        self.cache = cache
        self.counts = Counts()
        self.on_written: Callable[[float], None] = lambda _taken: None
        """Called with the monotonic time up to which all that was taken in is now in the cache."""
        self._waiting: dict[str, Nbbo | None] = {}
        """By symbol: its best prices, where they changed."""
        self._since = time.monotonic()
        self._asked: dict[str, float] = {}

    async def load(self) -> int:
        """Take over what the cache has, marked stale; says of how many symbols. A cache that is away has nothing."""
        count = 0
        try:
            async for symbol, known in self.cache.everything():
                self._remember(symbol, known)
                count += 1
        except CacheAway as error:
            log.info("no quotes from the cache", error=str(error))
        if count:
            log.info("quotes are back from the cache", symbols=count)
        return count

    async def recall(self, symbols: list[str]) -> None:
        """Ask the cache for symbols of which memory has nothing fresh, each once a second at most."""
        now_s, now_us = time.monotonic(), self.market.clock()
        wanted = [
            symbol
            for symbol in symbols
            if self._asked.get(symbol, 0.0) + ASKED_AGAIN_S <= now_s and not self._is_fresh(symbol, now_us)
        ]
        if not wanted:
            return
        if len(self._asked) > ASKED_MAX:
            self._asked.clear()
        self._asked.update(dict.fromkeys(wanted, now_s))
        try:
            for symbol, known in await self.cache.read(wanted):
                self._remember(symbol, known)
                self.counts.recalled += 1
        except CacheAway:
            self.counts.failed += 1

    def _is_fresh(self, symbol: str, now_us: int) -> bool:
        best = self.market.nbbo.at(symbol, now_us)
        return best is not None and bool(best.bid_e9 or best.ask_e9)

    def _remember(self, symbol: str, known: Known) -> None:
        if known.nbbo is not None and known.nbbo.symbol == symbol:
            self.market.nbbo.remember(known.nbbo)
        if known.last is not None and known.last.symbol == symbol:
            self.market.tape.remember(known.last)

    async def run(self) -> None:
        """Write what changed, for ever. Never raises but CancelledError."""
        named_s = due_s = time.monotonic()
        while True:
            due_s = max(due_s + EVERY_S, time.monotonic() + EVERY_S / 10)  # others have their turns, come what may
            await asyncio.sleep(due_s - time.monotonic())
            if time.monotonic() - named_s >= NAMED_S:
                named_s = time.monotonic()
                self.cache.forget_index()
            try:
                await self.round()
            except CacheAway as error:
                log.debug("quotes are not in the cache", error=str(error))
                self.counts.failed += 1
                await asyncio.sleep(AWAY_S)

    async def round(self) -> None:
        """Write what changed since the last one. Raises CacheAway: it waits, and newer values take its place."""
        market, waiting = self.market, self._waiting
        taken, now_us = time.monotonic(), market.clock()
        for symbol in market.tape.moved():
            waiting.setdefault(symbol, None)
        for best in market.nbbo.to_keep(now_us):
            waiting[best.symbol] = best
        if waiting:
            tape = market.tape
            found = [
                (symbol, Known(best or market.nbbo.last(symbol, now_us), tape.last(symbol)))
                for symbol, best in waiting.items()
            ]
            await self.cache.write(found, now_us)
            self.counts.written += len(found)
            self._waiting = {}
            self.counts.rounds += 1
            self.counts.lag_ms = (time.monotonic() - self._since) * 1e3
        self._since = taken
        self.on_written(taken)
