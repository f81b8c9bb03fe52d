"""Copies a store for another member, and gives the copy to it."""

import os
from pathlib import Path

import lmdb

from statemachine.records import encode_record
from statemachine.segments import SegmentEntry, verify_segment
from statemachine.store_files import (
    DATA_FILE,
    SEGMENTS_FOLDER,
    ForeignStore,
    OwnerLock,
    StoreDamaged,
    StoreError,
    fsync_folder,
    make_folder,
)
from statemachine.store_tables import IDENTITY_KEY, INFO, Tables, open_environment, open_read_only
from statemachine.store_view import Identity, View, decode_identity


def copy_store(tables: Tables, entries: list[SegmentEntry], segments_path: Path, folder: Path) -> None:
    """Write what the reader of `tables` sees, and the segments, into `folder`. Raises StoreError."""
    make_folder(folder / SEGMENTS_FOLDER)
    try:
        tables.env.copy(str(folder), compact=True, txn=tables.reader())
        for entry in entries:
            copy_file(segments_path / entry.file, folder / SEGMENTS_FOLDER / entry.file)
    except (lmdb.Error, OSError) as error:
        raise StoreError(f"the copy to {folder} failed: {error}") from error
    fsync_file(folder / DATA_FILE)
    fsync_folder(folder / SEGMENTS_FOLDER)
    fsync_folder(folder)


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


def check_copy(folder: Path, index: int) -> None:
    """Look at a whole copy before it is trusted: its index, and every sealed file that its manifest names.

    Raises StoreError, saying what is wrong. Changes nothing.
    """
    env = open_read_only(folder)
    try:
        tables = Tables(env)
        tables.open_all()
        view = View(tables, folder / SEGMENTS_FOLDER, [])
        found = view.meta.applied_index if view.meta is not None else 0
        entries = view.entries()
        tables.renew()
    except (lmdb.Error, KeyError) as error:
        raise StoreDamaged(f"{folder} is no copy of a store: {error!r}") from error
    finally:
        env.close()
    if found != index:
        raise StoreDamaged(f"{folder} is a copy at index {found}, not at {index}")
    for entry in entries:
        problem = verify_segment(folder / SEGMENTS_FOLDER, entry)
        if problem is not None:
            raise StoreDamaged(problem)


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
