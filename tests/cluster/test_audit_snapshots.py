"""The library's dumps on their way and on disk: lost chunks, old ones, floods; and what ours does in their place."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pysyncobj import FAIL_REASON, SERIALIZER_STATE, syncobj
from pysyncobj.node import Node

from cluster.consensus.messages import Append
from cluster.consensus.raft import RaftSettings
from tests.cluster.lab import TIMING, Clock, Lab
from tests.cluster.stock_disk import PATIENT, StockDiskLab, close, hears, match, restarted, unclosed_files_allowed

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _files() -> Iterator[None]:
    with unclosed_files_allowed():
        yield


@pytest.fixture
def lab(clock: Clock, tmp_path: Path) -> Iterator[StockDiskLab]:
    """a leads; chunks of 64 bytes, so that each dump has many."""
    lab = StockDiskLab(clock, "abc", tmp_path, logCompactionBatchSize=64, **PATIENT)
    lab.elect("a")
    yield lab
    for member in lab.members.values():
        close(member)


def put(lab: StockDiskLab, name: str, *values: Any) -> None:
    for value in values:
        lab[name].put(value)
    lab.run(0.3)


def without_c(lab: StockDiskLab, count: int = 30) -> None:
    """c is cut off; the others go on and drop what c lacks from their logs."""
    lab.net.part("c", "ab")
    put(lab, "a", *(f"new{i}" for i in range(count)))
    lab.compact("a")
    lab.net.heal()


def chunks(lab: StockDiskLab, source: str = "a", target: str = "c") -> list[dict[str, Any]]:
    return [message for message in lab.net.queued(source, target) if message.get("serialized")]


def offer_dump(lab: StockDiskLab) -> None:
    """Let a find out that c needs a dump, and put all of it on the link."""
    lab.clock.now += 0.06
    lab["a"].doTick(0)
    lab.net.deliver("a", "c")
    lab.net.deliver("c", "a")
    lab.clock.now += 0.06
    lab["a"].doTick(0)


# -- F1: a dump on its way moves the commit index ---------------------------------------------------


def test_stock_commits_a_deposed_leaders_tail_while_a_dump_is_on_its_way(clock: Clock, tmp_path: Path) -> None:
    lab = StockDiskLab(clock, "abc", tmp_path, logCompactionBatchSize=64, **PATIENT)
    lab.elect("a")
    lab.net.part("a", "bc")
    answers: list[int] = []
    for i in range(5):
        lab["a"].put(f"ghost{i}", callback=lambda _result, reason: answers.append(reason))
    lab["a"].doTick(0)
    lab.elect("b")
    put(lab, "b", *(f"real{i}" for i in range(50)))
    lab.compact("b")
    lab.net.heal()
    applied: set[str] = set()
    for _ in range(60):
        clock.now += 0.06
        lab["b"].doTick(0)
        while lab.net.queued("b", "a") or lab.net.queued("a", "b"):
            lab.net.deliver("b", "a", 1)
            lab["a"].doTick(0)
            applied |= {value for value in lab["a"].values if value.startswith("ghost")}
            lab.net.deliver("a", "b")
    assert len(applied) == 5, "a applied what the cluster had thrown away"
    assert answers == [FAIL_REASON.SUCCESS] * 5
    assert lab["a"].values == lab["b"].values
    assert not applied & set(lab["b"].values), "orders that were acknowledged and are on no member"


def stranded(clock: Clock) -> Lab:
    """a has a tail of its own; b leads, and its log begins behind where a's agrees with it."""
    settings = RaftSettings(timing=TIMING, trim_reserve=0, laggard_entries=10)
    lab = Lab(clock, "abc", settings=settings)
    lab.elect("a")
    lab.net.part("a", "bc")
    lab.propose("a", *(b"ghost%d" % i for i in range(5)))
    lab.step()
    lab.elect("b")
    for start in range(0, 50, 10):
        lab.propose("b", *(b"real%d" % i for i in range(start, start + 10)))
        lab.run(0.1)
        for name in "bc":
            lab[name].raft.stored_index = lab[name].raft.applied_index
    lab.run(1.5)
    assert lab["b"].journal.first_index > lab["a"].journal.last_index
    return lab


def test_a_member_that_needs_a_snapshot_commits_nothing_before_it_has_it(clock: Clock) -> None:
    lab = stranded(clock)
    before = lab["a"].raft.commit_index
    lab.net.heal()
    lab.run(2)
    assert lab["b"].raft.stranded == ["a"]
    assert (lab["a"].raft.commit_index, lab["a"].payloads) == (before, [])


# -- F11: on its way -------------------------------------------------------------------------------


def test_stock_acknowledges_a_dump_that_lost_a_chunk_and_its_state_with_it(lab: StockDiskLab) -> None:
    put(lab, "a", *(f"old{i}" for i in range(3)))
    lab.compact("c")
    good = (lab.folder / "c.dump").read_bytes()
    without_c(lab)
    offer_dump(lab)
    queue = lab.net.queues["a", "c"]
    queue.remove(chunks(lab)[1])
    lab.net.deliver("a", "c")
    reply = lab.net.queued("c", "a")[-1]
    assert reply["success"], "it says that it has everything"
    bad = (lab.folder / "c.dump").read_bytes()
    assert bad not in (good, (lab.folder / "a.dump").read_bytes()), "its own good dump is gone, too"
    again = restarted(lab, "c", "abc")
    assert again.values == [], "and nobody is told"


def test_stock_lets_a_member_lead_whose_dump_does_not_load(lab: StockDiskLab) -> None:
    put(lab, "a", *(f"v{i}" for i in range(5)))
    for name in "abc":
        lab.compact(name)
    lab.kill("c")
    (lab.folder / "c.dump").write_bytes(b"garbage!")
    lab.start("c", "abc")
    lab.elect("c")
    lab.run(1)
    assert lab["c"]._isLeader()
    assert lab["c"].values == [], "it serves reads of nothing"
    assert lab["a"].values == [f"v{i}" for i in range(5)]


def test_stock_installs_an_older_dump_over_a_newer_state(lab: StockDiskLab) -> None:
    put(lab, "a", *range(10))
    lab.compact("a")
    put(lab, "a", *range(10, 20))
    before, matched = lab["c"].raftLastApplied, match(lab["a"], "c")
    # Any old refusal does it: they carry neither term nor number.
    refusal = {"type": "next_node_idx", "next_node_idx": 3, "reset": True, "success": False}
    hears(lab["a"], "c", refusal)
    lab.clock.now += 0.06
    lab["a"].doTick(0)
    queued = lab.net.queued("a", "c")
    lab.net.deliver("a", "c", 1 + max(i for i, message in enumerate(queued) if message.get("serialized")))
    lab.net.drop("a", "c")
    lab["c"].doTick(0)
    assert lab["c"].raftLastApplied < before
    assert lab["c"].log[-1][0] < match(lab["a"], "c") == matched, "what the leader goes on counting"


def test_an_older_refusal_sends_nobody_back(clock: Clock) -> None:
    settings = RaftSettings(timing=TIMING, trim_reserve=0)
    lab = Lab(clock, "abc", settings=settings)
    a = lab.elect("a")
    lab.propose("a", *(b"%d" % i for i in range(20)))
    lab.run(0.3)
    for member in lab.alive:
        member.raft.stored_index = member.raft.applied_index
    lab.run(0.3)
    progress = a.raft.progress("c")
    assert progress is not None
    matched = progress.matched_index
    reply = lab_reply(lab, retry_index=3)
    a.raft.received("c", reply)
    assert progress.next_index == matched + 1, "no further back than what is synced there"
    lab.run(0.3)
    assert (progress.matched_index, progress.stranded) == (matched, False)
    assert lab["c"].raft.applied_index == a.raft.applied_index


def lab_reply(lab: Lab, *, retry_index: int) -> Any:
    """The last answer that c would give, but a refusal of its first message."""
    raft = lab["c"].raft
    raft._reply()
    reply = lab.net.queued("c", "a")[-1]
    lab.net.drop("c", "a")
    return msgspec.structs.replace(reply, sequence=1, retry_index=retry_index)


def test_stock_never_ends_a_transfer_while_it_compacts(lab: StockDiskLab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab["a"].large = os.urandom(3000)
    without_c(lab)
    slow = 0.0

    def costly() -> float:
        """Reading the clock takes time, so that a dozen chunks fit between two heartbeats."""
        nonlocal slow
        slow += 0.004
        return lab.clock.now + slow

    monkeypatch.setattr(syncobj, "monotonicTime", costly)
    begun = ended = 0
    for i in range(30):
        lab["a"].put(i)
        lab.clock.now += 0.06
        lab["a"].doTick(0)
        for message in chunks(lab):
            begun += message["serialized"][1]
            ended += message["serialized"][2]
        lab.net.run()
        lab["b"].doTick(0)
        lab["a"].forceLogCompaction()
    assert begun > 8
    assert ended == 0
    assert lab["c"].raftLastApplied < lab["a"].raftLastApplied - 20


class FloodedNet:
    """Counts what one call sends."""

    def __init__(self, member: Any, target: str) -> None:
        self.count = 0
        self.target = target
        member.link.send = self._send

    def _send(self, node: Node, message: Any) -> bool:
        self.count += node.id == self.target
        return True


def test_stock_floods_a_member_while_a_dump_can_not_be_read(lab: StockDiskLab, monkeypatch: pytest.MonkeyPatch) -> None:
    put(lab, "a", *range(20))
    lab.compact("a")
    (lab.folder / "a.dump").unlink()
    lab["a"]._SyncObj__raftNextIndex[Node("c")] = 3
    flood = FloodedNet(lab["a"], "c")
    monkeypatch.setattr(syncobj, "monotonicTime", time.monotonic)
    lab["a"]._SyncObj__sendAppendEntries()
    assert flood.count > 20, "the same message, as often as fits between two heartbeats"


def test_a_member_that_needs_a_snapshot_is_asked_once_per_heartbeat(clock: Clock) -> None:
    lab = stranded(clock)
    lab.net.heal()
    lab.run(0.5)
    assert lab["b"].raft.stranded == ["a"]
    sent: list[Any] = []
    put = lab.net.put
    lab.net.put = lambda source, target, message: (
        (  # type: ignore[method-assign]
            sent.append(message) if (source, target) == ("b", "a") and isinstance(message, Append) else None
        )
        or put(source, target, message)
    )
    lab.run(1.0)
    assert 10 <= len(sent) <= 1.0 / (TIMING.heartbeat_ms / 1000) + 3


def test_stock_keeps_no_entry_for_who_is_a_little_behind(lab: StockDiskLab) -> None:
    put(lab, "a", *range(10))
    lab.net.part("c", "ab")
    put(lab, "a", "one more", "and another")
    lab.compact("a")
    lab.net.heal()
    offer_dump(lab)
    assert chunks(lab), "two entries behind, and the whole state is sent"


def test_a_reserve_is_kept_for_who_is_a_little_behind(clock: Clock) -> None:
    lab = Lab(clock, "abc", settings=RaftSettings(timing=TIMING, trim_reserve=20))
    a = lab.elect("a")
    lab.propose("a", *(b"%d" % i for i in range(50)))
    lab.run(0.3)
    for member in lab.alive:
        member.raft.stored_index = member.raft.applied_index
    lab.run(0.3)
    assert a.journal.first_index == a.raft.applied_index - 20


# -- F11: on disk ----------------------------------------------------------------------------------

CHILD_TOO_LATE = """
import os, sys, time
from pathlib import Path
from tests.cluster.lab import virtual_time
from tests.cluster.stock_disk import PATIENT, StockDiskLab

newer = Path(sys.argv[1]) / "newer"

class UntilNewer:  # a dump that is written while a newer one is installed
    def __reduce__(self):
        while not newer.exists():
            time.sleep(0.01)
        return (str, ("x",))

with virtual_time() as clock:
    lab = StockDiskLab(clock, "abc", Path(sys.argv[1]), useFork=True, **PATIENT)
    lab.elect("a")

    def put(*values):
        for value in values:
            lab["a"].put(value)
        lab.run(0.3)

    def done(name):
        for _ in range(500):
            if lab[name]._SyncObj__serializer._Serializer__pid == 0:
                return
            time.sleep(0.01)
            lab[name].doTick(0)
        raise SystemExit("the child does not end")

    put("old1", "old2", "old3")
    lab["c"].large = UntilNewer()
    lab["c"].forceLogCompaction()
    lab["c"].doTick(0)
    del lab["c"].large
    lab.net.part("c", "ab")
    put(*(f"new{i}" for i in range(30)))
    lab["a"].forceLogCompaction()
    lab["a"].doTick(0)
    done("a")
    lab.net.heal()
    lab.run(1)
    print(len(lab["c"].values), flush=True)
    newer.touch()
    done("c")
    lab.kill("c")
    c = lab.start("c", "abc")
    lab.net.part("c", "ab")
    for _ in range(3):
        c.doTick(0)
    print(len(c.values), flush=True)
    os._exit(0)
"""


def test_stock_replaces_a_newer_dump_by_an_older_one(tmp_path: Path) -> None:
    words = [sys.executable, "-W", "ignore", "-c", CHILD_TOO_LATE, str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    before, after = (int(line) for line in done.stdout.split())
    assert before == 33, done.stderr
    assert after < 33, "30 commands that it had applied and acknowledged are gone"


def test_stock_loses_its_state_where_a_journal_has_no_dump(clock: Clock, tmp_path: Path) -> None:
    """A journal without a dump file is a setting that it takes."""
    lab = StockDiskLab(clock, "a", tmp_path, fullDumpFile=None)
    clock.now += 2
    lab.step()
    put(lab, "a", *range(20))
    lab.compact("a")
    lab.run(1.5)
    assert lab["a"].values == list(range(20))
    again = restarted(lab, "a", "a", fullDumpFile=None)
    clock.now += 2
    lab.step()
    again.put("new")
    lab.run(5)
    assert (again.values, again.raftLastApplied) == ([], 1), "the old state is gone, and nothing is applied any more"


def test_stock_overwrites_a_members_own_fields_by_a_dump(lab: StockDiskLab) -> None:
    for name in "abc":
        lab[name].data_folder = f"/data/{name}"
    without_c(lab)
    lab.run(2)
    assert lab["c"].values == lab["a"].values
    assert lab["c"].data_folder == "/data/a"


def test_stock_never_compacts_once_a_dump_fails_and_says_one_line(
    lab: StockDiskLab, caplog: pytest.LogCaptureFixture
) -> None:
    lab["a"].socket = random.SystemRandom().random  # nothing that can be pickled
    put(lab, "a", *range(10))
    first = lab["a"].log[0]
    lab.compact("a")
    assert lab["a"].log[0] == first
    assert [record.exc_info for record in caplog.records if "Failed to store full dump" in record.message] == [None]


# -- F12: hooks that can be got wrong --------------------------------------------------------------


@pytest.mark.parametrize("kind", [tuple, list])
def test_stock_clears_its_journal_when_a_dumps_entries_are_lists(clock: Clock, tmp_path: Path, kind: type) -> None:
    kept: list[Any] = []
    hooks = {
        "serializer": lambda path, data: (kept.__setitem__(slice(None), data[:2]), Path(path).write_bytes(b"x")),
        "deserializer": lambda _path: (kind(kept[0]), kind(kept[1]), []),
    }
    lab = StockDiskLab(clock, "a", tmp_path, **hooks)
    clock.now += 2
    lab.step()
    put(lab, "a", *range(10))
    lab.compact("a")
    put(lab, "a", *range(10))
    lab.run(1.5)
    last = lab["a"].log[-1]
    assert (restarted(lab, "a", "a").log[-1] == last) is (kind is tuple), "10 entries depend on it"


def test_stock_takes_a_leftover_file_for_a_new_dump(clock: Clock, tmp_path: Path) -> None:
    """With a serializer that works in the background, whatever is called .tmp replaces the dump at once."""
    lab = StockDiskLab(
        clock,
        "a",
        tmp_path,
        serializer=lambda _path, _data: None,
        deserializer=lambda _path: None,
        serializeChecker=lambda: SERIALIZER_STATE.NOT_SERIALIZING,
    )
    clock.now += 2
    lab.step()
    put(lab, "a", *range(10))
    (tmp_path / "a.dump").write_text("the good dump")
    (tmp_path / "a.dump.tmp").write_text("left by a crash")
    lab.compact("a")
    assert (tmp_path / "a.dump").read_text() == "left by a crash"
