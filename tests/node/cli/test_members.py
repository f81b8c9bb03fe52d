"""Members of a running cluster change from the command line, on real processes under load, and nothing is lost."""

import asyncio
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.client import MEMBERS_PATH
from cluster.folder import ClusterFolder, create
from cluster.launcher import Launcher, run_down
from cluster.topology import Topology
from tests.cluster.test_launcher import free_ports
from tests.node.cli.test_end_to_end import User
from tests.node.test_cluster import BUY, Group
from tests.node.test_handover import Load
from tests.node.test_takeover import run

OPERATOR: dict[str, Any] = {"role": "operator", "accounts": ("*",)}


async def cli(
    group: Group, line: str, *, code: int = 0, killed_once: Callable[[], Awaitable[bool]] | None = None
) -> Any:
    """Run `tiebreak LINE --json` as a process of its own; what it printed, or its talk when it failed.

    killed_once: SIGKILL it as soon as this is so.
    """
    environment = {**os.environ, "TIEBREAK_CLUSTER": str(group.folder.root), "COLUMNS": "200"}
    pipe = asyncio.subprocess.PIPE
    program = [sys.executable, "-m", "node.cli.main", *line.split(), "--json"]
    process = await asyncio.create_subprocess_exec(*program, env=environment, stdout=pipe, stderr=pipe)
    if killed_once is not None:
        ending = asyncio.ensure_future(process.wait())
        while not ending.done() and not await killed_once():
            await asyncio.wait({ending}, timeout=0.002)
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.communicate()
        return None
    out, err = await process.communicate()
    assert process.returncode == code, f"tiebreak {line}: {process.returncode}\n{out.decode()}\n{err.decode()}"
    group.launcher.look_again()
    group.members = group.launcher.members
    return json.loads(out) if code == 0 else err.decode()


def standings(view: Any) -> dict[str, str]:
    return {one["name"]: one["standing"] for one in view["members"]}


async def agree(group: Group, names: tuple[str, ...]) -> None:
    """Wait until these stand at one index with one digest."""
    deadline = time.monotonic() + 20
    views: list[Any] = []
    while time.monotonic() < deadline:
        views = [await group.status(name) for name in names]
        if len({view["applied_index"] for view in views}) == 1:
            assert len({view["digest"] for view in views}) == 1, views
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"replicas do not come together: {views}")


async def are_there(group: Group, keys: list[str], names: tuple[str, ...]) -> None:
    """Every key has its answer on each of these."""
    slots = asyncio.Semaphore(16)

    async def look(key: str, name: str) -> None:
        async with slots:
            for account in ("alice", "bob"):
                path = f"/v1/commands/{key}?consistency=local"
                if (await group.once(name, "GET", path, accounts=(account,)))[0] == 200:
                    return
            raise AssertionError(f"{key} is not on {name}")

    await asyncio.gather(*(look(key, name) for name in names for key in keys))


def lose(group: Group, name: str) -> None:
    """A machine that is gone for good."""
    group.launcher.kill(name)
    shutil.rmtree(group.folder.data(name))


def test_a_replica_that_is_gone_for_good_is_replaced_under_load(tmp_path: Path) -> None:
    async def talk(group: Group) -> None:
        load = Load()
        async with load.running(group):
            lose(group, "dc-b")
            view = await cli(group, "cluster replace dc-b dc-b2")
            assert standings(view) == {"dc-a": "voter", "tiebreaker": "voter", "dc-b2": "voter"}
            assert view["removed"] == ["dc-b"]
            # The same again: all is as it should be.
            again = await cli(group, "cluster replace dc-b dc-b2")
            assert again["configuration_index"] == view["configuration_index"]
        assert not load.failed
        assert sorted(group.members) == ["dc-a", "dc-b2", "tiebreaker"]
        assert {one.site for one in group.members.values()} == {"dc-a", "dc-b", "tiebreaker"}
        await agree(group, ("dc-a", "dc-b2"))
        await are_there(group, load.keys[:: max(1, len(load.keys) // 300)], ("dc-a", "dc-b2"))
        # The new one counts: with it and the witness alone, the cluster goes on.
        group.launcher.kill("dc-a")
        await group.do("POST", "/v1/orders", body=BUY, key="after", members=("dc-b2",))
        group.launcher.start("dc-a", die_with_us=True)
        await asyncio.to_thread(group.launcher.wait_ready)
        report = await cli(group, "status")
        assert {row["name"]: row["view"]["standing"] for row in report["members"]} == standings(view)

    run(tmp_path, talk)


def test_a_replacement_that_is_cut_off_goes_on_where_it_was(tmp_path: Path) -> None:
    async def talk(group: Group) -> None:
        lose(group, "dc-b")

        async def seen() -> Any:
            return (await group.once("dc-a", "GET", f"{MEMBERS_PATH}?consistency=local", **OPERATOR))[1]

        async def has_file() -> bool:
            return group.folder.config("dc-b2").exists()

        async def learns() -> bool:
            return "dc-b2" in standings(await seen())

        async def runs() -> bool:
            return group.folder.pid("dc-b2").exists()

        async def votes() -> bool:
            return standings(await seen()).get("dc-b2") == "voter"

        async def is_removed() -> bool:
            return "dc-b" in (await seen())["removed"]

        for step in (has_file, learns, runs, votes, is_removed):
            await cli(group, "cluster replace dc-b dc-b2", killed_once=step)
            assert await step()
        view = await cli(group, "cluster replace dc-b dc-b2")
        assert standings(view) == {"dc-a": "voter", "tiebreaker": "voter", "dc-b2": "voter"}
        assert [member.name for member in group.folder.topology().members] == list(standings(view))
        await agree(group, ("dc-a", "dc-b2"))

    run(tmp_path, talk)


def files(folder: ClusterFolder) -> list[Path]:
    return sorted(path for path in folder.root.rglob("*") if path.suffix in (".toml", ".crt", ".key"))


def test_step_by_step_with_refusals_that_help(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("TIEBREAK_CLUSTER", str(tmp_path / "c"))
    topology = create(tmp_path / "c", base_port=free_ports())
    folder, user = ClusterFolder(tmp_path / "c"), User(capfd)
    launcher = Launcher(folder)
    try:
        user.does("up")
        _refusals(user, folder, topology)
        _steps(user, launcher)
    finally:
        run_down(launcher)


def _refusals(user: User, folder: ClusterFolder, topology: Topology) -> None:
    taken = f"127.0.0.1:{topology.members[0].peer_port}"
    before = files(folder)
    for line, says in (
        ("remove dc-b", "3 are needed"),
        ("demote dc-b", "3 are needed"),
        ("promote nobody", "no member 'nobody'"),
        ("replace nobody dc-c", "no member 'nobody'"),
        ("add dc-b --site dc-b --peer 127.0.0.1:19998 --api 127.0.0.1:19999", "a member already"),
        ("add dc_c --site dc-a", "letters"),
        ("add ../c --site dc-a", "letters"),
        ("add gateway-c --site dc-a", "for gateways"),
        (f"add dc-c --site dc-a --peer {taken} --api {taken}", "are both"),
    ):
        assert says in user.does(f"cluster {line}", code=1).err
    assert files(folder) == before


def _steps(user: User, launcher: Launcher) -> None:
    added = user.gets("cluster add dc-c --site dc-a")
    assert standings(added)["dc-c"] == "learner"
    assert user.gets("cluster add dc-c --site dc-a")["configuration_index"] == added["configuration_index"]
    assert "dc-c" in user.does("cluster promote dc-c --timeout-ms 500", code=1).err
    # `up` knows who came later.
    assert {row["member"] for row in user.gets("up")} == {
        "dc-a", "dc-b", "tiebreaker", "dc-c", "gateway-dc-a", "gateway-dc-b",
    }  # fmt: skip
    assert "learner" in user.waits_for_health()["members"][-1]["view"]["standing"]
    assert standings(user.gets("cluster promote dc-c --wait"))["dc-c"] == "voter"
    shown = user.gets("cluster members")
    assert any("even number" in why for why in shown["weaknesses"])
    assert standings(user.gets("cluster members --local")) == standings(shown)

    # The leader goes as well as any other: it hands over first, is told, and leaves.
    leader = user.waits_for_health()["leader"]
    removed = user.gets(f"cluster remove {leader}")
    assert leader not in standings(removed)
    assert launcher.running(leader) is None
    other, keeps = sorted({"dc-a", "dc-b", "dc-c"} - {leader})
    assert user.waits_for_health()["leader"] in (other, keeps)
    user.does("cluster add dc-d --site dc-d --start")
    user.does("cluster promote dc-d --wait")
    assert standings(user.gets(f"cluster demote {other}"))[other] == "learner"
    assert standings(user.gets(f"cluster remove {other}")).keys() == {keeps, "tiebreaker", "dc-d"}
    assert "never comes back" in user.does(f"cluster add {other} --site dc-b", code=1).err
    assert {row["member"] for row in user.gets("down")} == {keeps, "tiebreaker", "dc-d", "gateway-dc-a", "gateway-dc-b"}


def test_a_read_replica_reads_and_never_counts(tmp_path: Path) -> None:
    async def talk(group: Group) -> None:
        view = await cli(group, "cluster add reader --site dc-c --read-replica --start")
        assert standings(view)["reader"] == "read_replica"
        assert "never votes" in await cli(group, "cluster promote reader", code=1)
        assert "does not vote" in await cli(group, "cluster transfer --to reader", code=1)
        for number in range(20):
            order = await group.do("POST", "/v1/orders", body=BUY, key=f"k{number}", members=("dc-a",))
            # Whatever was acknowledged elsewhere is there at once; and it passes commands on.
            shown = await group.do("GET", f"/v1/orders/{order['id']}", members=("reader",))
            assert shown["status"] == "new"
            await group.do("DELETE", f"/v1/orders/{order['id']}", key=f"c{number}", members=("reader",))
        await agree(group, ("dc-a", "dc-b", "reader"))

        for name in ("dc-b", "tiebreaker"):
            group.launcher.kill(name)
        await asyncio.sleep(1.0)
        for name in ("reader", "dc-a"):
            path = "/v1/orders?timeout_ms=500"
            status, told = await group.once(name, "POST", path, body=BUY, key=f"alone-{name}")
            assert (status, told["error"]) == (503, "no_quorum"), told
            status, told = await group.once(name, "GET", "/v1/accounts/alice")
            assert status == 503, told
            assert (await group.once(name, "GET", "/v1/accounts/alice?consistency=local"))[0] == 200
        local = await cli(group, "cluster members --local")
        assert standings(local)["reader"] == "read_replica"

        # One voter back: two of three, and the read replica follows on.
        group.launcher.start("tiebreaker", die_with_us=True)
        await group.do("POST", "/v1/orders", body=BUY, key="again", members=("reader",))
        await agree(group, ("dc-a", "reader"))

    run(tmp_path, talk)
