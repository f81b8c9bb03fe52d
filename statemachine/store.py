"""The durable state of one replica: records, keys and history in LMDB, old history in sealed segments.

The machine applies in memory and hands each batch over (`add`); from then on every read sees it. From
time to time all that changed goes to disk as one transaction, with the applied index and the digest:
`begin` on the loop, `Flush.write` in a worker thread, `finish` on the loop. After a crash the store
stands at the last such index, and the log is replayed from there.
"""

import os
from pathlib import Path

import lmdb
from msgspec import Struct, msgpack

from statemachine.codec import UnknownFormat
from statemachine.records import (
    ACCOUNTS,
    RECORDS_VERSION,
    AccountRecord,
    Applied,
    Changes,
    KeyRecord,
    StoredState,
    encode_record,
)
from statemachine.segments import Segment, SegmentEntry
from statemachine.store_files import (
    DATA_FILE,
    SEGMENTS_FOLDER,
    Failpoint,
    ForeignStore,
    OwnerLock,
    StoreDamaged,
    StoreError,
    check_folder,
    fsync_folder,
    make_folder,
    no_failpoint,
)
from statemachine.store_flush import Flush
from statemachine.store_pending import Generation
from statemachine.store_pinned import PinnedState
from statemachine.store_rows import Kind, day_of
from statemachine.store_sealing import Prune, Pruned, Retention, Seal, remove_leftovers
from statemachine.store_tables import (
    IDENTITY_KEY,
    INFO,
    KEYS,
    RESULTS,
    Handle,
    Tables,
    make_environment,
    open_environment,
)
from statemachine.store_view import Identity, View, decode_account, decode_identity

MAP_SIZE_BYTES = 64 << 30
PENDING_BYTES_MAX = 64 << 20
LOW_WATER_BYTES = 64 << 20


class Space(Struct, frozen=True):
    """Room left, in bytes. map_free: in LMDB's map; disk_free: of the file system, for us.

    low: too little to be sure that what is pending can be written and that the next flush can, too.
    """

    map_free_bytes: int
    disk_free_bytes: int
    pending_bytes: int
    low: bool


_decode_key = msgpack.Decoder(KeyRecord).decode


class Store:
    """Opens or creates the folder and holds it until `close`. One event loop uses it.

    map_size_bytes: the most that LMDB may ever use; address space, not disk. It may grow between starts.
    low_water_bytes: with less room than this (map or disk), `space().low` is set.

    Raises StoreLocked, ForeignStore, StoreDamaged; UnknownFormat for another version's records.
    """

    def __init__(
        self,
        path: Path,
        *,
        cluster_id: str,
        member: str,
        map_size_bytes: int = MAP_SIZE_BYTES,
        pending_bytes_max: int = PENDING_BYTES_MAX,
        low_water_bytes: int = LOW_WATER_BYTES,
        retention: Retention | None = None,
        failpoint: Failpoint = no_failpoint,
    ) -> None:
        self.path = path
        self.segments_path = path / SEGMENTS_FOLDER
        self.retention = retention or Retention()
        self._map_size_bytes = map_size_bytes
        self._pending_bytes_max = pending_bytes_max
        self._low_water_bytes = low_water_bytes
        self._failpoint = failpoint
        self._flying: Flush | None = None
        self._generations: list[Generation] = [Generation()]
        """Oldest first: the one being written, if any, and the one that collects."""
        self._garbage = Generation()
        """What the last flush wrote; the worker of the next one frees it."""
        check_folder(path)
        make_folder(self.segments_path)
        self._lock = OwnerLock(path, f"cluster {cluster_id}, member {member}")
        try:
            if not (path / DATA_FILE).exists():
                make_environment(path)
            self._tables = Tables(open_environment(path, map_size_bytes))
            try:
                self._start(Identity(RECORDS_VERSION, cluster_id, member))
            except lmdb.Error as error:
                self._tables.close()
                raise StoreDamaged(f"{path}: {error}") from error
            except BaseException:
                self._tables.close()
                raise
        except BaseException:
            self._lock.release()
            raise

    def _start(self, identity: Identity) -> None:
        self._check_identity(identity)
        self._tables.create_fixed(encode_record(identity))
        self._tables.open_all()
        # Whoever wrote what is here, a process that was killed or one that copied a backup, may not have synced it,
        # nor its names; all of it counts as stored from now on.
        self._tables.env.sync(True)
        fsync_folder(self.path)
        fsync_folder(self.path.parent)
        self._view = View(self._tables, self.segments_path, self._generations)
        self.history = self._view.history
        remove_leftovers(self.segments_path, self._view.entries())
        self._index_buckets()

    def _check_identity(self, identity: Identity) -> None:
        """Refuse another's folder before anything is written to it."""
        found = read_identity(self._tables.env)
        if found is None:
            return
        if found.version != identity.version:
            raise UnknownFormat(f"{self.path}: records version {found.version}; this program knows {identity.version}")
        if found.cluster_id != identity.cluster_id:
            raise ForeignStore(f"{self.path} belongs to cluster {found.cluster_id!r}, not to {identity.cluster_id!r}")
        if found.member != identity.member:
            raise ForeignStore(f"{self.path} belongs to member {found.member!r}, not to {identity.member!r}")

    def close(self) -> None:
        """Let go of the folder. What is pending is not written: the log has it."""
        for log in self.history.logs.values():
            for segment in log.segments:
                segment.close()
        self._tables.close()
        self._lock.release()

    # ---- what the machine starts from and reads ----

    @property
    def stored_index(self) -> int:
        """The last log index that is durable here; 0 for an empty store."""
        meta = self._view.meta
        return meta.applied_index if meta else 0

    def load(self) -> StoredState | None:
        """The state to go on from; None for an empty store. Accounts are not read: see `account`.

        Raises StoreDamaged when a record can't be decoded, UnknownFormat for another version's.
        """
        return self._view.load()

    def account(self, account: str) -> AccountRecord | None:
        key = account.encode()
        value = self._flying.accounts.get(key) if self._flying is not None else None
        if value is None:
            value = self._tables.reader().get(key, db=self._tables.fixed[ACCOUNTS])
        return None if value is None else decode_account(value)

    def key(self, digest: bytes, bucket_min: int) -> KeyRecord | None:
        """The newest record of a key in any bucket from bucket_min on."""
        for generation in reversed(self._generations):
            found = generation.keys.get(digest)
            if found is not None:
                return found[1] if found[0] >= bucket_min else None
        reader = self._tables.reader()
        for bucket, handle in self._key_tables:
            if bucket < bucket_min:
                return None
            value = reader.get(digest, db=handle)
            if value is not None:
                return _decode_key(value)
        return None

    def _index_buckets(self) -> None:
        self._key_tables: list[tuple[int, Handle]] = sorted(self._tables.families[KEYS].items(), reverse=True)

    def pin(self) -> PinnedState:
        """The current records as of the last commit, to be paged through and closed soon."""
        return PinnedState(self._tables, self.segments_path)

    # ---- what the machine hands over ----

    def add(self, applied: Applied) -> None:
        """Take one batch's answers, events and rows; reads see them at once. Never refuses: it is committed."""
        last = self._generations[-1].last_index or self._last_begun_index
        if applied.index <= last:
            raise StoreError(f"batch {applied.index} handed over after batch {last}: applied twice?")
        self._generations[-1].add(applied)

    @property
    def _last_begun_index(self) -> int:
        return self._flying.meta.applied_index if self._flying is not None else self.stored_index

    @property
    def pending_bytes(self) -> int:
        """Roughly what waits in memory, the flush under way included."""
        return sum(generation.bytes for generation in self._generations)

    @property
    def pending_full(self) -> bool:
        """Flush now, and take no new commands until it is done."""
        return self.pending_bytes >= self._pending_bytes_max

    def begin(self, changes: Changes) -> Flush:
        """Take all that is pending, and the records that changed, into one flush. One at a time.

        Raises StoreError when the records and the pending batches are not of the same index.
        """
        if self._flying is not None:
            raise StoreError(f"the flush up to index {self._flying.meta.applied_index} is still under way")
        generation = self._generations[-1]
        meta = changes.meta
        newest = generation.last_index or self.stored_index
        if meta.applied_index < newest or (generation.last_index and meta.digest != generation.last_digest):
            raise StoreError(
                f"records of index {meta.applied_index}, digest {meta.digest.hex()}, but batches up to {newest}, "
                f"digest {generation.last_digest.hex()}"
            )
        dropped = [
            self._tables.hide(family, bucket)
            for family in (KEYS, RESULTS)
            for bucket in sorted(self._tables.families[family])
            if bucket < changes.drop_buckets_before
        ]
        self._index_buckets()
        self._flying = Flush(
            self._tables,
            generation,
            changes,
            dropped=dropped,
            garbage=self._garbage,
            failpoint=self._failpoint,
        )
        self._generations.append(Generation())
        return self._flying

    def finish(self, flush: Flush) -> None:
        """After `flush.write` returned: reads go to disk for it, and `stored_index` is its index."""
        if flush is not self._flying or not flush.written:
            raise StoreError(f"the flush up to index {flush.meta.applied_index} was not written")
        self._tables.publish(flush.created)
        self._index_buckets()
        self._view.meta = flush.meta
        self._flying = None
        self._generations.remove(flush.generation)
        self._garbage = flush.generation

    def flush(self, changes: Changes) -> None:
        """All three steps at once, for programs without a loop."""
        flush = self.begin(changes)
        flush.write()
        self.finish(flush)

    # ---- days that are over ----

    def begin_seal(self) -> Seal | None:
        """The next day's history to be sealed, or None. Run `step` in a worker until it is True, then
        `publish_seal` on the loop, then `Seal.commit` in a worker. One at a time."""
        if self._view.meta is None:
            return None
        today = day_of(self._view.meta.time_us)
        due = [(day, kind) for kind in Kind for day in self._tables.families[kind] if day < today]
        if not due:
            return None
        day, kind = min(due)
        handle = self._tables.families[kind][day]
        return Seal(
            self._tables,
            self.segments_path,
            kind=kind,
            day=day,
            handle=handle,
            chain=self._view.chain_at_end() if kind == Kind.ledger else b"",
            failpoint=self._failpoint,
        )

    def publish_seal(self, seal: Seal) -> None:
        """From here on the day is read from its segment; its table may be dropped."""
        if seal.entry is None:
            raise StoreError(f"{seal.kind} of day {seal.day}: published before its segment was complete")
        self.history.logs[seal.kind].segments.append(Segment(self.segments_path, seal.entry))
        self._tables.hide(seal.kind, seal.day)

    def begin_prune(self) -> Prune | None:
        """Take segments past retention out of reach, or None. Run `Prune.commit` in a worker."""
        if self._view.meta is None:
            return None
        today = day_of(self._view.meta.time_us)
        gone: list[SegmentEntry] = []
        for kind, log in self.history.logs.items():
            while log.segments and log.segments[0].entry.day < today - self.retention.days(kind):
                segment = log.segments.pop(0)
                segment.close()
                gone.append(segment.entry)
                self._note_pruned(segment.entry)
        return Prune(self._tables, self.segments_path, gone, self._failpoint) if gone else None

    def _note_pruned(self, entry: SegmentEntry) -> None:
        self._view.pruned[entry.kind] = Pruned(entry.day, entry.last_id, entry.chain_after)
        if entry.kind == Kind.events:
            self.history.first_event_index = entry.last_id + 1

    def seal_and_prune(self) -> None:
        """All that is due, at once, for programs without a loop."""
        while (seal := self.begin_seal()) is not None:
            while not seal.step():
                pass
            self.publish_seal(seal)
            seal.commit()
        prune = self.begin_prune()
        if prune is not None:
            prune.commit()

    # ---- room and cost ----

    def space(self) -> Space:
        """How much room is left. Refuse new commands while it is low: a flush that fails ends the process."""
        page_bytes = self._tables.env.stat()["psize"]
        free_map = self._map_size_bytes - sum(self._view.table_bytes().values()) - 16 * page_bytes
        disk = os.statvfs(self.path)
        free_disk = disk.f_bavail * disk.f_frsize
        # A flush rewrites every page that it touches, so it needs several times its own bytes for a while.
        needed = self._low_water_bytes + 4 * self.pending_bytes
        return Space(free_map, free_disk, self.pending_bytes, min(free_map, free_disk) < needed)

    def bytes_on_disk(self) -> dict[str, int]:
        """Bytes by kind: tables and sealed segments."""
        return self._view.bytes_on_disk()

    def bytes_per_order(self) -> dict[str, float]:
        """Bytes on disk by kind, divided by the orders ever entered."""
        return self._view.bytes_per_order()


def read_identity(env: lmdb.Environment) -> Identity | None:
    """Whose environment this is; None for one that was never written."""
    if INFO.encode() not in env.dbs():
        if env.dbs():
            raise ForeignStore(f"{env.path()} is an LMDB environment, but no store of ours")
        return None
    info = env.open_db(INFO.encode(), create=False)
    with env.begin() as txn:
        value = txn.get(IDENTITY_KEY, db=info)
    return None if value is None else decode_identity(value)
