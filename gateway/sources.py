"""Runs the market data sources that a gateway's file names: simulated venues, live ones, and recordings."""

import asyncio
from pathlib import Path
from typing import Protocol

import structlog

from gateway.config import Feed
from gateway.feeds.breaker import State
from gateway.feeds.clock import now_us
from gateway.feeds.live import LIVE, LiveFeed
from gateway.feeds.recorded import open_recording
from gateway.feeds.simulator import Simulator, SimulatorSettings
from gateway.feeds.ticks import E9, Sink

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.feeds")

SIMULATED_EVERY_S = 0.02


class Source(Protocol):
    name: str

    @property
    def state(self) -> str:
        """For metrics and people: `up`, `down`, `open` (its circuit breaker), `ended`."""
        ...

    async def run(self) -> None: ...


def pairs(symbols: list[str]) -> list[tuple[str, str]]:
    """`BTCUSDT=BTC-USD` as (the venue's name, ours); without `=` both are the same."""
    return [(theirs, ours or theirs) for theirs, _, ours in (one.partition("=") for one in symbols)]


class SimulatedSource:
    """Venues that do not exist. Its prices begin where the file says."""

    def __init__(self, feed: Feed, sink: Sink) -> None:
        self.name = feed.name or "simulator"
        self.state = "up"
        venues = {"venues": feed.venues} if feed.venues else {}
        self._simulator = Simulator(
            [ours for _, ours in pairs(feed.symbols)],
            seed=feed.seed,
            settings=SimulatorSettings(updates_per_s=feed.updates_per_s),
            prices_e9={symbol: round(price * E9) for symbol, price in feed.prices.items()},
            **venues,
        )
        self._sink = sink

    async def run(self) -> None:
        while True:
            ticks = self._simulator.ticks(now_us())
            if ticks:
                self._sink(ticks)
            await asyncio.sleep(SIMULATED_EVERY_S)


class RecordedSource:
    """A recording, at its pace times `speed`, as if it happened now."""

    def __init__(self, feed: Feed, sink: Sink) -> None:
        self.name = feed.name or Path(feed.path).name
        self.state = "up"
        self._feed = feed
        self._sink = sink

    async def run(self) -> None:
        """Raises RecordingError: the file is damaged; what came before it was good."""
        while True:
            recording = open_recording(Path(self._feed.path), symbols=pairs(self._feed.symbols) or None)
            try:
                async for _, ticks in recording.replay(speed=self._feed.speed):
                    self._sink(ticks)
            finally:
                self.state = "ended"
            log.info("a recording ended", feed=self.name, again=self._feed.loop)
            if not self._feed.loop:
                return
            self.state = "up"
            await asyncio.sleep(0.1)


class LiveSource:
    """A venue on the network."""

    def __init__(self, feed: Feed, sink: Sink) -> None:
        self.name = feed.name or feed.venue
        handler, url = LIVE[feed.venue]
        self.feed = LiveFeed(handler(pairs(feed.symbols)), feed.url or url, sink)

    @property
    def state(self) -> str:
        if self.feed.breaker.state is not State.CLOSED:
            return self.feed.breaker.state.name.lower()
        return "up" if self.feed.counts.is_up else "down"

    async def run(self) -> None:
        await self.feed.run()


def make_source(feed: Feed, sink: Sink) -> Source:
    """kind was checked by the config."""
    kinds = {"simulator": SimulatedSource, "recording": RecordedSource, "live": LiveSource}
    made: Source = kinds[feed.kind](feed, sink)  # type: ignore[assignment]
    return made
