"""The benchmark of where the time of one quote goes: from a venue's frame to a client's, stage by stage."""

import asyncio
import contextlib
import signal
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean
from time import monotonic_ns

import msgspec
from msgspec import Struct

from bench import host
from bench.fanout_case import free_port
from bench.progress import steps
from bench.report import Curve, Figure, Report
from bench.running import RunError, run_loop
from bench.spans import staged
from bench.spans.quote_core import Spec, Up
from bench.spans.quote_kinds import Cached, Fed, Handed, Published, Wrote
from bench.spans.quote_load import Ends
from bench.spans.quote_path import GROUPS, STAGES, Quotes
from bench.spans.stamps import Stamps
from bench.stats import Spread, spread
from gateway.tasks import end

SYMBOLS = 500
TRACED = 10
"""Clients of a load whose quotes are noted."""
START_S = 30.0
WARM_UP_S = 0.7
DRAIN_S = 0.6
"""For the last quotes to reach their clients."""


class Load(Struct, frozen=True):
    """per_s: quotes of all symbols together. each: symbols of a client."""

    clients: int
    symbols: int
    per_s: int
    each: int = 10


LOADS = {
    "1 client, 100/s": Load(1, 10, 100),
    "100 clients, 1,000/s": Load(100, 100, 1_000),
    "1,000 clients, 3,000/s": Load(1_000, 300, 3_000),
}


class Window(Struct, frozen=True):
    began: int
    ended: int

    def has(self, at: int) -> bool:
        return self.began <= at <= self.ended


def quote(folder: Path, *, seconds: float = 3, workers: int = 1) -> Report:
    """Where the time of one quote goes, stage by stage, from a venue's frame to its client."""
    began = time.monotonic()
    root = folder / "spans-quote"
    root.mkdir(parents=True, exist_ok=True)
    with steps("loads", len(LOADS)) as begin, tempfile.TemporaryDirectory(prefix="tbq") as short:
        windows, load = run_loop(_played(root, short, seconds, workers, begin))
        core = Stamps.read(root / "core.stamps")
        quotes = Quotes(core, {n: Stamps.read(root / f"worker-{n}.stamps") for n in range(workers)}, load)
    curves: list[Curve] = []
    figures: list[Figure] = []
    notes: list[str] = []
    percentiles: dict[str, Spread] = {}
    for name, window in windows.items():
        mine = [one for one in quotes.got if one.quote in quotes.asked and window.has(quotes.asked[one.quote].began)]
        if not mine:
            raise RunError(f"{name}: no quote reached a client")
        found = [quotes.passed(one) for one in mine]
        cached = _cached(core, window)
        whole = staged.latency(found)
        curves += staged.stacks(f"A quote from venue to client: {name}", found, GROUPS, "mean of quotes")
        percentiles |= {**staged.spreads(name, found, STAGES), f"{name}: in the cache": cached}
        figures += [
            *staged.check(name, found),
            Figure("  p50", whole.p50_ms, "ms"),
            Figure("  p99", whole.p99_ms, "ms"),
            Figure("  beside it, from its receipt to the cache, p50", cached.p50_ms, "ms"),
            Figure("  the same, p99", cached.p99_ms, "ms"),
            *_cpu(core, quotes, window),
            *staged.tables(found, GROUPS),
        ]
        notes.append(staged.note(name, found, STAGES))
    return Report(
        benchmark="spans-quote",
        figures=figures,
        settings={
            "workers": workers,
            "seconds": seconds,
            "venue": "Kraken's WebSocket v1, ticker, a frame for each quote",
            "clients": "msgpack, 10 symbols each, channel nbbo",
            "noted": f"{TRACED} clients of each load",
            "files in": staged.place(folder),
        },
        host=host.describe(folder),
        seconds=time.monotonic() - began,
        notes=[
            "the gateway is bench.spans.quote_core and quote_worker: the product's parts, and a moment noted a stage",
            "a quote that a newer one replaced before a round is in none of this: what came to a client is",
            "in the middle: mean of those between p45 and p55 by latency; slow: between p98 and p99.5; means add up",
            *notes,
        ],
        curves=curves,
        percentiles=percentiles,
    )


async def _played(
    root: Path, short: str, seconds: float, workers: int, begin: Callable[[str], object]
) -> tuple[dict[str, Window], Stamps]:
    """All loads against one gateway; when each was measured, and what venue and clients noted. Raises RunError."""
    ends = Ends([f"S{number}" for number in range(SYMBOLS)])
    venue = await ends.listen(free_port(["127.0.0.1"]))
    spec = Spec(str(root), short, venue, [(one, one) for one in ends.symbols], workers)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "bench.spans.quote_core", msgspec.json.encode(spec).decode(),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    sending = asyncio.create_task(ends.venue.run(200))
    windows: dict[str, Window] = {}
    try:
        async with asyncio.timeout(START_S):
            line = await process.stdout.readline() if process.stdout is not None else b""
        if not line:
            raise RunError("the gateway's core did not come up")
        up = msgspec.json.decode(line, type=Up)
        for name, load in LOADS.items():
            begin(name)
            await end(sending)
            ends.venue.symbols = ends.symbols[: load.symbols]
            sending = asyncio.create_task(ends.venue.run(load.per_s))
            await ends.connect(
                up.port, up.token, clients=load.clients, symbols=ends.venue.symbols, each=load.each, traced=TRACED
            )
            await asyncio.sleep(WARM_UP_S)
            ends.venue.noted, began = True, monotonic_ns()
            await asyncio.sleep(seconds)
            ends.venue.noted, ended = False, monotonic_ns()
            await asyncio.sleep(DRAIN_S)
            ends.leave()
            windows[name] = Window(began, ended)
        process.send_signal(signal.SIGUSR1)
        await _written([root / "core.stamps", *(root / f"worker-{number}.stamps" for number in range(workers))])
    except (ConnectionError, TimeoutError) as error:
        raise RunError(f"the gateway's streams: {type(error).__name__}: {error}") from error
    finally:
        await end(sending)
        ends.close()
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(10.0):
                    await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()
    return windows, ends.stamps


async def _written(paths: Iterable[Path]) -> None:
    """Raises TimeoutError."""
    async with asyncio.timeout(10.0):
        for path in paths:
            while not path.exists():  # noqa: ASYNC110
                await asyncio.sleep(0.02)


def _cached(core: Stamps, window: Window) -> Spread:
    """From the receipt of each quote until it, or a newer one of its symbol, was in the cache."""
    rounds = [Cached._make(row) for row in core.rows("Cached")]
    taken = [one.taken for one in rounds]
    waits: list[float] = []
    for fed in map(Fed._make, core.rows("Fed")):
        at = bisect_left(taken, fed.took)
        if window.has(fed.taken) and at < len(rounds):
            waits.append((rounds[at].written - fed.taken) / 1e6)
    return spread(waits)


def _cpu(core: Stamps, quotes: Quotes, window: Window) -> list[Figure]:
    fed = [one for one in map(Fed._make, core.rows("Fed")) if window.has(one.taken)]
    wrote: list[Wrote] = [one for _, one in quotes.wrote.values() if window.has(one.writing)]
    rounds = {one.began for one in map(Handed._make, core.rows("Handed")) if window.has(one.began)}
    published = [one for one in map(Published._make, core.rows("Published")) if window.has(one.ticked)]
    if not (fed and wrote and published):
        return []
    return [
        Figure("  CPU of the core for a quote: normalised", fmean(one.feed_cpu for one in fed) / 1e3, "us"),
        Figure("  CPU of the core for a quote: best price, tape", fmean(one.take_cpu for one in fed) / 1e3, "us"),
        Figure("  CPU of a worker for a client's frame", fmean(one.cpu for one in wrote) / 1e3, "us"),
        Figure("  quotes that came, of one published", len(fed) / len(published)),
        Figure("  quotes in a round of the core, mean", len(published) / max(1, len(rounds))),
    ]
