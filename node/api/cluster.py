"""/v1/cluster: who leads and who belongs to the cluster, and how operators change it. Any member may be asked."""

import msgspec
from aiohttp import web

from cluster import wire
from cluster.membership import Add, Change, Demote, Promote, Remove
from cluster.topology import Member, MemberRole, Standing
from node.api import http
from node.bodies import Reader
from node.context import NODE, PRINCIPAL, Node
from node.errors import NotReady
from node.leading import cluster_view

_read_transfer: Reader[wire.TransferLeadership] = Reader(wire.TransferLeadership)
_read_add: Reader[wire.AddMember] = Reader(wire.AddMember)
_encode = msgspec.json.Encoder().encode

OPERATORS = ("operator",)
READERS = ("operator", "auditor")


async def transfer(request: web.Request) -> web.Response:
    """Hand leadership over; answered once another member leads."""
    node = _node(request, *OPERATORS)
    asked = await http.read_body(request, _read_transfer)
    view = await node.changes.transfer(asked.to, source=asked.source, timeout_ms=http.timeout_of(request, node))
    return _said(view)


async def members(request: web.Request) -> web.Response:
    """As the leader knows them; `?consistency=local`: as this member does, which also answers without a leader."""
    node = _node(request, *READERS)
    if http.is_local(request):
        return _said(cluster_view(node.engine))
    given = "timeout_ms" in request.query
    timeout_ms = http.timeout_of(request, node) if given else node.config.timing.read_timeout_ms
    return _said(await node.changes.look(timeout_ms=timeout_ms))


async def add(request: web.Request) -> web.Response:
    node = _node(request, *OPERATORS)
    asked = await http.read_body(request, _read_add)
    member = Member(
        asked.name,
        asked.site,
        MemberRole(asked.role),
        asked.peer_host,
        asked.peer_port,
        asked.api_host,
        asked.api_port,
        Standing(asked.standing),
    )
    return await _change(request, node, Add(member))


async def promote(request: web.Request) -> web.Response:
    return await _change(request, _node(request, *OPERATORS), Promote(request.match_info["name"]))


async def demote(request: web.Request) -> web.Response:
    return await _change(request, _node(request, *OPERATORS), Demote(request.match_info["name"]))


async def remove(request: web.Request) -> web.Response:
    return await _change(request, _node(request, *OPERATORS), Remove(request.match_info["name"]))


async def _change(request: web.Request, node: Node, change: Change) -> web.Response:
    return _said(await node.changes.change(change, timeout_ms=http.timeout_of(request, node)))


def _node(request: web.Request, *roles: str) -> Node:
    http.only(request)
    http.allow(request[PRINCIPAL], *roles)
    node = request.app[NODE]
    if not node.ready:
        raise NotReady("this node is starting or leaving: ask another member")
    return node


def _said(view: msgspec.Struct) -> web.Response:
    return web.Response(body=_encode(view), content_type="application/json")


ROUTES = [
    web.post("/v1/cluster/transfer", transfer),
    web.get("/v1/cluster/members", members),
    web.post("/v1/cluster/members", add),
    web.post("/v1/cluster/members/{name}/promote", promote),
    web.post("/v1/cluster/members/{name}/demote", demote),
    web.delete("/v1/cluster/members/{name}", remove),
]
