"""The current records of a store as of one commit, for as long as somebody pages through them."""

from statemachine.records import TABLES, MetaRecord
from statemachine.store_tables import INFO, META_KEY, Tables
from statemachine.store_view import decode_meta


class PinnedState:
    """A read transaction of its own: what is flushed later is not seen. Close it soon and hold few of them:
    while it is open, LMDB can't use the pages again that it sees. For the thread of the event loop."""

    def __init__(self, tables: Tables) -> None:
        self._handles = {table: tables.fixed[table] for table in TABLES}
        self._reader = tables.env.begin()
        meta = self._reader.get(META_KEY, db=tables.fixed[INFO])
        self.meta: MetaRecord | None = None if meta is None else decode_meta(meta)
        """None: nothing was ever flushed."""

    @property
    def index(self) -> int:
        """The log index that all of it reflects."""
        return self.meta.applied_index if self.meta is not None else 0

    def page(self, table: str, after: bytes, *, limit: int) -> list[tuple[bytes, bytes]]:
        """Up to `limit` (key, encoded record) behind the key `after`, in the order of the keys."""
        cursor = self._reader.cursor(self._handles[table])
        rows: list[tuple[bytes, bytes]] = []
        # The least key that is greater: a key and a zero byte.
        found = cursor.set_range(after + b"\0") if after else cursor.first()
        while found and len(rows) < limit:
            rows.append(cursor.item())
            found = cursor.next()
        return rows

    def close(self) -> None:
        self._reader.abort()
