"""One flush: everything handed over since the last one, as a single transaction, written in a worker thread."""

import errno

import lmdb

from statemachine.records import ACCOUNTS, Changes, encode_record, id_key
from statemachine.store_files import Failpoint, StoreError, StoreFull
from statemachine.store_pending import Generation, is_stray
from statemachine.store_rows import HOT_BLOCK_BYTES, Kind, ResultBatch, encode_rows, pack
from statemachine.store_tables import (
    INFO,
    KEYS,
    META_KEY,
    RESULTS,
    STRAYS,
    Cursor,
    Handle,
    Tables,
    Transaction,
    create_table,
)
from statemachine.types import KEY_BUCKET_US


class Flush:
    """Made by `Store.begin` on the loop, written once by a worker, finished by `Store.finish` on the loop."""

    def __init__(
        self,
        tables: Tables,
        generation: Generation,
        changes: Changes,
        *,
        dropped: list[Handle],
        garbage: Generation,
        failpoint: Failpoint,
    ) -> None:
        self.generation = generation
        self.meta = changes.meta
        self.accounts = {key: value for table, key, value in changes.puts if table == ACCOUNTS}
        self.created: dict[tuple[str, int], Handle] = {}
        self.written = False
        self._env = tables.env
        self._fixed = tables.fixed
        self._known = {family: dict(numbers) for family, numbers in tables.families.items()}
        self._changes = changes
        self._dropped = dropped
        self._garbage = garbage
        self._failpoint = failpoint

    def write(self) -> None:
        """Write all of it and return when it is on disk. Takes milliseconds to seconds; never on the loop.

        Raises StoreFull or StoreError: nothing of it is stored, and the process must end.
        """
        try:
            self._failpoint("flush: before the transaction")
            with self._env.begin(write=True) as txn:
                self._write_history(txn)
                self._write_keys(txn)
                self._write_records(txn)
                for handle in self._dropped:
                    txn.drop(handle)
                txn.put(META_KEY, encode_record(self.meta), db=self._fixed[INFO])
                self._failpoint("flush: inside the transaction")
            self._failpoint("flush: after the transaction")
        except lmdb.MapFullError as error:
            raise StoreFull(f"the map of {self._env.info()['map_size']} bytes is full: {error}") from error
        except lmdb.Error as error:
            if error.code == errno.ENOSPC:
                raise StoreFull(f"the disk is full: {error}") from error
            raise StoreError(f"the flush up to index {self.meta.applied_index} failed: {error}") from error
        self._garbage.release()
        self.written = True

    def _table(self, txn: Transaction, family: str, number: int) -> Handle:
        handle = self._known[family].get(number)
        if handle is None:
            handle = create_table(self._env, txn, family, number)
            self._known[family][number] = handle
            self.created[family, number] = handle
        return handle

    def _write_history(self, txn: Transaction) -> None:
        for (kind, day), rows in self.generation.by_day.items():
            cursor = txn.cursor(self._table(txn, kind, day))
            encoded = encode_rows(kind, rows)
            if kind == Kind.closed_orders:
                # Ids come in the order of closing: no blocks, single rows.
                cursor.putmulti(sorted((id_key(number), data) for number, data in encoded))
                strays = sorted(id_key(order.order_id) for order in rows if is_stray(order, day))
                day_bytes = day.to_bytes(4, "big")
                txn.cursor(self._fixed[STRAYS]).putmulti([(key, day_bytes) for key in strays])
            else:
                blocks = [(id_key(first), block) for first, _, block in pack(encoded, HOT_BLOCK_BYTES)]
                self._append(cursor, blocks, f"{kind} of day {day}")
        self._write_results(txn)

    def _write_results(self, txn: Transaction) -> None:
        by_bucket: dict[int, list[tuple[int, bytes]]] = {}
        for index, (time_us, results) in self.generation.results.items():
            row = (index, encode_record(ResultBatch(index, results)))
            by_bucket.setdefault(time_us // KEY_BUCKET_US, []).append(row)
        for bucket, rows in by_bucket.items():
            if bucket >= self._changes.drop_buckets_before:
                blocks = [(id_key(first), block) for first, _, block in pack(rows, HOT_BLOCK_BYTES)]
                self._append(txn.cursor(self._table(txn, RESULTS, bucket)), blocks, f"results of bucket {bucket}")

    def _append(self, cursor: Cursor, blocks: list[tuple[bytes, bytes]], what: str) -> None:
        """Ids only ever grow: one that does not is a batch stored twice."""
        _, added = cursor.putmulti(blocks, append=True)
        if added != len(blocks):
            raise StoreError(f"{what}: {added} of {len(blocks)} blocks appended; the rest are not after what is stored")

    def _write_keys(self, txn: Transaction) -> None:
        by_bucket: dict[int, list[tuple[bytes, bytes]]] = {}
        for digest, (bucket, record) in self.generation.keys.items():
            if bucket >= self._changes.drop_buckets_before:
                by_bucket.setdefault(bucket, []).append((digest, encode_record(record)))
        for bucket, keys in by_bucket.items():
            keys.sort()
            txn.cursor(self._table(txn, KEYS, bucket)).putmulti(keys)

    def _write_records(self, txn: Transaction) -> None:
        deletes: dict[str, list[bytes]] = {}
        for table, key in self._changes.deletes:
            deletes.setdefault(table, []).append(key)
        puts: dict[str, list[tuple[bytes, bytes]]] = {}
        for table, key, value in self._changes.puts:
            puts.setdefault(table, []).append((key, value))
        for table, keys in deletes.items():
            handle = self._fixed[table]
            both = set(keys).intersection(key for key, _ in puts.get(table, ()))
            if both:
                raise StoreError(f"{table}: {min(both).hex()} is put and deleted in one flush")
            for key in sorted(keys):
                txn.delete(key, db=handle)
        for table, items in puts.items():
            items.sort()
            txn.cursor(self._fixed[table]).putmulti(items)
