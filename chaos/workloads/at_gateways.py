"""What workloads ask of gateways: alerts and preferences as items and values of users, and what is shown to traders."""

from collections.abc import Sequence
from typing import Any

from chaos.workloads.connection import path_of
from chaos.workloads.operation import Request, read_of

ALERT_PRICE = 1_000_000
"""Nothing simulated ever trades there: no alert of ours fires."""
Body = dict[str, Any]


def add(user: str, item: str, *, symbol: str, price: int) -> Request:
    """Set an alert under its id: there from now on, until somebody removes it."""
    body = {"symbol": symbol, "condition": "above", "price": str(price)}
    return _write("PUT", ("alerts", item), "add", user, {"user": user, "item": item}, body)


def remove(user: str, item: str) -> Request:
    """Take an alert away. Refused as not_found where this gateway has none of this id."""
    return _write("DELETE", ("alerts", item), "remove", user, {"user": user, "item": item}, None)


def set_value(user: str, name: str, value: str) -> Request:
    """Write one preference; the last writer wins."""
    args = {"user": user, "name": name, "value": value}
    return _write("PATCH", ("preferences",), "set", user, args, {name: value})


def read_items(user: str) -> Request:
    """The ids of a user's alerts, as this gateway has them."""
    return read_of(
        ("alerts",),
        "read_items",
        {"user": user},
        lambda body: {"items": [one["alert_id"] for one in body["items"]]},
        role="trader",
        accounts=(user,),
        indexed=False,
    )


def read_values(user: str, names: Sequence[str]) -> Request:
    return read_of(
        ("preferences",),
        "read_items",
        {"user": user},
        lambda body: {"values": {name: body["preferences"][name] for name in names if name in body["set_at"]}},
        role="trader",
        accounts=(user,),
        indexed=False,
    )


def read_quotes(symbols: Sequence[str]) -> Request:
    def kept(body: Body) -> Body:
        return {
            "quotes": {one["symbol"]: [one["bid"], one["ask"], one["staleness_ms"]] for one in body["items"]},
            "stale": sum(bool(one["stale"]) for one in body["items"]),
        }

    return read_of(
        ("market", "quotes"),
        "read_quotes",
        {"symbols": list(symbols)},
        kept,
        params={"symbols": ",".join(symbols)},
        indexed=False,
    )


def read_portfolio(account: str) -> Request:
    def kept(body: Body) -> Body:
        return {"index": body["index"], "source": body["source"]}

    return read_of(
        ("portfolio",), "read_portfolio", {"account": account}, kept, params={"account": account}, indexed=False
    )


def read_leaderboard() -> Request:
    return read_of(("leaderboard",), "read_leaderboard", {}, lambda body: {"ranked": body["ranked"]}, indexed=False)


def _write(method: str, path: Sequence[str], kind: str, user: str, args: Body, body: Body | None) -> Request:
    return Request(
        kind=kind,
        method=method,
        path=path_of(*path),
        role="trader",
        args=args,
        kept=lambda _body: {},
        accounts=(user,),
        body=body,
        indexed=False,
    )
