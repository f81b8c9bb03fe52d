"""/docs: the API for people, one page that fetches nothing from anywhere, made from what /openapi.json is made of."""

import html
import inspect
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import msgspec
from aiohttp import web

from cluster import wire
from node import errors, openapi
from node.outcomes import ERRORS, FIELDS
from statemachine.codes import Code

_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}
h2{margin:2.5rem 0 .75rem}code,pre{font:14px/1.4 ui-monospace,monospace}a{color:#05c;text-decoration:none}
pre{background:#f4f4f4;padding:.75rem;overflow-x:auto}details{border-top:1px solid #ddd;padding:.5rem 0}
summary{cursor:pointer;display:flex;gap:.75rem;align-items:baseline}summary code{font-weight:600;white-space:nowrap}
summary::before{content:"+";width:.6rem;color:#888}details[open] summary::before{content:"\\2212"}
b{flex:0 0 4.5rem;text-transform:uppercase}summary i{flex:1;font-style:normal}
.role{flex:0 1 14rem;color:#666;text-align:right;font-size:14px}.in{margin:.25rem 0 .75rem 6.6rem}
.in p{margin:.25rem 0}table{border-collapse:collapse;width:100%}td{border-top:1px solid #eee;
padding:.25rem 1rem .25rem 0;vertical-align:top}td:first-child{white-space:nowrap}td.what{color:#666;width:14rem}
@media(max-width:48rem){summary{flex-wrap:wrap}summary i{flex-basis:100%}.role{text-align:left}.in{margin-left:0}}
@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}a{color:#8bf}pre{background:#222}
td,details{border-color:#333}.role,td.what{color:#999}}"""

_TRY = """TOKEN=$(tiebreak token trader --account alice)
curl $NODE/v1/orders -H "Authorization: Bearer $TOKEN" -H "Idempotency-Key: my-order-1" \\
  -H "Content-Type: application/json" \\
  -d '{"symbol": "AAPL", "side": "buy", "type": "limit", "qty": "10", "limit_price": "187.10"}'"""

_STREAM = """Messages of one stream are JSON in text frames, or msgpack in binary ones (subprotocol tiebreak.msgpack). A
stream that brought no Authorization header authenticates first. Answers come as their commands are applied: frames may
be answered out of order, and `id` says which."""

_SAID = (wire.Authenticate, wire.Submit, wire.Listen, wire.GuardOrders, wire.Ping)
_HEARD = (
    wire.Authorized, wire.Answers, wire.Listening, wire.OrderUpdates, wire.Guarding, wire.Heartbeat, wire.Pong,
    wire.StreamError, wire.Closing,
)  # fmt: skip


@cache
def page() -> bytes:
    """The whole page, as HTML."""
    schemas = msgspec.json.decode(openapi.document())["components"]["schemas"]
    return "".join(
        (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>Tiebreak node</title>'
            f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>',
            f"<h1>Tiebreak node</h1><p>{_text(openapi.ABOUT)}</p><pre>{_text(_TRY)}</pre>",
            '<p><a href="#stream">WebSocket</a> · <a href="#answers">Answers</a> · <a href="#errors">Errors</a> · '
            'for programs: <a href="openapi.json">openapi.json</a></p>',
            *(_operation(operation, schemas) for operation in openapi.TABLE),
            f'<h2 id="stream">WebSocket <code>/v1/stream</code></h2><p>{_text(_STREAM)}</p>',
            "<p>What a client says:</p>",
            *(_message(kind, "action") for kind in _SAID),
            "<p>What it hears:</p>",
            *(_message(kind, "stream") for kind in _HEARD),
            '<h2 id="answers">Answers</h2>',
            *(_struct(name, schema) for name, schema in schemas.items() if not _is_request(name)),
            '<h2 id="errors">Errors</h2><p>Each is an <a href="#ErrorBody">ErrorBody</a>. By HTTP status:</p>',
            _table((str(status), "", text) for status, text in openapi.ERRORS.items()),
            "<p>By word:</p>",
            _table(_words()),
            "</html>",
        )
    ).encode()


def _operation(operation: openapi.Operation, schemas: dict[str, Any]) -> str:
    rows = [
        (p.name, f"{p.place}{', required' if p.required else ''}: {_kind(p.schema)}", p.text)
        for p in operation.parameters
    ]
    if operation.body is not None:
        rows += _fields(schemas[operation.body.__name__], where="body")
    answers = " or ".join(f'<a href="#{name}">{name}</a>' for name in _answers(operation.answer))
    if isinstance(operation.answer, tuple):
        answers = f"<code>items</code>, each {answers}, and <code>next_page_token</code>"
    return _details(
        operation.method,
        operation.path,
        operation.summary,
        ", ".join(operation.roles) or "anyone",
        _table(rows) + (f"<p>Answer: {answers}</p>" if answers else ""),
    )


def _message(kind: type, tag_field: str) -> str:
    """One kind of message of the stream. Its fields are those of the struct."""
    _, schemas = msgspec.json.schema_components([kind], schema_hook=openapi.any_json)
    schema = schemas[kind.__name__]
    rows = [row for row in _fields(schema, where="") if row[0] != tag_field]
    tag = str(kind.__struct_config__.tag)  # type: ignore[attr-defined]
    return _details("", f'"{tag_field}": "{tag}"', "", "", f"<p>{_text(inspect.getdoc(kind) or '')}</p>{_table(rows)}")


def _struct(name: str, schema: dict[str, Any]) -> str:
    about = schema.get("description", "")
    inner = (f"<p>{_text(about)}</p>" if about else "") + _table(_fields(schema, where=""))
    return f'<div id="{name}">{_details("", name, "", "", inner)}</div>'


def _details(method: str, name: str, summary: str, right: str, inner: str) -> str:
    first = f"<b>{method}</b>" if method else ""
    return (
        f"<details><summary>{first}<code>{_text(name)}</code><i>{_text(summary)}</i>"
        f'<span class="role">{right}</span></summary><div class="in">{inner}</div></details>'
    )


def _fields(schema: dict[str, Any], *, where: str) -> list[tuple[str, str, str]]:
    required = schema.get("required", ())
    rows = []
    for name, field in schema.get("properties", {}).items():
        if name == "do" and where:
            continue
        place = ", ".join(word for word in (where, "required" if where and name in required else "") if word)
        rows.append((name, f"{place}: {_kind(field)}" if place else _kind(field), field.get("description", "")))
    return rows


def _kind(field: dict[str, Any]) -> str:
    """A field's type and bounds in a few words."""
    if "const" in field:
        return str(field["const"])
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if "anyOf" in field:
        kinds = list(dict.fromkeys(_kind(one) for one in field["anyOf"] if one != {"type": "null"}))
        return "decimal, as text or number" if "number" in kinds else " or ".join(kinds)
    if "$ref" in field:
        return str(field["$ref"]).rsplit("/", 1)[-1]
    kind = str(field.get("type", "any"))
    if kind == "integer" and "minimum" in field and "maximum" in field:
        return f"{field['minimum']:,} to {field['maximum']:,}"
    if kind == "string" and "maxLength" in field:
        return f"text, up to {field['maxLength']}"
    if kind == "array":
        return f"list of {_kind(field.get('items', {}))}"
    return {"string": "text", "integer": "whole number", "boolean": "true or false"}.get(kind, kind)


def _answers(answer: Any) -> Sequence[str]:
    if answer is None:
        return ()
    kinds = (answer[1],) if isinstance(answer, tuple) else getattr(answer, "__args__", (answer,))
    return [kind.__name__ for kind in kinds]


def _is_request(name: str) -> bool:
    kind = getattr(wire, name, None)
    return isinstance(kind, type) and issubclass(kind, wire.Request)


def _words() -> Iterable[tuple[str, str, str]]:
    """Every word that `error` may be: those of the node, then those of the rules."""
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.NodeError) and kind is not errors.NodeError:
            yield kind.error, f"{kind.status}", (inspect.getdoc(kind) or "").split("\n\n", maxsplit=1)[0]
    for code, (status, message) in ERRORS.items():
        field = FIELDS.get(Code(code), "")
        yield code.name, f"{status}{', ' + field if field else ''}", message


def _table(rows: Iterable[tuple[str, str, str]]) -> str:
    cells = "".join(
        f'<tr><td><code>{_text(name)}</code></td><td class="what">{_text(kind)}</td><td>{_text(means)}</td></tr>'
        for name, kind, means in rows
    )
    return f"<table>{cells}</table>" if cells else "<p>No parameters.</p>"


def _text(text: str) -> str:
    """Escaped, with `code` set as code."""
    parts = html.escape(text, quote=False).split("`")
    return "".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts))


async def _docs(request: web.Request) -> web.Response:
    csp = "default-src 'none'; style-src 'unsafe-inline'"
    return web.Response(body=page(), content_type="text/html", headers={"Content-Security-Policy": csp})


def add_routes(app: web.Application) -> None:
    """Serve /docs, to anyone."""
    app.router.add_get("/docs", _docs)
