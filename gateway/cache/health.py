"""How the cache's nodes are: which answer, what they hold, what they threw away. Asked of every node, for metrics."""

import asyncio
from typing import Any

import structlog
from msgspec import Struct

from gateway.cache.client import CacheAway, CacheClient

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.cache")

EVERY_S = 5.0
ASKED_S = 1.0


class Node(Struct, frozen=True):
    """One server of the cache. evicted: keys that it threw away for want of memory, since its start."""

    up: bool
    used_bytes: int = 0
    evicted: int = 0
    policy: str = ""


class CacheHealth:
    """nodes: by address, as they were when last asked."""

    def __init__(self, client: CacheClient) -> None:
        self.nodes: dict[str, Node] = {}
        self._client = client
        self._warned: set[str] = set()

    async def run(self) -> None:
        """For ever. Never raises but CancelledError."""
        while True:
            await self.look()
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        if not self.nodes:
            try:
                await self._client.ask("EXISTS", "tb")  # so that somebody finds out what it is
            except CacheAway:
                return
        found = await self._client.nodes(timeout_s=ASKED_S)
        for name, info in found.items():
            if info is None:
                if self.nodes.get(name, Node(True)).up:
                    log.warning("a node of the cache does not answer", node=name)
                self.nodes[name] = Node(False)
                continue
            self.nodes[name] = node = _node(info)
            if node.policy.startswith("allkeys") and name not in self._warned:
                self._warned.add(name)
                log.warning(
                    "this cache may throw away parts of the projection, and then all of it is written anew: "
                    "set maxmemory-policy volatile-lru",
                    node=name,
                    policy=node.policy,
                )
        for name in self.nodes.keys() - found.keys():
            del self.nodes[name]


def _node(info: dict[str, Any]) -> Node:
    policy = str(info.get("maxmemory_policy", "")) if info.get("maxmemory") else ""
    return Node(True, int(info.get("used_memory", 0)), int(info.get("evicted_keys", 0)), policy)
