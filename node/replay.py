"""Plays a stopped member's log again and says whether its store is what the log gives, and whose digests differ.

Where two replicas disagree, each may be the wrong one. The log is the same on both and the rules have no choice, so
whoever differs from a fresh replay is wrong.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from msgspec import Struct

from cluster.consensus.audited import REGULAR
from cluster.consensus.storage import LmdbStorage
from statemachine.codec import decode_batch, decode_command
from statemachine.commands import ReportDigest
from statemachine.inspection import Inspection, opened, state_digest
from statemachine.machine import Machine
from statemachine.records import Applied
from statemachine.store import Store
from statemachine.store_files import DATA_FILE, SEGMENTS_FOLDER

READ_ENTRIES = 500
FLUSH_BYTES = 8 << 20
_UNKEYED = ("", "")


class ReplayRefused(Exception):
    """There is nothing that could be replayed; the message says what is missing."""


class Reporter(Struct, frozen=True):
    """What one member's digests in the log are worth. same_until, differs_at: log indexes, 0 when there is none."""

    member: str
    same_until: int = 0
    differs_at: int = 0


class Replayed(Struct, frozen=True):
    """from_index: the replay began behind it, 0 with nothing. to_index: the last entry that was replayed."""

    from_index: int
    to_index: int
    stored_index: int
    digest: str
    stored_digest: str
    state_same: bool
    reporters: list[Reporter]

    @property
    def same(self) -> bool:
        """Whether the store holds what the log gives: answers and events (the digest), and every record."""
        return self.digest == self.stored_digest and self.state_same

    @property
    def holds(self) -> bool:
        return self.same and not any(one.differs_at for one in self.reporters)


def replay(data_dir: Path, found: Inspection, *, base: Path | None = None) -> Replayed:
    """Replay the log of a stopped member in a temporary folder. Nothing of the member is changed.

    found: the audit of its store. base: a store to begin from, where the log no longer begins at its beginning: that
    of another replica, or a backup, that stands at an earlier index than this one's.

    Raises ReplayRefused, JournalRefused, StoreError.
    """
    journal = data_dir / "journal"
    if not journal.is_dir():
        raise ReplayRefused(f"{data_dir} has no journal to replay")
    log = LmdbStorage(journal, cluster_id=found.cluster_id, member=found.member)
    try:
        with TemporaryDirectory(prefix="tiebreak-replay-") as temporary:
            return _Replay(log, found, Path(temporary) / "store", base).run()
    finally:
        log.close()


class _Replay:
    def __init__(self, log: LmdbStorage, found: Inspection, folder: Path, base: Path | None) -> None:
        self._log = log
        self._found = found
        self._folder = folder
        self._member = found.member
        self._digests: dict[int, bytes] = {}
        self._reporters: dict[str, Reporter] = {}
        loaded = log.load(tail_bytes_max=0)
        if not found.applied_index:
            raise ReplayRefused("the store holds nothing yet: there is nothing to compare with")
        self._committed_index = min(max(loaded.commit_index, found.applied_index), loaded.last_index)
        self._from_index = self._copy(base) if base is not None else 0
        if loaded.first_index > self._from_index + 1:
            raise ReplayRefused(
                f"the log begins at entry {loaded.first_index}, the replay would begin at {self._from_index + 1}: "
                f"name a store that stands at {loaded.first_index - 1} or later, and not behind "
                f"{found.applied_index}: another replica's, or a backup"
            )
        if self._from_index > found.applied_index:
            raise ReplayRefused(
                f"the base stands at index {self._from_index}, this store at {found.applied_index}: replay the other "
                "way round"
            )

    def _copy(self, base: Path) -> int:
        """Put a copy of the base where the replay goes on; returns its index."""
        with opened(base) as view:  # holds its lock: it is stopped
            identity, meta = view.identity, view.meta
            self._folder.mkdir(parents=True)
            shutil.copyfile(base / DATA_FILE, self._folder / DATA_FILE)
            shutil.copytree(base / SEGMENTS_FOLDER, self._folder / SEGMENTS_FOLDER)
        if identity is None or identity.cluster_id != self._found.cluster_id:
            raise ReplayRefused(
                f"{base} is of cluster {identity.cluster_id if identity else '?'}, not of {self._found.cluster_id}"
            )
        self._member = identity.member
        return meta.applied_index if meta is not None else 0

    def run(self) -> Replayed:
        stored_index = self._found.applied_index
        digest = self._play(stored_index)
        same = state_digest(self._folder) == self._found.state_digest
        self._play(self._committed_index)
        return Replayed(
            self._from_index,
            max(stored_index, self._committed_index),
            stored_index,
            digest.hex(),
            self._found.digest,
            same,
            sorted(self._reporters.values(), key=lambda one: one.member),
        )

    def _play(self, to_index: int) -> bytes:
        """Apply what is committed up to an index, as a member that starts again would. Returns the digest there."""
        store = Store(self._folder, cluster_id=self._found.cluster_id, member=self._member)
        try:
            machine = Machine(store, store.load())
            for index, payload in self._entries(machine.applied_index + 1, to_index):
                applied = machine.apply(index, payload)
                store.add(applied)
                self._digests[index] = machine.digest
                if _UNKEYED in applied.scopes_and_keys:
                    self._compare(applied, payload)
                if store.pending_bytes >= FLUSH_BYTES:
                    store.flush(machine.collect())
            if machine.applied_index > store.stored_index:
                store.flush(machine.collect())
            return machine.digest
        finally:
            store.close()

    def _entries(self, first: int, last: int) -> Iterator[tuple[int, bytes]]:
        while first <= last:
            found = self._log.read(first, min(READ_ENTRIES, last - first + 1))
            if not found:
                raise ReplayRefused(f"entry {first} is not in the log, which should reach to {last}")
            for command, index, _ in found:
                if command[:1] == REGULAR:
                    yield index, command[1:]
            first = found[-1][1] + 1

    def _compare(self, applied: Applied, payload: bytes) -> None:
        """Hold the digests that members reported against ours."""
        for envelope in decode_batch(payload).commands:
            report = None if envelope.key else decode_command(envelope.body)
            if not isinstance(report, ReportDigest):
                continue
            ours = self._digests.get(report.digest_index)
            before = self._reporters.get(report.member, Reporter(report.member))
            if ours is None or before.differs_at:
                self._reporters[report.member] = before
            elif ours == report.digest:
                self._reporters[report.member] = Reporter(report.member, report.digest_index)
            else:
                self._reporters[report.member] = Reporter(report.member, before.same_until, report.digest_index)
