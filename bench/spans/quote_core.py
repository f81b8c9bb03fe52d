"""A gateway's core that notes when each quote passes each of its stages: `python -m bench.spans.quote_core SPEC`.

Built from the product's parts as a gateway builds them: a live feed of one venue, market data with tick log and cache
server, the publisher, the hub and worker processes. What is noted comes from subclasses, as in member.py. It says on
stdout where its streams are, once all is up; on SIGUSR1 it writes what was noted, and so do its workers.
"""

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from time import monotonic_ns, thread_time_ns

import msgspec
import structlog
import uvloop
from msgspec import Struct

from bench import fanout_case
from bench.spans.quote_kinds import KINDS, number_of
from bench.spans.stamps import Stamps
from gateway.cache.client import connect
from gateway.cache.keeper import QuoteKeeper
from gateway.cache.quotes import CacheQuotes
from gateway.cache.server import CacheServer
from gateway.fanout.hub import Hub, Round
from gateway.fanout.market import MarketPublisher, changed
from gateway.fanout.topics import Key
from gateway.feeds.clock import now_us
from gateway.feeds.kraken import Kraken
from gateway.feeds.live import LiveFeed
from gateway.feeds.ticks import Quote, Tick
from gateway.market import intake
from gateway.market.intake import Changes, MarketData
from gateway.market.nbbo import NbboBook
from gateway.tasks import end
from gateway.workers import core as workers_core
from gateway.workers.core import WorkerReader

FLUSH_S = 0.1
UP_S = 20.0
stamps = Stamps(KINDS)
add = stamps.add


class Spec(Struct, frozen=True):
    """venue: its WebSocket. symbols: (the venue's name, ours). cache: a short folder, for the unix socket."""

    folder: str
    cache: str
    venue: str
    symbols: list[tuple[str, str]]
    workers: int = 1


class Up(Struct, frozen=True):
    """What is said on stdout. pids: of the core, the cache server and the workers."""

    port: int
    token: str
    pids: dict[str, int]


class Now:
    """What was noted in this turn of the loop, by who sees it first."""

    taken = fed = nbbo = 0
    taken_cpu = 0
    ticked = 0


quote_of: dict[Key, int] = {}
"""The newest quote that was published of each topic."""


class StampedFeed(LiveFeed):
    def _take(self, frame: bytes, key: str) -> None:
        Now.taken, Now.taken_cpu = monotonic_ns(), thread_time_ns()
        super()._take(frame, key)


class StampedKraken(Kraken):
    def feed(self, frame: bytes, receive_us: int) -> list[Tick]:
        ticks = super().feed(frame, receive_us)
        Now.fed = monotonic_ns()
        return ticks


class StampedNbbo(NbboBook):
    def apply(self, ticks: Iterable[Tick], now_us: int) -> None:
        super().apply(ticks, now_us)
        Now.nbbo = monotonic_ns()


class StampedPublisher(MarketPublisher):
    def publish(self, changes: Changes) -> None:
        super().publish(changes)
        published = monotonic_ns()
        for found in changes.quotes:
            key = ("nbbo", found.symbol)
            if key in self.hub.topics:
                quote = quote_of[key] = number_of(found.bid_size_e9)
                add("Published", quote, Now.ticked, published)


class StampedHub(Hub):
    began = marked = 0

    async def flush(self) -> None:
        self.began = monotonic_ns()
        await super().flush()

    def _mark(self) -> None:
        super()._mark()
        self.marked = monotonic_ns()


class StampedReader(WorkerReader):
    def write(self, now: Round) -> int:
        keys = [topic.key for topic in self.dirty]
        writing = monotonic_ns()
        sent = super().write(now)
        if sent and keys and not self.dirty:
            written, hub = monotonic_ns(), self._core.hub
            if isinstance(hub, StampedHub):
                for key in keys:
                    if key in quote_of:
                        add("Handed", quote_of[key], self.number, hub.began, hub.marked, writing, written)
        return sent


class Serving(fanout_case.Serving):
    """Its workers are of this room, and its hub is fed by a market instead of by made-up fragments."""

    def __init__(self, spec: Spec, market: MarketData) -> None:
        self.spec = spec
        super().__init__(Path(spec.cache), workers=spec.workers, catalogue=0, per_s=0, hosts=["127.0.0.1"])
        self.publisher = StampedPublisher(market, self.hub, self.rings, is_listed=lambda _symbol: True)
        self.core.source.providers = self.publisher.providers()

    def _command(self, number: int) -> list[str]:
        *_, options = super()._command(number)
        return [sys.executable, "-P", "-m", "bench.spans.quote_worker", self.spec.folder, options]

    async def publish(self) -> None:
        """As gateway/streams.py does."""
        while True:
            await asyncio.sleep(self.hub.pace.tick_ms / 1000)
            Now.ticked = monotonic_ns()
            changed(self.publisher.market, self.publisher)


def install() -> None:
    vars(intake)["NbboBook"] = StampedNbbo
    vars(fanout_case)["Hub"] = StampedHub
    vars(workers_core)["WorkerReader"] = StampedReader


async def run(spec: Spec) -> None:
    """Until SIGTERM."""
    market = MarketData(now_us, log_folder=Path(spec.folder) / "ticks")
    serving = Serving(spec, market)
    take, note = market.take, serving.publisher.take

    def sink(ticks: list[Tick]) -> None:
        fed_cpu = thread_time_ns()
        take(ticks)
        took = monotonic_ns()
        note(ticks)
        noted, cpu = monotonic_ns(), thread_time_ns()
        for tick in ticks:
            if type(tick) is Quote:
                number = number_of(tick.bid_size_e9)
                spent = fed_cpu - Now.taken_cpu, cpu - fed_cpu
                add("Fed", number, Now.taken, Now.fed, Now.nbbo, took, noted, *spent)

    feed = StampedFeed(StampedKraken(spec.symbols, quotes_from="ticker"), spec.venue, sink)
    leave = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, leave.set)

    def write() -> None:
        for pid in serving.supervisor.pids.values():
            os.kill(pid, signal.SIGUSR1)
        stamps.write(Path(spec.folder) / "core.stamps")

    loop.add_signal_handler(signal.SIGUSR1, write)
    async with AsyncExitStack() as stack:
        server = CacheServer(Path(spec.cache))
        await server.start()
        stack.push_async_callback(server.stop)
        client = connect(server.url)
        stack.push_async_callback(client.aclose)
        keeper = QuoteKeeper(market, CacheQuotes(client, "bench"))
        keeper.on_written = lambda taken_s: add("Cached", round(taken_s * 1e9), monotonic_ns())
        await stack.enter_async_context(serving.running())
        tasks = [asyncio.create_task(work) for work in (feed.run(), serving.publish(), keeper.run(), _keep_log(market))]
        stack.push_async_callback(end, *tasks)
        async with asyncio.timeout(UP_S):
            while not feed.counts.is_up:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        pids = {"cache": server.pid or 0, **{f"worker {at}": pid for at, pid in serving.supervisor.pids.items()}}
        gc.collect()
        gc.freeze()
        sys.stdout.buffer.write(msgspec.json.encode(Up(serving.port, serving.token, pids)) + b"\n")
        sys.stdout.buffer.flush()
        await leave.wait()
    market.close()


async def _keep_log(market: MarketData) -> None:
    while market.log is not None:
        await asyncio.sleep(FLUSH_S)
        market.log.flush()


def main() -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),  # stdout is for what is read
    )
    install()
    uvloop.run(run(msgspec.json.decode(sys.argv[1], type=Spec)))


if __name__ == "__main__":
    main()
