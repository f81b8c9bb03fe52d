"""A worker's places: asked of the core, which counts for all workers, or of its own share while the core is away."""

import asyncio
from collections import Counter

from gateway.stream.admission import Admission, StreamLimits
from gateway.stream.places import CONNECTION, Caps, Done
from gateway.workers.link import CoreLink
from gateway.workers.words import ADMISSION, Free, Hold
from node.guard import Connection, ConnectionGuard

ANSWER_S = 1.0
"""A handshake does not wait longer for the core's word."""


class CoreDoor:
    """Implements Door. share: how many workers there are."""

    def __init__(self, link: CoreLink, caps: Caps, limits: StreamLimits, *, share: int) -> None:
        self.admission = Admission(limits.part(share))
        self.held: Counter[tuple[str, str]] = Counter()
        """By kind and name, whoever gave it."""
        self._link = link
        self._caps = caps
        self._share = share
        self._freed: Counter[tuple[str, str]] = Counter()
        link.on_welcome = self._welcomed

    def take(self, kind: str, name: str, count: int, done: Done) -> None:
        def told(wait_s: float | None) -> None:
            granted = self._alone(kind, name, count) if wait_s is None else not wait_s
            if granted and count:
                self.held[kind, name] += count
            done(granted)

        self._link.take(kind, name, count, told)

    def _alone(self, kind: str, name: str, count: int) -> bool:
        return self.held[kind, name] + count <= max(1, self._caps.most[kind] // self._share)

    def free(self, kind: str, name: str, count: int) -> None:
        key = kind, name
        self.held[key] -= count
        if self.held[key] <= 0:
            del self.held[key]
        if self._link.is_whole:
            if not self._freed:  # many leave together: one message
                asyncio.get_running_loop().call_soon(self._flush)
            self._freed[key] += count

    def _flush(self) -> None:
        freed, self._freed = self._freed, Counter()
        if freed and self._link.is_whole:
            self._link.send(Free([(*key, count) for key, count in freed.items()]))

    def _welcomed(self) -> None:
        self._freed.clear()
        if self.held:
            self._link.send(Hold([(*key, count) for key, count in self.held.items()]))

    async def admit(self) -> float:
        answer: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()

        def told(wait_s: float | None) -> None:
            if not answer.done():
                answer.set_result(wait_s)

        self._link.take(ADMISSION, "", 0, told)
        try:
            async with asyncio.timeout(ANSWER_S):
                wait_s = await answer
        except TimeoutError:
            wait_s = None
        return self.admission.admit() if wait_s is None else wait_s

    def guard_by(self, guard: ConnectionGuard) -> None:
        """Count this worker's connections with all others'. One is let in at once, and ended if there is no room."""
        with_place: set[Connection] = set()

        def entered(connection: Connection) -> None:
            def told(granted: bool) -> None:
                if connection not in guard.connections:
                    if granted:
                        self.free(CONNECTION, connection.address, 1)
                elif granted:
                    with_place.add(connection)
                else:
                    connection.turn_away()

            self.take(CONNECTION, connection.address, 1, told)

        def left(connection: Connection) -> None:
            if connection in with_place:
                with_place.discard(connection)
                self.free(CONNECTION, connection.address, 1)

        guard.on_entered, guard.on_left = entered, left
