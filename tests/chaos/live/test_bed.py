"""A real cluster on a bed: links are in the way, processes die and come back, and nothing outlives the run."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from chaos.history.file import read_log
from chaos.live.bed import Bed, Running
from chaos.live.logdump import DISAGREEMENT, dump
from chaos.live.programs import FAILPOINTS
from chaos.live.wiring import VENUE, Settings
from chaos.net.proxy import OwnNetwork
from cluster.client import Client, Done, members_of
from cluster.launcher import DiedAtStart
from node.auth import issue_token

ROOT = Path(__file__).parents[3]
CHILD = """
import asyncio, sys
from pathlib import Path
from chaos.live.bed import Bed
from chaos.net.proxy import OwnNetwork

async def main():
    bed = Bed(Path(sys.argv[1]), OwnNetwork())
    await bed.network.open(bed.links)
    names = [*bed.members, *bed.gateways, "cache-dc-a", "cache-dc-b", "venue"]
    for name in names:
        await bed.start(name, ready_timeout_ms=0)
    print(*(bed.pid(name) for name in names), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def until(holds: Callable[[], Awaitable[bool]], *, timeout_s: float = 30.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not await holds():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True


def client(bed: Bed, role: str) -> Client:
    key = bed.folder.token_key.read_text("ascii")
    return Client(members_of(bed.folder.topology_path), token=issue_token(key, subject=role, role=role, accounts=["*"]))


async def deposits(bed: Bed, keys: list[str]) -> None:
    async with client(bed, "custodian") as custodian:
        for key in keys:
            assert isinstance(await custodian.deposit("anna", "USD", "1.00", key=key), Done)


async def connected(bed: Bed, name: str, other: str) -> bool:
    status = await bed.status(name)
    return status is not None and any(peer["connected"] for peer in status["peers"] if peer["name"] == other)


async def fed(bed: Bed) -> bool:
    status = await bed.status("gateway-dc-a")
    return status is not None and status["feeds"] == {"kraken": "up"} and status["cache"] == "ok"


def test_a_bed_is_cut_killed_and_read(tmp_path: Path) -> None:
    asyncio.run(_cut_killed_and_read(tmp_path))


async def _cut_killed_and_read(tmp_path: Path) -> None:
    keys = [f"key-{number}" for number in range(30)]
    running = Running(prefix={"dc-b": ("env", "HOW=prefix")}, environment={"dc-b": {"WHERE": "here"}})
    async with Bed(tmp_path / "cluster", OwnNetwork(), running=running) as bed:
        given = _environment(bed, "dc-b")
        assert b"HOW=prefix" in given and b"WHERE=here" in given
        assert b"WHERE=here" not in _environment(bed, "dc-a")
        async with client(bed, "operator") as operator:
            assert isinstance(await operator.add_asset("USD", scale=2, supply_max="1000000"), Done)
        async with client(bed, "custodian") as custodian:
            assert isinstance(await custodian.open_account("anna"), Done)
        await deposits(bed, keys[:10])
        assert await bed.leader() in bed.replicas
        assert await until(lambda: fed(bed))

        # Every path leads over its link: cut, it is missed at once; healed, it is back.
        await bed.network.refuse("dc-b->dc-a")
        assert await until(lambda: _not(connected(bed, "dc-b", "dc-a")))
        assert await connected(bed, "tiebreaker", "dc-a")
        await bed.network.heal("dc-b->dc-a")
        assert await until(lambda: connected(bed, "dc-b", "dc-a"))
        await bed.network.refuse("gateway-dc-a->feed")
        assert await until(lambda: _not(fed(bed)))
        await bed.network.heal("gateway-dc-a->feed")

        # One dies inside a step, and comes back.
        leader = await bed.leader()
        follower = next(name for name in bed.replicas if name != leader)
        await bed.stop(follower)
        await bed.start(follower, environment={FAILPOINTS: "after_append:kill:5"}, ready_timeout_ms=0)
        await deposits(bed, keys[10:])
        assert await until(lambda: _gone(bed, follower))
        with (bed.folder.log(follower)).open() as log:
            assert "failpoint after_append strikes: kill, time 5" in log.read()
        await bed.start(follower)

        await bed.kill("cache-dc-a")
        assert bed.cache_pid("gateway-dc-a") is None
        await bed.start("cache-dc-a")
        assert bed.cache_pid("gateway-dc-a") is not None
        with pytest.raises(DiedAtStart, match="before_lunch"):
            await bed.stop("dc-a")
            await bed.start("dc-a", environment={FAILPOINTS: "before_lunch:kill"})
        await bed.start("dc-a")
        await asyncio.gather(*map(bed.stop, bed.members))

        run = tmp_path / "run"
        run.mkdir()
        found = await dump(bed.folder.root, run)
        assert found.complete, found
        assert not (run / DISAGREEMENT).exists()
        assert [line.key for line in read_log(run / "log.jsonl") if line.key in keys] == keys
        pids = [pid for name in ("cache-dc-a", VENUE, *bed.gateways) if (pid := bed.pid(name)) is not None]
        assert len(pids) == 4
    assert not any(map(_runs, pids))


def _environment(bed: Bed, name: str) -> list[bytes]:
    return Path(f"/proc/{bed.pid(name)}/environ").read_bytes().split(b"\0")


async def _not(holds: Awaitable[bool]) -> bool:
    return not await holds


async def _gone(bed: Bed, name: str) -> bool:
    return bed.pid(name) is None


def test_nothing_outlives_a_run_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path / "cluster")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        pids = [int(pid) for pid in child.stdout.readline().split()]
        assert len(pids) == 8
        assert all(_runs(pid) for pid in pids)
        os.kill(child.pid, signal.SIGKILL)
    deadline = time.monotonic() + 3.0
    while any(map(_runs, pids)):
        assert time.monotonic() < deadline, [pid for pid in pids if _runs(pid)]
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def test_a_bed_that_does_not_start_leaves_nothing(tmp_path: Path) -> None:
    limits = {"rate_per_s": 5, "rate_burst": 1}
    bed = Bed(tmp_path / "cluster", OwnNetwork(), Settings(gateways=False, limits=limits), Running())
    with pytest.raises(DiedAtStart, match="rate_burst"):
        asyncio.run(_open(bed))
    assert [bed.pid(name) for name in bed.members] == [None, None, None]


async def _open(bed: Bed) -> None:
    await bed.open()
