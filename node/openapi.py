"""/openapi.json: what this node answers, made from the wire structs and one table of routes. /docs shows the same."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import msgspec
from aiohttp import web
from msgspec import Struct

from cluster import wire
from node.openapi_words import MEANS

VERSION = "1"
_ROOT = "#/components/schemas/"
_TRADER, _CUSTODIAN, _OPERATOR, _FEED, _AUDITOR = "trader", "custodian", "operator", "feed", "auditor"
_ALL = (_TRADER, _CUSTODIAN, _OPERATOR, _FEED, _AUDITOR)


class Parameter(Struct, frozen=True):
    name: str
    text: str
    schema: dict[str, Any]
    place: str = "query"
    required: bool = False


class Operation(Struct, frozen=True, kw_only=True):
    """One line of the table. roles empty: no token is asked for. answer None: text or nothing."""

    method: str
    path: str
    summary: str
    roles: tuple[str, ...] = _ALL
    body: type | None = None
    answer: Any = None
    parameters: tuple[Parameter, ...] = ()
    is_command: bool = False
    is_read: bool = False


_TEXT64: dict[str, Any] = {"type": "string", "maxLength": 64}
_ID: dict[str, Any] = {"type": "string", "pattern": "^[0-9]{1,19}$"}
_ORDER_ID = Parameter("order_id", "Id of an order.", _ID, "path", True)
_ACCOUNT = Parameter("account", "May be left out with a token of exactly one account.", _TEXT64)
_SYMBOL = Parameter("symbol", "Only this instrument.", _TEXT64)
_SYMBOL_IN_PATH = Parameter("symbol", "Symbol of an instrument.", _TEXT64, "path", True)
_PAGE_TOKEN = Parameter("page_token", "`next_page_token` of the page before.", _TEXT64)
_LIMIT = Parameter("limit", "Rows of a page.", {"type": "integer", "minimum": 1, "maximum": 1000})
_KEY = Parameter(
    "Idempotency-Key",
    "Unique per account (role, for non-traders). The same request with the same key is executed once and "
    "answered alike. Or give `key` or `client_order_id` in the body.",
    {"type": "string", "pattern": r"^[\x21-\x7e]{1,64}$"},
    "header",
)
_TIMEOUT = Parameter(
    "timeout_ms", "How long to wait for the outcome.", {"type": "integer", "minimum": 10, "maximum": 60000}
)
_CONSISTENCY = Parameter(
    "consistency",
    "linearizable: reflects all that was acknowledged before. local: what this node has, at X-Log-Index.",
    {"type": "string", "enum": ["linearizable", "local"], "default": "linearizable"},
)
_SESSION_TOKEN = Parameter(
    "X-Session-Token", "From an earlier answer: never read anything older than that.", {"type": "string"}, "header"
)
_AFTER = Parameter("after", "A position group.epoch.index.seq; left out: from now on.", {"type": "string"})


class AssetView(Struct, frozen=True):
    asset: str
    scale: int
    supply_max: str


class FeedPage(Struct, frozen=True):
    """Events in order. next: ask again behind this position, on any replica."""

    events: list[dict[str, Any]]
    next: str


class SnapshotPage(Struct, frozen=True):
    """Rows of one table, all at one log index. position: follow the feed behind it when all pages are read."""

    position: str
    table: str
    rows: list[dict[str, Any]]
    next_page_token: str | None


def _list(item: type) -> tuple[str, type]:
    """A page of items; its schema is spelled in `_schema`."""
    return ("page", item)


def _command(method: str, path: str, summary: str, roles: tuple[str, ...], body: Any, *more: Parameter) -> Operation:
    return Operation(
        method=method, path=path, summary=summary, roles=roles, body=body, answer=wire.Answer,
        parameters=(*more, _KEY, _TIMEOUT), is_command=True,
    )  # fmt: skip


def _read(path: str, summary: str, roles: tuple[str, ...], answer: Any, *more: Parameter) -> Operation:
    return Operation(
        method="get", path=path, summary=summary, roles=roles, answer=answer,
        parameters=(*more, _CONSISTENCY, _SESSION_TOKEN), is_read=True,
    )  # fmt: skip


def _order_command(method: str, path: str, summary: str, body: Any, *more: Parameter) -> Operation:
    return msgspec.structs.replace(
        _command(method, path, summary, (_TRADER,), body, *more), answer=wire.OrderView | wire.Answer
    )


_TRADER_READS = (_TRADER, _AUDITOR)
_ACCOUNT_READS = (_TRADER, _CUSTODIAN, _AUDITOR)
_WITHDRAWAL = Parameter("withdrawal_id", "Id of a pending withdrawal.", _ID, "path", True)
_CLIENT_ID = Parameter("client_order_id", "The key that placed it.", _TEXT64, required=True)
_NAMED = Parameter("client_order_id", "The key under which the order was placed or last replaced.", _TEXT64)
_SENT_AT = Parameter(
    "sent_at", "When it was first sent: after a day a repeat is refused.", {"type": "string", "format": "date-time"}
)
_ORDER_STATES = Parameter("status", "Which.", {"type": "string", "enum": ["open", "closed", "all"], "default": "open"})
_DIGEST_AT = Parameter(
    "digest_at",
    "Give the digest after this entry, to compare replicas by; empty where it is no longer known.",
    {"type": "integer", "minimum": 0},
)
_DEPTH = Parameter("depth", "Price levels per side.", {"type": "integer", "minimum": 1, "maximum": 1000})
_ANY_ACCOUNT = Parameter("account", "Id of an account.", _TEXT64, "path", True)
_ANY_KEY = Parameter("key", "The key of a command.", _TEXT64, "path", True)
_MEMBER = Parameter("name", "Name of a member.", _TEXT64, "path", True)
_WAIT = Parameter("wait_ms", "Wait for news so long.", {"type": "integer", "minimum": 0, "maximum": 20000})
_FEED_LIMIT = Parameter("limit", "Events or rows of a page.", {"type": "integer", "minimum": 1, "maximum": 5000})
_SNAPSHOT_TOKEN = Parameter("page_token", "`next_page_token` of the page before.", {"type": "string", "maxLength": 256})

TABLE: tuple[Operation, ...] = (
    _order_command("post", "/v1/orders", "Place an order", wire.PlaceOrder),
    _read("/v1/orders", "List orders, newest first", _TRADER_READS, _list(wire.OrderView),
          _ACCOUNT, _SYMBOL, _ORDER_STATES, _LIMIT, _PAGE_TOKEN),
    _order_command("patch", "/v1/orders", "Replace the order of a client_order_id", wire.ReplaceOrder,
                   _NAMED, _ACCOUNT),
    _command("delete", "/v1/orders",
             "Cancel the order of a client_order_id, or all open orders of an account or an instrument",
             (_TRADER, _OPERATOR), None, _NAMED, _ACCOUNT, _SYMBOL, _SENT_AT),
    _read("/v1/orders:by_client_order_id", "Show the order that a key placed", _TRADER_READS, wire.OrderView,
          _ACCOUNT, _CLIENT_ID),
    _read("/v1/orders/{order_id}", "Show an order", _TRADER_READS, wire.OrderView, _ORDER_ID),
    _order_command("patch", "/v1/orders/{order_id}", "Replace an order: new total quantity, new price",
                   wire.ReplaceOrder, _ORDER_ID, _ACCOUNT),
    _command("delete", "/v1/orders/{order_id}", "Cancel an order", (_TRADER,), None, _ORDER_ID, _ACCOUNT, _SENT_AT),
    _command("post", "/v1/accounts", "Open an account", (_CUSTODIAN,), wire.OpenAccount),
    _read("/v1/accounts", "List the accounts that the token names", _ACCOUNT_READS, _list(wire.AccountView)),
    _read("/v1/accounts/{account}", "Show an account and its balances", _ACCOUNT_READS, wire.AccountView,
          _ANY_ACCOUNT),
    _command("post", "/v1/transfers", "Deposit, withdraw (pending) or transfer", (_CUSTODIAN,), wire.TransferFunds),
    _read("/v1/transfers", "List an account's pending withdrawals, oldest first", _ACCOUNT_READS,
          _list(wire.WithdrawalView), _ACCOUNT, _LIMIT, _PAGE_TOKEN),
    _command("post", "/v1/transfers/{withdrawal_id}", "Post or void a pending withdrawal", (_CUSTODIAN,),
             wire.CloseWithdrawal, _WITHDRAWAL),
    _read("/v1/ledger", "List an account's ledger rows, newest first", _ACCOUNT_READS, _list(wire.LedgerView),
          _ACCOUNT, _LIMIT, _PAGE_TOKEN),
    _command("post", "/v1/assets", "Make an asset known", (_OPERATOR,), wire.AddAsset),
    _read("/v1/assets", "List assets", _ALL, _list(AssetView)),
    _command("post", "/v1/instruments", "List an instrument", (_OPERATOR,), wire.AddInstrument),
    _read("/v1/instruments", "List instruments", _ALL, _list(wire.InstrumentView)),
    _command("patch", "/v1/instruments", "Set the mode of all instruments", (_OPERATOR,), wire.ChangeInstrument),
    _read("/v1/instruments/{symbol}", "Show an instrument", _ALL, wire.InstrumentView, _SYMBOL_IN_PATH),
    _command("patch", "/v1/instruments/{symbol}", "Change mode, fees, limits or calendar", (_OPERATOR,),
             wire.ChangeInstrument, _SYMBOL_IN_PATH),
    _command("post", "/v1/references", "Tell a reference price", (_FEED,), wire.SetReference),
    _read("/v1/book/{symbol}", "Show the order book", _ALL, wire.BookView, _SYMBOL_IN_PATH, _DEPTH),
    _read("/v1/trades", "List trades, newest first: of an instrument, or of an account with its own side", _ALL,
          _list(wire.TradeView), _ACCOUNT, _SYMBOL, _LIMIT, _PAGE_TOKEN),
    _read("/v1/commands/{key}", "Show what became of a command", _ALL, wire.Answer, _ANY_KEY, _ACCOUNT),
    Operation(method="get", path="/v1/feed", summary="Follow all events; upgrade to a WebSocket to be told at once",
              roles=(_AUDITOR,), answer=FeedPage, parameters=(_AFTER, _FEED_LIMIT, _WAIT)),
    Operation(method="get", path="/v1/feed/snapshot", summary="Read the whole state at one index, page by page",
              roles=(_AUDITOR,), answer=SnapshotPage, parameters=(_SNAPSHOT_TOKEN, _FEED_LIMIT)),
    Operation(method="get", path="/v1/cluster/members", summary="Show who belongs to the cluster, and how far each is",
              roles=(_OPERATOR, _AUDITOR), answer=wire.ClusterView, parameters=(_CONSISTENCY, _TIMEOUT)),
    Operation(method="post", path="/v1/cluster/members", summary="Add a member, as learner or read replica",
              roles=(_OPERATOR,), body=wire.AddMember, answer=wire.ClusterView, parameters=(_TIMEOUT,)),
    Operation(method="post", path="/v1/cluster/members/{name}/promote",
              summary="Make a voter of a learner that has caught up",
              roles=(_OPERATOR,), answer=wire.ClusterView, parameters=(_MEMBER, _TIMEOUT)),
    Operation(method="post", path="/v1/cluster/members/{name}/demote", summary="Make a learner of a voter",
              roles=(_OPERATOR,), answer=wire.ClusterView, parameters=(_MEMBER, _TIMEOUT)),
    Operation(method="delete", path="/v1/cluster/members/{name}", summary="Remove a member; its name never comes back",
              roles=(_OPERATOR,), answer=wire.ClusterView, parameters=(_MEMBER, _TIMEOUT)),
    Operation(method="post", path="/v1/cluster/transfer", summary="Hand leadership to another member",
              roles=(_OPERATOR,), body=wire.TransferLeadership, answer=wire.LeadershipView,
              parameters=(_TIMEOUT,)),
    Operation(
        method="get", path="/v1/status", summary="Show this member", answer=wire.MemberView, parameters=(_DIGEST_AT,)
    ),
    Operation(method="get", path="/healthz", summary="Whether the process answers", roles=()),
    Operation(method="get", path="/readyz", summary="Whether this node takes traffic; probes the read path", roles=()),
    Operation(method="get", path="/metrics", summary="Prometheus metrics", roles=()),
)  # fmt: skip

NOT_LISTED = frozenset({"/v1/stream", "/v1/orders/stream", "/openapi.json", "/docs"})
"""Paths that OpenAPI can't describe, or that describe themselves."""

ERRORS = {
    400: "Not the JSON or msgpack of this request, or no key.",
    401: "No token, or one that can't be believed.",
    403: "The role may never do this, or there is not enough money.",
    404: "Nothing of that name, or it belongs to someone else: the two are told apart for nobody.",
    408: "The request did not arrive in time.",
    409: "It exists already, or the key was used with another request.",
    410: "The past that was asked for is no longer held: snapshot_required.",
    413: "The body is too large.",
    415: "Content-Type must be application/json or application/msgpack.",
    422: "A field is out of its bounds, or a rule refuses; `error` and `field` say which.",
    429: "Rate limit or a full queue. Nothing was logged; Retry-After says when to try again.",
    431: "The headers are too large.",
    503: "No leader, no quorum, not ready: nothing was logged. Or outcome_unknown (`definite` is false): the command "
    "may still take effect; do NOT treat as failure, send it again with the same key.",
}
_HEADERS = {
    "X-Request-ID": "Finds this request in the logs.",
    "X-Log-Index": "The log index that the answer reflects.",
    "X-Session-Token": "Present it with a read to see at least this.",
    "X-RateLimit-Limit": "Size of the bucket.",
    "X-RateLimit-Remaining": "What is left in it.",
    "X-RateLimit-Reset": "When it is full, in seconds since 1970.",
}


@cache
def document() -> bytes:
    """The OpenAPI 3.1 document, as JSON."""
    kinds: list[type] = [wire.ErrorBody]
    for operation in TABLE:
        for kind in (operation.body, operation.answer):
            kinds += _structs(kind)
    _, components = msgspec.json.schema_components(
        dict.fromkeys(kinds), ref_template=_ROOT + "{name}", schema_hook=any_json
    )
    for kind in kinds:
        if issubclass(kind, wire.Request):
            # Over HTTP the path says what to do: the tag of the stream may be left out.
            schema = components[kind.__name__]
            schema["required"] = [name for name in schema.get("required", []) if name != "do"]
    for schema in components.values():
        for name, field in schema.get("properties", {}).items():
            # Beside a reference too: OpenAPI 3.1 allows it.
            field.setdefault("description", MEANS[name])
    paths: dict[str, dict[str, Any]] = {}
    for operation in TABLE:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    body = {
        "openapi": "3.1.0",
        "info": {"title": "Tiebreak node", "version": VERSION, "description": ABOUT},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT (EdDSA)"}},
        },
    }
    return msgspec.json.format(msgspec.json.encode(body), indent=1)


def any_json(kind: type) -> dict[str, Any]:
    return {"description": "Any JSON."}


def _structs(kind: Any) -> Iterable[type]:
    if kind is None:
        return ()
    if isinstance(kind, tuple):
        return (kind[1],)
    return getattr(kind, "__args__", (kind,))


def _schema(kind: Any) -> dict[str, Any]:
    if isinstance(kind, tuple):
        rows = {"type": "array", "items": {"$ref": _ROOT + kind[1].__name__}}
        token = {"type": ["string", "null"]}
        properties = {"items": rows, "next_page_token": token, "past_gone": {"type": "boolean"}}
        return {"type": "object", "properties": properties, "required": ["items", "next_page_token"]}
    refs = [{"$ref": _ROOT + struct.__name__} for struct in _structs(kind)]
    return refs[0] if len(refs) == 1 else {"anyOf": refs}


def _operation(operation: Operation) -> dict[str, Any]:
    said: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": f"{operation.method} {operation.path}",
        "parameters": [
            {"name": p.name, "in": p.place, "required": p.required, "description": p.text, "schema": p.schema}
            for p in operation.parameters
        ],
        "responses": _responses(operation),
    }
    if operation.roles:
        said["security"] = [{"token": []}]
        said["description"] = f"Roles: {', '.join(operation.roles)}."
    if operation.body is not None:
        schema = _schema(operation.body)
        content = {"application/json": {"schema": schema}, "application/msgpack": {"schema": schema}}
        said["requestBody"] = {"required": True, "content": content}
    return said


def _responses(operation: Operation) -> dict[str, Any]:
    headers = {name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()}
    done: dict[str, Any] = {"description": "Done.", "headers": headers}
    if operation.answer is not None:
        done["content"] = {"application/json": {"schema": _schema(operation.answer)}}
    error = {"application/json": {"schema": {"$ref": _ROOT + "ErrorBody"}}}
    expected = set(ERRORS) if operation.roles else {408, 413, 415, 429, 431, 503}
    answers = {str(status): {"description": ERRORS[status], "content": error} for status in sorted(expected)}
    return {"200": done, **answers}


ABOUT = """Orders, accounts and history of a replicated order book. Amounts, prices and quantities are decimal
strings; requests may give numbers. Times are RFC 3339 in UTC. Every command has a key and takes effect once."""


async def _openapi(request: web.Request) -> web.Response:
    return web.Response(body=document(), content_type="application/json")


def add_routes(app: web.Application) -> None:
    """Serve /openapi.json, to anyone."""
    app.router.add_get("/openapi.json", _openapi)
