"""/v1/orders: place, read, replace and cancel."""

import msgspec
from aiohttp import web

from cluster import wire
from node.api import http
from node.bodies import Reader
from node.catalogue import Catalogue
from node.context import NODE, PRINCIPAL, Node
from node.errors import InternalError, InvalidField
from node.outcomes import RuleRefused, answer
from node.views import order_view, placed_view
from statemachine.codes import Code
from statemachine.records import OrderRecord
from statemachine.results import Placed, Replaced

_read_place: Reader[wire.PlaceOrder] = Reader(wire.PlaceOrder)
_read_replace: Reader[wire.ReplaceOrder] = Reader(wire.ReplaceOrder)

READERS = ("trader", "auditor")
STATES = ("open", "closed", "all")
_SCAN_MAX = 2_000
"""Closed orders looked at for one page; one that finds little says where to go on."""


async def place(request: web.Request) -> web.Response:
    body = await http.read_body(request, _read_place)
    prepared, outcome = await http.submit(request, body)
    if not isinstance(outcome.result, Placed):
        raise InternalError("an order was answered with something else", key=prepared.envelope.key)
    return http.written(request, outcome, placed_view(prepared, outcome.result, replay=outcome.replay))


async def replace(request: web.Request) -> web.Response:
    """The new order as it is now; `id` is new, `replaces` the old one."""
    http.only(request, "account", "client_order_id")
    body = await http.read_body(request, _read_replace)
    order_id, named = _order_named(request)
    if body.order_id and body.order_id != (order_id or body.order_id):
        raise InvalidField("order_id in the body differs from the path", field="order_id")
    if named and named != (body.original_client_order_id or named):
        raise InvalidField(
            "client_order_id in the query differs from original_client_order_id", field="client_order_id"
        )
    command = msgspec.structs.replace(
        body,
        account=body.account or request.query.get("account", ""),
        order_id=order_id or body.order_id,
        original_client_order_id=named or body.original_client_order_id,
    )
    prepared, outcome = await http.submit(request, command)
    node = request.app[NODE]
    if not isinstance(outcome.result, Replaced):
        raise InternalError("a replacement was answered with something else", key=prepared.envelope.key)
    order = node.catalogue.order(outcome.result.order_id)
    if order is None:
        return http.written(request, outcome, answer(prepared, outcome))
    view = msgspec.structs.replace(_view(node, order), kept_priority=outcome.result.kept_priority)
    return http.written(request, outcome, view)


def _order_named(request: web.Request) -> tuple[str, str]:
    """(order_id, client_order_id) of path and query; both empty where neither names an order."""
    named = request.query.get("client_order_id")
    if named == "":
        # Taken for left out, it would name all orders.
        raise InvalidField("client_order_id is empty", field="client_order_id")
    order_id = str(http.identifier(request, "order_id")) if "order_id" in request.match_info else ""
    return order_id, named or ""


async def cancel(request: web.Request) -> web.Response:
    """One order: that of the path, or that of a client_order_id."""
    http.only(request, "account", "client_order_id", "sent_at")
    order_id, named = _order_named(request)
    command = wire.CancelOrder(
        account=request.query.get("account", ""),
        sent_at=request.query.get("sent_at", ""),
        order_id=order_id,
        original_client_order_id=named,
    )
    prepared, outcome = await http.submit(request, command)
    request.app[NODE].answers.complete(prepared, outcome)
    return http.written(request, outcome, answer(prepared, outcome))


async def cancel_some(request: web.Request) -> web.Response:
    """The order of a client_order_id, or all of an account or an instrument."""
    if "client_order_id" in request.query:
        return await cancel(request)
    http.only(request, "account", "symbol", "sent_at")
    command = wire.CancelOrders(
        account=request.query.get("account", ""),
        sent_at=request.query.get("sent_at", ""),
        symbol=request.query.get("symbol", ""),
    )
    prepared, outcome = await http.submit(request, command)
    return http.written(request, outcome, answer(prepared, outcome))


@http.reading
async def show(request: web.Request) -> web.Response:
    node = request.app[NODE]
    http.only(request)
    http.allow(request[PRINCIPAL], *READERS)
    order = node.catalogue.order(http.identifier(request, "order_id"))
    if order is None or not request[PRINCIPAL].may_touch(order.account):
        raise RuleRefused(Code.order_not_found)
    return http.read_answer(request, _view(node, order))


@http.reading
async def by_client_order_id(request: web.Request) -> web.Response:
    """The open order of a key, or the one that it placed or replaced into, for as long as keys are kept."""
    http.only(request, "account", "client_order_id")
    account = http.account_of(request, *READERS)
    key = request.query.get("client_order_id", "")
    if not key:
        raise InvalidField("name a client_order_id", field="client_order_id")
    node = request.app[NODE]
    order = node.answers.order_of_key(account, key, closed=True)
    if order is None:
        raise RuleRefused(Code.order_not_found)
    return http.read_answer(request, _view(node, order))


@http.reading
async def index(request: web.Request) -> web.Response:
    """The newest first: `status` open (default), closed or all."""
    http.only(request, "account", "symbol", "status", "limit", "page_token")
    account = http.account_of(request, *READERS)
    node = request.app[NODE]
    status = request.query.get("status", "open")
    if status not in STATES:
        raise InvalidField(f"status must be one of {', '.join(STATES)}", field="status")
    symbol = request.query.get("symbol", "")
    if symbol and node.catalogue.market(symbol) is None:
        raise RuleRefused(Code.instrument_not_found)
    orders, following, past_gone = _page(
        node, account, status, symbol, request.query.get("page_token", ""), http.page_limit(request, node)
    )
    views = [_view(node, order) for order in orders]
    return http.read_answer(request, http.Page(views, following or None, past_gone))


def _page(
    node: Node, account: str, status: str, symbol: str, token: str, limit: int
) -> tuple[list[OrderRecord], str, bool]:
    """Open orders below an id (token o<id>), then closed ones along the account's chain (token c<id>)."""
    record = node.machine.account(account)
    if record is None:
        raise RuleRefused(Code.account_not_found)
    part, number = _token(token)
    orders: list[OrderRecord] = []
    if status != "closed" and part != "c":
        below = number or http.ID_MAX
        open_orders = [o for o in node.machine.open_orders(account, symbol or None) if o.order_id < below]
        open_orders.sort(key=lambda order: order.order_id, reverse=True)
        orders = open_orders[:limit]
        if len(open_orders) > limit:
            return orders, f"o{orders[-1].order_id}", False
        if status == "open":
            return orders, "", False
        number = 0
        if len(orders) == limit:
            return orders, f"c{record.last_closed_order_id}" if record.last_closed_order_id else "", False
    following = number if part == "c" else record.last_closed_order_id
    scanned = 0
    while following and len(orders) < limit and scanned < _SCAN_MAX:
        page = node.history.closed_orders(following, limit=min(limit - len(orders), _SCAN_MAX - scanned))
        if any(order.account != account for order in page.rows):
            # A token is an id that can be guessed: it must not open another's orders.
            raise InvalidField("page_token is none that this list gave", field="page_token")
        scanned += len(page.rows)
        orders += [order for order in page.rows if not symbol or order.symbol == symbol]
        following = page.next_id
        if page.past_gone:
            return orders, "", True
    return orders, f"c{following}" if following else "", False


def _token(token: str) -> tuple[str, int]:
    if not token:
        return "", 0
    if token[0] not in "oc":
        raise InvalidField("page_token is none that this list gave", field="page_token")
    return token[0], http.whole(token[1:], "page_token", 1, http.ID_MAX)


def _view(node: Node, order: OrderRecord) -> wire.OrderView:
    catalogue: Catalogue = node.catalogue
    market = catalogue.market(order.symbol)
    if market is None:
        raise InternalError(f"order {order.order_id} is of an unknown instrument")
    return order_view(order, market)


ROUTES = [
    web.post("/v1/orders", place),
    web.get("/v1/orders", index),
    web.patch("/v1/orders", replace),
    web.delete("/v1/orders", cancel_some),
    web.get("/v1/orders:by_client_order_id", by_client_order_id),
    web.get("/v1/orders/{order_id}", show),
    web.patch("/v1/orders/{order_id}", replace),
    web.delete("/v1/orders/{order_id}", cancel),
]
