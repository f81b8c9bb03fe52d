"""Real members on folders that are not theirs, damaged or wrong: refused by name, while the others lose nothing."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from cluster.consensus.audited import REGULAR
from cluster.consensus.journal import Committed, Put, Vote
from cluster.consensus.storage import LmdbStorage
from cluster.launcher import run_down
from statemachine.inspection import inspect_store
from tests.node.test_cluster import BUY, REPLICAS, SELL, Group

ROOT = Path(__file__).parents[2]


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    group = Group(tmp_path / "cluster")
    for name in group.members:
        path = group.folder.config(name)
        path.write_text(path.read_text("utf-8").replace("[timing]", "[timing]\ndigest_ms = 300"), "utf-8")
    try:
        for name in group.members:
            group.launcher.start(name, die_with_us=True)
        group.launcher.wait_ready(timeout_ms=30_000)
        yield group
    finally:
        run_down(group.launcher)


async def place(group: Group, *numbers: int) -> None:
    for number in numbers:
        body, account = (BUY, "alice") if number % 2 else (SELL, "bob")
        await group.do("POST", "/v1/orders", body=body, key=f"k-{number}", accounts=(account,))


def start_in_vain(group: Group, name: str) -> tuple[int, str]:
    """The exit code of a member that does not start, and what it says."""
    command = [sys.executable, "-m", "node", str(group.folder.config(name))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def another_clusters(journal: Path) -> None:
    shutil.rmtree(journal)
    other = LmdbStorage(journal, cluster_id="another", member="dc-b")
    other.write([Vote(1, "dc-b"), Put(1, 0, b"\1"), Put(2, 1, REGULAR + b"x"), Committed(2)])
    other.close()


def flipped(journal: Path) -> None:
    path = journal / "data.mdb"
    content = bytearray(path.read_bytes())
    key = b"k-7"  # of an order, in the entry that placed it
    assert key in content
    path.write_bytes(content.replace(key, b"k-6"))  # in old copies of its page, too


def cut_short(journal: Path) -> None:
    os.truncate(journal / "data.mdb", 5000)


def gone(journal: Path) -> None:
    shutil.rmtree(journal)


SPOILED: list[tuple[Callable[[Path], None], tuple[str, ...]]] = [
    (another_clusters, ("cluster_id is 'another'", "this member's is")),
    (flipped, ("entry ", "is damaged: its checksum is wrong", "start it with an empty one")),
    (cut_short, ("is damaged", "start it with an empty one")),
    (gone, ("the store has applied", "the journal ends at 1", "keep this folder aside")),
]


def test_a_folder_that_can_not_be_used_is_refused_and_an_empty_one_is_filled(group: Group, tmp_path: Path) -> None:
    async def talk() -> None:
        await group.list_market()
        await place(group, *range(20))
        await group.agreed()
        code, said = await asyncio.to_thread(start_in_vain, group, "dc-b")
        assert code == 1
        assert "StoreLocked" in said

        group.launcher.stop(["dc-b"])
        data = group.folder.data("dc-b")
        shutil.copytree(data, tmp_path / "good")
        for number, (spoil, says) in enumerate(SPOILED):
            spoil(data / "journal")
            before = sorted(path.stat().st_size for path in data.rglob("*") if path.is_file())
            code, said = await asyncio.to_thread(start_in_vain, group, "dc-b")
            assert code == 1, spoil.__name__
            for part in says:
                assert part in said, spoil.__name__
            if spoil not in (gone, cut_short):
                assert sorted(path.stat().st_size for path in data.rglob("*") if path.is_file()) == before
            await place(group, 100 + number)  # the others go on
            shutil.rmtree(data)
            shutil.copytree(tmp_path / "good", data)

        # What an operator is told to do.
        data.rename(tmp_path / "aside")
        await group.start_again("dc-b")
        for number in (0, 7, 19, 100, 103):
            account = "alice" if number % 2 else "bob"
            for member in REPLICAS:
                status, told = await group.once(member, "GET", f"/v1/commands/k-{number}", accounts=(account,))
                assert (status, bool(told["id"])) == (200, True)
        await group.close()

    asyncio.run(talk())


def make_wrong(store: Path) -> None:
    """As a bug or bad memory would leave it: whole, but not what the log gives."""
    digest = bytes.fromhex(inspect_store(store).digest)
    with lmdb.open(str(store), max_dbs=64) as env:
        names = [bytes(name) for name in _keys(env, None)]
        for name in names:
            table = env.open_db(name, create=False)
            with env.begin(write=True, db=table) as transaction:
                for key, value in list(transaction.cursor()):
                    if key == b"meta" and digest in value:
                        transaction.put(key, value.replace(digest, digest[:-1] + bytes([digest[-1] ^ 1])))


def _keys(env: Any, table: Any) -> list[bytes]:
    with env.begin() as transaction:
        return [key for key, _ in transaction.cursor(db=table)]


def tiebreak(*words: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "node.cli.main", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def test_replicas_that_disagree_stop_writing_and_a_replay_says_who_is_wrong(group: Group) -> None:
    async def talk() -> None:
        await group.list_market()
        await place(group, *range(10))
        await group.agreed()
        group.launcher.stop(["dc-b"])
        make_wrong(group.folder.data("dc-b") / "store")
        group.launcher.start("dc-b", die_with_us=True)
        await asyncio.to_thread(group.launcher.wait_ready, timeout_ms=30_000)
        deadline = time.monotonic() + 30
        number = 1000
        while True:
            number += 1
            status, answer = await group.once("dc-a", "POST", "/v1/orders", body=BUY, key=f"k-{number}")
            if status == 503 and answer["error"] == "writes_stopped":
                break
            assert time.monotonic() < deadline, (status, answer)
            await asyncio.sleep(0.1)
        assert (await group.status("dc-a"))["writes_stopped"]
        # Reads go on, and what was acknowledged is there.
        status, told = await group.once("dc-a", "GET", "/v1/commands/k-3")
        assert (status, bool(told["id"])) == (200, True)
        await group.close()

    asyncio.run(talk())
    group.launcher.stop(list(group.members))
    where = ("--cluster", str(group.folder.root))
    code, said = tiebreak("inspect", "dc-a", "--replay", "--json", *where)
    right = json.loads(said)["replay"]
    assert code == 1, "it holds itself, and another's digest differs"
    assert right["digest"] == right["stored_digest"]
    assert {one["member"]: bool(one["differs_at"]) for one in right["reporters"]} == {"dc-a": False, "dc-b": True}
    code, said = tiebreak("inspect", "dc-b", "--replay", *where)
    assert code == 1
    assert "dc-a was right" in said
    assert "dc-b was wrong at index" in said
