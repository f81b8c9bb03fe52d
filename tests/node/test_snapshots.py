"""Three real processes: a replica that was away or lost its disk comes back by a snapshot while writes go on."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.launcher import run_down
from node.install import DIVERGED_FILE
from tests.node.test_cluster import BUY, SELL, Group

LOW = """
log_reserve = 20
log_laggard_entries = 100
"""


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    group = Group(tmp_path / "cluster")
    for name in group.members:
        path = group.folder.config(name)
        text = path.read_text("utf-8")
        before, section, after = text.partition("[limits]")
        assert section
        path.write_text(before + section + LOW + "#" + after, "utf-8")
    try:
        for name in group.members:
            group.launcher.start(name, die_with_us=True)
        group.launcher.wait_ready(timeout_ms=30_000)
        yield group
    finally:
        run_down(group.launcher)


def events(group: Group, name: str) -> list[dict[str, Any]]:
    lines = group.folder.log(name).read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


async def until(holds: Any, *, within: float) -> None:
    deadline = asyncio.get_running_loop().time() + within
    while not await holds():
        assert asyncio.get_running_loop().time() < deadline, "not in time"
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("wiped", [True, False], ids=["wiped", "away"])
def test_a_replica_comes_back_by_a_snapshot_while_writes_go_on(group: Group, wiped: bool) -> None:
    async def talk() -> None:
        await group.list_market()
        answered = 0

        async def place(number: int) -> None:
            nonlocal answered
            body, account = (BUY, "alice") if number % 2 else (SELL, "bob")
            # One that gets no definite 200 within its time fails the test.
            await group.do(
                "POST", "/v1/orders", body=body, key=f"k-{number}", accounts=(account,), members=("dc-a", "dc-b")
            )
            answered += 1

        for number in range(20):
            await place(number)
        there_index = (await group.status("dc-b"))["applied_index"]
        group.launcher.stop(["dc-b"])
        for number in range(20, 220):
            await place(number)

        async def trimmed() -> bool:
            nonlocal answered
            await place(10_000 + answered)
            return (await group.status("dc-a"))["first_index"] > 100

        await until(trimmed, within=20)
        kept = (await group.status("tiebreaker"))["first_index"]
        assert kept <= there_index, "the witness keeps what dc-b lacks"

        if wiped:
            # As an operator does with one that diverged: all of it aside, as evidence.
            data = group.folder.root / "data" / "dc-b"
            (data / DIVERGED_FILE).write_text("the digest at index 7 differs from the majority's\n", "utf-8")
            data.rename(group.folder.root / "dc-b.diverged")
        writing = True

        async def write_on() -> int:
            """Each request is answered at once, by the member that leads."""
            number = 20_000
            while writing:
                status, answer = await group.once("dc-a", "POST", "/v1/orders", body=BUY, key=f"k-{number}")
                assert status == 200, answer
                number += 1
            return number - 20_000

        writer = asyncio.create_task(write_on())
        await asyncio.to_thread(group.launcher.start, "dc-b", die_with_us=True)

        async def back() -> bool:
            try:
                view = await group.status("dc-b")
            except Exception:
                return False
            return bool(view["first_index"] > 100 and not view["rejoining"] and view["ready"])

        await until(back, within=40)
        await asyncio.sleep(0.5)
        writing = False
        assert await writer > 0
        index, digest = await group.agreed()
        assert index > 200
        assert digest

        told = [event["event"] for event in events(group, "dc-b")]
        assert "leaving to install a snapshot" in told
        assert "snapshot installed" in told
        assert any("is counted again" in event for event in told) == wiped
        assert any("is back on new disk" in event["event"] for event in events(group, "dc-a")) == wiped
        assert not list((group.folder.root / "data" / "dc-b").glob("snapshots/incoming/*"))
        # It is a full member: it takes over when the other goes.
        leader = await group.leader()
        group.launcher.kill(leader)
        await place(30_000)
        await group.close()

    asyncio.run(talk())
