"""The gateway's own LMDB: what users wrote, synced before they are answered; many writes share one sync."""

import asyncio
import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, cast
from zlib import crc32

import lmdb
import msgspec
from msgspec import Struct

from gateway.prefs.crdt import EMPTY, Document, Malformed, decode, encode
from gateway.prefs.digests import HASH_BYTES, Digests, hash_of
from gateway.prefs.errors import PrefsError, StoreBusy, StoreFailed, StoreFull, StoreRefused
from gateway.prefs.hlc import Clock, Stamp, new_incarnation, wall_ms
from statemachine.store_files import DATA_FILE, OwnerLock, StoreLocked, fsync_folder, make_folder

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
MAP_BYTES = 16 << 30
"""Address space; the disk is used only as the store grows."""
WAITING_MAX = 20_000
BATCH_MAX = 1_000
FREE_BYTES_MIN = 64 << 20
"""With less room on the disk no writes are taken but those that make room."""
USER_CHARS_MAX = 64
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
TABLES = ("documents", "meta", "outbox", "dead")

T = TypeVar("T")


class Identity(Struct, frozen=True, array_like=True):
    format_version: int
    cluster_id: str
    site: str
    incarnation: str


class Change(Struct, frozen=True):
    """A document that is on disk now. from_peer: it came by a merge, not from a user here."""

    user: str
    before: Document
    after: Document
    digest: bytes
    from_peer: bool


Changed = Callable[[Change], None]


class Writing:
    """One write under way, in the worker thread: reads its own changes; all of them happen, or none."""

    def __init__(self, transaction: lmdb.Transaction, tables: dict[str, Any], clock: Clock) -> None:
        self._transaction = transaction
        self._tables = tables
        self.clock = clock
        self.changes: dict[str, Change] = {}

    def document(self, user: str) -> Document:
        raw = self._transaction.get(user.encode(), db=self._tables["documents"])
        return EMPTY if raw is None else decode(raw[HASH_BYTES:])

    def put(self, user: str, document: Document, *, from_peer: bool = False) -> None:
        before = self.changes[user].before if user in self.changes else self.document(user)
        raw = encode(document)
        digest = hash_of(user, raw)
        self._transaction.put(user.encode(), digest + raw, db=self._tables["documents"])
        self.changes[user] = Change(user, before, document, digest, from_peer)

    def row(self, table: str, key: bytes) -> bytes | None:
        raw = self._transaction.get(key, db=self._tables[table])
        return None if raw is None else _opened(bytes(raw), f"{table} {key!r}")

    def put_row(self, table: str, key: bytes, row: bytes) -> None:
        self._transaction.put(key, _sealed(row), db=self._tables[table])

    def delete_row(self, table: str, key: bytes) -> bool:
        """False: it was not there."""
        return bool(self._transaction.delete(key, db=self._tables[table]))

    def delete_first(self, table: str) -> None:
        with self._transaction.cursor(self._tables[table]) as cursor:
            if cursor.first():
                cursor.delete()

    def count(self, table: str) -> int:
        return int(self._transaction.stat(self._tables[table])["entries"])

    def count_from(self, table: str, prefix: bytes, most: int) -> int:
        """Rows whose key begins so, counted up to `most`."""
        found = 0
        with self._transaction.cursor(self._tables[table]) as cursor:
            there = cursor.set_range(prefix)
            while there and found < most and bytes(cursor.key()).startswith(prefix):
                found += 1
                there = cursor.next()
        return found


class Job(Struct):
    work: Callable[[Writing], Any]
    future: "asyncio.Future[Any]"
    frees: bool


class Outcome(Struct):
    """What the worker hands back: per job a result or an error, and what changed on disk."""

    results: list[tuple[Any, Exception | None]]
    changes: list[Change]
    broken: str = ""


class Store:
    """One owner per folder. All methods belong to the loop's thread; only `work` runs in the worker.

    Reads are of what is synced, so nobody sees a write that a power cut could take back.
    Raises StoreRefused: the folder is another's, in use, or damaged (then move it away: the peer fills a new one).
    """

    def __init__(
        self,
        folder: Path,
        *,
        cluster_id: str,
        site: str,
        map_bytes: int = MAP_BYTES,
        free_bytes_min: int = FREE_BYTES_MIN,
        wall: Callable[[], int] = wall_ms,
    ) -> None:
        self._folder = folder
        self._free_bytes_min = free_bytes_min
        self._waiting: list[Job] = []
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False
        self.broken = ""
        """Why nothing is written any more; empty while all is well."""
        self.syncs = 0
        self.digests = Digests()
        self._changed: list[Changed] = []
        make_folder(folder)
        try:
            self._lock = OwnerLock(folder, f"gateway of {site}")
        except StoreLocked as error:
            raise StoreRefused(str(error)) from error
        try:
            self._open(cluster_id, site, map_bytes, wall)
        except lmdb.Error as error:
            self._lock.release()
            raise StoreRefused(f"{folder}: {error}") from error
        except StoreRefused:
            self._env.close()
            self._lock.release()
            raise
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefs")

    def _open(self, cluster_id: str, site: str, map_bytes: int, wall: Callable[[], int]) -> None:
        if not (self._folder / DATA_FILE).exists():
            _make(self._folder, Identity(FORMAT_VERSION, cluster_id, site, new_incarnation(site)), map_bytes)
        self._env = _environment(self._folder, map_bytes)
        self._tables = {name: self._env.open_db(name.encode()) for name in TABLES}
        # Whoever wrote what is here may have been killed before its sync. It counts as durable from now on.
        self._env.sync(True)
        fsync_folder(self._folder)
        identity = self._meta("identity", Identity)
        if identity is None:
            raise StoreRefused(f"{self._folder}: an LMDB file that is no store of preferences")
        for field, ours in (("format_version", FORMAT_VERSION), ("cluster_id", cluster_id), ("site", site)):
            if (found := getattr(identity, field)) != ours:
                raise StoreRefused(f"{self._folder}: its {field} is {found!r}, this gateway's is {ours!r}")
        self.cluster_id = cluster_id
        self.site = site
        self._identity = identity
        self.commits = self._meta("commits", int) or 0
        self.clock = Clock(identity.incarnation, last=self._meta("clock", Stamp), wall=wall)
        self._load()

    def _meta(self, name: str, kind: type[T]) -> T | None:
        with self._env.begin(db=self._tables["meta"]) as transaction:
            raw = transaction.get(name.encode())
        try:
            return None if raw is None else msgspec.msgpack.decode(_opened(raw, name), type=kind)
        except (msgspec.DecodeError, Malformed) as error:
            raise StoreRefused(f"{self._folder}: {name} is damaged: {error}") from error

    def _load(self) -> None:
        """Check every document against its checksum."""
        with self._env.begin(db=self._tables["documents"], buffers=True) as transaction:
            for key, value in transaction.cursor():
                user, digest = bytes(key).decode(), bytes(value[:HASH_BYTES])
                if hash_of(user, value[HASH_BYTES:]) != digest:
                    raise StoreRefused(
                        f"{self._folder}: the document of {user!r} is damaged: its checksum is wrong. "
                        "Move the folder away; a new one is filled by the other site"
                    )
                self.digests.set(user, digest)

    @property
    def incarnation(self) -> str:
        return self._identity.incarnation

    # -- reading -------------------------------------------------------------------------------

    def raw(self, user: str) -> bytes | None:
        """The encoded document, as it is sent to the peer."""
        with self._env.begin(db=self._tables["documents"]) as transaction:
            found = transaction.get(user.encode())
        return None if found is None else found[HASH_BYTES:]

    def document(self, user: str) -> Document:
        found = self.raw(user)
        return EMPTY if found is None else decode(found)

    def documents(self) -> Iterator[tuple[str, Document]]:
        """All of them at one moment; for a start, not for a request."""
        with self._env.begin(db=self._tables["documents"]) as transaction:
            for key, value in transaction.cursor():
                yield key.decode(), decode(value[HASH_BYTES:])

    def rows(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        with self._env.begin(db=self._tables[table]) as transaction:
            for key, value in transaction.cursor():
                yield bytes(key), _opened(value, f"{table} {key!r}")

    def on_change(self, listener: Changed) -> None:
        """It is called on the loop after the sync, before the writer has its answer."""
        self._changed.append(listener)

    def used_bytes(self) -> int:
        info, stat = self._env.info(), self._env.stat()
        return int((info["last_pgno"] + 1) * stat["psize"])

    # -- writing -------------------------------------------------------------------------------

    async def write(self, work: Callable[[Writing], T], *, frees: bool = False) -> T:
        """Run `work` in the worker and return what it returns when its changes are on disk.

        An error from `work` undoes its changes and no other's. frees: it makes room, so it is tried on a full disk.

        Raises:
            StoreBusy, StoreFull: nothing was changed; try later.
            StoreFailed: the disk failed. What was written may or may not be there after a restart.
        """
        if self.broken or self._closing:
            raise StoreFailed(self.broken or "the gateway is stopping")
        if len(self._waiting) >= WAITING_MAX:
            raise StoreBusy(f"{WAITING_MAX} writes wait for the disk")
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(Job(work, future, frees))
        if self._idle.is_set():
            self._idle.clear()
            # Not at once: what else is written in this round of the loop shares the sync.
            asyncio.get_running_loop().call_soon(self._begin)
        return cast(T, await future)

    def _begin(self) -> None:
        jobs, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
        if not jobs:
            self._idle.set()
            return
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._pool, self._commit, jobs)
        running.add_done_callback(lambda done: self._finished(jobs, done.result()))

    def _commit(self, jobs: list[Job]) -> Outcome:
        """In the worker."""
        try:
            return self._transact(jobs)
        except (lmdb.Error, OSError) as error:
            if _is_full(error):
                return Outcome([(None, StoreFull(f"{self._folder}: {error}"))] * len(jobs), [])
            # After a failed sync nobody knows what is on the disk, and asking again may be answered with a lie.
            broken = f"{self._folder}: {error}"
            log.critical("a write of preferences failed: %s; nothing more is written", error)
            return Outcome([(None, StoreFailed(broken))] * len(jobs), [], broken)
        except Exception as error:
            log.critical("writing preferences failed", exc_info=True)
            return Outcome([(None, StoreFailed(repr(error)))] * len(jobs), [], repr(error))

    def _transact(self, jobs: list[Job]) -> Outcome:
        room = shutil.disk_usage(self._folder).free >= self._free_bytes_min
        results: list[tuple[Any, Exception | None]] = []
        changes: list[Change] = []
        with self._env.begin(write=True) as transaction:
            for job in jobs:
                if not room and not job.frees:
                    results.append((None, StoreFull(f"less than {self._free_bytes_min >> 20} MiB left on the disk")))
                    continue
                result, error, changed = self._run(transaction, job)
                results.append((result, error))
                changes += changed
            meta = self._tables["meta"]
            transaction.put(b"clock", _sealed(msgspec.msgpack.encode(self.clock.last())), db=meta)
            transaction.put(b"commits", _sealed(msgspec.msgpack.encode(self.commits + 1)), db=meta)
        self.commits += 1
        self.syncs += 1
        return Outcome(results, changes)

    def _run(self, transaction: lmdb.Transaction, job: Job) -> tuple[Any, Exception | None, list[Change]]:
        child = self._env.begin(write=True, parent=transaction)
        writing = Writing(child, self._tables, self.clock)
        try:
            result = job.work(writing)
        except lmdb.Error:
            raise
        except Exception as error:
            child.abort()
            if not isinstance(error, PrefsError):
                log.error("a write of preferences raised %r", error, exc_info=True)
            return None, error, []
        child.commit()
        return result, None, list(writing.changes.values())

    def _finished(self, jobs: list[Job], outcome: Outcome) -> None:
        """On the loop again."""
        self.broken = self.broken or outcome.broken
        for change in outcome.changes:
            # One batch may write a user's document twice: the last one is on disk.
            self.digests.set(change.user, change.digest)
        for change in outcome.changes:
            self._tell(change)
        for job, (result, error) in zip(jobs, outcome.results, strict=True):
            if job.future.done():  # whoever asked has gone
                continue
            if error is not None:
                job.future.set_exception(error)
            else:
                job.future.set_result(result)
        if self.broken:
            self._give_up()
        self._begin()

    def _tell(self, change: Change) -> None:
        for listener in self._changed:
            try:
                listener(change)
            except Exception:
                # A mistake of one who listens must not leave all who write without an answer.
                log.error("a listener to changes failed", exc_info=True)

    def _give_up(self) -> None:
        waiting, self._waiting = self._waiting, []
        for job in waiting:
            if not job.future.done():
                job.future.set_exception(StoreFailed(self.broken))

    async def renew_incarnation(self) -> str:
        """Write under a new name from now on: the disk was found to be older than what the peer has seen of it."""
        identity = Identity(FORMAT_VERSION, self.cluster_id, self.site, new_incarnation(self.site))

        def work(writing: Writing) -> None:
            writing.put_row("meta", b"identity", msgspec.msgpack.encode(identity))
            writing.clock.writer = identity.incarnation

        await self.write(work, frees=True)
        log.warning("%s writes as %s from now on, no more as %s", self.site, identity.incarnation, self.incarnation)
        self._identity = identity
        return identity.incarnation

    async def close(self) -> None:
        """Writes that were taken are finished; the folder is free then."""
        self._closing = True
        await self._idle.wait()
        self._pool.shutdown(wait=True)
        self._env.close()
        self._lock.release()


def _environment(folder: Path, map_bytes: int) -> lmdb.Environment:
    # sync and metasync: a commit returns only when data and meta page are on disk.
    return lmdb.open(
        str(folder),
        map_size=map_bytes,
        max_dbs=len(TABLES),
        sync=True,
        metasync=True,
        readahead=False,
        max_spare_txns=4,
    )


def _make(folder: Path, identity: Identity, map_bytes: int) -> None:
    """An empty store. Made aside and moved whole: LMDB can't open a file that a power cut left half made."""
    aside = folder / "new"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    with _environment(aside, map_bytes) as env:
        tables = {name: env.open_db(name.encode()) for name in TABLES}
        with env.begin(write=True, db=tables["meta"]) as transaction:
            transaction.put(b"identity", _sealed(msgspec.msgpack.encode(identity)))
    (aside / DATA_FILE).rename(folder / DATA_FILE)
    fsync_folder(folder)
    shutil.rmtree(aside)


def _is_full(error: Exception) -> bool:
    if isinstance(error, lmdb.MapFullError):
        return True
    said = str(error)
    return any(os.strerror(number) in said for number in NO_ROOM)


def _sealed(raw: bytes) -> bytes:
    return crc32(raw).to_bytes(4, "big") + raw


def _opened(sealed: bytes, what: str) -> bytes:
    if crc32(sealed[4:]).to_bytes(4, "big") != sealed[:4]:
        raise Malformed(f"{what} is damaged: its checksum is wrong")
    return sealed[4:]
