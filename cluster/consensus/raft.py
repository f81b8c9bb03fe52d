"""Raft: PySyncObj's elections, commit rule and tick; everything that the audit found unsafe is replaced here.

A subclass overrides the library's private methods by their mangled names (self.__x is _SyncObj__x).
DESIGN.md in this room has the table: defect, effect, cure, test.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from msgspec import Struct

from cluster.consensus.audited import (
    FOLLOWER,
    LEADER,
    NO_OP,
    REGULAR,
    LibraryTransport,
    Node,
    SyncObj,
    SyncObjConf,
    check_attributes,
    construct_with_journal,
    monotonic,
)
from cluster.consensus.journal import CONFIGURATION, Journal, JournalRefused
from cluster.consensus.messages import (
    UNANSWERED,
    Admit,
    Append,
    AppendReply,
    DiskIs,
    PreVote,
    PreVoteReply,
    Raft,
    Rebase,
    RequestVote,
    StaleTerm,
    TimeoutNow,
    Vote,
)
from cluster.consensus.progress import Progress
from cluster.consensus.reads import Answer, ReadRounds
from cluster.membership import Change, Configuration, Demote, InvalidChange, Promote, Remove, changed
from cluster.membership import encode as encode_configuration
from cluster.topology import MemberRole, Timing

log = logging.getLogger(__name__)

BATCH_BYTES = 1 << 20
APPLY_SECONDS = 0.02
HELD_MAX = 10_000
TRIM_SECONDS = 0.01
NEVER = float("-inf")
START_EMPTY = "they don't belong together; keep this folder aside, and with an empty one the member is brought up anew"


class BrokenInvariant(BaseException):
    """Raft's rules do not hold here: the process must stop. Not an Exception, so that nothing swallows it."""


class ApplyFailed(BaseException):
    """on_committed raised. Its entry is not applied again and no later one is: the process must stop."""


class NotYet(Exception):
    """This change of the members can't be logged now, but may be soon."""


class RaftSettings(Struct, frozen=True):
    """trim_reserve: entries kept below what every replica has stored, for followers that lag a little.

    laggard_*: a replica that is away holds trimming back until the log has so many entries or bytes, or it has
        been silent for so long. Beyond that it needs a snapshot.
    promote_lag: a learner that lacks no more entries than this may become a voter.
    """

    timing: Timing = Timing()
    batch_bytes: int = BATCH_BYTES
    trim_reserve: int = 10_000
    laggard_entries: int = 1_000_000
    laggard_bytes: int = 4 << 30
    laggard_ms: int = 3_600_000
    promote_lag: int = 1000


class Owner(Protocol):
    """What raft needs from whoever runs it."""

    def say(self, member: str, message: Raft) -> bool: ...

    def deliver(self, index: int, payload: bytes) -> None: ...

    def configured(self) -> None:
        """Another configuration is in force, or the one in force is committed now."""
        ...

    def wake(self) -> None: ...


class CappedMatch(dict[Any, int]):
    """Read by the library's commit loop: what this leader has not synced itself counts for nobody."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def __getitem__(self, node: Any) -> int:
        return min(super().__getitem__(node), self._journal.durable_index)


class NullPoller:
    def subscribe(self, *_: object) -> None: ...

    def unsubscribe(self, *_: object) -> None: ...

    def poll(self, _timeout: float) -> None: ...


class LibraryLink(LibraryTransport):  # type: ignore[misc]
    """Turns the few messages that the library still sends itself into ours."""

    def __init__(self, say: Callable[[str, Mapping[str, Any]], None]) -> None:
        super().__init__(None, None, None)
        self._say = say

    def send(self, node: Any, message: Mapping[str, Any]) -> bool:
        self._say(node.id, message)
        return True


class RaftCore(SyncObj):  # type: ignore[misc]
    """One member. Not thread-safe; nothing blocks. Call `tick` after every event and every few milliseconds.

    first: who the members are where the journal does not say. applied_index: what the state machine has already.
    """

    # The library's own fields that are assigned here.
    _SyncObj__raftCommitIndex: int
    _SyncObj__raftLastApplied: int
    _SyncObj__raftLeader: Any
    _SyncObj__raftElectionDeadline: float

    def __init__(
        self,
        member: str,
        role: MemberRole,
        first: Configuration,
        *,
        journal: Journal,
        owner: Owner,
        settings: RaftSettings,
        applied_index: int,
    ) -> None:
        self.member = member
        self.role = role
        self.configuration = first
        self.others: dict[str, MemberRole] = {}
        self.voters: frozenset[str] = frozenset()
        self.settings = settings
        self.journal = journal
        self.owner = owner
        self.reads = ReadRounds()
        self.counters: Counter[str] = Counter()
        self.stored_index = 0
        self.barred: str | None = None  # why this member may not lead, beside being a witness
        self.transferring = False
        self.log_full = False
        self.hold_index: int | None = None  # a snapshot under way: the log after it must stay
        self._disks: dict[str, DiskIs] = {}
        self._lost_disks: set[str] = set()
        self._clean: set[str] = set()
        self._say_disk_again = NEVER
        self._nodes: dict[str, Any] = {}
        self._configured_index = 0
        self._told_committed = True
        self._parting: frozenset[str] = frozenset()
        self._progress: dict[str, Progress] = {}
        self._sequence = 0
        self._held: list[tuple[str, Raft]] = []
        self._ticked_at = monotonic()
        self._paused = 0.0
        self._leader_seen = NEVER
        self._followed: tuple[int, str] = (-1, "")
        self._echo = 0
        self._verified_index = 0
        self._acked_index = 0
        self._replied_at = NEVER
        self._trim_index = 0
        self._trim_again = NEVER
        self._commit_to_tell = 0  # what a tick before this one committed
        self._pre_vote_term = 0
        self._pre_votes: set[str] = set()
        self._pre_vote_again = NEVER
        self._votes: set[tuple[int, str]] = set()
        self._transfer_election = False
        self._campaign_at_once = False
        self._hurried_at = NEVER
        self._handed_over = NEVER
        self._no_change_because = ""
        timing = settings.timing
        patience = timing.witness_patience if role is MemberRole.witness else 1
        conf = SyncObjConf(
            autoTick=False,
            dynamicMembershipChange=False,
            appendEntriesUseBatch=True,
            appendEntriesPeriod=timing.heartbeat_ms / 1000,
            raftMinTimeout=timing.election_ms_min * patience / 1000,
            raftMaxTimeout=timing.election_ms_max * patience / 1000,
            # Check-quorum: the library's default is 30 s of stale leadership.
            leaderFallbackTimeout=timing.election_ms_min / 1000,
            connectionTimeout=timing.election_ms_max * patience / 1000,
            journalFile=None,
            fullDumpFile=None,
        )
        construct_with_journal(
            journal,
            lambda: super(RaftCore, self).__init__(
                member, [], conf, nodeClass=Node, transport=LibraryLink(self._library_says)
            ),
        )
        check_attributes(self)
        self._poller = NullPoller()
        self._SyncObj__raftMatchIndex = CappedMatch(journal)
        self._SyncObj__needLoadDumpFile = False
        journal.begin_with(first)
        journal.on_configuration = self._configure
        self._start_from(applied_index)
        self._take_configuration()

    def _start_from(self, applied_index: int) -> None:
        if self.role is MemberRole.witness:
            applied_index = self._SyncObj__raftCommitIndex
        first, last = self.journal.first_index, self.journal.last_index
        if applied_index > last:
            raise JournalRefused(f"the store has applied {applied_index}, the journal ends at {last}: {START_EMPTY}")
        if applied_index < first - 1:
            raise JournalRefused(f"the store has applied {applied_index}, the journal starts at {first}: {START_EMPTY}")
        self._SyncObj__raftLastApplied = max(applied_index, 1)
        # What was applied was committed, even where the commit index on disk is older.
        self._SyncObj__raftCommitIndex = max(self._SyncObj__raftCommitIndex, self._SyncObj__raftLastApplied)
        self.journal.setRaftCommitIndex(self._SyncObj__raftCommitIndex)

    # -- what is so ------------------------------------------------------------------------------

    @property
    def is_leader(self) -> bool:
        return bool(self._SyncObj__raftState == LEADER)

    @property
    def is_follower(self) -> bool:
        return bool(self._SyncObj__raftState == FOLLOWER)

    @property
    def term(self) -> int:
        return int(self._SyncObj__raftCurrentTerm)

    @property
    def commit_index(self) -> int:
        return int(self._SyncObj__raftCommitIndex)

    @property
    def applied_index(self) -> int:
        return int(self._SyncObj__raftLastApplied)

    @property
    def quorum(self) -> int:
        return len(self.voters) // 2 + 1

    @property
    def votes(self) -> bool:
        """The configuration in force counts this member. One that it does not count never campaigns."""
        return self.member in self.voters

    @property
    def other_voters(self) -> list[str]:
        return [name for name in self.others if name in self.voters]

    @property
    def configuration_index(self) -> int:
        """Of the log entry that the configuration in force comes from; 0 when it is in none."""
        return self._configured_index

    @property
    def configuration_committed(self) -> bool:
        return self._configured_index <= self.commit_index

    @property
    def joined(self) -> bool:
        """False on a new disk: this member may have forgotten votes and entries, and counts for nothing yet."""
        return bool(self.journal.disk.joined)

    @property
    def room_for_quorum(self) -> bool:
        """A leader: a majority is connected, counts, and has room in its log."""
        with_room = sum(
            progress.joined
            and not progress.full
            and name in self.voters
            and self._nodes[name] in self._SyncObj__connectedNodes
            for name, progress in self._progress.items()
        )
        return with_room + 1 >= self.quorum

    @property
    def full_members(self) -> list[str]:
        if not self.is_leader:
            return []
        return [name for name, progress in self._progress.items() if progress.full and name in self.voters]

    @property
    def stranded(self) -> list[str]:
        """Replicas whose next entry is trimmed here: only a snapshot helps them."""
        if not self.is_leader:
            return []
        connected = self.connected
        return [name for name, progress in self._progress.items() if progress.stranded and name in connected]

    @property
    def unmet(self) -> list[str]:
        """On a new disk: who has not said that it is new, too. All must, or a leader must bring this member up."""
        return [] if self.joined else [name for name in self.other_voters if name not in self._clean]

    def disk_of(self, member: str) -> DiskIs | None:
        """What a member said of its disk on its newest link."""
        return self._disks.get(member)

    @property
    def caretaker(self) -> bool:
        """May lead only to bring a full replica up to date and hand over."""
        return self.role is MemberRole.witness or self.barred is not None

    @property
    def leader(self) -> str | None:
        """Who leads, as far as this member heard within the longest election timeout."""
        if self.is_leader:
            return self.member
        node = self._SyncObj__raftLeader
        if node is None or node.id == self.member:
            return None
        fresh = monotonic() - self._leader_seen < self.settings.timing.election_ms_max / 1000
        return str(node.id) if fresh else None

    @property
    def connected(self) -> set[str]:
        return {node.id for node in self._SyncObj__connectedNodes}

    @property
    def connected_voters(self) -> int:
        """How many voters are in reach, this one included."""
        return len(self.voters & self.connected) + self.votes

    @property
    def has_quorum(self) -> bool:
        """A leader: a majority answered within one election timeout. Others: a fresh leader is known."""
        return self._leader_alive() if self.is_leader else self.leader is not None

    def progress(self, member: str) -> Progress | None:
        """What this leader knows of a follower; None when this member does not lead."""
        return self._progress.get(member) if self.is_leader else None

    # -- what the owner does ---------------------------------------------------------------------

    def append(self, payload: bytes) -> int:
        """Put one entry in this leader's log and return its index. The caller has checked that it leads."""
        index = self.journal.last_index + 1
        self.journal.add(REGULAR + payload, index, self.term)
        return index

    def read(self, answer: Answer) -> None:
        """answer(index) once a majority confirmed that this member leads; answer(None): it does not."""
        if not self.is_leader or self.caretaker:
            answer(None)
            return
        self.reads.add(answer)
        self.owner.wake()

    def peer_connected(self, member: str) -> None:
        """A link is up: to a member of this configuration, of a newer one, or of one that is being left."""
        self._SyncObj__onNodeConnected(self._nodes.setdefault(member, Node(member)))
        self._say_disk(member)
        if member in self._progress:
            self._progress[member].link_lost()

    def peer_disconnected(self, member: str) -> None:
        self._SyncObj__onNodeDisconnected(self._nodes.setdefault(member, Node(member)))
        if member in self._progress:
            self._progress[member].link_lost()

    def received(self, member: str, message: Raft) -> bool:
        """Take in one message. Refused and counted: from a stranger, or of a kind that is not raft's.

        False: nothing came of it that could not wait for the next tick of the timer.
        """
        if member not in self._nodes:
            self.counters["refused_stranger"] += 1
            return False
        match message:
            case Append():
                self._on_append(member, message)
            case Rebase():
                self._on_rebase(member, message)
            case AppendReply():
                return self._on_append_reply(member, message)
            case DiskIs():
                self._on_disk(member, message)
            case Admit():
                self._on_admit(member, message)
            case StaleTerm(term):
                self._adopt(term)
            case PreVote():
                self._on_pre_vote(member, message)
            case PreVoteReply():
                self._on_pre_vote_reply(member, message)
            case RequestVote():
                self._on_request_vote(member, message)
            case Vote(term):
                self._on_vote(member, term)
            case TimeoutNow(term):
                if self.barred is None and self.joined and self.votes:
                    self._library_hears(member, {"type": "timeout_now", "term": term})
            case _:
                self.counters["refused_kind"] += 1
                return False
        return True

    def tick(self) -> None:
        """One step: timers, commit, apply, replicate, answer reads, hand changes to the disk."""
        was_leader = self.is_leader
        self._forgive_own_pause()
        if was_leader and self._disk_stalls:
            log.error("%s steps down: a sync takes %.1f s", self.member, self.journal.sync_age)
            self.step_down()
        if not self.joined and monotonic() >= self._say_disk_again:
            self._say_disk_again = monotonic() + self.settings.timing.heartbeat_ms / 1000
            for member in sorted(self.connected):
                self._say_disk(member)
        if was_leader and self.is_leader:
            self._care_for_members()  # before anything is counted in this tick: by one configuration only
        self.doTick(0)
        self._transfer_election = False
        if self.is_leader:
            if self.commit_index >= self._SyncObj__noopIDx and self.reads.wants_round:
                self.reads.begin(self._sequence + 1, self._last_payload_index(self.commit_index))
                self._replicate(speak=True)
            else:
                self._replicate(speak=False)
            self._confirm_reads()
            self._tell_commits_soon()
            if self._ticked_at >= self._trim_again:
                self._trim_again = self._ticked_at + TRIM_SECONDS
                self._trim()
            if self.caretaker:
                self._hand_over_when_ready()
        elif was_leader or len(self.reads):
            self.reads.fail()
        if not self._told_committed and self.configuration_committed:
            self._told_committed = True
            self.owner.configured()
        self.journal.flush()

    def _forgive_own_pause(self) -> None:
        """While this process did not run, others could not be heard: their time stood still too.

        Only for short pauses: after a long one another may lead. Pauses in a row count as one, so that a
        member that is always late does not forgive itself for ever.
        """
        now = monotonic()
        pause, self._ticked_at = now - self._ticked_at, now
        timing = self.settings.timing
        if pause * 1000 <= timing.heartbeat_ms:
            self._paused = 0.0
            return
        self._paused += pause
        if self._paused * 1000 <= timing.election_ms_max:
            self._leader_seen += pause
            for node in self._SyncObj__lastResponseTime:
                self._SyncObj__lastResponseTime[node] += pause

    @property
    def _disk_stalls(self) -> bool:
        return self.journal.sync_age * 1000 > self.settings.timing.disk_stall_ms

    def synced(self) -> bool:
        """The journal became durable up to a newer point: what waited for that may leave now.

        False: nothing came of it that could not wait for the next tick of the timer.
        """
        held: list[tuple[str, Raft]] = []
        if not self.journal.vote_pending:
            held, self._held = self._held, []
            for member, message in held:
                self.owner.say(member, message)
        if not self.is_leader and min(self._verified_index, self.journal.durable_index) > self._acked_index:
            self._reply()
        return bool(held) or self.journal.waits or self._may_go_on

    @property
    def _may_go_on(self) -> bool:
        """Something may be committed or applied. A leader commits nothing that it has not synced itself."""
        durable_index = self.journal.durable_index
        if self.is_leader and durable_index > self.commit_index:
            furthest = max((progress.matched_index for progress in self._progress.values()), default=durable_index)
            return self.quorum == 1 or furthest > self.commit_index
        return min(self.commit_index, durable_index) > self.applied_index

    def transfer_to(self, member: str) -> None:
        """Ask `member` to campaign at once. The library refuses unless it has every entry of ours."""
        self.transferLeadership(self._nodes[member])

    def step_down(self) -> None:
        """Stop leading; the term stays. Used when this member may no longer lead and nobody can take over."""
        self._SyncObj__setState(FOLLOWER)
        self._SyncObj__raftLeader = None

    # -- sending ---------------------------------------------------------------------------------

    def _send(self, member: str, message: Raft) -> bool:
        # A term or vote must be on disk before any message that depends on it leaves. Later messages
        # wait behind it, so order is kept and the loop never waits for the disk.
        if self.journal.vote_pending:
            if len(self._held) < HELD_MAX:
                self._held.append((member, message))
            return True
        return self.owner.say(member, message)

    def _library_says(self, member: str, message: Mapping[str, Any]) -> None:
        match message["type"]:
            case "request_vote":
                self._send(
                    member,
                    RequestVote(
                        message["term"], message["last_log_index"], message["last_log_term"], self._transfer_election
                    ),
                )
            case "response_vote":
                self._send(member, Vote(message["term"]))
            case "timeout_now":
                self._send(member, TimeoutNow(message["term"]))
            case other:
                raise BrokenInvariant(f"the library sends {other!r}, which was replaced")

    def _library_hears(self, member: str, message: dict[str, Any]) -> None:
        super()._SyncObj__onMessageReceived(self._nodes[member], message)

    def _SyncObj__onMessageReceived(self, node: Any, message: Any) -> None:
        raise BrokenInvariant("messages come in through received()")

    # -- the leader's side -----------------------------------------------------------------------

    def _SyncObj__getEntries(self, fromIDx: int, count: int | None = None, maxSizeBytes: int | None = None) -> Any:
        # The library's commit loop looks at each entry before it counts it. One that a leader has not synced is not
        # there for it: a single voter counts nobody else, so CappedMatch is not asked.
        if self.is_leader and fromIDx > self.journal.durable_index:
            return []
        return super()._SyncObj__getEntries(fromIDx, count, maxSizeBytes)

    def _SyncObj__onBecomeLeader(self) -> None:
        now = monotonic()
        self._progress = {name: Progress(self.journal.last_index + 1, heard_at=now) for name in self.others}
        for name in self.others:
            self._SyncObj__raftMatchIndex[self._nodes[name]] = 0
        self._campaign_at_once = False
        self._handed_over = NEVER
        super()._SyncObj__onBecomeLeader()
        for name in self._disks:
            if name in self._progress:
                self._meet_disk(name)
        log.info("%s leads term %d from index %d", self.member, self.term, self.journal.last_index)

    def _SyncObj__sendAppendEntries(self) -> None:
        # The library calls this when its heartbeat is due and when leadership begins.
        self._SyncObj__newAppendEntriesTime = monotonic() + self.settings.timing.heartbeat_ms / 1000
        if len(self.reads) and self.commit_index >= self._SyncObj__noopIDx:
            self.reads.begin(self._sequence + 1, self._last_payload_index(self.commit_index))
        self._replicate(speak=True)

    def _replicate(self, *, speak: bool) -> None:
        """Send each connected follower what it lacks. speak: at least one message to each, come what may."""
        # A copy: a link that is given up while we send to it leaves the set.
        for name, progress in list(self._progress.items()):
            if self._nodes[name] not in self._SyncObj__connectedNodes:
                continue
            silent = True
            if progress.probing:
                # One whose entries are gone refuses every probe: once per heartbeat is enough.
                if speak or not (progress.probe_sent or progress.stranded):
                    self._append_to(name, progress, empty=progress.probe_sent)
                continue
            last_index = self._last_for(name)
            while progress.next_index <= last_index and progress.may_send():
                silent = False
                if not self._append_to(name, progress, empty=False):
                    break
            if silent and (speak or self._to_be_told(name, progress)):
                self._append_to(name, progress, empty=True, quiet=not speak and progress.joined)

    def _to_be_told(self, member: str, progress: Progress) -> bool:
        """Replicas answer their own clients from what they applied; a witness learns of it when it is spoken to.

        Who is to join again is told, whoever it is, and asked: its answer is what it is admitted on.
        """
        waits = self.others[member] is MemberRole.replica or not progress.joined
        return waits and self._commit_to_tell > progress.commit_sent

    def _tell_commits_soon(self) -> None:
        """With the next entries, when what was just applied lets some be proposed; else by the next tick, at once."""
        if self._commit_to_tell == self.commit_index:
            return
        self._commit_to_tell = self.commit_index
        if any(self._to_be_told(name, progress) for name, progress in self._progress.items()):
            self.owner.wake()

    def _last_for(self, member: str) -> int:
        """The last entry to send. Who is being demoted gets that entry when it is committed.

        Before, it may still be needed: with the entry it would not campaign, and would vote for none that lacks it.
        """
        if member in self._parting and not self.configuration_committed:
            return self._configured_index - 1
        return self.journal.last_index

    def _append_to(self, member: str, progress: Progress, *, empty: bool, quiet: bool = False) -> bool:
        """quiet: it only tells of commits, and nothing hangs on its coming through: no answer is wanted."""
        journal = self.journal
        if progress.next_index <= journal.first_index:
            if self.others[member] is MemberRole.witness:
                return self._rebase_witness(member, progress)
            if not progress.stranded:
                progress.stranded = True
                log.warning(
                    "%s needs entry %d, the log starts at %d: it needs a snapshot",
                    member,
                    progress.next_index,
                    journal.first_index,
                )
            progress.next_index = journal.first_index + 1
        previous = progress.next_index - 1
        entries = [] if empty else journal.batch(progress.next_index, bytes_max=self.settings.batch_bytes)
        if (last_index := self._last_for(member)) < journal.last_index:
            entries = [entry for entry in entries if entry[1] <= last_index]
        if not quiet:
            self._sequence += 1
        message = Append(
            self.term,
            UNANSWERED if quiet else self._sequence,
            previous,
            journal.term_at(previous),
            self.commit_index,
            self._trim_index,
            [(entry[2], entry[0]) for entry in entries],
        )
        if not self._send(member, message):
            return False
        progress.sent(previous + len(entries), sum(len(entry[0]) for entry in entries), self.commit_index)
        return True

    def _rebase_witness(self, member: str, progress: Progress) -> bool:
        """A witness needs no entry that every replica has stored: its log may begin where this one does."""
        base = self.journal.first_index
        self._sequence += 1
        configuration = self.journal.base_at(base)
        if not self._send(member, Rebase(self.term, self._sequence, base, self.journal.term_at(base), configuration)):
            return False
        log.warning("%s lags behind the log; it starts anew after entry %d", member, base)
        progress.next_index = base + 1
        progress.sent(base, 0, self.commit_index)
        return True

    def _on_append_reply(self, member: str, reply: AppendReply) -> bool:
        """False: nothing is to be done at once, as for the answer of a minority's last member."""
        if reply.term > self.term:
            self._adopt(reply.term)
            return True
        if not self.is_leader or reply.term != self.term:
            self.counters["stale_reply"] += 1
            return False
        if member not in self._progress:
            self.counters["reply_of_no_member"] += 1
            return False
        if reply.matched_index > self.journal.last_index or reply.sequence > self._sequence:
            self.counters["impossible_reply"] += 1
            log.critical(
                "%s claims entry %d; this log ends at %d", member, reply.matched_index, self.journal.last_index
            )
            return False
        disk = self._disks.get(member)
        if reply.joined and disk is not None and not disk.joined:
            # Of the disk that it lost, late: whoever joins says so before it says anything else.
            self.counters["reply_of_lost_disk"] += 1
            return False
        node, progress = self._nodes[member], self._progress[member]
        progress.heard_at = monotonic()
        progress.joined, progress.full = reply.joined, reply.full
        if reply.joined:
            # Who does not count confirms no read, no leadership and no entry.
            self._SyncObj__lastResponseTime[node] = progress.heard_at
            progress.acked_sequence = max(progress.acked_sequence, reply.sequence)
        progress.stored_index = max(progress.stored_index, reply.stored_index)
        if reply.retry_index:
            if progress.refused(reply.retry_index, reply.sequence, self._sequence):
                self._SyncObj__raftMatchIndex[node] = progress.matched_index
                self.counters["disk_forgot"] += 1
                log.critical(
                    "%s has forgotten entries that it had acknowledged, from %d on: its disk is an old copy, or lies "
                    "about syncs. It is sent them again; replace that disk",
                    member,
                    reply.retry_index,
                )
        else:
            progress.accepted(reply.matched_index)
            progress.stranded = False
            if reply.joined:
                self._SyncObj__raftMatchIndex[node] = progress.matched_index
            else:
                self._admit(member, progress)
        self._SyncObj__raftNextIndex[node] = progress.next_index
        return (
            bool(reply.retry_index)
            or not reply.joined
            or self._may_go_on
            or progress.next_index <= self._last_for(member)
            or self._to_be_told(member, progress)
            or len(self.reads) > 0
            or self.caretaker
        )

    def _confirm_reads(self) -> None:
        if len(self.reads):
            acked = (self._progress[name].acked_sequence for name in self.other_voters)
            self.reads.acked(acked, self.quorum - 1)
            if self.reads.wants_round and self.commit_index >= self._SyncObj__noopIDx:
                self.owner.wake()  # they came while that round was under way; no other message may come soon

    def _last_payload_index(self, index: int) -> int:
        """The newest entry of ours up to `index`: no others ever reach the state machine's applied index."""
        while index > self.journal.first_index and self.journal.entry(index)[0][:1] != REGULAR:
            index -= 1
        return index if index > 1 else 0

    def _trim(self) -> None:
        """What every full replica that votes has stored may go, for witnesses too, which need none of it.

        Here more may go: a replica that is away too long gets a snapshot. Witnesses keep what it lacks, if it votes.
        And less: a learner or read replica that is a little behind is waited for here, too, but not for ever: who
        does not vote must not fill the log of those who do.
        """
        stored = {name: p.stored_index for name, p in self._progress.items() if self.others[name] is MemberRole.replica}
        everywhere = [index for name, index in stored.items() if name in self.voters]
        if self.role is MemberRole.replica:
            everywhere.append(self.stored_index)
        if self.configuration_committed:  # else a voter that it leaves out may still need what witnesses keep
            self._trim_index = max(self._trim_index, min(everywhere, default=0) - self.settings.trim_reserve)
        bound = self._trim_index
        if self.role is MemberRole.replica:
            silent_since = monotonic() - self.settings.laggard_ms / 1000
            patient = not self._beyond_laggards
            waited_for = [
                index
                for name, index in stored.items()
                if (self._heard_lately(name) and (patient or name in self.voters))
                or (patient and self._progress[name].heard_at > silent_since)
            ]
            bound = min([*waited_for, self.stored_index]) - self.settings.trim_reserve
        self._trim_here(bound)

    def _heard_lately(self, member: str) -> bool:
        return self._progress[member].heard_at > monotonic() - self.settings.timing.link_silent_ms_max / 1000

    @property
    def _beyond_laggards(self) -> bool:
        entries, size = len(self.journal), self.journal.used_bytes
        return entries > self.settings.laggard_entries or size > self.settings.laggard_bytes

    def _trim_here(self, bound: int) -> None:
        if self.hold_index is not None:
            bound = min(bound, self.hold_index)
        if bound > self.journal.first_index:
            self.journal.trim_to(bound)

    def _hand_over_when_ready(self) -> None:
        if self.commit_index < self._SyncObj__noopIDx:
            return
        now = monotonic()
        if now - self._handed_over < self.settings.timing.election_ms_min / 1000:
            return
        target = self.best_successor()
        if target is not None and self._progress[target].matched_index == self.journal.last_index:
            self._handed_over = now
            log.info("%s hands leadership to %s", self.member, target)
            self.transfer_to(target)

    def best_successor(self) -> str | None:
        """The connected full replica that is furthest."""
        found = [
            (progress.matched_index, name)
            for name, progress in self._progress.items()
            if self.others[name] is MemberRole.replica
            and name in self.voters
            and progress.joined
            and self._nodes[name] in self._SyncObj__connectedNodes
        ]
        return max(found)[1] if found else None

    # -- the follower's side ---------------------------------------------------------------------

    def _follow(self, member: str, message: Append | Rebase) -> bool:
        """Take in whose message it is. False: of an older term."""
        if message.term < self.term:
            self._send(member, StaleTerm(self.term))
            return False
        if message.term == self.term and self.is_leader:
            raise BrokenInvariant(f"{member} and {self.member} both lead term {self.term}")
        self._leader_seen = monotonic()
        self._campaign_at_once = False
        if self._followed != (message.term, member):
            self._followed = (message.term, member)
            self._echo = self._verified_index = self._acked_index = 0
        self._echo = max(self._echo, message.sequence)
        return True

    def _on_rebase(self, member: str, message: Rebase) -> None:
        if self.role is not MemberRole.witness:
            self.counters["refused_rebase"] += 1
            return
        if not self._follow(member, message):
            return
        base, journal = message.base_index, self.journal
        self._library_hears(member, {"type": "append_entries", "term": message.term, "commit_index": self.commit_index})
        holds = journal.first_index <= base <= journal.last_index and journal.term_at(base) == message.base_term
        if base > self.commit_index and not holds:
            journal.rebase(base, message.base_term, message.configuration)
            self._SyncObj__raftCommitIndex = self._SyncObj__raftLastApplied = base
            journal.setRaftCommitIndex(base)
        self._verified_index = max(self._verified_index, base)
        self._reply()

    def _on_append(self, member: str, message: Append) -> None:
        if not self._follow(member, message):
            return
        head = {"type": "append_entries", "term": message.term}
        answered = message.sequence != UNANSWERED
        journal = self.journal
        previous, previous_term, entries = message.previous_index, message.previous_term, message.entries
        verified = previous + len(entries)
        if previous < journal.first_index:
            # Trimmed here, so committed, so the same everywhere.
            if verified < journal.first_index:
                self._verified_index = max(self._verified_index, journal.first_index)
                self._library_hears(member, head | {"commit_index": min(message.commit_index, self.commit_index)})
                if answered:
                    self._reply()
                return
            entries = entries[journal.first_index - previous :]
            previous, previous_term = journal.first_index, journal.term_at(journal.first_index)
        if previous > journal.last_index or journal.term_at(previous) != previous_term:
            # Unverified log: it may not move the commit index (audit F1).
            self._library_hears(member, head | {"commit_index": min(message.commit_index, self.commit_index)})
            if answered:
                self._reply(retry_index=self._retry_index(previous), sequence=message.sequence)
            return
        same = 0
        while (
            same < len(entries)
            and previous + same < journal.last_index
            and journal.term_at(previous + same + 1) == entries[same][0]
        ):
            same += 1
        self._verified_index = max(self._verified_index, verified)
        # The cure of the truncation and the cap of the commit index belong together: the library's commit
        # rule takes the last index of the log, which is right only because it truncates too much.
        head["commit_index"] = min(message.commit_index, verified)
        if same < len(entries):
            previous += same
            head["prevLogIdx"], head["prevLogTerm"] = previous, journal.term_at(previous)
            head["entries"] = [(command, previous + 1 + i, term) for i, (term, command) in enumerate(entries[same:])]
        self._library_hears(member, head)
        self._trim_as_told(message.trim_index)
        # With new entries the answer comes after the sync; but a slow disk must not look like a dead member.
        late = self._leader_seen - self._replied_at > self.settings.timing.heartbeat_ms / 1000
        if late or (answered and same == len(entries)):
            self._reply()

    def _retry_index(self, previous: int) -> int:
        """Where the leader should try next: the whole conflicting term at once, not one index per round trip."""
        journal = self.journal
        if previous > journal.last_index:
            return journal.last_index + 1
        conflicting = journal.term_at(previous)
        floor = max(journal.first_index, self.commit_index) + 1
        index = previous
        while index > floor and journal.term_at(index - 1) == conflicting:
            index -= 1
        return max(index, floor)

    def _SyncObj__sendNextNodeIdx(
        self, node: Any, reset: bool = False, nextNodeIdx: int | None = None, success: bool = False
    ) -> None:
        # The library acknowledges here, before anything is on disk. Ours leave from _reply, after the sync.
        if reset or not success:
            raise BrokenInvariant("the library refuses entries that were verified before")

    def _reply(self, *, retry_index: int = 0, sequence: int | None = None) -> None:
        matched = min(self._verified_index, self.journal.durable_index)
        self._acked_index = max(self._acked_index, matched)
        self._replied_at = monotonic()
        term, leader = self._followed
        if term == self.term:
            echo = self._echo if sequence is None else sequence
            self._send(
                leader,
                AppendReply(term, echo, matched, retry_index, self.stored_index, self.joined, self.log_full),
            )

    def _SyncObj__deleteEntriesFrom(self, fromIDx: int) -> None:
        if fromIDx <= self.commit_index:
            raise BrokenInvariant(f"asked to drop committed entry {fromIDx}; committed up to {self.commit_index}")
        self.counters["truncations"] += 1
        super()._SyncObj__deleteEntriesFrom(fromIDx)

    def _trim_as_told(self, trim_index: int) -> None:
        """A witness drops only what the leader says every replica has stored; a replica may do with its own store."""
        self._trim_index = max(self._trim_index, trim_index)
        bound = self._trim_index
        if self.role is MemberRole.replica:
            if self._beyond_laggards:
                bound = max(bound, self.stored_index - self.settings.trim_reserve)
            bound = min(bound, self.stored_index)
        self._trim_here(bound)

    # -- disks: who may have forgotten what it promised ------------------------------------------

    def _say_disk(self, member: str) -> None:
        disk = self.journal.disk
        if disk.disk_id:
            self._send(member, DiskIs(disk.disk_id, disk.joined, self._is_clean))

    @property
    def _is_clean(self) -> bool:
        return self.term == 0 and self.journal.last_index <= 1

    def _on_disk(self, member: str, message: DiskIs) -> None:
        if message.disk_id in self._lost_disks:
            return  # said before it was lost, and late
        before = self._disks.get(member)
        if before is not None and before.disk_id == message.disk_id and before.joined and not message.joined:
            return  # said before it joined, and late: a disk joins once, for ever
        self._disks[member] = message
        if before is not None and before.disk_id != message.disk_id:
            self._lost_disks.add(before.disk_id)
        remembered = self.journal.peer_disk_ids.get(member)
        if message.joined:
            if remembered != message.disk_id:
                self.journal.remember_disk(member, message.disk_id)
        else:
            if remembered is not None and (before is None or before.disk_id != message.disk_id):
                log.error(
                    "%s is back on new disk %s; its old one, %s, is lost: it counts again when it has caught up",
                    member,
                    message.disk_id,
                    remembered,
                )
            if self.joined:
                self._say_disk(member)  # it says so again and again, until it counts
        if message.clean:
            self._clean.add(member)
        others = set(self.other_voters)
        if not self.joined and self.votes and self._is_clean and others and self._clean >= others:
            # Nobody ever voted or took an entry: the cluster starts for the first time. Only a log that is empty
            # leaves it to the topology who "nobody" is, and a voter without others is what a lost majority left.
            log.info("%s joins: all members are new", self.member)
            self._join()
        if self.is_leader and member in self._progress:
            self._meet_disk(member)
        self.owner.wake()

    def _join(self) -> None:
        self.journal.join()
        for other in sorted(self.connected):
            self._say_disk(other)

    def _meet_disk(self, member: str) -> None:
        """What a lost disk had matched is worth nothing; a new one counts again with an entry newer than itself."""
        disk, progress = self._disks[member], self._progress[member]
        if progress.disk_id == disk.disk_id and (disk.joined or progress.barrier_index):
            return
        if progress.disk_id or not disk.joined:
            progress = Progress(self.journal.last_index + 1, heard_at=progress.heard_at)
            self._progress[member] = progress
            self._SyncObj__raftMatchIndex[self._nodes[member]] = 0
        progress.disk_id = disk.disk_id
        if not disk.joined:
            progress.joined = False
            progress.barrier_index = self.journal.last_index + 1
            self.journal.add(NO_OP, progress.barrier_index, self.term)

    def _admit(self, member: str, progress: Progress) -> None:
        # The barrier was committed without this member, as it does not count.
        if 0 < progress.barrier_index <= min(self.commit_index, progress.matched_index):
            self._send(member, Admit(self.term, progress.disk_id))

    def _on_admit(self, member: str, message: Admit) -> None:
        """This member is counted again, in later terms' votes and from now on for entries."""
        if self.joined or message.disk_id != self.journal.disk.disk_id:
            return
        if (message.term, member) != self._followed or message.term != self.term or self.is_leader:
            self.counters["refused_admission"] += 1
            return
        # The lost disk may have voted in this term: this one has, too, for the leader that there is.
        self._SyncObj__setCurrentTerm(self.term, member)
        log.warning("%s has caught up and is counted again", self.member)
        self._join()
        self._reply()

    # -- who the members are ---------------------------------------------------------------------

    def _configure(self) -> None:
        """The journal has another configuration in force: it counts from now on, committed or not."""
        self._take_configuration()
        self.owner.configured()

    def _take_configuration(self) -> None:
        base = self.journal.base
        if base is None:
            raise BrokenInvariant("the journal does not say who the members are")
        before = self.configuration
        self.configuration, self._configured_index = base.configuration, base.index
        self.others = {m.name: m.role for m in base.configuration.members if m.name != self.member}
        self.voters = base.configuration.voters
        self._parting = before.voters - self.voters
        for name in self.others:
            self._nodes.setdefault(name, Node(name))
        self._SyncObj__otherNodes = {self._nodes[name] for name in self.other_voters}
        if self.is_leader:
            self._progress_for_members()
        elif not self.is_follower and before.voters != self.voters:
            self.step_down()  # votes were counted against another majority
        self._told_committed = self.configuration_committed

    def _progress_for_members(self) -> None:
        now, heard = monotonic(), self._SyncObj__lastResponseTime
        self._progress = {name: known for name, known in self._progress.items() if name in self.others}
        for name in self.others:
            node = self._nodes[name]
            if name not in self._progress:
                self._progress[name] = Progress(self.journal.last_index, heard_at=now)
                self._SyncObj__raftMatchIndex[node] = 0
                self._SyncObj__raftNextIndex[node] = self.journal.last_index
                if name in self._disks:
                    self._meet_disk(name)
            heard.setdefault(node, NEVER)
        if not self.votes:
            raise BrokenInvariant(f"{self.member} leads a configuration in which it does not vote")

    def change(self, change: Change) -> int:
        """Log a change of the members; it holds when the returned index is committed, with this leader's term.

        The caller has checked that this member leads. A change that holds already returns the index it came with.
        Raises InvalidChange for good, NotYet for now; nothing was logged.
        """
        after = changed(self.configuration, change)
        if after is self.configuration:
            return self._configured_index
        if isinstance(change, Demote | Remove) and change.name == self.member:
            raise InvalidChange(f"{self.member} leads: it hands leadership over first")
        if self.commit_index < self._SyncObj__noopIDx:
            raise NotYet(f"{self.member} has only begun to lead")
        if not self.configuration_committed:
            raise NotYet(f"another change, at index {self._configured_index}, is not committed yet")
        if isinstance(change, Promote):
            self._check_caught_up(change.name)
        if isinstance(change, Demote | Remove):
            for name, progress in self._progress.items():
                # What takes a voter away while another has forgotten leaves fewer who remember. One more does not.
                if name in self.voters and not progress.joined and name != change.name:
                    raise NotYet(f"{name} is on a new disk and has not caught up")
        return self._log_configuration(after)

    def _log_configuration(self, configuration: Configuration) -> int:
        index = self.journal.last_index + 1
        self.journal.add(CONFIGURATION + encode_configuration(configuration), index, self.term)
        log.warning(
            "%s changes the members at index %d: voters %s, others %s",
            self.member,
            index,
            sorted(configuration.voters),
            sorted({m.name for m in configuration.members} - configuration.voters),
        )
        self.counters["membership_changes"] += 1
        self.owner.wake()
        return index

    def _check_caught_up(self, name: str) -> None:
        progress = self._progress[name]
        if not progress.matched_index:
            raise NotYet(f"{name} has not answered yet")
        if not progress.joined:
            raise NotYet(f"{name} is on a new disk and has not caught up")
        if not self._heard_lately(name):
            raise NotYet(f"{name} is not heard")
        if progress.stranded:
            raise NotYet(f"{name} needs a snapshot first")
        lag = self.journal.last_index - progress.matched_index
        if lag > self.settings.promote_lag:
            raise NotYet(f"{name} lacks {lag} entries; at most {self.settings.promote_lag} may lack")

    def _care_for_members(self) -> None:
        """What a leader changes by itself: who holds the logs up for too long goes aside until it has caught up.

        And a configuration that was forced, after a majority was lost, is logged for those who join later.
        """
        if self.transferring or not self.configuration_committed or self.commit_index < self._SyncObj__noopIDx:
            return
        base = self.journal.base
        if base is not None and base.forced and not self.caretaker:
            self._log_configuration(base.configuration)
            return
        # A caretaker may be the one to find its successor: the only full replica left may be a learner that is back.
        change = self._back() if self.caretaker else self._away() or self._back()
        if change is not None:
            try:
                self.change(change)
            except (InvalidChange, NotYet) as reason:
                if self._no_change_because != str(reason):
                    self._no_change_because = str(reason)
                    log.error("%s can't %s %s: %s", self.member, type(change).__name__.lower(), change.name, reason)

    def _away(self) -> Demote | None:
        """A witness's log is at its limit: the replica that it waits for, when that one is away."""
        if not any(self.others[name] is MemberRole.witness for name in self.full_members):
            return None
        away = [
            (progress.stored_index, name)
            for name, progress in self._progress.items()
            if name in self.voters and self.others[name] is MemberRole.replica and not self._heard_lately(name)
        ]
        return Demote(min(away)[1], away=True) if away else None

    def _back(self) -> Promote | None:
        for name in self.configuration.demoted:
            if name in self._progress:
                try:
                    self._check_caught_up(name)
                except NotYet:
                    continue
                return Promote(name)
        return None

    # -- elections -------------------------------------------------------------------------------

    def _adopt(self, term: int) -> None:
        if term > self.term:
            self._SyncObj__setCurrentTerm(term, None)
            self.step_down()

    def _leader_alive(self) -> bool:
        oldest = monotonic() - self.settings.timing.election_ms_min / 1000
        if self.is_leader:
            heard = self._SyncObj__lastResponseTime
            answered = sum(heard[self._nodes[name]] > oldest for name in self.other_voters)
            return bool(answered + 1 >= self.quorum)
        return bool(self._leader_seen > oldest)

    def _newer_than(self, last_index: int, last_term: int) -> bool:
        """This log is newer than the one that ends so."""
        mine = self.journal[-1]
        return bool((mine[2], mine[1]) > (last_term, last_index))

    def _SyncObj__connectedToAnyone(self) -> bool:
        """The library asks this only when the election timer has run out: the gate before every election."""
        if not self.joined or not self.votes:
            return False
        if self._SyncObj__transferInProgress:
            self._transfer_election = True
            return True
        if self._disk_stalls or (self.barred is not None and not self._campaign_at_once):
            return False
        term = self.term + 1
        if self._pre_vote_term == term and len(self._pre_votes & self.voters) + 1 >= self.quorum:
            self._pre_vote_term = 0
            return True
        now = monotonic()
        if now >= self._pre_vote_again:
            self._pre_vote_again = now + self.settings.timing.heartbeat_ms / 1000
            self._pre_vote_term, self._pre_votes = term, set()
            self.counters["pre_votes"] += 1
            for member in self.other_voters:
                self._send(member, PreVote(term, self.journal.last_index, self.journal[-1][2]))
        return False

    def _on_pre_vote(self, member: str, message: PreVote) -> None:
        newer = self._newer_than(message.last_index, message.last_term)
        alive = self._leader_alive()
        granted = self.joined and not alive and not newer and message.term > self.term
        self._send(member, PreVoteReply(message.term, granted, self.term))
        if newer and not alive and not self.is_leader and self.joined and self.votes:
            # Nobody can win before this member has led: a witness need not wait out its longer timeout.
            self._campaign_at_once = True
            now = monotonic()
            if now - self._hurried_at > self.settings.timing.election_ms_max / 1000:
                # Once: two whose logs are alike would hurry together and split the votes, for ever.
                self._hurried_at = now
                self._SyncObj__raftElectionDeadline = 0
                self._pre_vote_again = NEVER
                self.owner.wake()

    def _on_pre_vote_reply(self, member: str, message: PreVoteReply) -> None:
        if message.granted and message.term == self._pre_vote_term and member in self.voters:
            self._pre_votes.add(member)
        elif message.current_term > self.term:
            self._adopt(message.current_term)

    def _on_request_vote(self, member: str, message: RequestVote) -> None:
        if not self.joined:
            # It may have voted in this term, or taken entries, on the disk that it lost.
            self.counters["refused_no_voter"] += 1
            return
        if message.term > self.term and self._leader_alive() and not message.transfer:
            self.counters["refused_disruption"] += 1
            return
        self._library_hears(
            member,
            {
                "type": "request_vote",
                "term": message.term,
                "last_log_index": message.last_index,
                "last_log_term": message.last_term,
            },
        )

    def _on_vote(self, member: str, term: int) -> None:
        # The library counts messages; a repeated one must not make a majority.
        # Only voters count: of the configuration in force, and one that changes ends a candidacy.
        if term == self.term and member in self.voters and (term, member) not in self._votes:
            self._votes = {vote for vote in self._votes if vote[0] == term} | {(term, member)}
            self._library_hears(member, {"type": "response_vote", "term": term})

    # -- apply -----------------------------------------------------------------------------------

    def _SyncObj__applyLogEntries(self) -> bool:
        """Deliver what is committed and synced here, each entry once; a long backlog in slices."""
        last = min(self.commit_index, self.journal.durable_index)
        if self.role is MemberRole.witness:
            self._SyncObj__raftLastApplied = max(self.applied_index, last)
            return False
        until = monotonic() + APPLY_SECONDS
        while self.applied_index < last:
            for command, index, _term in self.journal.batch(self.applied_index + 1, bytes_max=1 << 20, count_max=256):
                if index > last:
                    break
                if index != self.applied_index + 1:
                    raise BrokenInvariant(f"entry {index} follows {self.applied_index}")
                # First the index, then the callback: whatever happens in it, no entry comes twice (audit F4).
                self._SyncObj__raftLastApplied = index
                kind = command[:1]
                if kind == REGULAR:
                    try:
                        self.owner.deliver(index, command[1:])
                    except BaseException as error:
                        raise ApplyFailed(f"on_committed failed at index {index}: {error!r}") from error
                elif kind not in (NO_OP, CONFIGURATION):
                    raise BrokenInvariant(f"entry {index} is of unknown kind {kind!r}")
                if monotonic() > until:
                    self.owner.wake()
                    return False
        return False

    def _SyncObj__doApplyCommand(self, command: bytes) -> None:
        raise BrokenInvariant("the library would unpickle a command")

    def _SyncObj__parseChangeClusterRequest(self, command: bytes) -> None:
        """The library's own membership changes are off: see _configure. Nothing is unpickled."""

    def _SyncObj__loadDumpFile(self, clearJournal: bool) -> None:
        raise BrokenInvariant("the library's snapshots are off")

    def _SyncObj__tryLogCompaction(self) -> None:
        """The library's own compaction is off."""

    def _checkCommandsToApply(self) -> None:
        """The library's command queue is not used: see append."""

    def _applyCommand(self, command: bytes, callback: Any, commandType: Any = None) -> None:
        raise BrokenInvariant("commands come in through append()")
