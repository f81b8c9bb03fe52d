"""The store's folder: who owns it, what went wrong with it, and how a file or a folder becomes durable."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

OWNER_FILE = "owner.lock"
DATA_FILE = "data.mdb"
SEGMENTS_FOLDER = "segments"
ASIDE_FOLDER = "new"
"""Where the environment of a new store is made."""

Failpoint = Callable[[str], None]
"""Called with the name of each step of a commit; tests die there."""


def no_failpoint(_step: str) -> None:
    """What runs outside tests."""


class StoreError(Exception):
    """The store can't do what was asked. From a write it is fatal: the caller leaves the process."""


class StoreLocked(StoreError):
    """Another process has this folder open. Nothing was touched."""


class ForeignStore(StoreError):
    """The folder belongs to another cluster or member, or is no store. Nothing was touched."""


class StoreDamaged(StoreError):
    """What is on disk contradicts itself, or can't be read."""


class StoreFull(StoreError):
    """The map or the disk is full. Watch `Store.space` and refuse work before it comes to this."""


class PastGone(StoreError):
    """The position asked for is older than what is kept. `first_index` is the first index still held."""

    def __init__(self, first_index: int) -> None:
        super().__init__(f"events before index {first_index} are no longer held")
        self.first_index = first_index


def fsync_folder(folder: Path) -> None:
    """Make creations, renames and removals in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents, each one durable in its own parent."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    # Without this a power cut can take the whole environment away, with every synced commit inside it.
    fsync_folder(folder.parent)


class OwnerLock:
    """Exclusive ownership of a folder for as long as this process lives.

    Raises StoreLocked when another process, or another store of this one, has it.
    """

    def __init__(self, folder: Path, owner: str) -> None:
        self._path = folder / OWNER_FILE
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._fd, 200).decode("utf-8", "replace").strip()
            os.close(self._fd)
            raise StoreLocked(f"{folder} is open in another process ({holder or 'unknown'})") from error
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"pid {os.getpid()}, {owner}\n".encode(), 0)

    def release(self) -> None:
        """The file stays: removing it would let two processes lock two different files of one name."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class ReaderLock:
    """Keeps a store stopped while its disk is read; many readers may hold it. Raises StoreLocked."""

    def __init__(self, folder: Path) -> None:
        try:
            self._fd = os.open(folder / OWNER_FILE, os.O_RDONLY)
        except FileNotFoundError as error:
            raise ForeignStore(f"{folder} is no store: it has no {OWNER_FILE}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            raise StoreLocked(f"{folder} is open in another process: stop the member first") from error

    def release(self) -> None:
        os.close(self._fd)


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds something else, before anything is created in it."""
    if folder.exists() and not folder.is_dir():
        raise ForeignStore(f"{folder} is not a folder")
    if not folder.is_dir() or (folder / DATA_FILE).exists():
        return
    ours = {OWNER_FILE, SEGMENTS_FOLDER, ASIDE_FOLDER, "lock.mdb"}
    others = sorted(entry.name for entry in folder.iterdir() if entry.name not in ours)
    if others:
        raise ForeignStore(f"{folder} is no store, and not empty: it holds {', '.join(others[:5])}")
