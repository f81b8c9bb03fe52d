"""Who may drop which entries: replicas go on without one that is away, witnesses keep what it lacks."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from cluster.consensus.engine import Overloaded
from cluster.consensus.raft import RaftSettings
from cluster.consensus.settings import EngineSettings, Limits
from tests.cluster.engines import Cluster, run, until
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
    assert lab["b"].raft.joined
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


def test_at_the_witness_s_limit_the_one_that_is_away_goes_aside_until_it_is_back(tmp_path: Path) -> None:
    """By a log entry first, only then does the witness trim; and its vote comes back when it has caught up."""

    async def main() -> None:
        small = Limits(journal_bytes_max=400_000, trim_reserve=0)

        def limit_the_witness(settings: EngineSettings) -> EngineSettings:
            return msgspec.structs.replace(settings, limits=small) if settings.member == "t1" else settings

        cluster = Cluster(tmp_path, limits=Limits(trim_reserve=0))
        cluster.settings_of = limit_the_witness
        async with cluster:
            leader = await cluster.leader()
            [other] = cluster.others(leader)
            away = other.member.name
            await cluster.stop(away)
            witness = cluster.engines["t1"]

            async def write(enough: Callable[[], bool]) -> None:
                while not enough():
                    try:
                        await cluster.propose(*[b"%d" % i * 200 for i in range(50)], engine=leader)
                    except Overloaded as refused:
                        assert "the log of" in str(refused) and "at its limit" in str(refused)
                    leader.set_stored_index(leader.status().applied_index)
                    await asyncio.sleep(0.05)

            await asyncio.wait_for(write(lambda: witness.status().first_index > 1), timeout=20)
            group = leader.group()
            assert group.configuration.demoted == [away]
            assert away not in group.configuration.voters
            assert witness.group().index == group.index > 0, "the witness had the entry before it trimmed"
            await asyncio.wait_for(write(lambda: not leader.status().refusal), timeout=20)
            again = await cluster.start(away)
            await until(lambda: away in leader.group().configuration.voters, within=10)
            await until(lambda: again.group() == leader.group() and leader.group().committed)
            assert leader.group().configuration.demoted == []

    run(main())
