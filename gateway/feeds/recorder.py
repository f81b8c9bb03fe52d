"""Writes down what a live feed receives, so that `open_recording` can replay it."""

import gzip
import json
from pathlib import Path

import structlog

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.feeds")

FILE_BYTES_MAX = 8 << 30
"""Before packing. A busy venue sends some 100 MB an hour and symbol."""
FLUSH_US = 5_000_000
"""What a gateway that is killed may lose of its recording."""


class Recorder:
    """JSON lines, packed: a header, then each frame with its receive time. Give it to a LiveFeed as `tap`.

    It never gets in the way of the feed: when it is full, or its disk is, it says so once and records no more.
    """

    def __init__(self, path: Path, exchange: str, *, began_us: int, bytes_max: int = 0) -> None:
        """Raises FileExistsError rather than write over a recording. path: must end in .jsonl.gz.

        bytes_max: before packing; 0: FILE_BYTES_MAX.
        """
        if not path.name.endswith(".jsonl.gz"):
            raise ValueError(f"{path}: a recording's name ends in .jsonl.gz")
        self.path = path
        self._file = gzip.GzipFile(path, "xb", compresslevel=5)
        self._bytes_max = bytes_max or FILE_BYTES_MAX
        self._flushed_us = began_us
        self.frames = 0
        self.written_bytes = 0
        self.is_full = False
        self._write({"t": "header", "format": 2, "exchange": exchange.upper(), "recorded": began_us / 1e6})

    def __call__(self, frame: bytes, key: str, receive_us: int) -> None:
        """key: what was fetched, of a body that came by HTTP."""
        if self.is_full:
            return
        data, at_s = frame.decode("utf-8", "replace"), receive_us / 1e6
        try:
            if key:
                self._write({"t": "http", "ts": at_s, "url": f"/depth?symbol={key}", "data": data})
            else:
                self._write({"t": "recv", "ts": at_s, "data": data})
            if receive_us - self._flushed_us >= FLUSH_US:
                self._flushed_us = receive_us
                self._file.flush()
        except OSError as error:
            self._end(f"{type(error).__name__}: {error}")

    def close(self) -> None:
        self._file.close()

    def _write(self, record: dict[str, object]) -> None:
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        if self.written_bytes + len(line) > self._bytes_max:
            self._end(f"{self._bytes_max} bytes are reached")
            return
        self._file.write(line)
        self.written_bytes += len(line)
        self.frames += 1

    def _end(self, why: str) -> None:
        self.is_full = True
        log.warning("no more is recorded", path=str(self.path), frames=self.frames, why=why)
