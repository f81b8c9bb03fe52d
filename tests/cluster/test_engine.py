"""Three real engines on one loop: order, fail-over, restart, catching up, reads, refusals, leaving."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import lmdb
import msgspec
import pytest

from cluster.consensus.engine import NoLeader, NoQuorum, NotLeader, Overloaded, Role
from cluster.consensus.journal import JournalRefused
from cluster.consensus.settings import (
    EXIT_APPLY_FAILED,
    EXIT_DISK_FAILED,
    PAYLOAD_BYTES_MAX,
    EngineSettings,
    Limits,
)
from cluster.consensus.transport import wall_us
from cluster.topology import MemberRole
from tests.cluster.engines import Cluster, run, until


def numbered(first: int, count: int) -> list[bytes]:
    return [b"%d" % i for i in range(first, first + count)]


def payloads(cluster: Cluster, name: str) -> list[bytes]:
    return [payload for _, payload in cluster.delivered[name]]


def test_every_replica_applies_the_same_in_order_and_the_witness_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            sent = numbered(0, 2000)
            for i in range(0, 2000, 100):
                await cluster.propose(*sent[i : i + 100])
            await until(lambda: payloads(cluster, "a1") == payloads(cluster, "b1") == sent)
            assert cluster.delivered["a1"] == cluster.delivered["b1"]
            assert cluster.delivered["t1"] == []
            witness, last_index = cluster.engines["t1"], cluster.delivered["a1"][-1][0]
            await until(lambda: witness.status().durable_index >= last_index)
        assert cluster.left == []

    run(main())


def test_followers_learn_of_a_commit_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            leader = await cluster.leader()
            [follower] = cluster.others(leader)
            loop = asyncio.get_running_loop()
            waits = []
            for i in range(20):
                start = loop.time()
                leader.propose(b"%d" % i)
                await until(lambda i=i: len(cluster.delivered[follower.member.name]) == i + 1)  # type: ignore[misc]
                waits.append(loop.time() - start)
            # Without it each would wait for the next heartbeat: 25 ms in the middle.
            assert sorted(waits)[10] < 0.02

    run(main())


def test_another_leads_within_a_second_and_nothing_is_lost(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            await cluster.propose(*numbered(0, 100))
            old = await cluster.leader()
            await cluster.stop(old.member.name)
            took = await until(lambda: cluster.leader_or_none() is not None)
            assert took < 1.0
            new = await cluster.leader()
            assert new.member.name != old.member.name
            await cluster.propose(*numbered(100, 10), engine=new)
            assert payloads(cluster, new.member.name) == numbered(0, 110)

    run(main())


@pytest.mark.parametrize("applied_index", [0, 40, 101])
def test_after_a_restart_each_entry_comes_once(tmp_path: Path, applied_index: int) -> None:
    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            await cluster.propose(*numbered(0, 100))
            await until(lambda: len(cluster.delivered["b1"]) == 100)
            before = cluster.delivered["b1"]
            for name in cluster.names:
                await cluster.stop(name)
            for name in cluster.names:
                await cluster.start(name, applied_index=applied_index)
            await cluster.propose(b"more")
            await until(lambda: payloads(cluster, "b1")[-1:] == [b"more"])
            assert cluster.delivered["b1"][:-1] == [entry for entry in before if entry[0] > applied_index]

    run(main())


def test_a_replica_far_behind_catches_up(tmp_path: Path) -> None:
    async def main() -> None:
        # Little stays in memory, so that most is read back from the disk.
        limits = Limits(tail_bytes_max=100_000)
        async with Cluster(tmp_path, limits=limits) as cluster:
            leader = await cluster.leader()
            [behind] = cluster.others(leader)
            await cluster.stop(behind.member.name)
            for i in range(0, 20_000, 1000):
                await cluster.propose(*[b"%d" % n * 40 for n in range(i, i + 1000)])
            await cluster.start(behind.member.name)
            await until(lambda: len(cluster.delivered[behind.member.name]) == 20_000, within=10)
            assert cluster.delivered[behind.member.name] == cluster.delivered[leader.member.name]

    run(main())


def test_reads_are_confirmed_by_any_replica_and_refused_without_a_majority(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            await cluster.propose(b"x")
            leader = await cluster.leader()
            [follower] = cluster.others(leader)
            index = cluster.delivered[leader.member.name][-1][0]
            assert await leader.read_index(timeout_ms=1000) == index
            assert await follower.read_index(timeout_ms=1000) == index
            found = await asyncio.gather(*[engine.read_index(timeout_ms=1000) for engine in [leader, follower] * 200])
            assert set(found) == {index}
            with pytest.raises(NoLeader):
                await cluster.engines["t1"].read_index(timeout_ms=1000)
            await cluster.stop("t1")
            await cluster.stop(follower.member.name)
            loop = asyncio.get_running_loop()
            start = loop.time()
            with pytest.raises((NoQuorum, NoLeader)):
                await leader.read_index(timeout_ms=400)
            assert 0.3 < loop.time() - start < 0.6
            await until(lambda: leader.status().role is not Role.leader, within=1)
            with pytest.raises(NotLeader):
                leader.propose(b"refused")
            with pytest.raises(NoQuorum, match="reaches 1 of 3 voters"):
                await leader.read_index(timeout_ms=100)

    run(main())


def test_a_deposed_leaders_tail_is_never_applied(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path, proxied=True) as cluster:
            await cluster.propose(*numbered(0, 10))
            old = await cluster.leader()
            name = old.member.name
            [other] = cluster.others(old)
            await until(lambda: len(cluster.delivered[other.member.name]) == 10)
            cluster.part(name)
            for ghost in (b"ghost1", b"ghost2"):
                old.propose(ghost)
            await until(lambda: other.status().role is Role.leader, within=3)
            assert old.status().role is not Role.leader
            await cluster.propose(*numbered(10, 10), engine=other)
            cluster.heal()
            await until(lambda: payloads(cluster, name) == numbered(0, 20), within=5)
            assert old.counters["truncations"] == 1
            term = other.status().term
            await asyncio.sleep(0.5)
            # Its return deposed nobody.
            assert (other.status().role, other.status().term) == (Role.leader, term)
        assert cluster.left == []

    run(main())


def test_leadership_is_transferred_on_request(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            await cluster.propose(*numbered(0, 50))
            leader = await cluster.leader()
            [other] = cluster.others(leader)
            loop = asyncio.get_running_loop()
            start = loop.time()
            transfer = loop.create_task(leader.transfer_leadership(other.member.name, timeout_ms=2000))
            await asyncio.sleep(0)
            with pytest.raises(NotLeader):
                leader.propose(b"not while leadership moves")
            assert await transfer
            assert loop.time() - start < 0.2
            assert leader.status().leader == other.member.name
            await cluster.propose(b"next", engine=other)
            assert await leader.transfer_leadership(other.member.name, timeout_ms=100)
            assert not await leader.transfer_leadership(leader.member.name, timeout_ms=100)

    run(main())


def test_a_transfer_that_can_not_succeed_ends_in_time_and_the_leader_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            leader = await cluster.leader()
            [other] = cluster.others(leader)
            await cluster.stop(other.member.name)
            assert not await leader.transfer_leadership(other.member.name, timeout_ms=300)
            assert not await leader.transfer_leadership("nobody", timeout_ms=300)
            await cluster.propose(b"goes on", engine=leader)

    run(main())


def test_what_is_refused_was_not_logged(tmp_path: Path) -> None:
    async def main() -> None:
        limits = Limits(uncommitted_entries_max=100, uncommitted_bytes_max=10_000)
        async with Cluster(tmp_path, limits=limits) as cluster:
            leader = await cluster.leader()
            [follower] = cluster.others(leader)
            last = leader.status().last_index
            for engine in (follower, cluster.engines["t1"]):
                with pytest.raises(NotLeader):
                    engine.propose(b"x")
            with pytest.raises(ValueError, match="at most"):
                leader.propose(b"x" * (PAYLOAD_BYTES_MAX + 1))
            with pytest.raises(Overloaded):
                leader.propose(b"x" * 10_001)
            for _ in range(100):
                leader.propose(b"x")
            with pytest.raises(Overloaded, match="100 entries"):
                leader.propose(b"x")
            await until(lambda: leader.status().commit_index == last + 100)
            assert leader.status().last_index == last + 100
            leader.propose(b"room again")

    run(main())


def test_the_largest_payload_passes(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            await cluster.propose(b"x" * PAYLOAD_BYTES_MAX, b"small")
            await until(lambda: len(cluster.delivered["a1"]) == len(cluster.delivered["b1"]) == 2)
        assert cluster.left == []

    run(main())


def test_a_full_disk_refuses_proposals_and_trims_nothing_that_is_needed(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path, limits=Limits(journal_bytes_max=200_000, trim_reserve=0)) as cluster:
            leader = await cluster.leader()
            [follower] = cluster.others(leader)
            await cluster.propose(*[b"%d" % i * 200 for i in range(500)])
            for engine in (leader, follower):
                await until(lambda engine=engine: engine._disk_full is not None)  # type: ignore[misc]
            with pytest.raises(Overloaded, match="at most 200000"):
                leader.propose(b"x")
            assert leader.status().first_index == 1
            stored = leader.status().applied_index
            leader.set_stored_index(stored)
            await asyncio.sleep(0.3)
            assert leader.status().first_index == 1  # the other replica has not stored it
            follower.set_stored_index(stored)
            await until(lambda: all(e.status().first_index == stored for e in cluster.engines.values()))
            await until(lambda: not leader.status().refusal)  # nor of a majority's
            await cluster.propose(b"room again", engine=leader)

    run(main())


def test_an_error_in_on_committed_leaves_with_its_code(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            leader = await cluster.leader()

            def fails(_index: int, _payload: bytes) -> None:
                raise ValueError("a bug")

            leader.on_committed = fails
            leader.propose(b"x")
            leader.propose(b"y")
            await until(lambda: bool(cluster.left))
            await asyncio.sleep(0.1)
            assert [(name, code) for name, code, _ in cluster.left] == [(leader.member.name, EXIT_APPLY_FAILED)]
            assert "index 3" in cluster.left[0][2]

    run(main())


def test_a_failed_write_leaves_with_its_code_and_acknowledges_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            leader = await cluster.leader()
            before = leader.status()

            def no_write(_changes: object) -> None:
                raise lmdb.DiskError("Input/output error")

            leader._journal._storage.write = no_write  # type: ignore[method-assign]
            leader.propose(b"x")
            await until(lambda: bool(cluster.left))
            assert [(name, code) for name, code, _ in cluster.left] == [(leader.member.name, EXIT_DISK_FAILED)]
            assert leader.status().durable_index == before.durable_index
            assert cluster.delivered[leader.member.name] == []

    run(main())


def test_errors_in_other_callbacks_stay_there(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            leader = await cluster.leader()
            [follower] = cluster.others(leader)

            def fails(*_: object) -> None:
                raise ValueError("a bug")

            follower.on_message = fails
            follower.on_role = fails
            assert leader.send(follower.member.name, "kind", b"body")
            await cluster.propose(b"x", engine=leader)
            await until(lambda: len(cluster.delivered[follower.member.name]) == 1)
        assert cluster.left == []

    run(main())


def test_application_messages_reach_the_member_they_are_for(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            await cluster.leader()
            assert cluster.engines["a1"].send("b1", "forward", b"body")
            await until(lambda: cluster.messages == [("b1", "a1", "forward", b"body")])
            assert not cluster.engines["a1"].send("nobody", "forward", b"body")
            await cluster.stop("b1")
            await until(lambda: not cluster.engines["a1"].send("b1", "forward", b"body"))

    run(main())


def test_a_member_with_a_wrong_clock_does_not_lead_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        cluster = Cluster(tmp_path)
        cluster.clock_of["b1"] = lambda: wall_us() + 3_600_000_000
        async with cluster:
            await until(lambda: cluster.engines["b1"]._guard.barred is not None)
            await until(lambda: cluster.engines["a1"].status().role is Role.leader)
            offsets = {peer.name: peer.clock_offset_ms for peer in cluster.engines["a1"].status().peers}
            assert abs((offsets["b1"] or 0) - 3_600_000) < 100
            assert abs(offsets["t1"] or 0) < 100
            assert cluster.engines["b1"].status().barred.startswith("clock is 3600000 ms from the median of 3")
            assert cluster.engines["a1"].status().barred == ""
            await cluster.stop("a1")
            await asyncio.sleep(1.5)
            assert cluster.leader_or_none() is None
            with pytest.raises(NotLeader):
                cluster.engines["b1"].propose(b"x")

    run(main())
    assert "b1 may not lead: clock is 3600000 ms from the median" in caplog.text


def test_a_leader_whose_clock_is_set_leads_no_more(tmp_path: Path) -> None:
    """At the next look, not when enough new answers have come to outweigh those that were measured before."""

    async def main() -> None:
        cluster = Cluster(tmp_path)
        set_us = {"a1": 0, "b1": 0}

        def clock(name: str) -> Callable[[], int]:
            return lambda: wall_us() + set_us[name]

        cluster.clock_of = {name: clock(name) for name in set_us}
        async with cluster:
            engine = await cluster.leader()
            leader = engine.member.name
            await until(lambda: all(peer.clock_offset_ms is not None for peer in engine.status().peers))
            engine._links.peers["t1"].clock.add = lambda *_: None  # type: ignore[method-assign]
            set_us[leader] = 3_600_000_000
            assert all(abs((peer.clock_offset_ms or 0) + 3_600_000) < 100 for peer in engine.status().peers)
            await until(lambda: engine._guard.barred is not None)
            await until(lambda: cluster.leader_or_none() not in (None, engine))
            set_us[leader] = 0
            await until(lambda: engine._guard.barred is None)

    run(main())


def test_a_delay_stands_for_the_distance_between_sites(tmp_path: Path) -> None:
    async def main() -> None:
        cluster = Cluster(tmp_path)
        cluster.settings_of = lambda s: msgspec.structs.replace(s, delay_ms=dict.fromkeys(cluster.names, 20.0))
        async with cluster:
            leader = await cluster.leader()
            start = time.monotonic()
            await cluster.propose(b"x", engine=leader)
            # There and back; the loop's timers count whole milliseconds.
            assert 0.036 <= time.monotonic() - start < 0.1

    run(main())


def test_a_journal_that_does_not_fit_the_store_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            await cluster.propose(*numbered(0, 10))
            await cluster.stop("b1")
            with pytest.raises(JournalRefused, match="store has applied 500, the journal ends at"):
                await cluster.start("b1", applied_index=500)
            await cluster.start("b1")

    run(main())


def test_a_foreign_journal_and_a_second_start_are_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            with pytest.raises(JournalRefused, match="in use"):
                await cluster.start("b1")
            await cluster.stop("b1")

            def with_a1s_folder(settings: EngineSettings) -> EngineSettings:
                return msgspec.structs.replace(settings, folder=tmp_path / "t1")

            await cluster.stop("t1")
            cluster.settings_of = with_a1s_folder
            with pytest.raises(JournalRefused, match="member is 't1', this member's is 'b1'"):
                await cluster.start("b1")

    run(main())


def test_two_and_two_and_one_survives_the_loss_of_a_site(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path, "2+2+1") as cluster:
            await cluster.propose(*numbered(0, 50))
            leader = await cluster.leader()
            site = leader.member.site
            for name in [m.name for m in cluster.topology.members if m.site == site]:
                await cluster.stop(name)
            new = await cluster.leader(within=3)
            assert new.member.site != site
            assert new.member.role is MemberRole.replica
            await cluster.propose(*numbered(50, 10), engine=new)
            assert payloads(cluster, new.member.name) == numbered(0, 60)

    run(main())
