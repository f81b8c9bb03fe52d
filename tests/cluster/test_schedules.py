"""Random schedules from a seed: cuts, resets, power cuts, late syncs; nothing acknowledged may be lost.

The simulator with disks that lie and clocks that drift is another room's; this is the quick net under raft.py.
"""

import random

import pytest
from msgspec import structs

from cluster.consensus.raft import RaftSettings
from tests.cluster.lab import TIMING, Lab, virtual_time

SECONDS = 12.0


class Run:
    def __init__(self, seed: int, names: str, witnesses: str, *, wipes: bool = False) -> None:
        """wipes: disks are lost, too, while a majority of them remembers; replicas that lag get snapshots."""
        self.wipes = wipes
        self.wiped = self.installed = 0
        self.seed = seed
        self.chance = random.Random(seed)
        with virtual_time(seed) as clock:
            settings = RaftSettings(timing=TIMING, trim_reserve=0, batch_bytes=100)
            if wipes:
                settings = structs.replace(settings, laggard_entries=60)
            self.lab = Lab(clock, names, witnesses=witnesses, settings=settings, new_disks=wipes)
            self.acked: set[bytes] = set()
            self.applied: dict[int, bytes] = {}
            self.reads = self.proposed = self.crashes = self.truncations = 0
            self.back_at: dict[str, float] = {}
            self.stored: dict[str, int] = {}
            self.slow_until: dict[str, float] = {}
            self.heal_at = 0.0
            start = clock.now
            while clock.now - start < SECONDS:
                self.step(faults=clock.now - start < SECONDS - 4)
            self.finish()

    def step(self, *, faults: bool) -> None:
        lab, chance, now = self.lab, self.chance, self.lab.clock.now
        lab.clock.now += 0.004
        if faults and chance.random() < 0.02:
            self.fault()
        if lab.net.down and (now >= self.heal_at or not faults):
            lab.net.heal()
        for name, at in list(self.back_at.items()):
            if now >= at or not faults:
                del self.back_at[name]
                self.restart(name)
        self.load()
        if chance.random() < 0.05:
            self.store(chance.choice(lab.alive).name if lab.alive else None)
        for member in lab.alive:
            member.raft.tick()
        if self.wipes and chance.random() < 0.05:
            self.install()
        for pair in list(lab.net.queues):
            # Some of what is under way arrives now, in order; the rest later.
            if chance.random() < 0.7:
                lab.net.deliver(*pair, chance.randint(1, 8))
        for member in lab.alive:
            if not faults or (now >= self.slow_until.get(member.name, 0.0) and chance.random() < 0.3):
                member.committer.sync()
        self.check()

    def store(self, name: str | None) -> None:
        """The store of one replica becomes durable up to some entry: the log may be trimmed to there."""
        if name is not None and self.lab[name].delivered:
            stored = self.chance.choice(self.lab[name].delivered)[0]
            self.stored[name] = max(self.stored.get(name, 0), stored)
            self.lab[name].raft.stored_index = self.stored[name]

    def install(self) -> None:
        """What the node does with a snapshot: the store is the leader's, the log goes on after its index."""
        leader = self.lab.leader()
        for name in leader.raft.stranded if leader else []:
            assert leader is not None
            index, member = leader.raft.stored_index, self.lab[name]
            if index <= member.raft.commit_index or index < leader.journal.first_index:
                continue
            self.installed += 1
            term = leader.journal.term_at(index)
            member.crash()
            disk = member.disk
            if [entry[2] for entry in disk.entries if entry[1] == index] != [term]:
                disk.entries = [(b"\1", index, term)]
                disk.commit_index = index
            self.stored[name] = index
            self.restart(name)

    def wipe(self) -> None:
        """A disk is lost only while, with it, a majority still knows what it promised."""
        members = list(self.lab.members.values())
        name = self.chance.choice(members).name
        unsure = {member.name for member in members if not member.disk.identity.joined} | {name}
        if len(members) - len(unsure) >= len(members) // 2 + 1:
            self.wiped += 1
            self.lab[name].wipe()
            self.stored[name] = 0
            self.back_at[name] = self.lab.clock.now + self.chance.uniform(0.01, 0.8)

    def load(self) -> None:
        for member in self.lab.alive:
            raft = member.raft
            if raft.is_leader and not raft.caretaker:
                for _ in range(self.chance.choice((0, 0, 1, 3, 20))):
                    self.proposed += 1
                    raft.append(b"w%d" % self.proposed)
                if self.chance.random() < 0.2:
                    self.read(member.name)

    def read(self, name: str) -> None:
        must = max(self.applied, default=0)

        def answered(index: int | None) -> None:
            if index is not None:
                self.reads += 1
                assert index >= must, f"seed {self.seed}: stale read {index}, {must} was applied before it began"

        self.lab[name].raft.read(answered)

    def fault(self) -> None:
        lab, chance = self.lab, self.chance
        names = list(lab.members)
        kind = chance.random()
        leader = lab.leader()
        if self.wipes and chance.random() < 0.2:
            self.wipe()
        elif kind < 0.35:
            group = [leader.name] if leader and chance.random() < 0.5 else chance.sample(names, chance.randint(1, 2))
            lab.net.part(group, [name for name in names if name not in group])
            self.heal_at = lab.clock.now + chance.uniform(0.1, 1.5)
        elif kind < 0.5:
            a, b = chance.sample(names, 2)
            lab.disconnect(a, b)
            lab.connect(a, b)
        elif kind < 0.75:
            for name in chance.sample(names, chance.randint(1, len(names) - 1)):
                self.slow_until[name] = lab.clock.now + chance.uniform(0.02, 0.6)
        else:
            # The power goes for several at once, the leader often among them.
            group = chance.sample(names, chance.randint(1, len(names)))
            if leader and chance.random() < 0.5:
                group.append(leader.name)
            for name in dict.fromkeys(group):
                if lab[name].alive:
                    self.crashes += 1
                    self.truncations += lab[name].raft.counters["truncations"]
                    lab[name].crash()
                    self.back_at[name] = lab.clock.now + chance.uniform(0.01, 0.8)

    def restart(self, name: str) -> None:
        lab = self.lab
        stored = self.stored.get(name, 0)
        lab[name].start(applied_index=stored)
        lab[name].raft.stored_index = stored
        for other in lab.members:
            lab.connect(name, other)

    def check(self) -> None:
        leaders: dict[int, str] = {}
        for member in self.lab.alive:
            if member.raft.is_leader:
                other = leaders.setdefault(member.raft.term, member.name)
                assert other == member.name, f"seed {self.seed}: {other} and {member.name} lead {member.raft.term}"
            if member.delivered:
                index, payload = member.delivered[-1]
                for index, payload in member.delivered[-40:]:
                    # Applied anywhere once means applied so everywhere, for ever.
                    assert self.applied.setdefault(index, payload) == payload, f"seed {self.seed}: fork at {index}"

    def finish(self) -> None:
        lab = self.lab
        leader = lab.leader()
        assert leader is not None and not leader.raft.caretaker, f"seed {self.seed}: no leader 4 s after the heal"
        lab.run(1.0)
        full = dict(leader.delivered) if leader.delivered else {}
        for member in lab.alive:
            if member.role == leader.role:
                indexes = [index for index, _ in member.delivered]
                assert indexes == sorted(set(indexes)), f"seed {self.seed}: {member.name} out of order"
                assert member.raft.applied_index == leader.raft.applied_index, f"seed {self.seed}: {member.name} stuck"
                assert member.log[-1] == leader.log[-1]
        committed = {entry[1]: entry[0][1:] for entry in leader.journal[:] if entry[0][:1] == b"\0"}
        for index, payload in self.applied.items():
            if index <= leader.journal.first_index and index not in full:
                continue  # trimmed: every replica had stored it
            assert committed.get(index, full.get(index)) == payload, f"seed {self.seed}: {index} was applied, then lost"


@pytest.mark.parametrize(("names", "witnesses"), [("abw", "w"), ("abcdw", "w"), ("abc", "")])
def test_random_schedules(names: str, witnesses: str) -> None:
    runs = [Run(seed, names, witnesses) for seed in range(100, 108)]
    # A batch in which nothing happened proves nothing.
    assert sum(run.crashes for run in runs) > 5
    assert sum(run.reads for run in runs) > 100
    assert sum(len(run.applied) for run in runs) > 1000
    assert sum(run.truncations for run in runs) > 0
    assert sum(member.journal.first_index > 1 for run in runs for member in run.lab.alive) > 0


@pytest.mark.parametrize(("names", "witnesses"), [("abw", "w"), ("abcdw", "w")])
def test_random_schedules_in_which_disks_are_lost(names: str, witnesses: str) -> None:
    runs = [Run(seed, names, witnesses, wipes=True) for seed in range(200, 208)]
    assert sum(run.wiped for run in runs) > 5
    assert sum(run.installed for run in runs) > 2
    assert sum(run.crashes for run in runs) > 5
    assert sum(run.reads for run in runs) > 100
    assert sum(len(run.applied) for run in runs) > 1000
