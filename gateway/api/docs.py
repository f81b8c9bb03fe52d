"""/docs: all that this address answers, for people: its own paths, what a node answers behind it, both streams."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import msgspec
from aiohttp import web

from gateway.api import errors as own_errors
from gateway.api import openapi
from gateway.api.relayed import NOT_RELAYED
from gateway.stream import words
from node import errors, pages

_STREAM = """Prices, books, bars, and one's own orders, portfolio and alerts, as they change. Messages are JSON in text
frames, or msgpack in binary ones (subprotocol tiebreak.msgpack). A stream that brought no Authorization header
authenticates first. Orders are given on /v1/orders/stream."""
_SAID = (words.Authenticate, words.Subscribe, words.Unsubscribe, words.Ping)
_HEARD = (
    words.Authorized, words.Status, words.Subscribed, words.Unsubscribed, words.Heartbeat, words.Gap, words.Pong,
    words.StreamError, words.Closing,
)  # fmt: skip


@cache
def page() -> bytes:
    """The whole page, as HTML."""
    schemas = msgspec.json.decode(openapi.document())["components"]["schemas"]
    return "".join(
        (
            pages.head("Tiebreak gateway"),
            f"<p>{pages.text(openapi.ABOUT)}</p>",
            '<p><a href="#relayed">Answered by a node</a> · <a href="#updates">WebSocket</a> · '
            '<a href="#stream">WebSocket for orders</a> · <a href="#answers">Bodies and answers</a> · '
            '<a href="#errors">Errors</a> · for programs: <a href="openapi.json">openapi.json</a></p>',
            *(_line(line, schemas) for line in openapi.TABLE),
            '<h2 id="relayed">Answered by a node</h2><p>The nearest one that answers, unchanged, errors too; '
            "<code>X-Relayed-From</code> says which.</p>",
            *(pages.operation(operation, schemas) for operation in openapi.relayed()),
            "<p>What else a node answers is not relayed:</p>",
            pages.table((f"{method.upper()} {path}", "", why) for (method, path), why in NOT_RELAYED.items()),
            f'<h2 id="updates">WebSocket <code>/v1/stream</code></h2><p>{pages.text(_STREAM)}</p>',
            "<p>What a client says:</p>",
            *(pages.message(kind, "action") for kind in _SAID),
            "<p>What it hears, besides updates:</p>",
            *(pages.message(kind, "stream") for kind in _HEARD),
            pages.node_stream("/v1/orders/stream"),
            f"<p>{pages.text(openapi.LOST_NODE)}</p>",
            '<h2 id="answers">Bodies and answers</h2>',
            *(pages.struct(name, schema) for name, schema in schemas.items()),
            '<h2 id="errors">Errors</h2><p>Each is an <a href="#ErrorBody">ErrorBody</a>. By word; a rule of the '
            "cluster may refuse by others, which a node's own page lists:</p>",
            pages.table(pages.errors_of(own_errors, errors)),
            "</html>",
        )
    ).encode()


def _line(line: openapi.Line, schemas: dict[str, Any]) -> str:
    return pages.details(
        line.method, line.path, line.summary, ", ".join(line.roles) or "anyone", pages.table(_rows(line, schemas))
    )


def _rows(line: openapi.Line, schemas: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name, schema in line.parameters.items():
        yield name, f"query: {pages.kind_of(schema)}", schema.get("description", "")
    if line.body is not None:
        yield from pages.fields(schemas[line.body.__name__], where="body")


async def _docs(_request: web.Request) -> web.Response:
    return web.Response(
        body=page(),
        content_type="text/html",
        headers={"Content-Security-Policy": pages.CSP, "Cache-Control": "public, max-age=300"},
    )


ROUTES = [web.get("/docs", _docs)]
