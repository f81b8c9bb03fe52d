"""Flips bits of a journal's file one by one and says what a member would make of it; in a process that may die of it.

Usage: python -m tests.cluster.flips FOLDER OFFSET:BIT..., FOLDER holding a good journal in `good`. Per flip: a line.
"""

import sys
from pathlib import Path

import lmdb

from cluster.consensus import storage
from cluster.consensus.journal import Journal, JournalRefused, Loaded
from tests.cluster.test_journal import SyncCommitter, open_storage

DATA = "data.mdb"
ALL = 1 << 30


def make(folder: Path) -> None:
    """Entries on many pages, large ones on pages of their own, trimmed ones, a vote and a commit index."""
    journal = opened(folder)
    journal.setCurrentTerm(1, "a1")
    for size, groups in ((60, 30), (6000, 1), (60, 8)):
        for _ in range(groups):
            for _ in range(4):
                journal.add(b"\0" + bytes([journal.last_index % 256]) * size, journal.last_index + 1, 1)
            journal.setRaftCommitIndex(max(1, journal.last_index - 3))
            journal.flush()
    journal.trim_to(30)
    journal.flush()
    journal.flush()
    journal.close()


def opened(folder: Path) -> Journal:
    def fail(error: BaseException) -> None:
        raise error

    return Journal(open_storage(folder), SyncCommitter(), on_synced=lambda: None, on_failed=fail)


def load(folder: Path) -> Loaded:
    found = open_storage(folder)
    try:
        return found.load(tail_bytes_max=ALL)
    finally:
        found.close()


def judge(folder: Path, wanted: Loaded) -> str:
    """same, refused: WHY, failed: WHY, or wrong: WHAT.

    After `same` the journal has taken more, and had it when it was opened again. Failed: it did not take more, so that
    the member would have left.
    """
    try:
        found = load(folder)
        if found != wanted:
            return f"wrong: {found.first_index}..{found.last_index}, commit {found.commit_index}, {found.vote}"
        journal = opened(folder)
        more = list(wanted.tail)
        try:
            for index in range(wanted.last_index + 1, wanted.last_index + 9):
                more.append((b"\0more", index, 1))
                journal.add(*more[-1])
                journal.flush()
        except lmdb.Error as error:
            return f"failed: {error}"
        finally:
            journal.close()
        return "same" if load(folder).tail == more else "wrong: what was written after it is not there"
    except JournalRefused as error:
        return f"refused: {error}"


def main() -> None:
    folder = Path(sys.argv[1])
    storage._sync_folders = lambda _folder: None
    good, flipped = (folder / "good" / DATA).read_bytes(), folder / "flipped"
    flipped.mkdir(exist_ok=True)
    wanted = load(folder / "good")
    for flip in sys.argv[2:]:
        offset, bit = map(int, flip.split(":"))
        content = bytearray(good)
        content[offset] ^= 1 << bit
        (flipped / DATA).write_bytes(content)
        print(f"{flip} {judge(flipped, wanted)}", flush=True)


if __name__ == "__main__":
    main()
