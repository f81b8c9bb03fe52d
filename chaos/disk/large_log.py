"""A log beyond 4 GiB and beyond memory, on the real journal: written, trimmed, killed, opened, read, followed."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from chaos.disk.children import ROOT, Failed, dies_with_us
from chaos.disk.large_log_child import Following, Opened, Writing

ROOM_FACTOR = 2.6
"""LMDB keeps an entry in whole pages, and the follower has a log as well."""
STEP_TIMEOUT_S = 1800


class LargeLog(Struct):
    """cold: the first start after the kill, with none of the file in memory; warm: the next."""

    payload_bytes: int
    entry_bytes: int
    tail_bytes: int
    writing: Writing
    cold: Opened
    warm: Opened
    following: Following
    wrong: list[str] = []

    @property
    def passes(self) -> bool:
        return not self.wrong

    @property
    def cold_seconds_per_gib(self) -> float:
        return round(self.cold.seconds / (self.cold.file_mib / 1024), 2)

    @property
    def warm_seconds_per_gib(self) -> float:
        return round(self.warm.seconds / (self.warm.file_mib / 1024), 2)


def no_room(folder: Path, payload_bytes: int) -> str:
    """Why a log of this size can't be had here; empty when it can."""
    free = shutil.disk_usage(folder).free
    need = int(payload_bytes * ROOM_FACTOR) + (1 << 28)
    return "" if free > need else f"{folder} has {free >> 20} MiB free, this needs {need >> 20}"


def run(
    folder: Path,
    *,
    payload_bytes: int,
    entry_bytes: int,
    tail_bytes: int,
    trim: float = 0.1,
    step: Callable[[str], None] = lambda _said: None,
) -> LargeLog:
    """Write the log below `folder`, kill the writer, and see what is there. All is deleted. Raises Failed.

    trim: the part of payload_bytes that is trimmed on the way.
    """
    with tempfile.TemporaryDirectory(prefix="tiebreak-large-log-", dir=folder) as name:
        journal = Path(name) / "journal"
        sizes = (str(tail_bytes), str(entry_bytes))
        step("writing")
        writing = _write_and_kill(journal, payload_bytes, entry_bytes, tail_bytes, trim, step)
        _forget(journal / "data.mdb")
        step("opening")
        cold = msgspec.json.decode(_child("open", journal, *sizes), type=Opened)
        warm = msgspec.json.decode(_child("open", journal, *sizes), type=Opened)
        step("following")
        from_index = cold.first_index + (cold.last_index - cold.first_index) // 4
        following = msgspec.json.decode(_child("follow", journal, *sizes, str(from_index)), type=Following)
    found = LargeLog(payload_bytes, entry_bytes, tail_bytes, writing, cold, warm, following)
    found.wrong = list(_wrong(found))
    return found


def rows(found: LargeLog) -> list[tuple[str, str]]:
    """(figure, what it is) for people."""
    writing, cold, warm, following = found.writing, found.cold, found.warm, found.following
    tail, started = found.tail_bytes / (1 << 20), max(cold.anon_mib, warm.anon_mib)
    return [
        (f"{writing.payload_bytes / (1 << 30):.2f}", "GiB of entries written"),
        (f"{writing.entries:,}", f"entries in {writing.groups:,} groups, each synced, in {writing.seconds:.0f} s"),
        (f"{writing.anon_mib:.0f}", f"MiB of memory at most, with a tail of {tail:g} MiB"),
        (f"{writing.first_index:,}", "is the first entry, after trimming"),
        (
            f"{cold.file_mib / 1024:.2f}",
            f"GiB is the file, killed at work, to entry {cold.last_index:,}",
        ),
        (
            f"{cold.seconds:.1f}",
            f"s to start, all read from the disk: {found.cold_seconds_per_gib} s per GiB",
        ),
        (f"{warm.seconds:.1f}", f"s to start again, from memory: {found.warm_seconds_per_gib} s per GiB"),
        (f"{started:.0f}", "MiB of memory at most while it started and read"),
        (
            f"{warm.read_p50_us:.0f}",
            f"us to read one of {warm.reads} entries anywhere; p99 {warm.read_p99_us:.0f}",
        ),
        (f"{following.entries:,}", f"entries sent to a follower from {following.from_index:,} on"),
        (f"{following.payload_mib / 1024:.2f}", f"GiB, in {following.seconds:.0f} s; both members in one process of"),
        (f"{following.anon_mib:.0f}", "MiB of memory at most"),
    ]


def _wrong(found: LargeLog) -> Iterator[str]:
    writing, cold, warm, following = found.writing, found.cold, found.warm, found.following
    if cold.last_index < writing.durable_index:
        yield f"{writing.durable_index} entries were called durable, {cold.last_index} are there"
    if cold.first_index < writing.first_index:
        yield f"the log begins at {cold.first_index}, it had been trimmed to {writing.first_index}"
    if cold.term != 1:
        yield f"the term is {cold.term}"
    yield from (opened.wrong for opened in (cold, warm) if opened.wrong)
    if following.wrong:
        yield following.wrong
    if following.from_index + following.entries < cold.last_index:
        yield f"the follower has {following.from_index + following.entries} of {cold.last_index} entries"


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "chaos.disk.large_log_child", *words]


def _child(what: str, folder: Path, *words: str) -> bytes:
    done = subprocess.run(
        _command(what, str(folder), *words),
        cwd=ROOT,
        capture_output=True,
        timeout=STEP_TIMEOUT_S,
        check=False,
        preexec_fn=dies_with_us,
    )
    if done.returncode:
        raise Failed(f"{what} ended with {done.returncode}: {done.stderr.decode('utf-8', 'replace')[-500:]}")
    return done.stdout


@contextmanager
def _writer(*words: str) -> "Iterator[subprocess.Popen[bytes]]":
    with subprocess.Popen(
        _command("write", *words),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        preexec_fn=dies_with_us,  # noqa: PLW1509 - prctl alone, which takes no lock
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _write_and_kill(
    journal: Path, payload_bytes: int, entry_bytes: int, tail_bytes: int, trim: float, step: Callable[[str], None]
) -> Writing:
    words = (str(journal), str(payload_bytes), str(entry_bytes), str(tail_bytes), str(trim))
    with _writer(*words) as process:
        if process.stdout is None:
            raise Failed("the writer has no output")
        for line in process.stdout:
            told = msgspec.json.decode(line, type=Writing)
            step(f"{told.payload_bytes >> 20} MiB written, {told.anon_mib:.0f} MiB of memory")
            if told.done:
                return told  # it goes on writing until it is killed
        raise Failed(f"the writer ended by itself, with {process.wait()}")


def _forget(path: Path) -> None:
    """Let the system drop what it holds of a file in memory, so that it is read from the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
