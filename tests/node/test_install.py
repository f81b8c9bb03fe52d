"""A snapshot is installed whole or not at all, wherever the power goes; and what was staged is looked into first."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.consensus.journal import Base, JournalRefused, Put, Vote
from cluster.consensus.messages import SnapshotFile, SnapshotOffer
from cluster.consensus.snapshots import SnapshotFailed, Taken, sha256_of
from cluster.consensus.storage import LmdbStorage, start_after
from cluster.membership import Configuration
from node.install import Install, InstallFailed, decide, finish
from node.snapshots import Snapshots
from statemachine.machine import Machine
from statemachine.store import Store
from statemachine.store_copy import adopt
from statemachine.store_files import StoreError
from tests.node.install_child import INDEX, STAGED, TERM
from tests.statemachine.store.log import make_log

NOBODY = Base(0, Configuration(0, []))
STEPS = [
    "before the wish",
    "after the wish",
    "before the old store goes",
    "between the stores",
    "after the exchange",
    "after the journal",
    "after all",
]


def store_at(path: Path, member: str, index: int, *, seal: bool = False) -> None:
    store = Store(path, cluster_id="c1", member=member, map_size_bytes=64 << 20)
    machine = Machine(store, store.load())
    log = make_log(90)
    for at in range(machine.applied_index + 1, index + 1):
        store.add(machine.apply(at, log[at - 1]))
    store.flush(machine.collect())
    if seal:
        store.seal_and_prune()
    store.close()


def journal_of(data_dir: Path) -> LmdbStorage:
    return LmdbStorage(data_dir / "journal", cluster_id="c1", member="m2")


def member(tmp_path: Path, *, with_store: bool = True) -> Path:
    """m2 lags: its store is at 30, its log ends at 35. A snapshot at 70 is staged."""
    data_dir = tmp_path / "m2"
    if with_store:
        store_at(data_dir / "store", "m2", 30)
    journal = journal_of(data_dir)
    entries = [Put(index, 1, b"\0x") for index in range(1, 36)]
    journal.write([*entries, Vote(7, "m1")])
    journal.close()
    staged = data_dir / STAGED
    staged.parent.mkdir(parents=True)
    store_at(staged, "m1", INDEX, seal=True)
    adopt(staged, cluster_id="c1", member="m2")
    return data_dir


def state(data_dir: Path) -> tuple[int, int, int, int]:
    """The store's index; the log's first, its last and that entry's term. Both can be opened, and fit."""
    store = Store(data_dir / "store", cluster_id="c1", member="m2", map_size_bytes=64 << 20)
    stored = store.stored_index
    Machine(store, store.load())
    store.close()
    journal = journal_of(data_dir)
    loaded = journal.load(tail_bytes_max=1 << 20)
    journal.close()
    assert loaded.vote == Vote(7, "m1"), "a vote is never forgotten"
    assert not loaded.disk.joined, "nor is a new disk taken for an old one"
    return stored, loaded.first_index, loaded.last_index, loaded.tail[-1][2]


OLD, NEW = (30, 1, 35, 1), (INDEX, INDEX, INDEX, TERM)


def child(data_dir: Path, step: str) -> int:
    return subprocess.run(
        [sys.executable, "-m", "tests.node.install_child", str(data_dir), step], check=False
    ).returncode


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_it_is_the_old_or_the_new(tmp_path: Path, step: str) -> None:
    data_dir = member(tmp_path)
    assert child(data_dir, step) == -9
    # Killed once more on the way, where that step still lies ahead.
    if step != STEPS[0]:
        child(data_dir, step)
    finish(data_dir, cluster_id="c1", member="m2")
    assert state(data_dir) == (OLD if step == STEPS[0] else NEW)
    assert finish(data_dir, cluster_id="c1", member="m2") is None
    assert not (data_dir / "store.replaced").exists()
    if step == STEPS[0]:
        assert child(data_dir, "") == 0
        assert state(data_dir) == NEW


def test_a_wiped_member_has_no_store_to_exchange(tmp_path: Path) -> None:
    data_dir = member(tmp_path, with_store=False)
    assert child(data_dir, "between the stores") == -9
    assert child(data_dir, "") == 0
    assert state(data_dir) == NEW
    assert not (data_dir / "snapshots").exists()


def test_a_wish_that_cannot_be_fulfilled_changes_nothing(tmp_path: Path) -> None:
    data_dir = member(tmp_path)
    decide(data_dir, Install("c1", "m2", INDEX, TERM, STAGED))
    with pytest.raises(InstallFailed, match="is of m2"):
        finish(data_dir, cluster_id="c1", member="m1")
    (data_dir / "store").rename(tmp_path / "store")
    (data_dir / STAGED).rename(tmp_path / "staged")
    with pytest.raises(InstallFailed, match="neither"):
        finish(data_dir, cluster_id="c1", member="m2")
    (tmp_path / "store").rename(data_dir / "store")
    (tmp_path / "staged").rename(data_dir / STAGED)
    assert finish(data_dir, cluster_id="c1", member="m2") is not None
    assert state(data_dir) == NEW


def test_a_log_that_has_the_entry_is_kept(tmp_path: Path) -> None:
    """Raft's rule: what follows a snapshot's last entry was acknowledged, and stays."""
    data_dir = member(tmp_path)
    where = {"cluster_id": "c1", "member": "m2"}
    assert start_after(data_dir / "journal", 33, 1, None, **where) is False
    journal = journal_of(data_dir)
    assert journal.load(tail_bytes_max=0).last_index == 35
    journal.close()
    assert start_after(data_dir / "journal", 33, 2, None, **where) is True
    # Twice is once; and what is committed here is not exchanged for another's entry.
    assert start_after(data_dir / "journal", 33, 2, None, **where) is False
    with pytest.raises(JournalRefused, match="committed up to 33"):
        start_after(data_dir / "journal", 32, 2, None, **where)


# -- what a node makes of its store -----------------------------------------------------------------


def home(store: Store, name: str = "m1", *, free_bytes_min: int = 0) -> Snapshots:
    return Snapshots(store, cluster_id="c1", member=name, free_bytes_min=free_bytes_min, on_received=lambda *_: None)


def take(store: Store, folder: Path, **options: int) -> tuple[Taken, list[int]]:
    pinned: list[int] = []
    return asyncio.run(home(store, **options).take(folder, pinned.append)), pinned


def offer(taken: Taken, index: int | None = None) -> SnapshotOffer:
    return SnapshotOffer(1, "a" * 32, taken.index if index is None else index, 1, taken.files, NOBODY)


@pytest.fixture
def sealed(tmp_path: Path) -> Store:
    store_at(tmp_path / "m1", "m1", 70, seal=True)
    return Store(tmp_path / "m1", cluster_id="c1", member="m1", map_size_bytes=64 << 20)


def test_a_copy_with_its_manifest_is_judged_good(tmp_path: Path, sealed: Store) -> None:
    taken, pinned = take(sealed, tmp_path / "copy")
    assert (taken.index, pinned) == (70, [70])
    assert len(taken.files) > 3, "sealed days are part of it"
    for file in taken.files:
        path = tmp_path / "copy" / file.name
        assert path.stat().st_size == file.size
        assert sha256_of(path, file.hashed_bytes) == file.sha256
    home(sealed, "m2").judge(offer(taken), taken.folder)
    other = Store(taken.folder, cluster_id="c1", member="m2", map_size_bytes=64 << 20)
    assert other.stored_index == 70
    other.close()
    sealed.close()


def test_what_differs_from_the_manifest_is_judged_bad(tmp_path: Path, sealed: Store) -> None:
    taken, _ = take(sealed, tmp_path / "copy")
    judge = home(sealed, "m2").judge
    with pytest.raises(StoreError, match="at index 70, not at 71"):
        judge(offer(taken, 71), taken.folder)
    path = next(path for path in (taken.folder / "segments").iterdir())
    good = path.read_bytes()
    path.unlink()  # a second name of the store's own file
    for bad, what in (
        (good[:100] + bytes([good[100] ^ 1]) + good[101:], "sha256"),
        (good[:-1] + b"x", "footer"),
        (good[:-9], "bytes"),
    ):
        path.write_bytes(bad)
        with pytest.raises(StoreError, match=what):
            judge(offer(taken), taken.folder)
    path.unlink()
    with pytest.raises(StoreError, match="No such file"):
        judge(offer(taken), taken.folder)
    path.write_bytes(good)
    judge(offer(taken), taken.folder)
    sealed.close()


def test_a_sealed_file_that_is_here_is_found_and_a_damaged_one_is_not(tmp_path: Path, sealed: Store) -> None:
    taken, _ = take(sealed, tmp_path / "copy")
    segment, data = taken.files[1], taken.files[0]
    here = home(sealed)
    path = here.local(segment)
    assert path == sealed.segments_path / Path(segment.name).name
    assert here.local(data) is None, "the tables are never the same"
    assert here.local(SnapshotFile(segment.name, segment.size, bytes(32), segment.hashed_bytes)) is None
    good = path.read_bytes()
    path.unlink()
    path.write_bytes(b"x" + good[1:])
    assert here.local(segment) is None
    sealed.close()


def test_without_room_or_state_no_copy_is_made(tmp_path: Path, sealed: Store) -> None:
    with pytest.raises(SnapshotFailed, match="bytes of the disk are free"):
        take(sealed, tmp_path / "copy", free_bytes_min=1 << 60)
    assert not (tmp_path / "copy").exists()
    sealed.close()
    empty = Store(tmp_path / "empty", cluster_id="c1", member="m1", map_size_bytes=64 << 20)
    with pytest.raises(SnapshotFailed, match="empty"):
        take(empty, tmp_path / "copy")
    empty.close()
