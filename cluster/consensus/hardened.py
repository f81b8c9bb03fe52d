"""The engine that runs: PySyncObj made safe, on one event loop, with its journal in LMDB and its links in TLS."""

import asyncio
import logging
import os
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from cluster.certificates import client_context, server_context
from cluster.consensus.addresses import AddressBook
from cluster.consensus.audited import check_library, monotonic
from cluster.consensus.clocks import ClockGuard
from cluster.consensus.engine import (
    ChangeRefused,
    ChangeTooEarly,
    ChangeUnknown,
    ConsensusError,
    EngineStatus,
    GroupStatus,
    NoLeader,
    NoQuorum,
    NotLeader,
    Overloaded,
    PeerStatus,
    Role,
)
from cluster.consensus.journal import Journal, JournalRefused
from cluster.consensus.messages import (
    Application,
    Members,
    Message,
    Raft,
    ReadAnswer,
    ReadAsk,
    Removed,
    SnapshotAsk,
    SnapshotChunk,
    SnapshotEnd,
    SnapshotOffer,
)
from cluster.consensus.raft import ApplyFailed, NotYet, RaftCore, RaftSettings
from cluster.consensus.settings import (
    EXIT_APPLY_FAILED,
    EXIT_BROKEN_INVARIANT,
    EXIT_DISK_FAILED,
    EXIT_REMOVED,
    PAYLOAD_BYTES_MAX,
    EngineSettings,
    StopProcess,
    stop_process,
)
from cluster.consensus.snapshots import SnapshotHome, SnapshotReceiver, SnapshotSender
from cluster.consensus.storage import LmdbStorage, ThreadCommitter
from cluster.consensus.transport import Links, wall_us
from cluster.membership import Change, Demote, InvalidChange, Promote, Remove, changed, first_configuration
from cluster.topology import MemberRole, Standing, check

log = logging.getLogger(__name__)

TICK_SECONDS = 0.01
WATCH_SECONDS = 0.5
WAITING_SECONDS = 10.0

_RoleSeen = tuple[Role, str | None, int, bool]


def _ignore(*_: Any) -> None:
    pass


class _HandOverFirst(Exception):
    """The leader itself is to be demoted or removed."""


class HardenedEngine:
    """Implements `Engine`; see there for what each call promises.

    Any error in apply, in raft's invariants or in the journal calls stop_process(exit_code, reason), which
    must not return in production. A witness takes the same calls but refuses propose and read_index.
    clock_us: the wall clock, in microseconds, for the clock guard only.
    """

    def __init__(
        self,
        settings: EngineSettings,
        *,
        stop_process: StopProcess = stop_process,
        clock_us: Callable[[], int] = wall_us,
    ) -> None:
        check_library()
        check(settings.topology)
        self.on_committed: Callable[[int, bytes], None] = _ignore
        self.on_role: Callable[[], None] = _ignore
        self.on_message: Callable[[str, str, bytes], None] = _ignore
        self.on_configuration: Callable[[], None] = _ignore
        self.snapshots: SnapshotHome | None = None
        self.settings = settings
        self.member = settings.topology.member(settings.member)
        self._book = AddressBook(settings.topology, settings.member)
        self._stop_process = stop_process
        self._timing = settings.topology.timing
        self._clock_us = clock_us
        self._guard = ClockGuard(self._timing.clock_offset_ms_max)
        self._loop: asyncio.AbstractEventLoop
        self._journal: Journal
        self._raft: RaftCore
        self._links: Links
        self._snapshot_out: SnapshotSender | None = None
        self._snapshot_in: SnapshotReceiver | None = None
        self._running = False
        self._dead = False
        self._waits_since = monotonic()
        self._tick_due = False
        self._timers: list[asyncio.TimerHandle] = []
        self._role_seen: _RoleSeen | None = None
        self._role_waiters: set[asyncio.Future[None]] = set()
        self._uncommitted: deque[tuple[int, int]] = deque()  # (index, bytes) of proposals of this leader
        self._uncommitted_bytes = 0
        self._disk_full: str | None = None
        # Reads of a follower, asked of the leader. Ids begin at random: a restarted member's are new.
        self._ask = random.SystemRandom().getrandbits(62)
        self._ask_waiting: list[asyncio.Future[int | None]] = []
        self._asked: dict[int, list[asyncio.Future[int | None]]] = {}
        self._asked_at = 0.0
        self._reads = 0
        self.ticks = 0

    # -- life ------------------------------------------------------------------------------------

    async def start(self, *, applied_index: int) -> None:
        """See Engine. Raises JournalRefused (also when journal and store don't fit), OSError (address taken)."""
        settings, limits = self.settings, self.settings.limits
        topology = settings.topology
        self._loop = loop = asyncio.get_running_loop()

        def open_journal() -> Journal:
            storage = LmdbStorage(
                settings.folder,
                cluster_id=topology.cluster_id,
                member=self.member.name,
                map_bytes=2 * limits.journal_bytes_max + (1 << 30),
            )
            try:
                return Journal(
                    storage,
                    ThreadCommitter(loop),
                    on_synced=self._synced,
                    on_failed=self._disk_failed,
                    tail_bytes_max=limits.tail_bytes_max,
                )
            except BaseException:
                storage.close()
                raise

        # Every record's checksum is verified, which takes a second or so per GiB.
        self._journal = await loop.run_in_executor(None, open_journal)
        try:
            self._check_epoch()
            self._raft = RaftCore(
                self.member.name,
                self.member.role,
                first_configuration(topology),
                journal=self._journal,
                owner=self,
                settings=RaftSettings(
                    timing=self._timing,
                    trim_reserve=limits.trim_reserve,
                    laggard_entries=limits.laggard_entries,
                    laggard_bytes=limits.laggard_bytes,
                    laggard_ms=limits.laggard_ms,
                ),
                applied_index=applied_index,
            )
            self._links = Links(
                member=self.member.name,
                cluster_id=topology.history,
                listen=settings.listen or (self.member.peer_host, self.member.peer_port),
                dial=self._addresses(),
                server_tls=server_context(settings.tls),
                client_tls=client_context(settings.tls),
                timing=self._timing,
                limits=limits,
                delay_ms=settings.delay_ms,
                receiver=self,
                clock_us=self._clock_us,
            )
            if self.snapshots is not None and self.member.role is MemberRole.replica:
                self._build_snapshots(self.snapshots)
            self._running = True
            self.configured()
            await self._links.start()
        except BaseException:
            self._running = False
            self._journal.close()
            raise
        self._watch()
        self._timer()

    def _check_epoch(self) -> None:
        """A survivor of a lost majority is not of the history before: there it would link with those given up."""
        base, epoch = self._journal.base, self.settings.topology.epoch
        if base is not None and base.configuration.generation > epoch:
            raise JournalRefused(
                f"{self.settings.folder} is of epoch {base.configuration.generation}, the topology is of epoch "
                f"{epoch}: use the newest file"
            )

    def _build_snapshots(self, home: SnapshotHome) -> None:
        raft, folder = self._raft, self.settings.folder.parent / "snapshots"

        def hold(index: int | None) -> None:
            raft.hold_index = index

        self._snapshot_out = SnapshotSender(
            home,
            folder / "outgoing",
            send=self._links.send,
            term=lambda: raft.term,
            term_at=self._journal.term_at,
            base_at=self._journal.base_at,
            usable=lambda index: index >= self._journal.first_index,
            hold=hold,
            buffered=self._links.buffered_bytes,
            bytes_per_s=self.settings.limits.snapshot_bytes_per_s,
        )
        self._snapshot_in = SnapshotReceiver(
            home, folder / "incoming", send=self._links.send, wanted=self._why_no_snapshot
        )

    def _why_no_snapshot(self, member: str, offer: SnapshotOffer) -> str:
        """Only the leader of this term is believed, and only what this log can't reach otherwise."""
        if offer.term != self._raft.term or member != self._raft.leader:
            return "not from the leader of this term"
        return "" if self.needs_snapshot(offer) else "not needed"

    def needs_snapshot(self, offer: SnapshotOffer) -> bool:
        journal, index = self._journal, offer.index
        if index <= max(self._raft.commit_index, self._raft.applied_index):
            return False
        if not journal.first_index <= index <= journal.last_index:
            return True
        return not self._running or journal.term_at(index) != offer.index_term

    async def stop(self) -> None:
        """Close links, write what is pending, close the journal. Leadership is not handed over: see transfer."""
        if not self._running:
            return
        self._running = False
        for timer in self._timers:
            timer.cancel()
        self._raft.reads.fail()
        for part in (self._snapshot_in, self._snapshot_out):
            if part is not None:
                await part.stop()
        await self._links.stop()
        await self._loop.run_in_executor(None, self._journal.close)

    # -- proposals -------------------------------------------------------------------------------

    def propose(self, payload: bytes) -> None:
        raft, limits = self._raft, self.settings.limits
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise ValueError(f"payload of {len(payload)} bytes; at most {PAYLOAD_BYTES_MAX}")
        if not raft.is_leader or raft.caretaker or raft.transferring or not self._running or self._dead:
            raise NotLeader(f"{self.member.name} takes no proposals; {self._raft.leader or 'nobody'} leads")
        if not raft.has_quorum or raft.connected_voters < raft.quorum:
            raise NoQuorum(f"{self.member.name} reaches {sorted(raft.connected)} of {sorted(raft.voters)}")
        if len(self._uncommitted) >= limits.uncommitted_entries_max:
            raise Overloaded(f"{len(self._uncommitted)} entries are not committed yet")
        if self._uncommitted_bytes + len(payload) > limits.uncommitted_bytes_max:
            raise Overloaded(f"{self._uncommitted_bytes} bytes are not committed yet")
        refusal = self._refusal()
        if refusal:
            raise Overloaded(refusal)
        index = raft.append(payload)
        self._uncommitted.append((index, len(payload)))
        self._uncommitted_bytes += len(payload)
        self.wake()

    def _refusal(self) -> str:
        if self._disk_full is not None:
            return self._disk_full
        raft = self._raft
        if raft.is_leader and raft.full_members and not raft.room_for_quorum:
            return (
                f"the log of {' and '.join(raft.full_members)} is at its limit: it may not be trimmed before every "
                "replica has stored it, so bring back the one that is away"
            )
        return ""

    def _settle_uncommitted(self) -> None:
        if not self._raft.is_leader:
            self._uncommitted.clear()
            self._uncommitted_bytes = 0
            return
        commit_index = self._raft.commit_index
        while self._uncommitted and self._uncommitted[0][0] <= commit_index:
            self._uncommitted_bytes -= self._uncommitted.popleft()[1]

    # -- reads -----------------------------------------------------------------------------------

    async def read_index(self, *, timeout_ms: int) -> int:
        if self.member.role is MemberRole.witness:
            raise NoLeader("a witness serves no reads")
        if self._reads >= self.settings.limits.reads_max:
            raise Overloaded(f"{self._reads} reads wait already")
        self._reads += 1
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                while True:
                    index = await self._read_once()
                    if index is not None:
                        return index
                    # Leadership moved. Look again when something is known, and now and then anyway.
                    await self._role_change(self._timing.heartbeat_ms / 1000)
        except TimeoutError:
            raise self._why_no_read() from None
        finally:
            self._reads -= 1

    async def _read_once(self) -> int | None:
        answer: asyncio.Future[int | None] = self._loop.create_future()
        if self._raft.is_leader:
            self._raft.read(lambda index: _resolve(answer, index))
        elif self._raft.leader is not None:
            self._ask_waiting.append(answer)
            self.wake()
        else:
            return None
        return await answer

    def _why_no_read(self) -> ConsensusError:
        if self._raft.is_leader:
            return NoQuorum(f"{self.member.name} could not confirm that it still leads")
        if self._raft.leader is None:
            reached, voters = self._raft.connected_voters, len(self._raft.voters)
            if 2 * reached <= voters:
                return NoQuorum(f"{self.member.name} reaches {reached} of {voters} voters")
            return NoLeader("no leader is known")
        return NoQuorum(f"{self._raft.leader} did not confirm that it leads")

    def _ask_leader(self) -> None:
        """One question at a time carries all reads that came meanwhile."""
        if not self._ask_waiting and not self._asked:
            return
        leader = self._raft.leader
        if leader is None or leader == self.member.name:
            self._fail_asks()
            return
        now = monotonic()
        lost = now - self._asked_at > self._timing.election_ms_min / 1000
        if not self._ask_waiting or (self._asked and not lost):
            return
        self._ask += 1
        if self._links.send(leader, ReadAsk(self._ask)):
            self._asked[self._ask], self._ask_waiting = self._ask_waiting, []
            self._asked_at = now

    def _fail_asks(self) -> None:
        waiting, self._ask_waiting = self._ask_waiting, []
        asked, self._asked = self._asked, {}
        for reads in (waiting, *asked.values()):
            for answer in reads:
                _resolve(answer, None)

    def _on_read_answer(self, answer: ReadAnswer) -> None:
        # The leader began its round after this question, so after all older ones too.
        for ask in [ask for ask in self._asked if ask <= answer.ask]:
            for read in self._asked.pop(ask):
                _resolve(read, answer.index if answer.index >= 0 else None)
        self.wake()

    # -- leadership ------------------------------------------------------------------------------

    async def transfer_leadership(self, target: str | None, *, timeout_ms: int) -> bool:
        raft = self._raft
        if not raft.is_leader:
            leader = raft.leader
            return leader is not None and target in (None, leader)
        if target is not None and (target == self.member.name or target not in raft.other_voters):
            return False
        towards = raft.progress(target) if target is not None else None
        if towards is not None and not towards.joined:
            return False
        if raft.transferring:
            return False
        raft.transferring = True
        self._tell_role()
        asked_at = float("-inf")
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                while self._role() is Role.leader:
                    successor = target or raft.best_successor()
                    progress = raft.progress(successor) if successor is not None else None
                    ready = progress is not None and progress.matched_index == self._journal.last_index
                    # Once per election timeout: the first question may be lost, the second disturbs nobody.
                    if successor and ready and monotonic() - asked_at > self._timing.election_ms_max / 1000:
                        asked_at = monotonic()
                        log.info("%s hands leadership to %s", self.member.name, successor)
                        raft.transfer_to(successor)
                    await self._role_change(0.005)
                while raft.leader is None:
                    await self._role_change(0.05)
                return raft.leader != self.member.name
        except TimeoutError:
            log.warning("%s could not hand leadership over within %d ms", self.member.name, timeout_ms)
            return False
        finally:
            raft.transferring = False
            self._tell_role()

    async def _role_change(self, seconds: float) -> None:
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._role_waiters.add(waiter)
        try:
            await asyncio.wait({waiter}, timeout=seconds)
        finally:
            self._role_waiters.discard(waiter)

    def _tell_role(self) -> None:
        raft = self._raft
        seen: _RoleSeen = (self._role(), raft.leader, raft.term, raft.has_quorum and not raft.transferring)
        if seen == self._role_seen:
            return
        self._role_seen = seen
        for waiter in self._role_waiters:
            _resolve(waiter, None)
        self._safely("on_role", self.on_role)

    def _role(self) -> Role:
        if self._raft.is_leader:
            return Role.leader
        return Role.follower if self._raft.is_follower else Role.candidate

    # -- the rest of Engine ----------------------------------------------------------------------

    def set_stored_index(self, index: int) -> None:
        self._raft.stored_index = max(self._raft.stored_index, index)

    def send(self, member: str, kind: str, body: bytes) -> bool:
        """See Engine. Raises ValueError for a body that does not fit a frame (16 MiB with its kind)."""
        return self._running and self._links.send_application(member, kind, body)

    def status(self) -> EngineStatus:
        raft, journal = self._raft, self._journal
        connected = raft.connected
        peers = []
        for other in raft.configuration.members:
            if other.name == self.member.name:
                continue
            progress = raft.progress(other.name)
            peers.append(
                PeerStatus(
                    name=other.name,
                    connected=other.name in connected,
                    matched_index=progress.matched_index if progress else 0,
                    stored_index=progress.stored_index if progress else 0,
                    heard_ms_ago=self._links.heard_ms_ago(other.name),
                    clock_offset_ms=self._links.clock_offset_ms(other.name),
                    joined=progress.joined if progress else self._joined(other.name),
                    log_full=progress.full if progress else False,
                    standing=other.standing,
                )
            )
        return EngineStatus(
            member=self.member.name,
            role=self._role(),
            leader=raft.leader,
            term=raft.term,
            has_quorum=raft.has_quorum,
            first_index=journal.first_index,
            last_index=journal.last_index,
            durable_index=journal.durable_index,
            commit_index=raft.commit_index,
            applied_index=raft.applied_index,
            stored_index=raft.stored_index,
            peers=peers,
            joined=raft.joined,
            refusal=self._refusal(),
            standing=self._standing(),
            barred=self._guard.barred or "",
        )

    def _standing(self) -> Standing:
        """Where the log does not name this member yet, it is what its topology says."""
        member = self._raft.configuration.member(self.member.name)
        return member.standing if member is not None else self.member.standing

    def group(self) -> GroupStatus:
        raft = self._raft
        return GroupStatus(raft.configuration_index, raft.configuration_committed, raft.configuration)

    def _joined(self, member: str) -> bool:
        disk = self._raft.disk_of(member)
        return disk is None or disk.joined

    @property
    def counters(self) -> Counter[str]:
        counters = self._links.counters + self._raft.counters
        for part in (self._snapshot_in, self._snapshot_out):
            if part is not None:
                counters += part.counters
        return counters

    # -- what links and raft call ----------------------------------------------------------------

    def link_up(self, member: str) -> None:
        self._raft.peer_connected(member)
        self._links.send(member, self._book.told())
        self.wake()

    def link_down(self, member: str) -> None:
        self._raft.peer_disconnected(member)
        self.wake()

    def received(self, member: str, message: Message) -> None:
        if self._dead or not self._running:
            return
        match message:
            case Application(kind, body):
                self._safely("on_message", self.on_message, member, kind, body)
            case ReadAsk(ask):
                self._raft.read(
                    lambda index: self._answer_ask(member, ask, index),
                )
            case ReadAnswer():
                self._on_read_answer(message)
            case SnapshotOffer() | SnapshotAsk() | SnapshotChunk() | SnapshotEnd():
                self._safely("snapshot", self._on_snapshot, member, message)
            case Members():
                if self._book.heard(message):
                    self._peers_changed()
            case Removed():
                self._was_removed(member, message)
            case _:
                # The decoder lets only messages through; what is left is raft's, which counts what it refuses.
                self._guarded(self._take, member, message)

    def _take(self, member: str, message: Raft) -> None:
        if self._raft.received(member, message):
            self.wake()

    def _on_snapshot(self, member: str, message: SnapshotOffer | SnapshotAsk | SnapshotChunk | SnapshotEnd) -> None:
        out, into = self._snapshot_out, self._snapshot_in
        if out is None or into is None:
            if not isinstance(message, SnapshotEnd):
                self._links.send(member, SnapshotEnd(message.snapshot_id, "no snapshots here"))
            return
        match message:
            case SnapshotOffer():
                into.offered(member, message)
            case SnapshotAsk():
                out.asked(member, message)
            case SnapshotChunk():
                into.chunk(member, message)
            case SnapshotEnd():
                into.ended(member, message)
                out.ended(member, message)

    def links_failed(self, error: BaseException) -> None:
        if self._running:
            self._leave(EXIT_BROKEN_INVARIANT, f"links failed: {error!r}")

    def _answer_ask(self, member: str, ask: int, index: int | None) -> None:
        self._links.send(member, ReadAnswer(ask, -1 if index is None else index))

    def say(self, member: str, message: Raft) -> bool:
        return self._links.send(member, message)

    def deliver(self, index: int, payload: bytes) -> None:
        self.on_committed(index, payload)

    def wake(self) -> None:
        """Tick in the loop's next round, once for all that happens in this one."""
        if not self._tick_due and self._running:
            self._tick_due = True
            self._loop.call_soon(self._tick)

    # -- who the members are ---------------------------------------------------------------------

    def configured(self) -> None:
        base = self._journal.base
        if base is None or not self._running:
            return
        self._book.configured(base, committed=self._raft.configuration_committed)
        self._say_farewell()
        self._peers_changed()
        for name in self._raft.connected:
            self._links.send(name, self._book.told())
        for waiter in self._role_waiters:
            _resolve(waiter, None)
        self._safely("on_configuration", self.on_configuration)

    def _addresses(self) -> dict[str, tuple[str, int]]:
        return {name: self.settings.dial.get(name, where) for name, where in self._book.addresses().items()}

    def _peers_changed(self) -> None:
        self._links.set_peers(self._addresses())

    def _say_farewell(self) -> None:
        """To whom is removed, before its link is closed: one that dials nobody could not come and ask."""
        for name in self._raft.connected - self._addresses().keys():
            farewell = self._book.farewell(name)
            if farewell is not None:
                self._links.send(name, farewell)

    def stranger(self, member: str) -> Removed | None:
        """What to tell a member of this cluster that is not among the peers."""
        return self._book.farewell(member)

    def _was_removed(self, member: str, message: Removed) -> None:
        if not self._book.believes(message):
            return
        self._leave(
            EXIT_REMOVED,
            f"{self.member.name} was removed from the group at index {message.index}, says {member}; "
            "its name never comes back: add a member of another name",
        )

    async def change_membership(self, change: Change, *, timeout_ms: int) -> GroupStatus:
        reason = "no majority"
        logged: tuple[int, int] | None = None  # (index, term)
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                while True:
                    raft = self._raft
                    if logged is None:
                        try:
                            logged = self._log_change(change), raft.term
                        except NotYet as error:
                            reason = str(error)
                    if logged is not None:
                        if raft.term != logged[1] or not raft.is_leader:
                            raise ChangeUnknown(f"{self.member.name} stopped leading before the change was committed")
                        if logged[0] <= raft.commit_index:
                            # What it came to: a next change may be in force by now.
                            return GroupStatus(logged[0], True, self._journal.base_at(logged[0]).configuration)
                    await self._role_change(self._timing.heartbeat_ms / 1000)
        except _HandOverFirst:
            handed = await self.transfer_leadership(None, timeout_ms=timeout_ms)
            if not handed:
                raise ChangeRefused(f"{self.member.name} leads and could not hand leadership over") from None
            raise NotLeader(f"{self.member.name} handed leadership over for this; {self._raft.leader} leads") from None
        except TimeoutError:
            if logged is None:
                raise ChangeTooEarly(reason) from None
            raise ChangeUnknown(f"the change at index {logged[0]} is not known to be committed") from None

    def _log_change(self, change: Change) -> int:
        raft = self._raft
        caretaker = raft.caretaker and not isinstance(change, Promote)
        if not raft.is_leader or caretaker or raft.transferring or not self._running or self._dead:
            raise NotLeader(f"{self.member.name} changes no members; {raft.leader or 'nobody'} leads")
        if not raft.has_quorum:
            raise NoQuorum(f"{self.member.name} reaches no majority")
        try:
            if isinstance(change, Demote | Remove) and change.name == self.member.name:
                changed(raft.configuration, change)  # what is refused anyway moves no leadership
                raise _HandOverFirst
            index = raft.change(change)
        except InvalidChange as error:
            raise ChangeRefused(str(error)) from error
        self.wake()
        return index

    # -- the loop --------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._tick_due = False
        if not self._running or self._dead:
            return
        self.ticks += 1
        self._guarded(self._raft.tick)
        self._settle_uncommitted()
        self._ask_leader()
        self._tell_role()
        if self._snapshot_out is not None:
            self._snapshot_out.stranded(self._raft.stranded)

    def _synced(self) -> None:
        if self._running and not self._dead:
            self._guarded(self._go_on)

    def _go_on(self) -> None:
        if self._raft.synced():
            self.wake()

    def _timer(self) -> None:
        self.wake()
        self._timers[1:] = [self._loop.call_later(TICK_SECONDS, self._timer)]

    def _watch(self) -> None:
        self._timers[:1] = [self._loop.call_later(WATCH_SECONDS, self._watch)]
        offsets = [offset for name in self._raft.connected if (offset := self._links.clock_offset_ms(name)) is not None]
        before, barred = self._guard.barred, self._guard.judge(offsets)
        if (barred is None) != (before is None):
            log.error("%s may %s lead: %s", self.member.name, "not" if barred else "again", barred or "clocks agree")
        self._raft.barred = barred
        self._watch_room()
        self._watch_disk()

    def _watch_disk(self) -> None:
        """Say now and then why this member does not count, when nobody brings it up to date."""
        now = monotonic()
        if self._raft.joined or self._raft.leader is not None:
            self._waits_since = now
        elif now - self._waits_since > WAITING_SECONDS:
            self._waits_since = now
            log.warning(
                "%s is on a new disk and waits for a leader; for a first start it has yet to meet %s",
                self.member.name,
                " and ".join(self._raft.unmet),
            )

    def _watch_room(self) -> None:
        before, self._disk_full = self._refusal(), self._check_room()
        self._raft.log_full = self._disk_full is not None
        after = self._refusal()
        if bool(before) != bool(after):
            log.error("%s: %s", self.member.name, after or "there is room in the log again")

    def _check_room(self) -> str | None:
        limits = self.settings.limits
        used = self._journal.used_bytes
        if used > limits.journal_bytes_max:
            return f"the log holds {used} bytes; at most {limits.journal_bytes_max}"
        room = os.statvfs(self.settings.folder)
        free = room.f_bavail * room.f_frsize
        if free < limits.free_bytes_min:
            return f"the disk has {free} bytes free; at least {limits.free_bytes_min} are kept"
        return None

    # -- leaving ---------------------------------------------------------------------------------

    def _disk_failed(self, error: BaseException) -> None:
        self._leave(EXIT_DISK_FAILED, f"the journal could not be written: {error!r}")

    def _guarded(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except ApplyFailed as error:
            log.critical("apply failed", exc_info=True)
            self._leave(EXIT_APPLY_FAILED, str(error))
        except BaseException as error:
            log.critical("raft failed", exc_info=True)
            self._leave(EXIT_BROKEN_INVARIANT, f"{type(error).__name__}: {error}")

    def _leave(self, exit_code: int, reason: str) -> None:
        # Where stop_process returns, in tests, this member is silent from here on.
        self._dead = True
        self._stop_process(exit_code, reason)

    def _safely(self, what: str, call: Callable[..., None], *arguments: Any) -> None:
        """Roles and messages are news, not state: an error in their callbacks is logged and stays there."""
        try:
            call(*arguments)
        except Exception:
            log.exception("%s failed", what)


def _resolve(future: "asyncio.Future[Any]", value: Any) -> None:
    # A caller may have given up already.
    if not future.done():
        future.set_result(value)
