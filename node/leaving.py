"""Leaving in order: tell the other members, and hand leadership to a replica that stays, while there is one."""

import asyncio
import time
from collections.abc import Callable, Collection

import structlog

from cluster.consensus.engine import Engine

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.leaving")

LEAVING = "leaving"
SAY_S = 0.1
FRESH_S = 0.5
"""Who has not said for this long that it leaves is another process by now, or its links are gone."""
LOOK_S = 0.02
ALONE_MS = 1_000
"""How long a member without another replica beside it waits for anything: nothing will come."""


class Leaving:
    """Where this member and the other replicas stand on the way out."""

    def __init__(self, engine: Engine, replicas: Callable[[], Collection[str]]) -> None:
        """replicas: names of all full replicas that vote now, this member's too."""
        self._engine = engine
        self._replicas = replicas
        self._heard_at: dict[str, float] = {}
        self._saying: asyncio.Task[None] | None = None

    def heard(self, member: str) -> None:
        """Another member says that it leaves."""
        self._heard_at[member] = time.monotonic()

    def begin(self) -> None:
        """From now on say that this member leaves, until `stop`."""
        self._tell()
        self._saying = asyncio.get_running_loop().create_task(self._say(), name="leaving")

    async def stop(self) -> None:
        if self._saying is not None:
            self._saying.cancel()
            await asyncio.gather(self._saying, return_exceptions=True)

    @property
    def successors(self) -> list[str]:
        """The other voting replicas that are connected and stay, the one that is furthest first."""
        late, replicas = time.monotonic() - FRESH_S, self._replicas()
        peers = [
            peer
            for peer in self._engine.status().peers
            if peer.connected and peer.name in replicas and self._heard_at.get(peer.name, 0.0) < late
        ]
        return [peer.name for peer in sorted(peers, key=lambda peer: -peer.matched_index)]

    async def hand_over(self, *, timeout_ms: int) -> bool:
        """Hand leadership to a replica that stays. False: there is none, or none any more. Raises ConsensusError."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_ms / 1000
        while (successors := self.successors) and (left_s := deadline - loop.time()) > 0:
            target = successors[0]
            handing = loop.create_task(self._engine.transfer_leadership(target, timeout_ms=int(left_s * 1000)))
            while target in self.successors and not handing.done():
                await asyncio.wait({handing}, timeout=LOOK_S)
            if handing.done():
                return handing.result()
            handing.cancel()
            await asyncio.gather(handing, return_exceptions=True)
        log.info("nobody to hand leadership over to")
        return False

    async def _say(self) -> None:
        while True:
            await asyncio.sleep(SAY_S)
            self._tell()

    def _tell(self) -> None:
        for peer in self._engine.status().peers:
            self._engine.send(peer.name, LEAVING, b"")
