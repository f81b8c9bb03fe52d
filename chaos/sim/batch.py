"""Many seeds: run them, add up what happened, judge the batch, and write it into the ledger of all runs."""

from __future__ import annotations

import multiprocessing
import platform
import signal
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from importlib.metadata import version
from multiprocessing.pool import AsyncResult, Pool
from pathlib import Path

import msgspec
from msgspec import Struct

import chaos.sim
import cluster.consensus
import statemachine
from chaos.commit import commit
from chaos.sim.engines import engine_named
from chaos.sim.faults import KINDS, TRAPS
from chaos.sim.quiet import quiet
from chaos.sim.run import Outcome, Run, draw_plan

REQUIRED = (
    "elections",
    "truncations",
    "crashes",
    *(f"crash_{trap}" for trap in TRAPS),
    *(f"fault_{kind}" for kind in KINDS),
    "unsynced_losses",
    "writes_done_at_crash",
    "left_for_disk",
    "late_deliveries",
    "doubled_messages",
    "wiped",
    "snapshots_sent",
    "snapshots_installed",
    "duplicate_connections",
    "transfers_done",
    "barred_by_clock",
    "pre_votes",
    "refused_disruption",
    "stale_reply",
    "commits_by_bare_majority",
    "flushes",
    "trimmed",
    "caretakers",
    "reads_by_leaders",
    "reads_by_followers",
    "acknowledged",
    "repeats",
    "timeouts",
    "refused",
    "changed_add",
    "changed_promote",
    "changed_demote",
    "changed_remove",
    "change_not_yet",
    "change_refused",
    "configurations_truncated",
    "demoted_away",
    "promoted_back",
    "retired",
    "campaigns_of_removed",
)
"""What must have happened in a batch of the hardened engine; where one is zero the batch proves nothing."""

AHEAD = 4
"""So many seeds are given out for each process: one that takes long must not leave the others idle."""


class Entry(Struct, frozen=True):
    """One line of the ledger."""

    at: str
    engine: str
    verdict: str
    first_seed: int
    seeds: int
    shape: str | None
    virtual_hours: float
    cpu_s: float
    broken: dict[str, int]
    broken_seeds: list[int]
    missing: list[str]
    counters: dict[str, int]
    versions: dict[str, str]


class Batch:
    """Adds up outcomes."""

    def __init__(self, engine: str, first_seed: int, shape: str | None) -> None:
        self.engine = engine
        self.first_seed = first_seed
        self.shape = shape
        self.seeds = 0
        self.virtual_us = 0
        self.cpu_s = 0.0
        self.counters: Counter[str] = Counter()
        self.broken: list[Outcome] = []

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.virtual_us += outcome.virtual_us
        self.cpu_s += outcome.cpu_s
        self.counters.update(outcome.counters)
        if outcome.broken:
            self.broken.append(outcome)

    @property
    def missing(self) -> list[str]:
        """What never happened, in a batch of more than one seed of our own engine."""
        if self.engine != "hardened" or self.seeds == 1:
            return []
        return [name for name in REQUIRED if not self.counters[name]]

    @property
    def verdict(self) -> str:
        return "fail" if self.broken else "invalid" if self.missing else "pass"

    @property
    def speed(self) -> float:
        """Simulated seconds for each second of CPU."""
        return self.virtual_us / 1e6 / self.cpu_s if self.cpu_s else 0.0

    def entry(self) -> Entry:
        return Entry(
            at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            engine=self.engine,
            verdict=self.verdict,
            first_seed=self.first_seed,
            seeds=self.seeds,
            shape=self.shape,
            virtual_hours=round(self.virtual_us / 3.6e9, 4),
            cpu_s=round(self.cpu_s, 1),
            broken=dict(Counter(outcome.broken for outcome in self.broken)),
            broken_seeds=[outcome.seed for outcome in self.broken][:100],
            missing=self.missing,
            counters=dict(sorted(self.counters.items())),
            versions=versions(),
        )


@quiet()
def one(task: tuple[int, str, str | None]) -> Outcome:
    """Run one seed; for worker processes too."""
    seed, engine, shape = task
    return Run(draw_plan(seed, shape), engine_named(engine)).play()


def outcomes(engine: str, seeds: Iterable[int], shape: str | None, jobs: int) -> Iterator[Outcome]:
    """In the order of the seeds, whatever the number of processes. Closing it ends the processes at once."""
    tasks = ((seed, engine, shape) for seed in seeds)
    if jobs == 1:
        yield from map(one, tasks)
        return
    with workers(jobs) as pool:
        ahead: deque[AsyncResult[Outcome]] = deque()
        for task in tasks:
            ahead.append(pool.apply_async(one, (task,)))
            if len(ahead) == AHEAD * jobs:
                yield ahead.popleft().get()
        while ahead:
            yield ahead.popleft().get()


@contextmanager
def workers(jobs: int) -> Iterator[Pool]:
    """Processes that leave an interrupt to this one, from their first instruction on; they end with the block."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        pool = multiprocessing.get_context("spawn").Pool(jobs)
    finally:
        signal.signal(signal.SIGINT, before)
    with pool:
        yield pool


def versions() -> dict[str, str]:
    """What was run: the commit, and a digest of the sources as they were, for trees that are ahead of it."""
    folders = (Path(str(room.__path__[0])) for room in (chaos.sim, cluster.consensus, statemachine))
    whole = blake2b(digest_size=8)
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            whole.update(path.read_bytes())
    return {
        "commit": commit(),
        "sources": whole.hexdigest(),
        "tiebreak": version("tiebreak"),
        "pysyncobj": version("pysyncobj"),
        "python": platform.python_version(),
    }


def append(path: Path, entry: Entry) -> None:
    with path.open("ab") as ledger:
        ledger.write(msgspec.json.encode(entry) + b"\n")


def read(path: Path) -> list[Entry]:
    """Raises msgspec.DecodeError for a line that is no entry."""
    if not path.exists():
        return []
    return [msgspec.json.decode(line, type=Entry) for line in path.read_bytes().splitlines() if line]
