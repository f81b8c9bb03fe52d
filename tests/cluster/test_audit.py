"""Each defect of the audit that these files touch: first the library as published shows it, then ours does not."""

from typing import Any

import pytest
from pysyncobj import FAIL_REASON
from pysyncobj.node import Node

from cluster.consensus.messages import UNANSWERED, Append, AppendReply, RequestVote, Vote
from cluster.consensus.progress import Progress
from cluster.consensus.raft import ApplyFailed, BrokenInvariant, RaftSettings
from tests.cluster.lab import TIMING, Clock, Lab, StockLab

SMALL_BATCHES = RaftSettings(timing=TIMING, trim_reserve=0, batch_bytes=150)


# -- F1: messages that verify nothing must not move the commit index ------------------------------


def test_stock_commits_a_tail_that_the_cluster_threw_away(clock: Clock) -> None:
    lab = StockLab(clock, "abc")
    lab.elect("a")
    lab.net.part("a", "bc")
    answers: list[int] = []
    lab["a"].put("ghost", callback=lambda _result, reason: answers.append(reason))
    lab["a"].doTick(0)
    lab.elect("b")
    for i in range(20):
        lab["b"].put(f"real{i}")
    lab.run(0.3)
    lab.net.heal()
    # What the library sends to a lagging follower while a snapshot is being written.
    snapshot_busy = {
        "type": "append_entries",
        "term": lab["b"].raftCurrentTerm,
        "commit_index": lab["b"].raftCommitIndex,
        "serialized": None,
    }
    lab["a"].link._onMessageReceived(Node("b"), snapshot_busy)
    lab["a"].doTick(0)
    assert lab["a"].values == ["ghost"]
    assert answers == [FAIL_REASON.SUCCESS]


def test_a_deposed_leaders_tail_is_dropped_and_never_applied(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    lab.elect("a")
    lab.net.part("a", "bc")
    lab.propose("a", b"ghost1", b"ghost2")
    lab.step()
    lab.elect("b")
    lab.propose("b", *[b"real%d" % i for i in range(20)])
    lab.run(0.3)
    lab.net.heal()
    lab.run_until(lambda: lab["a"].log == lab["b"].log, within=1)
    lab.run(0.2)
    assert lab["a"].raft.counters["truncations"] == 1
    assert lab["a"].payloads == lab["b"].payloads == [b"real%d" % i for i in range(20)]


def test_a_refused_append_does_not_move_the_commit_index(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    a = lab["a"]
    a.raft.received("b", Append(1, 1, 1, 0, 1, 0, [(1, b"\0one"), (1, b"\0two")]))
    a.raft.received("b", Append(2, 2, 9, 2, 9, 0, []))
    assert a.raft.commit_index == 1
    a.raft.received("b", Append(2, 3, 3, 2, 3, 0, []))
    assert a.raft.commit_index == 1


def test_the_commit_index_goes_no_further_than_what_this_message_verified(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    a = lab["a"]
    a.raft.received("b", Append(1, 1, 1, 0, 1, 0, [(1, b"\0one"), (1, b"\0two"), (1, b"\0three")]))
    # A new leader's log agrees up to 2; it has committed 4, but ours at 3 and 4 is another's tail.
    a.raft.received("c", Append(3, 1, 2, 1, 4, 0, []))
    assert a.raft.commit_index == 2
    assert a.log == [(1, 0), (2, 1), (3, 1), (4, 1)]
    a.raft.received("c", Append(3, 2, 2, 1, 4, 0, [(3, b"\0other"), (3, b"\0more")]))
    assert a.raft.commit_index == 4
    assert a.log == [(1, 0), (2, 1), (3, 3), (4, 3)]


# -- F2: conflict backtracking must converge ------------------------------------------------------


def test_stock_never_catches_up_with_a_conflicting_tail_and_a_backlog(clock: Clock) -> None:
    lab = StockLab(clock, "abc", appendEntriesBatchSizeBytes=1024)
    lab.elect("a")
    lab.net.part("a", "bc")
    lab["a"].put("stale")
    lab["a"].doTick(0)
    lab.elect("b")
    for i in range(500):
        lab["b"].put(f"{i:0100d}")
    lab.run(0.5)
    lab.net.heal()
    lab.run(10)
    assert lab["a"].log != lab["b"].log


def test_a_conflicting_tail_and_a_backlog_converge(clock: Clock) -> None:
    lab = Lab(clock, "abc", settings=RaftSettings(timing=TIMING, trim_reserve=0, batch_bytes=1024))
    lab.elect("a")
    lab.net.part("a", "bc")
    lab.propose("a", *[b"stale"] * 300)
    lab.step()
    lab.elect("b")
    lab.propose("b", *[b"%0100d" % i for i in range(5000)])
    lab.run(0.5)
    lab.net.heal()
    took = lab.run_until(lambda: lab["a"].log == lab["b"].log, within=2)
    assert took < 1


def test_refusals_of_what_was_sent_before_going_back_do_not_count() -> None:
    progress = Progress(next_index=100)
    progress.probing = False
    progress.refused(3, sequence=10, newest_sequence=14)
    assert progress.next_index == 3
    for sequence in (11, 12, 13, 14):
        progress.refused(90, sequence=sequence, newest_sequence=14)
    assert progress.next_index == 3
    progress.sent(49, 100, commit_index=1)
    progress.refused(20, sequence=14, newest_sequence=15)
    assert progress.next_index == 50
    progress.refused(2, sequence=15, newest_sequence=15)
    assert progress.next_index == 2


def test_a_whole_conflicting_term_is_skipped_in_one_round_trip(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    a = lab["a"]
    a.raft.received("b", Append(1, 1, 1, 0, 1, 0, [(1, b"\0")] * 300))
    a.raft.tick()
    a.committer.sync()
    lab.net.drop("a", "c")
    a.raft.received("c", Append(3, 1, 200, 2, 1, 0, []))
    a.raft.tick()
    a.committer.sync()
    assert lab.net.queued("a", "c") == [AppendReply(3, 1, 0, 2, 0)]


# -- F4: apply happens once, and an error in it stops the process ---------------------------------


def test_stock_applies_twice_when_a_callback_raises(clock: Clock) -> None:
    lab = StockLab(clock, "abc")
    lab.elect("a")

    def raises(_result: Any, _reason: int) -> None:
        raise RuntimeError("a bug in a client's callback")

    lab["a"].put("once", callback=raises)
    for _ in range(10):
        try:
            lab.run(0.05)
        except RuntimeError:
            continue
    assert lab["a"].values.count("once") > lab["b"].values.count("once")


def test_an_error_in_apply_is_not_repeated_and_stops_the_member(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    lab.elect("a")
    lab["a"].fail_at = b"two"
    lab.propose("a", b"one", b"two", b"three")
    with pytest.raises(ApplyFailed, match="index 4"):
        lab.run(1)
    assert lab["a"].payloads == [b"one"]
    # The index went on before the callback, so even a member that did not stop would not repeat it.
    assert lab["a"].raft.applied_index == 4


# -- F5: durable before acknowledged --------------------------------------------------------------


def _matched(lab: Lab, source: str, target: str) -> list[int]:
    return [m.matched_index for m in lab.net.queued(source, target) if isinstance(m, AppendReply)]


def test_a_follower_acknowledges_only_after_its_sync(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    b = lab["b"]
    b.raft.received("a", Append(1, 1, 1, 0, 1, 0, []))
    b.raft.tick()
    b.committer.sync()
    b.raft.received("a", Append(1, 2, 1, 0, 1, 0, [(1, b"\0one")]))
    b.raft.tick()
    clock.now += 0.2
    # A slow disk must not look like a dead member: it answers, but with what it has on disk.
    b.raft.received("a", Append(1, 3, 2, 1, 1, 0, []))
    assert _matched(lab, "b", "a") == [0, 1, 1]
    b.committer.sync()
    assert _matched(lab, "b", "a") == [0, 1, 1, 2]
    assert lab.net.queued("b", "a")[-1].sequence == 3


def test_a_follower_applies_only_what_it_has_synced(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    b = lab["b"]
    b.raft.received("a", Append(1, 1, 1, 0, 2, 0, [(1, b"\0one")]))
    b.raft.tick()
    b.raft.tick()
    assert b.raft.commit_index == 2
    assert b.payloads == []
    b.committer.sync()
    b.raft.tick()
    assert b.payloads == [b"one"]


def test_replicas_are_told_of_a_commit_at_once_and_answer_nothing(clock: Clock) -> None:
    lab = Lab(clock, "abw", witnesses="w")
    a, b = lab.elect("a"), lab["b"]
    lab.run(0.1)
    a.raft._SyncObj__newAppendEntriesTime = clock.now + 10  # no heartbeat helps
    lab.propose("a", b"x")
    lab.step()
    lab.step()
    wakes = a.wakes
    a.raft.tick()
    assert (a.raft.commit_index, a.wakes) == (a.journal.last_index, wakes + 1)
    a.raft.tick()
    told = lab.net.queued("a", "b")[-1]
    assert (told.commit_index, told.sequence) == (a.journal.last_index, UNANSWERED)
    assert lab.net.queued("a", "w") == []
    lab.net.run()
    b.raft.tick()
    assert b.payloads[-1:] == [b"x"]
    assert lab.net.queued("b", "a") == []
    a.raft.tick()
    assert lab.net.queued("a", "b") == []  # once is enough


def test_who_is_to_join_again_is_told_of_commits_and_asked(clock: Clock) -> None:
    """It is admitted on its answer. Without one it would wait for the next heartbeat."""
    lab = Lab(clock, "abw", witnesses="w")
    a = lab.elect("a")
    lab.run(0.1)
    a.raft._SyncObj__newAppendEntriesTime = clock.now + 10
    progress = a.raft.progress("w")
    assert progress is not None
    progress.joined = False
    lab.propose("a", b"x")
    lab.step()
    lab.step()
    progress.joined = False  # as it would still say of itself
    a.raft.tick()
    a.raft.tick()
    assert lab.net.queued("a", "w")[-1].sequence != UNANSWERED


def test_who_was_probed_during_a_commit_is_told_when_it_answers(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    a = lab.elect("a")
    lab.run(0.1)
    a.raft._SyncObj__newAppendEntriesTime = clock.now + 10
    progress = a.raft.progress("c")
    assert progress is not None
    progress.link_lost()
    progress.probe_sent = True
    lab.propose("a", b"x")
    lab.step()
    lab.step()
    a.raft.tick()
    a.raft.tick()
    index = a.journal.last_index
    assert a.raft.commit_index == index
    assert lab.net.queued("a", "c") == []
    progress.next_index = index + 1
    assert a.raft.received("c", AppendReply(a.raft.term, a.raft._sequence, index, 0, 0, True, False))
    a.raft.tick()
    assert lab.net.queued("a", "c")[-1].commit_index == index


def test_reads_that_came_during_a_round_begin_the_next_when_it_ends(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    a = lab.elect("a")
    lab.run(0.1)
    answers: list[int | None] = []
    a.raft.read(answers.append)
    a.raft.tick()
    a.raft.read(answers.append)
    a.raft.tick()
    lab.net.run()
    wakes = a.wakes
    a.raft.tick()
    assert (len(answers), a.wakes) == (1, wakes + 1)
    a.raft.tick()
    lab.net.run()
    a.raft.tick()
    assert len(answers) == 2


def test_a_slow_state_machine_is_left_in_time_whatever_is_committed_together(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    a = lab.elect("a")
    lab.run(0.1)
    deliver = a.deliver

    def slow(index: int, payload: bytes) -> None:
        clock.now += 0.03
        deliver(index, payload)

    a.deliver = slow  # type: ignore[method-assign]
    lab.propose("a", b"1", b"2", b"3")
    lab.step()
    lab.step()
    told = len(a.delivered)
    wakes = a.wakes
    a.raft.tick()
    assert len(a.delivered) == told + 1
    assert a.wakes > wakes
    a.raft.tick()
    assert len(a.delivered) == told + 2


def test_with_more_to_send_nothing_is_sent_to_tell_of_a_commit(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    a = lab.elect("a")
    lab.run(0.1)
    lab.propose("a", b"x")
    lab.step()
    lab.step()
    a.raft.tick()
    lab.propose("a", b"y")
    a.raft.tick()
    sent = lab.net.queued("a", "b")
    assert [(len(message.entries), message.commit_index) for message in sent] == [(1, a.journal.last_index - 1)]


def test_an_answer_that_moves_nothing_asks_for_no_tick(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    a = lab.elect("a")
    lab.run(0.1)
    a.auto_sync = False
    lab.propose("a", b"x")
    lab.step()
    index, term, sequence = a.journal.last_index, a.raft.term, a.raft._sequence
    answer = AppendReply(term, sequence, index, 0, 0, True, False)
    assert not a.raft.received("b", answer)  # a has not synced it, so nothing is committed
    a.committer.sync()
    assert a.raft.received("b", answer)
    a.raft.tick()
    assert a.raft.commit_index == index
    a.raft.tick()  # tells of it
    assert not a.raft.received("c", answer)
    a.raft.read(lambda _: None)
    assert a.raft.received("c", answer)


def test_no_vote_leaves_before_it_is_on_disk(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    clock.now += 1
    b = lab["b"]
    b.raft.received("a", RequestVote(5, 1, 0, False))
    b.raft.tick()
    assert lab.net.queued("b", "a") == []
    assert b.disk.vote.voted_for is None
    b.committer.sync()
    assert lab.net.queued("b", "a") == [Vote(5)]
    assert (b.disk.vote.term, b.disk.vote.voted_for) == (5, "a")


def test_a_vote_survives_a_power_cut(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    clock.now += 1
    b = lab["b"]
    b.raft.received("a", RequestVote(5, 1, 0, False))
    b.raft.tick()
    b.committer.sync()
    b.crash()
    b.start()
    b.raft.received("c", RequestVote(5, 1, 0, False))
    b.raft.tick()
    b.committer.sync()
    assert not [m for m in lab.net.queued("b", "c") if isinstance(m, Vote)]


def test_the_leader_counts_itself_only_after_its_own_sync(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    a = lab.elect("a")
    a.auto_sync = False
    before = a.raft.commit_index
    lab.propose("a", b"x")
    lab.run(0.1)
    assert lab["b"].disk.entries[-1][0] == lab["c"].disk.entries[-1][0] == b"\0x"
    assert a.raft.commit_index == before
    assert a.payloads == lab["b"].payloads == []
    a.auto_sync = True
    lab.run(0.02)
    assert a.payloads == lab["b"].payloads == [b"x"]


def test_a_commit_index_beyond_the_log_is_not_believed(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    b = lab["b"]
    b.crash()
    b.disk.entries = [(b"\1", 1, 0), (b"\0x", 2, 1)]
    b.disk.commit_index = 60
    b.start()
    assert b.raft.commit_index == 2


# -- F6: only a conflict truncates ----------------------------------------------------------------


def test_stock_drops_matching_entries_when_an_old_batch_comes_again(clock: Clock) -> None:
    lab = StockLab(clock, "abc")
    a = lab["a"]
    entries = [(b"\1", i, 1) for i in range(2, 7)]
    message = {"type": "append_entries", "term": 1, "commit_index": 1, "prevLogIdx": 1, "prevLogTerm": 0}
    a.link._onMessageReceived(Node("b"), message | {"entries": entries})
    a.link._onMessageReceived(Node("b"), message | {"entries": entries[:1]})
    assert a.log[-1] == (2, 1)


def test_an_old_batch_that_comes_again_changes_nothing(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    b = lab["b"]
    b.raft.received("a", Append(1, 1, 1, 0, 1, 0, [(1, b"\0%d" % i) for i in range(5)]))
    b.raft.received("a", Append(1, 2, 1, 0, 1, 0, [(1, b"\0" + b"0")]))
    assert b.log[-1] == (6, 1)
    assert b.raft.counters["truncations"] == 0
    b.raft.tick()
    b.committer.sync()
    # And the answer to the repeat does not take back what was acknowledged.
    assert max(m.matched_index for m in lab.net.queued("b", "a") if isinstance(m, AppendReply)) == 6


def test_a_leader_that_asks_to_drop_committed_entries_stops_the_member(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    b = lab["b"]
    b.raft.received("a", Append(1, 1, 1, 0, 3, 0, [(1, b"\0one"), (1, b"\0two")]))
    with pytest.raises(BrokenInvariant, match="committed entry 3"):
        b.raft.received("c", Append(2, 1, 2, 1, 2, 0, [(2, b"\0other")]))


# -- F9: votes, pre-vote, check-quorum ------------------------------------------------------------


def test_stock_counts_one_vote_as_often_as_it_comes(clock: Clock) -> None:
    lab = StockLab(clock, "abcde")
    a = lab["a"]
    a._SyncObj__raftElectionDeadline = clock.now - 1
    clock.now += 0.01
    a.doTick(0)
    vote = {"type": "response_vote", "term": a.raftCurrentTerm}
    for _ in range(2):
        a.link._onMessageReceived(Node("b"), vote)
    assert a._isLeader()


def test_one_voter_counts_once(clock: Clock) -> None:
    lab = Lab(clock, "abcde")
    a = lab["a"]
    clock.now += 1
    a.raft._SyncObj__raftElectionDeadline = clock.now - 1
    a.raft._pre_vote_term, a.raft._pre_votes = 1, {"b", "c"}
    a.raft.tick()
    a.committer.sync()
    assert a.raft.term == 1
    for _ in range(5):
        a.raft.received("b", Vote(1))
    assert not a.raft.is_leader
    a.raft.received("c", Vote(1))
    assert a.raft.is_leader


def test_stock_leads_for_30_s_without_anyone(clock: Clock) -> None:
    lab = StockLab(clock, "abc")
    lab.elect("a")
    lab.net.part("a", "bc")
    lab.run(25)
    assert lab["a"]._isLeader()


def test_a_leader_without_a_majority_steps_down_within_one_election_timeout(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    a = lab.elect("a")
    lab.net.part("a", "bc")
    took = lab.run_until(lambda: not a.raft.is_leader, within=1)
    assert took <= TIMING.election_ms_min / 1000 + 0.01


def test_stock_deposes_a_healthy_leader_when_a_cut_off_member_returns(clock: Clock) -> None:
    lab = StockLab(clock, "abc")
    term = lab.elect("a").raftCurrentTerm
    lab.net.part("c", "ab")
    lab.run(3)
    lab.net.heal()
    lab.run(2)
    assert lab["a"].raftCurrentTerm > term


def test_a_member_that_returns_does_not_depose_a_healthy_leader(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    a = lab.elect("a")
    term = a.raft.term
    lab.net.part("c", "ab")
    lab.run(10)
    assert lab["c"].raft.term == term
    assert lab["c"].raft.counters["pre_votes"] > 10
    lab.net.heal()
    lab.run(2)
    assert a.raft.is_leader
    assert a.raft.term == term


def test_one_broken_link_changes_no_leader(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    a = lab.elect("a")
    term = a.raft.term
    lab.net.part("a", "c")
    lab.run(10)
    assert (a.raft.is_leader, a.raft.term) == (True, term)


def test_a_vote_request_while_the_leader_is_alive_is_refused(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    a = lab.elect("a")
    term = a.raft.term
    lab["b"].raft.received("c", RequestVote(term + 1, 99, 99, False))
    assert lab["b"].raft.term == term
    assert lab["b"].raft.counters["refused_disruption"] == 1
    lab["b"].raft.received("c", RequestVote(term + 1, 99, 99, True))
    assert lab["b"].raft.term == term + 1


# -- F10: acknowledgements carry their term -------------------------------------------------------


def test_stock_counts_an_acknowledgement_of_an_older_term(clock: Clock) -> None:
    lab = StockLab(clock, "abcde")
    a = lab.elect("a")
    lab.net.part("a", "bcde")
    a.put("x")
    a.doTick(0)
    index = a.log[-1][0]
    a.link._onMessageReceived(
        Node("b"), {"type": "next_node_idx", "next_node_idx": index + 1, "reset": False, "success": True}
    )
    assert a._SyncObj__raftMatchIndex[Node("b")] == index


def test_an_acknowledgement_of_an_older_term_does_not_count(clock: Clock) -> None:
    lab = Lab(clock, "abcde")
    a = lab.elect("a")
    lab.net.part("a", "bcde")
    lab.propose("a", b"x")
    last = a.journal.last_index
    progress = a.raft.progress("b")
    assert progress is not None
    before = progress.matched_index
    a.raft.received("b", AppendReply(a.raft.term - 1, 1, last, 0, 0))
    assert progress.matched_index == before
    assert a.raft.counters["stale_reply"] == 1
    a.raft.received("b", AppendReply(a.raft.term, 1, last, 0, 0))
    assert progress.matched_index == last


def test_an_acknowledgement_beyond_the_log_does_not_count(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    a = lab.elect("a")
    a.raft.received("b", AppendReply(a.raft.term, 1, a.journal.last_index + 1, 0, 0))
    assert a.raft.counters["impossible_reply"] == 1


# -- F13: large entries go as they are ------------------------------------------------------------


def test_entries_larger_than_a_batch_travel_whole(clock: Clock) -> None:
    lab = Lab(clock, "abc", settings=SMALL_BATCHES)
    lab.elect("a")
    payloads = [b"\xff" * 300_000, b"small", b"\xfe" * 100_000]
    lab.propose("a", *payloads)
    lab.run(0.3)
    assert lab["b"].payloads == lab["c"].payloads == payloads


def test_members_only_are_heard(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    lab["a"].raft.received("mallory", Append(99, 1, 1, 0, 1, 0, []))
    assert lab["a"].raft.term == 0
    assert lab["a"].raft.counters["refused_stranger"] == 1
