"""Leaving: leadership goes to a replica that stays, and nobody waits for one that does not."""

import asyncio
import time
from pathlib import Path

import pytest

from cluster.consensus.engine import EngineStatus, PeerStatus, Role
from node import leaving
from node.config import NodeTiming
from node.leaving import FRESH_S, LEAVING, Leaving
from tests.node.fakes import SoloEngine, make_config, running

PATIENT = NodeTiming(flush_ms=50, drain_ms=20_000, command_timeout_ms=2_000)


class Group(SoloEngine):
    """A leader that hands leadership over after a while, or never. asked: to whom."""

    def __init__(self, *others: str, takes_s: float = 60.0) -> None:
        super().__init__(others=(*others, "tiebreaker"))
        self.gone: set[str] = set()
        self.asked: list[str | None] = []
        self.takes_s = takes_s

    def status(self) -> EngineStatus:
        status = super().status()
        for number, name in enumerate(self.others):
            status.peers[number] = PeerStatus(name, name not in self.gone, number, 0, 1)
        return status

    async def transfer_leadership(self, target: str | None, *, timeout_ms: int) -> bool:
        self.asked.append(target)
        await asyncio.sleep(self.takes_s)
        return True


def hand_over(engine: Group, *, heard: tuple[str, ...] = ()) -> bool:
    async def main() -> bool:
        on_the_way = Leaving(engine, lambda: ("dc-a", "dc-b", "dc-c"))
        for name in heard:
            on_the_way.heard(name)
        return await on_the_way.hand_over(timeout_ms=5_000)

    began = time.monotonic()
    moved = asyncio.run(main())
    assert time.monotonic() - began < 1.0
    return moved


def test_the_replica_that_is_furthest_takes_over() -> None:
    engine = Group("dc-b", "dc-c", takes_s=0.1)
    assert hand_over(engine)
    assert engine.asked == ["dc-c"]


def test_one_that_leaves_too_is_not_asked() -> None:
    engine = Group("dc-b", "dc-c", takes_s=0.1)
    assert hand_over(engine, heard=("dc-c",))
    assert engine.asked == ["dc-b"]


@pytest.mark.parametrize(("gone", "heard"), [({"dc-b"}, ()), (set(), ("dc-b",))])
def test_with_nobody_left_nobody_is_asked(gone: set[str], heard: tuple[str, ...]) -> None:
    engine = Group("dc-b")
    engine.gone = gone
    assert not hand_over(engine, heard=heard)
    assert engine.asked == []


def test_who_leaves_meanwhile_is_not_waited_for() -> None:
    async def main() -> None:
        engine = Group("dc-b", "dc-c")
        on_the_way = Leaving(engine, lambda: ("dc-a", "dc-b", "dc-c"))
        handing = asyncio.create_task(on_the_way.hand_over(timeout_ms=5_000))
        await asyncio.sleep(0.1)
        on_the_way.heard("dc-c")
        await asyncio.sleep(0.1)
        assert engine.asked == ["dc-c", "dc-b"]
        engine.gone.add("dc-b")
        assert not await asyncio.wait_for(handing, 1.0)

    asyncio.run(main())


def test_who_left_and_came_back_is_asked_again() -> None:
    async def main() -> None:
        engine = Group("dc-b", takes_s=0.0)
        on_the_way = Leaving(engine, lambda: ("dc-a", "dc-b"))
        on_the_way.heard("dc-b")
        assert not await on_the_way.hand_over(timeout_ms=5_000)
        await asyncio.sleep(FRESH_S + 0.05)
        assert await on_the_way.hand_over(timeout_ms=5_000)

    asyncio.run(main())


def test_a_node_says_that_it_leaves_and_hears_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "SAY_S", 0.01)

    async def main() -> None:
        engine = Group("dc-b")
        async with running(make_config(tmp_path, timing=PATIENT), engine) as caller:
            engine.on_message("dc-b", LEAVING, b"")
            began = time.monotonic()
            await caller.app.drain()
            assert time.monotonic() - began < 2.0
            assert engine.asked == []
            assert ("dc-b", LEAVING, b"") in engine.sent

    asyncio.run(main())


def test_alone_and_without_a_quorum_what_waits_is_not_waited_for(tmp_path: Path) -> None:
    async def main() -> None:
        engine = Group("dc-b")
        async with running(make_config(tmp_path, timing=PATIENT), engine) as caller:
            await caller.list_market()
            engine.hold = True
            buy = {"symbol": "ACME-USD", "side": "buy", "type": "limit", "qty": "1", "limit_price": "1"}
            waiting = asyncio.create_task(caller.call("POST", "/v1/orders?timeout_ms=20000", buy))
            await asyncio.sleep(0.1)
            engine.gone.add("dc-b")
            engine.changed(role=Role.leader, leader="dc-a", term=1, has_quorum=False)
            began = time.monotonic()
            await caller.app.drain()
            assert time.monotonic() - began < 2.0
            status, told, _ = await waiting
            assert (status, told["error"], told["definite"]) == (503, "outcome_unknown", False)

    asyncio.run(main())
