"""`tiebreak quote`, `candles`, `watch`: prices of all venues, from the nearest gateway."""

import time
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.table import Table

from gateway.cli.asking import Answer, Asker, Gateway, age, tell
from node.cli.output import err, out, print_json, print_table, say, table
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


@watch.command("watch")
def watch_quotes(
    symbols: Symbols,
    every_ms: Annotated[int, typer.Option(min=100, max=60_000, help="Look again after this long.")] = 500,
    times: Annotated[int, typer.Option(min=0, help="Stop after so many looks; 0: at Ctrl-C.")] = 0,
    as_json: Json = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    gateway: Gateway = "",
    token: Token = "",
) -> None:
    """Watch quotes move; with --json one document per look. When a gateway goes away, the other one is asked.

    Programs that want every change subscribe to /v1/stream instead.

    Example: tiebreak watch AAPL MSFT BTCUSDT
    """
    asker = Asker(cluster=cluster, gateway=gateway, token=token, as_json=as_json)
    bearer, made_s = asker.token("auditor"), time.monotonic()
    query = {"symbols": ",".join(symbols)}
    looked = 0
    with Live(console=out, refresh_per_second=10, transient=False, auto_refresh=False) as live:
        while not times or looked < times:
            if looked:
                time.sleep(every_ms / 1000)
            if time.monotonic() - made_s > 120:
                bearer, made_s = asker.token("auditor"), time.monotonic()
            answer = asker.ask("GET", "/v1/market/quotes", token=bearer, query=query)
            looked += 1
            if as_json:
                print_json(answer.body)
            else:
                live.update(_watched(answer), refresh=True)
    err.print(f"[dim]{looked} looks[/]")


def _watched(answer: Answer) -> Table:
    shown = table(COLUMNS, [_row(one) for one in answer.body["items"]], right=NUMBERS)
    shown.caption = f"{answer.gateway}, {age(answer.age_ms)} old"
    return shown
