"""Reads what a process did to one folder from the log of its system calls (strace)."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from chaos.disk.children import Failed

CALLS = (
    "open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,rmdir,close,lseek,"
    "write,writev,pwrite64,pwritev,fsync,fdatasync,ftruncate,fallocate,sync_file_range,msync"
)
STRING_BYTES_MAX = 1 << 26
UNKNOWN = ("fallocate", "sync_file_range", "msync", "creat", "mkdirat", "renameat", "renameat2")
"""Calls that change or sync something in a way that is not modelled: a trace with one proves nothing."""


class MakeFolder(Struct, frozen=True):
    path: str


class MakeFile(Struct, frozen=True):
    path: str


class Write(Struct, frozen=True):
    """at_once: through a descriptor whose writes are synchronous."""

    path: str
    offset: int
    data: bytes
    at_once: bool


class Truncate(Struct, frozen=True):
    path: str
    size: int


class Sync(Struct, frozen=True):
    """Of a file: its contents. Of a folder: the names in it."""

    path: str


class Rename(Struct, frozen=True):
    source: str
    target: str


class Remove(Struct, frozen=True):
    path: str


class Said(Struct, frozen=True):
    """What the process printed: 'begun' or 'acked', and a number."""

    word: str
    number: int


Operation = MakeFolder | MakeFile | Write | Truncate | Sync | Rename | Remove | Said

_line = re.compile(r"^(\d+ +)?(\w+)\((.*)\) += (-?\d+)")
_text = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


def strace_missing() -> str:
    """Why system calls can't be traced here; empty when they can."""
    return "" if shutil.which("strace") else "strace is not installed"


def strace(log: Path) -> list[str]:
    """The words to put before a command, so that `read_trace` can read `log`."""
    return ["strace", "-f", "-qq", "-xx", "-s", str(STRING_BYTES_MAX), "-e", f"trace={CALLS}", "-o", str(log)]


class _File:
    def __init__(self, path: str, flags: str) -> None:
        self.path = path
        self.at_once = "O_DSYNC" in flags or "O_SYNC" in flags
        self.append = "O_APPEND" in flags
        self.offset = 0


def read_trace(log: Path, root: Path, sizes: dict[str, int] | None = None) -> Iterator[Operation]:
    """What was done below `root`, in order; a call that failed did nothing. Paths are relative to root; its own is ''.

    sizes: of the files that are there already, by path; brought up to date.

    Raises Failed for a log with threads in it, and for calls that are not modelled.
    """
    inside = str(root) + os.sep
    files: dict[int, _File] = {}
    sizes = {} if sizes is None else sizes

    def below(path: str, folder: _File | None = None) -> str | None:
        if folder is not None and not path.startswith(os.sep):
            return f"{folder.path}/{path}" if folder.path else path
        return "" if path == str(root) else path[len(inside) :] if path.startswith(inside) else None

    with log.open("r", encoding="ascii", errors="replace") as lines:
        for line in lines:
            found = _line.match(line)
            if found is None:
                if "unfinished" in line or "resumed" in line:
                    raise Failed(f"more than one thread at work, or a call cut off: {line[:100]}")
                continue
            name, arguments, result = found[2], found[3], int(found[4])
            if result < 0:
                continue
            texts = [bytes.fromhex(one[1].replace("\\x", "")) for one in _text.finditer(arguments)]
            number = int(arguments.split(",", 1)[0]) if arguments[:1].isdigit() else -1
            file = files.get(number)
            if name in ("open", "openat"):
                path = below(texts[0].decode(), file)
                files.pop(result, None)
                if path is not None:
                    files[result] = _File(path, arguments)
                    if "O_CREAT" in arguments and path not in sizes:
                        sizes[path] = 0
                        yield MakeFile(path)
                    if "O_TRUNC" in arguments:
                        sizes[path] = 0
                        yield Truncate(path, 0)
            elif name == "mkdir":
                path = below(texts[0].decode())
                if path is not None:
                    yield MakeFolder(path)
            elif name in ("rename", "unlink", "rmdir", "unlinkat"):
                paths = [path for text in texts if (path := below(text.decode(), file)) is not None]
                if not paths:
                    continue
                size = sizes.pop(paths[0], 0)
                if name == "rename":
                    sizes[paths[1]] = size
                    for one in files.values():
                        one.path = paths[1] if one.path == paths[0] else one.path
                    yield Rename(paths[0], paths[1])
                else:
                    yield Remove(paths[0])
            elif name == "write" and number == 1:
                word, said = texts[0].split()
                yield Said(word.decode(), int(said))
            elif file is None:
                continue
            elif name == "close":
                del files[number]
            elif name == "lseek":
                file.offset = result
            elif name in ("write", "writev", "pwrite64", "pwritev"):
                data = b"".join(texts)[:result]
                if len(data) != result:
                    raise Failed(f"the log holds {len(data)} of {result} bytes written")
                if name.startswith("pwrite"):
                    offset = int(arguments.rsplit(",", 1)[1])
                else:
                    offset = sizes.get(file.path, 0) if file.append else file.offset
                    file.offset = offset + result
                sizes[file.path] = max(sizes.get(file.path, 0), offset + result)
                yield Write(file.path, offset, data, file.at_once)
            elif name == "ftruncate":
                sizes[file.path] = int(arguments.split(",")[1])
                yield Truncate(file.path, sizes[file.path])
            elif name in ("fsync", "fdatasync"):
                yield Sync(file.path)
            elif name in UNKNOWN:
                raise Failed(f"{name} on {file.path} is not modelled")
