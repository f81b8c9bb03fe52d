"""/v1/cluster: who leads and who belongs to the cluster, and how operators change it. Any member may be asked."""

import msgspec
from aiohttp import web

from cluster import wire
from node.api import http
from node.bodies import Reader
from node.context import NODE, PRINCIPAL
from node.errors import NotReady

_read_transfer: Reader[wire.TransferLeadership] = Reader(wire.TransferLeadership)
_encode = msgspec.json.Encoder().encode

OPERATORS = ("operator",)


async def transfer(request: web.Request) -> web.Response:
    """Hand leadership over; answered once another member leads."""
    http.only(request)
    http.allow(request[PRINCIPAL], *OPERATORS)
    node = request.app[NODE]
    asked = await http.read_body(request, _read_transfer)
    if not node.ready:
        raise NotReady("this node is starting or leaving: ask another member")
    view = await node.changes.transfer(asked.to, source=asked.source, timeout_ms=http.timeout_of(request, node))
    return _said(view)


def _said(view: msgspec.Struct) -> web.Response:
    return web.Response(body=_encode(view), content_type="application/json")


ROUTES = [
    web.post("/v1/cluster/transfer", transfer),
]
