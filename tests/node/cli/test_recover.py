"""A majority is lost for good: what is left is told, and goes on as a cluster of its own only when that is wanted."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.consensus.recovery import JournalRefused
from cluster.folder import ClusterFolder, create
from cluster.launcher import Launcher, run_down
from cluster.topology import Standing
from node.cli import recover
from node.install import DIVERGED_FILE, WISH
from tests.cluster.test_launcher import free_ports
from tests.node.cli.test_end_to_end import User


@pytest.fixture
def user(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[User]:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("TIEBREAK_CLUSTER", str(tmp_path / "c"))
    try:
        yield User(capfd)
    finally:
        run_down(Launcher(ClusterFolder(tmp_path / "c")))


def folder_of(tmp_path: Path) -> ClusterFolder:
    return ClusterFolder(tmp_path / "c")


def begin(user: User, tmp_path: Path, shape: str = "1+1+1") -> ClusterFolder:
    """A cluster in which alice has 100 USD."""
    create(tmp_path / "c", shape=shape, base_port=free_ports())
    user.does("up")
    user.does("asset add USD --scale 2")
    user.does("account open alice")
    user.does("deposit alice USD 100 --key first")
    return folder_of(tmp_path)


def lose(folder: ClusterFolder, *names: str) -> None:
    for name in names:
        shutil.rmtree(folder.data(name))


def usd(user: User) -> str:
    return str(user.gets("account show alice")["balances"][0]["available"])


def test_one_of_three_goes_on(user: User, tmp_path: Path) -> None:
    folder = begin(user, tmp_path)
    assert "done offline" in user.does("cluster recover --accept-loss", code=1).err
    user.does("down")
    assert "no majority is lost" in user.does("cluster recover --accept-loss", code=1).err
    assert "no majority is lost" in user.does("cluster recover dc-a tiebreaker --accept-loss", code=1).err
    assert "without a full replica" in user.does("cluster recover tiebreaker --accept-loss", code=1).err
    lose(folder, "dc-b", "tiebreaker")
    assert "has no log" in user.does("cluster recover dc-b", code=1).err
    before = folder.topology()
    told = user.does("cluster recover", code=1)
    assert "may be lost: all that dc-b, tiebreaker acknowledged" in told.out
    assert "nothing was changed" in told.err
    assert folder.topology() == before

    plan = user.gets("cluster recover --accept-loss")
    assert (plan["epoch"], plan["gone"], plan["may_lose"]) == (2, ["dc-b", "tiebreaker"], True)
    (survivor,) = plan["survivors"]
    assert survivor["stored_index"] <= plan["kept_index"] == survivor["left"]["last_index"]
    after = folder.topology()
    assert ([one.name for one in after.members], after.epoch) == (["dc-a"], 2)

    assert [row["member"] for row in user.gets("up dc-a")] == ["dc-a"]
    assert user.gets("status")["members"][0]["view"]["epoch"] == 2
    assert usd(user) == "100"
    assert user.gets("deposit alice USD 100 --key first")["replay"]
    user.does("deposit alice USD 5")
    assert "no member 'dc-b'" in user.does("up dc-b", code=1).err
    assert "never comes back" in user.does("cluster add dc-b --site dc-b", code=1).err
    # From one to three again.
    for line in ("dc-b2 --site dc-b", "tb2 --site tiebreaker --witness"):
        user.does(f"cluster add {line} --start")
        view = user.gets(f"cluster promote {line.split()[0]} --wait")
    assert {one["standing"] for one in view["members"]} == {"voter"}
    user.does("down dc-a --kill")
    user.does("deposit alice USD 1 --timeout-ms 15000")
    assert usd(user) == "106"


def test_survivors_of_different_lengths_agree_on_the_longest(
    user: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begin(user, tmp_path, "2+2+1")
    user.does("down dc-a-2")
    user.does("deposit alice USD 11")
    user.does("down")
    lose(folder, "dc-b-1", "dc-b-2", "tiebreaker")

    # Cut off between the two: it can be run again.
    force, forced = recover.force_configuration, []

    def force_one(path: Path, *given: Any, **named: Any) -> None:
        if forced:
            raise JournalRefused("the power went")
        forced.append(path)
        force(path, *given, **named)

    monkeypatch.setattr(recover, "force_configuration", force_one)
    assert "the power went" in user.does("cluster recover --accept-loss", code=1).err
    monkeypatch.setattr(recover, "force_configuration", force)
    assert folder.topology().epoch == 2
    plan = user.gets("cluster recover --accept-loss")
    assert (plan["newest"], plan["gone"]) == ("dc-a-1", ["dc-b-1", "dc-b-2", "tiebreaker"])
    assert plan["epoch"] == 2
    assert "no majority is lost" in user.does("cluster recover --accept-loss", code=1).err
    assert {one.standing for one in folder.topology().members} == {Standing.voter}

    user.does("up")
    report = user.waits_for_health()
    assert {row["view"]["epoch"] for row in report["members"]} == {plan["epoch"]}
    assert usd(user) == "111"
    user.does("deposit alice USD 1")
    for _ in range(50):
        digests = {row["digest"] for row in user.gets("status")["members"]}
        if len(digests) == 1:
            break
        time.sleep(0.1)
    assert len(digests) == 1


def test_who_can_not_be_a_survivor(user: User, tmp_path: Path) -> None:
    folder = begin(user, tmp_path)
    user.does("down")
    lose(folder, "dc-b", "tiebreaker")
    assert "has no log" in user.does("cluster recover nobody", code=1).err
    for name, says in ((DIVERGED_FILE, "differed from the majority"), (WISH, "half way through a snapshot")):
        evidence = folder.data("dc-a") / name
        evidence.write_text("x")
        assert says in user.does("cluster recover dc-a --accept-loss", code=1).err
        evidence.unlink()
    # One that starts on an empty disk has nothing that could be relied on.
    Launcher(folder).start("tiebreaker", die_with_us=True)
    for _ in range(100):
        if (folder.data("tiebreaker") / "journal" / "data.mdb").exists():
            break
        time.sleep(0.1)
    user.does("down tiebreaker")
    assert "had not caught up" in user.does("cluster recover tiebreaker --accept-loss", code=1).err
    (folder.data("dc-a") / "store" / "data.mdb").write_bytes(b"")
    assert "the state of dc-a" in user.does("cluster recover dc-a --accept-loss", code=1).err
    lose(folder, "dc-a", "tiebreaker")
    assert "nobody to go on with" in user.does("cluster recover --accept-loss", code=1).err
    assert folder.topology().epoch == 1
