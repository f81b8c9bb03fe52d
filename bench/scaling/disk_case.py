"""The benchmark of a member's disk over days: journal, store, history and sealed segments, as each day is sealed."""

import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from msgspec import Struct

from bench import host, progress
from bench.replay import START_US
from bench.report import Curve, Figure, Report, exactly
from bench.running import RunError
from bench.scaling.applying import CLUSTER_ID, MEMBER, Applying
from bench.scaling.points import check_sizes
from bench.scaling.traffic import Traffic
from bench.scaling.world import World, fill
from cluster.consensus.audited import REGULAR
from cluster.consensus.journal import Change, Committed, Put, TrimTo
from cluster.consensus.storage import LmdbStorage
from statemachine.inspection import inspect_store
from statemachine.machine import Machine
from statemachine.store import Store
from statemachine.store_files import DATA_FILE
from statemachine.store_rows import DAY_US

DAYS = 3
LOOKS_A_DAY = 4
BATCH = 50
TERM = 1
FLUSH_COMMANDS = 5_000
GROUP = 10
"""Entries that one sync of the journal holds."""
LOG_RESERVE = 500
"""Entries that the journal keeps below what is stored; a member keeps 10,000."""
WORLD = World(10_000, 10, 1_000, start_us=START_US // DAY_US * DAY_US)
SEALED = " (sealed)"
FREE = "free pages of the store's file"
JOURNAL = "journal, in use"
JOURNAL_FREE = "free pages of the journal's file"
STATE = "current records"
"""Accounts, open orders and what else is small; the state itself, which does not grow with history."""


class Look(Struct, frozen=True):
    """What is on disk after so many days; a look at the end of a day comes before its sealing, and another after it."""

    days: float
    sealed: bool
    orders: int
    kinds: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.kinds.values())

    @property
    def words(self) -> str:
        return f"{self.days:g}{'+' if self.sealed else ''}"

    def part(self, kinds: Iterable[str]) -> int:
        return sum(self.kinds.get(kind, 0) for kind in kinds)


def disk_growth(folder: Path, *, commands: int = 150_000, days: int = DAYS, seed: int = 1) -> Report:
    """A member's bytes on disk by kind over days of the machine's time, before and after each day is sealed."""
    began = time.monotonic()
    place = folder / "disk-growth"
    check_sizes(place, [WORLD])
    member = _Member(place, seed, commands // days // LOOKS_A_DAY // BATCH)
    looks: list[Look] = []
    try:
        with progress.steps("disk-growth", days * LOOKS_A_DAY) as begin:
            for number in range(1, days * LOOKS_A_DAY + 1):
                begin(f"day {number / LOOKS_A_DAY:g}")
                member.trade()
                looks.append(member.look(number / LOOKS_A_DAY, sealed=False))
                if number % LOOKS_A_DAY == 0:
                    member.seal()
                    looks.append(member.look(number / LOOKS_A_DAY, sealed=True))
        copied = member.copied_bytes()
    finally:
        member.close()
    findings = inspect_store(place / "store").findings
    last = looks[-1]
    return Report(
        benchmark="disk-growth",
        figures=[
            *_figures(looks),
            Figure("a compacted copy of the store at the end", copied / 2**20, "MiB"),
            Figure("  for a new order of all days, its segments included", copied / last.orders, "B"),
            exactly("findings of the audit", len(findings), 0),
            Figure("new orders", last.orders),
        ],
        settings={
            "commands": commands,
            "days": days,
            "batch": BATCH,
            "log_reserve": LOG_RESERVE,
            "accounts": WORLD.accounts,
            "symbols": WORLD.symbols,
            "seed": seed,
        },
        host=host.describe(folder),
        seconds=time.monotonic() - began,
        notes=[
            "days are those of the machine's time, the traffic of each spread evenly; keys and results live for a day",
            "in use: pages of LMDB; free pages are used before a file grows; sealed: compressed files of days past",
            f"the journal keeps {LOG_RESERVE} entries below what is stored here, 10,000 in a member: its part does not "
            "grow with time, but with that setting and the size of entries",
        ],
        curves=_curves(looks),
    )


class _Member:
    """Journal, store and machine of one member, driven by the clock of its batches."""

    def __init__(self, place: Path, seed: int, batches_a_look: int) -> None:
        if batches_a_look < 1:
            raise RunError(f"too few commands: each look needs {BATCH} at least")
        self._place = place
        self._batches = batches_a_look
        self._traffic = Traffic(WORLD, seed=seed)
        # Midnight, so that a day of traffic is a day of history.
        self._batch_us = DAY_US // (batches_a_look * LOOKS_A_DAY)
        self._store = Store(place / "store", cluster_id=CLUSTER_ID, member=MEMBER)
        fill(self._store, WORLD)
        self._store.close()
        self._store = Store(place / "store", cluster_id=CLUSTER_ID, member=MEMBER)
        self._applying = Applying(self._store, Machine(self._store, self._store.load()))
        self._journal = LmdbStorage(place / "journal", cluster_id=CLUSTER_ID, member=MEMBER)
        self._index = 0

    def trade(self) -> None:
        """The traffic of one look: logged, applied, flushed, and the log trimmed behind what is stored."""
        changes: list[Change] = []
        payloads = self._traffic.batches(self._batches * BATCH, BATCH, batch_us=self._batch_us)
        for payload in payloads:
            self._index += 1
            changes.append(Put(self._index, TERM, REGULAR + payload))
            if len(changes) == GROUP:
                self._journal.write([*changes, Committed(self._index)])
                changes.clear()
            self._applying.apply(self._index, payload)
            if self._index % (FLUSH_COMMANDS // BATCH) == 0:
                self._flush()
        if changes:
            self._journal.write([*changes, Committed(self._index)])
        if self._applying.refused:
            raise RunError(f"the rules refused what traffic counts on: {self._applying.refused}")
        self._flush()

    def _flush(self) -> None:
        self._applying.flush_all()
        kept = self._store.stored_index - LOG_RESERVE
        if kept > 1:
            self._journal.write([TrimTo(kept)])

    def seal(self) -> None:
        """What a member does within a minute after midnight: the first batch of the new day, then the day's files."""
        self._index += 1
        payload = next(self._traffic.batches(1, 1, batch_us=self._batch_us))
        self._journal.write([Put(self._index, TERM, REGULAR + payload), Committed(self._index)])
        self._applying.apply(self._index, payload)
        self._flush()
        self._store.seal_and_prune()
        self._index += 1
        # Pages that a seal freed can be used from the next but one transaction on; a member flushes all the time.
        payload = next(self._traffic.batches(1, 1, batch_us=1))
        self._journal.write([Put(self._index, TERM, REGULAR + payload), Committed(self._index)])
        self._applying.apply(self._index, payload)
        self._flush()

    def look(self, days: float, *, sealed: bool) -> Look:
        kinds: dict[str, int] = {}
        for kind, size in self._store.bytes_on_disk().items():
            shown = kind if kind in _SHOWN or kind.endswith(SEALED) else STATE
            kinds[shown] = kinds.get(shown, 0) + size
        tables = sum(size for kind, size in kinds.items() if not kind.endswith(SEALED))
        kinds[FREE] = max(0, _file_bytes(self._place / "store" / DATA_FILE) - tables)
        kinds[JOURNAL] = self._journal.used_bytes()
        kinds[JOURNAL_FREE] = max(0, _file_bytes(self._place / "journal" / DATA_FILE) - kinds[JOURNAL])
        return Look(days, sealed, self._traffic.placed + self._traffic.taken, kinds)

    def copied_bytes(self) -> int:
        """Bytes of a compacted copy, as a snapshot for another member is: no free pages."""
        with closing(self._store.pin()) as pinned:
            pinned.copy_to(self._place / "copy")
        return sum(file.stat().st_size for file in (self._place / "copy").rglob("*") if file.is_file())

    def close(self) -> None:
        self._applying.stop()
        self._journal.close()
        self._store.close()


HISTORY = ("ledger", "trades", "closed_orders", "events")
PAST = tuple(kind + SEALED for kind in HISTORY)
PARTS = {
    STATE: (STATE,),
    "keys and results": ("keys", "results"),
    "history of days not sealed": HISTORY,
    "sealed segments": PAST,
    JOURNAL: (JOURNAL,),
    "free pages": (FREE, JOURNAL_FREE),
}
_SHOWN = ("keys", "results", *HISTORY)


def _file_bytes(path: Path) -> int:
    return path.stat().st_blocks * 512


def _kinds(looks: list[Look]) -> list[str]:
    found = dict.fromkeys(kind for look in looks for kind in look.kinds)
    return [kind for kind in found if any(look.kinds.get(kind) for look in looks)]


def _figures(looks: list[Look]) -> Iterator[Figure]:
    for look in looks:
        if look.days == int(look.days):
            name = f"day {look.days:g}, {'after' if look.sealed else 'before'} it was sealed"
            yield Figure(f"{name}: the member's files", look.total / 2**20, "MiB")
            yield Figure("  for a new order of all days", look.total / look.orders, "B")
    last = looks[-1]
    for kind in _kinds(looks):
        yield Figure(f"at the end, for a new order of all days: {kind}", last.kinds.get(kind, 0) / last.orders, "B")


def _curves(looks: list[Look]) -> list[Curve]:
    words: list[float | str] = [look.words for look in looks]
    stacks = [
        Curve(
            picture,
            "stacked",
            series,
            words,
            [look.part(kinds) / 2**20 for look in looks],
            "day of the machine's time, + when it was sealed",
            "MiB",
        )
        for picture, stacked in (("on disk", PARTS), ("history on disk", {kind: (kind,) for kind in (*HISTORY, *PAST)}))
        for series, kinds in stacked.items()
    ]
    orders: list[float | str] = [float(look.orders) for look in looks]
    each = [
        Curve(
            "on disk for a new order of all days",
            "line",
            series,
            orders,
            [sum(size for kind, size in look.kinds.items() if wanted(kind)) / look.orders for look in looks],
            "new orders so far",
            "B",
        )
        for series, wanted in (
            ("all", lambda _: True),
            ("without free pages", lambda kind: kind not in (FREE, JOURNAL_FREE)),
            ("sealed segments", lambda kind: kind.endswith(SEALED)),
            ("journal, in use", lambda kind: kind == JOURNAL),
        )
    ]
    return [*stacks, *each]
