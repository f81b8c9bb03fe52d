"""What the library does with an error in apply, with retried commands and with method names; and what we do."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pysyncobj import _COMMAND_TYPE, FAIL_REASON, replicated
from pysyncobj.node import Node

from cluster.consensus.messages import Append
from cluster.consensus.raft import ApplyFailed, BrokenInvariant
from tests.cluster.lab import Clock, Lab, Stock, StockLab
from tests.cluster.stock_disk import StockDiskLab, hears, restarted, unclosed_files_allowed


@pytest.fixture(autouse=True)
def _files() -> Iterator[None]:
    with unclosed_files_allowed():
        yield


class Account(Stock):
    """A balance, and a command that fails half-way."""

    balance = 0

    @replicated
    def credit(self, units: int) -> None:
        self.balance += units

    @replicated
    def credit_and_fail(self, units: int) -> None:
        self.balance += units
        raise ValueError("a bug in a rule")


def run(lab: StockLab, seconds: float) -> int:
    """Steps in which some member raised."""
    raised = 0
    until = lab.clock.now + seconds
    while lab.clock.now < until:
        lab.clock.now += 0.02
        for member in lab.members.values():
            try:
                member.doTick(0)
            except ValueError:
                raised += 1
        lab.net.run()
    return raised


# -- F4 --------------------------------------------------------------------------------------------


def test_stock_repeats_a_failing_command_for_ever_and_the_cluster_with_it(clock: Clock) -> None:
    lab = StockLab(clock, "abc", cls=Account)
    lab.elect("a")
    applied = lab["a"].raftLastApplied
    answers: list[int] = []
    lab["a"].credit_and_fail(100, callback=lambda _result, reason: answers.append(reason))
    lab["a"].credit(1)
    assert run(lab, 5) > 50
    assert lab["a"].balance > 1000, "its half-done effect is repeated with each tick"
    assert lab["a"].raftLastApplied == applied, "nothing behind it is ever applied"
    assert answers == [], "and its client hears nothing"
    others = [lab[name] for name in "bc"]
    assert any(member.balance > 1000 for member in others), "the next leader commits it, and turns on it as well"


def test_stock_goes_on_after_an_error_in_its_own_thread(clock: Clock, tmp_path: Path) -> None:
    """With autoTick, as most use it, the error is a line in the log."""
    lab = StockLab(clock, "")
    member = Account(lab.net, "a", [], autoTick=True, autoTickPeriod=0.001)
    stop = threading.Event()

    def turn() -> None:
        while not stop.wait(0.002):
            clock.now += 0.05

    turning = threading.Thread(target=turn)
    turning.start()
    try:
        wait(member._isLeader)
        member.credit_and_fail(1)
        wait(lambda: member.balance > 5)
        assert member.tick_thread_alive()
    finally:
        member.destroy_synchronous()
        stop.set()
        turning.join()


def wait(holds: Callable[[], bool], *, within: float = 20.0) -> None:
    until = time.monotonic() + within
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.002)


def test_stock_applies_a_command_twice_after_one_it_can_not_read(clock: Clock) -> None:
    """An entry of a newer code version is passed over without counting it: all later ones come one too late."""
    lab = StockLab(clock, "abc", cls=Account)
    lab.elect("a")
    from pysyncobj import pickle  # noqa: PLC0415 - the library's own

    lab["a"]._applyCommand(pickle.dumps(7), None, _COMMAND_TYPE.VERSION)
    for units in (10, 5):
        lab["a"].credit(units)
    lab.run(0.3)
    lab["a"].credit(1)
    lab.run(0.3)
    assert lab["a"].balance != 16


def test_an_entry_that_can_not_be_read_stops_the_member(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    a = lab["a"]
    a.raft.received("b", Append(1, 1, 1, 0, 4, 0, [(1, b"\0one"), (1, b"\3version"), (1, b"\0two")]))
    a.raft.tick()
    a.committer.sync()
    with pytest.raises((BrokenInvariant, ApplyFailed), match="3"):
        a.raft.tick()
    assert a.payloads == [b"one"]


# -- F12: whose answer is it? ----------------------------------------------------------------------


def restarted_without_files(lab: StockLab, name: str) -> Stock:
    member = Stock(lab.net, name, [other for other in lab.members if other != name])
    lab.members[name] = member
    for other in lab.members:
        if other != name:
            member.link._onNodeConnected(member.link.node(other))
    return member


def test_stock_takes_an_answer_to_its_former_self_for_its_own(clock: Clock) -> None:
    """Request ids begin at 1 with each start: success for a command that was never applied."""
    lab = StockLab(clock, "abc")
    lab.elect("a")
    lab["b"].put("of its former life", callback=lambda _result, _reason: None)
    lab["b"].doTick(0)
    lab.net.deliver("b", "a")
    lab["a"].doTick(0)
    [late] = [message for message in lab.net.queued("a", "b") if message["type"] == "apply_command_response"]
    lab.net.drop("a", "b")
    b = restarted_without_files(lab, "b")
    hears(b, "a", {"type": "append_entries", "term": 1, "commit_index": 1, "entries": [], "serialized": None})
    answers: list[int] = []
    b.put("never applied", callback=lambda _result, reason: answers.append(reason))
    b.doTick(0)
    lab.net.drop("b", "a")  # the link breaks: the command is gone
    hears(b, "a", late)
    lab.run(0.5)
    assert answers == [FAIL_REASON.SUCCESS]
    assert lab["a"].values == b.values == ["of its former life"]


def test_stock_never_answers_for_a_command_that_the_link_lost(clock: Clock) -> None:
    lab = StockLab(clock, "abc")
    lab.elect("a")
    answers: list[int] = []
    lab["b"].put("lost", callback=lambda _result, reason: answers.append(reason))
    lab["b"].doTick(0)
    lab.net.drop("b", "a")
    lab.run(30)
    assert lab["a"]._isLeader()
    assert (answers, lab["a"].values) == ([], [])


def test_stock_reports_a_failure_for_a_command_that_is_applied(clock: Clock) -> None:
    lab = StockLab(clock, "abc")
    lab.elect("a")
    answers: list[int] = []
    lab["b"].put("pay", callback=lambda _result, reason: answers.append(reason))
    lab["b"].doTick(0)
    lab.net.deliver("b", "a")
    lab["a"].doTick(0)
    clock.now += 0.06
    lab["a"].doTick(0)
    lab.net.deliver("a", "c")  # only c has it when a's link breaks
    lab.net.part("a", "bc")
    lab.elect("c")
    lab.run(0.3)
    assert answers == [FAIL_REASON.LEADER_CHANGED]
    assert lab["b"].values == lab["c"].values == ["pay"], "who tries again pays twice"


def test_stock_never_answers_for_an_index_that_a_dump_jumps_over(clock: Clock) -> None:
    lab = StockLab(clock, "abc")
    lab.elect("a")
    answers: list[int] = []
    lab.net.part("a", "bc")
    lab["a"].put("x", callback=lambda _result, reason: answers.append(reason))
    lab["a"].doTick(0)
    lab.elect("b")
    for i in range(10):
        lab["b"].put(i)
    lab.run(0.3)
    lab["b"].forceLogCompaction()
    lab.run(0.1)
    lab.net.heal()
    lab.run(3)
    assert lab["a"].values == lab["b"].values
    assert answers == []
    assert lab["a"]._SyncObj__commandsWaitingCommit, "and its waiter is kept for ever"


def test_stock_raises_for_a_command_that_it_has_queued(clock: Clock) -> None:
    lab = StockLab(clock, "ab", appendEntriesUseBatch=False, commandsQueueSize=100_000)
    calls = 0
    with pytest.raises(BlockingIOError):
        while calls < 80_000:
            calls += 1
            lab["a"].put(calls)
    assert len(lab["a"]._SyncObj__commandsQueue._FastQueue__queue) == calls, "it will be applied"
    for member in lab.members.values():
        for end in "RW":  # the library never closes them
            os.close(getattr(member._SyncObj__pipeNotifier, f"_PipeNotifier__pipe{end}"))


# -- F12: what a command means ---------------------------------------------------------------------


class OneMethod(Stock):
    @replicated
    def withdraw(self, units: int) -> None:
        self.values.append(("withdraw", units))


class TwoMethods(OneMethod):
    @replicated
    def deposit(self, units: int) -> None:
        self.values.append(("deposit", units))


def test_stock_replays_old_entries_as_other_methods(clock: Clock, tmp_path: Path) -> None:
    """An entry names its method by the place in a sorted list; a new method moves the others."""
    lab = StockDiskLab(clock, "a", tmp_path, cls=OneMethod, fullDumpFile=None)
    clock.now += 2
    lab.step()
    lab["a"].withdraw(500)
    lab.run(1.5)
    assert lab["a"].values == [("withdraw", 500)]
    lab.cls = TwoMethods
    restarted(lab, "a", "a", fullDumpFile=None)
    clock.now += 2
    lab.run(0.1)
    assert lab["a"].values != [("withdraw", 500)]


def test_an_entry_is_bytes_that_come_back_as_they_went_in(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    lab.elect("a")
    payload = bytes(range(256))
    lab.propose("a", payload)
    lab.run(0.2)
    assert [member.payloads for member in lab.alive] == [[payload]] * 3


# -- F12: handing leadership over ------------------------------------------------------------------


def test_stock_hands_nothing_over_under_load_and_drops_writes_meanwhile(clock: Clock) -> None:
    lab = StockLab(clock, "abc")
    lab.elect("a")
    answers: dict[str, int] = {}

    def note(what: str) -> Callable[[Any, int], None]:
        return lambda _result, reason: answers.__setitem__(what, reason)

    lab["a"].put("unacknowledged")
    lab["a"].doTick(0)
    lab["a"].transferLeadership("b", callback=note("under load"))
    assert answers == {"under load": FAIL_REASON.REQUEST_DENIED}
    lab.run(0.3)
    lab["a"].transferLeadership("b", callback=note("idle"))
    lab.net.deliver("a", "b")
    lab["a"].put("late", callback=note("late"))
    lab["a"].doTick(0)
    lab.run(1)
    assert lab["b"]._isLeader()
    assert answers["idle"] == FAIL_REASON.SUCCESS, "said before anything had happened"
    assert answers["late"] == FAIL_REASON.DISCARDED, "taken after the hand-over had begun"


# -- F13 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filler", [b"\xff", b"\xfe"])
def test_stock_breaks_a_large_entry_into_parts_that_raise(clock: Clock, filler: bytes) -> None:
    lab = StockLab(clock, "abc")
    lab.elect("a")
    lab["a"]._applyCommand(filler * 300_000, None, _COMMAND_TYPE.NO_OP)
    lab["a"].doTick(0)
    clock.now += 0.06
    lab["a"].doTick(0)
    raised = 0
    for message in lab.net.queued("a", "b"):
        try:
            hears(lab["b"], "a", message)
        except EOFError:
            raised += 1
    assert raised > 2


def test_stock_lets_a_command_wait_for_its_period(clock: Clock) -> None:
    """Nothing wakes the leader: a command waits for a tick, then for the period, and followers for another one."""
    lab = StockLab(clock, "abc", appendEntriesPeriod=0.05)
    lab.elect("a")
    clock.now += 0.06
    lab["a"].doTick(0)
    lab.net.run()
    lab["a"].put("x")
    began = clock.now
    while not lab["a"].values:
        lab.step(0.001)
        assert clock.now < began + 1
    assert clock.now - began > 0.04
    while not lab["b"].values:
        lab.step(0.001)
        assert clock.now < began + 1
    assert clock.now - began > 0.09
    # Ours, with messages that take no time: at once.
    ours = Lab(clock, "abc")
    ours.elect("a")
    ours.run(0.06)
    ours.propose("a", b"x")
    took = ours.run_until(lambda: bool(ours["b"].payloads), within=1)
    assert took < 0.03
    assert ours["a"].payloads == [b"x"]


def test_a_member_that_is_no_member_is_not_heard(clock: Clock) -> None:
    """The library would take a message of anybody whose link says so."""
    lab = StockLab(clock, "abc")
    entries = [(b"\1", 2, 5)]
    message = {"type": "append_entries", "term": 5, "commit_index": 2, "entries": entries}
    hears(lab["a"], "mallory", message | {"prevLogIdx": 1, "prevLogTerm": 0})
    assert lab["a"].raftCurrentTerm == 5
    assert Node("mallory") not in lab["a"].otherNodes
    ours = Lab(clock, "abc")
    ours["a"].raft.received("mallory", Append(5, 1, 1, 0, 2, 0, [(5, b"\1")]))
    assert ours["a"].raft.term == 0
