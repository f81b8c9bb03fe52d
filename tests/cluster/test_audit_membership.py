"""The library's membership changes: two majorities side by side, members that come back as ghosts."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pysyncobj import _COMMAND_TYPE, FAIL_REASON
from pysyncobj.node import Node

from tests.cluster.lab import Clock, Stock, StockLab
from tests.cluster.stock_disk import PATIENT, StockDiskLab, close, hears, restarted, unclosed_files_allowed

CHANGING = PATIENT | {"dynamicMembershipChange": True}


@pytest.fixture(autouse=True)
def _files() -> Iterator[None]:
    with unclosed_files_allowed():
        yield


@pytest.fixture
def lab(clock: Clock, tmp_path: Path) -> Iterator[StockDiskLab]:
    lab = StockDiskLab(clock, "abc", tmp_path, **CHANGING)
    lab.elect("a")
    yield lab
    for member in lab.members.values():
        close(member)


def voters(member: Stock) -> str:
    return "".join(sorted(node.id for node in member.otherNodes | {member.selfNode}))


def elect(lab: StockLab, name: str) -> None:
    """Let `name` campaign, and nobody else."""
    lab[name]._SyncObj__raftElectionDeadline = lab.clock.now - 1
    lab.run(0.2)
    assert lab[name]._isLeader()


def test_stock_changes_members_twice_at_once_and_has_two_majorities(lab: StockDiskLab) -> None:
    """Whether a change is under way is looked up in a field that nothing ever sets."""
    answers: dict[str, int] = {}

    def noted(what: str) -> Any:
        return lambda _result, reason: answers.__setitem__(what, reason)

    lab.net.part("ade", "bc")
    lab.start("d", "abce")
    lab.start("e", "abcd")
    for name in "de":
        lab["a"].addNodeToCluster(name)
    lab["a"].doTick(0)
    assert voters(lab["a"]) == "abcde"
    assert lab["a"].raftCommitIndex < lab["a"].log[-1][0] - 1, "neither is committed"
    lab["a"].put("buy", callback=noted("a, d, e"))
    lab.run(0.5)
    elect(lab, "b")
    lab["b"].put("sell", callback=noted("b, c"))
    lab.run(0.5)
    assert answers == {"a, d, e": FAIL_REASON.SUCCESS, "b, c": FAIL_REASON.SUCCESS}
    assert (lab["a"].values, lab["b"].values) == (["buy"], ["sell"])


def test_stock_forgets_a_change_by_a_restart_and_has_two_majorities(lab: StockDiskLab) -> None:
    """The commit index is written once a second, and only committed changes are read back."""
    lab.run(1.5)
    for name in "de":
        lab["a"].addNodeToCluster(name)
        lab["a"].doTick(0)
        lab.start(name, "abc" if name == "d" else "abcd")
        # What is committed now is not written down: no second has passed.
        for _ in range(4):
            for member in lab.members.values():
                member._SyncObj__newAppendEntriesTime = 0
                member.doTick(0)
            lab.net.run()
    assert voters(lab["a"]) == voters(lab["b"]) == voters(lab["e"]) == "abcde"
    assert lab["a"].raftCommitIndex == lab["a"].log[-1][0]
    for name in "ab":
        lab.kill(name)
    lab.net.part("ab", "cde")
    for name in "ab":
        lab.start(name, "abc")
        lab[name].doTick(0)
    assert voters(lab["a"]) == "abc"
    done: list[str] = []

    def noted(side: str) -> Any:
        return lambda _result, reason: done.append(side) if reason == FAIL_REASON.SUCCESS else None

    # a commits by two of three, in one go, before it applies the changes that it should have known.
    lab["a"]._SyncObj__raftElectionDeadline = lab.clock.now - 1
    lab["a"].doTick(0)
    for _ in range(2):
        lab.net.deliver("a", "b")
        lab.net.deliver("b", "a")
        lab["a"].put("a", callback=noted("a, b"))
        lab["a"].doTick(0)
        lab.clock.now += 0.06
        lab["a"].doTick(0)
    lab.run(0.2)
    elect(lab, "c")
    lab["c"].put("c", callback=noted("c, d, e"))
    lab.run(0.5)
    assert set(done) == {"a, b", "c, d, e"}
    assert (lab["b"].values[:1], lab["e"].values) == (["a"], ["c"])


def test_stock_goes_back_to_the_members_of_an_older_dump(clock: Clock, tmp_path: Path) -> None:
    """Without a journal: started with a, b, c, d, it counts a, b, c only."""
    lab = StockDiskLab(clock, "abc", tmp_path, journalFile=None, **CHANGING)
    lab.elect("a")
    for i in range(5):
        lab["a"].put(i)
    lab.run(0.3)
    lab.compact("b")
    lab["a"].addNodeToCluster("d")
    lab.run(0.1)
    lab.start("d", "abc")
    lab.run(0.5)
    assert voters(lab["b"]) == "abcd"
    assert voters(restarted(lab, "b", "abcd")) == "abc"
    for member in lab.members.values():
        close(member)


def test_stock_brings_back_a_member_that_was_never_agreed(lab: StockDiskLab) -> None:
    """A dump holds the members of changes that are not committed, too."""
    for i in range(5):
        lab["a"].put(i)
    lab.run(0.3)
    lab.net.part("a", "bc")
    lab["a"].addNodeToCluster("x")
    lab["a"].doTick(0)
    lab.compact("a")
    elect(lab, "b")
    lab.net.heal()
    lab.run(2)
    assert voters(lab["a"]) == "abc", "the change was thrown away"
    lab.run(1.5)
    assert voters(restarted(lab, "a", "abc")) == "abcx"


def test_stock_changes_members_though_that_is_switched_off(clock: Clock) -> None:
    lab = StockLab(clock, "abc", **PATIENT)
    change = bytes([_COMMAND_TYPE.MEMBERSHIP]) + pickle.dumps(["add", "mallory", Node("mallory")], 2)
    message = {"type": "append_entries", "term": 1, "commit_index": 2, "prevLogIdx": 1, "prevLogTerm": 0}
    hears(lab["a"], "b", message | {"entries": [(change, 2, 1)]})
    lab["a"].doTick(0)
    assert not lab["a"].conf.dynamicMembershipChange
    assert "mallory" in {node.id for node in lab["a"].otherNodes}
