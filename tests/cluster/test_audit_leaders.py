"""Logs and leaders over several crashes and terms: whole histories in which the library loses what it acknowledged."""

from collections.abc import Callable
from typing import Any

from pysyncobj import FAIL_REASON
from pysyncobj.node import Node

from cluster.consensus.messages import Append, RequestVote, StaleTerm, Vote
from cluster.consensus.raft import RaftSettings
from tests.cluster.lab import TIMING, Clock, Lab, Stock, StockLab
from tests.cluster.stock_disk import PATIENT, hears, match

SMALL = {"appendEntriesBatchSizeBytes": 150, **PATIENT}
SMALL_BATCHES = RaftSettings(timing=TIMING, trim_reserve=0, batch_bytes=20)


def noted(answers: dict[Any, int], key: Any) -> Callable[[Any, int], None]:
    return lambda _result, reason: answers.__setitem__(key, reason)


def beat(lab: StockLab, name: str) -> None:
    """Time for one more heartbeat of `name`, and its tick. Nothing is delivered."""
    lab.clock.now += 0.06
    lab[name].doTick(0)


def gone(lab: StockLab, name: str) -> None:
    """A member dies, and all that is on its way with it."""
    del lab.members[name]
    lab.net.receivers.pop(name)
    for queue in [pair for pair in lab.net.queues if name in pair]:
        del lab.net.queues[queue]


# -- F2: even where it converges -------------------------------------------------------------------


def test_stock_goes_back_one_index_per_period(clock: Clock) -> None:
    lab = StockLab(clock, "abc", **PATIENT | {"appendEntriesPeriod": 0.1})
    lab.elect("a")
    lab.net.part("a", "bc")
    for i in range(10):
        lab["a"].put(f"stale{i}")
    lab["a"].doTick(0)
    lab.elect("b")
    for i in range(10):
        lab["b"].put(f"real{i}")
    lab.run(0.5)
    lab.net.heal()
    began = clock.now
    while lab["a"].log != lab["b"].log:
        lab.step()
        assert clock.now - began < 5
    assert clock.now - began > 0.9


# -- F6: entries that match are dropped ------------------------------------------------------------


def test_stock_loses_acknowledged_commands_by_one_crash(clock: Clock) -> None:
    """b has all, and has said so. The leader sends the first of them again, dies, and b has dropped the rest."""
    lab = StockLab(clock, "abc", **SMALL)
    lab.elect("a")
    lab.net.part("a", "c")
    answers: dict[Any, int] = {}
    for i in range(24):
        lab["a"].put(f"v{i:02d}", callback=noted(answers, f"v{i:02d}"))
    lab["a"].doTick(0)
    beat(lab, "a")
    lab.net.deliver("a", "b")
    lab["b"].doTick(0)
    lab.net.deliver("b", "a", 1)  # the first answer takes the leader back to what it has sent already
    beat(lab, "a")
    lab.net.deliver("b", "a")
    lab["a"].doTick(0)
    lab.net.deliver("a", "b", 1)
    gone(lab, "a")
    lab.net.heal()
    lab.elect("b")
    lab.run(0.5)
    done = [value for value, reason in answers.items() if reason == FAIL_REASON.SUCCESS]
    assert len(done) == 24
    assert len(set(done) - set(lab["b"].values)) >= 5, "acknowledged, and on no member"


def test_what_is_acknowledged_outlives_a_leader_that_sends_again(clock: Clock) -> None:
    lab = Lab(clock, "abc", settings=SMALL_BATCHES)
    a, b = lab.elect("a"), lab["b"]
    lab.net.part("a", "c")
    payloads = [b"v%02d" % i for i in range(24)]
    lab.propose("a", *payloads)
    a.raft.tick()
    again = lab.net.queued("a", "b")
    assert len(again) >= 4
    lab.run_until(lambda: a.payloads == payloads, within=0.5)
    for message in again[:2]:
        b.received("a", message)
    a.crash()
    lab.net.heal()
    lab.elect("b")
    lab.run(0.2)
    assert b.payloads == lab["c"].payloads == payloads


def test_stock_differs_for_ever_after_a_late_segment(clock: Clock) -> None:
    """What lingered on a replaced connection cuts the log below what is applied. After a fail-over two differ."""
    lab = StockLab(clock, "abc", **SMALL)
    lab.elect("a")
    lab.net.part("a", "c")
    for i in range(24):
        lab["a"].put(f"v{i:02d}")
    lab["a"].doTick(0)
    beat(lab, "a")
    late = lab.net.queued("a", "b")
    lab.run(0.3)
    assert len(lab["b"].values) == 24
    hears(lab["b"], "a", late[1])
    assert lab["b"].log[-1][0] < lab["b"].raftLastApplied
    gone(lab, "a")
    lab.net.heal()
    lab.elect("b")
    for i in range(12):
        lab["b"].put(f"new{i:02d}")
    lab.run(2)
    assert lab["b"].raftLastApplied == lab["c"].raftLastApplied
    assert lab["b"].values != lab["c"].values


def test_a_late_segment_changes_nothing(clock: Clock) -> None:
    lab = Lab(clock, "abc", settings=SMALL_BATCHES)
    a, b = lab.elect("a"), lab["b"]
    payloads = [b"v%02d" % i for i in range(24)]
    lab.propose("a", *payloads)
    a.raft.tick()
    late = lab.net.queued("a", "b")
    lab.run(0.3)
    log = b.log
    for message in late:
        b.received("a", message)
    assert b.log == log
    a.crash()
    lab.elect("b")
    lab.propose("b", b"new")
    lab.run(0.3)
    assert b.payloads == lab["c"].payloads == [*payloads, b"new"]


def test_stock_truncates_what_it_has_applied_and_says_so_in_its_log(clock: Clock, caplog: Any) -> None:
    lab = StockLab(clock, "abc")
    entries = [(b"\1", index, 1) for index in range(2, 7)]
    message = {"type": "append_entries", "term": 1, "commit_index": 6, "prevLogIdx": 1, "prevLogTerm": 0}
    hears(lab["a"], "b", message | {"entries": entries})
    lab["a"].doTick(0)
    hears(lab["a"], "b", message | {"entries": entries[:1]})
    assert [record for record in caplog.records if "truncating already-applied" in record.message]


# -- F9: leaders that are none ---------------------------------------------------------------------


def test_stock_serves_an_old_state_for_30_s(clock: Clock) -> None:
    lab = StockLab(clock, "abc", **PATIENT)
    lab.elect("a")
    lab.net.part("a", "bc")
    lab.elect("b")
    lab["b"].put("new")
    lab.run(25)
    assert lab["a"]._isLeader()
    assert lab["a"].hasQuorum, "it counts links, not answers"
    assert (lab["a"].values, lab["b"].values) == ([], ["new"])


def test_stock_has_two_leaders_over_one_broken_link(clock: Clock) -> None:
    lab = StockLab(clock, "abc")
    lab.elect("a")
    lab.net.part("a", "c")
    both = changes = 0
    before = "a"
    until = clock.now + 40
    while clock.now < until:
        lab.step(0.02)
        leading = [member for member in lab.members.values() if member._isLeader()]
        both += len(leading) > 1
        newest = max(leading, key=lambda member: member.raftCurrentTerm).lab_name if leading else before
        changes, before = changes + (newest != before), newest
    assert changes >= 1
    assert both * 0.02 > 5


def test_stock_tells_a_deposed_leader_nothing(clock: Clock) -> None:
    lab = StockLab(clock, "abc", **PATIENT)
    lab.elect("a")
    old = lab["a"].raftCurrentTerm
    lab.net.part("a", "bc")
    lab.elect("b")
    lab.net.drop("b", "a")
    message = {"type": "append_entries", "term": old, "commit_index": 1, "prevLogIdx": 1, "prevLogTerm": 0}
    lab.net.heal()
    hears(lab["b"], "a", message | {"entries": []})
    assert lab.net.queued("b", "a") == []


def test_a_deposed_leader_is_told(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    a = lab.elect("a")
    old = a.raft.term
    lab.net.part("a", "bc")
    lab.elect("b")
    lab.net.heal()
    lab.net.drop("b", "a")
    lab["b"].received("a", Append(old, 1, 1, 0, 1, 0, []))
    assert lab.net.queued("b", "a") == [StaleTerm(lab["b"].raft.term)]
    a.received("b", StaleTerm(lab["b"].raft.term))
    assert not a.raft.is_leader


# -- F10: acknowledgements of older terms ----------------------------------------------------------


def test_stock_loses_acknowledged_commands_to_an_answer_of_an_older_term(clock: Clock) -> None:
    """Five voters, two crashes, and one answer that was two elections under way."""
    lab = StockLab(clock, "abcde", **PATIENT)
    lab.elect("a")
    lab.net.part("ab", "cde")
    for i in range(10):
        lab["a"].put(f"dead{i}")
    lab["a"].doTick(0)
    beat(lab, "a")
    lab.net.deliver("a", "b")
    stuck = lab.net.queued("b", "a")[-1]
    lab.net.drop("b", "a")
    lab.elect("c")  # by d and e; b drops what it had of a
    lab.net.heal()
    lab.run(2)
    assert lab["b"].log == lab["c"].log
    lab.elect("a")
    hears(lab["a"], "b", stuck)
    assert match(lab["a"], "b") == 12 > lab["b"].log[-1][0]
    lab.net.part("ad", "bce")
    answers: dict[Any, int] = {}
    for i in range(7):
        lab["a"].put(f"new{i}", callback=noted(answers, f"new{i}"))
    lab.run(0.5)
    for name in "ad":
        gone(lab, name)
    lab.elect("c")
    lab.run(0.5)
    done = {value for value, reason in answers.items() if reason == FAIL_REASON.SUCCESS}
    assert done
    assert not done & set(lab["c"].values + lab["b"].values + lab["e"].values), "acknowledged, and on no member"


def test_an_answer_of_an_older_term_loses_nothing(clock: Clock) -> None:
    lab = Lab(clock, "abcde")
    a = lab.elect("a")
    lab.net.part("ab", "cde")
    lab.propose("a", *(b"dead%d" % i for i in range(10)))
    a.raft.tick()
    lab.net.deliver("a", "b")
    lab["b"].raft.tick()
    lab["b"].committer.sync()
    stuck = lab.net.queued("b", "a")[-1]
    assert stuck.matched_index == a.journal.last_index
    lab.net.drop("b", "a")
    lab.elect("c")
    lab.net.heal()
    lab.run(2)
    # b is away when a leads again: its log ends before what the old answer speaks of, a's behind it.
    lab.net.part("b", "acde")
    a = lab.elect("a")
    lab.propose("a", *(b"new%d" % i for i in range(20)))
    lab.run(0.2)
    assert lab["b"].journal.last_index < stuck.matched_index < a.journal.last_index
    a.received("b", stuck)
    progress = a.raft.progress("b")
    assert progress is not None
    assert progress.matched_index <= lab["b"].journal.last_index
    assert a.raft.counters["stale_reply"] == 1
    commit_index = a.raft.commit_index
    lab.net.heal()
    lab.net.part("ad", "bce")
    lab.propose("a", b"of two")
    lab.run(0.25)
    assert a.raft.commit_index == commit_index, "two of five have it"


def test_stock_votes_for_nobody_else_after_a_restart_only_if_its_meta_file_is_there(clock: Clock) -> None:
    """Without a journal file, which is its default, a restarted member votes again in the same term."""
    lab = StockLab(clock, "abc")
    ask = {"type": "request_vote", "term": 5, "last_log_index": 1, "last_log_term": 0}
    hears(lab["b"], "a", ask)
    lab.members["b"] = Stock(lab.net, "b", ["a", "c"])
    hears(lab["b"], "c", ask)
    for candidate in "ac":
        assert [m["type"] for m in lab.net.queued("b", candidate)] == ["response_vote"]
    # Ours has one vote in a term, however often it starts.
    ours = Lab(clock, "abc")
    clock.now += 1
    for candidate in "ac":
        ours["b"].received(candidate, RequestVote(5, 1, 0, False))
        ours["b"].raft.tick()
        ours["b"].committer.sync()
        votes = [m for m in ours.net.queued("b", candidate) if isinstance(m, Vote)]
        assert len(votes) == (candidate == "a")
        ours["b"].crash()
        ours["b"].restart()
        clock.now += 1


def test_stock_believes_in_followers_that_it_has_never_heard(clock: Clock) -> None:
    """A leader's first 30 s need no answer from anybody."""
    lab = StockLab(clock, "abc", **PATIENT)
    lab["a"]._SyncObj__onBecomeLeader()
    lab.net.part("a", "bc")
    lab.run(20)
    assert lab["a"]._isLeader()
    assert {match(lab["a"], name) for name in "bc"} == {0}
    assert lab["a"]._SyncObj__lastResponseTime[Node("b")] < clock.now - 15


def test_stock_forgets_with_its_disk_what_it_had_acknowledged(clock: Clock) -> None:
    """a and b have a command. b comes back without its disk while a is away: c and b go on without the command."""
    lab = StockLab(clock, "abc", **PATIENT)
    lab.elect("a")
    lab.net.part("c", "ab")
    answers: dict[Any, int] = {}
    lab["a"].put("paid", callback=noted(answers, "paid"))
    lab.run(0.3)
    assert answers == {"paid": FAIL_REASON.SUCCESS}
    lab.net.part("a", "bc")
    lab.net.down -= {("b", "c"), ("c", "b")}
    b = lab.members["b"] = Stock(lab.net, "b", ["a", "c"], **PATIENT)
    b.link._onNodeConnected(b.link.node("c"))
    lab.elect("c")
    lab["c"].put("something else")
    lab.run(0.3)
    lab.net.heal()
    lab.run(2)
    assert b.values == ["something else"]
    assert lab["a"].log == b.log, "it is overwritten where it was"


def test_stock_campaigns_alone_where_it_sees_a_reader_only(clock: Clock) -> None:
    lab = StockLab(clock, "abc")
    for name in "ac":
        lab["b"].link._onNodeDisconnected(lab["b"].link.node(name))
    lab["b"].link._onReadonlyNodeConnected(Node("reader"))
    lab.net.part("b", "ac")
    term = lab["b"].raftCurrentTerm
    lab.run(5)
    assert lab["b"].raftCurrentTerm > term + 3
    # Ours asks first whether it could win, and its term stays.
    ours = Lab(clock, "abc")
    ours.net.part("b", "ac")
    ours.run(5)
    assert ours["b"].raft.term == 0
