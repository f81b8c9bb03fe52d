"""`tiebreak portfolio`, `leaderboard`, `prefs`, `alerts`: what one account sees and sets at a gateway."""

from enum import StrEnum
from typing import Annotated, Any

import msgspec
import typer

from gateway.cli.asking import Asker, Gateway, tell
from node.cli.output import print_json, print_table, say
from node.cli.session import DEFAULT_CLUSTER, Account, CliError, Cluster, Json, Token, need_account

portfolio = typer.Typer(add_completion=False)
leaderboard = typer.Typer(add_completion=False)
prefs = typer.Typer(add_completion=False, no_args_is_help=True, help="Show and set an account's preferences.")
alerts = typer.Typer(add_completion=False, no_args_is_help=True, help="Price alerts of an account.")


class Period(StrEnum):
    day = "day"
    week = "week"
    all = "all"


Named = Annotated[str, typer.Argument(metavar="ACCOUNT")]


@portfolio.command("portfolio")
def show_portfolio(
    account: Named,
    as_json: Json = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    gateway: Gateway = "",
    token: Token = "",
) -> None:
    """Cash, positions, their cost and worth, gains. Positions are of the log index that is shown, prices of now.

    Example: tiebreak portfolio alice
    """
    asker = Asker(cluster=cluster, gateway=gateway, token=token, as_json=as_json)
    answer = asker.ask("GET", "/v1/portfolio", token=asker.token("trader", account), query={"account": account})
    if as_json:
        print_json(answer.body)
        return
    body = answer.body
    print_table(
        ("cash", "total", "available", "held"),
        [(one["asset"], one["total"], one["available"], one["held"]) for one in body["cash"]],
        right=("total", "available", "held"),
    )
    columns = ("asset", "qty", "held", "avg cost", "price", "value", "unrealised", "realised", "")
    rows = [
        (
            one["asset"],
            *(_text(one[name]) for name in ("qty", "held", "avg_cost", "market_price", "market_value", "unrealised")),
            " ".join(f"{value} {currency}" for currency, value in one["realised"].items()),
            "price stale" if one["price_stale"] else "",
        )
        for one in body["positions"]
    ]
    if rows:
        print_table(columns, rows, right=columns[1:-1])
    equity = ", ".join(f"{value} {currency}" for currency, value in body["equity"].items())
    say(f"equity {equity or '0'}{', without what has no price' if body['incomplete'] else ''}; index {body['index']}")
    tell(answer)


@leaderboard.command("leaderboard")
def show_leaderboard(
    period: Annotated[Period, typer.Option(help="Since when.")] = Period.day,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="Most rows to show.")] = 20,
    as_json: Json = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    gateway: Gateway = "",
    token: Token = "",
) -> None:
    """Who gained most; deposits are no gain. Computed every few seconds; `prefs set` can hide an account.

    Example: tiebreak leaderboard --period week
    """
    asker = Asker(cluster=cluster, gateway=gateway, token=token, as_json=as_json)
    query = {"period": period.value, "limit": limit}
    answer = asker.ask("GET", "/v1/leaderboard", token=asker.token("auditor"), query=query)
    if as_json:
        print_json(answer.body)
        return
    rows = [(str(one["rank"]), one["name"], f"{one['return_pct']:+.4f} %") for one in answer.body["items"]]
    print_table(("rank", "name", "return"), rows, right=("rank", "return"))
    tell(answer)


@prefs.command("show")
def show_preferences(
    account: Named,
    as_json: Json = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    gateway: Gateway = "",
    token: Token = "",
) -> None:
    """All preferences of an account; those that were never set have their defaults.

    Example: tiebreak prefs show alice
    """
    asker = Asker(cluster=cluster, gateway=gateway, token=token, as_json=as_json)
    _show(asker, asker.ask("GET", "/v1/preferences", token=asker.token("trader", account), query={"account": account}))


@prefs.command("set")
def set_preferences(
    account: Named,
    settings: Annotated[
        list[str], typer.Argument(metavar="NAME=VALUE...", help="VALUE as JSON or text; empty unsets.")
    ],
    as_json: Json = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    gateway: Gateway = "",
    token: Token = "",
) -> None:
    """Set some preferences, at whichever gateway; the other site has them a moment later, or after a partition.

    Example: tiebreak prefs set alice display_currency=EUR leaderboard_hidden=true

    Example: tiebreak prefs set alice 'fill_channels=["websocket","email"]' email=alice@example.com
    """
    changes: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise CliError(f"{setting!r}: say NAME=VALUE, for example display_currency=EUR")
        changes[name] = _value(value)
    asker = Asker(cluster=cluster, gateway=gateway, token=token, as_json=as_json)
    bearer = asker.token("trader", account)
    _show(asker, asker.ask("PATCH", "/v1/preferences", token=bearer, query={"account": account}, body=changes))


def _show(asker: Asker, answer: Any) -> None:
    if asker.as_json:
        print_json(answer.body)
        return
    shown, set_at = answer.body["preferences"], answer.body["set_at"]
    rows = [(name, _text(value), set_at.get(name, "")[:19].replace("T", " ")) for name, value in shown.items()]
    print_table(("preference", "value", "set"), rows)
    tell(answer)


def _value(text: str) -> Any:
    if not text:
        return None
    try:
        return msgspec.json.decode(text)
    except msgspec.MsgspecError:
        return text


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


# ---- alerts ----


@alerts.command("list")
def list_alerts(
    account: Account = "",
    as_json: Json = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    gateway: Gateway = "",
    token: Token = "",
) -> None:
    """All price alerts of an account.

    Example: tiebreak alerts list --account alice
    """
    account = need_account(account)
    asker = Asker(cluster=cluster, gateway=gateway, token=token, as_json=as_json)
    answer = asker.ask("GET", "/v1/alerts", token=asker.token("trader", account), query={"account": account})
    if as_json:
        print_json(answer.body)
        return
    rows = [
        (
            one["alert_id"], one["text"], "armed" if one["armed"] else "fired", str(one["fired"] or ""),
            (one["fired_at"] or "")[:19].replace("T", " "), one["note"],
        )
        for one in answer.body["items"]
    ]  # fmt: skip
    print_table(("alert", "fires when", "state", "times", "last", "note"), rows, right=("times",))
    tell(answer)


@alerts.command("add")
def add_alert(
    symbol: Annotated[str, typer.Argument(metavar="SYMBOL")],
    account: Account = "",
    above: Annotated[str, typer.Option(metavar="PRICE", help="When a trade is above this.")] = "",
    below: Annotated[str, typer.Option(metavar="PRICE", help="When a trade is below this.")] = "",
    moves: Annotated[str, typer.Option(metavar="PERCENT", help="When the price moved so far, up or down.")] = "",
    within: Annotated[int, typer.Option(metavar="MINUTES", help="For --moves: 1, 5, 15 or 60.")] = 5,
    repeat: Annotated[bool, typer.Option("--repeat", help="Arm it again when the price has gone back.")] = False,
    note: Annotated[str, typer.Option(help="Told with it.")] = "",
    alert_id: Annotated[str, typer.Option("--id", metavar="NAME", help="Its name; drawn when left out.")] = "",
    as_json: Json = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    gateway: Gateway = "",
    token: Token = "",
) -> None:
    """Add a price alert, or replace the one of this id. It is on the gateway's disk when this ends.

    Example: tiebreak alerts add AAPL --above 200 --account alice

    Example: tiebreak alerts add BTCUSDT --moves 2 --within 5 --repeat --account alice
    """
    account = need_account(account)
    given = [(name, value) for name, value in (("above", above), ("below", below), ("moves", moves)) if value]
    if len(given) != 1:
        raise CliError("say one of --above PRICE, --below PRICE, --moves PERCENT")
    condition, value = given[0]
    body: dict[str, Any] = {"symbol": symbol, "condition": condition, "repeat": repeat, "note": note}
    if condition == "moves":
        body |= {"move_percent": value, "window_s": within * 60}
    else:
        body["price"] = value
    asker = Asker(cluster=cluster, gateway=gateway, token=token, as_json=as_json)
    bearer = asker.token("trader", account)
    method, path = ("PUT", f"/v1/alerts/{alert_id}") if alert_id else ("POST", "/v1/alerts")
    answer = asker.ask(method, path, token=bearer, query={"account": account}, body=body)
    if as_json:
        print_json(answer.body)
    else:
        typer.echo(f"{answer.body['alert_id']}  {answer.body['text']}")


@alerts.command("rm")
def remove_alert(
    alert_id: Annotated[str, typer.Argument(metavar="ALERT")],
    account: Account = "",
    as_json: Json = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    gateway: Gateway = "",
    token: Token = "",
) -> None:
    """Remove a price alert.

    Example: tiebreak alerts rm 4f1d2c3b5a697887 --account alice
    """
    account = need_account(account)
    asker = Asker(cluster=cluster, gateway=gateway, token=token, as_json=as_json)
    answer = asker.ask(
        "DELETE", f"/v1/alerts/{alert_id}", token=asker.token("trader", account), query={"account": account}
    )
    if as_json:
        print_json(answer.body)
    else:
        typer.echo(f"removed {alert_id}")
