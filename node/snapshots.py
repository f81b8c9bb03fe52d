"""Where snapshots come from and go to: copies this member's store for another, and judges what it received itself."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.consensus.messages import SnapshotFile, SnapshotOffer
from cluster.consensus.snapshots import SnapshotFailed, Taken, sha256_of
from statemachine.segments import MAGIC
from statemachine.store import Store
from statemachine.store_copy import adopt, check_copy
from statemachine.store_files import DATA_FILE, SEGMENTS_FOLDER, StoreError
from statemachine.store_pinned import PinnedState

SEALED_END_BYTES = 32 + len(MAGIC)
"""A sealed file ends with its own sha256 and a mark, which the sum does not cover."""


class Snapshots:
    """Implements `SnapshotHome`. on_received(offer, folder): a snapshot is staged and was judged good.

    free_bytes_min: room that a copy must leave on the disk.
    """

    def __init__(
        self,
        store: Store,
        *,
        cluster_id: str,
        member: str,
        free_bytes_min: int,
        on_received: Callable[[SnapshotOffer, Path], None],
    ) -> None:
        self.received = on_received
        self._cluster_id = cluster_id
        self._member = member
        self._store = store
        self._free_bytes_min = free_bytes_min
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="snapshot-copy")

    async def take(self, folder: Path, pinned: Callable[[int], None]) -> Taken:
        """See SnapshotHome. The store goes on meanwhile; the copy is of the moment at which this was called."""
        pin = self._store.pin()
        try:
            if pin.meta is None:
                raise SnapshotFailed("the store is empty")
            pinned(pin.index)
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._copy, pin, folder)
        finally:
            pin.close()

    def _copy(self, pin: PinnedState, folder: Path) -> Taken:
        try:
            tables_bytes = (self._store.path / DATA_FILE).stat().st_blocks * 512
            reason = self.room(tables_bytes)
            if reason:
                raise SnapshotFailed(reason)
            pin.copy_to(folder)
            data = folder / DATA_FILE
            size = data.stat().st_size
            files = [SnapshotFile(DATA_FILE, size, sha256_of(data, size), size)]
        except (StoreError, OSError) as error:
            raise SnapshotFailed(str(error)) from error
        files += [
            SnapshotFile(
                f"{SEGMENTS_FOLDER}/{entry.file}", entry.file_bytes, entry.sha256, entry.file_bytes - SEALED_END_BYTES
            )
            for entry in pin.segments
        ]
        return Taken(folder, pin.index, files)

    def local(self, file: SnapshotFile) -> Path | None:
        """Sealed files never change: one of this name, length and sum is the same."""
        if not file.name.startswith(f"{SEGMENTS_FOLDER}/"):
            return None
        path = self._store.segments_path / file.name.removeprefix(f"{SEGMENTS_FOLDER}/")
        if not path.is_file() or path.stat().st_size != file.size:
            return None
        return path if sha256_of(path, file.hashed_bytes) == file.sha256 else None

    def judge(self, offer: SnapshotOffer, folder: Path) -> None:
        """Look into a staged snapshot, then make it this member's. Raises StoreError."""
        check_copy(folder, offer.index)
        adopt(folder, cluster_id=self._cluster_id, member=self._member)

    def room(self, needed_bytes: int) -> str:
        disk = os.statvfs(self._store.path)
        free = disk.f_bavail * disk.f_frsize
        if free - needed_bytes < self._free_bytes_min:
            return (
                f"{free} bytes of the disk are free; a snapshot needs {needed_bytes}, {self._free_bytes_min} stay free"
            )
        return ""
