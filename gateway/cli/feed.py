"""`tiebreak feed replay`: play recorded venue frames through their handler, and show what came of them."""

import asyncio
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from gateway.feeds.clock import now_us
from gateway.feeds.recorded import Recording, RecordingError, open_recording
from gateway.feeds.ticks import BookDiff, BookSnapshot, Quote, Status, Tick, Trade, decimal_text
from gateway.market.intake import MarketData
from gateway.sources import pairs
from node.cli.output import err, print_json, print_table
from node.cli.session import CliError, Json

feed = typer.Typer(add_completion=False, no_args_is_help=True, help="Recorded market data.")

KINDS: dict[type, str] = {Quote: "quote", Trade: "trade", BookSnapshot: "book", BookDiff: "diff", Status: "status"}
TOLD_S = 1.0
SHOWN_MAX = 20


@feed.callback()
def _feed() -> None:
    pass


@feed.command("replay")
def replay(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="As a venue sent it: JSON lines, pcap, LOBSTER, Lean.")],
    speed: Annotated[float, typer.Option(min=0.001, max=1e6, help="So many times as fast as it was.")] = 1.0,
    symbol: Annotated[
        list[str] | None, typer.Option("--symbol", help="Only these; BTC/USD=BTC-USD to rename. May be repeated.")
    ] = None,
    ticks: Annotated[bool, typer.Option("--ticks", help="Print each normalised tick as a JSON line.")] = False,
    seconds: Annotated[float, typer.Option(min=0, help="Stop after so long; 0: at the end.")] = 0.0,
    as_json: Json = False,
) -> None:
    """Play a recording as if it happened now, and show rates, best prices and what was wrong with it.

    It needs no cluster. A gateway plays one with a [[feeds]] entry of kind "recording" (path, speed, loop) in its file.

    Example: tiebreak feed replay kraken-book.jsonl --speed 10

    Example: tiebreak feed replay iex.pcap.gz --speed 100 --symbol AAPL --ticks
    """
    try:
        recording = open_recording(path, symbols=pairs(symbol) if symbol else None)
        result = asyncio.run(_play(recording, speed, ticks=ticks, seconds=seconds))
    except RecordingError as error:
        raise CliError(str(error)) from error
    market, counts, took_s = result
    rows = [_best(market, name) for name in sorted(market.nbbo.symbols())]
    if as_json and not ticks:
        print_json({"seconds": round(took_s, 3), "ticks": dict(counts), "quotes": rows})
    elif not ticks:
        print_table(
            ("symbol", "bid", "ask", "last"),
            [tuple(one[name] or "" for name in ("symbol", "bid", "ask", "last")) for one in rows[:SHOWN_MAX]],
            right=("bid", "ask", "last"),
        )
        more = f" (the first {SHOWN_MAX} of {len(rows)} symbols)" if len(rows) > SHOWN_MAX else ""
        said = ", ".join(f"{count:,} {name}s" for name, count in counts.most_common())
        err.print(f"[green]✓[/] {said or 'nothing'} in {took_s:.1f} s{more}")


async def _play(
    recording: Recording, speed: float, *, ticks: bool, seconds: float
) -> tuple[MarketData, Counter[str], float]:
    market = MarketData(now_us)
    counts: Counter[str] = Counter()
    began_s = told_s = time.monotonic()
    encode = msgspec.json.Encoder().encode
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds or None):
            async for _, found in recording.replay(speed=speed):
                market.take(found)
                for tick in found:
                    counts[KINDS[type(tick)]] += 1
                    if ticks:
                        sys.stdout.write(encode(_plain(tick)).decode() + "\n")
                now_s = time.monotonic()
                if now_s - told_s >= TOLD_S and not ticks:
                    told_s = now_s
                    err.print(
                        f"[dim]{sum(counts.values()):,} ticks, {sum(counts.values()) / (now_s - began_s):,.0f}/s[/]"
                    )
    return market, counts, time.monotonic() - began_s


def _plain(tick: Tick) -> dict[str, object]:
    """Field names, and decimals as text."""
    found: dict[str, object] = {"kind": KINDS[type(tick)]}
    for name in tick.__struct_fields__:
        value = getattr(tick, name)
        if name in ("bids", "asks"):
            value = [(decimal_text(price_e9), decimal_text(size_e9)) for price_e9, size_e9 in value]
        found[name.removesuffix("_e9")] = decimal_text(value) if name.endswith("_e9") else value
    return found


def _best(market: MarketData, symbol: str) -> dict[str, str | None]:
    best, last = market.nbbo.last(symbol, market.clock()), market.tape.last(symbol)
    return {
        "symbol": symbol,
        "bid": decimal_text(best.bid_e9) if best and best.bid_e9 else None,
        "ask": decimal_text(best.ask_e9) if best and best.ask_e9 else None,
        "last": decimal_text(last.price_e9) if last else None,
    }
