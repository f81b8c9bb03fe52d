"""/openapi.json: what this gateway answers, from one table; what it relays is in the node's own document."""

from functools import cache
from typing import Any

import msgspec
from aiohttp import web
from msgspec import Struct

from gateway.api.keys import SealAnew
from gateway.api.prefs import AlertBody, Letters
from gateway.prefs.fields import Preferences

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

_AGE = {
    "X-As-Of": {"description": "Up to when the answer is the newest.", "schema": _TIME},
    "X-Staleness-Ms": {"description": "How long ago that was; -1: nobody knows.", "schema": {"type": "integer"}},
}


@cache
def document() -> bytes:
    bodies = [line.body for line in TABLE if line.body is not None]
    _, schemas = msgspec.json.schema_components(bodies, ref_template="#/components/schemas/{name}")
    paths: dict[str, dict[str, Any]] = {}
    for line in TABLE:
        paths.setdefault(line.path, {})[line.method] = _operation(line)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Tiebreak gateway",
                "version": "1",
                "description": "What a node answers (orders, accounts, transfers, ledger, commands, assets,"
                " instruments, references, book, trades) is relayed unchanged; see the node's own document.",
            },
            "paths": paths,
            "components": {
                "schemas": schemas,
                "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
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
