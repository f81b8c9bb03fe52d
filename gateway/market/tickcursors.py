"""How far each consumer of a tick log has read: a small file each, replaced in one piece."""

import re
import zlib
from pathlib import Path

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def cursors(folder: Path) -> dict[str, int]:
    """The seq that each consumer reads next."""
    found = {}
    for path in (folder / "cursors").glob("*"):
        if NAME.fullmatch(path.name) and (seq := read_cursor(folder, path.name)) is not None:
            found[path.name] = seq
    return found


def read_cursor(folder: Path, name: str) -> int | None:
    """None: it has none, or the file is damaged; the consumer then begins where it likes."""
    try:
        seq, _, checksum = (folder / "cursors" / name).read_text("ascii").strip().partition(" ")
        return int(seq) if f"{zlib.crc32(seq.encode()):08x}" == checksum else None
    except (OSError, ValueError):
        return None


def write_cursor(folder: Path, name: str, seq: int) -> None:
    """Survives the process at once and a power cut about then; an older cursor repeats, it never skips."""
    path = folder / "cursors" / name
    path.parent.mkdir(exist_ok=True)
    draft = path.with_name(f".{name}.new")
    draft.write_text(f"{seq} {zlib.crc32(str(seq).encode()):08x}\n", "ascii")
    draft.replace(path)
