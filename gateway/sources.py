"""Runs the market data sources that a gateway's file names: simulated venues, live ones, and recordings."""

import asyncio
import re
from pathlib import Path
from typing import Protocol

import structlog

from gateway.config import Feed
from gateway.feeds.breaker import State
from gateway.feeds.clock import now_us
from gateway.feeds.live import LIVE, LiveFeed
from gateway.feeds.recorded import open_recording
from gateway.feeds.recorder import Recorder
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
    """A venue on the network. recordings: where what it sends is written down, if the file says so."""

    def __init__(self, feed: Feed, sink: Sink, recordings: Path) -> None:
        self.name = feed.name or feed.venue
        handler, url = LIVE[feed.venue]
        self.recorder: Recorder | None = None
        if feed.record:
            self.recorder = _recorder(feed, recordings)
        self.feed = LiveFeed(handler(pairs(feed.symbols)), feed.url or url, sink, tap=self.recorder)

    @property
    def state(self) -> str:
        if self.feed.breaker.state is not State.CLOSED:
            return self.feed.breaker.state.name.lower()
        return "up" if self.feed.counts.is_up else "down"

    async def run(self) -> None:
        try:
            await self.feed.run()
        finally:
            if self.recorder is not None:
                self.recorder.close()


def _recorder(feed: Feed, folder: Path) -> Recorder | None:
    """None where there is no room to record: the feed goes on without."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", feed.name or feed.venue)
    began_us = now_us()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        kept_bytes = 0
        for older in sorted(folder.glob(f"{name}.*.jsonl.gz"), reverse=True):
            kept_bytes += older.stat().st_size
            if kept_bytes > feed.record_bytes_max:
                older.unlink()
        path = folder / f"{name}.{began_us}.jsonl.gz"
        return Recorder(path, feed.venue, began_us=began_us, bytes_max=feed.record_bytes_max)
    except OSError as error:
        log.error("nothing is recorded", feed=name, error=str(error))
        return None


def make_source(feed: Feed, sink: Sink, recordings: Path) -> Source:
    """kind was checked by the config. recordings: a folder for what live feeds receive."""
    if feed.kind == "live":
        return LiveSource(feed, sink, recordings)
    return SimulatedSource(feed, sink) if feed.kind == "simulator" else RecordedSource(feed, sink)
