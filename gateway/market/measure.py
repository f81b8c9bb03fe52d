"""How much market data one core takes: ticks with a real skew of symbols through NBBO and candles."""

import random
import time
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from msgspec import Struct

from gateway.feeds.recorded import open_recording
from gateway.feeds.ticks import E9, Quote, Tick, Trade
from gateway.market.candles import Candles
from gateway.market.intake import MarketData
from gateway.market.nbbo import NbboBook

CENT_E9 = E9 // 100
BATCH_US = 10_000
"""Ticks come in as they would from a socket: what gathered in 10 ms."""


class Measured(Struct, frozen=True):
    """updates_per_s: of processing time alone. The shares are of that time."""

    symbols: int
    venues: int
    updates: int
    updates_per_s: int
    us_per_update: float
    nbbo_share: float
    candles_share: float
    batch_us_p99: int
    """The longest that 99 % of the batches took: what the last tick of a batch waits."""


def capture_shares(path: Path, count: int) -> list[float]:
    """The shares of the `count` busiest symbols of a recording, the busiest first."""
    seen: Counter[str] = Counter()
    for _, ticks in open_recording(path).batches():
        seen.update(tick.symbol for tick in ticks if isinstance(tick, Quote | Trade))
    most = [updates for _, updates in seen.most_common(count)]
    # A capture of minutes has fewer symbols than a day: the rest are as quiet as its quietest.
    return [float(updates) for updates in most] + [1.0] * (count - len(most))


def zipf_shares(count: int, exponent: float = 0.9) -> list[float]:
    """Where there is no capture."""
    return [1 / (rank + 1) ** exponent for rank in range(count)]


def made_ticks(
    shares: Sequence[float],
    *,
    updates: int,
    updates_per_s: int,
    venues: int = 8,
    trade_share: float = 0.2,
    seed: int = 1,
) -> list[tuple[int, list[Tick]]]:
    """(now, ticks) batches of 10 ms, made before anything is measured."""
    chance = random.Random(seed)
    symbols = [f"S{rank:04d}" for rank in range(len(shares))]
    prices = [chance.randint(500, 50_000) for _ in symbols]
    weights = list(accumulate(shares))
    began_us = 1_700_000_000_000_000
    per_batch = max(updates_per_s * BATCH_US // 1_000_000, 1)
    batches: list[tuple[int, list[Tick]]] = []
    for start in range(0, updates, per_batch):
        now_us = began_us + start * 1_000_000 // updates_per_s
        ticks: list[Tick] = []
        for rank in chance.choices(range(len(symbols)), cum_weights=weights, k=min(per_batch, updates - start)):
            prices[rank] += chance.choice((-1, 0, 0, 1)) if prices[rank] > 100 else 1
            price_e9, venue = prices[rank] * CENT_E9, f"venue-{int(chance.random() * venues)}"
            if chance.random() < trade_share:
                ticks.append(Trade(symbols[rank], venue, price_e9, 100 * E9, now_us - 300, now_us, "1"))
            else:
                sizes = chance.randint(1, 9) * 100 * E9, chance.randint(1, 9) * 100 * E9
                away_e9 = chance.randint(1, 3) * CENT_E9
                bid_e9, ask_e9 = price_e9 - away_e9, price_e9 + away_e9
                ticks.append(Quote(symbols[rank], venue, bid_e9, sizes[0], ask_e9, sizes[1], now_us - 300, now_us))
        batches.append((now_us, ticks))
    return batches


def measure(batches: Sequence[tuple[int, list[Tick]]], *, flush_every: int = 10) -> Measured:
    """Run them through; every `flush_every` batches what changed is taken out, as the fan-out does."""
    nbbo, candles = NbboBook(), Candles()
    clock = time.process_time_ns  # of this process: others may run on the core as well
    nbbo_ns = candles_ns = updates = 0
    took_ns: list[int] = []
    venues: set[str] = set()
    for number, (now_us, ticks) in enumerate(batches):
        began = clock()
        nbbo.apply(ticks, now_us)
        if number % flush_every == 0:
            nbbo.changed(now_us)
        between = clock()
        candles.apply(ticks, now_us)
        if number % flush_every == 0:
            candles.changed()
        ended = clock()
        nbbo_ns += between - began
        candles_ns += ended - between
        took_ns.append(ended - began)
        updates += len(ticks)
        venues.update(tick.venue for tick in ticks)
    total_ns = max(nbbo_ns + candles_ns, 1)
    took_ns.sort()
    return Measured(
        symbols=sum(1 for _ in nbbo.symbols()),
        venues=len(venues),
        updates=updates,
        updates_per_s=round(updates * 1e9 / total_ns),
        us_per_update=round(total_ns / 1000 / max(updates, 1), 2),
        nbbo_share=round(nbbo_ns / total_ns, 2),
        candles_share=round(candles_ns / total_ns, 2),
        batch_us_p99=took_ns[len(took_ns) * 99 // 100] // 1000 if took_ns else 0,
    )


class MeasuredWhole(Struct, frozen=True):
    """From the venue's bytes to the books and the log, as `MarketData.take` does it."""

    frames: int
    ticks: int
    ticks_per_s: int
    decode_share: float
    log_bytes_per_tick: int


def measure_recording(path: Path, *, log_folder: Path | None = None, rounds: int = 1) -> MeasuredWhole:
    """A recording's frames, read beforehand, through its handler and all of `MarketData`, on one core."""
    now = [0]
    market = MarketData(lambda: now[0], log_folder=log_folder)
    clock = time.process_time_ns
    decode_ns = rest_ns = frames_seen = ticks_seen = 0
    try:
        for _ in range(rounds):
            recording = open_recording(path)
            frames = list(recording.frames())
            handler = recording.handler
            handler.opening()
            for number, frame in enumerate(frames):
                began = clock()
                if frame.key:
                    ticks = handler.fetched(frame.key, frame.data, frame.receive_us)
                else:
                    ticks = handler.feed(frame.data, frame.receive_us)
                between = clock()
                now[0] = max(frame.receive_us, now[0])
                market.take(ticks)
                if number % 500 == 0:
                    market.changes()
                decode_ns += between - began
                rest_ns += clock() - between
                ticks_seen += len(ticks)
            frames_seen += len(frames)
        if market.log is not None:
            market.log.flush()
        log_bytes = sum(day.stat().st_size for day in log_folder.glob("*.ticks")) if log_folder is not None else 0
    finally:
        market.close()
    return MeasuredWhole(
        frames=frames_seen,
        ticks=ticks_seen,
        ticks_per_s=round(ticks_seen * 1e9 / max(decode_ns + rest_ns, 1)),
        decode_share=round(decode_ns / max(decode_ns + rest_ns, 1), 2),
        log_bytes_per_tick=log_bytes // max(ticks_seen, 1),
    )
