"""The LMDB environment: how it is opened, which tables it holds, and the one read transaction of the loop.

Tables: `info`, `segments`, `strays`, one per record type, and families numbered by time: `keys.N` and
`results.N` per bucket, and one per kind and day of history not sealed yet. A numbered table is dropped
whole, which frees its pages at once; deleting its rows one by one would rewrite each of them.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb
from lmdb.verify import VerifyError, verify

from statemachine.records import TABLES
from statemachine.store_files import ASIDE_FOLDER, DATA_FILE, StoreDamaged, StoreError
from statemachine.store_rows import Kind

Handle = lmdb._Database
if TYPE_CHECKING:
    Transaction = lmdb.Transaction[bytes]
    Cursor = lmdb.Cursor[bytes]
else:
    Transaction = lmdb.Transaction
    Cursor = lmdb.Cursor

TABLES_MAX = 512
NEW_MAP_BYTES = 1 << 20
INFO = "info"
SEGMENTS = "segments"
STRAYS = "strays"
"""Closed orders that closed on a later day than they were opened: order id to day."""
FIXED = (INFO, SEGMENTS, STRAYS, *TABLES)
KEYS = "keys"
RESULTS = "results"
FAMILIES = (KEYS, RESULTS, *(str(kind) for kind in Kind))

META_KEY = b"meta"
IDENTITY_KEY = b"identity"
PRUNED_KEY = b"pruned."


def make_environment(folder: Path) -> None:
    """An empty environment. LMDB can't open a file that a power cut left half made: so it is made aside, and moved.

    Raises StoreDamaged or StoreError: nothing was made.
    """
    aside = folder / ASIDE_FOLDER
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    with open_environment(aside, NEW_MAP_BYTES) as env:
        try:
            env.sync(True)
        except lmdb.Error as error:
            raise StoreError(f"{folder}: a new store can't be made: {error}") from error
    (aside / DATA_FILE).rename(folder / DATA_FILE)
    shutil.rmtree(aside)


def open_environment(folder: Path, map_size_bytes: int) -> lmdb.Environment:
    """Open for reading and writing, fully synced: a commit that returned is on disk."""
    try:
        return lmdb.Environment(
            str(folder),
            map_size=map_size_bytes,
            max_dbs=TABLES_MAX,
            max_readers=64,
            max_spare_txns=2,
            readahead=False,
            meminit=False,
        )
    except lmdb.Error as error:
        raise StoreDamaged(f"{folder}: LMDB can't open it: {error}") from error


def open_read_only(folder: Path) -> lmdb.Environment:
    """Open a stopped store and change nothing, not even LMDB's lock file. The caller holds the owner lock."""
    try:
        return lmdb.Environment(
            str(folder), max_dbs=TABLES_MAX, readonly=True, lock=False, create=False, readahead=False
        )
    except lmdb.Error as error:
        raise StoreDamaged(f"{folder}: LMDB can't open it: {error}") from error


def verify_pages(folder: Path) -> list[str]:
    """Walk every page of a stopped store without LMDB, and return what is wrong.

    LMDB trusts its file: a damaged page can abort the process, or read as something else. Raises
    StoreDamaged for a file that is not LMDB's at all.
    """
    try:
        problems: list[str] = verify(folder)  # type: ignore[no-untyped-call]
    except (VerifyError, OSError) as error:
        raise StoreDamaged(f"{folder}: {error}") from error
    return [f"data.mdb: {problem}" for problem in problems]


class Tables:
    """Handles of all tables, and a read transaction that is kept from one flush to the next.

    All methods are for the thread of the event loop. Handles of numbered tables that a writer creates
    are published by `publish` after its commit; `hide` takes them away before they are dropped, because
    a handle must not be used while LMDB closes it.
    """

    def __init__(self, env: lmdb.Environment) -> None:
        self.env = env
        self.fixed: dict[str, Handle] = {}
        self.families: dict[str, dict[int, Handle]] = {family: {} for family in FAMILIES}
        self._reader: Transaction | None = None

    def create_fixed(self, identity: bytes) -> None:
        """Make the fixed tables and write whose they are, in one transaction; nothing where that was done before."""
        with self.env.begin(write=True) as txn:
            for name in FIXED:
                self.env.open_db(name.encode(), txn=txn)
            info = self.env.open_db(INFO.encode(), txn=txn)
            if txn.get(IDENTITY_KEY, db=info) is None:
                txn.put(IDENTITY_KEY, identity, db=info)

    def open_all(self) -> None:
        """Open every table that exists."""
        for name in sorted(name.decode() for name in self.env.dbs()):
            family, _, number = name.partition(".")
            if name in FIXED:
                self.fixed[name] = self.env.open_db(name.encode(), create=False)
            elif family in self.families and number.isdecimal():
                self.families[family][int(number)] = self.env.open_db(name.encode(), create=False)

    def reader(self) -> Transaction:
        """A view as of the last `renew`, opened once: beginning one costs more than the read."""
        if self._reader is None:
            self._reader = self.env.begin()
        return self._reader

    def renew(self) -> None:
        """Let go of the view, so that the next read sees the last commit and old pages can be reused."""
        if self._reader is not None:
            self._reader.abort()
            self._reader = None

    def publish(self, created: dict[tuple[str, int], Handle]) -> None:
        for (family, number), handle in created.items():
            self.families[family][number] = handle
        self.renew()

    def hide(self, family: str, number: int) -> Handle:
        self.renew()
        return self.families[family].pop(number)

    def close(self) -> None:
        self.renew()
        self.env.close()


def table_name(family: str, number: int) -> bytes:
    return f"{family}.{number:08d}".encode()


def create_table(env: lmdb.Environment, txn: Transaction, family: str, number: int) -> Handle:
    return env.open_db(table_name(family, number), txn=txn)
