"""Who leads when: the witness, hand-over, the clock guard, and reads that prove leadership."""

import pytest

from cluster.consensus.clocks import ClockGuard
from cluster.consensus.messages import Append, PreVote, PreVoteReply, Rebase
from cluster.consensus.raft import RaftSettings
from tests.cluster.lab import TIMING, Clock, Lab


def _acknowledged_by_leader_and_witness(lab: Lab, count: int) -> None:
    """'a' leads, everyone but the witness is behind, and `count` entries are committed."""
    a = lab.elect("a")
    lab.net.part([name for name in lab.members if name not in "aw"], "aw")
    if len(lab.members) == 5:
        # In 2+2+1 a majority is three: 'b', of the same site, has the entries too and is lost with it.
        lab.net.heal()
        lab.net.part("cd", "abw")
    lab.propose("a", *[b"%d" % i for i in range(count)])
    lab.run_until(lambda: len(a.delivered) == count, within=1)


@pytest.mark.parametrize(("names", "lost"), [("abw", "a"), ("abcdw", "ab")])
def test_the_witness_alone_holds_the_newest_entry_and_hands_it_over(clock: Clock, names: str, lost: str) -> None:
    lab = Lab(clock, names, witnesses="w")
    _acknowledged_by_leader_and_witness(lab, 100)
    for name in lost:
        lab[name].crash()
    lab.net.heal()
    rest = [member for member in lab.alive if member.name != "w"]
    led: set[str] = set()

    def one_leads() -> bool:
        led.update(member.name for member in lab.alive if member.raft.is_leader)
        return any(member.raft.is_leader and len(member.delivered) == 100 for member in rest)

    took = lab.run_until(one_leads, within=3)
    assert "w" in led
    # A witness campaigns at once when it refuses a pre-vote, so its longer timeout does not count.
    assert took < 2.5 * TIMING.election_ms_max / 1000
    lab.run(0.2)
    assert all(member.payloads == [b"%d" % i for i in range(100)] for member in rest)
    assert lab["w"].delivered == []


def test_a_witness_takes_nothing_and_serves_nothing(clock: Clock) -> None:
    lab = Lab(clock, "abw", witnesses="w")
    lab.elect("a")
    assert lab["w"].raft.caretaker
    answers: list[int | None] = []
    lab["w"].raft.read(answers.append)
    assert answers == [None]


def test_a_witness_waits_longer_than_a_replica(clock: Clock) -> None:
    for _ in range(5):
        lab = Lab(clock, "abw", witnesses="w")
        lab.elect("a")
        lab["a"].crash()
        lab.run_until(lambda lab=lab: lab.leader() is not None, within=2)  # type: ignore[misc]
        assert lab.leader() is lab["b"]


def test_a_member_that_refuses_a_pre_vote_for_its_newer_log_campaigns_at_once(clock: Clock) -> None:
    lab = Lab(clock, "abw", witnesses="w")
    w = lab["w"]
    w.raft.received("a", Append(1, 1, 1, 0, 1, 0, [(1, b"\0x")]))
    w.raft.tick()
    w.committer.sync()
    clock.now += 0.4  # longer than a leader may be silent, shorter than the witness's own timeout
    lab.net.run()
    w.raft.received("b", PreVote(2, 1, 0))
    assert PreVoteReply(2, False, 1) in lab.net.queued("w", "b")
    w.raft.tick()
    assert [m for m in lab.net.queued("w", "b") if isinstance(m, PreVote)] == [PreVote(2, 2, 1)]


def test_leadership_is_handed_over_under_a_healthy_leader(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    a = lab.elect("a")
    lab.propose("a", b"x")
    lab.run(0.1)
    a.raft.transfer_to("c")
    took = lab.run_until(lambda: lab["c"].raft.is_leader, within=1)
    # Leader stickiness and pre-vote give way to a hand-over.
    assert took < 0.1
    lab.run(0.2)
    assert not a.raft.is_leader


def test_a_target_that_lacks_entries_is_not_asked(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    lab.elect("a")
    lab.net.part("c", "ab")
    lab.propose("a", b"x")
    lab.run(0.1)
    lab["a"].raft.transfer_to("c")
    lab.net.heal()
    lab.run(0.1)
    assert lab["a"].raft.is_leader


def test_a_barred_leader_hands_over_and_a_barred_member_does_not_campaign(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    a = lab.elect("a")
    a.raft.barred = "clock"
    lab.run_until(lambda: lab.leader() not in (None, a), within=1)
    lab.run(0.3)
    other = lab.leader()
    assert other is not None
    other.crash()
    lab.run(2)
    assert lab.leader() not in (None, a)


def test_a_barred_member_with_the_newest_log_leads_only_to_hand_over(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    a = lab.elect("a")
    lab.net.part("b", "ac")
    lab.propose("a", b"x")
    lab.run(0.2)
    a.crash()
    lab["c"].raft.barred = "clock"
    lab.net.heal()
    lab.run_until(lambda: lab["b"].raft.is_leader, within=3)
    lab.run(0.1)
    assert lab["b"].payloads == [b"x"]


# -- the clock guard ------------------------------------------------------------------------------

OFFSETS = [
    # the others' clocks minus ours, may lead
    ([0, 0], True),
    ([500, 500], True),
    ([501, 501], False),
    ([-501, -900], False),
    ([3_600_000, 0], True),
    ([3_600_000, 3_600_001], False),
    ([900, 900, 0, 0], True),
    ([900, 900, 900, 0], False),
    ([3_600_000], True),  # two clocks can't say who is wrong
    ([], True),
]


@pytest.mark.parametrize(("offsets", "may_lead"), OFFSETS)
def test_the_clock_guard(offsets: list[int], may_lead: bool) -> None:
    assert (ClockGuard(500).judge(offsets) is None) == may_lead


def test_a_verdict_stands_until_the_clocks_in_reach_agree() -> None:
    guard = ClockGuard(500)
    verdict = guard.judge([3_600_000, 3_600_000])
    assert verdict is not None
    assert "-3600000 ms" in verdict
    assert guard.judge([3_600_000]) == verdict
    assert guard.judge([]) == verdict
    assert guard.judge([20]) is None


# -- linearizable reads ---------------------------------------------------------------------------


def test_a_read_waits_for_a_majority_that_answers_after_it_began(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    a = lab.elect("a")
    lab.propose("a", b"x")
    lab.run(0.1)
    answers: list[int | None] = []
    a.raft.read(answers.append)
    # Replies that were under way when the read came prove nothing.
    lab.net.deliver("b", "a")
    assert answers == []
    a.raft.tick()
    assert answers == []
    lab.step()
    lab.step()
    assert answers == [3]


def test_many_reads_share_one_round(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    a = lab.elect("a")
    lab.run(0.06)
    answers: list[int | None] = []
    for _ in range(500):
        a.raft.read(answers.append)
    lab.net.run()
    a.raft.tick()
    assert len(lab.net.queued("a", "b")) == 1
    lab.step()
    lab.step()
    assert len(answers) == 500


def test_a_cut_off_leader_answers_no_read(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    a = lab.elect("a")
    lab.net.part("a", "bc")
    answers: list[int | None] = []
    a.raft.read(answers.append)
    lab.run(0.2)
    assert answers == []
    lab.run(0.3)
    assert answers == [None]


def test_a_new_leader_reads_only_after_its_first_entry_is_committed(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    lab.elect("a")
    # 'b' has the entry, but only 'a' knows that it is committed.
    lab.net.part("c", "ab")
    lab.propose("a", b"x")
    lab["a"].raft.tick()
    lab.net.run()
    lab["b"].raft.tick()
    for name in "ab":
        lab[name].committer.sync()
    lab.net.deliver("b", "a")
    lab["a"].raft.tick()
    assert lab["a"].payloads == [b"x"]
    lab["a"].crash()
    b = lab["b"]
    assert b.raft.commit_index < 3
    b.auto_sync = False
    lab.net.heal()
    clock.now += 1
    answers: list[int | None] = []
    for _ in range(100):
        b.raft._SyncObj__raftElectionDeadline = clock.now - 1
        lab["c"].raft._SyncObj__raftElectionDeadline = clock.now + 1
        if not b.raft.is_leader:
            b.committer.sync()
        elif not answers:
            b.raft.read(answers.append)
        lab.step()
    assert b.raft.is_leader
    assert answers == []
    b.auto_sync = True
    lab.run(0.1)
    assert answers[0] == 3


def test_a_long_paused_leader_answers_no_read_from_before_the_pause(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    a = lab.elect("a")
    a.alive = False  # stopped, not dead: its memory and the links stay
    lab.run_until(lambda: lab.leader() is not None, within=2)
    leader = lab.leader()
    assert leader is not None
    lab.propose(leader.name, b"newer")
    lab.run(0.2)
    a.alive = True
    answers: list[int | None] = []
    a.raft.read(answers.append)
    lab.run(0.2)
    assert answers == [None]


def test_no_op_entries_are_not_reported_as_read_indexes(clock: Clock) -> None:
    # The state machine never sees a no-op, so nobody could wait for its index.
    lab = Lab(clock, "abc")
    lab.elect("a")
    lab.propose("a", b"x")
    lab.run(0.1)
    lab.elect("b")
    lab.elect("c")
    answers: list[int | None] = []
    lab["c"].raft.read(answers.append)
    lab.run(0.1)
    assert lab["c"].raft.commit_index == 5
    assert answers == [3]


# -- trimming -------------------------------------------------------------------------------------


def test_nobody_trims_what_a_replica_has_not_stored(clock: Clock) -> None:
    lab = Lab(clock, "abw", witnesses="w", settings=RaftSettings(timing=TIMING, trim_reserve=10))
    lab.elect("a")
    lab.propose("a", *[b"%d" % i for i in range(100)])
    lab.run(0.3)
    lab["a"].raft.stored_index = 90
    lab.run(0.3)
    # 'b' has said nothing yet.
    assert {member.journal.first_index for member in lab.alive} == {1}
    lab["b"].raft.stored_index = 50
    lab.run(0.3)
    assert {member.journal.first_index for member in lab.alive} == {40}
    lab["b"].crash()
    lab.propose("a", *[b"%d" % i for i in range(100)])
    lab["a"].raft.stored_index = 180
    lab.run(0.5)
    assert lab["a"].journal.first_index == lab["w"].journal.first_index == 40
    assert lab["a"].disk.entries[0][1] == 40
    # It comes back with the store it had, and everything after that is still there.
    lab["b"].start(applied_index=50)
    lab.connect("a", "b")
    lab.connect("w", "b")
    lab.run(0.5)
    assert lab["b"].delivered == [(i, p) for i, p in lab["a"].delivered if i > 50]
    assert len(lab["b"].delivered) == 200 - 48


def test_a_new_leader_trims_only_after_it_heard_every_replica(clock: Clock) -> None:
    lab = Lab(clock, "abw", witnesses="w")
    lab.elect("a")
    lab.propose("a", *[b"%d" % i for i in range(100)])
    lab.run(0.3)
    lab["a"].crash()
    lab["b"].raft.stored_index = 100
    lab.run(1.5)
    assert lab["b"].raft.is_leader
    assert lab["b"].journal.first_index == 1


def test_a_witness_that_lags_too_far_starts_anew(clock: Clock) -> None:
    lab = Lab(clock, "abw", witnesses="w")
    lab.elect("a")
    lab.propose("a", *[b"%d" % i for i in range(20)])
    lab.run(0.2)
    lab["w"].crash()
    lab.propose("a", *[b"%d" % i for i in range(20, 100)])
    lab.run(0.2)
    for name in "ab":
        lab[name].raft.stored_index = 90
    lab.run(0.2)
    # A witness that is away keeps nobody from trimming: it needs nothing that both replicas have stored.
    assert lab["a"].journal.first_index == 90
    lab["w"].start()
    lab.connect("a", "w")
    lab.connect("b", "w")
    lab.run(0.3)
    assert lab["w"].log == lab["a"].log
    assert [entry[1] for entry in lab["w"].disk.entries] == list(range(90, lab["a"].journal.last_index + 1))
    lab["w"].crash()
    lab["w"].start()
    lab.connect("a", "w")
    lab.connect("b", "w")
    lab["b"].crash()
    lab.propose("a", b"with the witness")
    lab.run(0.3)
    assert lab["a"].payloads[-1] == b"with the witness"


def test_a_replica_is_never_made_to_start_anew(clock: Clock) -> None:
    lab = Lab(clock, "abw", witnesses="w")
    lab.elect("a")
    b = lab["b"]
    before = b.log
    b.raft.received("a", Rebase(b.raft.term, 10_000, 90, 1, b.journal.base))
    assert b.log == before
    assert b.raft.counters["refused_rebase"] == 1


def test_a_witness_does_not_drop_what_it_knows_to_be_committed(clock: Clock) -> None:
    lab = Lab(clock, "abw", witnesses="w")
    lab.elect("a")
    lab.propose("a", *[b"%d" % i for i in range(20)])
    lab.run(0.2)
    w = lab["w"]
    before = w.log
    w.raft.received("a", Rebase(w.raft.term, 10_000, 10, w.journal.term_at(10), w.journal.base))
    assert w.log == before


# -- pauses and slow disks ------------------------------------------------------------------------


def test_a_leader_whose_disk_stalls_steps_down_and_another_goes_on(clock: Clock) -> None:
    lab = Lab(clock, "abc")
    a = lab.elect("a")
    a.auto_sync = False
    lab.propose("a", b"x")
    lab.run(1.9)
    assert a.raft.is_leader
    lab.run_until(lambda: any(lab[name].raft.is_leader for name in "bc"), within=2)
    leader = lab.leader()
    assert leader is not None
    lab.propose(leader.name, b"y")
    lab.run(2)
    assert not a.raft.is_leader
    assert leader.payloads == [b"x", b"y"]
    a.auto_sync = True
    lab.run(0.5)
    assert a.payloads == [b"x", b"y"]


@pytest.mark.parametrize(("pause", "still_leads"), [(0.5, True), (0.7, False)])
def test_a_leader_forgives_its_own_short_pause(clock: Clock, pause: float, still_leads: bool) -> None:
    lab = Lab(clock, "abc")
    a = lab.elect("a")
    clock.now += pause
    a.raft.tick()
    assert a.raft.is_leader == still_leads


@pytest.mark.parametrize(("late", "ticks"), [(0.045, 8), (0.2, 8)])
def test_a_leader_that_runs_but_hears_nobody_is_not_forgiven(clock: Clock, late: float, ticks: int) -> None:
    lab = Lab(clock, "abc")
    a = lab.elect("a")
    lab.net.part("a", "bc")
    for _ in range(ticks):
        clock.now += late
        a.raft.tick()
    assert not a.raft.is_leader
