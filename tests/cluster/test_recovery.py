"""A majority is lost for good: the survivors go on by an operator's decision, under a new epoch, and grow again."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from cluster.certificates import make_certificate
from cluster.consensus.engine import NotLeader
from cluster.consensus.journal import JournalRefused
from cluster.consensus.recovery import CanNotRecover, force_configuration, forced_configuration, inspect_journal
from cluster.consensus.storage import LmdbStorage
from cluster.membership import Add, Change, Promote
from cluster.topology import Member, MemberRole, Standing
from tests.cluster.engines import Cluster, free_port, run, until


async def ended(cluster: Cluster, payloads: int) -> None:
    """Write, then stop everybody."""
    await cluster.propose(*[b"%d" % i for i in range(payloads)])
    await until(lambda: all(len(cluster.delivered[name]) == payloads for name in ("a1", "b1")))
    for name in list(cluster.engines):
        await cluster.stop(name)


def recover(cluster: Cluster, *survivors: str) -> None:
    """What `tiebreak cluster recover` does."""
    topology = cluster.topology
    left = [inspect_journal(cluster.folder / name, cluster_id=topology.cluster_id, member=name) for name in survivors]
    known = max((one for one in left if one.configuration), key=lambda one: one.configuration_index).configuration
    assert known is not None
    forced = forced_configuration(topology, known, list(survivors))
    for name in survivors:
        force_configuration(cluster.folder / name, forced, cluster_id=topology.cluster_id, member=name)
    cluster.topology = msgspec.structs.replace(
        topology, members=forced.members, epoch=forced.generation, configuration_index=1
    )


async def asked(cluster: Cluster, wanted: Change) -> None:
    while True:
        try:
            await (await cluster.leader()).change_membership(wanted, timeout_ms=5000)
        except NotLeader:
            await asyncio.sleep(0.01)
        else:
            return


async def grow(cluster: Cluster, name: str, role: MemberRole) -> None:
    port = free_port(2)
    member = Member(name, "dc-b", role, "127.0.0.1", port, "127.0.0.1", port + 1, Standing.learner)
    make_certificate(cluster.folder / "certs", name)
    await asked(cluster, Add(member))
    cluster.topology = msgspec.structs.replace(cluster.topology, members=[*cluster.topology.members, member])
    await cluster.start(name)
    await asked(cluster, Promote(name))


def test_one_survivor_goes_on_alone_and_grows_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            await ended(cluster, 300)
            old = cluster.topology
            recover(cluster, "a1")
            await cluster.start("a1")
            leader = await cluster.leader()
            assert await leader.read_index(timeout_ms=1000) >= 300
            assert len(cluster.delivered["a1"]) == 300
            assert leader.group().configuration.removed == ["b1", "t1"]
            assert leader.group().index > 300, "it is in the log now, for those who join"
            await grow(cluster, "b2", MemberRole.replica)
            await grow(cluster, "t2", MemberRole.witness)
            await cluster.propose(b"three again")
            await until(lambda: len(cluster.delivered["b2"]) == 301)
            # One of those who were lost comes back, with its old topology: it is of another history.
            cluster.topology, now = old, cluster.topology
            lost = await cluster.start("b1")
            cluster.topology = now
            await asyncio.sleep(0.5)
            assert [peer.name for peer in lost.status().peers if peer.connected] == []
            refused = cluster.engines["a1"].counters
            assert refused["refused_cluster"] + refused["refused_stranger"] > 0

    run(main())


def test_the_newest_log_among_the_survivors_leads_even_a_witness_s(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path, "2+2+1") as cluster:
            await cluster.propose(*[b"%d" % i for i in range(20)])
            leader = await cluster.leader()
            behind = next(name for name in ("a1", "a2", "b1", "b2") if name != leader.member.name)
            await until(lambda: len(cluster.delivered[behind]) == 20)
            await cluster.stop(behind)
            await cluster.propose(b"only the others have it", engine=leader)
            last_index = leader.status().commit_index
            await until(lambda: cluster.engines["t1"].status().durable_index >= last_index)
            for name in list(cluster.engines):
                await cluster.stop(name)
            recover(cluster, behind, "t1")
            await cluster.start("t1")
            await cluster.start(behind)
            await until(lambda: len(cluster.delivered[behind]) == 21)
            assert cluster.delivered[behind][-1][1] == b"only the others have it"

    run(main())


def test_who_can_not_recover_is_told_why(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            topology = cluster.topology
            with pytest.raises(JournalRefused, match="is in use by another process"):
                inspect_journal(tmp_path / "a1", cluster_id=topology.cluster_id, member="a1")
            await ended(cluster, 3)
            known = inspect_journal(tmp_path / "a1", cluster_id=topology.cluster_id, member="a1").configuration
            assert known is not None
            for survivors, why in (
                (["t1"], "without a full replica nobody has the state"),
                (["x9"], r"\['x9'\]: survivors are some of"),
                ([], "nobody: survivors are some of"),
            ):
                with pytest.raises(CanNotRecover, match=why):
                    forced_configuration(topology, known, survivors)
            forced = forced_configuration(topology, known, ["a1"])
            with pytest.raises(CanNotRecover, match=r"b1 is not among \['a1'\]"):
                force_configuration(tmp_path / "b1", forced, cluster_id=topology.cluster_id, member="b1")
            LmdbStorage(tmp_path / "new", cluster_id=topology.cluster_id, member="a1").close()
            with pytest.raises(CanNotRecover, match="had not caught up"):
                force_configuration(tmp_path / "new", forced, cluster_id=topology.cluster_id, member="a1")
            force_configuration(tmp_path / "a1", forced, cluster_id=topology.cluster_id, member="a1")
            force_configuration(tmp_path / "a1", forced, cluster_id=topology.cluster_id, member="a1")
            older = msgspec.structs.replace(forced, generation=1)
            with pytest.raises(CanNotRecover, match="is of generation 2, newer than 1"):
                force_configuration(tmp_path / "a1", older, cluster_id=topology.cluster_id, member="a1")

    run(main())
