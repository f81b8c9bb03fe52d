"""Who leads, and how far each member is: what a run asks a cluster while it breaks something."""

import asyncio
import time

from bench.running import RunError, Running
from cluster.client import Client, Health
from cluster.wire import MemberView

WAIT_S = 30.0
LOOK_S = 0.05


def views(found: list[Health]) -> list[MemberView]:
    return [health.view for health in found if health.view is not None]


async def leader_of(cluster: Running, auditor: Client, *, timeout_s: float = WAIT_S) -> str:
    """Wait for a replica that leads with a quorum. Raises RunError."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        leader = await cluster.leader(auditor)
        if leader:
            return leader
        await asyncio.sleep(LOOK_S)
    raise RunError(f"no leader within {timeout_s} s")


async def applied(auditor: Client, *, timeout_s: float = WAIT_S) -> int:
    """How far the leader is: all that was acknowledged by now. Raises RunError.

    Asked again where nobody says so: right after much load, a member may take longer to answer than it is waited for.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for view in views(await auditor.members()):
            if view.role == "replica" and view.state == "leader" and view.has_quorum:
                return view.applied_index
        await asyncio.sleep(LOOK_S)
    raise RunError(f"no leader within {timeout_s} s")


async def caught_up(auditor: Client, name: str, *, timeout_s: float = WAIT_S) -> float:
    """Wait until a member is ready and has applied what was committed when this was called; seconds it took."""
    began = time.monotonic()
    target = max((view.commit_index for view in views(await auditor.members())), default=0)
    while time.monotonic() - began < timeout_s:
        for view in views(await auditor.members()):
            if view.name == name and view.ready and view.applied_index >= target:
                return time.monotonic() - began
        await asyncio.sleep(LOOK_S)
    raise RunError(f"{name} has not caught up within {timeout_s} s")
