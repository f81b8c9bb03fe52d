"""What must hold after every event: Raft's promises, and that nothing is said before it is on disk."""

from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from chaos.sim.disk import NO_OP, Disk
from cluster.consensus.journal import CONFIGURATION
from cluster.consensus.messages import Append, AppendReply, PreVote, RequestVote, Vote
from cluster.membership import Configuration, decode
from cluster.topology import MemberRole

MONEY_EVERY = 16


class Violation(BaseException):
    """A promise was broken. Not an Exception, so that the engine can't swallow it."""

    def __init__(self, promise: str, detail: str) -> None:
        super().__init__(f"{promise}: {detail}")
        self.promise = promise


class Log(Protocol):
    first_index: int
    last_index: int

    def entry(self, index: int) -> tuple[bytes, int, int]: ...


class Core(Protocol):
    @property
    def is_leader(self) -> bool: ...

    @property
    def term(self) -> int: ...

    @property
    def commit_index(self) -> int: ...

    journal: Any


class Watched(Protocol):
    """What the checks read of a member. It belongs to the engine, the disk and the network."""

    name: str
    role: MemberRole
    alive: bool
    disk: Disk
    core: Any
    lost_disks: list[Disk]
    must_hold: int
    first: Configuration
    retired: bool


class Shadow:
    """What was seen of one member: the terms of its log by index, and how far it had committed.

    configurations: those of its log, by index; the first is what held before them.
    """

    __slots__ = ("committed", "configurations", "led", "terms")

    def __init__(self, first: Configuration) -> None:
        self.terms: list[int] = [0]
        self.committed = 0
        self.led = 0
        self.configurations: list[tuple[int, Configuration]] = [(0, first)]

    @property
    def in_force(self) -> Configuration:
        return self.configurations[-1][1]


class Checks:
    """One for a whole run: what any member ever showed binds all of them, for ever.

    durable: also check that what is said or committed is on disk; the library as published makes no such promise.
    """

    def __init__(self, counters: Counter[str], trace: Callable[..., None], *, durable: bool) -> None:
        self.counters = counters
        self.trace = trace
        self.durable = durable
        self.members: dict[str, Watched] = {}
        self.shadows: dict[str, Shadow] = {}
        self.leaders: dict[int, str] = {}
        self.votes: dict[tuple[str, int], str] = {}
        self.entries: dict[tuple[int, int], tuple[int, bytes]] = {}  # (index, term) -> (term before, command)
        self.committed: list[tuple[int, bytes]] = [(0, b"")]  # by index: (term, command)
        self.committed_in: list[int] = [0]  # by index: the term in which it was first committed
        self.applied: dict[int, bytes] = {}  # index -> payload
        self.digests: dict[int, bytes] = {}
        self.initial: Configuration | None = None
        self.configurations: list[tuple[int, Configuration]] = []  # that were committed, by index
        self.witnesses: set[str] = set()

    def join(self, member: Watched) -> None:
        self.members[member.name] = member
        self.initial = self.initial or member.first
        self.shadows[member.name] = Shadow(member.first)
        if member.role is MemberRole.witness:
            self.witnesses.add(member.name)

    def started(self, member: Watched) -> None:
        """A member came back: everything that it has is looked at anew."""
        self.shadows[member.name] = Shadow(member.first)
        self.after(member)
        if self.durable:
            self._in_force(member, self.shadows[member.name])

    def after(self, member: Watched) -> None:
        """An event of this living member ended. Raises Violation."""
        core = member.core
        shadow = self.shadows[member.name]
        terms = shadow.terms
        journal = core.journal
        last = journal.last_index
        if last != len(terms) - 1 or (last and journal.entry(last)[2] != terms[-1]):
            self._log_changed(member, shadow, journal)
        commit = core.commit_index
        if commit > shadow.committed:
            self._commit_moved(member, shadow, commit)
        if core.is_leader and core.term != shadow.led:
            self._leads(member, shadow, core.term)

    # -- the log ---------------------------------------------------------------------------------

    def _log_changed(self, member: Watched, shadow: Shadow, journal: Log) -> None:
        name, terms = member.name, shadow.terms
        first, last = journal.first_index, journal.last_index
        fresh = []
        index = last
        while index >= first:
            entry = journal.entry(index)
            if index < len(terms) and terms[index] == entry[2]:
                break
            fresh.append(entry)
            index -= 1
        kept = index  # the log below is as it was
        if kept < min(shadow.committed, len(terms) - 1) and first <= shadow.committed:
            lost = kept + 1
            now = [entry[2] for entry in fresh if entry[1] == lost]
            if not now or now[0] != terms[lost]:
                raise Violation("committed_changed", f"{name} dropped entry {lost}, committed up to {shadow.committed}")
        if len(terms) - 1 > kept:
            self.counters["truncated_entries"] += len(terms) - 1 - kept
            self.trace(name, "drops entries", kept + 1, "to", len(terms) - 1)
            del terms[kept + 1 :]
        configurations = shadow.configurations
        changed = configurations[-1][0] > kept
        while configurations[-1][0] > kept:
            self.counters["configurations_truncated"] += 1
            configurations.pop()
        if first > 1 and kept < first:
            # The log begins anew. Whatever it does not hold was committed, configurations too; what was not is gone.
            settled = [one for one in self.configurations if one[0] <= first]
            settled += [one for one in configurations if one[0] <= shadow.committed]
            configurations[:] = [max(settled, key=lambda one: one[0])] if settled else configurations[-1:]
            changed = True
        for command, index, term in reversed(fresh):
            terms.extend([0] * (index - len(terms)))
            before = terms[index - 1] if index > first else 0
            if term < before:
                raise Violation("log_matching", f"{name} has term {term} at {index} after term {before}")
            terms.append(term)
            if command[:1] == CONFIGURATION and self.durable and index > configurations[-1][0]:
                changed = True
                self._configured(member, shadow, index, term, decode(command[1:]))
            if self.durable and command[:1] not in (NO_OP, CONFIGURATION) and self.leaders.get(term) in self.witnesses:
                raise Violation("witness_takes_nothing", f"{name} has a command at {index} of a witness's term {term}")
            if index == first:
                continue  # a base: a witness that starts anew does not know its command
            known = self.entries.setdefault((index, term), (before, command))
            if known[1] != command:
                raise Violation("log_matching", f"{name} has another command at {index} of term {term}")
            if before and known[0] and known[0] != before:
                raise Violation(
                    "log_matching", f"{name} has term {before} before {index} of term {term}, not {known[0]}"
                )
        if changed and self.durable:
            self._in_force(member, shadow)

    # -- who the members are ---------------------------------------------------------------------

    def _configured(self, member: Watched, shadow: Shadow, index: int, term: int, after: Configuration) -> None:
        """A configuration came into a log: at most one member and one vote differ, and a leader waits its turn."""
        core, name = member.core, member.name
        before_index, before = shadow.configurations[-1]
        shadow.configurations.append((index, after))
        self.trace(name, "counts from entry", index, ",".join(sorted(after.voters)))
        names = {m.name for m in before.members} ^ {m.name for m in after.members}
        votes = before.voters ^ after.voters
        # A member that was added starts from what it was told, not from the log's beginning.
        known = before_index or before is self.initial
        if known and (len(names) > 1 or len(votes) > 1):
            raise Violation("one_change", f"{name} changes {sorted(names)} and the votes of {sorted(votes)} at {index}")
        if core.is_leader and term == core.term:
            if before_index > core.commit_index:
                raise Violation("one_change", f"{name} changes the members at {index}; {before_index} is not committed")
            if core.journal.entry(core.commit_index)[2] != term:
                raise Violation("change_too_early", f"{name} changes the members at {index} before its term committed")

    def removed(self, name: str, *, as_seen_by: str) -> bool:
        """By the newest configuration that a member knows to be committed."""
        shadow = self.shadows[as_seen_by]
        known = [after for index, after in shadow.configurations if index <= shadow.committed]
        return bool(known) and name in known[-1].removed

    def can_spare(self, name: str) -> bool:
        """Whether this member's disk may be lost: every other voter's counts, and they make a majority without it.

        A full replica must be among them, as witnesses alone restore nothing. By any configuration that a member may
        come back with, and the newest committed one.
        """
        known = [self.shadows[m.name].in_force for m in self.members.values() if not m.retired]
        known += [after for _, after in self.configurations[-1:]]
        return all(
            len(one.voters - {name}) >= one.quorum
            and not one.voters - {name} <= self.witnesses
            and all(self.members[voter].disk.record.joined for voter in one.voters)
            for one in known
        )

    def _in_force(self, member: Watched, shadow: Shadow) -> None:
        """The newest configuration of the log counts, committed or not."""
        index, configuration = shadow.configurations[-1]
        if index and member.core.configuration != configuration:
            raise Violation(
                "configuration_in_force",
                f"{member.name} counts {sorted(member.core.configuration.voters)}; its log says "
                f"{sorted(configuration.voters)} at {index}",
            )

    # -- commits ---------------------------------------------------------------------------------

    def _commit_moved(self, member: Watched, shadow: Shadow, commit: int) -> None:
        journal = member.core.journal
        if commit > journal.last_index:
            raise Violation(
                "commit_beyond_log", f"{member.name} commits {commit}, its log ends at {journal.last_index}"
            )
        committed = self.committed
        if commit >= len(committed) and member.core.is_leader and journal.entry(commit)[2] != member.core.term:
            raise Violation(
                "own_term", f"{member.name} commits {commit} of term {journal.entry(commit)[2]} by counting"
            )
        for index in range(max(shadow.committed + 1, journal.first_index), commit + 1):
            command, _, term = journal.entry(index)
            if index < len(committed):
                known = committed[index]
                if known[0] != term or (known[1] != command and index > journal.first_index):
                    raise Violation(
                        "committed_changed",
                        f"{member.name} commits term {term} at {index}; term {known[0]} was committed",
                    )
                continue
            if index > len(committed):
                raise Violation("commit_gap", f"{member.name} commits {index}; nobody committed {len(committed)}")
            committed.append((term, command))
            self.committed_in.append(member.core.term)
            self._newly_committed(member, shadow, index, term)
            self.trace(member.name, "commits", index, "of term", term)
        shadow.committed = commit

    def _newly_committed(self, member: Watched, shadow: Shadow, index: int, term: int) -> None:
        if self.durable and index > 1:  # each member begins with the same first entry by itself
            counted = shadow.in_force
            holders = [name for name in counted.voters if self._held_by(self.members[name], member, index, term)]
            if len(holders) < counted.quorum:
                raise Violation(
                    "durable_majority",
                    f"{member.name} commits {index} of term {term}; of {sorted(counted.voters)} "
                    f"it is on disk only at {sorted(holders)}",
                )
            if len(holders) == counted.quorum:
                self.counters["commits_by_bare_majority"] += 1
            command = self.committed[index][1]
            if command[:1] == CONFIGURATION:
                self._configuration_committed(index, decode(command[1:]))
        for other in self.members.values():
            if other.alive and other.core.is_leader and other.core.term > member.core.term:
                self._must_have(other, index, term)

    def _configuration_committed(self, index: int, after: Configuration) -> None:
        before = self.configurations[-1][1] if self.configurations else None
        self.configurations.append((index, after))
        self.counters["configurations_committed"] += 1
        if before is not None and len(after.demoted) > len(before.demoted):
            self.counters["demoted_away"] += 1
        if before is not None and set(before.demoted) & after.voters:
            self.counters["promoted_back"] += 1

    @staticmethod
    def _held_by(holder: Watched, committer: Watched, index: int, term: int) -> bool:
        """On its disk; or on one that was lost since, as long as the committer could not know of that."""
        if holder.disk.record.joined and holder.disk.holds(index, term):
            return True
        said = committer.core.disk_of(holder.name)
        return said is not None and any(
            disk.record.disk_id == said.disk_id and disk.holds(index, term) for disk in holder.lost_disks
        )

    def _must_have(self, leader: Watched, index: int, term: int) -> None:
        journal = leader.core.journal
        if index < journal.first_index:
            return
        if index > journal.last_index or journal.entry(index)[2] != term:
            raise Violation(
                "leader_completeness",
                f"{leader.name} leads term {leader.core.term} without entry {index} of term {term}",
            )

    def _leads(self, member: Watched, shadow: Shadow, term: int) -> None:
        shadow.led = term
        other = self.leaders.setdefault(term, member.name)
        if other != member.name:
            raise Violation("one_leader", f"{other} and {member.name} lead term {term}")
        if self.durable:
            self._elected(member, shadow.in_force, term)
        self.counters["elections"] += 1
        self.trace(member.name, "leads term", term, "its log ends at", member.core.journal.last_index)
        if member.core.caretaker:
            self.counters["caretakers"] += 1
        for index in range(max(1, len(self.committed) - 200), len(self.committed)):
            # One that a newer leader committed meanwhile binds only leaders after that one.
            if self.committed_in[index] < term:
                self._must_have(member, index, self.committed[index][0])

    def _elected(self, member: Watched, counted: Configuration, term: int) -> None:
        name = member.name
        if name not in counted.voters:
            raise Violation(
                "elected_by_majority", f"{name} leads term {term} and has no vote: {sorted(counted.voters)}"
            )
        voters = [one for one in counted.voters if self.votes.get((one, term)) == name]
        # Who is the only voter asks nobody; its own vote is on its disk before it commits anything.
        if len(voters) < counted.quorum and counted.voters != {name}:
            raise Violation(
                "elected_by_majority",
                f"{name} leads term {term} with the votes of {sorted(voters)}, of {sorted(counted.voters)}",
            )

    # -- what is applied -------------------------------------------------------------------------

    def applied_payload(self, member: Watched, index: int, payload: bytes, digest: bytes) -> None:
        name = member.name
        if index > self.shadows[name].committed and member.alive:
            self.after(member)  # committed and applied in one event
        if self.durable and index > member.disk.last_index:
            raise Violation("durable_apply", f"{name} applies {index}; on its disk is {member.disk.last_index}")
        known = self.applied.setdefault(index, payload)
        if known != payload:
            raise Violation("applied_equal", f"{name} applies another payload at {index}")
        known = self.digests.setdefault(index, digest)
        if known != digest:
            raise Violation(
                "applied_equal", f"{name} has digest {digest.hex()[:12]} at {index}, others {known.hex()[:12]}"
            )
        if index >= len(self.committed):
            raise Violation("applied_uncommitted", f"{name} applies {index}; committed up to {len(self.committed) - 1}")
        if self.durable and self.committed[index][1][1:] != payload:
            raise Violation("applied_equal", f"{name} applies at {index} what was not committed there")

    def money(self, name: str, index: int, sums: dict[str, int]) -> None:
        """sums: what all accounts own together, per asset; the outside world's debt included."""
        wrong = {asset: units for asset, units in sums.items() if units}
        if wrong:
            raise Violation("money_conserved", f"{name} at {index}: {wrong}")

    # -- what is said ----------------------------------------------------------------------------

    def said(self, member: Watched, target: str, message: object) -> None:
        """A message leaves. What it promises must be on the sender's disk by now."""
        if not self.durable:
            return
        disk = member.disk
        match message:
            case Vote(term):
                self._votes(member.name, term, target)
                if not disk.record.joined:
                    raise Violation("forgetful_vote", f"{member.name} votes in {term} on a disk that is not admitted")
                on_disk = disk.vote
                if on_disk.term < term or (on_disk.term == term and on_disk.voted_for != target):
                    raise Violation("durable_vote", f"{member.name} votes for {target} in {term}; on disk is {on_disk}")
            case RequestVote():
                self._votes(member.name, message.term, member.name)
                self._term_on_disk(member, message.term)
            case AppendReply():
                self._term_on_disk(member, message.term)
                if message.joined and not disk.record.joined:
                    raise Violation("durable_join", f"{member.name} says that it counts; its disk says otherwise")
                if message.joined and disk.last_index < member.must_hold:
                    raise Violation(
                        "admitted_too_early",
                        f"{member.name} counts with {disk.last_index}; its lost disk may have had {member.must_hold}",
                    )
                if message.matched_index > disk.last_index:
                    raise Violation(
                        "durable_reply", f"{member.name} claims {message.matched_index}, has {disk.last_index} on disk"
                    )
            case Append():
                self._term_on_disk(member, message.term)
            case PreVote():
                if self.configurations and member.name in self.configurations[-1][1].removed:
                    self.counters["campaigns_of_removed"] += 1
            case _:
                pass

    def _votes(self, name: str, term: int, target: str) -> None:
        other = self.votes.setdefault((name, term), target)
        if other != target:
            raise Violation("one_vote", f"{name} votes for {other} and for {target} in term {term}")

    def _term_on_disk(self, member: Watched, term: int) -> None:
        # A log that a snapshot began may be of a newer term than the vote: a start takes the newer of both.
        disk = member.disk
        on_disk = max(disk.vote.term, disk.entries[-1][2] if disk.entries else 0)
        if on_disk < term:
            raise Violation("durable_vote", f"{member.name} speaks in term {term}; on disk is {on_disk}")
