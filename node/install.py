"""Puts a received snapshot in the place of this member's store, in steps that may be cut off anywhere.

First the wish is written down (`decide`), by a member that has stopped: nothing may be acknowledged any more that the
exchange would drop. Then, at the next start before anything is opened, `finish` makes it so, however often it
takes: the store is exchanged by renames, the journal goes on after the snapshot's index, the wish is removed.
Before `decide` has returned the old state counts, afterwards the new one.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog
from msgspec import Struct

from cluster.consensus.journal import Base
from cluster.consensus.storage import start_after

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.install")

WISH = "install.json"
DIVERGED_FILE = "diverged.txt"
"""In the data folder of a replica that found itself outside the majority; with it no member starts there."""
STORE = "store"
REPLACED = "store.replaced"
SNAPSHOTS = "snapshots"

Failpoint = Callable[[str], None]


class InstallFailed(Exception):
    """The wish can't be fulfilled: files are missing. Nothing was changed."""


class Install(Struct, frozen=True, forbid_unknown_fields=True):
    """index, term: the last log entry that the snapshot reflects. staged: its folder, from the data folder on.

    base: the configuration in force at the index.
    """

    cluster_id: str
    member: str
    index: int
    term: int
    staged: str
    base: Base | None = None


def _nothing(_step: str) -> None:
    pass


def decide(data_dir: Path, install: Install, *, failpoint: Failpoint = _nothing) -> None:
    """Write the wish down, durably. The staged folder must be whole, checked, this member's, and on disk."""
    wish, temporary = data_dir / WISH, data_dir / (WISH + ".part")
    with temporary.open("wb") as file:
        file.write(msgspec.json.encode(install))
        file.flush()
        os.fsync(file.fileno())
    failpoint("before the wish")
    temporary.rename(wish)
    _sync(data_dir)
    failpoint("after the wish")


def finish(data_dir: Path, *, cluster_id: str, member: str, failpoint: Failpoint = _nothing) -> Install | None:
    """Fulfil a wish, if there is one. Before store and journal are opened.

    Raises InstallFailed, JournalRefused or OSError; the wish stays.
    """
    wish = data_dir / WISH
    if not wish.is_file():
        if (data_dir / STORE).is_dir():
            shutil.rmtree(data_dir / REPLACED, ignore_errors=True)  # killed right after the last wish was fulfilled
        return None
    install = msgspec.json.decode(wish.read_bytes(), type=Install)
    if (install.cluster_id, install.member) != (cluster_id, member):
        raise InstallFailed(f"{wish} is of {install.member} in cluster {install.cluster_id}")
    store, replaced, staged = data_dir / STORE, data_dir / REPLACED, data_dir / install.staged
    if staged.is_dir():
        if store.is_dir():
            shutil.rmtree(replaced, ignore_errors=True)  # of an older exchange
            failpoint("before the old store goes")
            store.rename(replaced)
            _sync(data_dir)
        failpoint("between the stores")
        staged.rename(store)
        _sync(data_dir)
        _sync(staged.parent)
        failpoint("after the exchange")
    elif not store.is_dir():
        raise InstallFailed(f"neither {store} nor {staged} is there")
    fresh = start_after(
        data_dir / "journal", install.index, install.term, install.base, cluster_id=cluster_id, member=member
    )
    failpoint("after the journal")
    wish.unlink()
    _sync(data_dir)
    failpoint("after all")
    shutil.rmtree(replaced, ignore_errors=True)
    shutil.rmtree(data_dir / SNAPSHOTS, ignore_errors=True)
    log.warning("snapshot installed", index=install.index, term=install.term, journal_starts_anew=fresh)
    return install


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
