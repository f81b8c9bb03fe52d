"""/healthz, /readyz, /metrics, /v1/gateway: how this gateway is."""

from typing import Any

from aiohttp import web

from gateway.api import context
from gateway.api.context import CORE, METRICS, Age
from gateway.api.metrics import CONTENT_TYPE
from gateway.core import Core


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


def status_of(core: Core) -> dict[str, Any]:
    """This gateway as it sees itself."""
    standing = core.projection.standing
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
        "follows": core.follower.node,
        "feeds": {source.name: source.state for source in core.sources},
        "symbols": sum(1 for _ in core.market.nbbo.symbols()),
        "sites": core.sites.status(),
    }


async def gateway(request: web.Request) -> web.Response:
    context.only(request)
    core = request.app[CORE]
    return context.respond(request, status_of(core), Age(core.projection.standing.as_of_us))


ROUTES = [
    web.get("/healthz", healthz),
    web.get("/readyz", readyz),
    web.get("/metrics", metrics),
    web.get("/v1/gateway", gateway),
]
