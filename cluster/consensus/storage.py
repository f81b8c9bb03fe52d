"""The log on disk: LMDB, one synced transaction per group, a checksum per record, one owner per folder."""

import asyncio
import errno
import fcntl
import os
import shutil
import struct
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4
from zlib import crc32

import lmdb
import msgspec
from msgspec import Struct

from cluster.consensus.ahead import ReadAhead
from cluster.consensus.audited import NO_OP
from cluster.consensus.journal import (
    CONFIGURATION,
    Base,
    Change,
    Committed,
    CutFrom,
    Disk,
    Entry,
    JournalRefused,
    Loaded,
    PeerDisks,
    Put,
    StartAfter,
    TrimTo,
    Vote,
    newest_of,
)
from cluster.consensus.wholeness import NotWhole, check_roots

FORMAT_VERSION = 1
LOCK_FILE = "owner.lock"
DATA_FILE = "data.mdb"

_key = struct.Struct(">Q")
_head = struct.Struct(">QI")  # term, crc32 over key, term and command

WHEN_DAMAGED = "keep the member's data folder aside and start it with an empty one: the others bring it up anew"

# Every key of the table `meta`. written: the LMDB transaction that wrote the newest group.
META_KEYS = frozenset((b"identity", b"vote", b"commit", b"disk", b"peers", b"base", b"written"))


class Identity(Struct, frozen=True, forbid_unknown_fields=True):
    format_version: int
    cluster_id: str
    member: str


class LmdbStorage:
    """map_bytes: address space to reserve; disk is used only as the log grows.

    Raises JournalRefused when the folder belongs to another member or cluster, is held by another process,
    or when any record's checksum is wrong.
    """

    def __init__(self, folder: Path, *, cluster_id: str, member: str, map_bytes: int = 64 << 30) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._lock = _hold(folder / LOCK_FILE)
        identity = Identity(FORMAT_VERSION, cluster_id, member)
        try:
            if not (folder / DATA_FILE).exists():
                _make(folder, identity, map_bytes)
            whole_bytes = check_roots(folder / DATA_FILE)
            if (folder / DATA_FILE).stat().st_size < whole_bytes:
                os.truncate(folder / DATA_FILE, whole_bytes)
            # sync and metasync: a commit returns only when data and meta page are on disk.
            self._env = lmdb.open(str(folder), map_size=map_bytes, max_dbs=2, sync=True, metasync=True, readahead=False)
            self._log, self._meta = _tables(self._env, folder)
            self._identify(identity)
            # Whoever wrote what is here, a process that was killed or one that copied a backup, may not have
            # synced it, nor the names of its folders. All of it counts as durable from now on.
            self._env.sync(True)
            _sync_folders(folder)
        except NotWhole as error:
            os.close(self._lock)
            raise JournalRefused(f"{folder / DATA_FILE} is damaged, or no journal: {error}; {WHEN_DAMAGED}") from error
        except (lmdb.CorruptedError, lmdb.InvalidError, lmdb.PageNotFoundError) as error:
            os.close(self._lock)
            raise JournalRefused(f"{folder} is damaged: {error}; {WHEN_DAMAGED}") from error
        except lmdb.Error as error:
            os.close(self._lock)
            raise JournalRefused(f"{folder}: {error}") from error
        except JournalRefused:
            self._env.close()
            os.close(self._lock)
            raise
        self._used_bytes = self._measure()

    def _identify(self, mine: Identity) -> None:
        with self._env.begin() as transaction:
            raw = transaction.get(b"identity", db=self._meta)
        if raw is None:
            raise JournalRefused(f"{self._folder}: an LMDB file that is no journal")
        try:
            found = msgspec.msgpack.decode(_opened(raw, "identity"), type=Identity)
        except msgspec.DecodeError as error:
            raise JournalRefused(f"{self._folder}: identity is damaged: {error}") from error
        for field in Identity.__struct_fields__:
            theirs, ours = getattr(found, field), getattr(mine, field)
            if theirs != ours:
                raise JournalRefused(f"{self._folder}: its {field} is {theirs!r}, this member's is {ours!r}")

    def load(self, *, tail_bytes_max: int) -> Loaded:
        """Check every record. Raises JournalRefused at the first that is damaged or missing, with its index."""
        try:
            return self._load(tail_bytes_max)
        except lmdb.Error as error:
            raise JournalRefused(f"{self._folder} is damaged: {error}; {WHEN_DAMAGED}") from error
        except JournalRefused as error:
            raise JournalRefused(f"{error}; {WHEN_DAMAGED}") from error

    def _load(self, tail_bytes_max: int) -> Loaded:
        tail: list[Entry] = []
        configurations: list[tuple[int, bytes]] = []
        tail_bytes = dropped = 0
        first = last = 0
        scanned_bytes = 0
        with ReadAhead(self._folder / DATA_FILE) as ahead, self._env.begin(buffers=True) as transaction:
            for key, value in transaction.cursor(self._log):
                entry = self._checked(bytes(key), value)
                scanned_bytes += len(value)
                if entry[1] % 256 == 0:
                    ahead.scanned(scanned_bytes / max(1, self._used_bytes))
                if last and entry[1] != last + 1:
                    raise JournalRefused(f"{self._folder}: entry {last + 1} is missing; {entry[1]} follows {last}")
                first, last = first or entry[1], entry[1]
                tail.append(entry)
                if entry[0][:1] == CONFIGURATION:
                    configurations.append((entry[1], entry[0]))
                tail_bytes += len(entry[0])
                while tail_bytes > tail_bytes_max and dropped < len(tail) - 1:
                    tail_bytes -= len(tail[dropped][0])
                    dropped += 1
                if dropped > 4096:
                    del tail[:dropped]
                    dropped = 0
            del tail[:dropped]
            vote = self._get(transaction, "vote", Vote, Vote(0, None))
            commit_index = self._get(transaction, "commit", int, 0)
            disk = self._get(transaction, "disk", Disk, None)
            peer_disk_ids = self._get(transaction, "peers", dict[str, str], {})
            base = self._get(transaction, "base", Base, None)
            self._check_whole(transaction, last - first + 1 if last else 0)
        if commit_index > last > 0:
            raise JournalRefused(f"{self._folder}: committed up to {commit_index}, but the log ends at {last}")
        if disk is None:
            # Written before disks had ids: it has voted and acknowledged, so it has joined.
            disk = Disk(uuid4().hex, joined=True)
            self.write([disk])
        if base is not None:
            configurations = [known for known in configurations if known[0] > base.index]
        return Loaded(first, last, tail, vote, commit_index, disk, peer_disk_ids, base, configurations)

    def _check_whole(self, transaction: lmdb.Transaction, entries: int) -> None:
        """What no record's own checksum tells: that one is hidden, or that all of this is an older state."""
        counted = int(transaction.stat(self._log)["entries"])
        if entries != counted:
            raise JournalRefused(f"{self._folder}: {entries} entries were found, the file counts {counted}")
        keys = [bytes(key) for key in transaction.cursor(self._meta).iternext(values=False)]
        if strange := sorted(set(keys) - META_KEYS):
            raise JournalRefused(f"{self._folder}: a record is called {strange[0]!r}, which none is: it is damaged")
        if len(keys) != (counted := int(transaction.stat(self._meta)["entries"])):
            raise JournalRefused(f"{self._folder}: {len(keys)} records were found, the file counts {counted}")
        written = self._get(transaction, "written", int, None)  # None: from before it was kept
        if written is not None and written != transaction.id():
            raise JournalRefused(
                f"{self._folder}: the newest group is of transaction {written}, the file is at {transaction.id()}: "
                "it shows an older state, or something else wrote to it"
            )

    def _get(self, transaction: lmdb.Transaction, key: str, kind: Any, missing: Any) -> Any:
        raw = transaction.get(key.encode(), db=self._meta)
        return missing if raw is None else msgspec.msgpack.decode(_opened(bytes(raw), key), type=kind)

    def _put(self, transaction: lmdb.Transaction, key: bytes, record: object) -> None:
        transaction.put(key, _sealed(msgspec.msgpack.encode(record)), db=self._meta)

    def read(self, first_index: int, count: int) -> list[Entry]:
        found: list[Entry] = []
        with self._env.begin(buffers=True) as transaction:
            cursor = transaction.cursor(self._log)
            if cursor.set_key(_key.pack(first_index)):
                for key, value in cursor:
                    found.append(self._checked(bytes(key), value))
                    if len(found) >= count:
                        break
        return found

    def _checked(self, key: bytes, value: memoryview) -> Entry:
        try:
            index = int(_key.unpack(key)[0])
        except struct.error as error:
            raise JournalRefused(f"{self._folder}: {key.hex()} is no entry's index: the log is damaged") from error
        try:
            term, sum_ = _head.unpack_from(value)
        except struct.error as error:
            raise JournalRefused(f"{self._folder}: entry {index} is cut short") from error
        command = bytes(value[_head.size :])
        if _sum(key, term, command) != sum_:
            raise JournalRefused(f"{self._folder}: entry {index} (term {term}) is damaged: its checksum is wrong")
        return command, index, term

    def write(self, changes: Sequence[Change]) -> None:
        with self._env.begin(write=True, db=self._log) as transaction:
            for change in changes:
                match change:
                    case Put(index, term, command):
                        key = _key.pack(index)
                        transaction.put(key, _head.pack(term, _sum(key, term, command)) + command)
                    case CutFrom(index):
                        _delete_from(transaction.cursor(), _key.pack(index))
                    case TrimTo(index):
                        _delete_below(transaction.cursor(), _key.pack(index))
                    case StartAfter(index, term):
                        transaction.drop(self._log, delete=False)
                        key = _key.pack(index)
                        transaction.put(key, _head.pack(term, _sum(key, term, NO_OP)) + NO_OP)
                    case Vote():
                        self._put(transaction, b"vote", change)
                    case Committed(index):
                        self._put(transaction, b"commit", index)
                    case Disk():
                        self._put(transaction, b"disk", change)
                    case PeerDisks(disk_ids):
                        self._put(transaction, b"peers", disk_ids)
                    case Base():
                        self._put(transaction, b"base", change)
            self._put(transaction, b"written", transaction.id())
        self._used_bytes = self._measure()

    def used_bytes(self) -> int:
        """Live pages, not the file's length: freed pages are used again."""
        return self._used_bytes

    def _measure(self) -> int:
        with self._env.begin() as transaction:
            stat = transaction.stat(self._log)
        pages = int(stat["branch_pages"]) + int(stat["leaf_pages"]) + int(stat["overflow_pages"])
        return pages * int(stat["psize"])

    def close(self) -> None:
        self._env.close()
        os.close(self._lock)


def start_after(folder: Path, index: int, term: int, base: Base | None, *, cluster_id: str, member: str) -> bool:
    """Let a stopped member's journal go on after (index, term), which its store has now. Votes stay.

    base: the configuration in force there; None keeps what the journal has.

    False: the log has that entry already, so nothing was changed. Durable on return; may be repeated.
    Raises JournalRefused, also when the log holds another committed entry there.
    """
    storage = LmdbStorage(folder, cluster_id=cluster_id, member=member)
    try:
        loaded = storage.load(tail_bytes_max=0)
        if loaded.first_index <= index <= loaded.last_index and storage.read(index, 1)[0][2] == term:
            return False
        if loaded.commit_index >= index:
            raise JournalRefused(
                f"{folder}: committed up to {loaded.commit_index}, which is beyond a snapshot at {index}"
            )
        changes: list[Change] = [StartAfter(index, term), Committed(index)]
        if base is not None and (loaded.base is None or newest_of([loaded.base, base]) is base):
            changes.append(base)
        storage.write(changes)
        return True
    finally:
        storage.close()


class ThreadCommitter:
    """One worker thread: groups are written in order, and the loop goes on meanwhile."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._closed = threading.Event()

    def run(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        def both() -> None:
            error: BaseException | None = None
            try:
                work()
            except BaseException as caught:
                error = caught
            if not self._closed.is_set():
                self._loop.call_soon_threadsafe(done, error)

        self._pool.submit(both)

    def close(self) -> None:
        self._closed.set()
        self._pool.shutdown(wait=True)


def _hold(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise JournalRefused(f"{path.parent} is in use by another process") from error
    return descriptor


def _make(folder: Path, identity: Identity, map_bytes: int) -> None:
    """An empty journal. It is made aside and moved whole: LMDB can't open a file that a power cut left half made."""
    aside = folder / "new"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    with lmdb.open(str(aside), map_size=map_bytes, max_dbs=2, sync=True, metasync=True) as env:
        env.open_db(b"log")
        meta = env.open_db(b"meta")
        with env.begin(write=True, db=meta) as transaction:
            transaction.put(b"identity", _sealed(msgspec.msgpack.encode(identity)))
            transaction.put(b"disk", _sealed(msgspec.msgpack.encode(Disk(uuid4().hex, joined=False))))
            transaction.put(b"written", _sealed(msgspec.msgpack.encode(transaction.id())))
    (aside / DATA_FILE).rename(folder / DATA_FILE)
    shutil.rmtree(aside)


def _tables(env: lmdb.Environment, folder: Path) -> tuple[Any, Any]:
    """Never made anew: a journal whose tables are not found under their names is damaged, and not empty."""
    try:
        return env.open_db(b"log", create=False), env.open_db(b"meta", create=False)
    except lmdb.NotFoundError as error:
        raise JournalRefused(f"{folder}: an LMDB file that is no journal, or a damaged one") from error


def _sync_folders(folder: Path) -> None:
    """Make the names on the way to `folder`, and those in it, durable."""
    for place in (folder, *folder.resolve().parents):
        try:
            descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        except PermissionError:
            return  # not ours, so it and all above it were there before us
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # what no disk is behind
                raise
        finally:
            os.close(descriptor)


def _sum(key: bytes, term: int, command: bytes) -> int:
    return crc32(command, crc32(key + _key.pack(term)))


def _sealed(raw: bytes) -> bytes:
    return crc32(raw).to_bytes(4, "big") + raw


def _opened(sealed: bytes, what: str) -> bytes:
    if crc32(sealed[4:]).to_bytes(4, "big") != sealed[:4]:
        raise JournalRefused(f"{what} is damaged: its checksum is wrong")
    return sealed[4:]


def _delete_from(cursor: lmdb.Cursor, key: bytes) -> None:
    if cursor.set_range(key):
        while cursor.delete():
            pass


def _delete_below(cursor: lmdb.Cursor, key: bytes) -> None:
    if cursor.first():
        while (found := bytes(cursor.key())) and found < key and cursor.delete():
            pass
