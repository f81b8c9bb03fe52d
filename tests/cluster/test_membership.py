"""Changes of the members: one at a time, counted from the moment they are logged, and undone with their entry."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from cluster.certificates import make_certificate
from cluster.consensus.engine import ChangeRefused, ChangeTooEarly, ChangeUnknown, NotLeader
from cluster.consensus.raft import NotYet, RaftSettings
from cluster.consensus.settings import EXIT_REMOVED, Limits
from cluster.membership import Add, Change, Configuration, Demote, InvalidChange, Promote, Remove, changed
from cluster.topology import Member, MemberRole, Standing
from tests.cluster.engines import Cluster, free_port, run, until
from tests.cluster.lab import TIMING, Clock, Disk, DiskIdentity, Lab, LabMember, described, virtual_time

LEARNER = Standing.learner


@pytest.fixture
def clock() -> Iterator[Clock]:
    with virtual_time() as clock:
        yield clock


def bring(lab: Lab, name: str, role: MemberRole = MemberRole.replica) -> LabMember:
    """Start a new member with the topology that an operator would give it; nobody has added it yet."""
    member = LabMember(lab, name, role)
    lab.members[name] = member
    lab.disks += 1
    member.disk = Disk(DiskIdentity(f"{name}-disk-{lab.disks}", joined=False))
    first = lab.first
    lab.first = Configuration(0, [*first.members, described(name, role, LEARNER)])
    member.start()
    lab.first = first
    for other in list(lab.members):
        lab.connect(name, other)
    return member


def change(lab: Lab, leader: str, wanted: Change, *, within: float = 2.0) -> int:
    """Ask until it is taken, then wait until it is committed."""
    taken: list[int] = []

    def asked() -> bool:
        try:
            taken.append(lab[leader].raft.change(wanted))
        except NotYet:
            return False
        return True

    lab.run_until(asked, within=within)
    lab.run_until(lambda: lab[leader].raft.commit_index >= taken[0], within=within)
    return taken[0]


def grown(clock: Clock, name: str = "c", role: MemberRole = MemberRole.replica) -> Lab:
    """a leads a, b and the witness w, with ten entries; `name` has been added and has caught up."""
    lab = Lab(clock, "abw", witnesses="w")
    lab.elect("a")
    lab.propose("a", *[b"%d" % i for i in range(10)])
    bring(lab, name, role)
    change(lab, "a", Add(described(name, role, LEARNER)))
    lab.run_until(lambda: caught_up(lab, name), within=2.0)
    return lab


def caught_up(lab: Lab, name: str) -> bool:
    progress = lab["a"].raft.progress(name)
    return progress is not None and progress.joined and lab[name].log == lab["a"].log


# -- the rules that need no log --------------------------------------------------------------------

THREE = Configuration(
    0, [described("a", MemberRole.replica), described("b", MemberRole.replica), described("w", MemberRole.witness)]
)
FOUR = changed(changed(THREE, Add(described("c", MemberRole.replica, LEARNER))), Promote("c"))


def test_a_change_that_holds_already_changes_nothing() -> None:
    learner = described("c", MemberRole.replica, LEARNER)
    assert changed(FOUR, Add(learner)) is FOUR, "whatever became of it since"
    assert changed(FOUR, Promote("c")) is FOUR
    gone = changed(FOUR, Remove("b"))
    assert changed(gone, Remove("b")) is gone
    assert changed(gone, Promote("c")) is gone
    aside = changed(THREE, Demote("b", away=True))
    assert changed(aside, Demote("b")) is aside
    assert (aside.demoted, aside.voters, aside.quorum) == (["b"], {"a", "w"}, 2)
    assert changed(aside, Promote("b")) == THREE


@pytest.mark.parametrize(
    ("configuration", "wanted", "why"),
    [
        (THREE, Add(described("c", MemberRole.replica)), "c can't begin as a voter"),
        (THREE, Add(described("b", MemberRole.witness, LEARNER)), "b is a member already, with other settings"),
        (changed(FOUR, Remove("b")), Add(described("b", MemberRole.replica, LEARNER)), "a name never comes back"),
        (
            THREE,
            Add(msgspec.structs.replace(described("c", MemberRole.replica, LEARNER), peer_host="a")),
            r"a.peer_port and c.peer_port are both a:1",
        ),
        (THREE, Add(described("c", MemberRole.witness, Standing.read_replica)), "it can't be a read replica"),
        (THREE, Add(described("gateway-x", MemberRole.replica, LEARNER)), "is for gateways"),
        (THREE, Promote("x"), "x is no member; the members are a, b, w"),
        (
            changed(THREE, Add(described("r", MemberRole.replica, Standing.read_replica))),
            Promote("r"),
            "r is a read replica, which never votes",
        ),
        (THREE, Remove("b"), "without b 2 voters are left; at least 3"),
        (THREE, Demote("b"), "without b 2 voters are left; at least 3"),
        (FOUR, Demote("x"), "x is no member"),
        (
            changed(changed(THREE, Add(described("v", MemberRole.witness, LEARNER))), Promote("v")),
            Remove("b"),
            "without b 1 full replicas vote: a witness can't restore the state",
        ),
        (changed(THREE, Demote("b", away=True)), Demote("a", away=True), "0 full replicas vote"),
    ],
)
def test_what_can_not_be_is_refused(configuration: Configuration, wanted: Change, why: str) -> None:
    with pytest.raises(InvalidChange, match=why):
        changed(configuration, wanted)


# -- in a cluster ----------------------------------------------------------------------------------


def test_a_learner_catches_up_and_counts_only_when_promoted(clock: Clock) -> None:
    lab = grown(clock)
    a, c = lab["a"], lab["c"]
    assert a.raft.quorum == 2
    lab["b"].crash()
    lab["w"].crash()
    lab.propose("a", b"needs a majority")
    lab.step()
    lab.run_until(lambda: c.log == a.log, within=1.0)
    assert a.raft.commit_index < a.journal.last_index, "a learner's copy counts for nothing"
    lab.run(2.0)
    assert not a.raft.is_leader and not c.raft.is_leader, "and neither does its answer"
    lab["b"].restart(applied_index=lab["a"].journal.first_index)
    lab.run_until(lambda: lab.leader() is not None, within=3.0)
    leader = lab.leader()
    assert leader is not None
    change(lab, leader.name, Promote("c"))
    assert leader.raft.quorum == 3
    leader.raft.append(b"three of four")
    lab.run_until(lambda: all(m.payloads[-1:] == [b"three of four"] for m in (leader, c)), within=1.0)


def test_all_come_to_the_same_configuration_and_keep_it_over_restarts_and_trimming(clock: Clock) -> None:
    lab = grown(clock)
    change(lab, "a", Promote("c"))
    change(lab, "a", Remove("b"))
    lab["b"].crash()
    lab.propose("a", *[b"later %d" % i for i in range(20)])
    lab.run(0.3)
    for name in "ac":
        lab[name].raft.stored_index = lab[name].raft.applied_index
    lab.run(0.5)
    assert lab["a"].journal.first_index > lab["a"].raft.configuration_index, "its entry is trimmed"
    for name in "acw":
        lab[name].crash()
    for name in "acw":
        lab[name].restart(applied_index=lab[name].disk.commit_index if name != "w" else 0)
    lab.run_until(lambda: lab.leader() is not None, within=3.0)
    for name in "acw":
        assert lab[name].raft.voters == {"a", "c", "w"}, name
        assert lab[name].raft.configuration.removed == ["b"]


def test_one_change_at_a_time_and_none_before_the_first_entry_of_the_term(clock: Clock) -> None:
    """The second half is the bug of 2015 in single-server changes: without it two majorities need not meet."""
    lab = grown(clock)
    a = lab["a"]
    lab["b"].auto_sync = lab["w"].auto_sync = False
    a.raft.change(Promote("c"))
    with pytest.raises(NotYet, match=r"another change, at index .* is not committed yet"):
        a.raft.change(Add(described("d", MemberRole.replica, LEARNER)))
    lab["b"].auto_sync = lab["w"].auto_sync = True
    lab.run(0.3)
    a.raft.change(Add(described("d", MemberRole.replica, LEARNER)))
    lab.run(0.3)
    a.raft.step_down()
    for member in lab.alive:
        member.auto_sync = False
    b = lab["b"].raft
    b._SyncObj__setCurrentTerm(b.term + 1, "b")
    b._SyncObj__onBecomeLeader()
    with pytest.raises(NotYet, match="b has only begun to lead"):
        b.change(Remove("d"))


def test_a_change_that_was_not_committed_goes_with_its_entry(clock: Clock) -> None:
    lab = grown(clock)
    change(lab, "a", Promote("c"))
    a = lab["a"]
    lab.net.part("a", "bcw")
    lab.run(0.01)
    index = a.raft.change(Remove("c"))
    assert a.raft.voters == {"a", "b", "w"}, "it counts at once"
    lab.run_until(lambda: any(lab[name].raft.is_leader for name in "bc"), within=3.0)
    leader = lab.leader()
    assert leader is not None
    leader.raft.append(b"on the other side")
    lab.run(0.3)
    assert leader.raft.voters == {"a", "b", "c", "w"}
    lab.net.heal()
    lab.run_until(lambda: a.raft.voters == {"a", "b", "c", "w"}, within=2.0)
    assert a.raft.configuration_index < index
    lab.run_until(lambda: a.payloads[-1:] == [b"on the other side"], within=2.0)


def test_a_removed_member_gets_nothing_more_and_disturbs_nobody(clock: Clock) -> None:
    lab = grown(clock)
    change(lab, "a", Promote("c"))
    change(lab, "a", Remove("b"))
    term, length = lab["a"].raft.term, lab["b"].journal.last_index
    lab.propose("a", b"without b")
    lab.run(5.0)
    assert lab["a"].raft.is_leader and lab["a"].raft.term == term
    assert lab["b"].journal.last_index == length
    assert lab["c"].payloads[-1] == b"without b"
    assert lab["b"].raft.counters["pre_votes"] > 0, "it did try"


def test_a_removed_member_s_vote_is_not_counted(clock: Clock) -> None:
    lab = grown(clock)
    change(lab, "a", Promote("c"))
    change(lab, "a", Remove("b"))
    lab["a"].crash()
    lab["w"].crash()
    lab.run(10.0)
    assert lab.leader() is None, "c has its own vote and b's, and b's counts no more"


def test_a_learner_on_a_disk_that_has_not_joined_is_not_promoted(clock: Clock) -> None:
    lab = Lab(clock, "abw", witnesses="w")
    lab.elect("a")
    bring(lab, "c")
    lab["a"].raft.change(Add(described("c", MemberRole.replica, LEARNER)))
    with pytest.raises(NotYet):
        lab["a"].raft.change(Promote("c"))
    lab.run(0.2)
    lab["c"].crash()
    lab.run(TIMING.link_silent_ms_max / 1000 + 0.2)
    with pytest.raises(NotYet, match="c is not heard"):
        lab["a"].raft.change(Promote("c"))


def test_a_learner_that_lacks_too_much_is_not_promoted(clock: Clock) -> None:
    lab = Lab(clock, "abw", witnesses="w", settings=RaftSettings(timing=TIMING, promote_lag=5))
    lab.elect("a")
    c = bring(lab, "c")
    change(lab, "a", Add(described("c", MemberRole.replica, LEARNER)))
    lab.run_until(lambda: caught_up(lab, "c"), within=2.0)
    c.auto_sync = False
    lab.propose("a", *[b"%d" % i for i in range(20)])
    lab.run(0.1)
    with pytest.raises(NotYet, match="c lacks 20 entries; at most 5 may lack"):
        lab["a"].raft.change(Promote("c"))
    c.auto_sync = True
    change(lab, "a", Promote("c"))


def test_no_voter_is_taken_away_while_another_s_disk_has_not_caught_up(clock: Clock) -> None:
    lab = grown(clock)
    b = lab["b"]
    b.wipe()
    b.auto_sync = False
    b.restart()
    lab.run(0.3)
    assert not b.raft.joined
    change(lab, "a", Promote("c"))
    assert lab["a"].raft.quorum == 3, "one more who remembers does no harm"
    with pytest.raises(NotYet, match="b is on a new disk and has not caught up"):
        lab["a"].raft.change(Remove("w"))
    change(lab, "a", Remove("b"))


def test_a_witness_that_leads_makes_a_voter_of_the_replica_that_is_back(clock: Clock) -> None:
    """The only full replica that votes lost its disk, and only a snapshot helps it: from the one that was demoted."""
    lab = Lab(clock, "abw", witnesses="w")
    lab.elect("a")
    lab.propose("a", *[b"%d" % i for i in range(10)])
    bring(lab, "v", MemberRole.witness)
    change(lab, "a", Add(described("v", MemberRole.witness, LEARNER)))
    lab.run_until(lambda: caught_up(lab, "v"), within=2.0)
    change(lab, "a", Promote("v"))
    lab["b"].crash()
    lab.run(TIMING.link_silent_ms_max / 1000 + 0.2)
    change(lab, "a", Demote("b", away=True))
    assert lab["a"].raft.voters == {"a", "v", "w"}
    lab["a"].wipe()
    lab["a"].restart()
    lab["b"].restart(applied_index=lab["b"].disk.commit_index)
    lab.run_until(lambda: lab["b"].raft.is_leader, within=5.0)
    assert "b" in lab["b"].raft.voters
    lab.run_until(lambda: lab["a"].raft.joined, within=3.0)


def test_a_leader_does_not_remove_itself(clock: Clock) -> None:
    lab = grown(clock)
    change(lab, "a", Promote("c"))
    for wanted in (Remove("a"), Demote("a")):
        with pytest.raises(InvalidChange, match="a leads: it hands leadership over first"):
            lab["a"].raft.change(wanted)


def test_a_learner_never_campaigns_and_is_never_handed_leadership(clock: Clock) -> None:
    lab = grown(clock)
    for name in "abw":
        lab[name].crash()
    lab.run(5.0)
    assert lab["c"].raft.counters["pre_votes"] == 0 and not lab["c"].raft.is_leader
    lab["c"].raft.received("a", msgspec.convert([8, lab["c"].raft.term], type=_timeout_now(), strict=False))
    lab.run(1.0)
    assert not lab["c"].raft.is_leader


def _timeout_now() -> type:
    from cluster.consensus.messages import TimeoutNow  # noqa: PLC0415

    return TimeoutNow


def test_a_witness_can_be_exchanged(clock: Clock) -> None:
    lab = grown(clock, "v", MemberRole.witness)
    change(lab, "a", Promote("v"))
    change(lab, "a", Remove("w"))
    lab["w"].crash()
    lab["b"].crash()
    lab.propose("a", b"a and v")
    lab.run_until(lambda: lab["a"].payloads[-1:] == [b"a and v"], within=1.0)


def test_a_witness_that_starts_anew_learns_who_the_members_are(clock: Clock) -> None:
    lab = grown(clock)
    change(lab, "a", Promote("c"))
    lab["w"].crash()
    lab.propose("a", *[b"%d" % i for i in range(50)])
    lab.run(0.3)
    for name in "abc":
        lab[name].raft.stored_index = lab[name].raft.applied_index
    lab.run(0.5)
    assert lab["a"].journal.first_index > lab["w"].disk.entries[-1][1], "what it needs is trimmed"
    lab["w"].restart()
    lab.run(0.5)
    assert lab["w"].raft.voters == {"a", "b", "c", "w"}
    lab["w"].crash()
    lab["w"].restart()
    assert lab["w"].raft.voters == {"a", "b", "c", "w"}


# -- real engines ----------------------------------------------------------------------------------


def newcomer(cluster: Cluster, name: str, standing: Standing = LEARNER) -> Member:
    """A certificate and a topology file for one more, as `tiebreak cluster add` makes them."""
    port = free_port(2)
    member = Member(name, "dc-b", MemberRole.replica, "127.0.0.1", port, "127.0.0.1", port + 1, standing)
    make_certificate(cluster.folder / "certs", name)
    return member


async def start_newcomer(cluster: Cluster, member: Member) -> None:
    cluster.topology = msgspec.structs.replace(
        cluster.topology, members=[*cluster.topology.members, member], configuration_index=1
    )
    await cluster.start(member.name)


async def asked(cluster: Cluster, wanted: Change, *, within: float = 10.0) -> None:
    """Ask whoever leads, again when it hands over."""
    loop = asyncio.get_running_loop()
    until_time = loop.time() + within
    while loop.time() < until_time:
        leader = await cluster.leader()
        try:
            await leader.change_membership(wanted, timeout_ms=5000)
        except NotLeader:
            continue
        return
    raise AssertionError(f"nobody took {wanted}")


def holds(cluster: Cluster, names: str, voters: set[str]) -> Callable[[], bool]:
    return lambda: all(cluster.engines[name].group().configuration.voters == voters for name in names.split())


def test_a_replica_is_replaced_on_real_links_and_the_removed_one_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            await cluster.propose(*[b"%d" % i for i in range(200)])
            member = newcomer(cluster, "b2")
            await asked(cluster, Add(member))
            await start_newcomer(cluster, member)
            await asked(cluster, Promote("b2"))
            await until(holds(cluster, "a1 b1 b2 t1", {"a1", "b1", "b2", "t1"}))
            # Whoever leads: the leader hands over when it is the one that goes.
            await asked(cluster, Remove("b1"))
            await until(lambda: any(name == "b1" and code == EXIT_REMOVED for name, code, _ in cluster.left))
            reason = next(reason for name, _, reason in cluster.left if name == "b1")
            assert "b1 was removed from the group at index" in reason
            await cluster.stop("b1")
            await cluster.propose(b"with three again")
            for name in ("a1", "b2"):
                await until(lambda name=name: cluster.delivered[name][-1][1] == b"with three again")  # type: ignore[misc]
            assert [payload for _, payload in cluster.delivered["b2"]] == [
                payload for _, payload in cluster.delivered["a1"]
            ]
            leader = await cluster.leader()
            with pytest.raises(ChangeRefused, match="a name never comes back"):
                await leader.change_membership(Add(newcomer(cluster, "b1")), timeout_ms=1000)

    run(main())


def test_one_that_was_away_finds_those_who_came_meanwhile(tmp_path: Path) -> None:
    """b1 knows only a1, b1 and t1 from its file; z9 dials nobody of an earlier name that it was not told of."""

    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            await cluster.propose(*[b"%d" % i for i in range(20)])
            if (await cluster.leader()).member.name == "b1":
                await cluster.engines["b1"].transfer_leadership("a1", timeout_ms=2000)
            old = cluster.topology
            await cluster.stop("b1")
            for name in ("z9", "a0"):
                member = newcomer(cluster, name)
                await asked(cluster, Add(member))
                await start_newcomer(cluster, member)
                await asked(cluster, Promote(name))
            newer, cluster.topology = cluster.topology, old
            again = await cluster.start("b1")
            cluster.topology = newer
            await until(
                lambda: {peer.name for peer in again.status().peers if peer.connected} == {"a0", "a1", "t1", "z9"}
            )

    run(main())


def test_a_read_replica_serves_reads_and_never_counts(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path, limits=Limits(trim_reserve=10)) as cluster:
            await cluster.propose(*[b"%d" % i for i in range(20)])
            member = newcomer(cluster, "r1", Standing.read_replica)
            await asked(cluster, Add(member))
            await start_newcomer(cluster, member)
            reader = cluster.engines["r1"]
            await until(lambda: len(cluster.delivered["r1"]) == 20)
            assert await reader.read_index(timeout_ms=1000) >= 20
            assert reader.status().standing is Standing.read_replica
            leader = await cluster.leader()
            with pytest.raises(ChangeRefused, match="r1 is a read replica"):
                await leader.change_membership(Promote("r1"), timeout_ms=500)
            [other] = [engine for engine in cluster.others(leader) if engine is not reader]
            await cluster.stop(other.member.name)
            await cluster.stop("t1")
            await until(lambda: not leader.status().has_quorum)
            assert reader.status().role == "follower"

    run(main())


def test_a_change_without_a_majority_is_unknown_and_not_failed(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path, proxied=True) as cluster:
            leader = await cluster.leader()
            asking = asyncio.create_task(leader.change_membership(Add(newcomer(cluster, "b2")), timeout_ms=1500))
            cluster.part(leader.member.name)
            with pytest.raises(ChangeUnknown):
                await asking
            cluster.heal()
            # The same request again settles it.
            await asked(
                cluster, Add((await cluster.leader()).group().configuration.member("b2") or newcomer(cluster, "b2"))
            )

    run(main())


def test_what_may_come_later_is_told_from_what_can_not_be(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            member = newcomer(cluster, "b2")
            await asked(cluster, Add(member))
            leader = await cluster.leader()
            with pytest.raises(ChangeTooEarly, match="b2 has not answered yet"):
                await leader.change_membership(Promote("b2"), timeout_ms=300)
            with pytest.raises(ChangeRefused, match="x9 is no member") as refused:
                await leader.change_membership(Promote("x9"), timeout_ms=300)
            assert not isinstance(refused.value, ChangeTooEarly)

    run(main())


def test_requests_at_once_all_come_true_one_after_the_other(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            leader = await cluster.leader()
            members = [newcomer(cluster, f"r{i}", Standing.read_replica) for i in range(5)]
            groups = await asyncio.gather(
                *(leader.change_membership(Add(member), timeout_ms=5000) for member in members for _ in range(2))
            )
            assert {member.name for member in leader.group().configuration.members} >= {m.name for m in members}
            assert all(group.committed for group in groups)

            assert leader._raft.counters["membership_changes"] == 5

    run(main())
