"""What a member does by itself: time steps, digest reports, flushes, sealing, and a look at the room on disk."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import structlog

from cluster.consensus.engine import Engine, Role
from cluster.topology import MemberRole
from node.batcher import clock_us
from node.config import NodeConfig
from node.errors import DiskLow, NodeError, Overloaded
from node.metrics import Metrics
from node.submit import Submitter
from statemachine.codec import decode_batch, decode_command
from statemachine.commands import ReportDigest, TimeStep
from statemachine.events import DigestDisagreed
from statemachine.machine import Machine
from statemachine.records import Applied
from statemachine.results import Stepped
from statemachine.store import Store
from statemachine.store_sealing import Seal

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.driver")

STEP_LOOK_S = 0.01
STEP_LOST_S = 1.0
SEAL_LOOK_S = 60.0
_UNKEYED = ("", "")


class Driver:
    """Runs beside the clients' commands. Commands of its own are internal: lost ones are said again.

    on_fatal(reason): the store could not be written; must not return in production.
    on_diverged(reason): this replica's state is wrong; must not return in production.
    on_disk_low(low): writes are refused from now on, or taken again.
    """

    def __init__(
        self,
        config: NodeConfig,
        machine: Machine,
        store: Store,
        engine: Engine,
        submitter: Submitter,
        *,
        metrics: Metrics,
        on_fatal: Callable[[str], None],
        on_diverged: Callable[[str], None],
        on_disk_low: Callable[[bool], None],
        clock: Callable[[], int] = clock_us,
    ) -> None:
        self.config = config
        self.disk_low = False
        self.refusal: NodeError | None = None
        """Why this member takes no commands now, as far as the driver knows: disk low, or the store is behind."""
        self.flushes = 0
        self.digests_disagreed = 0
        metrics.watch_count(
            lambda: self.digests_disagreed,
            name="tiebreak_digests_disagreed",
            text="Words in the log that replicas' digests differ",
        )
        self._machine = machine
        self._store = store
        self._engine = engine
        self._submitter = submitter
        self._metrics = metrics
        self._on_fatal = on_fatal
        self._on_diverged = on_diverged
        self._on_disk_low = on_disk_low
        self._clock = clock
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._tasks: list[asyncio.Task[None]] = []
        self._flushing = asyncio.Lock()
        self._flush_now = asyncio.Event()
        self._seal: Seal | None = None
        self._step_told_at = 0.0
        self._reported_index = 0

    def start(self) -> None:
        for work in (self._step_loop, self._digest_loop, self._flush_loop, self._seal_loop, self._disk_loop):
            self._tasks.append(asyncio.get_running_loop().create_task(self._forever(work), name=work.__name__))

    async def stop(self) -> None:
        """End the loops and write what is pending."""
        async with self._flushing:  # a flush that was begun must be finished
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.flush()
        self._disk.shutdown()

    async def _forever(self, work: Callable[[], object]) -> None:
        try:
            await work()  # type: ignore[misc]
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.critical("driver failed", work=getattr(work, "__name__", ""), exc_info=True)
            self._on_fatal(f"{type(error).__name__}: {error}")

    # ---- entries that were applied ----

    def applied(self, applied: Applied, payload: bytes) -> None:
        """See to what is due after an entry. Cheap for entries that hold clients' commands only."""
        if _UNKEYED in applied.scopes_and_keys:
            self._internal(applied, payload)
        if applied.index % self.config.timing.digest_indexes == 0:
            self._report(applied.index)
        if self._store.pending_bytes >= self.config.limits.flush_bytes:
            self._flush_now.set()
            if self._store.pending_full and self.refusal is None:
                self._refuse(Overloaded("the store is behind: try again"))

    def _internal(self, applied: Applied, payload: bytes) -> None:
        for result in applied.results:
            if type(result) is Stepped:
                self._step_told_at = 0.0
        for event in applied.events:
            if type(event) is DigestDisagreed:
                self._disagreed(event)
        leader = self._engine.status().leader
        for envelope in decode_batch(payload).commands:
            if envelope.key:
                continue
            command = decode_command(envelope.body)
            if type(command) is ReportDigest and command.member == leader and leader != self.config.name:
                # Replicas are compared at one index: the leader names it, the others answer with theirs.
                digest = self._machine.digest_at(command.digest_index)
                if digest is not None:
                    self._tell_digest(command.digest_index, digest)

    def _disagreed(self, event: DigestDisagreed) -> None:
        """Who differs from a majority leaves, with its state as evidence; without one, writes stop everywhere.

        What counts is what this replica has now, not what was reported in its name: once rebuilt it comes past the
        word that its old self differed. Started behind that index it has no digest to compare; if it is wrong, the
        next report, of an index that it applies itself, says so: a digest never agrees again once it differed.
        """
        index, machine = event.digest_index, self._machine
        self.digests_disagreed += 1
        log.critical("digests disagree", index=index, members=event.members)
        if self.config.name not in event.members or machine.writes_stopped:
            return
        mine = machine.digest_at(index)
        agreed = [digest for member, digest in machine.digests_told(index).items() if member not in event.members]
        if mine is None or mine in agreed:
            log.warning("this was reported before this replica was rebuilt", index=index, compared=mine is not None)
            return
        self._on_diverged(f"the digest at index {index} differs from the majority's")

    # ---- time ----

    async def _step_loop(self) -> None:
        """The leader lets time pass when something is due; one step under way at a time."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(STEP_LOOK_S)
            if self._engine.status().role is not Role.leader:
                continue
            due_at_us = self._machine.due_at_us()
            if due_at_us is None or due_at_us > self._clock():
                continue
            if self._step_told_at and loop.time() - self._step_told_at < STEP_LOST_S:
                continue
            self._step_told_at = loop.time()
            self._submitter.tell(TimeStep())

    async def _digest_loop(self) -> None:
        """The leader reports now and then even when little happens."""
        while True:
            await asyncio.sleep(self.config.timing.digest_ms / 1000)
            # What the reports themselves add to the log is no news.
            if self._machine.applied_index > self._reported_index + 1 + self._replicas():
                self._report(self._machine.applied_index)

    def _report(self, index: int) -> None:
        digest = self._machine.digest_at(index)
        if self._engine.status().role is Role.leader and digest is not None and index > self._reported_index:
            self._reported_index = index
            self._tell_digest(index, digest)

    def _tell_digest(self, index: int, digest: bytes) -> None:
        self._submitter.tell(ReportDigest(self.config.name, index, digest, self._replicas()))

    def _replicas(self) -> int:
        """All that hold the state, whether they vote or not: each has a digest to compare."""
        members = self._engine.group().configuration.members
        return sum(member.role is MemberRole.replica for member in members)

    # ---- disk ----

    async def _flush_loop(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self.config.timing.flush_ms / 1000):
                    await self._flush_now.wait()
            except TimeoutError:
                pass
            self._flush_now.clear()
            await self.flush()
            if isinstance(self.refusal, Overloaded) and not self._store.pending_full:
                self._refuse(None)

    async def flush(self) -> None:
        """Write what is applied and not stored yet, as one transaction; the log may then be trimmed up to it."""
        async with self._flushing:
            if self._machine.applied_index == self._store.stored_index:
                self._machine.forget_accounts()
                return
            with self._metrics.stage("flush"):
                flush = self._store.begin(self._machine.collect())
                await asyncio.get_running_loop().run_in_executor(self._disk, flush.write)
                self._store.finish(flush)
            self._engine.set_stored_index(self._store.stored_index)
            self.flushes += 1

    async def _seal_loop(self) -> None:
        """Days that are over go into sealed segments, between flushes; old segments go."""
        loop = asyncio.get_running_loop()
        while True:
            seal = self._store.begin_seal()
            if seal is None:
                prune = self._store.begin_prune()
                if prune is not None:
                    await loop.run_in_executor(self._disk, prune.commit)
                await asyncio.sleep(SEAL_LOOK_S)
                continue
            done = False
            while not done:  # a flush that waits for the same thread goes in between
                done = await loop.run_in_executor(self._disk, seal.step)
            self._store.publish_seal(seal)
            await loop.run_in_executor(self._disk, seal.commit)

    async def _disk_loop(self) -> None:
        while True:
            self.look_at_disk()
            await asyncio.sleep(self.config.timing.disk_check_ms / 1000)

    def look_at_disk(self) -> None:
        """Refuse writes below the low-water mark; take them again only when there is clearly more room."""
        limits = self.config.limits
        room = os.statvfs(self.config.data_dir)
        free = room.f_bavail * room.f_frsize
        space = self._store.space()
        if not self.disk_low and (free < limits.disk_free_bytes_min or space.low):
            log.error("disk low: writes are refused", free_bytes=free, map_free_bytes=space.map_free_bytes)
            self.disk_low = True
            self._on_disk_low(True)
            left = min(free, space.map_free_bytes)
            self._refuse(
                DiskLow(
                    f"this node has {left} bytes left for its store, of which {limits.disk_free_bytes_min} are kept "
                    "free; nothing was logged: ask another member, or try again when there is room"
                )
            )
        elif self.disk_low and free >= limits.disk_free_bytes_ok and not space.low:
            log.info("disk has room again: writes are taken", free_bytes=free)
            self.disk_low = False
            self._on_disk_low(False)
            self._refuse(None)

    def _refuse(self, error: NodeError | None) -> None:
        if error is None and self.disk_low:
            return
        self.refusal = error
        self._submitter.set_refusal(error)
