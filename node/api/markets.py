"""/v1/assets, /v1/instruments, /v1/references, /v1/book, /v1/trades: what is traded, and at which prices."""

import time

import msgspec
from aiohttp import web

from cluster import wire
from node.api import http
from node.bodies import Reader
from node.context import NODE, Node
from node.errors import InternalError, InvalidField
from node.market import Market
from node.outcomes import RuleRefused, answer
from node.views import instrument_view, trade_view
from statemachine.calendar import opening
from statemachine.codes import Code
from statemachine.decimals import text
from statemachine.records import InstrumentRecord

_read_asset: Reader[wire.AddAsset] = Reader(wire.AddAsset)
_read_instrument: Reader[wire.AddInstrument] = Reader(wire.AddInstrument)
_read_change: Reader[wire.ChangeInstrument] = Reader(wire.ChangeInstrument)
_read_reference: Reader[wire.SetReference] = Reader(wire.SetReference)

DEPTH_DEFAULT = 50
DEPTH_MAX = 1_000


class AssetView(msgspec.Struct, frozen=True):
    asset: str
    scale: int
    supply_max: str


async def add_asset(request: web.Request) -> web.Response:
    return await _command(request, await http.read_body(request, _read_asset))


async def add_instrument(request: web.Request) -> web.Response:
    return await _command(request, await http.read_body(request, _read_instrument))


async def change_instrument(request: web.Request) -> web.Response:
    """Without a symbol in the path: the mode of all instruments."""
    body = await http.read_body(request, _read_change)
    symbol = request.match_info.get("symbol", body.symbol)
    if body.symbol and body.symbol != symbol:
        raise InvalidField("symbol in the body differs from the path", field="symbol")
    return await _command(request, msgspec.structs.replace(body, symbol=symbol))


async def set_reference(request: web.Request) -> web.Response:
    return await _command(request, await http.read_body(request, _read_reference))


async def _command(request: web.Request, command: wire.AnyRequest) -> web.Response:
    prepared, outcome = await http.submit(request, command)
    return http.written(request, outcome, answer(prepared, outcome))


@http.reading
async def list_assets(request: web.Request) -> web.Response:
    http.only(request)
    node = request.app[NODE]
    views = [
        AssetView(asset.asset, asset.scale, text(asset.supply_units_max, asset.scale))
        for asset in node.machine.assets()
    ]
    return http.read_answer(request, http.Page(views))


@http.reading
async def list_instruments(request: web.Request) -> web.Response:
    http.only(request)
    node = request.app[NODE]
    return http.read_answer(request, http.Page([_view(node, record) for record in node.machine.instruments()]))


@http.reading
async def show_instrument(request: web.Request) -> web.Response:
    http.only(request)
    node = request.app[NODE]
    record = node.machine.instrument(request.match_info["symbol"])
    if record is None:
        raise RuleRefused(Code.instrument_not_found)
    return http.read_answer(request, _view(node, record))


@http.reading
async def book(request: web.Request) -> web.Response:
    http.only(request, "depth")
    node = request.app[NODE]
    given = request.query.get("depth")
    depth = DEPTH_DEFAULT if given is None else http.whole(given, "depth", 1, DEPTH_MAX)
    market = _market(node, request.match_info["symbol"])
    sides = node.machine.book(market.symbol, depth)
    if sides is None:
        raise RuleRefused(Code.instrument_not_found)
    bids, asks = (
        [wire.BookLevel(market.price(ticks), market.quantity(lots), orders) for ticks, lots, orders in side]
        for side in sides
    )
    return http.read_answer(request, wire.BookView(market.symbol, node.machine.applied_index, bids, asks))


@http.reading
async def trades(request: web.Request) -> web.Response:
    """The newest first: an instrument's, without names, or an account's, with its own side."""
    http.only(request, "account", "symbol", "limit", "page_token")
    node = request.app[NODE]
    limit = http.page_limit(request, node)
    start = http.page_token(request)
    symbol = request.query.get("symbol", "")
    if symbol and "account" not in request.query:
        record = node.machine.instrument(symbol)
        if record is None:
            raise RuleRefused(Code.instrument_not_found)
        page = node.history.trades_of_symbol(record.last_trade_id if start is None else start, limit=limit)
        rows, account = page.rows, ""
        foreign = any(row.symbol != symbol for row in rows)
    else:
        account = http.account_of(request, "trader", "auditor")
        owner = node.machine.account(account)
        if owner is None:
            raise RuleRefused(Code.account_not_found)
        page = node.history.trades_of_account(account, owner.last_trade_id if start is None else start, limit=limit)
        foreign = any(account not in (row.taker_account, row.maker_account) for row in page.rows)
        rows = [row for row in page.rows if not symbol or row.symbol == symbol]
    if foreign:
        # A token is an id that can be guessed: it must not open another's trades.
        raise InvalidField("page_token is none that this list gave", field="page_token")
    views = [trade_view(row, _market(node, row.symbol), account) for row in rows]
    return http.read_answer(request, http.Page(views, str(page.next_id) if page.next_id else None, page.past_gone))


def _view(node: Node, record: InstrumentRecord) -> wire.InstrumentView:
    market = _market(node, record.symbol)
    # The rules go by replicated time, which stands still between batches; a reader wants to know about now.
    now_us = max(node.machine.time_us, time.time_ns() // 1000)
    return instrument_view(record, market, is_open=_is_open(record, now_us))


def _is_open(record: InstrumentRecord, now_us: int) -> bool:
    return not record.calendar.weekly or opening(record.calendar, now_us)[0] > 0


def _market(node: Node, symbol: str) -> Market:
    market = node.catalogue.market(symbol)
    if market is None:
        if node.machine.instrument(symbol) is not None:
            raise InternalError(f"instrument {symbol} has an unknown asset")
        raise RuleRefused(Code.instrument_not_found)
    return market


ROUTES = [
    web.post("/v1/assets", add_asset),
    web.get("/v1/assets", list_assets),
    web.post("/v1/instruments", add_instrument),
    web.get("/v1/instruments", list_instruments),
    web.patch("/v1/instruments", change_instrument),
    web.get("/v1/instruments/{symbol}", show_instrument),
    web.patch("/v1/instruments/{symbol}", change_instrument),
    web.post("/v1/references", set_reference),
    web.get("/v1/book/{symbol}", book),
    web.get("/v1/trades", trades),
]
