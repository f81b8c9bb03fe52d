"""Where real recordings are: a path that the user names, or the folder in TIEBREAK_DATA."""

import os
from pathlib import Path

from bench.lobster import File, LobsterError, Recording, find

DATA_ENV = "TIEBREAK_DATA"

AAPL_50 = "AAPL_2012-06-21_34200000_37800000_message_50.csv.gz"
AAPL_50_SEED = "order-chronicles_AAPL_book.csv"
"""The 50-level book after each of the first 672 messages; its first row seeds a replay of the hour."""
AAPL_1 = "LOBSTER_SampleFile_AAPL_2012-06-21_1.zip"
GOOG_10 = "LOBSTER_SampleFile_GOOG_2012-06-21_10.zip"
PREFERRED = (AAPL_50, GOOG_10, AAPL_1)


def data_folder() -> Path | None:
    """The folder of LOBSTER files in TIEBREAK_DATA, or None when it is not there."""
    value = os.environ.get(DATA_ENV, "")
    if not value:
        return None
    folder = Path(value)
    inside = folder / "lobster"
    return inside if inside.is_dir() else folder if folder.is_dir() else None


def recording(path: Path) -> Recording:
    """The recording at a path: a file, or a folder in which the one best suited to a replay is taken.

    Raises LobsterError when there is none.
    """
    if not path.is_dir():
        return seeded(find(path))
    folder = path / "lobster" if (path / "lobster").is_dir() else path
    for name in PREFERRED:
        if (folder / name).is_file():
            return seeded(find(folder / name))
    for candidate in sorted(folder.iterdir()):
        if "_message_" in candidate.name or candidate.name.startswith("LOBSTER"):
            return seeded(find(candidate))
    raise LobsterError(f"{folder}: no LOBSTER message file in this folder")


def seeded(found: Recording) -> Recording:
    """Adds the published first rows of AAPL's 50-level book, which comes under another name."""
    beside = found.messages.path.with_name(AAPL_50_SEED)
    if found.book is None and found.messages.path.name == AAPL_50 and beside.is_file():
        return Recording(found.messages, File(beside))
    return found


def seeds_only(found: Recording) -> bool:
    """True where the book file covers the first messages only: its first row seeds, the rest is not used."""
    return found.book is not None and found.book.what != "orderbook"
