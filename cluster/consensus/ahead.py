"""Reads a file in before a scan gets there: through a memory map it would come page by page, each after a wait."""

import os
from pathlib import Path
from types import TracebackType
from typing import Self

# The kernel takes no more at once than its read-ahead, which is at least this on most systems.
STEP_BYTES = 128 << 10
AHEAD_BYTES = 1 << 30


class ReadAhead:
    """Asks for a file's content in the file's order; a log is in that order but for what was freed and used again.

    ahead_bytes: how far before the scan; what is asked for much too early may be dropped again before it is used.
    """

    def __init__(self, path: Path, *, ahead_bytes: int = AHEAD_BYTES) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._size = os.fstat(self._descriptor).st_size
        self._ahead_bytes = ahead_bytes
        self._asked = 0

    def scanned(self, part: float) -> None:
        """So much of the whole is behind the scan, from 0 to 1. Returns at once."""
        until = min(self._size, int(part * self._size) + self._ahead_bytes)
        while self._asked < until:
            os.posix_fadvise(self._descriptor, self._asked, STEP_BYTES, os.POSIX_FADV_WILLNEED)
            self._asked += STEP_BYTES

    def __enter__(self) -> Self:
        self.scanned(0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
