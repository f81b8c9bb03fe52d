"""/healthz, /readyz, /metrics, /v1/gateway: how this gateway is."""

from typing import Any

from aiohttp import web

from gateway.api import context
from gateway.api.context import CORE, COUNTS, METRICS, Age
from gateway.api.metrics import CONTENT_TYPE
from gateway.core import Core
from gateway.projection.books import VENUE
from gateway.stream.metrics import Counts, total


async def healthz(request: web.Request) -> web.Response:
    """The process answers."""
    return web.json_response({"ok": True})


async def readyz(request: web.Request) -> web.Response:
    """Takes traffic: its state is warm, and it is not leaving."""
    core = request.app[CORE]
    why = core.why_not_ready()
    body = {"gateway": core.config.name, "cluster_id": core.config.cluster_id, "ready": not why}
    if why:
        return web.json_response(body | {"reason": why}, status=503, headers={"Retry-After": "1"})
    return web.json_response(body)


async def metrics(request: web.Request) -> web.Response:
    return web.Response(body=request.app[METRICS].render(), headers={"Content-Type": CONTENT_TYPE})


def status_of(core: Core, counts: Counts) -> dict[str, Any]:
    """This gateway as it sees itself. counts: of the processes that serve its clients."""
    standing = core.projection.standing
    now_us = core.market.clock()
    heard = core.market.nbbo.venues()
    venues = {name: max(0, now_us - at_us) // 1000 for name, at_us in sorted(heard.items()) if name != VENUE}
    return {
        "gateway": core.config.name,
        "site": core.config.site,
        "ready": not core.why_not_ready(),
        "reason": core.why_not_ready(),
        "position": standing.position,
        "index": standing.index,
        "staleness_ms": standing.staleness_ms,
        "rebuilding": standing.rebuilding,
        "rebuilt_rows": standing.progress,
        "cache": standing.cache,
        "cache_nodes": {name: node.up for name, node in sorted(core.cache_health.nodes.items())},
        "follows": core.follower.node,
        "feeds": {source.name: source.state for source in core.sources},
        "symbols": sum(1 for _ in core.market.nbbo.symbols()),
        "token_ends_in_s": core.token_ends_in_s(),
        "market_age_ms": min(venues.values(), default=-1),
        "venues": venues,
        "streams": int(total(counts, "connections")),
        "connections": int(total(counts, "http_connections")),
        "workers": sum(1 for process in counts if process != "core"),
        "workers_wanted": core.config.workers,
        "sites": core.sites.status(),
    }


async def gateway(request: web.Request) -> web.Response:
    context.only(request)
    core = request.app[CORE]
    return context.respond(request, status_of(core, request.app[COUNTS]()), Age(core.projection.standing.as_of_us))


ROUTES = [
    web.get("/healthz", healthz),
    web.get("/readyz", readyz),
    web.get("/metrics", metrics),
    web.get("/v1/gateway", gateway),
]
