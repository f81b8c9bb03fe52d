"""The parts of a page for people about an API: operations, messages, structs, tables; nodes' and gateways' alike."""

import html
import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from cluster import wire
from node import openapi
from node.errors import NodeError

CSP = "default-src 'none'; style-src 'unsafe-inline'"
"""The page fetches nothing from anywhere."""

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


_STREAM = """Messages of one stream are JSON in text frames, or msgpack in binary ones (subprotocol tiebreak.msgpack). A
stream that brought no Authorization header authenticates first. Answers come as their commands are applied: frames may
be answered out of order, and `id` says which."""

_SAID = (wire.Authenticate, wire.Submit, wire.Listen, wire.GuardOrders, wire.Ping)
_HEARD = (
    wire.Authorized, wire.Answers, wire.Listening, wire.OrderUpdates, wire.Guarding, wire.Heartbeat, wire.Pong,
    wire.StreamError, wire.Closing,
)  # fmt: skip


def head(title: str) -> str:
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style><h1>{title}</h1>'
    )


def operation(operation: openapi.Operation, schemas: dict[str, Any]) -> str:
    rows = [
        (p.name, f"{p.place}{', required' if p.required else ''}: {kind_of(p.schema)}", p.text)
        for p in operation.parameters
    ]
    if operation.body is not None:
        rows += fields(schemas[operation.body.__name__], where="body")
    answers = " or ".join(f'<a href="#{name}">{name}</a>' for name in _answers(operation.answer))
    if isinstance(operation.answer, tuple):
        answers = f"<code>items</code>, each {answers}, and <code>next_page_token</code>"
    return details(
        operation.method,
        operation.path,
        operation.summary,
        ", ".join(operation.roles) or "anyone",
        table(rows) + (f"<p>Answer: {answers}</p>" if answers else ""),
    )


def message(kind: type, tag_field: str) -> str:
    """One kind of message of the stream. Its fields are those of the struct."""
    _, schemas = msgspec.json.schema_components([kind], schema_hook=openapi.any_json)
    schema = schemas[kind.__name__]
    rows = [row for row in fields(schema, where="") if row[0] != tag_field]
    tag = str(kind.__struct_config__.tag)  # type: ignore[attr-defined]
    return details("", f'"{tag_field}": "{tag}"', "", "", f"<p>{text(inspect.getdoc(kind) or '')}</p>{table(rows)}")


def node_stream(path: str) -> str:
    """What is said on a node's stream."""
    return "".join(
        (
            f'<h2 id="stream">WebSocket <code>{path}</code></h2><p>{text(_STREAM)}</p>',
            "<p>What a client says:</p>",
            *(message(kind, "action") for kind in _SAID),
            "<p>What it hears:</p>",
            *(message(kind, "stream") for kind in _HEARD),
        )
    )


def struct(name: str, schema: dict[str, Any]) -> str:
    about = schema.get("description", "")
    inner = (f"<p>{text(about)}</p>" if about else "") + table(fields(schema, where=""))
    return f'<div id="{name}">{details("", name, "", "", inner)}</div>'


def details(method: str, name: str, summary: str, right: str, inner: str) -> str:
    first = f"<b>{method}</b>" if method else ""
    return (
        f"<details><summary>{first}<code>{text(name)}</code><i>{text(summary)}</i>"
        f'<span class="role">{right}</span></summary><div class="in">{inner}</div></details>'
    )


def fields(schema: dict[str, Any], *, where: str) -> list[tuple[str, str, str]]:
    required = schema.get("required", ())
    rows = []
    for name, field in schema.get("properties", {}).items():
        if name == "do" and where:
            continue
        place = ", ".join(word for word in (where, "required" if where and name in required else "") if word)
        rows.append((name, f"{place}: {kind_of(field)}" if place else kind_of(field), field.get("description", "")))
    return rows


def kind_of(field: dict[str, Any]) -> str:
    """A field's type and bounds in a few words."""
    if "const" in field:
        return str(field["const"])
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if "anyOf" in field:
        kinds = list(dict.fromkeys(kind_of(one) for one in field["anyOf"] if one != {"type": "null"}))
        return "decimal, as text or number" if "number" in kinds else " or ".join(kinds)
    if "$ref" in field:
        return str(field["$ref"]).rsplit("/", 1)[-1]
    kind = str(field.get("type", "any"))
    if kind == "integer" and "minimum" in field and "maximum" in field:
        return f"{field['minimum']:,} to {field['maximum']:,}"
    if kind == "string" and "maxLength" in field:
        return f"text, up to {field['maxLength']}"
    if kind == "array":
        return f"list of {kind_of(field.get('items', {}))}"
    return {"string": "text", "integer": "whole number", "boolean": "true or false"}.get(kind, kind)


def _answers(answer: Any) -> Sequence[str]:
    if answer is None:
        return ()
    kinds = (answer[1],) if isinstance(answer, tuple) else getattr(answer, "__args__", (answer,))
    return [kind.__name__ for kind in kinds]


def errors_of(*modules: Any) -> Iterable[tuple[str, str, str]]:
    """Every word that `error` may be, of these modules: word, status, meaning."""
    for module in modules:
        for kind in vars(module).values():
            if not isinstance(kind, type) or not issubclass(kind, NodeError) or kind is NodeError:
                continue
            if kind.__module__ == module.__name__:
                yield kind.error, f"{kind.status}", (inspect.getdoc(kind) or "").split("\n\n", maxsplit=1)[0]


def table(rows: Iterable[tuple[str, str, str]]) -> str:
    cells = "".join(
        f'<tr><td><code>{text(name)}</code></td><td class="what">{text(kind)}</td><td>{text(means)}</td></tr>'
        for name, kind, means in rows
    )
    return f"<table>{cells}</table>" if cells else "<p>No parameters.</p>"


def text(text: str) -> str:
    """Escaped, with `code` set as code."""
    parts = html.escape(text, quote=False).split("`")
    return "".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts))
