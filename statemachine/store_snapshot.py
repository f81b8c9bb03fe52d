"""A store as it stood at one index while it goes on: to be paged through, or copied for another member."""

import os
from pathlib import Path

import lmdb

from statemachine.records import ACCOUNTS, AccountRecord, MetaRecord, StoredState, encode_record
from statemachine.store_files import (
    DATA_FILE,
    SEGMENTS_FOLDER,
    ForeignStore,
    OwnerLock,
    StoreError,
    fsync_folder,
    make_folder,
)
from statemachine.store_tables import IDENTITY_KEY, INFO, Tables, open_environment
from statemachine.store_view import Identity, View, decode_account, decode_identity


class Snapshot:
    """What was durable when it was made. Close it soon: LMDB reuses no page that it still sees.

    Reads are for the loop; `copy_to` is for a worker.
    """

    def __init__(self, tables: Tables, segments_path: Path) -> None:
        frozen = Tables(tables.env)
        frozen.fixed = dict(tables.fixed)
        self._tables = frozen
        self._view = View(frozen, segments_path, [])
        self._segments_path = segments_path

    @property
    def meta(self) -> MetaRecord | None:
        return self._view.meta

    @property
    def index(self) -> int:
        """The log index that it reflects; 0 for an empty store."""
        return self._view.meta.applied_index if self._view.meta else 0

    def load(self) -> StoredState | None:
        return self._view.load()

    def accounts_after(self, account: str, *, limit: int) -> list[AccountRecord]:
        """Accounts in the order of their ids, from the one after `account` on; "" starts."""
        cursor = self._tables.reader().cursor(self._tables.fixed[ACCOUNTS])
        accounts: list[AccountRecord] = []
        found = cursor.set_range(account.encode() + b"\0") if account else cursor.first()
        while found and len(accounts) < limit:
            accounts.append(decode_account(cursor.value()))
            found = cursor.next()
        return accounts

    def copy_to(self, folder: Path) -> None:
        """Write a whole store into the new `folder`, durable when this returns. Segments are linked where they can be.

        It still belongs to the member that it was copied from: see `adopt`.
        Raises StoreError; then `folder` is to be deleted.
        """
        make_folder(folder / SEGMENTS_FOLDER)
        try:
            self._tables.env.copy(str(folder), compact=True, txn=self._tables.reader())
            for entry in self._view.entries():
                copy_file(self._segments_path / entry.file, folder / SEGMENTS_FOLDER / entry.file)
        except (lmdb.Error, OSError) as error:
            raise StoreError(f"the copy to {folder} failed: {error}") from error
        fsync_file(folder / DATA_FILE)
        fsync_folder(folder / SEGMENTS_FOLDER)
        fsync_folder(folder)

    def close(self) -> None:
        self._tables.renew()


def adopt(folder: Path, *, cluster_id: str, member: str) -> None:
    """Give a copy to another member of the same cluster. Raises ForeignStore when it is not a store of that cluster."""
    if not (folder / DATA_FILE).is_file():
        raise ForeignStore(f"{folder} is no store: it has no {DATA_FILE}")
    lock = OwnerLock(folder, f"adoption by {member}")
    try:
        env = open_environment(folder, 0)
        try:
            info = env.open_db(INFO.encode(), create=False)
            with env.begin(write=True) as txn:
                value = txn.get(IDENTITY_KEY, db=info)
                found = None if value is None else decode_identity(value)
                if found is None or found.cluster_id != cluster_id:
                    raise ForeignStore(f"{folder} is a store of {found and found.cluster_id!r}, not of {cluster_id!r}")
                txn.put(IDENTITY_KEY, encode_record(Identity(found.version, cluster_id, member)), db=info)
        except lmdb.Error as error:
            raise ForeignStore(f"{folder} is no store of ours: {error}") from error
        finally:
            env.close()
    finally:
        lock.release()


def copy_file(source: Path, target: Path) -> None:
    """A second name for the same bytes: sealed files never change. Copied where the file system is another."""
    try:
        target.hardlink_to(source)
    except OSError:
        target.write_bytes(source.read_bytes())
        fsync_file(target)


def fsync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
