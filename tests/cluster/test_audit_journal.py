"""The library's own journal, meta file and compaction under kills and power cuts; and ours under the same."""

import inspect
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pysyncobj
import pytest
from pysyncobj import FAIL_REASON
from pysyncobj.journal import FileJournal

from chaos.disk.mounts import unavailable
from tests.cluster.lab import Clock, Lab, Stock
from tests.cluster.stock_disk import StockDiskLab, append, command, hears, match, restarted, unclosed_files_allowed
from tests.cluster.test_journal import fill, open_journal

ROOT = Path(__file__).parents[2]
LIBRARY = Path(pysyncobj.__file__).parent
PAGE = 4096


@pytest.fixture(autouse=True)
def _files() -> Iterator[None]:
    with unclosed_files_allowed():
        yield


def run(code: str, *arguments: object, **more: Any) -> "subprocess.CompletedProcess[str]":
    """A process of its own, to be killed or traced."""
    words = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, **more)


def followed(lab: StockDiskLab, name: str, first: int, count: int, **more: Any) -> None:
    """b leads term 1 and sends entries; the library acknowledges them at once."""
    member = lab[name]
    append(member, "b", [(command(member, i), i, 1) for i in range(first, first + count)], **more)


def acknowledged(lab: StockDiskLab, name: str, leader: str = "b") -> int:
    """The newest index that a follower has acknowledged."""
    replies = [m for m in lab.net.queued(name, leader) if m["type"] == "next_node_idx" and m["success"]]
    return max((m["next_node_idx"] - 1 for m in replies), default=0)


# -- F3: compaction --------------------------------------------------------------------------------

KILLED_IN_COMPACTION = """
import os, signal, sys
from pysyncobj.journal import FileJournal
journal = FileJournal(sys.argv[1])
for index in range(1, 8002):
    journal.add(b"x" * 40, index, 1)
print(journal[-1][1], flush=True)
add, left = FileJournal.add, [1000]
def dies(self, *entry):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, *entry)
FileJournal.add = dies
journal.deleteEntriesTo(2000)
"""


def test_stock_killed_while_it_compacts_loses_what_should_stay(tmp_path: Path) -> None:
    done = run(KILLED_IN_COMPACTION, tmp_path / "journal")
    assert (done.returncode, done.stdout.strip()) == (-signal.SIGKILL, "8001"), done.stderr
    left = FileJournal(str(tmp_path / "journal"))
    assert (left[0][1], left[-1][1]) == (2001, 2999), "5,002 entries that had to stay are gone"
    left._destroy()


KILLED_IN_TRIMMING = """
import os, signal, sys
from pathlib import Path
from tests.cluster.test_journal import fill, open_journal
journal = open_journal(Path(sys.argv[1]))
fill(journal, 8001)
journal.setRaftCommitIndex(8001)
journal.trim_to(2000)
write, left = journal._storage.write, [int(sys.argv[2])]
def dies(changes):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    write(changes)
journal._storage.write = dies
while journal.first_index < 2000:
    journal.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("group", [1, 2, 3])
def test_killed_while_it_trims_the_log_keeps_what_should_stay(tmp_path: Path, group: int) -> None:
    assert run(KILLED_IN_TRIMMING, tmp_path / "j", group).returncode == -signal.SIGKILL
    journal = open_journal(tmp_path / "j")
    assert journal.first_index == (1, 1025, 2000)[group - 1]
    assert journal.last_index == 8001
    assert [entry[1] for entry in journal[:]] == list(range(journal.first_index, 8002))
    journal.close()


def test_stock_killed_between_dump_and_trimming_clears_its_whole_journal(clock: Clock, tmp_path: Path) -> None:
    lab = StockDiskLab(clock, "abc", tmp_path)
    followed(lab, "a", 2, 100, commit_index=101)
    lab["a"].doTick(0)
    lab["a"].forceLogCompaction()
    lab["a"].doTick(0)  # the dump is in its place; the journal is cut by the next tick
    followed(lab, "a", 102, 50, commit_index=101)
    assert acknowledged(lab, "a") == 151
    assert restarted(lab, "a", "abc").log[-1][0] == 101, "50 acknowledged entries are gone"


ORPHAN = """
import os, signal, sys, time
from pathlib import Path
from tests.cluster.lab import Stock, virtual_time
from tests.cluster.stock_disk import StockDiskLab
from tests.cluster.test_audit_journal import acknowledged, followed

class UntilOrphaned:  # a large state: it takes longer to dump than the parent lives
    def __reduce__(self):
        while os.getppid() == parent:
            time.sleep(0.01)
        return (str, ("x",))

parent = os.getpid()
with virtual_time() as clock:
    lab = StockDiskLab(clock, "abc", Path(sys.argv[1]), useFork=True)
    followed(lab, "a", 2, 100, commit_index=101)
    lab["a"].doTick(0)
    lab["a"].large = UntilOrphaned()
    lab["a"].forceLogCompaction()
    lab["a"].doTick(0)
    followed(lab, "a", 102, 5000, commit_index=101)
    print(acknowledged(lab, "a"), flush=True)
    os.kill(parent, signal.SIGKILL)
"""


def test_stock_killed_while_its_child_dumps_clears_its_whole_journal(clock: Clock, tmp_path: Path) -> None:
    # Returns once the orphan, too, has closed its pipes.
    done = run(ORPHAN, tmp_path)
    assert (done.returncode, done.stdout.strip()) == (-signal.SIGKILL, "5101"), done.stderr
    assert (tmp_path / "a.dump").exists()
    lab = StockDiskLab(clock, "abc", tmp_path)
    lab["a"].doTick(0)
    assert lab["a"].log[-1][0] == 101, "5,000 acknowledged entries are gone"


# -- F5: durable before it is said -----------------------------------------------------------------

COMMITS = """
import sys
from pathlib import Path
from pysyncobj import FAIL_REASON
from tests.cluster.lab import virtual_time
from tests.cluster.stock_disk import StockDiskLab

with virtual_time() as clock:
    lab = StockDiskLab(clock, "abc", Path(sys.argv[1]))
    lab.elect("a")
    answers = []
    for i in range(50):
        lab["a"].put(i, callback=lambda _result, reason: answers.append(reason))
    lab.run(1.5)
    for name in "abc":
        lab.compact(name)
    print(answers.count(FAIL_REASON.SUCCESS), len(lab["b"].values), flush=True)
    import os
    os._exit(0)  # the library syncs in its destructor, and nowhere else
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: STOCK'S SYNCS WERE NOT COUNTED")
def test_stock_acknowledges_votes_and_dumps_without_one_sync(tmp_path: Path) -> None:
    calls = "fsync,fdatasync,msync,sync_file_range,sync,syncfs,rename,renameat2"
    trace = ["strace", "-f", "-qq", "-e", f"trace={calls}", "-o", str(tmp_path / "trace")]
    words = [*trace, sys.executable, "-W", "ignore", "-c", COMMITS, str(tmp_path / "files")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["50", "50"], done.stderr
    traced = (tmp_path / "trace").read_text()
    assert traced.count("rename") >= 6, "votes and dumps were written"
    assert "sync" not in traced


def test_stock_never_syncs_its_journal_by_its_own_source() -> None:
    sources = "".join((LIBRARY / name).read_text() for name in ("syncobj.py", "journal.py", "serializer.py"))
    assert "fsync" not in sources
    assert ".flush(" not in (LIBRARY / "syncobj.py").read_text(), "FileJournal.flush has no caller"
    assert "def flush" in inspect.getsource(FileJournal)


def power_cut(synced: bytes, written: bytes, chance: random.Random) -> bytes:
    """What a disk may hold of a file whose new pages were never synced: any of them, in any mix. Lengths, too."""
    length = chance.choice((len(synced), len(written)))
    pages = []
    for at in range(0, length, PAGE):
        new, old = written[at : at + PAGE], synced[at : at + PAGE]
        pages.append((new if chance.random() < 0.5 else old).ljust(PAGE, b"\0"))
    return b"".join(pages)[:length]


def test_stock_loses_acknowledged_entries_in_a_power_cut(clock: Clock, tmp_path: Path) -> None:
    """The journal is a memory map that nobody syncs; the kernel writes its pages when it likes."""
    lab = StockDiskLab(clock, "abc", tmp_path)
    path = tmp_path / "a.journal"
    followed(lab, "a", 2, 200)
    lab["a"]._SyncObj__raftLog.flush()  # kinder than it is: so far everything is on the disk
    synced = path.read_bytes()
    followed(lab, "a", 202, 800)
    assert acknowledged(lab, "a") == 1001
    written = path.read_bytes()
    lab.kill("a")
    found = {"lost": 0, "unopenable": 0, "damaged": 0}
    for seed in range(40):
        path.write_bytes(power_cut(synced, written, random.Random(seed)))
        try:
            journal = FileJournal(str(path))
        except (struct.error, ValueError, IndexError):
            found["unopenable"] += 1
            continue
        indexes = [entry[1] for entry in journal]
        if indexes != list(range(1, len(indexes) + 1)):
            found["damaged"] += 1
        elif len(indexes) < 1001:
            found["lost"] += 1
        journal._destroy()
    assert found["lost"] >= 3, found
    assert found["unopenable"] + found["damaged"] >= 3, found


STOCK_UNDER_A_CUT = """
import os
from pathlib import Path
from chaos.disk.mounts import loop_disk, own_mounts
from pysyncobj.journal import FileJournal

own_mounts()
with loop_disk("ext4") as disk:
    for cut in range(2):
        path = disk.path / f"journal{cut}"
        child = os.fork()
        if not child:
            journal = FileJournal(str(path))
            for index in range(1, 3001):
                journal.add(b"x" * 200, index, 1)
            os._exit(0)
        os.waitpid(child, 0)
        disk.cut()
        disk.unmount()
        disk.mount()
        try:
            print(len(FileJournal(str(path))), flush=True)
        except Exception as error:
            print(f"0 {error!r}", flush=True)
"""


def test_stock_loses_its_journal_on_a_real_disk_that_loses_power() -> None:
    if unavailable("ext4"):
        pytest.skip(f"NO POWER CUTS WERE MADE on ext4: {unavailable('ext4')}")
    done = run(STOCK_UNDER_A_CUT)
    kept = [int(line.split()[0]) for line in done.stdout.splitlines()]
    assert len(kept) == 2, done.stderr
    assert all(count < 3000 for count in kept), "the library called all 3,000 written"


def test_stock_votes_twice_after_it_lost_its_vote(clock: Clock, tmp_path: Path) -> None:
    """The meta file is renamed into place unsynced: a power cut leaves it empty, and nobody says so."""
    lab = StockDiskLab(clock, "abc", tmp_path)
    lab.net.part("a", "b")

    def campaign(name: str) -> None:
        lab[name]._SyncObj__raftElectionDeadline = clock.now - 1
        lab[name].doTick(0)
        lab.net.deliver(name, "c")
        lab.net.deliver("c", name)

    campaign("a")
    assert lab["a"]._isLeader()
    lab.kill("c")
    (tmp_path / "c.journal.meta").write_bytes(b"")
    c = lab.start("c", "abc")
    assert c._SyncObj__votedForNodeId is None
    lab.net.part("a", "bc")
    campaign("b")
    assert lab["b"]._isLeader()
    assert lab["a"].raftCurrentTerm == lab["b"].raftCurrentTerm == 1, "two leaders in one term"


def test_stock_believes_a_commit_index_beyond_its_log(clock: Clock, tmp_path: Path) -> None:
    """Its commit index is renamed into place while the journal's pages wait: after a power cut it may be ahead."""
    tmp_path.mkdir(exist_ok=True)
    journal = FileJournal(str(tmp_path / "a.journal"))
    journal.add(b"\1", 1, 0)
    for index in range(2, 51):
        journal.add(b"\1", index, 1)
    journal.setRaftCommitIndex(60)
    journal.setCurrentTerm(1, None)
    journal._destroy()
    lab = StockDiskLab(clock, "abc", tmp_path)
    a = lab["a"]
    lab.net.part("a", "bc")
    assert (a.raftCommitIndex, a.log[-1][0]) == (60, 50)
    a._SyncObj__raftElectionDeadline = clock.now - 1
    a.doTick(0)
    hears(a, "b", {"type": "response_vote", "term": a.raftCurrentTerm})
    answers: list[int] = []
    for i in range(12):
        a.put(i, callback=lambda _result, reason: answers.append(reason))
    a.doTick(0)
    a.doTick(0)
    assert FAIL_REASON.SUCCESS in answers, "clients are told of success"
    assert match(a, "b") == match(a, "c") == 0, "that no other member has"


def test_stock_counts_itself_for_what_it_has_not_synced(clock: Clock, tmp_path: Path) -> None:
    """a commits with b's copy and its own. Then a loses power: no majority has the entry on its disk."""
    lab = StockDiskLab(clock, "abc", tmp_path)
    lab.elect("a")
    lab["a"]._SyncObj__raftLog.flush()
    on_disk = (tmp_path / "a.journal").read_bytes()
    lab.net.part("c", "ab")
    answers: list[int] = []
    lab["a"].put("paid", callback=lambda _result, reason: answers.append(reason))
    lab.run(0.3)
    assert answers == [FAIL_REASON.SUCCESS]
    for name in "ab":
        lab.kill(name)
    (tmp_path / "a.journal").write_bytes(on_disk)
    lab.net.heal()
    lab.start("a", "abc")
    lab.elect("a")
    assert lab["a"].values == lab["c"].values == [], "what was acknowledged is on none of a majority"


@pytest.mark.parametrize("what", ["another command", "another index"])
def test_stock_believes_a_flipped_bit(tmp_path: Path, what: str) -> None:
    path = tmp_path / "journal"
    journal = FileJournal(str(path))
    for index in range(1, 11):
        journal.add(b"needle", index, 1)
    journal._destroy()
    content = bytearray(path.read_bytes())
    content[content.rindex(b"needle") - (0 if what == "another command" else 16)] ^= 0x04
    path.write_bytes(content)
    again = FileJournal(str(path))
    assert (again[9][0] != b"needle", again[9][1] != 10) == (what == "another command", what == "another index")
    again._destroy()


def test_stock_shares_one_journal_and_takes_anothers(clock: Clock, tmp_path: Path) -> None:
    lab = StockDiskLab(clock, "abc", tmp_path / "one")
    followed(lab, "a", 2, 5)
    twice = FileJournal(str(tmp_path / "one" / "a.journal"))
    assert len(twice) == 6, "two processes may write one journal"
    twice._destroy()
    lab.kill("a")
    other = StockDiskLab(clock, "xyz", tmp_path / "two")
    for end in ("journal", "journal.meta"):
        if (tmp_path / "one" / f"a.{end}").exists():
            shutil.copyfile(tmp_path / "one" / f"a.{end}", tmp_path / "two" / f"x.{end}")
    other.kill("x")
    shutil.copyfile(tmp_path / "one" / "a.journal", tmp_path / "two" / "x.journal")
    assert other.start("x", "xyz").log[-1] == (6, 1), "another cluster's log is taken as its own"


# -- the size of the log ---------------------------------------------------------------------------


def test_stock_ends_at_4_gib_with_an_entry_that_is_sent_but_not_on_disk(tmp_path: Path) -> None:
    journal = FileJournal(str(tmp_path / "journal"))
    journal.add(b"\0x", 1, 0)
    journal._FileJournal__currentOffset = 2**32 - 64  # the file is sparse
    with pytest.raises(struct.error):
        journal.add(b"\0" + b"z" * 100, 2, 1)
    assert len(journal) == 2, "replication reads it"
    journal._destroy()
    (tmp_path / "journal").unlink()


def grown(add: Any) -> int:
    """Bytes of memory that 20,000 entries of 1 KiB leave in use."""
    tracemalloc.start()
    try:
        for index in range(1, 20_001):
            add(b"\0" + os.urandom(1024), index, 1)
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_stock_holds_its_whole_log_in_memory(tmp_path: Path) -> None:
    journal = FileJournal(str(tmp_path / "journal"))
    assert grown(journal.add) > 20 << 20
    journal._destroy()


def test_memory_holds_a_tail_of_the_log_and_no_more(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "j", tail_bytes_max=1 << 20)

    def add(*entry: Any) -> None:
        journal.add(*entry)
        if entry[1] % 100 == 0:
            journal.flush()

    assert grown(add) < 4 << 20
    assert len(journal) == 20_000
    journal.close()


def test_stock_reads_the_rest_of_its_log_for_one_batch(clock: Clock, tmp_path: Path) -> None:
    lab = StockDiskLab(clock, "abc", tmp_path)
    followed(lab, "a", 2, 3000)

    class Counted(list[Any]):
        read = 0

        def __getitem__(self, item: Any) -> Any:
            found = super().__getitem__(item)
            Counted.read += len(found) if isinstance(item, slice) else 1
            return found

    lab["a"]._SyncObj__raftLog = Counted(lab["a"]._SyncObj__raftLog[:])
    Counted.read = 0
    batch = lab["a"]._SyncObj__getEntries(2, None, 1000)
    assert len(batch) < 100
    assert Counted.read > 2990
    # Ours reads what fits, in steps of 64.
    journal = open_journal(tmp_path / "j", tail_bytes_max=1)
    fill(journal, 3000)
    counts: list[int] = []
    read = journal._storage.read
    journal._storage.read = lambda first, count: counts.append(count) or read(first, count)  # type: ignore[func-returns-value,method-assign]
    assert len(journal.batch(2, bytes_max=1000)) < 100
    assert sum(counts) <= 128
    journal.close()


# -- a restart without faults is right -------------------------------------------------------------


def test_stock_repeats_effects_outside_after_each_restart(clock: Clock, tmp_path: Path) -> None:
    """Its own memory is right after a clean restart; a store beside it is written once more for each entry."""
    effects: list[Any] = []

    class Writes(Stock):
        @pysyncobj.replicated
        def write(self, value: Any) -> None:
            effects.append(value)

    lab = StockDiskLab(clock, "a", tmp_path, cls=Writes)
    for _ in range(2):
        clock.now += 2
        lab.step()
        lab["a"].write("x")
        lab.run(1.5)
        restarted(lab, "a", "a")
    clock.now += 2
    lab.step()
    lab.run(0.1)
    assert len(effects) > 2


def test_a_restart_delivers_only_what_the_store_lacks(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    lab.elect("a")
    lab.propose("a", b"one", b"two")
    lab.run(0.2)
    stored = lab["a"].delivered[0][0]
    lab["a"].crash()
    lab["a"].start(applied_index=stored)
    lab.connect_all()
    lab.run(2)
    assert lab["a"].payloads == [b"two"]
