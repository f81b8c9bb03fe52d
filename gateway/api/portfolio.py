"""/v1/portfolio: cash, positions and gains of an account, never older than what its reader has seen already."""

import asyncio
from decimal import Decimal
from typing import Any

import msgspec
from aiohttp import web
from msgspec import Struct

from gateway.api import context
from gateway.api.context import ACCOUNT_READS, CORE, METRICS, RELAY, Age, rfc3339
from gateway.api.errors import AccountNotFound, NoNode
from gateway.api.relay import Said, answer_of, is_linearizable
from gateway.core import Core
from gateway.projection.accounts import Account, Balance
from gateway.views.lots import ZERO
from gateway.views.portfolio import PortfolioView, PositionView
from node.errors import EpochChanged, NodeError, NotReady, ReadTimeout
from node.session_token import FIELD, SessionTokens

NODE_S = 2.0
UNKNOWN = "this gateway knows no such account"
UNKNOWN_S = 0.5
"""So long the nodes may take to say that they know of one, opened a moment ago; then what is known here counts."""


class _Balance(Struct, frozen=True):
    asset: str
    available: Decimal
    held: Decimal


class _Account(Struct, frozen=True):
    balances: list[_Balance]


_decode_account = msgspec.json.Decoder(_Account).decode


class NotReached(NodeError):
    """This gateway is behind what the reader has seen, and no node answered: nothing older is shown."""

    status = 503
    number = ReadTimeout.number
    error = ReadTimeout.error
    retry_after_s = 1.0


def wanted_index(request: web.Request, core: Core) -> int:
    """The index that the reader has seen; 0: none. Raises EpochChanged, InvalidField."""
    token = request.headers.get(FIELD)
    if token is None:
        return 0
    position = core.projection.position
    if position is None:
        return 1 << 62  # a node must say
    return SessionTokens(core.config.session_key, epoch=position.epoch, group=position.group).read(token)


async def reflects(request: web.Request) -> str:
    """Wait a moment for what the reader has seen. Empty: it is here; else why a node must be asked."""
    core = request.app[CORE]
    try:
        index = wanted_index(request, core)
    except EpochChanged as error:
        # The cluster was restored, and one of us does not know yet. A node tells which.
        return error.message
    if not core.projection.standing.warm:
        return "this gateway is not warm yet"
    if not index:
        return ""
    with request.app[METRICS].stage("wait"):
        reached = await core.projection.wait_for(index, timeout_ms=core.config.limits.session_wait_ms)
    return "" if reached else f"this gateway is at index {core.projection.standing.index}, the token at {index}"


async def portfolio(request: web.Request) -> web.Response:
    """From this gateway's view; from a node's account at this gateway's prices where the view is behind the token."""
    context.only(request, "account")
    name = context.account_of(request, *ACCOUNT_READS)
    core, metrics = request.app[CORE], request.app[METRICS]
    why = await reflects(request)
    if not why:
        account = core.accounts.accounts.get(name)
        metrics.read("portfolio", "hit" if account is not None else "miss")
        if account is not None:
            with metrics.stage("read"):
                body = body_of(core, name)
            standing = core.projection.standing
            return _respond(request, body, Age(standing.as_of_us), standing.index)
        why = UNKNOWN
    else:
        metrics.read("portfolio", "miss")
    said = await ask_node(request, name, why)
    if said.status == 503 and why == UNKNOWN:
        # A node that is cut off can't say; this side of the product answers with what it has.
        raise AccountNotFound("no such account here, and no node can tell now", field="account")
    if said.status != 200:
        return answer_of(said)
    index = int(said.headers.get("X-Log-Index", "0"))
    body = _body(_combined(core, name, said.body), index=index, source="node")
    # At the reader's token a node answers from what it has, which is nothing older, and may be anything newer.
    return _respond(request, body, context.now() if is_linearizable(request) else Age(0), index)


async def ask_node(request: web.Request, account: str, why: str) -> Said:
    """The account as a node has it, linearizable or at the reader's token. Raises NotReached, AccountNotFound."""
    try:
        # The relay asks one node after the other, each for so long.
        async with asyncio.timeout(UNKNOWN_S if why == UNKNOWN else None):
            with request.app[METRICS].stage("node"):
                return await request.app[RELAY].send(
                    "GET", f"/v1/accounts/{account}", headers=_identity(request), timeout_s=NODE_S
                )
    except (NoNode, ReadTimeout, TimeoutError) as error:
        if why == UNKNOWN:
            raise AccountNotFound("no such account here, and no node can be asked", field="account") from error
        raise NotReached(f"{why}, and no node answered: nothing older is shown") from error


def _identity(request: web.Request) -> dict[str, str]:
    names = ("Authorization", FIELD, "X-Request-ID", "traceparent")
    return {name: request.headers[name] for name in names if name in request.headers}


def _combined(core: Core, name: str, raw: bytes) -> PortfolioView:
    """A node's balances with this gateway's prices. Cost is told only of what has not moved since."""
    found = {one.asset: Balance(one.available + one.held, one.held) for one in _decode_account(raw).balances}
    known = core.accounts.accounts.get(name)
    view = core.portfolios.view(Account(name, found), core.marks.mark)
    before = {asset: balance.owned for asset, balance in known.balances.items()} if known is not None else {}
    positions = [
        one if before.get(one.asset, ZERO) == one.qty else _without_cost(one)
        for one in view.positions
        if one.qty or one.asset in found
    ]
    return msgspec.structs.replace(view, positions=positions)


def _without_cost(one: PositionView) -> PositionView:
    return msgspec.structs.replace(
        one, avg_cost=None, cost=None, unrealised=None, basis_unknown_qty=one.qty, realised={}, fees={}
    )


def body_of(core: Core, account: str) -> dict[str, Any]:
    """This gateway's own view of an account. Raises KeyError: it knows none of this name."""
    view = core.portfolios.view(core.accounts.accounts[account], core.marks.mark)
    return _body(view, index=core.projection.standing.index, source="gateway")


def _body(view: PortfolioView, *, index: int, source: str) -> dict[str, Any]:
    found = {
        "account": view.account,
        "index": index,
        "source": source,
        "cash": view.cash,
        "positions": [_position(one) for one in view.positions],
        "equity": view.equity,
        "incomplete": view.incomplete,
        "basis_pending": view.basis_pending,
        "prices_stale": any(one.price_stale for one in view.positions if one.qty),
    }
    plain: dict[str, Any] = context.plain(found)
    return plain


def _position(one: PositionView) -> dict[str, Any]:
    found = {name: getattr(one, name) for name in one.__struct_fields__ if name != "price_as_of_us"}
    return found | {"price_as_of": rfc3339(one.price_as_of_us) if one.price_as_of_us else None}


def _respond(request: web.Request, body: Any, age: Age, index: int) -> web.Response:
    return context.respond(request, body, age, headers={"X-Log-Index": str(index)})


async def _here(request: web.Request) -> tuple[str, Core]:
    """For what only this gateway knows. Raises NotReached where it is behind the reader's token."""
    name = context.account_of(request, *ACCOUNT_READS)
    core = request.app[CORE]
    why = await reflects(request)
    if why:
        if not core.projection.standing.warm:
            raise NotReady(f"{why}: come back, or ask the other site")
        raise NotReached(f"{why}: nothing older is shown")
    if name not in core.accounts.accounts:
        raise AccountNotFound("no such account, or it is not yours", field="account")
    return name, core


async def lots(request: web.Request) -> web.Response:
    """What was bought when and for how much, oldest first: the order in which it is sold."""
    context.only(request, "account", "asset")
    name, core = await _here(request)
    asset = request.query.get("asset", "")
    standing = core.projection.standing
    body = {"account": name, "index": standing.index, "items": context.plain(lot_rows(core, name, asset))}
    return _respond(request, body, Age(standing.as_of_us), standing.index)


def lot_rows(core: Core, name: str, asset: str = "") -> list[dict[str, Any]]:
    book = core.portfolios.books.get(name)
    return [
        {
            "asset": held,
            "qty": lot.qty,
            "cost": lot.cost,
            "currency": lot.currency or None,
            "acquired_at": rfc3339(lot.at_us) if lot.at_us else None,
        }
        for held, holding in sorted(book.holdings.items() if book is not None else ())
        for lot in holding.lots
        if asset in ("", held)
    ]


async def gains(request: web.Request) -> web.Response:
    """Realised gains by calendar year (UTC), with the newest sales; `no_basis_qty` was sold without a known cost."""
    context.only(request, "account", "year")
    name, core = await _here(request)
    year = context.whole(request, "year", 0, 1970, 9999)
    book = core.portfolios.books.get(name)
    holdings = sorted(book.holdings.items()) if book is not None else []
    rows = [
        {"asset": asset, "year": int(when.split()[0]), "currency": when.split()[1], "realised": gain}
        for asset, holding in holdings
        for when, gain in sorted(holding.by_year.items())
        if not year or int(when.split()[0]) == year
    ]
    sales = [
        {
            "asset": sale.asset,
            "qty": sale.qty,
            "proceeds": sale.proceeds,
            "cost": sale.cost,
            "gain": sale.gain,
            "currency": sale.currency,
            "acquired_at": rfc3339(sale.acquired_us) if sale.acquired_us else None,
            "sold_at": rfc3339(sale.sold_us),
        }
        for sale in (book.sales if book is not None else ())
        if not year or rfc3339(sale.sold_us).startswith(str(year))
    ]
    no_basis = {asset: holding.no_basis for asset, holding in holdings if holding.no_basis}
    standing = core.projection.standing
    body = {
        "account": name, "index": standing.index, "items": rows, "newest_sales": sales, "no_basis_qty": no_basis,
    }  # fmt: skip
    return _respond(request, context.plain(body), Age(standing.as_of_us), standing.index)


ROUTES = [
    web.get("/v1/portfolio", portfolio),
    web.get("/v1/portfolio/lots", lots),
    web.get("/v1/portfolio/gains", gains),
]
