"""Reads that are true: at an index that a quorum confirmed, or that the reader has seen before, or as it is here."""

import asyncio
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Protocol

from cluster.consensus.engine import ConsensusError
from cluster.consensus.engine import NoQuorum as EngineNoQuorum
from cluster.consensus.engine import Overloaded as EngineOverloaded
from node.config import NodeTiming
from node.errors import NodeError, NoLeader, NoQuorum, Overloaded, ReadTimeout


class Confirms(Protocol):
    async def read_index(self, *, timeout_ms: int) -> int: ...


def of_consensus(error: ConsensusError) -> NodeError:
    """An engine's error as one of ours; all of them are definite."""
    if isinstance(error, EngineNoQuorum):
        return NoQuorum("this member reaches no majority: try again, or ask another member")
    if isinstance(error, EngineOverloaded):
        return Overloaded("too many reads wait on this node: try again")
    return NoLeader("no leader is known: try again, or ask another member")


class Reads:
    """Lets reads begin when this replica has applied what they must reflect. One event loop."""

    def __init__(self, engine: Confirms, applied_index: Callable[[], int], timing: NodeTiming) -> None:
        self._engine = engine
        self._applied_index = applied_index
        self._timing = timing
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._count = 0
        self._left = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def linearizable(self, *, timeout_ms: int | None = None) -> int:
        """Wait until a read here reflects all that was acknowledged before this call. Returns that index.

        Raises NoLeader, NoQuorum, Overloaded or ReadTimeout.
        """
        timeout_s = (self._timing.read_timeout_ms if timeout_ms is None else timeout_ms) / 1000
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            index = await self._engine.read_index(timeout_ms=int(timeout_s * 1000))
        except ConsensusError as error:
            raise of_consensus(error) from error
        if not await self.reached(index, timeout_s=deadline - asyncio.get_running_loop().time()):
            raise ReadTimeout(f"this replica did not reach index {index} in time: try again, or ask another member")
        return index

    async def at_least(self, index: int) -> int:
        """Wait a little until this replica has applied `index`; else read as linearizable. Returns an index.

        Raises as `linearizable`: a client that has seen an index never gets an older answer.
        """
        if await self.reached(index, timeout_s=self._timing.session_wait_ms / 1000):
            return index
        confirmed = await self.linearizable()
        if confirmed < index:
            raise ReadTimeout(f"index {index} of the session token is not known to the leader: try again")
        return confirmed

    async def reached(self, index: int, *, timeout_s: float) -> bool:
        """Whether this replica applies `index` within the time."""
        if self._applied_index() >= index:
            return True
        if timeout_s <= 0:
            return False
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        heappush(self._waiting, (index, self._count, future))
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            return False
        finally:
            if not future.done() or future.cancelled():
                self._gave_up(future)
        return True

    def _gave_up(self, future: asyncio.Future[None]) -> None:
        """Forget those who left, now and then, so that a replica that stands still does not collect them."""
        future.cancel()
        self._left += 1
        if self._left * 2 > len(self._waiting):
            self._waiting = [one for one in self._waiting if not one[2].done()]
            heapify(self._waiting)
            self._left = 0

    def applied(self, index: int) -> None:
        """An entry was applied here."""
        waiting = self._waiting
        while waiting and (waiting[0][0] <= index or waiting[0][2].done()):
            future = heappop(waiting)[2]
            if not future.done():
                future.set_result(None)
