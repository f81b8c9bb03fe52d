"""Writes down what a live feed receives, so that `open_recording` can replay it."""

import gzip
import json
from pathlib import Path

FILE_BYTES_MAX = 8 << 30
"""Before packing. A busy venue sends some 100 MB an hour and symbol."""


class Recorder:
    """JSON lines, packed: a header, then each frame with its receive time. Give it to a LiveFeed as `tap`."""

    def __init__(self, path: Path, exchange: str, *, began_us: int) -> None:
        """Raises FileExistsError rather than write over a recording. path: must end in .jsonl.gz."""
        if not path.name.endswith(".jsonl.gz"):
            raise ValueError(f"{path}: a recording's name ends in .jsonl.gz")
        self._file = gzip.GzipFile(path, "xb", compresslevel=5)
        self.frames = 0
        self.written_bytes = 0
        self.is_full = False
        self._write({"t": "header", "format": 2, "exchange": exchange.upper(), "recorded": began_us / 1e6})

    def __call__(self, frame: bytes, key: str, receive_us: int) -> None:
        """key: what was fetched, of a body that came by HTTP."""
        data, at_s = frame.decode("utf-8", "replace"), receive_us / 1e6
        if key:
            self._write({"t": "http", "ts": at_s, "url": f"/depth?symbol={key}", "data": data})
        else:
            self._write({"t": "recv", "ts": at_s, "data": data})

    def close(self) -> None:
        self._file.close()

    def _write(self, record: dict[str, object]) -> None:
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        if self.written_bytes + len(line) > FILE_BYTES_MAX:
            self.is_full = True
            return
        self._file.write(line)
        self.written_bytes += len(line)
        self.frames += 1
