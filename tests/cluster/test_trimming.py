"""Who may drop which entries: replicas go on without one that is away, witnesses keep what it lacks."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cluster.consensus.engine import Overloaded
from cluster.consensus.raft import RaftSettings
from cluster.consensus.settings import Limits
from tests.cluster.engines import Cluster, run
from tests.cluster.lab import TIMING, Clock, Lab, LabMember, virtual_time

SETTINGS = RaftSettings(timing=TIMING, trim_reserve=5, laggard_entries=50, laggard_bytes=1 << 30, laggard_ms=60_000)


@pytest.fixture
def clock() -> Iterator[Clock]:
    with virtual_time() as clock:
        yield clock


def store(*members: LabMember) -> None:
    for member in members:
        member.raft.stored_index = member.raft.applied_index


def without_b(clock: Clock, **settings: int) -> Lab:
    """a leads, all have stored 10 entries; then b is away."""
    lab = Lab(clock, "abw", witnesses="w", settings=msgspec.structs.replace(SETTINGS, **settings))
    lab.elect("a")
    lab.propose("a", *(b"%d" % i for i in range(10)))
    lab.run(0.3)
    store(lab["a"], lab["b"])
    lab.run(0.3)
    lab["b"].crash()
    return lab


def write(lab: Lab, count: int) -> None:
    for start in range(0, count, 10):
        lab.propose("a", *(b"%d" % i for i in range(start, start + 10)))
        lab.run(0.05)
        store(lab["a"])
    lab.run(0.3)


def test_a_replica_that_is_away_is_waited_for_within_the_reserve(clock: Clock) -> None:
    lab = without_b(clock)
    before = lab["a"].journal.first_index
    write(lab, 30)
    lab.run(2.0)
    assert lab["a"].journal.first_index == lab["w"].journal.first_index == before
    lab["b"].restart(applied_index=10)
    lab.run(0.5)
    assert lab["b"].raft.applied_index == lab["a"].raft.applied_index


@pytest.mark.parametrize(
    ("settings", "count", "seconds"),
    [({}, 60, 2.0), ({"laggard_bytes": 40}, 30, 2.0), ({"laggard_ms": 3000}, 30, 4.0)],
    ids=["entries", "bytes", "age"],
)
def test_beyond_the_reserve_a_replica_goes_on_and_a_witness_keeps(
    clock: Clock, settings: dict[str, int], count: int, seconds: float
) -> None:
    lab = without_b(clock, **settings)
    kept = lab["w"].journal.first_index
    write(lab, count)
    lab.run(seconds)
    a = lab["a"]
    assert a.journal.first_index == a.raft.stored_index - SETTINGS.trim_reserve
    assert lab["w"].journal.first_index == kept, "the witness has what b lacks"
    lab["b"].restart(applied_index=10)
    lab.run(0.5)
    assert a.raft.stranded == ["b"]
    assert lab["b"].raft.voter
    assert lab["b"].raft.commit_index < a.journal.first_index, "nothing was committed over a gap"


def test_a_replica_that_is_heard_is_always_waited_for(clock: Clock) -> None:
    lab = without_b(clock)
    before = lab["a"].journal.first_index
    lab["b"].restart(applied_index=10)
    write(lab, 100)
    # b is there, but its store does not keep up.
    assert lab["b"].raft.applied_index == lab["a"].raft.applied_index
    assert lab["a"].journal.first_index == lab["w"].journal.first_index == before
    store(lab["b"])
    lab.run(0.3)
    for member in lab.alive:
        assert member.journal.first_index == lab["a"].raft.stored_index - SETTINGS.trim_reserve


def test_a_snapshot_under_way_holds_the_log_behind_it(clock: Clock) -> None:
    lab = without_b(clock)
    lab["a"].raft.hold_index = 20
    write(lab, 100)
    lab.run(2.0)
    assert lab["a"].journal.first_index == 20
    lab["a"].raft.hold_index = None
    lab.run(0.3)
    assert lab["a"].journal.first_index > 20


def test_a_follower_bounds_its_own_log(clock: Clock) -> None:
    """c is away; b follows a and stores, so its log need not grow either."""
    lab = Lab(clock, "abcdw", witnesses="w", settings=SETTINGS)
    lab.elect("a")
    lab["c"].crash()
    write(lab, 100)
    store(lab["b"], lab["d"])
    lab.run(2.0)
    assert lab["b"].journal.first_index == lab["b"].raft.stored_index - SETTINGS.trim_reserve
    assert lab["w"].journal.first_index == 1


def test_a_leader_knows_when_a_majority_has_no_room(clock: Clock) -> None:
    lab = without_b(clock)
    assert lab["a"].raft.room_for_quorum
    lab["w"].raft.log_full = True
    lab.run(0.2)
    assert lab["a"].raft.full_members == ["w"]
    assert not lab["a"].raft.room_for_quorum
    lab["b"].restart(applied_index=10)
    lab.run(0.2)
    assert lab["a"].raft.room_for_quorum, "b is enough"


def test_a_witness_at_its_limit_stops_writes_rather_than_trim(tmp_path: Path) -> None:
    async def main() -> None:
        limits = Limits(journal_bytes_max=400_000, trim_reserve=0, laggard_entries=200)
        async with Cluster(tmp_path, limits=limits) as cluster:
            leader = await cluster.leader()
            [other] = cluster.others(leader)
            await cluster.stop(other.member.name)
            await asyncio.sleep(1.2)  # heard a moment ago, it would be waited for
            witness = cluster.engines["t1"]

            async def write() -> None:
                while True:
                    await cluster.propose(*[b"%d" % i * 200 for i in range(50)], engine=leader)
                    leader.set_stored_index(leader.status().applied_index)
                    await asyncio.sleep(0.05)

            with pytest.raises(Overloaded, match="the log of t1 is at its limit"):
                await asyncio.wait_for(write(), timeout=10)
            assert leader.status().first_index > 200, "the leader's own log is short"
            assert witness.status().first_index == 1
            assert "at most 400000" in witness.status().refusal
            assert [peer.log_full for peer in leader.status().peers if peer.name == "t1"] == [True]

    run(main())
