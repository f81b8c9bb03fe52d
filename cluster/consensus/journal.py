"""The log as consensus sees it: a bounded tail in memory, the rest read back from storage, synced group by group.

Nothing here waits for the disk. Changes queue up in order; one group at a time is written and synced by a
committer while the next one forms. What is durable is known only when the committer says so.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from msgspec import DecodeError, Struct

from cluster.consensus.audited import NO_OP, LibraryJournal, monotonic
from cluster.membership import Configuration
from cluster.membership import decode as decode_configuration

# (command, index, term): the library's order.
Entry = tuple[bytes, int, int]

# The first byte of an entry that says who the members are; the library has 0 to 3.
CONFIGURATION = b"\x10"
TRIM_STEP = 1024


class Vote(Struct, frozen=True):
    term: int
    voted_for: str | None


class Put(Struct, frozen=True, gc=False):
    index: int
    term: int
    command: bytes


class CutFrom(Struct, frozen=True, gc=False):
    """Delete every entry from `index` on."""

    index: int


class TrimTo(Struct, frozen=True, gc=False):
    """Delete every entry below `index`; `index` itself stays, as the base."""

    index: int


class StartAfter(Struct, frozen=True, gc=False):
    """Delete every entry; the log goes on after `index`, whose content this member does not need."""

    index: int
    term: int


class Committed(Struct, frozen=True, gc=False):
    index: int


class Disk(Struct, frozen=True):
    """Which disk this is: random, made with the journal. joined: it takes part in votes and counts (see raft.py).

    The default stands for storages without such a record: no id, and always joined.
    """

    disk_id: str = ""
    joined: bool = True


class PeerDisks(Struct, frozen=True):
    """The disk that each other member voted with when it was last seen."""

    disk_ids: dict[str, str]


class Base(Struct, frozen=True, forbid_unknown_fields=True):
    """The configuration that holds where the log begins. index: of the entry that said so; 0 when none did.

    forced: it was put here when a majority was lost, and counts more than older generations' entries in the log.
    """

    index: int
    configuration: Configuration
    forced: bool = False


Change = Put | CutFrom | TrimTo | StartAfter | Vote | Committed | Disk | PeerDisks | Base


class Loaded(Struct, frozen=True):
    """first_index and last_index are 0 when there is no entry. tail: the newest entries, ascending.

    configurations: the log's own, (index, command), ascending.
    """

    first_index: int
    last_index: int
    tail: list[Entry]
    vote: Vote
    commit_index: int
    disk: Disk = Disk()
    peer_disk_ids: dict[str, str] = {}
    base: Base | None = None
    configurations: list[tuple[int, bytes]] = []


class Storage(Protocol):
    def load(self, *, tail_bytes_max: int) -> Loaded: ...

    def read(self, first_index: int, count: int) -> list[Entry]:
        """Durable entries; fewer than `count` where the log ends. Called on the loop's thread."""
        ...

    def write(self, changes: Sequence[Change]) -> None:
        """Make a group durable as one: on return it survives a power cut. May run in another thread."""
        ...

    def used_bytes(self) -> int: ...

    def close(self) -> None: ...


class Committer(Protocol):
    def run(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        """Run `work` off the loop, then `done` on the loop."""
        ...

    def close(self) -> None:
        """Wait for the work under way."""
        ...


class JournalRefused(RuntimeError):
    """The folder can't be used: another's, in use, or damaged. Nothing was changed."""

    code = "journal_refused"


class JournalBroken(RuntimeError):
    """The log would get a hole, or lose what may not be lost."""


def newest_of(bases: Sequence[Base]) -> Base:
    """Which of these configurations, in the log's order, holds: the newest of the highest generation."""
    return max(bases, key=lambda base: (base.configuration.generation, base.index))


def read_configuration(index: int, command: bytes) -> Base:
    """The configuration that an entry holds. Raises JournalRefused."""
    try:
        return Base(index, decode_configuration(command[len(CONFIGURATION) :]))
    except DecodeError as error:
        raise JournalRefused(f"entry {index} names the members in a way unknown here: {error}") from error


class Journal(LibraryJournal):  # type: ignore[misc]
    """See the module. The library indexes it by position (0 is the first entry), with ints and slices.

    on_synced(): a group became durable. on_failed(error): it did not; the member must leave.
    """

    def __init__(
        self,
        storage: Storage,
        committer: Committer,
        *,
        on_synced: Callable[[], None],
        on_failed: Callable[[BaseException], None],
        tail_bytes_max: int = 64 << 20,
    ) -> None:
        self._storage = storage
        self._committer = committer
        self._on_synced = on_synced
        self._on_failed = on_failed
        self._tail_bytes_max = tail_bytes_max
        loaded = storage.load(tail_bytes_max=tail_bytes_max)
        self._tail: list[Entry] = loaded.tail
        self._tail_bytes = sum(len(entry[0]) for entry in loaded.tail)
        self.first_index = loaded.first_index
        self.last_index = loaded.last_index
        self._first_entry: Entry | None = self.entry(loaded.first_index) if loaded.first_index else None
        self._vote = loaded.vote
        self._commit_index = loaded.commit_index
        self.disk = loaded.disk
        self.peer_disk_ids = dict(loaded.peer_disk_ids)
        self.on_configuration: Callable[[], None] = lambda: None
        self._bases: list[Base] = [] if loaded.base is None else [loaded.base]
        self._bases += [read_configuration(index, command) for index, command in loaded.configurations]
        self.durable_index = loaded.last_index
        self._pending: list[Change] = []
        self._votes_pending = 0  # votes, and joining, not yet durable: queued or under way
        self._busy = False
        self._busy_votes = 0
        self._busy_since = 0.0
        self._cut_index = 0  # what the group under way makes durable at most
        self._trim_index = loaded.first_index
        self._failed = False

    # -- what the library calls ------------------------------------------------------------------

    def add(self, command: bytes, idx: int, term: int) -> None:
        if self.last_index and idx != self.last_index + 1:
            raise JournalBroken(f"entry {idx} after {self.last_index}")
        entry = (bytes(command), idx, term)
        if not self.last_index:
            self.first_index, self._trim_index, self._first_entry = idx, idx, entry
        self._tail.append(entry)
        self._tail_bytes += len(entry[0])
        self.last_index = idx
        self._pending.append(Put(idx, term, entry[0]))
        if entry[0][:1] == CONFIGURATION:
            self._bases.append(read_configuration(idx, entry[0]))
            self.on_configuration()

    def clear(self) -> None:
        raise JournalBroken("nothing may clear the log")

    def deleteEntriesFrom(self, entryFrom: int) -> None:
        self.cut_from(self.first_index + entryFrom)

    def deleteEntriesTo(self, entryTo: int) -> None:
        raise JournalBroken("the library's own compaction is off")

    def __len__(self) -> int:
        return self.last_index - self.first_index + 1 if self.last_index else 0

    def __getitem__(self, item: int | slice) -> Any:
        if isinstance(item, slice):
            start, stop, step = item.indices(len(self))
            found = self.entries(self.first_index + start, self.first_index + stop)
            return found if step == 1 else found[::step]
        if item == -1 and self._tail:
            return self._tail[-1]
        if item == 0 and self._first_entry is not None:
            return self._first_entry
        index = (self.first_index if item >= 0 else self.last_index + 1) + item
        return self.entry(index)

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:
        self._vote = Vote(term, votedForNodeId)
        self._votes_pending += 1
        self._pending.append(self._vote)

    def getCurrentTerm(self) -> int:
        return self._vote.term

    def getVotedForNodeId(self) -> str | None:
        return self._vote.voted_for

    def join(self) -> None:
        """This disk takes part from now on. Like a vote: no message leaves before it is on disk."""
        self.disk = Disk(self.disk.disk_id, joined=True)
        self._votes_pending += 1
        self._pending.append(self.disk)

    def remember_disk(self, member: str, disk_id: str) -> None:
        self.peer_disk_ids[member] = disk_id
        self._pending.append(PeerDisks(dict(self.peer_disk_ids)))

    # -- who the members are ---------------------------------------------------------------------

    @property
    def base(self) -> Base | None:
        """The configuration in force: the newest in the log, committed or not. None on a journal that has none."""
        return newest_of(self._bases) if self._bases else None

    def base_at(self, index: int) -> Base:
        """The configuration in force after `index`, which is not below the first entry."""
        return newest_of([base for base in self._bases if base.index <= index])

    def begin_with(self, configuration: Configuration) -> None:
        """For a journal that has no configuration: this holds until the log says otherwise."""
        if not self._bases:
            self._begin_at(Base(0, configuration))

    def _begin_at(self, base: Base) -> None:
        self._bases = [base, *(later for later in self._bases if later.index > max(base.index, self.first_index))]
        self._pending.append(base)

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:
        self._commit_index = raftCommitIndex

    def getRaftCommitIndex(self) -> int:
        # What was stored may be older or, with lost entries, newer than the log.
        return max(self.first_index, min(self._commit_index, self.last_index))

    def _destroy(self) -> None:
        pass

    # -- by index --------------------------------------------------------------------------------

    def entry(self, index: int) -> Entry:
        """Raises IndexError below the first and above the last entry."""
        if not self.first_index <= index <= self.last_index:
            raise IndexError(f"entry {index} of {self.first_index}..{self.last_index}")
        offset = index - self.last_index + len(self._tail) - 1
        if offset >= 0:
            return self._tail[offset]
        return self._storage.read(index, 1)[0]

    def entries(self, start: int, stop: int) -> list[Entry]:
        """The entries start <= index < stop, as far as the log goes."""
        start = max(start, self.first_index)
        stop = min(stop, self.last_index + 1)
        if start >= stop:
            return []
        tail_first = self.last_index - len(self._tail) + 1
        if start >= tail_first:
            return self._tail[start - tail_first : stop - tail_first]
        older = self._storage.read(start, min(stop, tail_first) - start)
        return older + self._tail[: max(0, stop - tail_first)]

    def batch(self, start: int, *, bytes_max: int, count_max: int = 4096) -> list[Entry]:
        """The entries from `start` on that fit, at least one where there is one."""
        found: list[Entry] = []
        size = 0
        step = 64
        while len(found) < count_max:
            chunk = self.entries(start + len(found), start + len(found) + min(step, count_max - len(found)))
            for entry in chunk:
                size += len(entry[0])
                if size > bytes_max and found:
                    return found
                found.append(entry)
            if len(chunk) < step:
                return found
        return found

    def term_at(self, index: int) -> int:
        return self.entry(index)[2]

    @property
    def vote_pending(self) -> bool:
        """A term or vote is not on disk yet: no message that depends on it may leave."""
        return self._votes_pending > 0

    @property
    def commit_index(self) -> int:
        return self._commit_index

    @property
    def waits(self) -> bool:
        """Something is to be handed to the disk with the next flush."""
        return bool(self._pending)

    @property
    def sync_age(self) -> float:
        """Seconds since the group under way was handed to the disk; 0 when there is none."""
        return monotonic() - self._busy_since if self._busy else 0.0

    @property
    def used_bytes(self) -> int:
        return self._storage.used_bytes()

    def cut_from(self, index: int) -> None:
        """Drop every entry from `index` on: they conflict with the leader's."""
        if index > self.last_index:
            return
        if index <= self.first_index:
            raise JournalBroken(f"cut from {index} would drop the base {self.first_index}")
        keep = index - self.last_index + len(self._tail) - 1
        if keep > 0:
            self._tail_bytes -= sum(len(entry[0]) for entry in self._tail[keep:])
            del self._tail[keep:]
        else:
            self._tail = self._storage.read(index - 1, 1)
            self._tail_bytes = len(self._tail[0][0])
        self.last_index = index - 1
        self.durable_index = min(self.durable_index, self.last_index)
        self._cut_index = min(self._cut_index, self.last_index)
        self._pending.append(CutFrom(index))
        if self._bases and self._bases[-1].index >= index:
            self._bases = [base for base in self._bases if base.index < index]
            self.on_configuration()

    def trim_to(self, index: int) -> None:
        """Let entries below `index` go, a few with each group. The caller knows that nobody needs them."""
        self._trim_index = max(self._trim_index, min(index, self.durable_index, self._commit_index))

    def rebase(self, index: int, term: int, base: Base) -> None:
        """Start anew after `index`, which every full replica has stored. For a witness that lags too far.

        base: the configuration in force after `index`.
        """
        self._first_entry = (NO_OP, index, term)
        self._tail, self._tail_bytes = [self._first_entry], len(NO_OP)
        self.first_index = self.last_index = self._trim_index = index
        self.durable_index = self._cut_index = 0
        self._pending.append(StartAfter(index, term))
        self._bases = []
        self._begin_at(base)
        self.on_configuration()

    # -- to disk ---------------------------------------------------------------------------------

    def flush(self) -> None:
        """Hand what is pending to the disk, unless a group is under way: then it goes with the next."""
        if self._busy or self._failed:
            return
        self._trim_some()
        if not self._pending:
            return
        group, self._pending = self._pending, []
        group.append(Committed(self._commit_index))
        self._busy, self._busy_votes, self._busy_since = True, self._votes_pending, monotonic()
        self._cut_index = self.last_index
        self._committer.run(lambda: self._storage.write(group), self._done)

    def _done(self, error: BaseException | None) -> None:
        self._busy = False
        if error is not None:
            # After a failed sync nobody knows what is on disk. Nothing may be acknowledged any more.
            self._failed = True
            self._on_failed(error)
            return
        self._votes_pending -= self._busy_votes
        self.durable_index = max(self.durable_index, self._cut_index)
        self._shorten_tail()
        self._on_synced()

    def _trim_some(self) -> None:
        if self._trim_index <= self.first_index:
            return
        step = min(self._trim_index, self.first_index + TRIM_STEP)
        base = self.entry(step)
        in_tail = step - (self.last_index - len(self._tail) + 1)
        if in_tail > 0:
            self._tail_bytes -= sum(len(entry[0]) for entry in self._tail[:in_tail])
            del self._tail[:in_tail]
        self.first_index, self._first_entry = step, base
        self._pending.append(TrimTo(step))
        if sum(known.index <= step for known in self._bases) > 1:
            self._begin_at(self.base_at(step))

    def _shorten_tail(self) -> None:
        # Half is dropped at a time, so that the cost per entry stays constant.
        if self._tail_bytes <= 2 * self._tail_bytes_max:
            return
        tail_first = self.last_index - len(self._tail) + 1
        droppable = min(self.durable_index - tail_first, len(self._tail) - 1)
        drop = 0
        while drop < droppable and self._tail_bytes > self._tail_bytes_max:
            self._tail_bytes -= len(self._tail[drop][0])
            drop += 1
        del self._tail[:drop]

    def close(self) -> None:
        """Write what is pending, wait for it, close the storage. Blocks; for a clean stop only."""
        self._committer.close()
        if self._pending and not self._failed:
            self._storage.write([*self._pending, Committed(self._commit_index)])
        self._storage.close()
