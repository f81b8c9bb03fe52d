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
from statemachine.results import Canceled, Placed, Replaced

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
    body = await http.read_body(request, _read_replace)
    order_id = str(http.identifier(request, "order_id"))
    if body.order_id and body.order_id != order_id:
        raise InvalidField("order_id in the body differs from the path", field="order_id")
    command = wire.ReplaceOrder(
        key=body.key,
        sent_at=body.sent_at,
        account=body.account or request.query.get("account", ""),
        order_id=order_id,
        qty=body.qty,
        limit_price=body.limit_price,
        client_order_id=body.client_order_id,
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


async def cancel(request: web.Request) -> web.Response:
    http.only(request, "account")
    command = wire.CancelOrder(
        account=request.query.get("account", ""), order_id=str(http.identifier(request, "order_id"))
    )
    prepared, outcome = await http.submit(request, command)
    node = request.app[NODE]
    if isinstance(outcome.result, Canceled) and prepared.instrument is None:
        # This node was behind when it came; by now it has applied the order and its end.
        prepared.instrument = node.catalogue.market_of_order(prepared.account, outcome.result.order_id, closed=True)
    return http.written(request, outcome, answer(prepared, outcome))


async def cancel_all(request: web.Request) -> web.Response:
    http.only(request, "account", "symbol")
    command = wire.CancelOrders(account=request.query.get("account", ""), symbol=request.query.get("symbol", ""))
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
    """The order that a key placed, for as long as keys are kept."""
    http.only(request, "account", "client_order_id")
    account = http.account_of(request, *READERS)
    key = request.query.get("client_order_id", "")
    if not key:
        raise InvalidField("name a client_order_id", field="client_order_id")
    node = request.app[NODE]
    found = node.answers.of_key(account, key)
    if found is not None and isinstance(found.result, Placed | Replaced):
        order = node.catalogue.order(found.result.order_id)
        if order is not None:
            return http.read_answer(request, _view(node, order))
    raise RuleRefused(Code.order_not_found)


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
    web.delete("/v1/orders", cancel_all),
    web.get("/v1/orders:by_client_order_id", by_client_order_id),
    web.get("/v1/orders/{order_id}", show),
    web.patch("/v1/orders/{order_id}", replace),
    web.delete("/v1/orders/{order_id}", cancel),
]
