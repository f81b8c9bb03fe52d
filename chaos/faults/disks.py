"""Disks of members whose power can be cut, and that can be filled: a loop device for each.

Mounts are seen by this process and its children alone, and end with them.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from chaos.disk import mounts
from chaos.disk.mounts import LoopDisk

DATA = "data"
SIZE_BYTES = 192 << 20
"""Room for a run. Members refuse writes with less than a few MB free, and a disk is to be filled in a moment."""

_disks: dict[Path, LoopDisk] = {}
"""What is mounted, by the folder that its member keeps its data in."""


def unavailable() -> str:
    """Why there can be no such disks here; empty when there can."""
    return mounts.unavailable("ext4")


@contextmanager
def member_disks(names: Sequence[str], *, size_bytes: int = SIZE_BYTES) -> Iterator[dict[str, Path]]:
    """The folder for the data of each, on a disk of its own. Enter it before anything is started.

    Nobody may have a file open there when this is left. Raises chaos.disk.children.Failed.
    """
    mounts.own_mounts()
    with ExitStack() as stack:
        folders = {}
        for name in names:
            where = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tiebreak-disk-")))
            disk = LoopDisk("ext4", where, size_bytes=size_bytes)
            stack.callback(disk.close)
            folder = folders[name] = disk.path / DATA
            folder.mkdir()
            # Its name must outlive the first cut.
            _sync(disk.path)
            _disks[folder] = disk
            stack.callback(_disks.pop, folder)
        yield folders


def disk_of(folder: Path) -> LoopDisk | None:
    """The disk that this folder is on, if it is one of ours."""
    return _disks.get(folder)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
