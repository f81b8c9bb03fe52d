"""/docs: the API for people, one page that fetches nothing from anywhere, made from what /openapi.json is made of."""

from collections.abc import Iterable
from functools import cache

import msgspec
from aiohttp import web

from cluster import wire
from node import errors, openapi, pages
from node.outcomes import ERRORS, FIELDS
from statemachine.codes import Code

_TRY = """TOKEN=$(tiebreak token trader --account alice)
curl $NODE/v1/orders -H "Authorization: Bearer $TOKEN" -H "Idempotency-Key: my-order-1" \\
  -H "Content-Type: application/json" \\
  -d '{"symbol": "AAPL", "side": "buy", "type": "limit", "qty": "10", "limit_price": "187.10"}'"""


@cache
def page() -> bytes:
    """The whole page, as HTML."""
    schemas = msgspec.json.decode(openapi.document())["components"]["schemas"]
    return "".join(
        (
            pages.head("Tiebreak node"),
            f"<p>{pages.text(openapi.ABOUT)}</p><pre>{pages.text(_TRY)}</pre>",
            '<p><a href="#stream">WebSocket</a> · <a href="#answers">Answers</a> · <a href="#errors">Errors</a> · '
            'for programs: <a href="openapi.json">openapi.json</a></p>',
            *(pages.operation(operation, schemas) for operation in openapi.TABLE),
            pages.node_stream("/v1/stream"),
            '<h2 id="answers">Answers</h2>',
            *(pages.struct(name, schema) for name, schema in schemas.items() if not _is_request(name)),
            '<h2 id="errors">Errors</h2><p>Each is an <a href="#ErrorBody">ErrorBody</a>. By HTTP status:</p>',
            pages.table((str(status), "", text) for status, text in openapi.ERRORS.items()),
            "<p>By word:</p>",
            pages.table(_words()),
            "</html>",
        )
    ).encode()


def _is_request(name: str) -> bool:
    kind = getattr(wire, name, None)
    return isinstance(kind, type) and issubclass(kind, wire.Request)


def _words() -> Iterable[tuple[str, str, str]]:
    """Every word that `error` may be: those of the node, then those of the rules."""
    yield from pages.errors_of(errors)
    for code, (status, message) in ERRORS.items():
        field = FIELDS.get(Code(code), "")
        yield code.name, f"{status}{', ' + field if field else ''}", message


async def _docs(request: web.Request) -> web.Response:
    return web.Response(body=page(), content_type="text/html", headers={"Content-Security-Policy": pages.CSP})


def add_routes(app: web.Application) -> None:
    """Serve /docs, to anyone."""
    app.router.add_get("/docs", _docs)
