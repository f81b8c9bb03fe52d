"""A store as of one commit, for as long as somebody pages through it or copies it."""

from pathlib import Path

from statemachine.records import MetaRecord, StoredState
from statemachine.segments import SegmentEntry
from statemachine.store_copy import copy_store
from statemachine.store_tables import Tables
from statemachine.store_view import View


class PinnedState:
    """A read transaction of its own: what is flushed later is not seen. Close it soon and hold few of them:
    while it is open, LMDB can't use the pages again that it sees. For the thread of the event loop, save `copy_to`."""

    def __init__(self, tables: Tables, segments_path: Path) -> None:
        self._tables = Tables(tables.env)
        self._tables.fixed = tables.fixed
        self._view = View(self._tables, segments_path, [])
        self._segments_path = segments_path
        self.meta: MetaRecord | None = self._view.meta
        """None: nothing was ever flushed."""

    @property
    def index(self) -> int:
        """The log index that all of it reflects."""
        return self.meta.applied_index if self.meta is not None else 0

    @property
    def segments(self) -> list[SegmentEntry]:
        """The manifest: every sealed file that belongs to it."""
        return self._view.entries()

    def load(self) -> StoredState | None:
        return self._view.load()

    def page(self, table: str, after: bytes, *, limit: int) -> list[tuple[bytes, bytes]]:
        """Up to `limit` (key, encoded record) behind the key `after`, in the order of the keys."""
        cursor = self._tables.reader().cursor(self._tables.fixed[table])
        rows: list[tuple[bytes, bytes]] = []
        # The least key that is greater: a key and a zero byte.
        found = cursor.set_range(after + b"\0") if after else cursor.first()
        while found and len(rows) < limit:
            rows.append(cursor.item())
            found = cursor.next()
        return rows

    def copy_to(self, folder: Path) -> None:
        """Write a whole store into the new `folder`, history included. For a worker; durable when it returns.

        It still belongs to the member that it was copied from: see `store_copy.adopt`.
        Raises StoreError; then `folder` is to be deleted.
        """
        copy_store(self._tables, self._view.entries(), self._segments_path, folder)

    def close(self) -> None:
        self._tables.renew()
