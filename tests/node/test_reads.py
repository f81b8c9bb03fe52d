"""A read is never older than it may be: confirmed, at a token's index, or told that it can't be served."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cluster.consensus.engine import NoLeader as EngineNoLeader
from cluster.consensus.engine import NoQuorum as EngineNoQuorum
from node.config import NodeTiming
from node.errors import NoLeader, NoQuorum, ReadTimeout
from node.reads import Reads
from tests.node.fakes import Caller, SoloEngine, make_config, running

TIMING = NodeTiming(read_timeout_ms=150, session_wait_ms=40)


class Replica:
    """An index that the group confirmed, and how far this replica is."""

    def __init__(self) -> None:
        self.confirmed = 0
        self.applied = 0
        self.asked = 0
        self.error: Exception | None = None
        self.reads = Reads(self, lambda: self.applied, TIMING)

    async def read_index(self, *, timeout_ms: int) -> int:
        self.asked += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return self.confirmed

    def apply(self, index: int) -> None:
        self.applied = index
        self.reads.applied(index)


def run(talk: Callable[[Replica], Awaitable[None]]) -> None:
    async def main() -> None:
        await talk(Replica())

    asyncio.run(main())


def test_a_linearizable_read_waits_until_it_is_applied_here() -> None:
    async def talk(replica: Replica) -> None:
        replica.confirmed = 7
        read = asyncio.create_task(replica.reads.linearizable())
        for index in (5, 6):
            replica.apply(index)
            await asyncio.sleep(0.005)
            assert not read.done()
        replica.apply(7)
        assert await read == 7

    run(talk)


def test_a_replica_that_lags_says_so_in_time() -> None:
    async def talk(replica: Replica) -> None:
        replica.confirmed = 7
        began = time.monotonic()
        with pytest.raises(ReadTimeout):
            await replica.reads.linearizable()
        assert 0.1 < time.monotonic() - began < 1
        replica.apply(7)
        assert replica.reads.waiting == 0

    run(talk)


@pytest.mark.parametrize(("raised", "told"), [(EngineNoLeader(), NoLeader), (EngineNoQuorum(), NoQuorum)])
def test_what_can_not_be_confirmed_is_not_served(raised: Exception, told: type[Exception]) -> None:
    async def talk(replica: Replica) -> None:
        replica.error = raised
        with pytest.raises(told):
            await replica.reads.linearizable()

    run(talk)


def test_a_token_is_served_here_when_this_replica_is_far_enough() -> None:
    async def talk(replica: Replica) -> None:
        replica.apply(7)
        assert await replica.reads.at_least(7) == 7
        read = asyncio.create_task(replica.reads.at_least(8))
        await asyncio.sleep(0.005)
        replica.apply(8)
        assert await read == 8
        assert replica.asked == 0

    run(talk)


def test_a_token_ahead_goes_to_the_leader_and_never_gets_an_older_answer() -> None:
    async def talk(replica: Replica) -> None:
        replica.apply(7)
        replica.confirmed = 9
        read = asyncio.create_task(replica.reads.at_least(8))
        await asyncio.sleep(0.06)
        replica.apply(9)
        assert await read == 9
        assert replica.asked == 1
        with pytest.raises(ReadTimeout, match="not known to the leader"):
            await replica.reads.at_least(10)

    run(talk)


def test_many_reads_wait_each_for_its_own() -> None:
    async def talk(replica: Replica) -> None:
        waits = [asyncio.create_task(replica.reads.reached(index, timeout_s=1)) for index in (5, 3, 4, 3, 9)]
        await asyncio.sleep(0.005)
        replica.apply(4)
        await asyncio.sleep(0.005)
        assert [wait.done() for wait in waits] == [False, True, True, True, False]
        replica.apply(5)
        assert await waits[0]
        waits[4].cancel()
        replica.apply(9)
        assert replica.reads.waiting == 0

    run(talk)


def test_who_gives_up_is_forgotten() -> None:
    async def talk(replica: Replica) -> None:
        left = await asyncio.gather(*(replica.reads.reached(index, timeout_s=0.01) for index in range(1, 101)))
        assert left == [False] * 100
        assert replica.reads.waiting == 0
        stays = asyncio.create_task(replica.reads.reached(200, timeout_s=1))
        goes = asyncio.create_task(replica.reads.reached(150, timeout_s=1))
        await asyncio.sleep(0.005)
        goes.cancel()
        await asyncio.sleep(0.005)
        assert goes.cancelled()
        replica.apply(200)
        assert await stays

    run(talk)


def test_reads_over_http(tmp_path: Path) -> None:
    async def main() -> None:
        engine = SoloEngine()
        async with running(make_config(tmp_path, timing=TIMING), engine) as caller:
            await caller.list_market()
            await _read_all_ways(caller, engine)

    asyncio.run(main())


async def _read_all_ways(caller: Caller, engine: SoloEngine) -> None:
    node, path = caller.node, "/v1/accounts/alice"
    index = node.machine.applied_index
    status, _, headers = await caller.call("GET", path)
    assert (status, headers["X-Log-Index"]) == (200, str(index))
    engine.refuse = EngineNoQuorum()
    status, error, _ = await caller.call("GET", path)
    assert (status, error["error"]) == (503, "no_quorum")
    status, _, headers = await caller.call("GET", path + "?consistency=local")
    assert (status, headers["X-Log-Index"]) == (200, str(index))
    token = node.session_tokens.issue(index)
    status, _, _ = await caller.call("GET", path, headers={"X-Session-Token": token})
    assert status == 200
    ahead = node.session_tokens.issue(index + 1)
    for query in ("", "?consistency=local"):
        status, error, _ = await caller.call("GET", path + query, headers={"X-Session-Token": ahead})
        assert (status, error["error"]) == (503, "no_quorum")
    status, error, _ = await caller.call("GET", path, headers={"X-Session-Token": token[:-2] + "AA"})
    assert (status, error["error"], error["field"]) == (422, "invalid_field", "X-Session-Token")
    status, error, _ = await caller.call("GET", "/readyz", key="")
    assert status == 503
    engine.refuse = None
    await asyncio.sleep(0.25)
    status, _, _ = await caller.call("GET", "/readyz", key="")
    assert status == 200
