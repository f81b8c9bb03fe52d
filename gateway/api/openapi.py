"""/openapi.json: what this address answers: a table of the gateway's own, and of the node's what is relayed."""

from functools import cache
from typing import Any

import msgspec
from aiohttp import web
from msgspec import Struct

from gateway.api.keys import SealAnew
from gateway.api.prefs import AlertBody, Letters
from gateway.api.relayed import NOT_RELAYED
from gateway.prefs.fields import Preferences
from node import openapi as of_node

_TEXT: dict[str, Any] = {"type": "string", "maxLength": 80}
_WHOLE: dict[str, Any] = {"type": "integer", "minimum": 1}
_TIME: dict[str, Any] = {"type": "string", "format": "date-time"}


class Line(Struct, frozen=True):
    """One line of the table. roles: who may; empty: no token is asked for. body: of what is written."""

    method: str
    path: str
    summary: str
    parameters: dict[str, dict[str, Any]] = {}
    roles: tuple[str, ...] = ("trader", "custodian", "operator", "feed", "auditor")
    body: type | None = None
    answers: str = "application/json"


def _enum(*words: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(words)}


_ACCOUNT = {"account": _TEXT}
_OWN = ("trader", "auditor")
_READS = ("trader", "custodian", "auditor")
_SYMBOLS = {"symbols": {"type": "string", "description": "Up to 200, with commas: AAPL,MSFT."}}
_PAGE = {"limit": _WHOLE, "page_token": _TEXT}

TABLE = (
    Line("get", "/v1/market/quotes", "Best bid, ask and last price of symbols", _SYMBOLS),
    Line("get", "/v1/market/nbbo", "The same with each venue's quote", _SYMBOLS),
    Line("get", "/v1/market/trades", "Newest trades of a symbol at all venues", {"symbol": _TEXT, "limit": _WHOLE}),
    Line(
        "get", "/v1/market/candles", "Bars of a symbol, oldest first",
        {"symbol": _TEXT, "interval": _enum("1m", "5m", "1h"), "start": _TIME, "end": _TIME, **_PAGE},
    ),
    Line(
        "get", "/v1/market/book", "A book, or its diffs behind a seq",
        {"symbol": _TEXT, "venue": _TEXT, "depth": _WHOLE, "since": {"type": "integer", "minimum": 0}},
    ),
    Line("get", "/v1/portfolio", "Cash, positions, market value and gains of an account", _ACCOUNT, _READS),
    Line("get", "/v1/portfolio/lots", "Tax lots, first in first out", {**_ACCOUNT, "asset": _TEXT}, _READS),
    Line("get", "/v1/portfolio/gains", "Realised gains by year", {**_ACCOUNT, "year": _WHOLE}, _READS),
    Line("get", "/v1/history/trades", "An account's fills, newest first", {**_ACCOUNT, "symbol": _TEXT, **_PAGE}, _OWN),
    Line(
        "get", "/v1/export", "Trades, ledger or lots of an account as a file",
        {
            **_ACCOUNT, "kind": _enum("trades", "ledger", "lots"), "format": _enum("csv", "parquet"), "index": _WHOLE,
        },
        _READS, None, "text/csv",
    ),
    Line(
        "get", "/v1/leaderboard", "Who gained most", {"period": _enum("day", "week", "all"), "limit": _WHOLE}
    ),
    Line("get", "/v1/leaderboard/me", "An account's own places", _ACCOUNT, _OWN),
    Line("get", "/v1/preferences", "All preferences", _ACCOUNT, _OWN),
    Line("patch", "/v1/preferences", "Set some preferences; null unsets", _ACCOUNT, ("trader",), Preferences),
    Line("get", "/v1/alerts", "All price alerts", _ACCOUNT, _OWN),
    Line("post", "/v1/alerts", "Add a price alert", _ACCOUNT, ("trader",), AlertBody),
    Line("get", "/v1/alerts/{alert_id}", "One price alert", _ACCOUNT, _OWN),
    Line("put", "/v1/alerts/{alert_id}", "Add or replace a price alert", _ACCOUNT, ("trader",), AlertBody),
    Line("delete", "/v1/alerts/{alert_id}", "Remove a price alert", _ACCOUNT, ("trader",)),
    Line(
        "get", "/v1/notifications/dead-letters", "What could not be delivered", {**_ACCOUNT, "limit": _WHOLE},
        ("operator",),
    ),
    Line("post", "/v1/notifications/dead-letters/redrive", "Send these again", {}, ("operator",), Letters),
    Line("post", "/v1/notifications/dead-letters/forget", "Throw these away", {}, ("operator",), Letters),
    Line("get", "/v1/gateway", "How this gateway is"),
    Line("get", "/v1/gateway/keys", "Which keys seal contacts and secrets", {}, ("operator",)),
    Line("post", "/v1/gateway/keys/seal-anew", "Seal all under the newest key", {}, ("operator",), SealAnew),
    Line("get", "/healthz", "The process answers", {}, ()),
    Line("get", "/readyz", "It takes traffic", {}, ()),
    Line("get", "/metrics", "For Prometheus", {}, (), None, "text/plain"),
)  # fmt: skip

ABOUT = """Prices, portfolios, preferences and alerts from this site, through any partition, each answer with its age.
What needs the cluster is answered by a node behind this address, unchanged: orders, accounts, history, events. A
program needs no other address. Orders are streamed on the WebSocket /v1/orders/stream, prices on /v1/stream."""

LOST_NODE = """Through a gateway this stream outlives its node. Frames that a lost node has not answered are answered
`outcome_unknown`, each command with its key: ask, or send it again. New frames go to another node, private events go
on where they stopped. So later frames may be logged before one whose outcome is unknown and that is sent again; a
client that needs its order opens the stream with `?on_node_lost=close`: it ends with its node (1012), what is not
answered by then is unknown, and nothing else is taken before the client comes back. A stream that holds a
cancel-on-disconnect session ends with its node (1012). Without any node: `no_node`, nothing was sent, and 1013. All
other close codes are the node's."""

_BEARER = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
_FROM = {"description": "The node that answered.", "schema": {"type": "string"}}
_AGE = {
    "X-As-Of": {"description": "Up to when the answer is the newest.", "schema": _TIME},
    "X-Staleness-Ms": {"description": "How long ago that was; -1: nobody knows.", "schema": {"type": "integer"}},
}


def relayed() -> list[of_node.Operation]:
    """The lines of the node's document that are answered here, by a node."""
    return [one for one in of_node.TABLE if (one.method, one.path) not in NOT_RELAYED]


@cache
def document() -> bytes:
    bodies = [line.body for line in TABLE if line.body is not None]
    _, schemas = msgspec.json.schema_components(bodies, ref_template="#/components/schemas/{name}")
    paths: dict[str, dict[str, Any]] = {}
    for line in TABLE:
        paths.setdefault(line.path, {})[line.method] = _operation(line)
    node = msgspec.json.decode(of_node.document())
    for one in relayed():
        said = node["paths"][one.path][one.method]
        said["responses"]["200"]["headers"] |= {"X-Relayed-From": _FROM, **_AGE}
        paths.setdefault(one.path, {})[one.method] = said
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Tiebreak gateway",
                "version": "1",
                "description": ABOUT,
            },
            "paths": paths,
            "components": {
                "schemas": node["components"]["schemas"] | schemas,
                "securitySchemes": node["components"]["securitySchemes"] | {"bearer": _BEARER},
            },
        }
    )


def _operation(line: Line) -> dict[str, Any]:
    found: dict[str, Any] = {
        "summary": line.summary,
        "responses": {
            "200": {"description": "OK", "headers": _AGE, "content": {line.answers: {}}},
            "default": {"description": "An error: code, error, message, field, request_id."},
        },
        "parameters": [
            {"name": name, "in": "query", "schema": schema} for name, schema in line.parameters.items()
        ] + [
            {"name": name.strip("{}"), "in": "path", "required": True, "schema": _TEXT}
            for name in line.path.split("/") if name.startswith("{")
        ],
    }  # fmt: skip
    if line.roles:
        found["security"] = [{"bearer": list(line.roles)}]
    if line.body is not None:
        schema = {"$ref": f"#/components/schemas/{line.body.__name__}"}
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return found


async def openapi(_request: web.Request) -> web.Response:
    return web.Response(
        body=document(), content_type="application/json", headers={"Cache-Control": "public, max-age=300"}
    )


ROUTES = [web.get("/openapi.json", openapi)]
