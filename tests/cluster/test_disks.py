"""A member that lost its disk has forgotten its votes and entries: it counts for nothing until it has caught up."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from cluster.consensus.journal import Disk as DiskIdentity
from cluster.consensus.journal import PeerDisks
from cluster.consensus.messages import Admit, Append, AppendReply, DiskIs, PreVote, PreVoteReply, RequestVote, Vote
from cluster.consensus.raft import RaftSettings
from cluster.consensus.storage import LmdbStorage
from tests.cluster.engines import Cluster, run, until
from tests.cluster.lab import TIMING, Clock, Disk, Lab, virtual_time


@pytest.fixture
def clock() -> Iterator[Clock]:
    with virtual_time() as clock:
        yield clock


def new_lab(clock: Clock, names: str = "abw") -> Lab:
    lab = Lab(clock, names, witnesses="w", settings=RaftSettings(timing=TIMING, trim_reserve=0), new_disks=True)
    lab.run_until(lambda: all(member.raft.joined for member in lab.alive), within=0.1)
    return lab


# -- a new cluster ---------------------------------------------------------------------------------


def test_a_new_cluster_begins_when_all_members_have_met(clock: Clock) -> None:
    lab = Lab(clock, "abw", witnesses="w", new_disks=True)
    lab.disconnect("a", "w")
    lab.disconnect("b", "w")
    # Two of three are no start: the third might hold what these two have lost.
    lab["a"].restart()
    lab["b"].restart()
    lab.disconnect("a", "w")
    lab.disconnect("b", "w")
    lab.run(3.0)
    assert lab.leader() is None
    assert lab["a"].raft.term == 0
    lab.connect_all()
    lab.run_until(lambda: lab.leader() is not None, within=2.0)


def test_a_member_that_is_late_for_the_first_start_is_admitted(clock: Clock) -> None:
    lab = Lab(clock, "abw", witnesses="w", new_disks=True)
    lab.step()
    assert lab["a"].raft.joined
    # w loses what it heard before it wrote that down.
    lab["w"].crash()
    lab["w"].disk = Disk(DiskIdentity("w-disk-0", joined=False))
    lab.elect("a")
    lab.propose("a", b"one")
    lab.run(0.2)
    lab["w"].restart()
    assert not lab["w"].raft.joined
    lab.run_until(lambda: lab["w"].raft.joined, within=1.0)
    lab.step()
    assert lab["w"].disk.identity == DiskIdentity("w-disk-0", joined=True)


def test_nobody_is_told_of_a_joining_that_is_not_on_disk(clock: Clock) -> None:
    lab = Lab(clock, "abw", witnesses="w", new_disks=True)
    a = lab["a"]
    a.auto_sync = False
    lab.step()
    assert a.raft.joined
    a.raft.tick()
    assert not a.disk.identity.joined
    lab["b"].raft._disks.pop("a", None)
    lab.step()
    assert lab["b"].raft.disk_of("a") is None
    a.auto_sync = True
    lab.run(0.05)
    assert a.disk.identity.joined
    told = lab["b"].raft.disk_of("a")
    assert told is not None
    assert told.joined


# -- a lost disk -----------------------------------------------------------------------------------


def test_a_wiped_member_counts_again_after_it_has_caught_up(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    lab = new_lab(clock)
    lab.elect("a")
    lab.propose("a", b"one", b"two")
    lab.run(0.2)
    lab["b"].wipe()
    lab["b"].restart()
    lab.step()
    assert not lab["b"].raft.joined
    lab.run_until(lambda: lab["b"].raft.joined, within=1.0)
    lab.run(0.2)
    assert lab["b"].payloads == [b"one", b"two"]
    told = [record.message for record in caplog.records if "is back on new disk b-disk-1" in record.message]
    assert len(told) == 2, "the leader and the other peer say so, once each"
    assert lab["a"].disk.peer_disk_ids["b"] == lab["w"].disk.peer_disk_ids["b"] == "b-disk-1"
    lab.step()
    # It stays counted after a restart, and may lead.
    lab["b"].crash()
    lab["b"].restart()
    assert lab["b"].raft.joined
    lab.elect("b")


def test_a_wiped_member_does_not_vote_twice(clock: Clock) -> None:
    """b votes for w in a term, loses its disk, and a asks for its vote in the same term."""
    lab = new_lab(clock)
    lab.elect("a")
    term = lab["b"].raft.term + 1
    ask = RequestVote(term, 100, 100, True)
    lab["b"].received("w", ask)
    lab["b"].raft.tick()
    lab["b"].committer.sync()
    assert lab.net.queued("b", "w")[-1] == Vote(term)
    lab["b"].wipe()
    lab["b"].start()
    lab["b"].received("a", ask)
    lab["b"].raft.tick()
    lab["b"].committer.sync()
    assert Vote(term) not in lab.net.queued("b", "a")
    assert lab["b"].raft.counters["refused_no_voter"] == 1
    # The same with a disk that claims to know its past: it votes. So it is the record that stops it.
    lab["b"].crash()
    lab["b"].disk = Disk()
    lab["b"].start()
    lab["b"].received("a", ask)
    lab["b"].raft.tick()
    lab["b"].committer.sync()
    assert Vote(term) in lab.net.queued("b", "a")


def test_an_admitted_member_does_not_vote_in_the_term_of_its_admission(clock: Clock) -> None:
    lab = new_lab(clock)
    lab.elect("a")
    lab["b"].wipe()
    lab["b"].restart()
    lab.run_until(lambda: lab["b"].raft.joined, within=1.0)
    lab.step()
    assert lab["b"].disk.vote.voted_for == "a"
    assert lab["b"].disk.vote.term == lab["a"].raft.term
    lab["b"].received("w", RequestVote(lab["a"].raft.term, 100, 100, True))
    lab["b"].raft.tick()
    lab["b"].committer.sync()
    assert not [message for message in lab.net.queued("b", "w") if isinstance(message, Vote)]


def test_what_only_the_lost_disk_and_one_other_had_is_not_lost(clock: Clock) -> None:
    """An entry is acknowledged by a and b. b loses its disk while a is away: b and w may not go on without it."""
    lab = new_lab(clock)
    lab.elect("a")
    lab.net.part("w", "ab")
    lab.propose("a", b"acknowledged")
    lab.run_until(lambda: lab["a"].payloads == [b"acknowledged"], within=0.2)
    lab["a"].crash()
    lab["b"].wipe()
    lab.net.heal()
    lab["b"].restart()
    lab.connect("b", "w")
    lab.run(5.0)
    assert lab.leader() is None, "b and w know nothing of an acknowledged entry"
    lab["a"].restart()
    lab.run_until(lambda: lab["b"].payloads == [b"acknowledged"], within=3.0)
    lab.run_until(lambda: lab["b"].raft.joined, within=1.0)
    assert lab.leader() is lab["a"]


def test_a_wiped_member_is_no_majority(clock: Clock) -> None:
    """Neither entries, nor reads, nor leadership are confirmed by a member that is not counted."""
    lab = new_lab(clock)
    lab.elect("a")
    lab["b"].wipe()
    lab.net.part("w", "ab")
    lab["b"].restart()
    commit_index = lab["a"].raft.commit_index
    answers: list[int | None] = []
    lab["a"].raft.read(answers.append)
    lab.propose("a", b"x")
    lab.run(0.25)
    assert lab["b"].journal.last_index == lab["a"].journal.last_index, "entries travel"
    assert lab["a"].raft.commit_index == commit_index
    assert answers in ([], [None])
    lab.run(1.0)
    assert lab.leader() is None, "with two of three gone the leader steps down"
    assert not lab["b"].raft.joined
    lab.net.heal()
    lab.run_until(lambda: lab["b"].raft.joined, within=3.0)
    lab.run_until(lambda: lab["b"].payloads == [b"x"], within=1.0)


def test_a_wiped_member_is_not_counted_for_what_it_had_before(clock: Clock) -> None:
    lab = new_lab(clock)
    lab.elect("a")
    lab.propose("a", *(b"%d" % i for i in range(50)))
    lab.run(0.2)
    assert lab["a"].raft.progress("b").matched_index == 52
    lab["b"].wipe()
    lab["b"].start()
    lab.connect("a", "b")
    lab.net.run()
    progress = lab["a"].raft.progress("b")
    assert (progress.matched_index, progress.joined) == (0, False)
    assert lab["a"].raft._SyncObj__raftMatchIndex[lab["a"].raft._nodes["b"]] == 0
    assert progress.barrier_index == lab["a"].journal.last_index, "an entry that is newer than the new disk"


def test_a_wiped_member_grants_no_pre_vote(clock: Clock) -> None:
    lab = new_lab(clock)
    lab.elect("a")
    lab["a"].crash()
    lab["b"].wipe()
    lab["b"].start()
    lab.run(1.0)
    lab["b"].received("w", PreVote(9, 100, 100))
    assert [m.granted for m in lab.net.queued("b", "w") if isinstance(m, PreVoteReply)] == [False]


def test_admission_needs_every_entry_up_to_there(clock: Clock) -> None:
    lab = new_lab(clock)
    lab.elect("a")
    lab["b"].wipe()
    lab["b"].start()
    lab["a"].received("b", DiskIs("b-disk-1", joined=False, clean=True))
    lab.run(0.2)
    leader, barrier_index = lab["a"].raft, lab["a"].raft.progress("b").barrier_index
    assert leader.commit_index >= barrier_index == lab["a"].journal.last_index
    for matched_index, admitted in ((barrier_index - 1, False), (barrier_index, True)):
        lab.net.drop("a", "b")
        lab["a"].received("b", AppendReply(leader.term, leader._sequence, matched_index, 0, 0, False))
        assert (Admit(leader.term, "b-disk-1") in lab.net.queued("a", "b")) is admitted


def test_admission_needs_an_entry_committed_by_others_after_the_disk_was_seen(clock: Clock) -> None:
    lab = new_lab(clock)
    lab.elect("a")
    lab["b"].wipe()
    lab.net.part("w", "ab")
    lab["b"].restart()
    lab.run(0.1)
    progress = lab["a"].raft.progress("b")
    assert progress.matched_index == progress.barrier_index == lab["a"].journal.last_index
    assert lab["a"].raft.commit_index < progress.barrier_index
    assert not lab["b"].raft.joined
    # No leader's word but that of the term's own leader counts, and none for another disk.
    term = lab["b"].raft.term
    for source, admit in (("w", Admit(term, "b-disk-1")), ("a", Admit(term - 1, "b-disk-1")), ("a", Admit(term, "x"))):
        lab["b"].received(source, admit)
        assert not lab["b"].raft.joined
    lab["b"].received("a", Admit(term, "b-disk-1"))
    assert lab["b"].raft.joined, "the neighbour that passes"


def test_a_wiped_witness_is_admitted_like_a_replica(clock: Clock) -> None:
    lab = new_lab(clock)
    lab.elect("a")
    lab.propose("a", *(b"%d" % i for i in range(20)))
    lab.run(0.2)
    for name in "ab":
        lab[name].raft.stored_index = lab["a"].raft.applied_index
    lab.run(0.3)
    assert lab["a"].journal.first_index > 1
    lab["w"].wipe()
    lab["b"].crash()
    lab["w"].restart()
    lab.run(2.0)
    # a alone, with a witness that forgot: nothing may be committed.
    assert not lab["w"].raft.joined
    assert lab.leader() is None
    lab["b"].restart(applied_index=lab["b"].disk.commit_index)
    lab.run_until(lambda: lab["w"].raft.joined, within=3.0)
    assert lab["w"].journal.first_index > 1, "it starts anew after what every replica has stored"


def test_a_lost_disk_is_handled_by_each_leader_that_follows(clock: Clock) -> None:
    """The leader that met the new disk dies before it has admitted it; the next one begins anew."""
    lab = new_lab(clock, "abcdw")
    lab.elect("a")
    lab["b"].wipe()
    lab.net.part("b", "a")
    lab["b"].restart()
    lab.step()
    lab["a"].crash()
    lab.run_until(lambda: lab.leader() is not None and lab.leader() is not lab["a"], within=3.0)
    leader = lab.leader()
    assert leader is not None
    assert leader.name != "b"
    lab.run_until(lambda: lab["b"].raft.joined, within=2.0)
    lab.step()
    assert lab["b"].disk.vote.voted_for == leader.name


def test_leadership_is_not_handed_to_a_member_that_is_not_counted(clock: Clock) -> None:
    lab = new_lab(clock)
    lab.elect("a")
    lab.net.part("w", "ab")
    lab["b"].wipe()
    lab["b"].restart()
    lab.run(0.1)
    assert lab["a"].raft.best_successor() is None
    lab["b"].received("a", Append(lab["a"].raft.term, 10**6, 1, 0, 1, 0, []))
    before = lab["b"].raft.term
    lab["a"].raft.transfer_to("b")
    lab.run(0.2)
    assert lab["b"].raft.term == before


# -- on a real disk --------------------------------------------------------------------------------


def disk_of(folder: Path) -> DiskIdentity:
    storage = LmdbStorage(folder, cluster_id="c", member="a", map_bytes=1 << 20)
    try:
        return storage.load(tail_bytes_max=0).disk
    finally:
        storage.close()


def test_a_new_folder_is_a_new_disk_and_stays_it(tmp_path: Path) -> None:
    first = disk_of(tmp_path / "j")
    assert not first.joined
    assert disk_of(tmp_path / "j") == first != disk_of(tmp_path / "k")
    storage = LmdbStorage(tmp_path / "j", cluster_id="c", member="a", map_bytes=1 << 20)
    storage.write([DiskIdentity(first.disk_id, joined=True), PeerDisks({"b": "x"})])
    storage.close()
    assert disk_of(tmp_path / "j") == DiskIdentity(first.disk_id, joined=True)


def test_a_journal_from_before_disks_had_ids_has_joined(tmp_path: Path) -> None:
    disk_of(tmp_path)
    with lmdb.open(str(tmp_path), max_dbs=2) as env, env.begin(write=True) as transaction:
        for key in (b"disk", b"written"):
            assert transaction.delete(key, db=env.open_db(b"meta", txn=transaction))
    older = disk_of(tmp_path)
    assert older.joined
    assert older.disk_id
    assert disk_of(tmp_path) == older


def test_a_replica_that_lost_its_disk_comes_back_by_log(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            leader = await cluster.leader()
            [other] = cluster.others(leader)
            name = other.member.name
            sent = [b"%d" % i for i in range(100)]
            await cluster.propose(*sent)
            for lost in (name, "t1"):
                await cluster.stop(lost)
                shutil.rmtree(tmp_path / lost)
                again = await cluster.start(lost)
                assert not again.status().joined
                assert again.status().role == "follower"
                await until(lambda again=again: again.status().joined)  # type: ignore[misc]
                now = await cluster.leader()
                await until(lambda now=now: all(peer.joined for peer in now.status().peers))  # type: ignore[misc]
            await until(lambda: [payload for _, payload in cluster.delivered[name]] == sent)
            assert cluster.left == []

    run(main())
