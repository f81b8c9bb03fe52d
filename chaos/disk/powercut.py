"""Cuts the power under a writer, again and again, and has what is left judged."""

import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

from msgspec import Struct

from chaos.disk.children import Failed, Judge, Writer
from chaos.disk.inject import EXIT_STORE_FAILED
from chaos.disk.judge import Question, Verdict
from chaos.disk.mounts import LoopDisk, loop_disk
from cluster.consensus.settings import EXIT_DISK_FAILED

FRESH_EVERY = 8
"""So many cuts age one folder; then a new one begins, and the first cut comes while it is made."""
CUT_AFTER_S_MAX = 0.4
LYING = "lying-sync"
"""A mutant of the disk: it says that it synced, and did not."""
LIES = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", "inject=fdatasync:retval=0")


class Cut(Struct, frozen=True):
    """One cut. acked_steps: how many steps this life had said to be durable. left: how the writer ended."""

    number: int
    kind: str
    fresh: bool
    after_ms: int
    acked_steps: int
    begun_steps: int
    left: str
    verdict: Verdict


class Cuts(Struct):
    """A run of cuts, added up."""

    fs: str
    seed: int
    mutant: str = "none"
    cuts: int = 0
    by_kind: dict[str, int] = {}
    lost: int = 0
    unopenable: int = 0
    fresh: int = 0
    acked_steps: int = 0
    mid_write: int = 0
    left: dict[str, int] = {}
    seconds: float = 0.0
    failures: list[str] = []

    def add(self, cut: Cut) -> None:
        self.cuts += 1
        self.by_kind = dict(Counter(self.by_kind) + Counter([cut.kind]))
        self.left = dict(Counter(self.left) + Counter([cut.left]))
        self.fresh += cut.fresh
        self.acked_steps += cut.acked_steps
        self.mid_write += cut.begun_steps > cut.acked_steps
        self.lost += cut.verdict.outcome == "lost"
        self.unopenable += cut.verdict.outcome == "unopenable"
        if not cut.verdict.holds:
            self.failures.append(f"cut {cut.number} ({cut.kind}, after {cut.after_ms} ms): {cut.verdict.detail}")


class _Track:
    """A folder that grows old under cuts, and its lives."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.turns = 0
        self.folder = Path()
        self.seed = 0
        self.lives = [0]

    def next(self, root: Path, seed: int, number: int) -> bool:
        """True: the folder is new, and not made yet."""
        fresh = self.turns % FRESH_EVERY == 0
        if fresh:
            self.folder, self.seed, self.lives = root / f"{self.kind}-{number}", seed * 1_000 + number, [0]
        self.turns += 1
        return fresh

    def question(self, acked: int, begun: int) -> Question:
        return Question(self.kind, str(self.folder), self.seed, self.lives, acked, begun)

    def settle(self, verdict: Verdict) -> None:
        if verdict.holds:
            self.lives.append(verdict.step)
        else:
            self.turns = 0


def cut_power(fs: str, count: int, seed: int, *, mutant: str = "none") -> Iterator[Cut]:
    """So many cuts on one new file system. Two of three are under a journal: it is what acknowledges.

    Call mounts.own_mounts first. Raises Failed when the tool itself can't go on.
    """
    random = Random(seed)
    journal, store = _Track("journal"), _Track("store")
    with loop_disk(fs) as disk, Judge() as judge:
        for number in range(1, count + 1):
            track = store if number % 3 == 0 else journal
            fresh = track.next(disk.path, seed, number)
            cut = _cut_once(disk, judge, track, fresh, random.random() * CUT_AFTER_S_MAX, number, mutant)
            track.settle(cut.verdict)
            yield cut


def _cut_once(
    disk: LoopDisk, judge: Judge, track: _Track, fresh: bool, after_s: float, number: int, mutant: str
) -> Cut:
    lies, mutant = (LIES, "none") if mutant == LYING else ((), mutant)
    with Writer(track.kind, track.folder, track.seed, track.lives, mutant=mutant, prefix=lies) as writer:
        if fresh:
            _wait_for(track.folder, writer)
            after_s /= 8
        elif not writer.opened.wait(30):
            raise Failed(f"the writer does not open {track.folder}: {writer.talk()}")
        time.sleep(after_s)
        disk.cut()
        left = _how(writer.wait())
        talk = writer.talk()
        acked, begun = writer.acked, writer.begun
    if left == "by itself":
        raise Failed(f"the writer had ended before the cut: {talk}")
    disk.unmount()
    disk.mount()
    verdict = judge.ask(track.question(acked, begun))
    start = track.lives[-1]
    return Cut(number, track.kind, fresh, int(after_s * 1000), acked - start, begun - start, left, verdict)


def _wait_for(folder: Path, writer: Writer) -> None:
    """Until the folder is there: the cut is to come while it is filled for the first time."""
    deadline = time.monotonic() + 30
    while not folder.exists():
        if time.monotonic() > deadline or writer.process.poll() is not None:
            raise Failed(f"the writer does not make {folder}: {writer.talk()}")
        time.sleep(0.001)


def _how(code: int) -> str:
    if code < 0:
        return signal.Signals(-code).name
    if code == 0:
        return "by itself"
    named = {EXIT_DISK_FAILED: "journal failed", EXIT_STORE_FAILED: "store failed", 1: "could not start"}
    return f"{named.get(code, 'unexpected')} ({code})"
