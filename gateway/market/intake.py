"""All market data of one gateway: each batch of ticks goes to the NBBO, the bars, the tape, the books and the log."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from msgspec import Struct

from gateway.feeds.coinbase import Coinbase
from gateway.feeds.iex import IexTops
from gateway.feeds.kraken import Kraken
from gateway.feeds.ticks import Tick
from gateway.market.books import Books
from gateway.market.candles import Candle, Candles, Retention
from gateway.market.nbbo import TTL_US, Nbbo, NbboBook
from gateway.market.tape import Tape
from gateway.market.ticklog import TickLog

TTLS_US = {"kraken": Kraken.ttl_us, "coinbase": Coinbase.ttl_us, "iex": IexTops.ttl_us}
"""Venues whose heartbeats come once a second, by the names that their handlers have unless told otherwise."""


class Changes(Struct, frozen=True):
    """What changed since they were last taken: for the fan-out, once per tick of its own."""

    quotes: list[Nbbo]
    traded: list[str]
    """The symbols that had trades: their open bars and last prices changed."""
    closed: list[Candle]


class MarketData:
    """`take` is the sink of every feed. Everything is in memory but the log; the clock is the caller's."""

    def __init__(
        self,
        clock: Callable[[], int],
        *,
        log_folder: Path | None = None,
        log_quotes: bool = True,
        ttl_us: int = TTL_US,
        ttls_us: Mapping[str, int] | None = None,
        silent_symbols: Collection[str] = (),
        retention: Retention | None = None,
    ) -> None:
        """clock: now in microseconds since 1970. log_folder: None keeps no tick log; log_quotes: see TickLog.
        ttl_us, ttls_us, silent_symbols: how long a venue may be silent, see NbboBook. None: TTLS_US.
        """
        longest = {venue: max(own_us, ttl_us) for venue, own_us in (TTLS_US if ttls_us is None else ttls_us).items()}
        self.clock = clock
        self.nbbo = NbboBook(ttl_us=ttl_us, ttls_us=longest, silent_symbols=silent_symbols)
        self.candles = Candles(retention=retention)
        self.tape = Tape()
        self.books = Books()
        self.log = TickLog(log_folder, quotes=log_quotes) if log_folder is not None else None
        self.ticks = 0

    def take(self, ticks: list[Tick]) -> None:
        """Take ticks from a feed, at once; it never waits for a disk or a reader."""
        now_us = self.clock()
        self.ticks += len(ticks)
        self.nbbo.apply(ticks, now_us)
        self.candles.apply(ticks, now_us)
        self.tape.apply(ticks)
        self.books.apply(ticks)
        if self.log is not None:
            self.log.append(ticks, now_us)

    def changes(self) -> Changes:
        """What changed since the last call; bars and quotes whose time is over are closed and dropped first."""
        now_us = self.clock()
        self.candles.advance(now_us)
        return Changes(self.nbbo.changed(now_us), self.candles.changed(), self.candles.closed())

    def close(self) -> None:
        if self.log is not None:
            self.log.close()
