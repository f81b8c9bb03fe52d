"""A gateway's projection, a process of its own: `python -m bench.gateway_following` reads a Spec, then words, on stdin.

It follows a node's feed with all projectors that a gateway has, and keeps times. Words, a line each: `measure` begins
anew, `report` ends a measurement and prints a Result. Without words to come (`until_index`) it prints one Result when
it has reached that index. Before that it prints `ready` when it has everything that there is.
"""

import asyncio
import gc
import logging
import sys
import time
from array import array
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
import msgspec
import structlog
import uvloop
from msgspec import Struct

from bench.load import cpu_s
from bench.stats import Spread, spread
from gateway.cache.client import connect
from gateway.cache.server import CacheServer
from gateway.cache.state import StateCache
from gateway.feeds.clock import now_us
from gateway.follow import Follower
from gateway.market.intake import MarketData
from gateway.marks import Marks
from gateway.projection.accounts import Accounts
from gateway.projection.books import Books
from gateway.projection.host import Projection, micros
from gateway.projection.projector import Batch
from gateway.tasks import end
from gateway.views.leaderboard import Leaderboard
from gateway.views.portfolio import Portfolios

READY_MS = 1_500
"""A node says once a second that there is nothing newer."""
LOOK_S = 0.02
VIEWS_S = 0.5
CURRENCY = "USD"


class Spec(Struct):
    """cached: write to a cache server, started for it. until_index: see the module; 0: words."""

    nodes: list[str]
    token: str
    cached: bool = False
    until_index: int = 0


class Result(Struct):
    """busiest_per_s: events in the busiest second. lag: of events, from the leader's stamp of the oldest event of their
    message until they were projected. cache_behind_ms: how much later the cache had it all. view_us: one portfolio's
    view and its JSON. reached: (log index, microseconds since 1970) of each message.
    """

    events: int
    messages: int
    seconds: float
    busiest_per_s: int
    lag: Spread
    cpu_s: float
    cache_cpu_s: float
    cache_state: str
    cache_behind_ms: float
    snapshots: int
    accounts: int
    view_us: float
    reached: list[tuple[int, int]]


class Following:
    """The parts of a gateway that events reach, and when they did."""

    def __init__(self, spec: Spec, session: aiohttp.ClientSession, cache: StateCache | None) -> None:
        self.market = MarketData(now_us)
        self.accounts = Accounts()
        self.portfolios = Portfolios(self.accounts.instruments, self.accounts.scales)
        self.marks = Marks(self.market, self.accounts.instruments, lambda: self.portfolios.cash_assets, CURRENCY)
        leaderboard = Leaderboard(self.accounts.accounts, self.marks.price)
        books = Books(self.market.take, now_us)
        self.projection = Projection((self.accounts, books, self.portfolios, leaderboard), cache)
        self.projection.on_batch.append(self._count)
        self.follower = Follower(session, lambda: spec.nodes, lambda: spec.token, self.projection)
        self.cache_pid = 0
        self.begin()

    def begin(self) -> None:
        """Measure from now on."""
        self.events = 0
        self._first_s = self._last_s = 0.0
        self._lags_ms, self._counts = array("d"), array("q")
        self._indexes, self._times_us = array("q"), array("q")
        self._cpu_s = time.process_time()
        self._cache_cpu_s = cpu_s(self.cache_pid) if self.cache_pid else 0.0

    def _count(self, batch: Batch) -> None:
        at_us = now_us()
        self._last_s = time.monotonic()
        if not self.events:
            self._first_s = self._last_s
        self.events += len(batch.events)
        self._lags_ms.append((at_us - micros(batch.events[0].at)) / 1e3)
        self._counts.append(len(batch.events))
        self._indexes.append(batch.position.index)
        self._times_us.append(at_us)

    def result(self, *, since_s: float = 0.0, cache_behind_ms: float = 0.0) -> Result:
        used_s = time.process_time() - self._cpu_s
        counted = zip(self._lags_ms, self._counts, strict=True)
        by_second: Counter[int] = Counter()
        for at_us, count in zip(self._times_us, self._counts, strict=True):
            by_second[at_us // 1_000_000] += count
        return Result(
            events=self.events,
            messages=len(self._counts),
            seconds=max(self._last_s - (since_s or self._first_s), 1e-9),
            busiest_per_s=max(by_second.values(), default=0),
            lag=spread([lag for lag, count in counted for _ in range(count)]),
            cpu_s=used_s,
            cache_cpu_s=cpu_s(self.cache_pid) - self._cache_cpu_s if self.cache_pid else 0.0,
            cache_state=self.projection.cache_state,
            cache_behind_ms=cache_behind_ms,
            snapshots=self.follower.counters["snapshots"],
            accounts=len(self.accounts.accounts),
            view_us=self._view_us(),
            reached=list(zip(self._indexes, self._times_us, strict=True)),
        )

    def _view_us(self) -> float:
        encode, view, mark = msgspec.json.Encoder().encode, self.portfolios.view, self.marks.mark
        accounts, views, began = list(self.accounts.accounts.values()), 0, time.process_time()
        while accounts and time.process_time() - began < VIEWS_S:
            for account in accounts:
                encode(view(account, mark))
            views += len(accounts)
        return (time.process_time() - began) / max(views, 1) * 1e6

    async def in_cache(self, cache: StateCache) -> None:
        """Wait until the cache holds all of it."""
        while cache.stored != str(self.projection.position):  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(LOOK_S / 10)


async def follow(spec: Spec) -> None:
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        cache: StateCache | None = None
        cache_pid: int | None = None
        if spec.cached:
            # Not below the folder of the run: the path of a socket is short, and a cache writes nothing to disk.
            server = CacheServer(Path(stack.enter_context(TemporaryDirectory(prefix="tiebreak-"))))
            await server.start()
            stack.push_async_callback(server.stop)
            client = connect(server.url)
            stack.push_async_callback(client.aclose)
            cache, cache_pid = (
                StateCache(client, "bench", ("accounts", "books", "portfolios", "leaderboard")),
                server.pid,
            )
        following = Following(spec, session, cache)
        following.cache_pid = cache_pid or 0
        following.begin()
        gc.collect()
        gc.freeze()
        began = time.monotonic()
        tasks = [asyncio.create_task(following.follower.run()), asyncio.create_task(following.projection.keep_cache())]
        stack.push_async_callback(end, *tasks)
        if spec.until_index:
            await following.projection.wait_for(spec.until_index, timeout_ms=600_000)
            reached = time.monotonic()
            if cache is not None:
                await following.in_cache(cache)
            behind_ms = (time.monotonic() - reached) * 1e3
            say(msgspec.json.encode(following.result(since_s=began, cache_behind_ms=behind_ms)))
            return
        while not 0 <= following.projection.standing.staleness_ms < READY_MS:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(LOOK_S)
        say(b"ready")
        while word := (await loop.run_in_executor(None, sys.stdin.buffer.readline)).strip():
            if word == b"measure":
                following.begin()
            elif word == b"report":
                say(msgspec.json.encode(following.result()))


def say(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    uvloop.run(follow(msgspec.json.decode(sys.stdin.buffer.readline(), type=Spec)))
