"""One core that takes market data, a process of its own: `python -m bench.gateway_intake` reads a Spec on stdin.

Ticks are made beforehand. First they come when they are due, as from venues; then all at once, to see what a core can
take. What is measured runs as in a gateway: NBBO, bars, tape, books and tick log; what changed is written to a cache
server every 25 ms and taken out every 100 ms; the log is flushed every 100 ms, and synced every second from a thread.
"""

import asyncio
import gc
import logging
import os
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import structlog
import uvloop
from msgspec import Struct

from bench.load import cpu_s, waited_s
from bench.stats import Spread, spread
from gateway.cache.client import connect
from gateway.cache.keeper import QuoteKeeper
from gateway.cache.quotes import CacheQuotes
from gateway.cache.server import CacheServer
from gateway.feeds.ticks import Tick
from gateway.market.intake import MarketData
from gateway.market.measure import capture_shares, made_ticks, zipf_shares
from gateway.market.ticklog import TickLog

TAKEN_OUT_S = 0.1
FLUSH_S = 0.1
SYNC_S = 1.0
ZIPF = 0.9
"""What IEX's capture fits, where it is not there."""


class Spec(Struct):
    """capture: an IEX recording whose symbols' shares are used; empty: Zipf. log_folder: empty for no tick log.

    core: the CPU to stay on; -1: any. The cache server is not held to it.
    """

    symbols: int
    per_symbol_s: int = 10
    venues: int = 8
    warmup_s: float = 1.0
    seconds: float = 5.0
    capture: str = ""
    log_folder: str = ""
    core: int = -1
    seed: int = 1


class Result(Struct):
    """lag: of updates, from when they were received to when answers know them.

    age: of updates when they were taken out for the fan-out, so with the time that they waited for that.
    busiest: the share of all updates that the busiest symbol and the busiest tenth of the symbols have.
    most_*: everything at once.
    """

    updates: int
    seconds: float
    lag: Spread
    cached: Spread
    cache_cpu_s: float
    written: int
    rounds: int
    all_seconds: float
    """With the warm-up, which cache_cpu_s and written count too."""
    own: Spread
    age: Spread
    waited_s: float
    cpu_s: float
    changed: int
    closed_bars: int
    log_bytes_per_update: float
    log_lost: int
    busiest: tuple[float, float]
    quoted: int
    most_per_s: float
    most_per_cpu_s: float
    most_batch_ms: float
    peak_mib: float


class Paced:
    """Updates when they are due. The clock is the ticks' own, and runs with ours."""

    def __init__(self, batches: list[tuple[int, list[Tick]]], market_folder: Path | None, warmup_s: float) -> None:
        self._batches = batches
        self._first_us = batches[0][0]
        self._began = 0.0
        self._measured_us = self._first_us + round(warmup_s * 1e6)
        self.market = MarketData(self.clock, log_folder=market_folder)
        self.lags: list[tuple[float, int]] = []
        """(milliseconds, updates) of each batch."""
        self.ages: list[tuple[float, int]] = []
        self.cached: list[tuple[float, int]] = []
        self.cache_cpu_s = 0.0
        self.written = self.rounds = 0
        self._uncached: list[tuple[float, int, int]] = []
        """(monotonic time when they were taken in, due, updates), not known to be in the cache yet."""
        self.changed = self.closed = 0
        self._waiting: list[tuple[int, int]] = []
        """(due, updates) since what changed was last taken out."""
        self.steps: list[tuple[float, float, int]] = []
        """(due, CPU time since the step before, updates), in seconds, of each batch."""
        self.cpu_s = self.seconds = self.waited_s = 0.0

    def clock(self) -> int:
        return self._first_us + int((time.perf_counter() - self._began) * 1e6)

    async def run(self) -> None:
        async with AsyncExitStack() as stack:
            # A short folder, for the sake of the unix socket.
            server = CacheServer(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tb"))))
            await server.start()
            stack.push_async_callback(server.stop)
            if server.pid is not None:
                os.sched_setaffinity(server.pid, range(os.cpu_count() or 1))
            client = connect(server.url)
            stack.push_async_callback(client.aclose)
            keeper = QuoteKeeper(self.market, CacheQuotes(client, "bench"))
            keeper.on_written = self._is_cached
            await self._run(keeper, server.pid or 0)

    async def _run(self, keeper: QuoteKeeper, cache_pid: int) -> None:
        self._began = time.perf_counter()
        beside = [asyncio.create_task(self._take_out()), asyncio.create_task(keeper.run())]
        if self.market.log is not None:
            beside.append(asyncio.create_task(self._keep_log(self.market.log)))
        try:
            cache_before = cpu_s(cache_pid)
            await self._feed()
            self.cache_cpu_s = cpu_s(cache_pid) - cache_before
            self.written, self.rounds = keeper.counts.written, keeper.counts.rounds
            while self._uncached:  # noqa: ASYNC110 - the last round tells nobody but us
                await asyncio.sleep(0.01)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    def _is_cached(self, taken_s: float) -> None:
        now_us, place = self.clock(), 0
        for at_s, due_us, count in self._uncached:
            if at_s > taken_s:
                break
            self.cached.append(((now_us - due_us) / 1e3, count))
            place += 1
        del self._uncached[:place]

    async def _feed(self) -> None:
        cpu_before, measured_from, waited_before = time.process_time(), 0.0, 0.0
        step_before = time.thread_time()
        clock, take = self.clock, self.market.take
        for due_us, ticks in self._batches:
            early_us = due_us - clock()
            # A gateway reads from its sockets between all that it does, so give the others their turn in any case.
            await asyncio.sleep(max(0.0, early_us / 1e6))
            if due_us >= self._measured_us and not measured_from:
                cpu_before, measured_from = time.process_time(), time.perf_counter()
                waited_before = waited_s()
            take(ticks)
            if measured_from:
                self.lags.append(((clock() - due_us) / 1e3, len(ticks)))
                self._waiting.append((due_us, len(ticks)))
                self._uncached.append((time.monotonic(), due_us, len(ticks)))
                step = time.thread_time()
                self.steps.append((due_us / 1e6, step - step_before, len(ticks)))
                step_before = step
            else:
                step_before = time.thread_time()
        self.waited_s = waited_s() - waited_before
        self.cpu_s = time.process_time() - cpu_before
        self.seconds = time.perf_counter() - measured_from

    async def _take_out(self) -> None:
        while True:
            await asyncio.sleep(TAKEN_OUT_S)
            changes = self.market.changes()
            now_us = self.clock()
            self.changed += len(changes.quotes)
            self.closed += len(changes.closed)
            self.ages += [((now_us - due_us) / 1e3, count) for due_us, count in self._waiting]
            self._waiting.clear()

    async def _keep_log(self, log: TickLog) -> None:
        loop, synced = asyncio.get_running_loop(), time.monotonic()
        while True:
            await asyncio.sleep(FLUSH_S)
            log.flush()
            if time.monotonic() - synced >= SYNC_S:
                synced = time.monotonic()
                await loop.run_in_executor(None, log.sync)


def weighed(samples: list[tuple[float, int]]) -> Spread:
    """Of updates: each batch counts as often as it has any."""
    return spread([value for value, count in samples for _ in range(count)])


def on_an_own_core(steps: list[tuple[float, float, int]]) -> list[tuple[float, int]]:
    """(lag in milliseconds, updates): each step begins when it is due and the one before has ended."""
    ended = 0.0
    lags = []
    for due, took, count in steps:
        ended = max(ended, due) + took
        lags.append(((ended - due) * 1e3, count))
    return lags


def at_most(batches: list[tuple[int, list[Tick]]], log_folder: Path | None) -> tuple[float, float, float]:
    """Everything at once: updates a second, updates for a second of CPU, a batch's p99 in milliseconds."""
    now = [batches[0][0]]
    market = MarketData(lambda: now[0], log_folder=log_folder)
    took: list[float] = []
    began, cpu = time.perf_counter(), time.process_time()
    for number, (now_us, ticks) in enumerate(batches):
        before = time.process_time()
        now[0] = now_us
        market.take(ticks)
        if number % 10 == 9:
            market.changes()
            if market.log is not None:
                market.log.flush()
        took.append((time.process_time() - before) * 1e3)
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    market.close()
    updates = sum(len(ticks) for _, ticks in batches)
    return updates / seconds, updates / cpu_s, spread(took).p99_ms


def _shares(spec: Spec) -> list[float]:
    if spec.capture:
        return capture_shares(Path(spec.capture), spec.symbols)
    return zipf_shares(spec.symbols, ZIPF)


def _peak_mib() -> float:
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    found = next((line for line in lines if line.startswith("VmHWM")), "VmHWM: 0 kB")
    return int(found.split()[1]) / 1024


def run(spec: Spec) -> Result:
    if spec.core >= 0:
        os.sched_setaffinity(0, {spec.core})
    shares = _shares(spec)
    per_s = spec.symbols * spec.per_symbol_s
    batches = made_ticks(
        shares, updates=round(per_s * (spec.warmup_s + spec.seconds)), updates_per_s=per_s, venues=spec.venues,
        seed=spec.seed,
    )  # fmt: skip
    logs = Path(spec.log_folder) if spec.log_folder else None
    # The ticks that wait here are the bench's: a gateway has none of them for the collector to go through.
    gc.collect()
    gc.freeze()
    paced = Paced(batches, None if logs is None else logs / "paced", spec.warmup_s)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(paced.run())
    market, log = paced.market, paced.market.log
    market.close()
    peak_mib = _peak_mib()
    most = at_most(batches, None if logs is None else logs / "most")
    total, tenth = sum(shares), max(1, spec.symbols // 10)
    return Result(
        updates=sum(count for _, count in paced.lags),
        seconds=paced.seconds,
        lag=weighed(paced.lags),
        cached=weighed(paced.cached),
        cache_cpu_s=paced.cache_cpu_s,
        written=paced.written,
        rounds=paced.rounds,
        all_seconds=spec.warmup_s + paced.seconds,
        own=weighed(on_an_own_core(paced.steps)),
        age=weighed(paced.ages),
        waited_s=paced.waited_s,
        cpu_s=paced.cpu_s,
        changed=paced.changed,
        closed_bars=paced.closed,
        log_bytes_per_update=log.file_bytes / market.ticks if log is not None else 0.0,
        log_lost=log.lost if log is not None else 0,
        busiest=(shares[0] / total, sum(shares[:tenth]) / total),
        quoted=sum(1 for _ in market.nbbo.symbols()),
        most_per_s=most[0],
        most_per_cpu_s=most[1],
        most_batch_ms=most[2],
        peak_mib=peak_mib,
    )


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))  # stdout is the result's
    sys.stdout.buffer.write(msgspec.json.encode(run(msgspec.json.decode(sys.stdin.buffer.read(), type=Spec))))
