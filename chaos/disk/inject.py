"""Makes chosen system calls of a writer fail, lie, wait or kill it (strace), and looks at how it leaves and at what."""

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from msgspec import Struct

from chaos.disk.children import Judge, Writer
from chaos.disk.judge import Question, Verdict
from cluster.consensus.settings import EXIT_DISK_FAILED

EXIT_COULD_NOT_START = 1
EXIT_STORE_FAILED = 73
KILLED = -9
CALLS = "fdatasync,fsync,pwrite64,pwritev,writev"
LAST_STEPS = 200
"""A writer takes so many steps when nothing stops it."""


class Fault(Struct, frozen=True):
    """At the nth of these calls, or at each, this happens. what: strace's words for it."""

    name: str
    calls: str
    what: str
    each: bool = False

    def words(self, nth: int) -> str:
        return f"inject={self.calls}:{self.what}:when={nth}{'+' if self.each else ''}"


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("eio-at-sync", "fdatasync", "error=EIO"),
        Fault("eio-at-write", "pwrite64,pwritev,writev", "error=EIO"),
        Fault("full-at-write", "pwrite64,pwritev,writev", "error=ENOSPC", each=True),
        Fault("kill-at-write", "pwrite64,pwritev,writev", "signal=KILL"),
        Fault("kill-at-sync", "fdatasync", "signal=KILL"),
        Fault("slow-sync", "fdatasync", "delay_enter=50000", each=True),
    )
}


class Injected(Struct, frozen=True):
    """One run with one fault. said_after: what it acknowledged after the call that failed. wrong: empty when it is
    as it should be. sync_ms: the middle time from one acknowledgement to the next."""

    kind: str
    fault: str
    nth: int
    exit_code: int
    acked: int
    said_after: int
    sync_ms: float
    verdict: Verdict
    wrong: str


def inject(
    kind: str, fault: Fault, nth: int, *, seed: int = 1, mutant: str = "none", steps: int = LAST_STEPS
) -> Injected:
    """Raises children.Failed when the tool itself can't go on."""
    with tempfile.TemporaryDirectory(prefix="tiebreak-disk-") as name, Judge() as judge:
        folder, log = Path(name) / "folder", Path(name) / "log"
        prefix = ["strace", "-f", "-qq", "-s", "32", "-o", str(log), "-e", f"trace={CALLS},write"]
        prefix += ["-e", fault.words(nth)]
        with Writer(kind, folder, seed, [0], steps=steps, inline=True, mutant=mutant, prefix=prefix) as writer:
            code = writer.wait(120)
            opened = bool(writer.acked_at)
            times = [at for _, at in writer.acked_at]
            acked, begun = writer.acked, writer.begun
        said_after, struck = _after_the_fault(log.read_text("ascii", "replace").splitlines(), code)
        verdict = judge.ask(Question(kind, str(folder), seed, [0], acked, begun, goes_on=True))
    gaps = [1000 * (after - before) for before, after in pairwise(times)]
    wrong = _wrong(kind, fault, code, opened, struck, said_after, verdict)
    middle = round(statistics.median(gaps), 1) if gaps else 0.0
    return Injected(kind, fault.name, nth, code, acked, said_after, middle, verdict, wrong)


def _after_the_fault(lines: Sequence[str], code: int) -> tuple[int, bool]:
    """How often 'acked' was said after the first failed call; and whether there was one at all."""
    struck = [number for number, line in enumerate(lines) if "(INJECTED)" in line or "(DELAYED)" in line]
    if not struck:
        return 0, code == KILLED
    return sum('write(1, "acked' in line for line in lines[struck[0] :]), True


def _wrong(kind: str, fault: Fault, code: int, opened: bool, struck: bool, said_after: int, verdict: Verdict) -> str:
    if not struck:
        return "the fault never struck"
    if not verdict.holds:
        return f"{verdict.outcome}: {verdict.detail}"
    if fault.what.startswith("delay"):
        return "" if code == 0 else f"it left with {code}"
    leaves = {"journal": EXIT_DISK_FAILED, "store": EXIT_STORE_FAILED}[kind]
    wanted = KILLED if "KILL" in fault.what else leaves if opened or kind == "store" else EXIT_COULD_NOT_START
    if code != wanted:
        return f"it left with {code}, not {wanted}"
    return f"it acknowledged {said_after} times after the call that failed" if said_after else ""


def _nths(name: str, places: int) -> range:
    """A fault that strikes each call and only makes it wait needs one place."""
    return range(1, 2) if FAULTS[name].what.startswith("delay") else range(1, places + 1)


def sweep_size(names: Sequence[str], places: int, kinds: Sequence[str] = ("journal", "store")) -> int:
    return len(kinds) * sum(len(_nths(name, places)) for name in names)


def sweep(
    names: Sequence[str], places: int, *, kinds: Sequence[str] = ("journal", "store"), mutant: str = "none"
) -> Iterator[Injected]:
    """Each fault at each place, on each kind."""
    for kind in kinds:
        for name in names:
            for nth in _nths(name, places):
                yield inject(kind, FAULTS[name], nth, mutant=mutant)
