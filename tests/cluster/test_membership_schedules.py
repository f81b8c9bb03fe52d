"""Random schedules in which the members change, too: whatever is lost or late meanwhile, one group and one history."""

import logging
from collections import Counter

import pytest

from cluster.consensus.journal import Disk as Identity
from cluster.consensus.journal import newest_of
from cluster.consensus.raft import NotYet
from cluster.membership import Add, Change, Configuration, Demote, InvalidChange, Promote, Remove
from cluster.topology import Member, MemberRole, Standing
from tests.cluster.lab import Disk, LabMember, described
from tests.cluster.test_schedules import Run

MEMBERS_MAX = 7


class MembersRun(Run):
    """As Run, with changes that are asked of whoever leads, newcomers, removed ones that go on, and full witnesses."""

    def __init__(self, seed: int, names: str, witnesses: str) -> None:
        self.changes: Counter[str] = Counter()
        self.committed: dict[int, Configuration] = {}
        self.files: dict[str, Configuration] = {}  # with which topology each newcomer was set up
        self.unsure: str | None = None
        self.full_until = self.let_go_at = 0.0
        super().__init__(seed, names, witnesses, wipes=True)

    @property
    def newest(self) -> Configuration:
        """The newest committed configuration that any member has known."""
        return self.committed[max(self.committed)] if self.committed else self.lab.first

    def step(self, *, faults: bool) -> None:
        lab, chance, now = self.lab, self.chance, self.lab.clock.now
        if faults:
            # Of one that is deposed, and does not know it, too.
            for member in lab.alive:
                if member.raft.is_leader and not member.raft.caretaker and chance.random() < 0.1:
                    self.change(member)
        if faults and chance.random() < 0.002:
            self.leave_alone()
        for member in lab.alive:
            member.raft.log_full = faults and member.role is MemberRole.witness and now < self.full_until
        for name in [name for name in lab.members if name in self.newest.removed]:
            if chance.random() < 0.002:
                self.retire(name)
        super().step(faults=faults)

    # -- changes ---------------------------------------------------------------------------------

    def change(self, leader: LabMember) -> None:
        wanted = self.wish(leader.raft.configuration)
        name = wanted.member.name if isinstance(wanted, Add) else wanted.name
        if name == leader.name:
            successor = leader.raft.best_successor()
            if successor is not None:
                leader.raft.transfer_to(successor)
            return
        try:
            before = leader.journal.last_index
            leader.raft.change(wanted)
            if leader.journal.last_index > before:
                self.changes[type(wanted).__name__] += 1
                self.split(leader.name)
        except InvalidChange:
            self.changes["invalid"] += 1
        except NotYet:
            self.changes["not yet"] += 1

    def split(self, leader: str) -> None:
        """Often the group falls apart right after a change: it is in some logs and not in others."""
        lab, chance = self.lab, self.chance
        if lab.clock.now > self.full_until and chance.random() < 0.3:
            others = [name for name in lab.members if name != leader]
            side = [leader, *chance.sample(others, chance.randint(0, len(others) // 2))]
            lab.net.part(side, [name for name in others if name not in side])
            self.heal_at = lab.clock.now + chance.uniform(0.2, 1.5)

    def wish(self, configuration: Configuration) -> Change:
        chance = self.chance
        names = [member.name for member in configuration.members]
        learners = [member.name for member in configuration.members if member.standing is Standing.learner]
        kind = chance.random()
        if kind < 0.25 and len(self.lab.members) < MEMBERS_MAX:
            return self.newcomer()
        waiting = [name for name in self.files if name in self.lab.members and name not in names]
        if kind < 0.4 and waiting:
            return Add(self.described(chance.choice(waiting)))
        if kind < 0.75 and learners:
            return Promote(chance.choice(learners))
        if kind < 0.85:
            return Demote(chance.choice(names))
        return Remove(chance.choice(names))

    def newcomer(self) -> Add:
        """Set up with a file in which it is a learner; it runs before it is added, or some time later."""
        lab, chance = self.lab, self.chance
        name = f"n{len(self.files)}"
        member = LabMember(lab, name, MemberRole.witness if chance.random() < 0.25 else MemberRole.replica)
        member.disk = Disk(Identity(f"{name}-disk", joined=False))
        lab.members[name] = member
        standing = Standing.learner
        if member.role is MemberRole.replica and chance.random() < 0.2:
            standing = Standing.read_replica
        self.files[name] = Configuration(0, [*self.newest.members, described(name, member.role, standing)])
        self.back_at[name] = lab.clock.now + chance.choice((0.0, 0.3, 1.0))
        return Add(self.described(name))

    def described(self, name: str) -> Member:
        found = self.files[name].member(name)
        assert found is not None
        return found

    def fault(self) -> None:
        """Fewer than in Run: a newcomer needs some time to catch up, and a leader to lose patience."""
        if self.lab.clock.now > self.full_until and self.chance.random() < 0.4:
            super().fault()

    def leave_alone(self) -> None:
        """The witnesses' logs are full, and one is away for longer than a leader waits with that."""
        lab, chance = self.lab, self.chance
        name = chance.choice([member.name for member in lab.members.values() if member.role is MemberRole.replica])
        if lab[name].alive and not lab[name].raft.is_leader:
            lab[name].crash()
            self.back_at[name] = lab.clock.now + chance.uniform(1.2, 2.5)
            self.full_until = lab.clock.now + 1.5

    def retire(self, name: str) -> None:
        """Somebody stops one that was removed."""
        if self.lab[name].alive:
            self.lab[name].crash()
        self.back_at.pop(name, None)
        del self.lab.members[name]

    def restart(self, name: str) -> None:
        """With the file that it was set up with, or one that was written after a change."""
        lab, first = self.lab, self.lab.first
        written = [first, *(Configuration(0, known.members) for known in self.committed.values())]
        written = [file for file in written if file.member(name) is not None]
        lab.first = self.chance.choice(written) if written else self.files[name]
        super().restart(name)
        lab.first = first

    # -- what happens to them --------------------------------------------------------------------

    def wipe(self) -> None:
        """One disk at a time, while a majority of each configuration that may count still knows what it promised."""
        lab = self.lab
        if self.unsure in lab.members and not lab[str(self.unsure)].disk.identity.joined:
            return
        name = self.chance.choice(list(lab.members))
        started = [member for member in lab.members.values() if hasattr(member, "journal")]
        in_play = [self.newest, *(m.journal.base.configuration for m in started if m.journal.base is not None)]
        for configuration in in_play:
            sure = {
                voter
                for voter in configuration.voters - {name}
                if voter in lab.members and lab[voter].disk.identity.joined
            }
            full = [voter for voter in sure if lab[voter].role is MemberRole.replica]
            if name in configuration.voters and (len(sure) < configuration.quorum or not full):
                return
        if hasattr(lab[name], "journal"):
            self.wiped += 1
            self.unsure = name
            lab[name].wipe()
            self.stored[name] = 0
            self.back_at[name] = lab.clock.now + self.chance.uniform(0.01, 0.8)

    def install(self) -> None:
        """As cluster/consensus/storage.py:start_after. The log behind a snapshot is held until nobody needs one."""
        leader, now = self.lab.leader(), self.lab.clock.now
        if leader is None:
            return
        raft = leader.raft
        if not raft.stranded:
            if now > self.let_go_at:
                raft.hold_index = None
            return
        self.let_go_at = now + 1.0
        if raft.hold_index is None or raft.hold_index < leader.journal.first_index:
            raft.hold_index = raft.stored_index
            return
        index = raft.hold_index
        for name in raft.stranded:
            member = self.lab[name]
            if index <= member.raft.commit_index or index < leader.journal.first_index:
                continue
            self.installed += 1
            term, base = leader.journal.term_at(index), leader.journal.base_at(index)
            member.crash()
            disk = member.disk
            if [entry[2] for entry in disk.entries if entry[1] == index] != [term]:
                disk.entries = [(b"\1", index, term)]
                disk.commit_index = index
                if disk.base is None or newest_of([disk.base, base]) is base:
                    disk.base = base
            self.stored[name] = index
            self.restart(name)

    # -- what must hold --------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        for member in self.lab.alive:
            raft = member.raft
            if raft.configuration_index and raft.configuration_committed:
                known = self.committed.setdefault(raft.configuration_index, raft.configuration)
                assert known == raft.configuration, f"seed {self.seed}: two at {raft.configuration_index}"

    def finish(self) -> None:
        lab, seed = self.lab, self.seed
        leader = lab.leader()
        assert leader is not None and not leader.raft.caretaker, f"seed {seed}: no leader 4 s after the heal"
        lab.run(1.0)
        assert leader.raft.configuration == self.newest, f"seed {seed}: a change was committed, then lost"
        for known in leader.raft.configuration.members:
            member = lab[known.name]
            assert member.raft.joined, f"seed {seed}: {known.name} was never admitted"
            assert member.raft.configuration == self.newest, f"seed {seed}: {known.name} knows another group"
            assert member.log[-1] == leader.log[-1], f"seed {seed}: {known.name} stuck"
            indexes = [index for index, _ in member.delivered]
            assert indexes == sorted(set(indexes)), f"seed {seed}: {known.name} out of order"
            if member.role is leader.role:
                assert member.raft.applied_index == leader.raft.applied_index, f"seed {seed}: {known.name} stuck"
        full = dict(leader.delivered)
        committed = {entry[1]: entry[0][1:] for entry in leader.journal[:] if entry[0][:1] == b"\0"}
        for index, payload in self.applied.items():
            if index <= leader.journal.first_index and index not in full:
                continue  # trimmed: every replica had stored it
            assert committed.get(index, full.get(index)) == payload, f"seed {seed}: {index} was applied, then lost"


def test_random_schedules_in_which_members_change(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)  # thousands of lines otherwise
    runs = [MembersRun(seed, names, "w") for names in ("abw", "abcdw") for seed in range(300, 303)]
    changes = sum((run.changes for run in runs), Counter[str]())
    for kind in ("Add", "Promote", "Demote", "Remove"):
        assert changes[kind] > 3, changes
    assert sum(bool(known.demoted) for run in runs for known in run.committed.values()) > 0, "by a leader, too"
    assert sum(run.wiped for run in runs) > 3
    assert sum(run.crashes for run in runs) > 5
    assert sum(run.truncations for run in runs) > 0
    assert sum(run.installed for run in runs) > 0
    assert sum(len(run.applied) for run in runs) > 1000
