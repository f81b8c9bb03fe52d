"""Is the simulator awake? Faults put into copies of the engine, one at a time; each must be noticed.

A mutant whose text is not in the engine any more is an error: write it anew.
"""

from __future__ import annotations

import inspect
import time
from types import ModuleType

from msgspec import Struct

import cluster.consensus.journal
import cluster.consensus.progress
import cluster.consensus.raft
import cluster.consensus.reads
from chaos.sim.engines import Hardened
from chaos.sim.member import Engine
from chaos.sim.quiet import quiet
from chaos.sim.run import Run, draw_plan
from chaos.sim.scripts import SCRIPTS, play

MODULES: dict[str, ModuleType] = {
    "journal": cluster.consensus.journal,
    "progress": cluster.consensus.progress,
    "reads": cluster.consensus.reads,
    "raft": cluster.consensus.raft,
}


class Mutant(Struct, frozen=True):
    """name: what is wrong. Where, the text, and what stands there instead. also: a second place. budget: in seeds."""

    name: str
    module: str
    text: str
    instead: str
    also: tuple[str, str] | None = None
    budget: int = 300


class Killed(Struct, frozen=True):
    """by: the script that noticed, or '' for seeds. seeds: how many it needed, that one included."""

    name: str
    by: str
    seeds: int
    promise: str
    cpu_s: float


class Row(Struct, frozen=True):
    """Both ways to notice one mutant: the first script, '' for none; how many random seeds, 0 where none did."""

    name: str
    module: str
    script: str
    script_promise: str
    seeds: int
    seeds_promise: str

    @property
    def killed(self) -> bool:
        return bool(self.script or self.seeds)


class MutantStale(Exception):
    """The engine has changed under this mutant."""


MUTANTS = [
    # -- what is said before it is on disk
    Mutant(
        "acknowledges before the sync",
        "raft",
        "matched = min(self._verified_index, self.journal.durable_index)",
        "matched = self._verified_index",
    ),
    Mutant(
        "a leader counts itself before its own sync",
        "raft",
        "return min(super().__getitem__(node), self._journal.durable_index)",
        "return super().__getitem__(node)",
        also=("        if self.is_leader and fromIDx > self.journal.durable_index:\n", "        if False:\n"),
    ),
    Mutant(
        "a leader that alone votes commits before its own sync",
        "raft",
        "        if self.is_leader and fromIDx > self.journal.durable_index:\n",
        "        if False:\n",
    ),
    Mutant(
        "a vote leaves before it is synced",
        "journal",
        "        self._votes_pending += 1\n        self._pending.append(self._vote)",
        "        self._pending.append(self._vote)",
    ),
    Mutant(
        "a vote is forgotten by a restart",
        "journal",
        "        self._pending.append(self._vote)",
        "        self._pending.append(Vote(term, None))",
    ),
    Mutant(
        "term and vote are forgotten by a restart",
        "journal",
        "        self._pending.append(self._vote)",
        "        self._pending.append(Vote(0, None))",
    ),
    Mutant(
        "held messages leave when any sync ends",
        "raft",
        "if not self.journal.vote_pending:\n            held",
        "if True:\n            held",
    ),
    Mutant(
        "applies before its own sync",
        "raft",
        "last = min(self.commit_index, self.journal.durable_index)",
        "last = self.commit_index",
    ),
    Mutant(
        "a sync makes durable what came after it began",
        "journal",
        "self.durable_index = max(self.durable_index, self._cut_index)",
        "self.durable_index = self.last_index",
    ),
    Mutant(
        "what was cut stays durable",
        "journal",
        "        self.durable_index = min(self.durable_index, self.last_index)\n",
        "",
    ),
    Mutant(
        "a sync under way makes durable what replaced it",
        "journal",
        "        self._cut_index = min(self._cut_index, self.last_index)\n",
        "",
    ),
    Mutant(
        "a failed sync passes for a good one",
        "journal",
        "        if error is not None:\n",
        "        if False:\n",
    ),
    # -- the log
    Mutant(
        "truncates what matches (F6)",
        "raft",
        "and journal.term_at(previous + same + 1) == entries[same][0]",
        "and False",
    ),
    Mutant(
        "does not truncate what conflicts",
        "raft",
        "            and journal.term_at(previous + same + 1) == entries[same][0]\n",
        "",
    ),
    Mutant(
        "does not compare the previous entry's term",
        "raft",
        "if previous > journal.last_index or journal.term_at(previous) != previous_term:",
        "if previous > journal.last_index:",
    ),
    Mutant(
        "a refused append moves the commit index (F1)",
        "raft",
        'self._library_hears(member, head | {"commit_index": min(message.commit_index, self.commit_index)})\n'
        "            if answered:\n"
        "                self._reply(retry_index",
        'self._library_hears(member, head | {"commit_index": message.commit_index})\n'
        "            if answered:\n"
        "                self._reply(retry_index",
    ),
    Mutant(
        "the commit index goes beyond what was verified (F1)",
        "raft",
        'head["commit_index"] = min(message.commit_index, verified)',
        'head["commit_index"] = message.commit_index',
    ),
    Mutant(
        "what was verified for one leader counts for the next",
        "raft",
        "self._echo = self._verified_index = self._acked_index = 0",
        "self._echo = 0",
    ),
    Mutant(
        "acknowledgements of older terms count (F10)",
        "raft",
        "if not self.is_leader or reply.term != self.term:",
        "if not self.is_leader:",
    ),
    Mutant(
        "commits entries of older terms by counting (figure 8)",
        "raft",
        "        self.doTick(0)\n",
        "        if self.is_leader:\n"
        "            matches = [self._SyncObj__raftMatchIndex[node] for node in self._nodes.values()]\n"
        "            counted = sorted([*matches, self.journal.durable_index], reverse=True)[self.quorum - 1]\n"
        "            self._SyncObj__raftCommitIndex = max(self.commit_index, counted)\n"
        "        self.doTick(0)\n",
    ),
    Mutant(
        "commits one vote short of a majority",
        "raft",
        "return min(super().__getitem__(node), self._journal.durable_index)",
        "return self._journal.durable_index if node.id == min(one.id for one in self) else "
        "min(super().__getitem__(node), self._journal.durable_index)",
    ),
    Mutant(
        "applies what is appended, not what is committed",
        "raft",
        "last = min(self.commit_index, self.journal.durable_index)",
        "last = self.journal.durable_index",
    ),
    Mutant(
        "a refusal sends the leader forward again (F2)",
        "progress",
        "self._probe_from(max(self.matched_index + 1, min(retry_index, self.next_index)))",
        "self._probe_from(max(self.matched_index + 1, self.next_index))",
    ),
    Mutant(
        "any refusal counts, and says where to go on (F2)",
        "progress",
        "        if sequence < self.refusals_count_from:\n            return False\n",
        "",
        also=(
            "self._probe_from(max(self.matched_index + 1, min(retry_index, self.next_index)))",
            "self.next_index = retry_index",
        ),
    ),
    Mutant(
        "witnesses trim what a replica has not stored",
        "raft",
        "min(everywhere, default=0) - self.settings.trim_reserve",
        "max(everywhere, default=0) - self.settings.trim_reserve",
    ),
    # -- elections
    Mutant(
        "votes without looking at the candidate's log",
        "raft",
        '                "last_log_index": message.last_index,\n                "last_log_term": message.last_term,\n',
        '                "last_log_index": 1 << 60,\n                "last_log_term": 1 << 60,\n',
    ),
    Mutant(
        "votes twice in a term",
        "raft",
        '        self._library_hears(\n            member,\n            {\n                "type": "request_vote",',
        "        self._SyncObj__votedForNodeId = None\n"
        '        self._library_hears(\n            member,\n            {\n                "type": "request_vote",',
    ),
    Mutant(
        "counts a voter's vote twice",
        "raft",
        "if term == self.term and member in self.voters and (term, member) not in self._votes:",
        "if term == self.term and member in self.voters:",
        budget=600,
    ),
    Mutant(
        "leads with half the votes",
        "raft",
        '            self._library_hears(member, {"type": "response_vote", "term": term})',
        '            self._library_hears(member, {"type": "response_vote", "term": term})\n'
        '            self._library_hears(member, {"type": "response_vote", "term": term})',
    ),
    Mutant(
        "campaigns without a pre-vote (F9)",
        "raft",
        "        term = self.term + 1\n        if self._pre_vote_term",
        "        return True\n        term = self.term + 1\n        if self._pre_vote_term",
    ),
    Mutant(
        "votes for another while its leader is alive (F9)",
        "raft",
        "if message.term > self.term and self._leader_alive() and not message.transfer:",
        "if False:",
    ),
    Mutant(
        "a leader without a majority stays (F9)",
        "raft",
        "leaderFallbackTimeout=timing.election_ms_min / 1000",
        "leaderFallbackTimeout=30.0",
    ),
    Mutant(
        "a witness never campaigns",
        "raft",
        "        if self._disk_stalls or (",
        "        if self.role is MemberRole.witness or (",
    ),
    Mutant(
        "a witness that leads takes commands",
        "raft",
        "return self.role is MemberRole.witness or self.barred is not None",
        "return False",
    ),
    Mutant(
        "a caretaker does not hand over",
        "raft",
        "            if self.caretaker:\n                self._hand_over_when_ready()\n",
        "            if self.caretaker:\n                pass\n",
    ),
    # -- lost disks and snapshots
    Mutant(
        "a member on a new disk votes at once",
        "raft",
        "return bool(self.journal.disk.joined)",
        "return True",
    ),
    Mutant(
        "a member on a new disk is admitted before it has caught up",
        "raft",
        "0 < progress.barrier_index <= min(self.commit_index, progress.matched_index)",
        "0 < progress.barrier_index",
    ),
    Mutant(
        "what a lost disk had matched still counts",
        "raft",
        "            self._SyncObj__raftMatchIndex[self._nodes[member]] = 0\n",
        "",
    ),
    Mutant(
        "acknowledgements of members that don't count are counted",
        "raft",
        "            if reply.joined:\n                self._SyncObj__raftMatchIndex",
        "            if True:\n                self._SyncObj__raftMatchIndex",
    ),
    Mutant(
        "a late acknowledgement of a lost disk counts",
        "raft",
        "        if reply.joined and disk is not None and not disk.joined:\n",
        "        if False:\n",
    ),
    Mutant(
        "a lost disk is believed to be back when an old message says so",
        "raft",
        "        if message.disk_id in self._lost_disks:\n",
        "        if False:\n",
    ),
    Mutant(
        "an admitted member forgets that its lost disk may have voted",
        "raft",
        "        self._SyncObj__setCurrentTerm(self.term, member)\n        log.warning",
        "        log.warning",
    ),
    # -- who the members are
    Mutant(
        "two changes of the members at once",
        "raft",
        "        if not self.configuration_committed:\n            raise NotYet(",
        "        if False:\n            raise NotYet(",
    ),
    Mutant(
        "a new leader changes the members before its term has committed (Ongaro 2015)",
        "raft",
        "        if self.commit_index < self._SyncObj__noopIDx:\n            raise NotYet(",
        "        if False:\n            raise NotYet(",
    ),
    Mutant(
        "learners are counted for commits",
        "raft",
        "self._SyncObj__otherNodes = {self._nodes[name] for name in self.other_voters}",
        "self._SyncObj__otherNodes = {self._nodes[name] for name in self.others}",
    ),
    Mutant(
        "learners confirm reads",
        "raft",
        "acked = (self._progress[name].acked_sequence for name in self.other_voters)",
        "acked = (self._progress[name].acked_sequence for name in self._progress)",
    ),
    Mutant(
        "votes of learners and of removed members count",
        "raft",
        "if term == self.term and member in self.voters and (term, member) not in self._votes:",
        "if term == self.term and (term, member) not in self._votes:",
    ),
    Mutant(
        "who has no vote campaigns",
        "raft",
        "        if not self.joined or not self.votes:\n",
        "        if not self.joined:\n",
    ),
    Mutant(
        "a truncated configuration stays in force",
        "journal",
        "        if self._bases and self._bases[-1].index >= index:\n",
        "        if False:\n",
    ),
    Mutant(
        "a configuration counts only when it is committed",
        "raft",
        "            self._told_committed = True\n            self.owner.configured()\n",
        "            self._take_configuration()\n            self.owner.configured()\n",
        also=(
            "        self._take_configuration()\n        self.owner.configured()\n",
            "        self._told_committed = False\n",
        ),
    ),
    Mutant(
        "a learner that lags is promoted",
        "raft",
        "        if lag > self.settings.promote_lag:\n",
        "        if False:\n",
    ),
    Mutant(
        "a learner whose disk does not count is promoted",
        "raft",
        '        if not progress.joined:\n            raise NotYet(f"{name} is on a new disk and has not caught up")\n'
        "        if not self._heard",
        "        if not self._heard",
    ),
    Mutant(
        "the voters change while the disk of one does not count",
        "raft",
        "if name in self.voters and not progress.joined and name != change.name:",
        "if False:",
    ),
    Mutant(
        "a leader removes or demotes itself",
        "raft",
        "if isinstance(change, Demote | Remove) and change.name == self.member:",
        "if False:",
    ),
    Mutant(
        "a restart forgets the configuration that its log begins with",
        "journal",
        "self._bases: list[Base] = [] if loaded.base is None else [loaded.base]",
        "self._bases: list[Base] = []",
    ),
    Mutant(
        "trimming forgets the configuration",
        "journal",
        "            self._begin_at(self.base_at(step))\n",
        "            self._bases = self._bases[-1:]\n",
    ),
    Mutant(
        "a witness that starts anew keeps its old configuration",
        "raft",
        "journal.rebase(base, message.base_term, message.configuration)",
        "journal.rebase(base, message.base_term, journal.base)",
    ),
    # -- reads
    Mutant(
        "reads without a majority",
        "reads",
        "confirmed = sorted(sequences, reverse=True)[needed - 1]",
        "confirmed = 1 << 60",
    ),
    Mutant(
        "answers to older messages confirm a read",
        "reads",
        "self._asked.append((next_sequence, index, self._waiting))",
        "self._asked.append((0, index, self._waiting))",
    ),
    Mutant(
        "a new leader reads before its own entry is committed",
        "raft",
        "self.commit_index >= self._SyncObj__noopIDx and self.reads.wants_round",
        "self.reads.wants_round",
    ),
]


def mutated(mutant: Mutant) -> Engine:
    """Our engine with one fault, in modules of its own; the real ones stay as they are."""
    copies: dict[str, ModuleType] = {}
    for name, original in MODULES.items():
        source = inspect.getsource(original)
        if name == mutant.module:
            for text, instead in ((mutant.text, mutant.instead), *([mutant.also] if mutant.also else [])):
                if text not in source:
                    raise MutantStale(f"{mutant.name!r}: its text is not in {original.__name__} any more")
                source = source.replace(text, instead)
        copies[name] = _copy(original, source)
    copies["raft"].__dict__["Progress"] = copies["progress"].__dict__["Progress"]
    copies["raft"].__dict__["ReadRounds"] = copies["reads"].__dict__["ReadRounds"]
    return Hardened(copies["raft"], copies["journal"])


def _copy(original: ModuleType, source: str) -> ModuleType:
    copy = ModuleType(original.__name__)
    copy.__file__ = original.__file__
    exec(compile(source, f"<mutant of {original.__name__}>", "exec"), copy.__dict__)  # noqa: S102 - our own source
    for name, value in vars(original).items():
        # Messages, changes and errors keep their identity: others match on them.
        if isinstance(value, type) and issubclass(value, Struct | BaseException):
            copy.__dict__[name] = value
    return copy


@quiet()
def hunt(mutant: Mutant, *, seeds: int | None = None, scripts: bool = True) -> Killed | None:
    """The scripts first, if wished, then seeds, until something is noticed; None when it survives."""
    began = time.process_time()
    engine = mutated(mutant)
    for name in SCRIPTS if scripts else ():
        broken = play(name, engine)
        if broken:
            return Killed(mutant.name, name, 0, broken.split(":")[0], time.process_time() - began)
    for seed in range(1, (seeds if seeds is not None else mutant.budget) + 1):
        outcome = Run(draw_plan(seed), engine).play()
        if outcome.broken:
            return Killed(mutant.name, "", seed, outcome.broken, time.process_time() - began)
    return None


def survey(name: str, seeds: int) -> Row:
    """Scripts and random seeds, each by itself; for worker processes too."""
    mutant = next(one for one in MUTANTS if one.name == name)
    by_script = hunt(mutant, seeds=0)
    by_seeds = hunt(mutant, seeds=seeds, scripts=False)
    return Row(
        name,
        mutant.module,
        by_script.by if by_script else "",
        by_script.promise if by_script else "",
        by_seeds.seeds if by_seeds else 0,
        by_seeds.promise if by_seeds else "",
    )
