"""What a review of changing members found, each as the test that failed before."""

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cluster.consensus.engine import ChangeRefused
from cluster.consensus.journal import CONFIGURATION, Base, Journal, JournalRefused, newest_of
from cluster.consensus.messages import Append, DiskIs
from cluster.consensus.raft import NotYet, RaftSettings
from cluster.consensus.settings import EXIT_REMOVED
from cluster.consensus.storage import LmdbStorage
from cluster.membership import Add, Configuration, Demote, InvalidChange, Promote, Remove, changed, encode
from cluster.topology import MemberRole, Standing
from tests.cluster.engines import Cluster, run, until
from tests.cluster.lab import TIMING, Clock, Lab, ManualCommitter, described, virtual_time
from tests.cluster.test_membership import asked, bring, change, grown, newcomer, start_newcomer
from tests.cluster.test_recovery import recover

LEARNER, READER = Standing.learner, Standing.read_replica


@pytest.fixture
def clock() -> Iterator[Clock]:
    with virtual_time() as clock:
        yield clock


def alone(clock: Clock) -> Lab:
    """a is the only voter, as after the loss of a majority."""
    lab = Lab(clock, "a")
    lab.run_until(lambda: lab["a"].raft.is_leader, within=3.0)
    lab.run(0.2)
    return lab


def test_a_single_voter_commits_only_what_it_has_synced(clock: Clock) -> None:
    lab = alone(clock)
    reader = bring(lab, "r")
    change(lab, "a", Add(described("r", MemberRole.replica, READER)))
    lab.run(0.5)
    a = lab["a"]
    a.auto_sync = False
    index = a.raft.append(b"not on the disk of the only voter")
    lab.run(0.3)
    assert reader.journal.durable_index >= index, "it left before it was synced here"
    assert a.raft.commit_index < index
    assert reader.payloads == []
    a.crash()
    a.auto_sync = True
    a.restart(applied_index=1)
    lab.run_until(lambda: a.raft.is_leader, within=3.0)
    lab.propose("a", b"what there is instead")
    lab.run(0.5)
    assert reader.payloads == a.payloads == [b"what there is instead"]


def test_a_single_voter_on_a_new_disk_does_not_begin_anew(clock: Clock) -> None:
    """Its learners still have what it lost: an operator makes a group of them."""
    lab = alone(clock)
    b = bring(lab, "b")
    change(lab, "a", Add(described("b", MemberRole.replica, LEARNER)))
    lab.propose("a", b"acknowledged")
    lab.run(0.5)
    assert b.payloads == [b"acknowledged"]
    lab["a"].wipe()
    lab["a"].restart()
    lab.run(3.0)
    assert not lab["a"].raft.joined and not lab["a"].raft.is_leader
    assert b.payloads == [b"acknowledged"]


def test_what_was_clean_once_admits_nobody_when_the_members_are_others(clock: Clock) -> None:
    """b, on a new disk, met c and d when they were new. By now they and b are the group, says the log that it gets."""
    lab = Lab(clock, "abw", witnesses="w", new_disks=True)
    lab.run(0.1)
    b = lab["b"]
    b.wipe()
    b.start()
    for name in "cd":
        b.raft.peer_connected(name)
        b.received(name, DiskIs(f"{name}-disk-0", joined=False, clean=True))
    now = Configuration(0, [described(name, MemberRole.replica) for name in "bcd"], ["a", "w"])
    b.received("c", Append(9, 1, 1, 0, 1, 0, [(9, CONFIGURATION + encode(now))]))
    assert b.raft.voters == {"b", "c", "d"}
    b.received("c", DiskIs("c-disk-0", joined=True, clean=False))
    assert not b.raft.joined


def test_a_read_replica_that_stands_still_does_not_hold_the_log_for_ever(clock: Clock) -> None:
    settings = RaftSettings(timing=TIMING, trim_reserve=0, laggard_entries=50)
    lab = Lab(clock, "abw", witnesses="w", settings=settings)
    lab.elect("a")
    bring(lab, "r")
    change(lab, "a", Add(described("r", MemberRole.replica, READER)))
    for _ in range(20):
        lab.propose("a", *[b"payload"] * 10)
        lab.run(0.1)
        for name in "ab":
            lab[name].raft.stored_index = lab[name].raft.applied_index
    lab.run(0.3)
    assert lab["r"].raft.applied_index > 200 and lab["r"].raft.stored_index == 0
    a = lab["a"]
    assert len(a.journal) <= settings.laggard_entries + 1, "r is heard, and stores nothing"


def test_a_learner_that_needs_a_snapshot_is_not_promoted(clock: Clock) -> None:
    lab = grown(clock)
    a, c = lab["a"], lab["c"]
    c.crash()
    lab.run(0.1)
    lab.propose("a", *[b"%d" % i for i in range(20)])
    lab.run(0.2)
    for name in "ab":
        lab[name].raft.stored_index = lab[name].raft.applied_index
    a.journal.trim_to(a.raft.applied_index)
    lab.run(0.1)
    c.restart(applied_index=c.disk.commit_index)
    lab.run(0.3)
    assert a.raft.stranded == ["c"]
    with pytest.raises(NotYet, match="c needs a snapshot"):
        a.raft.change(Promote("c"))


def test_a_voter_that_is_demoted_is_needed_until_that_is_committed(clock: Clock) -> None:
    """Four voters, and the leader goes when only c has heard that c is demoted: three of four must go on."""
    lab = grown(clock)
    change(lab, "a", Promote("c"))
    lab.run(0.3)
    lab.net.part("a", "bw")
    lab["a"].raft.change(Demote("c"))
    lab.run(0.05)
    lab["a"].crash()
    lab.net.heal()
    lab.run_until(lambda: lab.leader() is not None and not lab.leader().raft.caretaker, within=5.0)  # type: ignore[union-attr]
    leader = lab.leader()
    assert leader is not None
    leader.raft.append(b"on")
    lab.run_until(lambda: leader.payloads[-1:] == [b"on"], within=1.0)


def test_a_voter_that_was_away_is_removed_no_sooner_than_if_it_still_voted() -> None:
    """A leader demoted it. With it gone, too, one replica would be left that has the state, for good."""
    voters = [described(name, MemberRole.replica) for name in "ab"]
    aside = changed(Configuration(0, [*voters, described("w", MemberRole.witness)]), Demote("b", away=True))
    with pytest.raises(InvalidChange, match="without b 2 voters are left"):
        changed(aside, Remove("b"))
    another = changed(changed(aside, Add(described("c", MemberRole.replica, LEARNER))), Promote("c"))
    assert changed(another, Remove("b")).voters == {"a", "c", "w"}
    two = [described(name, MemberRole.witness) for name in "vw"]
    with pytest.raises(InvalidChange, match="without b 1 full replicas vote"):
        changed(changed(Configuration(0, [*voters, *two]), Demote("b", away=True)), Remove("b"))


def test_a_witness_keeps_what_a_voter_lacks_until_its_demotion_is_committed(clock: Clock) -> None:
    """Else, with the leader's disk gone and the demotion on no other, nobody has what b and w were to remember."""
    lab = grown(clock, "r")
    lab["b"].crash()
    for _ in range(5):
        lab.propose("a", *[b"payload"] * 10)
        lab.run(0.1)
        lab["a"].raft.stored_index = lab["a"].raft.applied_index
    a, w = lab["a"], lab["w"]
    w.auto_sync = False
    a.raft.change(Demote("b", away=True))
    lab.run(0.2)
    assert not a.raft.configuration_committed
    a.raft.tick()
    lab.clock.now += TIMING.heartbeat_ms / 1000
    a.raft.tick()
    told = [message.trim_index for message in lab.net.queued("a", "w") if isinstance(message, Append)]
    assert told and max(told) <= 0
    w.auto_sync = True
    lab.run(0.5)
    assert w.journal.first_index == a.raft.stored_index, "afterwards nothing holds it back"


@pytest.mark.parametrize("survivor_count", [1, 2])
def test_a_survivor_does_not_start_under_the_topology_before(tmp_path: Path, survivor_count: int) -> None:
    """There it would link with those who were given up, and tell them that they are removed."""

    async def main() -> None:
        async with Cluster(tmp_path, "2+2+1") as cluster:
            await cluster.propose(b"one")
            for name in list(cluster.engines):
                await cluster.stop(name)
            before, survivors = cluster.topology, ["a1", "a2"][:survivor_count]
            recover(cluster, *survivors)
            after, cluster.topology = cluster.topology, before
            with pytest.raises(JournalRefused, match="is of epoch 2, the topology is of epoch 1: use the newest file"):
                await cluster.start("a1")
            cluster.topology = after
            for name in survivors:
                await cluster.start(name)
            await cluster.leader()

    run(main())


class JournalRun:
    """A journal on a real disk does what comes to it in a random order; beside it, all configurations there ever were.

    The power goes between any two groups. Each time the configuration in force must be the one that a log which
    drops nothing would name.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.chance = folder, random.Random(seed)
        self.seen: Counter[str] = Counter()
        self.known = [Base(0, Configuration(0, [described("a", MemberRole.replica)]))]
        self.on_disk: list[Base] = []
        self.under_way: list[Base] = []
        self.open()
        rarer = [self.cut, self.trim, self.rebase, self.crash]
        for _ in range(400):
            self.chance.choice([*[self.add, self.configure, self.flush, self.sync] * 2, *rarer])()
            if self.chance.random() < 0.01:
                self.force()
            self.check()

    def open(self) -> None:
        self.committer = ManualCommitter()
        self.storage = LmdbStorage(self.folder, cluster_id="c", member="a", map_bytes=1 << 26)
        self.journal = Journal(self.storage, self.committer, on_synced=lambda: None, on_failed=lambda _: None)
        self.journal.begin_with(self.known[0].configuration)
        if not self.journal.last_index:
            self.journal.add(b"\1", 1, 0)

    def check(self) -> None:
        assert self.journal.base == newest_of(self.known)
        for index in (self.journal.first_index, self.chance.randint(self.journal.first_index, self.journal.last_index)):
            assert self.journal.base_at(index) == newest_of([known for known in self.known if known.index <= index])

    def add(self) -> None:
        self.journal.add(b"\0x", self.journal.last_index + 1, 1)

    def configure(self) -> None:
        self.seen["configured"] += 1
        now, index = newest_of(self.known).configuration, self.journal.last_index + 1
        after = msgspec.structs.replace(now, removed=[*now.removed, f"r{index}"][-3:])
        self.known.append(Base(index, after))
        self.journal.add(CONFIGURATION + encode(after), index, 1)

    def cut(self) -> None:
        journal = self.journal
        index = journal.last_index - self.chance.randint(0, 3)
        if index > max(journal.commit_index, journal.first_index, 1):
            self.seen["cut"] += sum(known.index >= index for known in self.known)
            journal.cut_from(index)
            self.known = [known for known in self.known if known.index < index]

    def trim(self) -> None:
        journal = self.journal
        commit_index = max(journal.commit_index, min(journal.durable_index, self.chance.randint(1, journal.last_index)))
        journal.setRaftCommitIndex(commit_index)
        journal.trim_to(commit_index)
        self.seen["trimmed at a configuration"] += any(known.index == commit_index for known in self.known)

    def rebase(self) -> None:
        if self.chance.random() < 0.2:
            journal, now = self.journal, newest_of(self.known)
            index = journal.last_index + self.chance.randint(1, 5)
            base = Base(self.chance.choice((now.index, index)), now.configuration, now.forced)
            journal.rebase(index, 1, base)
            journal.setRaftCommitIndex(index)
            self.known = [base]

    def flush(self) -> None:
        if not self.committer.jobs:
            self.under_way = list(self.known)
            self.journal.flush()

    def sync(self) -> None:
        if self.committer.jobs:
            self.on_disk = self.under_way
            self.committer.sync()

    def crash(self) -> None:
        self.seen["crashed"] += 1
        self.committer.jobs.clear()
        self.storage.close()
        self.known = list(self.on_disk) or self.known[:1]
        self.open()

    def force(self) -> None:
        self.sync()
        self.crash()
        if not self.on_disk:
            return
        self.storage.close()
        now = newest_of(self.known).configuration
        forced = msgspec.structs.replace(now, generation=now.generation + 1)
        storage = LmdbStorage(self.folder, cluster_id="c", member="a", map_bytes=1 << 26)
        storage.write([Base(0, forced, forced=True)])
        storage.close()
        self.seen["forced"] += 1
        self.known.append(Base(0, forced, forced=True))
        self.on_disk = list(self.known)
        self.open()


def test_the_journal_names_the_members_that_a_log_without_end_would_name(tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    for seed in range(6):
        seen += JournalRun(tmp_path / str(seed), seed).seen
    for what in ("configured", "cut", "trimmed at a configuration", "crashed", "forced"):
        assert seen[what] > 3, seen


def test_a_leader_that_can_not_be_removed_keeps_leading(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            leader = await cluster.leader()
            term = leader.status().term
            for wanted in (Remove(leader.member.name), Demote(leader.member.name)):
                with pytest.raises(ChangeRefused, match="2 voters are left"):
                    await leader.change_membership(wanted, timeout_ms=2000)
            assert (leader.status().role, leader.status().term) == ("leader", term)

    run(main())


def test_a_removed_member_whom_others_dial_is_told(tmp_path: Path) -> None:
    """a1 dials nobody: of a pair, the later name does. So it can't come and ask."""

    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            await cluster.propose(b"one")
            member = newcomer(cluster, "b2")
            await asked(cluster, Add(member))
            await start_newcomer(cluster, member)
            await asked(cluster, Promote("b2"))
            await asked(cluster, Remove("a1"))
            await until(lambda: [(name, code) for name, code, _ in cluster.left] == [("a1", EXIT_REMOVED)])

    run(main())
