"""Only the audited PySyncObj is let in, and nothing of it that unpickles or compacts is left in use."""

import shutil
from pathlib import Path

import pysyncobj
import pytest
from pysyncobj import SyncObj

from cluster.consensus import audited
from cluster.consensus.audited import FILES, LibraryChanged, check_library
from cluster.consensus.raft import BrokenInvariant
from tests.cluster.lab import Clock, Lab

INSTALLED = Path(pysyncobj.__file__).parent


def test_the_audited_library_is_accepted() -> None:
    assert set(FILES) >= {"syncobj.py", "journal.py", "transport.py", "serializer.py", "version.py"}
    check_library()


@pytest.mark.parametrize("name", ["syncobj.py", "node.py"])
def test_one_changed_byte_is_refused(tmp_path: Path, name: str) -> None:
    copy = tmp_path / "pysyncobj"
    shutil.copytree(INSTALLED, copy)
    check_library(copy)
    (copy / name).write_bytes((copy / name).read_bytes() + b"\n")
    with pytest.raises(LibraryChanged, match=f"{name} has sha256 [0-9a-f]+, audited is {FILES[name]}"):
        check_library(copy)
    (copy / name).unlink()
    with pytest.raises(LibraryChanged, match=f"has no {name}"):
        check_library(copy)


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audited._syncobj, "VERSION", "0.3.18")
    with pytest.raises(LibraryChanged, match=r"is 0\.3\.18, audited is 0\.3\.17"):
        check_library()


def test_a_missing_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(SyncObj, "_SyncObj__sendNextNodeIdx")
    with pytest.raises(LibraryChanged, match="_SyncObj__sendNextNodeIdx"):
        check_library()


def test_a_missing_attribute_is_refused() -> None:
    with pytest.raises(LibraryChanged, match="_SyncObj__raftLog"):
        audited.check_attributes(object())


def test_what_is_unsafe_can_not_be_reached(clock: Clock) -> None:
    raft = Lab(clock, "abc")["a"].raft
    for call in (
        lambda: raft._SyncObj__doApplyCommand(b"\0"),
        lambda: raft._SyncObj__loadDumpFile(True),
        lambda: raft._applyCommand(b"x", None),
        lambda: raft._SyncObj__onMessageReceived(None, {}),
        lambda: raft._library_says("b", {"type": "append_entries"}),
    ):
        with pytest.raises(BrokenInvariant):
            call()
    assert raft._SyncObj__parseChangeClusterRequest(b"\2pickle") is None
    raft.forceLogCompaction()
    raft._SyncObj__tryLogCompaction()


def test_the_constructors_hook_is_put_back(clock: Clock) -> None:
    before = audited._syncobj.createJournal
    Lab(clock, "abc")
    assert audited._syncobj.createJournal is before
