"""A Redis Cluster: each command goes to the node that has its slot, and after it when the slot moves.

redis-py knows the nodes and their slots. The way of a command is ours: redis-py's asyncio client sends ASKING and what
it is for on two connections of its pool, and knows no node to ask that has no slot yet; both happen while slots move.
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Any

import structlog
from redis.asyncio.cluster import ClusterNode, PipelineCommand, RedisCluster
from redis.asyncio.connection import SSLConnection, parse_url
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    MovedError,
    RedisClusterException,
    RedisError,
    SlotNotCoveredError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import TimeoutError as NoAnswer

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.cache")

Word = str | bytes | int | float
REDIRECTS_MAX = 16
"""Of one command. Two nodes that each say the other has the slot agree soon, or the command fails."""
MOVING_S = 0.01
LOOK_AGAIN_S = 1.0
"""Between two looks at who has what, while somebody does not answer."""
_IN_DOUBT = (NoConnection, NoAnswer, ClusterDownError, SlotNotCoveredError, BusyLoadingError)
_SCRIPTS = ("EVAL", "EVALSHA")


class ClusterServer:
    """All nodes of one cluster. Raises redis-py's errors; RedisClusterException: nobody answers who is one of them.

    A node that is away fails what its slots have, no more.
    """

    def __init__(self, urls: Sequence[str], *, timeout_s: float, connections_max: int) -> None:
        """urls: of some of its nodes; the others are found. connections_max: to one node."""
        found: list[dict[str, Any]] = [dict(parse_url(url)) for url in urls]
        options = {name: value for name, value in found[0].items() if name not in ("host", "port")}
        options["ssl"] = options.pop("connection_class", None) is SSLConnection
        self._cluster: Any = RedisCluster(
            startup_nodes=[ClusterNode(one.get("host", "localhost"), one.get("port", 6379)) for one in found],
            require_full_coverage=False,
            dynamic_startup_nodes=False,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            max_connections=connections_max,
            **options,
        )
        self._named: dict[str, ClusterNode] = dict(self._cluster.nodes_manager.startup_nodes)
        self._looking: asyncio.Task[None] | None = None
        self._looked_at_s = 0.0
        self._failed: str | None = None
        self._lost: RedisClusterException | None = None
        self._is_closed = False

    async def ask(self, command: Sequence[Word]) -> Any:
        if self._lost is not None:
            raise self._lost
        if not self._cluster.nodes_manager.slots_cache:
            await asyncio.shield(self._look())  # whoever asks first may have less time than it takes
        key = command[3] if command[0] in _SCRIPTS else command[1]
        node: Any = None  # a ClusterNode; None: whoever has the slot
        asking = False
        for _ in range(REDIRECTS_MAX):
            try:
                node = node or self._cluster.get_node_from_key(key)
                return await (_asking(node, command) if asking else node.execute_command(*command))
            except TryAgainError:
                await asyncio.sleep(MOVING_S)  # a script's keys are on two nodes at the moment
                node, asking = None, False
            except MovedError as error:
                await self._move(error, node.host)
                node, asking = None, False
            except AskError as error:
                node, asking = self._at(error.host or node.host, error.port), True
            except (*_IN_DOUBT, asyncio.CancelledError):
                # Cancelled: whoever asked had less time than the socket has, so a node that hangs shows as no error.
                self._doubt(node)
                raise
        raise ClusterDownError(f"{REDIRECTS_MAX} nodes sent it on to another")

    async def _move(self, error: MovedError, host: str) -> None:
        """Remember who has the slot. host: of who says so, for an answer that names none."""
        manager = self._cluster.nodes_manager
        error.host = error.host or host
        try:
            await manager.move_slot(error)
        except KeyError:  # a look meanwhile found nobody who has it
            manager.slots_cache[error.slot_id] = [self._at(error.host, error.port)]

    def _at(self, host: str, port: int) -> ClusterNode:
        """A node that may have no slot yet, so that a look would not find it."""
        manager = self._cluster.nodes_manager
        found: ClusterNode | None = manager.get_node(host=host, port=port)
        if found is None:
            found = ClusterNode(host, port, "primary", **manager.connection_kwargs)
            manager.set_nodes(manager.nodes_cache, {found.name: found})
        return found

    def _doubt(self, node: ClusterNode | None) -> None:
        """Look anew, beside whatever is asked meanwhile: another node may have its slots by now."""
        if node is not None:
            self._failed = node.name
        if not self._is_closed and time.monotonic() - self._looked_at_s >= LOOK_AGAIN_S:
            self._look()

    def _look(self) -> "asyncio.Task[None]":
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._looked(), name="cache nodes")
            self._looking.add_done_callback(_take_error)
        return self._looking

    async def _looked(self) -> None:
        manager = self._cluster.nodes_manager
        manager.startup_nodes = self._named | manager.nodes_cache
        self._looked_at_s = time.monotonic()
        try:
            await manager.initialize(last_failed_node_name=self._failed)
        except RedisClusterException as error:
            self._lost = error  # none of them answers as a node of a cluster does; whoever owns us begins anew
            raise
        except (LookupError, ValueError) as error:  # how redis-py says that they answer, and that nobody has a slot
            self._lost = RedisClusterException("no node of the cluster knows one that has slots")
            raise self._lost from error

    async def nodes(self, timeout_s: float) -> dict[str, dict[str, Any] | None]:
        known: list[ClusterNode] = list(self._cluster.nodes_manager.nodes_cache.values())
        found = await asyncio.gather(*(_info(node, timeout_s) for node in known))
        return {node.name: info for node, info in sorted(zip(known, found, strict=True), key=lambda one: one[0].name)}

    async def aclose(self) -> None:
        self._is_closed = True  # what is cut off by it does not look anew
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        for node in (*self._named.values(), *self._cluster.nodes_manager.nodes_cache.values()):
            with contextlib.suppress(RedisError, OSError):
                await node.disconnect()


async def _asking(node: ClusterNode, command: Sequence[Word]) -> Any:
    """ASKING holds for the next command of its connection, so both go as one."""
    both = [PipelineCommand(0, "ASKING"), PipelineCommand(1, *command)]
    await node.execute_pipeline(both)
    for one in both:
        if isinstance(one.result, Exception):
            raise one.result
    return both[1].result


async def _info(node: ClusterNode, timeout_s: float) -> dict[str, Any] | None:
    try:
        async with asyncio.timeout(timeout_s):
            found: dict[str, Any] = await node.execute_command("INFO")
            return found
    except (RedisError, OSError, TimeoutError):
        return None


def _take_error(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.debug("no node of the cache's cluster answers", error=str(error)[:300])
        if not isinstance(error, RedisError | RedisClusterException | OSError):
            log.error("looking at the cache's nodes failed", exc_info=error)
