"""`tiebreak quote`, `candles`, `watch`: prices of all venues, from the nearest gateway."""

import asyncio
import contextlib
import itertools
from enum import StrEnum
from typing import Annotated, Any

import msgspec
import typer
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from gateway.cli.asking import HINTS, Asker, Gateway, age, tell
from gateway.cli.watching import NoGateway, Shown, Watching, WatchRefused
from node.cli.main import EXIT_REFUSED, EXIT_UNREACHABLE
from node.cli.output import complain, out, print_json, print_table, say, table
from node.cli.session import DEFAULT_CLUSTER, Cluster, Json, Token

quote = typer.Typer(add_completion=False)
candles = typer.Typer(add_completion=False)
watch = typer.Typer(add_completion=False)

Symbols = Annotated[
    list[str], typer.Argument(metavar="SYMBOL...", help="Names as the venues have them: AAPL, BTCUSDT.")
]


class Interval(StrEnum):
    one_minute = "1m"
    five_minutes = "5m"
    hour = "1h"


@quote.command("quote")
def show_quotes(
    symbols: Symbols,
    as_json: Json = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    gateway: Gateway = "",
    token: Token = "",
) -> None:
    """Best bid and ask over all venues, and the last price, with their age. Stale ones are marked.

    Exit 0: all are known. Exit 1: one is not.

    Example: tiebreak quote AAPL BTCUSDT

    Example: tiebreak quote AAPL --gateway dc-b --json
    """
    asker = Asker(cluster=cluster, gateway=gateway, token=token, as_json=as_json)
    answer = asker.ask("GET", "/v1/market/quotes", token=asker.token("auditor"), query={"symbols": ",".join(symbols)})
    if as_json:
        print_json(answer.body)
    else:
        print_table(COLUMNS, [_row(one) for one in answer.body["items"]], right=NUMBERS)
        tell(answer)
    if answer.body["unknown"]:
        say(f"[yellow]nothing is known of {', '.join(answer.body['unknown'])}[/]")
        raise typer.Exit(1)


COLUMNS = ("symbol", "bid", "size", "at", "ask", "ask size", "ask at", "last", "age", "")
NUMBERS = ("bid", "size", "ask", "ask size", "last", "age")


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    marks = [mark for mark in ("stale", "crossed", "locked") if one[mark]]
    found = (
        one["symbol"], one["bid"], one["bid_size"], one["bid_venue"], one["ask"], one["ask_size"], one["ask_venue"],
        one["last"], age(one["staleness_ms"]), ", ".join(marks),
    )  # fmt: skip
    return tuple("" if value is None else str(value) for value in found)


@candles.command("candles")
def show_candles(
    symbol: Annotated[str, typer.Argument(metavar="SYMBOL")],
    interval: Annotated[Interval, typer.Option(help="Length of a bar.")] = Interval.one_minute,
    start: Annotated[str, typer.Option(metavar="TIME", help="From here on, as 2026-11-20T09:30:00Z.")] = "",
    end: Annotated[str, typer.Option(metavar="TIME", help="Up to here.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="Most bars to show.")] = 20,
    as_json: Json = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    gateway: Gateway = "",
    token: Token = "",
) -> None:
    """Bars of a symbol from the trades of all venues, oldest first; the newest ones when no start is given.

    Example: tiebreak candles AAPL --interval 1m

    Example: tiebreak candles AAPL --interval 5m --start 2026-11-20T09:30:00Z --limit 100
    """
    asker = Asker(cluster=cluster, gateway=gateway, token=token, as_json=as_json)
    query = {"symbol": symbol, "interval": interval.value, "start": start, "end": end, "limit": limit}
    answer = asker.ask("GET", "/v1/market/candles", token=asker.token("auditor"), query=query)
    if as_json:
        print_json(answer.body)
        return
    columns = ("start", "open", "high", "low", "close", "volume", "trades", "vwap", "")
    rows = [
        (
            bar["start"][:19].replace("T", " "),
            *(str(bar[name] or "") for name in ("open", "high", "low", "close", "volume", "trades", "vwap")),
            "" if bar["closed"] else "open",
        )
        for bar in answer.body["items"]
    ]
    print_table(columns, rows, right=columns[1:-1])
    tell(answer)


class Rate(StrEnum):
    live = "live"
    second = "1s"


@watch.command("watch")
def watch_quotes(
    symbols: Symbols,
    rate: Annotated[Rate, typer.Option(help="As the gateway sends them, or once a second.")] = Rate.live,
    times: Annotated[int, typer.Option(min=0, help="Stop after so many updates; 0: at Ctrl-C.")] = 0,
    as_json: Json = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    gateway: Gateway = "",
    token: Token = "",
) -> None:
    """Watch best prices and trades move, over the gateway's stream; with --json one line per update.

    When the stream ends, another is opened, at the other site's gateway if there is one. `changed` is how long ago a
    symbol last moved; the line below says how old all of it may be. Stale prices are marked.

    Example: tiebreak watch AAPL MSFT BTCUSDT

    Example: tiebreak watch AAPL --json --times 10
    """
    asker = Asker(cluster=cluster, gateway=gateway, token=token, as_json=as_json)
    count = itertools.count(1)
    done = asyncio.Event()
    watching: Watching

    def updated(shown: Shown, at_us: int) -> None:
        if as_json and not done.is_set():
            typer.echo(msgspec.json.encode(_line(shown, at_us, watching.gateway)).decode())
        if times and next(count) >= times:
            done.set()

    watching = Watching(
        asker.urls,
        list(dict.fromkeys(symbols)),
        token=lambda: asker.token("auditor"),
        renewed=not asker.given_token,
        tls=asker.tls,
        rate=rate.value,
        on_update=updated,
        on_talk=lambda text: say(f"[yellow]{escape(text)}[/]"),
    )
    try:
        asyncio.run(_watch(watching, done, is_shown=not as_json))
    except NoGateway as error:
        complain(f"no gateway answered: {error}", HINTS["unreachable"])
        raise typer.Exit(EXIT_UNREACHABLE) from error
    except WatchRefused as error:
        complain(f"{error.error}: {error}", HINTS.get(error.error, ""))
        raise typer.Exit(EXIT_REFUSED) from error


async def _watch(watching: Watching, done: asyncio.Event, *, is_shown: bool) -> None:
    """Until done, or refused."""
    following = asyncio.create_task(watching.run())
    ended = asyncio.create_task(done.wait())
    try:
        with Live(console=out, auto_refresh=False) if is_shown else contextlib.nullcontext() as live:
            while not done.is_set() and not following.done():
                await asyncio.wait({following, ended}, timeout=SHOWN_S, return_when=asyncio.FIRST_COMPLETED)
                if live is not None and not following.done():
                    live.update(_watched(watching), refresh=True)
    finally:
        following.cancel()
        ended.cancel()
        results = await asyncio.gather(following, ended, return_exceptions=True)
    if isinstance(results[0], NoGateway | WatchRefused):
        raise results[0]
    if isinstance(results[0], Exception):
        raise results[0]


SHOWN_S = 0.2
WATCHED = ("symbol", "bid", "size", "at", "ask", "ask size", "ask at", "last", "changed", "")


def _watched(watching: Watching) -> Table:
    rows = []
    for shown in watching.rows.values():
        quote = shown.quote
        marks = [mark for mark in ("stale", "crossed", "locked") if quote.get(mark)]
        bid, ask = quote.get("bid", "0") != "0", quote.get("ask", "0") != "0"
        sides = (
            *(quote[name] if bid else "" for name in ("bid", "bid_size", "bid_venue")),
            *(quote[name] if ask else "" for name in ("ask", "ask_size", "ask_venue")),
        )
        rows.append((shown.symbol, *sides, shown.last.get("price", ""), age(shown.changed_ms()), ", ".join(marks)))
    made = table(WATCHED, rows, right=("bid", "size", "ask", "ask size", "last", "changed"))
    where = watching.gateway or "not connected; trying again"
    lost = "" if watching.source != "lost" else ", which is cut off from its core"
    resting = f"; resting: {', '.join(watching.shed)}" if watching.shed else ""
    made.caption = f"{where}{lost}, {age(watching.age_ms())} old{resting}"
    return made


def _line(shown: Shown, at_us: int, gateway: str) -> dict[str, Any]:
    """age_ms: of the quote when the gateway sent it."""
    quote = {name: value for name, value in shown.quote.items() if name != "channel"}
    as_of_us = quote.get("as_of_us", 0)
    return {
        "symbol": shown.symbol,
        **quote,
        "last": shown.last.get("price"),
        "last_venue": shown.last.get("venue"),
        "at_us": at_us,
        "age_ms": max(0, (at_us - as_of_us) // 1000) if as_of_us else -1,
        "gateway": gateway,
    }
