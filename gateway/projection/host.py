"""The projection: what a gateway knows of the cluster, at one position of its feed, with how old that is.

Truth comes from the feed or from a node's snapshot. The copy in the cache makes a restart quick and is never waited
for: while the cache is away, everything is served from here, and what changed meanwhile is written when it is back.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import datetime

import structlog
from msgspec import Struct

from gateway.cache.client import CacheAway
from gateway.cache.state import Changes, Elsewhere, StateCache
from gateway.events import Message, Position
from gateway.projection.projector import Batch, Projector, Row

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.projection")

WRITE_S = 0.05
AWAY_S = 1.0


class Standing(Struct, frozen=True):
    """position: what is reflected; empty before the first. as_of_us: the wall-clock time at which this was the newest.

    staleness_ms: how long ago that was. warm: there is something to serve. progress: of a rebuild, rows so far.
    """

    position: str
    index: int
    as_of_us: int
    staleness_ms: int
    warm: bool
    rebuilding: bool
    progress: int
    cache: str


def micros(rfc3339: str) -> int:
    """RFC 3339 to microseconds since 1970. Raises ValueError."""
    moment = datetime.fromisoformat(rfc3339)
    return int(moment.timestamp()) * 1_000_000 + moment.microsecond


class Projection:
    """Holds the projectors and moves them together. One event loop; nothing blocks.

    cache: None: there is none, and nothing is kept. wall_us: the clock that ages are told by.
    """

    def __init__(
        self,
        projectors: Sequence[Projector],
        cache: StateCache | None,
        *,
        wall_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self.projectors = tuple(projectors)
        self.cache = cache
        self.position: Position | None = None
        self.on_batch: list[Callable[[Batch], None]] = []
        self.on_reset: list[Callable[[], None]] = []
        self.on_rebuilt: list[Callable[[Position], None]] = []
        self.rebuilding = False
        self.rows = 0
        self.cache_state = "none" if cache is None else "starting"
        self._wall_us = wall_us
        self._as_of_us = 0
        self._dirty: dict[str, set[str]] = {}
        self._moved = asyncio.Event()
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._snapshot_us = 0
        for projector in projectors:
            self._track(projector)

    def _track(self, projector: Projector) -> None:
        fields = self._dirty.setdefault(projector.kind, set())
        projector.touch = fields.add

    # ---- what it says of itself ----

    @property
    def standing(self) -> Standing:
        position = self.position
        return Standing(
            position=str(position) if position is not None else "",
            index=position.index if position is not None else 0,
            as_of_us=self._as_of_us,
            staleness_ms=max(0, (self._wall_us() - self._as_of_us) // 1000) if self._as_of_us else -1,
            warm=position is not None and not self.rebuilding,
            rebuilding=self.rebuilding,
            progress=self.rows,
            cache=self.cache_state,
        )

    async def wait_for(self, index: int, *, timeout_ms: int) -> bool:
        """Wait until a log index is reflected. False: the time was over first."""
        if self._reflects(index):
            return True
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((index, reached))
        done, _ = await asyncio.wait({reached}, timeout=timeout_ms / 1000)
        if not done:
            self._waiting = [one for one in self._waiting if one[1] is not reached]
        return bool(done)

    def _reflects(self, index: int) -> bool:
        # An entry whose last event has not come yet is not reflected. Entries without events leave no trace, so a
        # position behind the entry before may already be all there is: the feed's heartbeats move it on.
        position = self.position
        return position is not None and not self.rebuilding and position.index >= index

    # ---- what moves it ----

    def apply(self, message: Message) -> None:
        """Events or a heartbeat of the feed, in order. Raises ValueError: it does not follow what is here."""
        position = Position.parse(message.position)
        if self.position is not None and position < self.position:
            raise ValueError(f"the feed went back from {self.position} to {position}")
        now_us = self._wall_us()
        if message.events:
            first = Position.parse(message.events[0].position)
            if self.position is not None and first <= self.position:
                raise ValueError(f"the feed repeats {first}; {self.position} is applied")
            at_us = micros(message.events[-1].at)
            batch = Batch(position, at_us, message.events)
            for projector in self.projectors:
                projector.apply(batch)
            self._move(position, min(now_us, at_us))
            for hook in self.on_batch:
                hook(batch)
        else:
            # A node says this only when it has nothing newer: so this is the newest state now.
            self._move(position, now_us)

    def _move(self, position: Position, as_of_us: int) -> None:
        self.position = position
        self._as_of_us = max(self._as_of_us, as_of_us)
        self._moved.set()
        if self._waiting:
            for index, reached in self._waiting:
                if index <= position.index and not reached.done():
                    reached.set_result(None)
            self._waiting = [one for one in self._waiting if not one[1].done()]

    def begin_snapshot(self) -> None:
        """Forget everything; rows come next. Until `end_snapshot` there is nothing to serve."""
        self.rebuilding, self.rows, self.position = True, 0, None
        self._snapshot_us = self._wall_us()
        for projector in self.projectors:
            projector.reset()
            self._dirty[projector.kind].clear()
        for hook in self.on_reset:
            hook()

    def row(self, table: str, row: Row) -> None:
        self.rows += 1
        for projector in self.projectors:
            projector.row(table, row, self._snapshot_us)

    def end_snapshot(self, position: Position) -> None:
        self.rebuilding = False
        self._clear_cache = True
        self._move(position, self._snapshot_us)
        for hook in self.on_rebuilt:
            hook(position)
        log.info("rebuilt from a snapshot", rows=self.rows, position=str(position))

    # ---- the cache ----

    _clear_cache = False

    async def start_from_cache(self) -> bool:
        """Take over what the cache has. False: nothing, or it is away; a snapshot or the feed's start is needed."""
        if self.cache is None:
            return False
        try:
            position = await self.cache.position()
            if position is None:
                self._clear_cache = bool(self.cache.stored)
                self.cache_state = "empty"
                return False
            by_kind = {projector.kind: projector for projector in self.projectors}
            self.begin_snapshot()
            async for kind, field, value in self.cache.load():
                by_kind[kind].load(field, value)
                self.rows += 1
        except (CacheAway, ValueError) as error:
            self.cache_state = f"away: {error}"
            self._clear_cache = True
            if self.rebuilding:
                self.begin_snapshot()
                self.rebuilding = False
            return False
        for fields in self._dirty.values():
            fields.clear()
        self.rebuilding = False
        self.cache_state = "ok"
        self.position = position
        log.info("started from the cache", fields=self.rows, position=str(position))
        return True

    async def keep_cache(self) -> None:
        """Write to the cache what changed, for ever. Never raises but CancelledError."""
        cache = self.cache
        if cache is None:
            return
        while True:
            await self._moved.wait()
            self._moved.clear()
            await asyncio.sleep(WRITE_S)  # gather what comes meanwhile
            if self.rebuilding or self.position is None:
                continue
            try:
                await self._write(cache)
                self._cache_is("ok")
            except Elsewhere as error:
                # Emptied, or another gateway's: what is here is whole, so begin anew.
                self._cache_is(f"elsewhere: {error}")
                self._clear_cache = True
                self._moved.set()
            except CacheAway as error:
                self._cache_is(f"away: {error}")
                await asyncio.sleep(AWAY_S)
                self._moved.set()

    def _cache_is(self, state: str) -> None:
        if state.split(":", 1)[0] != self.cache_state.split(":", 1)[0]:
            log.log(20 if state == "ok" else 40, "cache", state=state)
        self.cache_state = state

    async def _write(self, cache: StateCache) -> None:
        position = self.position
        if position is None:
            return
        if self._clear_cache:
            await cache.clear()
            self._clear_cache = False
            for projector in self.projectors:
                self._dirty[projector.kind].update(self._all_fields(projector))
        taken: dict[str, set[str]] = {}
        changes: Changes = {}
        for projector in self.projectors:
            fields = self._dirty[projector.kind]
            taken[projector.kind] = set(fields)
            changes[projector.kind] = {field: projector.dump(field) for field in sorted(fields)}
            fields.clear()
        try:
            await cache.write(changes, position)
        except (CacheAway, Elsewhere):
            for kind, fields in taken.items():
                self._dirty[kind] |= fields
            raise

    def _all_fields(self, projector: Projector) -> set[str]:
        return set(projector.fields())
