"""Moves days that are over from LMDB into sealed segments, and deletes segments past their retention.

A crash at any step leaves the old or the new: the segment is durable under its name before one
transaction enters it in the manifest and drops the day's table. A file that the manifest does not
name is a leftover, deleted at the next start.
"""

from collections.abc import Iterator
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import Any

import lmdb
from msgspec import Struct, msgpack

from statemachine.records import LedgerRow, OrderRecord, Record, encode_record
from statemachine.segments import SegmentEntry, SegmentWriter, entry_key
from statemachine.store_files import Failpoint, StoreError, StoreFull, fsync_folder
from statemachine.store_pending import is_stray
from statemachine.store_rows import ROW_DECODERS, ROW_ID, Kind, decode_block, encode_rows
from statemachine.store_tables import INFO, PRUNED_KEY, SEGMENTS, STRAYS, Cursor, Handle, Tables

STEP_BYTES = 1 << 20
"""Raw bytes that one step of a seal reads and compresses: about 30 ms of a worker thread."""
CHAIN_START = bytes(32)
"""The ledger's hash chain before its first row."""


class Retention(Struct, frozen=True):
    """Whole days for which sealed history is kept, by replicated time."""

    events_days: int = 7
    ledger_days: int = 3653
    trades_days: int = 3653
    closed_orders_days: int = 3653

    def days(self, kind: Kind) -> int:
        return int(getattr(self, f"{kind}_days"))


class Pruned(Record, frozen=True):
    """What is gone of one kind: all up to this day and id. chain: the ledger's hash chain after it."""

    day: int
    last_id: int
    chain: bytes


decode_pruned = msgpack.Decoder(Pruned).decode


def extend_chain(chain: bytes, rows: list[LedgerRow]) -> bytes:
    """The ledger's hash chain after the rows of one batch."""
    return blake2b(chain + encode_record(rows), digest_size=32).digest()


class Seal:
    """Moves one kind of one day. `step` and `commit` run in a worker, what is between them on the loop."""

    def __init__(
        self,
        tables: Tables,
        folder: Path,
        *,
        kind: Kind,
        day: int,
        handle: Handle,
        chain: bytes,
        failpoint: Failpoint,
    ) -> None:
        self.kind = kind
        self.day = day
        self.entry: SegmentEntry | None = None
        self._env = tables.env
        self._fixed = tables.fixed
        self._handle = handle
        self._chain_before = self._chain = chain
        self._batch: list[LedgerRow] = []
        self._writer = SegmentWriter(folder, kind, day)
        self._next_key = b""
        self._own_first = self._own_last = 0
        self._failpoint = failpoint

    def step(self) -> bool:
        """Copy about STEP_BYTES. True when the segment is complete and durable.

        Raises StoreError: fatal, the process must end; nothing is lost.
        """
        try:
            # A short transaction for each step: a long one would keep LMDB from reusing any page meanwhile.
            with self._env.begin() as txn:
                more = self._copy(txn.cursor(self._handle))
            if more:
                return False
            if self._batch:
                self._chain = extend_chain(self._chain, self._batch)
            self._failpoint("seal: before the file is durable")
            file_bytes, sha256 = self._writer.finish()
        except (lmdb.Error, OSError) as error:
            raise StoreError(f"sealing {self._writer.path.name} failed: {error}") from error
        ledger = self.kind == Kind.ledger
        self.entry = SegmentEntry(
            self.kind,
            self.day,
            self._writer.path.name,
            self._own_first,
            self._own_last,
            self._writer.rows,
            self._writer.raw_bytes,
            file_bytes,
            sha256,
            self._chain_before if ledger else b"",
            self._chain if ledger else b"",
        )
        self._failpoint("seal: after the file is durable")
        return True

    def _copy(self, cursor: Cursor) -> bool:
        size = 0
        found = cursor.set_range(self._next_key) if self._next_key else cursor.first()
        while found and size < STEP_BYTES:
            value = cursor.value()
            size += len(value)
            rows = (
                [ROW_DECODERS[self.kind](value)] if self.kind == Kind.closed_orders else decode_block(self.kind, value)
            )
            self._note(rows)
            self._writer.add(encode_rows(self.kind, rows))
            found = cursor.next()
        self._next_key = cursor.key() if found else b""
        return bool(found)

    def _note(self, rows: list[Any]) -> None:
        row_id = ROW_ID[self.kind]
        for row in rows:
            if isinstance(row, OrderRecord) and is_stray(row, self.day):
                continue
            self._own_first = self._own_first or row_id(row)
            self._own_last = row_id(row)
        if self.kind == Kind.ledger:
            for index, batch in groupby(rows, key=lambda row: row.index):
                if self._batch and self._batch[0].index != index:
                    self._chain = extend_chain(self._chain, self._batch)
                    self._batch = []
                self._batch.extend(batch)

    def commit(self) -> None:
        """Enter the segment in the manifest and drop the day's table, in one transaction.

        Raises StoreFull or StoreError: fatal; the table and the file both stay.
        """
        if self.entry is None:
            raise StoreError(f"{self.kind} of day {self.day}: committed before its segment was complete")
        try:
            with self._env.begin(write=True) as txn:
                txn.put(entry_key(self.kind, self.day), encode_record(self.entry), db=self._fixed[SEGMENTS])
                txn.drop(self._handle)
                self._failpoint("seal: inside the transaction")
        except lmdb.MapFullError as error:
            raise StoreFull(f"no room to seal {self.entry.file}: {error}") from error
        except lmdb.Error as error:
            raise StoreError(f"sealing {self.entry.file} failed: {error}") from error
        self._failpoint("seal: after the transaction")


class Prune:
    """Deletes segments past retention; made by `Store.begin_prune`, `commit` runs in a worker."""

    def __init__(self, tables: Tables, folder: Path, entries: list[SegmentEntry], failpoint: Failpoint) -> None:
        self.entries = entries
        self._env = tables.env
        self._fixed = tables.fixed
        self._folder = folder
        self._failpoint = failpoint

    def commit(self) -> None:
        """Forget the segments in one transaction, then delete their files. Raises StoreError: fatal."""
        try:
            with self._env.begin(write=True) as txn:
                for entry in self.entries:
                    txn.delete(entry_key(entry.kind, entry.day), db=self._fixed[SEGMENTS])
                    pruned = Pruned(entry.day, entry.last_id, entry.chain_after)
                    txn.put(PRUNED_KEY + entry.kind.encode(), encode_record(pruned), db=self._fixed[INFO])
                    if entry.kind == Kind.closed_orders:
                        for key in list(strays_of(txn.cursor(self._fixed[STRAYS]), entry.day)):
                            txn.delete(key, db=self._fixed[STRAYS])
                self._failpoint("prune: inside the transaction")
            self._failpoint("prune: after the transaction")
            for entry in self.entries:
                (self._folder / entry.file).unlink(missing_ok=True)
            fsync_folder(self._folder)
        except (lmdb.Error, OSError) as error:
            raise StoreError(f"pruning failed: {error}") from error


def strays_of(cursor: Cursor, day: int) -> Iterator[bytes]:
    day_bytes = day.to_bytes(4, "big")
    for key, value in cursor:
        if value == day_bytes:
            yield key


def remove_leftovers(folder: Path, entries: list[SegmentEntry]) -> list[str]:
    """Delete files of segments that the manifest does not name; a crash left them. Returns their names."""
    known = {entry.file for entry in entries}
    removed = []
    for path in sorted(folder.iterdir()):
        if path.name not in known and path.suffix in {".seg", ".part"}:
            path.unlink()
            removed.append(path.name)
    if removed:
        fsync_folder(folder)
    return removed
