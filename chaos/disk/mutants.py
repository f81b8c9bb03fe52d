"""Faults to put into a writer on purpose: each must be found, or the checks prove nothing."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lmdb

from cluster.consensus import storage
from cluster.consensus.journal import Change
from cluster.consensus.storage import LmdbStorage
from statemachine import store, store_files


def _open_with(**forced: bool) -> Callable[[], None]:
    def install() -> None:
        real: Any = lmdb.Environment

        def opened(*arguments: Any, **given: Any) -> Any:
            return real(*arguments, **{**given, **forced})

        lmdb.open = lmdb.Environment = opened  # type: ignore[misc,assignment]

    return install


def _write_behind() -> None:
    """A group is called durable when the next one is written, one too early."""
    real = LmdbStorage.write
    waiting: dict[LmdbStorage, Sequence[Change]] = {}

    def write(self: LmdbStorage, changes: Sequence[Change]) -> None:
        before = waiting.get(self)
        waiting[self] = changes
        if before is not None:
            real(self, before)

    LmdbStorage.write = write  # type: ignore[method-assign]


def _swallow_errors() -> None:
    """Whoever asks is told that all went well."""
    real = LmdbStorage.write

    def write(self: LmdbStorage, changes: Sequence[Change]) -> None:
        with suppress(lmdb.Error):
            real(self, changes)

    LmdbStorage.write = write  # type: ignore[method-assign]


def _no_folder_sync() -> None:
    def leave_it(*_: Path) -> None:
        pass

    for module, name in ((storage, "_sync_folders"), (store, "fsync_folder"), (store_files, "fsync_folder")):
        if not hasattr(module, name):
            raise AttributeError(f"{module.__name__}.{name} is gone: this mutant would change nothing")
        setattr(module, name, leave_it)


MUTANTS: dict[str, Callable[[], None]] = {
    "none": lambda: None,
    "nosync": _open_with(sync=False),
    "nometasync": _open_with(metasync=False),
    "write-behind": _write_behind,
    "swallow-errors": _swallow_errors,
    "no-folder-sync": _no_folder_sync,
}
"""nosync: no sync at all. nometasync: the meta page is not synced. write-behind: acknowledged before it is written.
swallow-errors: a
write that failed counts as done. no-folder-sync: files are synced, the folder that names them is not."""
