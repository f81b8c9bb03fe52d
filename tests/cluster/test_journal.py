"""The log in memory and on disk: what survives, what is refused, and what leaves memory but not the log."""

import asyncio
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from cluster.consensus.ahead import STEP_BYTES, ReadAhead
from cluster.consensus.journal import Entry, Journal, JournalBroken, JournalRefused
from cluster.consensus.storage import LmdbStorage, ThreadCommitter
from tests.cluster.lab import Disk, ManualCommitter, MemoryStorage

CLUSTER = "11111111"


def open_storage(folder: Path, *, cluster_id: str = CLUSTER, member: str = "a1") -> LmdbStorage:
    return LmdbStorage(folder, cluster_id=cluster_id, member=member, map_bytes=1 << 30)


class SyncCommitter:
    """Each group at once, on this thread."""

    def run(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        try:
            work()
        except Exception as error:
            done(error)
        else:
            done(None)

    def close(self) -> None:
        pass


def open_journal(
    folder: Path, *, tail_bytes_max: int = 1 << 20, failures: list[BaseException] | None = None
) -> Journal:
    return Journal(
        open_storage(folder),
        SyncCommitter(),
        on_synced=lambda: None,
        on_failed=(failures if failures is not None else []).append,
        tail_bytes_max=tail_bytes_max,
    )


def fill(journal: Journal, count: int, *, size: int = 100, term: int = 1) -> list[Entry]:
    added = []
    for index in range(journal.last_index + 1, journal.last_index + 1 + count):
        entry = (b"%d " % index * (size // 4), index, term)
        journal.add(*entry)
        added.append(entry)
    journal.flush()
    return added


def test_what_was_flushed_is_there_after_reopening(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "j")
    entries = fill(journal, 10)
    journal.setCurrentTerm(7, "b1")
    journal.setRaftCommitIndex(4)
    journal.flush()
    journal.close()
    again = open_journal(tmp_path / "j")
    assert again[:] == entries
    assert (again.getCurrentTerm(), again.getVotedForNodeId(), again.getRaftCommitIndex()) == (7, "b1", 4)
    assert (again.first_index, again.last_index, again.durable_index) == (1, 10, 10)
    again.close()


def test_only_a_bounded_tail_is_in_memory_and_the_rest_reads_the_same(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "j", tail_bytes_max=10_000)
    entries = []
    for _ in range(50):
        entries += fill(journal, 20)
    assert len(journal._tail) < 250
    chance = random.Random(4)
    for _ in range(300):
        a, b = chance.randint(-1010, 1010), chance.randint(-1010, 1010)
        assert journal[a:b] == entries[a:b]
        if -1000 <= a < 1000:
            assert journal[a] == entries[a]
    assert journal[-1] == entries[-1]
    assert journal.batch(1, bytes_max=1000) == entries[: len(journal.batch(1, bytes_max=1000))]
    assert sum(len(entry[0]) for entry in journal.batch(1, bytes_max=1000)) <= 1000
    assert journal.batch(500, bytes_max=1) == [entries[499]]
    with pytest.raises(IndexError):
        journal[1000]
    journal.close()
    again = open_journal(tmp_path / "j", tail_bytes_max=10_000)
    assert again[:] == entries
    assert len(again._tail) < 250
    again.close()


@pytest.mark.parametrize("cut", [995, 500, 2])
def test_a_cut_reaches_below_the_tail(tmp_path: Path, cut: int) -> None:
    journal = open_journal(tmp_path / "j", tail_bytes_max=10_000)
    entries = []
    for _ in range(50):
        entries += fill(journal, 20)
    journal.cut_from(cut)
    assert (journal.last_index, journal.durable_index) == (cut - 1, cut - 1)
    entries = entries[: cut - 1] + fill(journal, 30, term=2)
    assert journal[:] == entries
    journal.close()
    again = open_journal(tmp_path / "j", tail_bytes_max=10_000)
    assert again[:] == entries
    again.close()


def test_the_base_can_not_be_cut_nor_a_hole_made(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "j")
    fill(journal, 5)
    with pytest.raises(JournalBroken, match="base 1"):
        journal.cut_from(1)
    with pytest.raises(JournalBroken, match="entry 9 after 5"):
        journal.add(b"x", 9, 1)
    with pytest.raises(JournalBroken):
        journal.clear()
    with pytest.raises(JournalBroken):
        journal.deleteEntriesTo(2)
    journal.close()


def test_trimming_goes_in_small_steps_and_keeps_the_base(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "j", tail_bytes_max=10_000)
    entries = fill(journal, 5000)
    used = journal.used_bytes
    journal.setRaftCommitIndex(4500)
    journal.trim_to(4800)  # beyond what is committed: goes only to 4500
    firsts = []
    for _ in range(8):
        journal.flush()
        firsts.append(journal.first_index)
    assert firsts[0] == 1025
    assert firsts[-1] == 4500
    assert journal[0] == entries[4499]
    assert len(journal) == 501
    assert journal.used_bytes < used / 2
    journal.close()
    again = open_journal(tmp_path / "j")
    assert again[:] == entries[4499:]
    again.close()


def test_a_group_under_way_does_not_make_later_changes_durable() -> None:
    disk, committer = Disk(), ManualCommitter()
    journal = Journal(MemoryStorage(disk), committer, on_synced=lambda: None, on_failed=lambda _: None)
    fill(journal, 3)
    journal.add(b"x", 4, 1)
    journal.setCurrentTerm(5, "b")
    journal.flush()  # the first group is under way: this waits
    assert (journal.durable_index, journal.vote_pending) == (0, True)
    committer.sync()
    assert (journal.durable_index, journal.vote_pending) == (3, True)
    journal.flush()
    committer.sync()
    assert (journal.durable_index, journal.vote_pending) == (4, False)


def test_entries_cut_while_their_group_is_under_way_are_not_called_durable() -> None:
    disk, committer = Disk(), ManualCommitter()
    journal = Journal(MemoryStorage(disk), committer, on_synced=lambda: None, on_failed=lambda _: None)
    fill(journal, 10)
    journal.cut_from(6)
    journal.add(b"other", 6, 2)
    committer.sync()
    assert journal.durable_index == 5
    journal.flush()
    committer.sync()
    assert journal.durable_index == 6
    assert [entry[2] for entry in disk.entries] == [1] * 5 + [2]


def test_a_failed_sync_is_told_once_and_nothing_is_durable_after_it(tmp_path: Path) -> None:
    failures: list[BaseException] = []
    journal = open_journal(tmp_path / "j", failures=failures)
    fill(journal, 3)

    def no_space(_changes: object) -> None:
        raise lmdb.DiskError("Input/output error")

    journal._storage.write = no_space  # type: ignore[method-assign]
    fill(journal, 3)
    fill(journal, 3)
    assert len(failures) == 1
    assert journal.durable_index == 3
    journal.close()


# -- reading it at the start --------------------------------------------------------------------


def test_the_file_is_asked_for_once_in_order_and_not_too_far_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(bytes(1_000_000))
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _fd, at, size, _advice: asked.append((at, size)))
    with ReadAhead(tmp_path / "file", ahead_bytes=300_000) as ahead:
        assert 300_000 <= sum(size for _, size in asked) < 300_000 + STEP_BYTES
        ahead.scanned(0.5)
        assert 800_000 <= sum(size for _, size in asked) < 800_000 + STEP_BYTES
        ahead.scanned(1.0)
    assert [at for at, _ in asked] == list(range(0, 1_000_000, STEP_BYTES))


def test_a_start_asks_for_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Page by page, as LMDB meets them, a cold start takes half a minute per GiB."""
    journal = open_journal(tmp_path / "j")
    fill(journal, 5000)
    journal.close()
    asked: list[int] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _fd, at, size, _advice: asked.append(at + size))
    monkeypatch.setattr(ReadAhead.__init__, "__kwdefaults__", {"ahead_bytes": 200_000})
    open_journal(tmp_path / "j").close()
    assert max(asked) >= (tmp_path / "j" / "data.mdb").stat().st_size > 500_000


# -- what is refused ------------------------------------------------------------------------------


def _damage(folder: Path, marker: bytes, *, by: int = 0) -> None:
    path = folder / "data.mdb"
    content = bytearray(path.read_bytes())
    places = [i for i in range(len(content)) if content.startswith(marker, i)]
    assert places
    for place in places:  # old copies of the page too
        content[place + by] ^= 0x04
    path.write_bytes(content)


def test_a_flipped_bit_is_found_and_named(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "j")
    fill(journal, 20)
    journal.add(b"here is the needle", 21, 3)
    journal.flush()
    fill(journal, 5, term=3)
    journal.close()
    _damage(tmp_path / "j", b"needle")
    with pytest.raises(JournalRefused, match=r"entry 21 \(term 3\) is damaged"):
        open_journal(tmp_path / "j")


def test_a_flipped_bit_in_the_vote_is_found(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "j")
    journal.setCurrentTerm(3, "needle")
    journal.flush()
    journal.close()
    _damage(tmp_path / "j", b"needle")
    with pytest.raises(JournalRefused, match="vote is damaged"):
        open_journal(tmp_path / "j")


def test_a_missing_entry_is_found_and_named(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "j")
    fill(journal, 10)
    journal.close()
    with lmdb.open(str(tmp_path / "j"), max_dbs=2) as env:
        log = env.open_db(b"log")
        with env.begin(write=True) as transaction:
            transaction.delete(struct.pack(">Q", 5), db=log)
    with pytest.raises(JournalRefused, match="entry 5 is missing"):
        open_journal(tmp_path / "j")


@pytest.mark.parametrize(
    ("cluster_id", "member", "says"),
    [
        ("22222222", "a1", "cluster_id is '11111111', this member's is '22222222'"),
        (CLUSTER, "b1", "member is 'a1', this member's is 'b1'"),
    ],
)
def test_anothers_folder_is_refused(tmp_path: Path, cluster_id: str, member: str, says: str) -> None:
    open_storage(tmp_path / "j").close()
    with pytest.raises(JournalRefused, match=says):
        open_storage(tmp_path / "j", cluster_id=cluster_id, member=member)
    open_storage(tmp_path / "j").close()


def test_a_member_started_twice_on_one_folder_is_refused(tmp_path: Path) -> None:
    first = open_storage(tmp_path / "j")
    with pytest.raises(JournalRefused, match="in use by another process"):
        open_storage(tmp_path / "j")
    first.close()
    open_storage(tmp_path / "j").close()


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "j").mkdir()
    (tmp_path / "j" / "data.mdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(JournalRefused):
        open_storage(tmp_path / "j")


# -- kill -9 --------------------------------------------------------------------------------------

CHILD = """
import os, sys, threading
from pathlib import Path
from tests.cluster.test_journal import open_storage
from cluster.consensus.journal import Journal

class Committer:
    def run(self, work, done):
        work()
        done(None)

journal = Journal(open_storage(Path(sys.argv[1])), Committer(), on_synced=lambda: None, on_failed=lambda e: None)
while True:
    for _ in range(7):
        journal.add(b"x" * 50, journal.last_index + 1, 1)
    journal.setRaftCommitIndex(max(1, journal.last_index - 20))
    if journal.last_index % 3 == 0:
        journal.setCurrentTerm(journal.last_index, "a1")
    if journal.last_index > 400:
        journal.trim_to(journal.last_index - 300)
    journal.flush()
    os.write(1, b"%d %d\\n" % (journal.durable_index, journal.getCurrentTerm()))
"""


@pytest.mark.parametrize("seconds", [0.05, 0.1, 0.2, 0.3])
def test_kill_9_loses_nothing_that_was_called_durable(tmp_path: Path, seconds: float) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "j")],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdout is not None
    first = child.stdout.readline()
    timer = threading.Timer(seconds, os.kill, (child.pid, signal.SIGKILL))
    timer.start()
    said = [line.split() for line in (first + child.stdout.read()).splitlines() if b" " in line]
    child.wait()
    child.stdout.close()
    timer.join()
    durable, term = (int(word) for word in said[-1])
    storage = open_storage(tmp_path / "j")
    loaded = storage.load(tail_bytes_max=1 << 30)
    assert loaded.last_index >= durable > 7
    assert loaded.vote.term >= term
    assert [entry[1] for entry in loaded.tail] == list(range(loaded.first_index, loaded.last_index + 1))
    storage.close()


TRACED = """
import os, sys
from pathlib import Path
from tests.cluster.test_journal import SyncCommitter, open_storage
from cluster.consensus.journal import Journal

journal = Journal(
    open_storage(Path(sys.argv[1])), SyncCommitter(),
    on_synced=lambda: os.write(1, b"SYNCED"), on_failed=lambda error: None,
)
for _ in range(30):
    journal.add(b"x" * 200, journal.last_index + 1, 1)
    journal.flush()
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: the order of syncs is not traced")
def test_nothing_is_called_durable_before_the_system_says_so(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    calls = "trace=openat,write,pwrite64,pwritev,fdatasync,fsync"
    subprocess.run(
        ["strace", "-f", "-qq", "-e", calls, "-o", trace, sys.executable, "-c", TRACED, tmp_path / "j"],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
    )
    lines = trace.read_text().splitlines()
    opened = [line for line in lines if "data.mdb" in line and "openat" in line and "= -1" not in line]
    data, meta = (
        next(line.rsplit("= ", 1)[1] for line in opened if ("O_DSYNC" in line) == synchronous)
        for synchronous in (False, True)
    )
    dirty = unsealed = True
    synced = 0
    for line in lines[lines.index(opened[-1]) :]:
        if f"pwrite64({data}," in line or f"pwritev({data}," in line:
            dirty = unsealed = True
        elif f"fdatasync({data})" in line:
            dirty = False
        elif f"pwrite64({meta}," in line and not dirty:
            unsealed = False  # the meta page, through a descriptor whose writes are synchronous
        elif "SYNCED" in line:
            synced += 1
            assert not dirty
            assert not unsealed
            unsealed = True
    assert synced == 30
    # The new folder itself is made durable, and its name in its parent.
    assert sum("fsync(" in line and "fdatasync(" not in line for line in lines) >= 2


def test_the_committer_runs_groups_off_the_loop_in_order(tmp_path: Path) -> None:
    async def main() -> list[int]:
        done: list[int] = []
        threads: set[int] = set()
        all_done = asyncio.Event()
        committer = ThreadCommitter(asyncio.get_running_loop())
        for i in range(10):
            committer.run(lambda: threads.add(threading.get_ident()), lambda _error, i=i: done.append(i))  # type: ignore[misc]
        committer.run(lambda: None, lambda _error: all_done.set())
        await all_done.wait()
        committer.close()
        assert threads
        assert threading.get_ident() not in threads
        return done

    assert asyncio.run(main()) == list(range(10))


# -- what a power cut, a kill or a copy leaves; every such disk is built in tests/chaos/disk ----------


def test_a_journal_that_died_while_it_was_made_is_new(tmp_path: Path) -> None:
    folder = tmp_path / "j"
    (folder / "new").mkdir(parents=True)
    (folder / "new" / "data.mdb").write_bytes(b"half")
    open_storage(folder).close()
    assert not (folder / "new").exists()
    # The neighbour that is refused: whatever is in the journal's place was not made by us.
    (tmp_path / "k").mkdir()
    (tmp_path / "k" / "data.mdb").write_bytes(b"half")
    with pytest.raises(JournalRefused):
        open_storage(tmp_path / "k")


def test_an_empty_database_in_the_journals_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "j").mkdir()
    lmdb.open(str(tmp_path / "j"), max_dbs=2).close()
    with pytest.raises(JournalRefused, match="no journal"):
        open_storage(tmp_path / "j")


def test_a_key_that_is_no_index_is_refused(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "j")
    fill(journal, 3)
    journal.close()
    with lmdb.open(str(tmp_path / "j"), max_dbs=2) as env, env.begin(write=True) as transaction:
        transaction.put(b"odd", b"value", db=env.open_db(b"log", transaction))
    with pytest.raises(JournalRefused, match="the log is damaged"):
        open_journal(tmp_path / "j")
