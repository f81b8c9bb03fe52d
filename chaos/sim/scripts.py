"""Scripted schedules: the known hard cases of Raft, and of the library's audit, move by move.

Each must end without a Violation. r numbers are the audit's programs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from msgspec import structs

from chaos.sim.checks import Violation
from chaos.sim.engines import Hardened
from chaos.sim.member import Engine
from chaos.sim.stage import ELECTION_MS, Stage, staged
from cluster.consensus.messages import Append, AppendReply, DiskIs, RequestVote, Vote
from cluster.membership import Demote, Promote, Remove
from cluster.topology import Standing


class Script(NamedTuple):
    """shape, batch_bytes: of the stage that it plays on."""

    play: Callable[[Stage], None]
    shape: str
    batch_bytes: int


SCRIPTS: dict[str, Script] = {}
BIG = 1 << 20


def script(shape: str, *, batch_bytes: int = BIG) -> Callable[[Callable[[Stage], None]], Callable[[Stage], None]]:
    def register(play: Callable[[Stage], None]) -> Callable[[Stage], None]:
        SCRIPTS[play.__name__] = Script(play, shape, batch_bytes)
        return play

    return register


def play(name: str, engine: Engine | None = None, tell: Callable[[str], None] | None = None) -> str:
    """'' or what was broken."""
    chosen = SCRIPTS[name]
    try:
        with staged(engine or Hardened(), chosen.shape, batch_bytes=chosen.batch_bytes, tell=tell) as stage:
            chosen.play(stage)
    except Violation as violation:
        return str(violation)
    return ""


@script("2+2+1", batch_bytes=1)
def figure_8(s: Stage) -> None:
    """An entry of an older term on a majority is not committed by counting: a newer leader may still drop it."""
    s.elect("a1")
    s.wait(100)
    s.cut("a1 a2", "b1 b2 t1")
    (old,) = s.propose("a1")
    s.until(lambda: s.on_disk("a2", old), "a2 has it")
    s.crash("a1")
    s.elect("b2")
    s.cut("a1", "a2", "b1", "t1", "b2")
    (newer,) = s.propose("b2")
    s.until(lambda: s.on_disk("b2", newer), "b2 has another entry there")
    s.crash("b2")
    s.restart("a1")
    s.cut("a1 a2 b1 t1", "b2")
    s.elect("a1")
    # One entry a message: b1 gets the old entry, and is cut off before the leader's own comes.
    s.until(lambda: s.term_at("b1", old) == s.term_at("a1", old), "b1 has the old entry")
    s.cut("a1 a2", "b1", "t1", "b2")
    s.wait(200)
    s.crash("a1", "a2")
    s.restart("b2")
    s.cut("b1 b2 t1", "a1 a2")
    s.elect("b2")
    s.wait(200)
    s.must(s.committed("b2", newer), "b2 commits")
    s.converge()


@script("1+1+1")
def vote_lost_within_one_election(s: Stage) -> None:
    """Power fails right after a vote left; the same term's other candidate gets none."""
    s.inject("t1", "a1", RequestVote(7, 100, 6, True))
    s.wait(5)
    s.crash("t1")
    s.restart("t1")
    s.wait(20)
    s.inject("t1", "b1", RequestVote(7, 200, 6, True))
    s.wait(20)
    s.must(s["t1"].disk.vote.voted_for == "a1", f"the vote on disk is {s['t1'].disk.vote}")


@script("1+1+1")
def second_candidate_in_one_term(s: Stage) -> None:
    s.inject("t1", "a1", RequestVote(7, 100, 6, True))
    s.wait(5)
    s.inject("t1", "b1", RequestVote(7, 200, 6, True))
    s.wait(20)
    s.must(s["t1"].disk.vote.voted_for == "a1", f"the vote on disk is {s['t1'].disk.vote}")


@script("2+2+1")
def one_voter_twice(s: Stage) -> None:
    """The same vote comes twice; with the candidate's own that makes two of five, not three."""
    s.elect("a1")
    s.wait(100)
    s.crash("a1")
    before = s["a2"].core.term
    s.patient()
    core: Any = s["a2"].core
    core._SyncObj__raftElectionDeadline = 0.0
    s.until(lambda: core.term > before, "a2 asks for votes")
    for silent in ("b2", "t1"):
        s.block(silent, "a2")
    s.block("b1", "a2")
    s.inject("a2", "b1", Vote(core.term))
    s.inject("a2", "b1", Vote(core.term))
    s.must(not core.is_leader, "a2 leads with two votes of five")
    s.crash("a2")
    s.converge()


@script("1+1+1")
def candidate_with_an_old_log(s: Stage) -> None:
    s.elect("a1")
    last = s.propose("a1", 5)[-1]
    s.until(lambda: s.on_disk("t1", last), "t1 has it")
    term = s["a1"].core.term
    s.inject("t1", "b1", RequestVote(term + 1, last - 1, term, True))
    s.inject("t1", "b1", RequestVote(term + 2, last + 9, term - 1, True))
    s.wait(20)
    s.must(s["t1"].disk.vote.voted_for != "b1", "voted for a log that lacks what it has")
    s.converge()


@script("1+1+1")
def vote_before_its_sync(s: Stage) -> None:
    """The disk is slow, the vote waits; the power fails before; nothing was promised."""
    s.stall_disk("t1", 500)
    s.inject("t1", "a1", RequestVote(7, 100, 6, True))
    s.wait(50)
    s.crash("t1")
    s.stall_disk("t1", 0)
    s.restart("t1")
    s.wait(20)
    s.inject("t1", "b1", RequestVote(7, 200, 6, True))
    s.wait(20)


@script("1+1+1")
def witness_alone_holds_the_newest(s: Stage) -> None:
    s.elect("a1")
    s.wait(100)
    s.cut("a1 t1", "b1")
    last = s.propose("a1", 50)[-1]
    s.until(lambda: s.committed("a1", last), "committed with the witness")
    s.crash("a1")
    s.cut("b1 t1", "a1")
    s.patient()
    s.until(lambda: s.leads("b1") and s.committed("b1", last), "b1 leads with all entries", within_ms=5 * ELECTION_MS)
    s.must(s["b1"].machine.applied_index == last, "b1 applied all")
    s.converge()


@script("2+2+1")
def witness_alone_holds_the_newest_of_five(s: Stage) -> None:
    s.elect("a1")
    s.wait(100)
    s.cut("a1 a2 t1", "b1", "b2")
    last = s.propose("a1", 50)[-1]
    s.until(lambda: s.committed("a1", last), "committed with the witness")
    s.crash("a1", "a2")
    s.cut("b1 b2 t1", "a1", "a2")
    s.patient()
    s.until(
        lambda: any(s.leads(n) and s.committed(n, last) for n in ("b1", "b2")), "b leads", within_ms=6 * ELECTION_MS
    )
    s.converge()


@script("1+1+1", batch_bytes=300)
def r01_catch_up_in_many_batches(s: Stage) -> None:
    """A follower catches up in many batches, the leader dies in the middle; what was acknowledged stays."""
    s.elect("a1")
    s.wait(100)
    s.cut("a1 t1", "b1")
    last = s.propose("a1", 80)[-1]
    s.until(lambda: s.committed("a1", last), "committed")
    s.heal()
    s.until(lambda: s["b1"].core.journal.last_index > last - 60, "b1 is on its way")
    s.run.network.reset("a1", "b1")
    more = s.propose("a1", 10)[-1]
    s.until(lambda: s.committed("a1", more), "committed more")
    s.crash("a1")
    s.patient()
    s.until(lambda: s.leads("b1") and s.committed("b1", more), "b1 leads with all", within_ms=6 * ELECTION_MS)
    s.converge()


@script("2+2+1")
def r02_acknowledgement_of_an_older_term(s: Stage) -> None:
    """An acknowledgement that was given to this leader two terms ago says nothing of its present log."""
    s.elect("a1")
    s.wait(100)
    term = s["a1"].core.term
    s.cut("a1", "a2 b1 b2 t1")
    s.propose("a1", 5)
    s.elect("b1")
    s.wait(100)
    s.cut("a1 a2 b1 b2 t1")
    s.wait(300)
    s.elect("a1")
    s.cut("a1 a2", "b1 b2 t1")
    last = s.propose("a1", 5)[-1]
    s.wait(50)
    for voter in ("b1", "b2", "t1"):
        s.inject("a1", voter, AppendReply(term, 1, last, 0, 0))
    s.wait(50)
    s.must(not s.committed("a1", last), "counted an acknowledgement of an older term")
    s.converge()


@script("2+2+1", batch_bytes=1)
def verified_for_another_leader(s: Stage) -> None:
    """a2 agreed with a1 further than it does with b1; what it agrees on with b1 must be found out anew."""
    s.elect("a1")
    s.wait(100)
    for source, target in (("a2", "a1"), ("b1", "a1"), ("a1", "b2"), ("a1", "t1")):
        s.block(source, target)
    (first,) = s.propose("a1")
    s.until(lambda: s.term_at("b1", first) > 0, "b1 has the first")
    s.block("a1", "b1")
    rest = s.propose("a1", 4)
    s.until(lambda: s.on_disk("a2", rest[-1]), "a2 has all")
    s.crash("a1")
    s.cut("b1 b2 t1", "a2", "a1")
    s.elect("b1")
    own = s["b1"].core.journal.last_index
    # b1 has sent its own entry to a2, in vain: it will ask from there on, and be sent back to a1's first.
    s.run.network.reset("a2", "b1")
    s.cut("b1 t1 a2", "b2", "a1")
    s.until(lambda: s.committed("b1", own), "committed with a2")
    s.converge()


@script("1+1+1")
def r03_deposed_leaders_tail(s: Stage) -> None:
    """What a deposed leader had appended is dropped, never applied."""
    s.elect("a1")
    s.wait(100)
    s.cut("a1", "b1 t1")
    s.propose("a1", 5)
    s.wait(20)
    s.elect("b1")
    s.propose("b1", 50)
    s.wait(300)
    s.converge()


@script("1+1+1")
def r03_heartbeat_that_verifies_nothing(s: Stage) -> None:
    """The commit index goes no further than what a message verified."""
    s.elect("a1")
    s.wait(100)
    s.cut("a1", "b1 t1")
    stale = s.propose("a1", 5)
    s.wait(20)
    s.elect("b1")
    last = s.propose("b1", 9)[-1]
    s.until(lambda: s.committed("b1", last), "committed")
    term, agreed = s["b1"].core.term, stale[0] - 1
    s.inject("a1", "b1", Append(term, 1, agreed, s.term_at("a1", agreed), last, 0, []))
    s.inject("a1", "b1", Append(term, 2, last, term, last, 0, []))
    s.wait(20)
    s.must(s["a1"].core.commit_index <= agreed, "committed what nobody verified")
    s.converge()


@script("1+1+1")
def r21_late_batch_of_an_old_connection(s: Stage) -> None:
    """An old batch comes again after newer entries: nothing is truncated."""
    s.elect("a1")
    s.wait(100)
    term, base = s["a1"].core.term, s["a1"].core.journal.last_index
    first, *rest = s.propose("a1", 12)
    s.until(lambda: s.committed("a1", rest[-1]) and s.on_disk("b1", rest[-1]), "committed")
    command = s["a1"].core.journal.entry(first)[0]
    s.inject("b1", "a1", Append(term, 2, base, s.term_at("a1", base), base, 0, [(term, command)]))
    s.wait(5)
    s.must(s["b1"].core.journal.last_index >= rest[-1], "an old batch made b1 forget newer entries")
    s.converge()


@script("1+1+1", batch_bytes=300)
def r23_conflicting_tail_and_a_backlog(s: Stage) -> None:
    s.elect("a1")
    s.wait(100)
    s.cut("a1", "b1 t1")
    s.propose("a1", 30)
    s.wait(20)
    s.elect("b1")
    last = s.propose("b1", 300)[-1]
    s.until(lambda: s.committed("b1", last), "committed")
    s.wait(1_500)
    s.heal()
    s.until(
        lambda: s["a1"].core.journal.last_index >= last and s.term_at("a1", last) == s.term_at("b1", last),
        "a1 has b1's log",
        within_ms=1_500,
    )
    s.converge()


@script("1+1+1")
def returning_member_does_not_depose(s: Stage) -> None:
    s.elect("a1")
    s.wait(100)
    s.cut("b1", "a1 t1")
    s.wait(10 * ELECTION_MS)
    term = s["a1"].core.term
    s.heal()
    s.wait(3 * ELECTION_MS)
    s.must(s.leads("a1") and s["a1"].core.term == term, f"the leader of term {term} was deposed")
    s.converge()


@script("1+1+1")
def candidate_under_a_healthy_leader(s: Stage) -> None:
    """It asks without having asked before: who hears its leader answers nothing, and keeps its term."""
    s.elect("a1")
    s.wait(100)
    term, last = s["a1"].core.term, s["a1"].core.journal.last_index
    s.inject("t1", "b1", RequestVote(term + 1, last + 9, term, False))
    s.wait(ELECTION_MS)
    s.must(s.leads("a1") and s["a1"].core.term == term, f"the leader of term {term} was deposed")
    s.converge()


@script("1+1+1")
def isolated_leader_steps_down(s: Stage) -> None:
    s.elect("a1")
    s.wait(100)
    s.cut("a1", "b1 t1")
    s.until(lambda: not s.leads("a1"), "a1 steps down", within_ms=ELECTION_MS + 100)
    s.converge()


@script("1+1+1")
def no_read_without_a_majority(s: Stage) -> None:
    """Another leads meanwhile, and has committed more; the paused leader wakes up and is asked."""
    s.elect("a1")
    last = s.propose("a1", 3)[-1]
    s.until(lambda: s.committed("a1", last), "committed")
    a1 = s["a1"]
    a1.pause(s.run.world.now_us + 5_000_000)
    s.wait(5 * ELECTION_MS)
    s.must(s.leads("b1"), "b1 leads")
    newer = s.propose("b1", 3)[-1]
    s.until(lambda: s.committed("b1", newer), "committed")
    answers: list[int | None] = []
    s.wait(5_000 - 5 * ELECTION_MS - 100)
    s.cut("a1", "b1 t1")
    s.wait(99)
    a1.paused_until_us = 0
    a1.do(a1.core.read, answers.append)
    a1.do(a1.core.tick)
    s.wait(100)
    s.must(all(index is None or index >= newer for index in answers), f"a stale read: {answers}, committed {newer}")
    s.converge()


@script("1+1+1")
def no_read_by_a_slow_clock(s: Stage) -> None:
    """The cut-off leader's clock stands almost still, so it does not notice that another leads."""
    s.elect("a1")
    s.wait(100)
    s.cut("a1", "b1 t1")
    s["a1"].set_rate(10_000)
    s.until(lambda: s.leads("b1"), "b1 leads")
    newer = s.propose("b1", 3)[-1]
    s.until(lambda: s.committed("b1", newer), "committed")
    s.must(s.leads("a1"), "a1 believes that it leads")
    answers: list[int | None] = []
    a1 = s["a1"]
    a1.do(a1.core.read, answers.append)
    a1.do(a1.core.tick)
    s.wait(100)
    s.must(all(index is None or index >= newer for index in answers), f"a stale read: {answers}, committed {newer}")
    s["a1"].set_rate(1_000_000)
    s.converge()


@script("1+1+1")
def no_read_before_the_own_entry(s: Stage) -> None:
    """A new leader does not know yet what its predecessor committed: its reads wait for its own first entry."""
    s.elect("a1")
    s.wait(100)
    (last,) = s.propose("a1")
    s.until(lambda: s.term_at("b1", last) > 0, "b1 has it")
    s.block("a1", "b1")
    s.until(lambda: s.committed("a1", last), "committed, and b1 does not know")
    s.crash("a1")
    s.elect("b1")
    answers: list[int | None] = []
    b1 = s["b1"]
    b1.do(b1.core.read, answers.append)
    b1.do(b1.core.tick)
    s.wait(200)
    s.must(all(index is None or index >= last for index in answers), f"a stale read: {answers}, committed {last}")
    s.converge()


@script("1+1+1")
def leader_with_a_stalled_disk(s: Stage) -> None:
    """Both followers have acknowledged; the leader's own disk has not: it does not count itself."""
    s.elect("a1")
    s.wait(100)
    s.cut("a1 b1", "t1")
    s.stall_disk("a1", 400)
    (last,) = s.propose("a1")
    s.until(lambda: s.on_disk("b1", last), "b1 has it")
    s.wait(50)
    s.must(not s.committed("a1", last), "committed with one disk of three")
    s.crash("a1")
    s.stall_disk("a1", 0)
    s.converge()


@script("1+1+1")
def cut_while_a_sync_is_under_way(s: Stage) -> None:
    """Entries are replaced while their sync runs: the sync's end says nothing of those that came instead."""
    s.elect("a1")
    s.wait(100)
    s.cut("a1", "b1 t1")
    s.stall_disk("a1", 300)
    s.propose("a1", 5)
    s.wait(5)
    s.elect("b1")
    s.propose("b1", 5)
    s.wait(30)
    s.heal()
    s.until(lambda: s["a1"].core.counters["truncations"] > 0, "a1 drops its tail")
    s.wait(400)
    s.crash("a1")
    s.stall_disk("a1", 0)
    s.converge()


@script("1+1+1")
def disk_fails(s: Stage) -> None:
    """After a failed sync nothing is acknowledged: the member leaves."""
    s.elect("a1")
    s.wait(100)
    s["b1"].weather.fails = True
    s.propose("a1", 3)
    s.wait(50)
    s.must(s["b1"].incarnation > 1 or not s["b1"].alive, "b1 stays although its disk failed")
    s.converge()


@script("1+1+1")
def caretaker_hands_over(s: Stage) -> None:
    """A witness that wins takes nothing in and hands over at once."""
    s.elect("t1")
    s.until(lambda: s.leads("a1") or s.leads("b1"), "a replica leads", within_ms=2 * ELECTION_MS)
    s.converge()


@script("1+1+1")
def acknowledged_by_a_lost_disk(s: Stage) -> None:
    """b1 acknowledged, then lost its disk and said so; when the leader's own sync ends, b1 does not count."""
    s.elect("a1")
    s.wait(100)
    s.cut("a1 b1", "t1")
    s.stall_disk("a1", 250)
    (last,) = s.propose("a1")
    s.until(lambda: s.on_disk("b1", last), "b1 has it")
    s.wait(5)
    s.must(s["b1"].wipe(), "b1 loses its disk")
    s.restart("b1")
    s.until(lambda: s["a1"].core.disk_of("b1").disk_id == "b1-2", "a1 knows of the new disk")
    s.until(lambda: s.on_disk("a1", last), "a1 has it on disk")
    s.wait(5)
    s.must(not s.committed("a1", last), "committed with a lost disk")
    s.stall_disk("a1", 0)
    s.converge()


@script("1+1+1")
def late_acknowledgement_of_a_lost_disk(s: Stage) -> None:
    """b1 acknowledged, lost its disk and said so; then the acknowledgement comes, of the same term."""
    s.elect("a1")
    s.wait(100)
    s.cut("a1 b1", "t1")
    s.stall_disk("a1", 250)
    (last,) = s.propose("a1")
    s.until(lambda: s.on_disk("b1", last), "b1 has it")
    late = AppendReply(s["a1"].core.term, s.core("a1")._sequence, last, 0, 0)
    s.must(s["b1"].wipe(), "b1 loses its disk")
    s.restart("b1")
    s.until(lambda: s["a1"].core.disk_of("b1").disk_id == "b1-2", "a1 knows of the new disk")
    s.inject("a1", "b1", late)
    s.until(lambda: s.on_disk("a1", last), "a1 has it on disk")
    s.wait(5)
    s.must(not s.committed("a1", last), "committed with a lost disk")
    s.inject("a1", "b1", DiskIs("b1-1", True, False))
    s.inject("a1", "b1", late)
    s.must(not s.committed("a1", last), "committed with a lost disk")
    s.stall_disk("a1", 0)
    s.converge()


@script("1+1+1")
def vote_of_a_lost_disk(s: Stage) -> None:
    """t1 voted for a1, lost its disk, and is admitted again: in that term its vote is given."""
    s.elect("a1")
    last = s.propose("a1", 3)[-1]
    s.until(lambda: s.on_disk("t1", last), "t1 has it")
    s.must(s["t1"].wipe(), "t1 loses its disk")
    s.restart("t1")
    s.until(lambda: s["t1"].disk.record.joined, "t1 is admitted")
    s.wait(100)
    s.inject("t1", "b1", RequestVote(s["a1"].core.term, last + 9, s["a1"].core.term, True))
    s.wait(20)
    s.converge()


@script("1+1+1")
def new_disk_counts_for_nothing(s: Stage) -> None:
    """With b1 away, a new t1 can't make a majority with a1: it may have acknowledged what nobody else has."""
    s.elect("a1")
    s.wait(100)
    s.cut("a1", "b1 t1")
    s.wait(2_000)
    last = s.propose("b1", 3)[-1] if s.leads("b1") else 0
    s.must(last > 0, "b1 leads")
    s.until(lambda: s.committed("b1", last), "committed with t1")
    s.must(s["t1"].wipe(), "t1 loses its disk")
    s.cut("a1 t1", "b1")
    s.restart("t1")
    s.wait(5 * ELECTION_MS)
    s.must(not s.leads("a1") and not s.leads("t1"), "elected with a voter that forgot")
    s.converge()


@script("1+1+1")
def joined_but_not_on_disk(s: Stage) -> None:
    """t1 is admitted and says so; its power fails before that is on its disk. The same leader admits it again."""
    s.elect("a1")
    s.wait(100)
    s.must(s["t1"].wipe(), "t1 loses its disk")
    s.restart("t1")
    s.until(lambda: s["t1"].disk.last_index > 1, "t1 catches up")
    s.stall_disk("t1", 200)
    s.until(lambda: s["t1"].core.joined, "t1 is told that it counts")
    s.wait(20)
    s.must(not s["t1"].disk.record.joined, "it is not on its disk yet")
    s.crash("t1")
    s.stall_disk("t1", 0)
    s.restart("t1")
    s.until(lambda: s["t1"].disk.record.joined, "t1 is admitted")
    s.converge()


@script("1+1+1")
def witness_keeps_what_a_replica_lacks(s: Stage) -> None:
    """One replica is away, the other stores all and dies: the witness has what the first one needs."""
    s.elect("a1")
    s.wait(100)
    s.cut("a1 t1", "b1")
    last = s.propose("a1", 30)[-1]
    s.until(lambda: s["a1"].core.stored_index >= last, "a1 has stored all")
    s.propose("a1", 3)
    s.wait(500)
    s.crash("a1")
    s.cut("b1 t1", "a1")
    s.patient()
    s.until(lambda: s.leads("b1") and s.committed("b1", last), "b1 leads with all", within_ms=6 * ELECTION_MS)
    s.converge()


# -- changes of the members ----------------------------------------------------------------------


@script("2+2+1")
def ongaro_2015(s: Stage) -> None:
    """A change by a new leader before its term has committed, beside one that an older leader has still in its log.

    Both would have their majorities, and these no member in common (Ongaro, raft-dev, 2015).
    """
    s.elect("a1")
    s.wait(100)
    s.changed("a1", Demote("b2"))
    s.wait(100)
    s.cut("a1 b2", "a2 b1 t1")
    s.must(s.change("a1", Promote("b2")) == "logged", "a1 promotes b2")
    s.until(lambda: s.on_disk("b2", s["a1"].core.journal.last_index), "b2 has it")
    s.elect("b1")
    s.cut("b1 a2", "t1", "a1 b2")
    if s.change("b1", Remove("a1")) == "logged":
        s.wait(50)  # a majority of a2, b1 and t1
        s.crash("b1", "a2")
        s.cut("a1 b2 t1", "b1", "a2")
        s.elect("a1")  # a majority of all five
    s.converge()


@script("2+2+1")
def two_changes_at_once(s: Stage) -> None:
    s.elect("a1")
    s.wait(100)
    s.stall_disk("a1", 200)
    s.must(s.change("a1", Demote("b2")) == "logged", "a1 demotes b2")
    s.must(s.change("a1", Demote("a2")) == "not_yet", "two changes are under way")
    s.must(s.change("a1", Demote("b2")) == "logged", "the same one again does no harm")
    s.must(len(s.core("a1").voters) == 4, "voters")
    s.stall_disk("a1", 0)
    s.converge()


@script("2+2+1")
def leader_dies_with_a_change(s: Stage) -> None:
    """Only a2 has it: whoever leads next, all count the same in the end; and it may be asked for again."""
    s.elect("a1")
    s.wait(100)
    s.cut("a1 a2", "b1", "b2", "t1")
    s.must(s.change("a1", Demote("b2")) == "logged", "a1 demotes b2")
    index = s["a1"].core.journal.last_index
    s.until(lambda: s.on_disk("a2", index), "a2 has it")
    s.crash("a1")
    s.cut("a2 b1 b2 t1", "a1")
    s.elect("a2")
    s.until(lambda: s.committed("a2", index), "a2 commits it")
    s.must("b2" not in s.core("b1").voters, "b1 counts b2")
    s.changed("a2", Demote("b2"))
    s.changed("a2", Promote("b2"))
    s.converge()


@script("2+2+1")
def change_truncated_by_a_new_leader(s: Stage) -> None:
    """What was in force on the old leader alone is in force nowhere."""
    s.elect("a1")
    s.wait(100)
    s.cut("a1", "a2 b1 b2 t1")
    s.must(s.change("a1", Demote("b2")) == "logged", "a1 demotes b2")
    s.must("b2" not in s.core("a1").voters, "it counts at once")
    s.wait(20)
    s.elect("b1")
    s.heal()
    s.until(lambda: s["a1"].core.counters["truncations"] > 0, "a1 drops it")
    s.must("b2" in s.core("a1").voters, "a1 does not count b2")
    s.changed("b1", Remove("a1"))
    s.must("a1" not in s.core("b2").voters, "b2 counts a1")
    s.until(lambda: not s.run.why_unsettled(), "converged")


@script("2+2+1")
def removed_member_campaigns(s: Stage) -> None:
    """It was cut off, does not know, and nobody tells it."""
    s.elect("a1")
    s.wait(100)
    s.cut("b2", "a1 a2 b1 t1")
    s.changed("a1", Remove("b2"))
    s.wait(4 * ELECTION_MS)
    term = s["a1"].core.term
    s.must(s["b2"].core.counters["pre_votes"] > 0, "b2 campaigns")
    s.heal()
    s.wait(3 * ELECTION_MS)
    s.must(s.leads("a1") and s["a1"].core.term == term, f"the leader of term {term} was deposed")
    s.until(lambda: not s.run.why_unsettled(), "converged")


@script("2+2+1")
def votes_that_do_not_count(s: Stage) -> None:
    """Of a member that was removed, and of a learner: with the candidate's own that makes two of four, not three."""
    s.elect("a1")
    s.wait(100)
    s.changed("a1", Remove("b2"))
    s.learner("a1", "n1")
    s.wait(50)
    s.crash("a1")
    core: Any = s["a2"].core
    before = core.term
    s.patient()
    core._SyncObj__raftElectionDeadline = 0.0
    s.until(lambda: core.term > before, "a2 asks for votes")
    for silent in ("b1", "b2", "t1", "n1"):
        s.block(silent, "a2")
    for name in ("n1", "b2", "b1"):
        s.inject("a2", name, Vote(core.term))
    s.must(not core.is_leader, "a2 leads with two votes of four")
    s.crash("a2")
    s.converge()


@script("1+1+1")
def learners_count_for_nothing(s: Stage) -> None:
    """A leader with two learners and no other voter: it commits nothing, answers no read, and steps down."""
    s.elect("a1")
    s.wait(100)
    s.learner("a1", "n1")
    s.learner("a1", "n2")
    s.cut("a1 n1 n2", "b1 t1")
    (last,) = s.propose("a1")
    answers: list[int | None] = []
    a1 = s["a1"]
    a1.do(a1.core.read, answers.append)
    a1.do(a1.core.tick)
    s.until(lambda: s.on_disk("n1", last) and s.on_disk("n2", last), "both have it")
    s.wait(50)
    s.must(not s.committed("a1", last), "committed with learners")
    s.until(lambda: not s.leads("a1"), "a1 steps down", within_ms=ELECTION_MS + 100)
    s.must(answers == [None], f"a read was answered: {answers}")
    s.wait(3 * ELECTION_MS)
    s.must(not s.leads("n1") and not s.leads("n2"), "a learner leads")
    s.converge()


@script("1+1+1")
def learner_that_lags(s: Stage) -> None:
    """Not promoted while it lacks more than is allowed, and is not on a disk that counts."""
    s.elect("a1")
    s.wait(100)
    s.learner("a1", "n1")
    s.cut("a1 b1 t1", "n1")
    s.propose("a1", 50)
    s.wait(20)
    s.must(s.change("a1", Promote("n1")) == "not_yet", "n1 lacks 50 entries")
    s.heal()
    s.until(lambda: s.on_disk("n1", s["a1"].core.journal.last_index), "n1 has it all")
    s.wait(50)
    s.changed("a1", Promote("n1"))
    s.converge()


@script("1+1+1")
def learner_on_a_new_disk(s: Stage) -> None:
    """It has every entry, but has not been admitted: it is not promoted, and no voter's standing changes then."""
    s.elect("a1")
    s.wait(100)
    s.learner("a1", "n1")
    s.must(s["n1"].wipe(), "n1 loses its disk")
    s.cut("a1 n1", "b1", "t1")
    s.restart("n1")
    s.until(lambda: (p := s["a1"].core.progress("n1")) and not p.joined and p.matched_index > 1, "n1 answers")
    s.must(s.change("a1", Promote("n1")) == "not_yet", "n1 is promoted on a disk that does not count")
    s.converge()


@script("2+2+1")
def disk_lost_during_a_change(s: Stage) -> None:
    """b1's disk is lost while a change is under way: no second change before it is admitted, but for its removal."""
    s.elect("a1")
    s.wait(100)
    s.changed("a1", Demote("b2"))
    s.wait(100)
    s.cut("a1 b1 b2", "a2", "t1")
    s.must(s.change("a1", Promote("b2")) == "logged", "a1 promotes b2")
    index = s["a1"].core.journal.last_index
    s.until(lambda: s.on_disk("b1", index) and not s.committed("a1", index + 1), "b1 has it")
    s.must(s["b1"].wipe(), "b1 loses its disk")
    s.restart("b1")
    s.until(lambda: s["a1"].core.disk_of("b1").disk_id == "b1-2", "a1 knows")
    s.must(s.change("a1", Demote("a2")) == "not_yet", "a change while b1 does not count")
    s.cut("a1 b1 b2 a2", "t1")
    s.until(lambda: s["b1"].disk.record.joined, "b1 is admitted")
    s.changed("a1", Demote("a2"))
    s.changed("a1", Remove("b1"))
    s.heal()
    s.until(lambda: not s.run.why_unsettled(), "converged")


@script("1+1+1")
def voter_lost_its_disk(s: Stage) -> None:
    """While a voter does not count, no other may lose its vote; the lost one itself may be removed."""
    s.elect("a1")
    s.wait(100)
    s.learner("a1", "n1")
    s.changed("a1", Promote("n1"))
    s.wait(50)
    s.must(s["b1"].wipe(), "b1 loses its disk")
    s.cut("a1 b1 n1", "t1")
    s.restart("b1")
    s.until(lambda: not s["a1"].core.progress("b1").joined, "a1 knows")
    s.must(s.change("a1", Demote("n1")) == "not_yet", "a voter less while another does not count")
    s.must(s.change("a1", Remove("b1")) == "logged", "b1 is removed")
    s.heal()
    s.until(lambda: not s.run.why_unsettled(), "converged")


@script("1+1+1")
def learner_by_snapshot(s: Stage) -> None:
    """The configuration comes with the snapshot: its entry is trimmed everywhere."""
    s.elect("a1")
    s.wait(100)
    s.changed("a1", s.machine("r1", Standing.read_replica))
    s.wait(100)
    s.crash("r1")
    last = s.propose("a1", 40)[-1]
    s.until(lambda: s.committed("a1", last), "committed")
    s.run.around.laggard_entries = 1
    for member in s.members:
        if member.alive:
            s.core(member.name).settings = structs.replace(s.core(member.name).settings, laggard_entries=1)
    s.until(lambda: s["a1"].core.journal.first_index > last - 10, "trimmed")
    s.learner("a1", "n1")
    s.must(s.run.counters["snapshots_installed"] > 0, "n1 was brought up by a snapshot")
    s.must({m.name for m in s.core("n1").configuration.members} == {"a1", "b1", "t1", "r1", "n1"}, "n1 knows whom")
    s.crash("n1", "b1")
    s.restart("n1", "b1", "r1")
    s.must("r1" in s.core("b1").others, "b1 forgot r1 with its trimmed log")
    s.wait(2_000)
    s.converge()


@script("2+2+1")
def replaced(s: Stage) -> None:
    """Add, promote, remove; the removed one's disk comes back as it was and takes part in nothing."""
    s.elect("a1")
    s.wait(100)
    s.learner("a1", "n1")
    s.changed("a1", Promote("n1"))
    s.cut("b2", "a1 a2 b1 t1 n1")
    s.changed("a1", Remove("b2"))
    s.must(s.change("a1", s.machine("b2x")) == "logged", "another name may come")
    s.crash("a1", "a2")
    s.heal()
    s.restart("a2")
    s.wait(4 * ELECTION_MS)
    s.must(any(s.leads(name) for name in ("a2", "b1", "n1")), "a majority of the new members leads")
    s.must(not s.leads("b2"), "b2 leads")
    s.restart("a1")
    s.until(lambda: not s.run.why_unsettled(), "converged", within_ms=8 * ELECTION_MS)


@script("2+2+1")
def leader_about_itself(s: Stage) -> None:
    """A leader that goes would count votes without having one: it hands leadership over first."""
    s.elect("a1")
    s.wait(100)
    s.must(s.change("a1", Remove("a1")) == "refused", "a1 removes itself")
    s.must(s.change("a1", Demote("a1")) == "refused", "a1 demotes itself")
    s.converge()


@script("1+1+1")
def single_voter_with_a_stalled_disk(s: Stage) -> None:
    """Both others were put aside, one after the other: what a1 has not synced is committed by nobody."""
    s.elect("a1")
    s.wait(100)
    s.cut("a1 t1", "b1")
    s.propose("a1", 20)  # too much to be promoted again with
    s.changed("a1", Demote("b1", away=True))
    s.cut("a1", "t1", "b1")
    s.propose("a1", 20)
    s.changed("a1", Demote("t1", away=True))
    s.must(s.core("a1").voters == {"a1"}, "a1 votes alone")
    s.stall_disk("a1", 300)
    (last,) = s.propose("a1")
    s.wait(100)
    s.must(not s.committed("a1", last), "committed before it is on disk")
    s.stall_disk("a1", 0)
    s.converge()
