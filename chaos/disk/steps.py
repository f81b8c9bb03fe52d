"""A seeded life of a journal, step by step, and the log that each step leaves: what writer and judge agree on."""

from collections.abc import Iterator, Sequence
from hashlib import shake_128
from random import Random

from msgspec import Struct

from cluster.consensus.audited import REGULAR
from cluster.consensus.journal import Base, Journal, Loaded
from cluster.membership import Configuration

FIRST_TERM = 1
NO_MEMBERS = Base(0, Configuration(0, []))
KEEP = 200
"""How many entries a trim leaves below the commit index."""


class Add(Struct, frozen=True):
    index: int
    term: int
    size_bytes: int


class Step(Struct, frozen=True):
    """What happens between two flushes, in this order. A 0 says: not in this step."""

    vote: tuple[int, str | None] | None = None
    rebase: tuple[int, int] | None = None
    cut_from: int = 0
    adds: tuple[Add, ...] = ()
    commit_index: int = 0
    trim_to: int = 0


class Log:
    """The log after some steps. lives: after which step each process took over; the first begins after 0."""

    def __init__(self, seed: int, lives: Sequence[int] = (0,)) -> None:
        self.seed = seed
        self.lives = tuple(lives)
        self.steps = 0
        self.base_index = 1
        """No entry below this was ever needed; a rebase moves it."""
        self.last_index = 0
        self.term = FIRST_TERM
        self.vote: tuple[int, str | None] = (0, None)
        self.commit_index = 0
        self.trim_index = 0
        self.entries: dict[int, tuple[int, int, int]] = {}
        """By index: term, bytes, and the life that wrote it."""
        self._random = Random(seed)

    def advance(self) -> Step:
        """Draw the next step, take it, and return it. The same seed draws the same steps, whatever the lives."""
        random = self._random
        vote = rebase = None
        cut_from = trim_to = 0
        if random.random() < 0.15:
            self.term += 1
            vote = (self.term, random.choice(("dc-a", "dc-b", None)))
        first_index = self.last_index + 1
        if random.random() < 0.08 and self.last_index > self.commit_index + 1:
            self.term += 1
            vote = (self.term, None)
            cut_from = first_index = random.randint(self.commit_index + 1, self.last_index)
        elif random.random() < 0.003 and self.last_index:
            rebase = (self.last_index + random.randint(1, 50), self.term)
            first_index = rebase[0] + 1
        adds = tuple(
            Add(first_index + offset, self.term, self._size()) for offset in range(random.choice((1, 1, 2, 3, 8)))
        )
        last_index = adds[-1].index
        floor = rebase[0] if rebase else max(1, self.commit_index)
        commit_index = max(floor, last_index - random.randint(0, 20))
        if random.random() < 0.05:
            trim_to = max(1, commit_index - KEEP)
        step = Step(vote, rebase, cut_from, adds, commit_index, trim_to)
        self._take(step)
        return step

    def _size(self) -> int:
        choice = self._random.random()
        return self._random.randint(20, 400) if choice < 0.95 else self._random.randint(3_000, 40_000)

    def _take(self, step: Step) -> None:
        self.steps += 1
        life = sum(1 for start in self.lives if start < self.steps)
        self.vote = step.vote or self.vote
        if step.rebase:
            index, term = step.rebase
            self.entries = {index: (term, -1, life)}
            self.base_index = self.trim_index = index
        if step.cut_from:
            for index in range(step.cut_from, self.last_index + 1):
                del self.entries[index]
        for add in step.adds:
            self.entries[add.index] = (add.term, add.size_bytes, life)
        self.last_index = step.adds[-1].index
        self.commit_index = step.commit_index
        self.trim_index = max(self.trim_index, step.trim_to)

    def command(self, index: int) -> bytes | None:
        """What the entry holds; None for a base without content of its own."""
        term, size, life = self.entries[index]
        return None if size < 0 else content(self.seed, life, index, term, size)

    def difference(self, found: Loaded) -> str:
        """How what was found on disk differs from this log; empty when it does not."""
        if (found.vote.term, found.vote.voted_for) != self.vote:
            return f"term and vote {found.vote.term}, {found.vote.voted_for}, not {self.vote}"
        if found.last_index != self.last_index:
            return f"the last entry is {found.last_index}, not {self.last_index}"
        if not self.last_index:
            return ""
        if not self.base_index <= found.first_index <= max(self.base_index, self.trim_index):
            return f"the first entry is {found.first_index}; trimmed up to {self.trim_index} from {self.base_index}"
        if found.commit_index > self.commit_index:
            return f"commit index {found.commit_index} after {self.commit_index}"
        for command, index, term in found.tail:
            if term != self.entries[index][0]:
                return f"entry {index} is of term {term}, not {self.entries[index][0]}"
            wanted = self.command(index)
            if wanted is not None and command != wanted:
                return f"entry {index} of term {term} holds something else"
        return ""


def content(seed: int, life: int, index: int, term: int, size: int) -> bytes:
    return REGULAR + shake_128(f"{seed}/{life}/{index}/{term}".encode()).digest(size - len(REGULAR))


def life(seed: int, lives: Sequence[int]) -> Iterator[tuple[Log, Step]]:
    """The steps that the newest life takes, from where the one before it ended, each with the log after it."""
    log = Log(seed, lives)
    while log.steps < lives[-1]:
        log.advance()
    while True:
        step = log.advance()
        yield log, step


def play(journal: Journal, log: Log, step: Step) -> None:
    """Do to a journal what the step says. `log` is the log after it. Not flushed."""
    if step.vote:
        journal.setCurrentTerm(*step.vote)
    if step.rebase:
        journal.rebase(*step.rebase, NO_MEMBERS)
    if step.cut_from:
        journal.cut_from(step.cut_from)
    for add in step.adds:
        command = log.command(add.index)
        if command is not None:
            journal.add(command, add.index, add.term)
    journal.setRaftCommitIndex(step.commit_index)
    if step.trim_to:
        journal.trim_to(step.trim_to)
