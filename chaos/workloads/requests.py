"""What workloads ask of members: each kind of call as HTTP, and as the history tells it."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from chaos.workloads.connection import path_of
from chaos.workloads.operation import Request, read_of

CUSTODIAN, OPERATOR, FEED = "@custodian", "@operator", "@feed"
"""Scopes of keys that a role shares; a trader's keys are of the account."""
ANSWER_FIELDS = (
    "id", "status", "reason", "filled_qty", "leaves_qty", "filled_avg_price", "fee", "at", "count", "remaining",
    "account",
)  # fmt: skip
REPLACED_FIELDS = ("id", "replaces", "kept_priority")
"""Of a replacement's answer, which else tells the order as it is when it is told, not as it was at the index."""
ROWS_MAX = 1_000
Body = dict[str, Any]


# ---- commands ----


def open_account(account: str, *, key: str) -> Request:
    return _post(("accounts",), "open_account", "custodian", CUSTODIAN, {"account": account}, key)


def deposit(account: str, asset: str, amount: str, *, key: str) -> Request:
    args = {"account": account, "asset": asset, "amount": amount}
    return _post(("transfers",), "deposit", "custodian", CUSTODIAN, args, key, body={"kind": "deposit", **args})


def transfer(source: str, target: str, asset: str, amount: str, *, key: str) -> Request:
    args = {"source": source, "target": target, "asset": asset, "amount": amount}
    body = {"kind": "transfer", "account": source, "target": target, "asset": asset, "amount": amount}
    return _post(("transfers",), "transfer", "custodian", CUSTODIAN, args, key, body=body)


def request_withdrawal(account: str, asset: str, amount: str, *, key: str) -> Request:
    args = {"account": account, "asset": asset, "amount": amount}
    body = {"kind": "withdrawal", **args}
    return _post(("transfers",), "request_withdrawal", "custodian", CUSTODIAN, args, key, body=body)


def close_withdrawal(withdrawal_id: str, *, post: bool, key: str) -> Request:
    args = {"withdrawal_id": withdrawal_id, "post": post}
    path = ("transfers", withdrawal_id)
    return _post(path, "close_withdrawal", "custodian", CUSTODIAN, args, key, body={"post": post})


def add_asset(asset: str, *, scale: int, key: str) -> Request:
    return _post(("assets",), "add_asset", "operator", OPERATOR, {"asset": asset, "scale": scale}, key)


def add_instrument(symbol: str, base: str, quote: str, *, tick_size: str, lot_size: str, key: str) -> Request:
    args = {"symbol": symbol, "base": base, "quote": quote, "tick_size": tick_size, "lot_size": lot_size}
    return _post(("instruments",), "add_instrument", "operator", OPERATOR, args, key)


def change_instrument(symbol: str, changes: Body, *, key: str) -> Request:
    """changes: one of mode, both fees, limits, calendar."""
    args = {"symbol": symbol, **changes}
    path = ("instruments", symbol)
    return _command("PATCH", path, "change_instrument", "operator", OPERATOR, args, key, body=changes)


def set_reference(symbol: str, price: str, observed_at: str, *, key: str) -> Request:
    args = {"symbol": symbol, "price": price, "observed_at": observed_at}
    return _post(("references",), "set_reference", "feed", FEED, args, key)


def place_order(account: str, order: Body, *, key: str) -> Request:
    """order: symbol, side, type, qty, limit_price, time_in_force, post_only, ... as a client gives them."""
    args = {"account": account, **order}
    return _command("POST", ("orders",), "place_order", "trader", account, args, key, body=args, accounts=(account,))


def replace_order(account: str, *, named: str, is_key: bool, changes: Body, key: str) -> Request:
    """named: the order's id, or (is_key) the key that it was placed or last replaced under. changes: qty, limit_price;
    symbol where the order may still be on its way."""
    name = "original_client_order_id" if is_key else "order_id"
    args = {"account": account, name: named, **changes}
    path = ("orders",) if is_key else ("orders", named)
    body = {"account": account, **({name: named} if is_key else {}), **changes}
    return _command(
        "PATCH", path, "replace_order", "trader", account, args, key, body=body, accounts=(account,), kept=_replaced
    )


def cancel_order(account: str, *, named: str, is_key: bool, key: str) -> Request:
    args = {"account": account, "original_client_order_id" if is_key else "order_id": named}
    params = {"account": account} | ({"client_order_id": named} if is_key else {})
    path = ("orders",) if is_key else ("orders", named)
    return _command("DELETE", path, "cancel_order", "trader", account, args, key, accounts=(account,), params=params)


def cancel_orders(account: str, *, symbol: str = "", key: str) -> Request:
    args = {"account": account} | ({"symbol": symbol} if symbol else {})
    return _command(
        "DELETE", ("orders",), "cancel_orders", "trader", account, args, key, accounts=(account,), params=args
    )


def _post(
    path: Sequence[str], kind: str, role: str, scope: str, args: Body, key: str, *, body: Body | None = None
) -> Request:
    return _command("POST", path, kind, role, scope, args, key, body=args if body is None else body)


def _command(
    method: str,
    path: Sequence[str],
    kind: str,
    role: str,
    scope: str,
    args: Body,
    key: str,
    *,
    body: Body | None = None,
    accounts: tuple[str, ...] = (),
    params: dict[str, str] | None = None,
    kept: Callable[[Body], Body] | None = None,
) -> Request:
    return Request(
        kind=kind,
        method=method,
        path=path_of(*path, params=params),
        role=role,
        args=args,
        kept=kept or _told(key),
        accounts=accounts,
        body=body,
        key=key,
        scope=scope,
    )


def _told(key: str) -> Callable[[Body], Body]:
    """What a client's answer says. The key only where it is another's: then the answer is, too."""

    def kept(body: Body) -> Body:
        found = {name: value for name in ANSWER_FIELDS if (value := body.get(name)) not in (None, "")}
        said = body.get("key") or body.get("client_order_id") or key
        return found if said == key else {**found, "key": said}

    return kept


def _replaced(body: Body) -> Body:
    return {name: body[name] for name in REPLACED_FIELDS if body.get(name) is not None}


# ---- reads ----


def read_account(account: str, *, consistency: str = "linearizable", session: str = "") -> Request:
    """consistency: linearizable, local (what the member has), or session: at least what a token has seen."""
    return read_of(
        ("accounts", account),
        "read_account",
        {"account": account, "consistency": consistency},
        lambda body: {"balances": _balances(body)},
        params={"consistency": "local"} if consistency == "local" else {},
        headers={"X-Session-Token": session} if session else {},
    )


def read_accounts(accounts: Sequence[str]) -> Request:
    """All of them, at one index."""
    return read_of(
        ("accounts",),
        "read_accounts",
        {"accounts": list(accounts), "consistency": "linearizable"},
        lambda body: {"balances": {one["id"]: _balances(one) for one in body["items"]}},
        accounts=tuple(accounts),
    )


def read_order(order_id: str, *, consistency: str = "linearizable") -> Request:
    return read_of(
        ("orders", order_id),
        "read_order",
        {"order_id": order_id, "consistency": consistency},
        _order,
        params={"consistency": "local"} if consistency == "local" else {},
    )


def read_open_orders(account: str) -> Request:
    """The keys of an account's open orders, the newest first."""
    return read_of(
        ("orders",),
        "read_open_orders",
        {"account": account, "consistency": "linearizable"},
        lambda body: {"keys": [one["client_order_id"] for one in body["items"]]},
        params={"account": account, "status": "open"},
    )


def read_ledger(account: str, asset: str) -> Request:
    """All rows of an account's journal in one asset, the oldest first: [row, index, amount, balance]."""

    def kept(body: Body) -> Body:
        rows = [one for one in body["items"] if one["asset"] == asset]
        return {
            "rows": [[one["row"], one["index"], one["amount"], one["balance"]] for one in reversed(rows)],
            **({"more": True} if body["next_page_token"] else {}),
        }

    args = {"account": account, "asset": asset, "consistency": "linearizable"}
    return read_of(("ledger",), "read_ledger", args, kept, params={"account": account, "limit": str(ROWS_MAX)})


def read_reference(symbol: str) -> Request:
    return read_of(
        ("instruments", symbol),
        "read_reference",
        {"symbol": symbol, "consistency": "linearizable"},
        lambda body: {"price": body.get("reference_price")},
    )


def read_outcome(of_key: str, scope: str, *, consistency: str = "linearizable") -> Request:
    """What became of a key: its answer with its index, or that there is none."""
    role = scope.removeprefix("@") if scope.startswith("@") else "auditor"
    params = {} if scope.startswith("@") else {"account": scope}
    if consistency == "local":
        params["consistency"] = "local"

    def kept(body: Body) -> Body:
        if "index" not in body:
            raise ValueError("an outcome without an index")
        if body.get("error"):
            return {"error": body["error"], "index": body["index"]}
        fields = (*ANSWER_FIELDS, "replaces", "kept_priority")
        return {name: body[name] for name in fields if name in body} | {"index": body["index"]}

    args = {"of_key": of_key, "scope": scope, "consistency": consistency}
    return read_of(("commands", of_key), "read_outcome", args, kept, role=role, params=params)


def read_status(*, digest_at: int = 0) -> Request:
    """What a member says of itself; it has no index, and is as true as the member is up to date."""
    fields = ("term", "first_index", "last_index", "commit_index", "applied_index", "digest", "digest_index", "version")
    return read_of(
        ("status",),
        "read_status",
        {"digest_at": digest_at} if digest_at else {},
        lambda body: {name: body[name] for name in fields},
        params={"digest_at": str(digest_at)} if digest_at else {},
        indexed=False,
    )


def _balances(view: Body) -> dict[str, list[str]]:
    """asset: [total, available]."""
    return {
        one["asset"]: [plain(Decimal(one["available"]) + Decimal(one["held"])), one["available"]]
        for one in view["balances"]
    }


def _order(body: Body) -> Body:
    names = ("status", "reason", "filled_qty", "leaves_qty", "filled_avg_price", "fee", "qty", "limit_price")
    return {name: value for name in names if (value := body.get(name)) not in (None, "")}


def now() -> str:
    """RFC 3339, as `observed_at` takes it."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def plain(number: Decimal) -> str:
    """Without exponent and needless zeros, as members write amounts."""
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
