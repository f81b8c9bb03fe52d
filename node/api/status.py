"""/v1/status, /healthz, /readyz, /metrics: how this member is."""

import asyncio
import os
import shutil
import time

import msgspec
from aiohttp import web

from cluster import wire
from cluster.consensus.engine import Role
from cluster.topology import MemberRole, Standing
from node.api import http
from node.context import NODE, Node
from node.errors import NodeError, NotReady
from node.metrics import CONTENT_TYPE

VERSION = "0.1.0"
PROBE_TIMEOUT_MS = 500
PROBE_KEPT_S = 0.2
"""Anyone may ask /readyz, so one round of the quorum answers all who ask within this time."""

_encode = msgspec.json.Encoder().encode


async def healthz(request: web.Request) -> web.Response:
    """200 while the loop turns: a supervisor restarts what does not answer."""
    return web.Response(body=b'{"status":"ok"}', content_type="application/json")


class ReadyProbe:
    """Whether this member takes traffic: started, not leaving, and a linearizable read comes through."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._task: asyncio.Task[NodeError | None] | None = None
        self._at = 0.0

    async def ask(self, request: web.Request) -> web.Response:
        if self._task is None or (self._task.done() and time.monotonic() - self._at > PROBE_KEPT_S):
            self._task = asyncio.get_running_loop().create_task(self._probe())
        error = await asyncio.shield(self._task)
        if error is not None:
            raise error
        config = self._node.config
        # Who answers is part of it: a port may have gone to a member of another cluster meanwhile.
        body = {"status": "ready", "member": config.name, "cluster_id": config.topology.cluster_id}
        return web.Response(body=_encode(body), content_type="application/json")

    async def _probe(self) -> NodeError | None:
        node = self._node
        try:
            if not node.ready:
                return NotReady("leaving" if node.draining else "starting")
            if node.is_witness:
                return None if node.engine.status().leader else NotReady("no leader is known")
            if node.disk_low:
                return NotReady("the disk is nearly full: writes are refused")
            await node.reads.linearizable(timeout_ms=PROBE_TIMEOUT_MS)
        except NodeError as error:
            return error
        finally:
            self._at = time.monotonic()
        return None


async def status(request: web.Request) -> web.Response:
    """This member as it sees itself; `?digest_at=` gives its digest after that entry, to compare replicas by."""
    http.only(request, "digest_at")
    node = request.app[NODE]
    view = member_view(node)
    given = request.query.get("digest_at")
    if given is not None and not node.is_witness:
        index = http.whole(given, "digest_at", 0, http.ID_MAX)
        if index != view.digest_index:
            digest = node.machine.digest_at(index)
            view = msgspec.structs.replace(
                view, digest=digest.hex() if digest is not None else "", digest_index=index if digest is not None else 0
            )
    return web.Response(body=_encode(view), content_type="application/json")


def member_view(node: Node) -> wire.MemberView:
    """This member as it sees itself, now."""
    engine = node.engine.status()
    member = node.config.member
    machine = None if node.is_witness else node.machine
    return wire.MemberView(
        name=member.name,
        site=member.site,
        role=member.role.value,
        state=engine.role.value,
        leader=engine.leader,
        term=engine.term,
        epoch=node.epoch,
        has_quorum=engine.has_quorum,
        ready=node.ready,
        first_index=engine.first_index,
        last_index=engine.last_index,
        durable_index=engine.durable_index,
        commit_index=engine.commit_index,
        applied_index=machine.applied_index if machine is not None else engine.applied_index,
        stored_index=engine.stored_index,
        time_us=machine.time_us if machine is not None else 0,
        digest=machine.digest.hex() if machine is not None else "",
        digest_index=machine.applied_index if machine is not None else 0,
        writes_stopped=machine.writes_stopped if machine is not None else False,
        uptime_s=round(time.monotonic() - node.started_at, 3),
        pid=os.getpid(),
        version=VERSION,
        peers=[
            {
                "name": peer.name,
                "standing": peer.standing.value,
                "connected": peer.connected,
                "matched_index": peer.matched_index,
                "lag": max(0, engine.last_index - peer.matched_index) if engine.role is Role.leader else None,
                "stored_index": peer.stored_index,
                "heard_ms_ago": peer.heard_ms_ago,
                "clock_offset_ms": peer.clock_offset_ms,
            }
            for peer in engine.peers
        ],
        rejoining=not engine.joined,
        refusal=engine.refusal,
        barred=engine.barred,
        standing=engine.standing.value,
        apis={
            one.name: f"{one.api_host}:{one.api_port}"
            for one in node.engine.group().configuration.members
            if one.role is MemberRole.replica and one.standing is not Standing.learner
        },
        disk_free_bytes=shutil.disk_usage(node.config.data_dir).free,
    )


async def metrics(request: web.Request) -> web.Response:
    node = request.app[NODE]
    return web.Response(body=node.metrics.render(node.engine.status()), headers={"Content-Type": CONTENT_TYPE})


def routes(node: Node) -> list[web.RouteDef]:
    probe = ReadyProbe(node)
    return [
        web.get("/healthz", healthz),
        web.get("/readyz", probe.ask),
        web.get("/metrics", metrics),
        web.get("/v1/status", status),
    ]
