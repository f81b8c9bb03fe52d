"""Traces one run of a writer, and has every disk judged that a power cut could have left."""

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from chaos.disk.children import Failed, Judge, Writer
from chaos.disk.crashstates import states
from chaos.disk.judge import Question
from chaos.disk.tracing import MakeFile, MakeFolder, Operation, Said, Write, read_trace, strace

BEGINNINGS = ("new", "killed", "copied")
"""new: the folder is made under way. killed: a first process was killed while it made it, at its nth write.
copied: somebody put a copy of a folder there, from a backup say, and nothing of that is synced."""
FIRST_STEPS = 20
KILLS = range(1, 8)
MEMORY = Path("/dev/shm")  # noqa: S108 - a folder with a name of its own is made there
ROOT, FOLDER = "root", "here"
STORES_MAX = 50


class Enumerated(Struct):
    """What the judge said of each state. examples: the first of each kind of failure."""

    kind: str
    beginning: str
    mutant: str
    calls: int = 0
    states: int = 0
    holds: int = 0
    lost: int = 0
    unopenable: int = 0
    seconds: float = 0.0
    examples: list[str] = []

    @property
    def passes(self) -> bool:
        return self.states > 0 and self.holds == self.states


class Run(Struct, frozen=True):
    """What was done to the folder, and the lives that did it."""

    operations: list[Operation]
    lives: list[int]
    start: int = 0
    """Cuts before this operation are not looked at."""


def enumerate_states(
    kind: str,
    *,
    beginning: str = "new",
    steps: int = 40,
    seed: int = 1,
    mutant: str = "none",
    per_point_max: int = 24,
    kills: Sequence[int] = KILLS,
    step: Callable[[], None] = lambda: None,
) -> Enumerated:
    """Judge the states of one run, or, of the beginning `killed`, of one for each of `kills`. step: told of each state.

    Raises Failed when the tool itself can't go on.
    """
    began = time.monotonic()
    result = Enumerated(kind, beginning, mutant)
    seen: Counter[str] = Counter()
    with _scratch() as scratch, Judge(stores_max=STORES_MAX) as judge:
        for run in _runs(scratch, judge, kind, beginning, steps, seed, mutant, kills):
            result.calls += len(run.operations)
            for state in states(run.operations, seed=seed, per_point_max=per_point_max, start=run.start):
                place = scratch / "state"
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
                state.build(place)
                verdict = judge.ask(
                    Question(kind, str(place / FOLDER), seed, run.lives, state.acked, state.begun, goes_on=True)
                )
                result.states += 1
                seen[verdict.outcome] += 1
                if not verdict.holds and seen[verdict.outcome] <= 3:
                    result.examples.append(f"{verdict.outcome}, {state.what}: {verdict.detail}")
                step()
    result.holds, result.lost, result.unopenable = seen["holds"], seen["lost"], seen["unopenable"]
    result.seconds = round(time.monotonic() - began, 1)
    return result


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder in memory where there is one: states are written by the thousand."""
    with tempfile.TemporaryDirectory(prefix="tiebreak-disk-", dir=MEMORY if MEMORY.is_dir() else None) as path:
        yield Path(path)


def _runs(
    scratch: Path, judge: Judge, kind: str, beginning: str, steps: int, seed: int, mutant: str, kills: Sequence[int]
) -> Iterator[Run]:
    if beginning == "new":
        root = _new_root(scratch, "new")
        yield Run(_traced(root, kind, seed, [0], steps, mutant), [0])
    elif beginning == "copied":
        root = _new_root(scratch, "copied")
        with Writer(kind, root / FOLDER, seed, [0], steps=FIRST_STEPS, inline=True) as writer:
            _expect(writer, 0)
        copied = list(_copied(root))
        lives = [0, FIRST_STEPS]
        sizes = {one.path: len(one.data) for one in copied if isinstance(one, Write)}
        operations = [*copied, *_traced(root, kind, seed, lives, FIRST_STEPS + steps, mutant, sizes)]
        # Before it opened the folder and said so, nobody had promised anything.
        opened = next(number for number, one in enumerate(operations) if isinstance(one, Said))
        yield Run(operations, lives, opened + 1)
    else:
        for number in kills:
            root = _new_root(scratch, f"killed-{number}")
            sizes = {}
            first = _traced(root, kind, seed, [0], steps, mutant, sizes, kill_at=number)
            twin = scratch / "twin"
            shutil.rmtree(twin, ignore_errors=True)
            shutil.copytree(root, twin)
            verdict = judge.ask(Question(kind, str(twin / FOLDER), seed, [0], 0, steps))
            if not verdict.holds:
                raise Failed(f"after a kill at write {number}: {verdict.outcome}, {verdict.detail}")
            lives = [0, verdict.step]
            yield Run([*first, *_traced(root, kind, seed, lives, verdict.step + 3, mutant, sizes)], lives)


def _new_root(scratch: Path, name: str) -> Path:
    root = scratch / name / ROOT
    root.mkdir(parents=True)
    return root


def _traced(
    root: Path,
    kind: str,
    seed: int,
    lives: list[int],
    steps: int,
    mutant: str,
    sizes: dict[str, int] | None = None,
    *,
    kill_at: int = 0,
) -> list[Operation]:
    log = root.parent / f"trace-{len(lives)}"
    prefix = strace(log)
    if kill_at:
        # Nobody but LMDB makes these calls.
        prefix += ["-e", f"inject=pwrite64,pwritev,writev:signal=KILL:when={kill_at}"]
    with Writer(kind, root / FOLDER, seed, lives, steps=steps, inline=True, mutant=mutant, prefix=prefix) as writer:
        _expect(writer, -9 if kill_at else 0)
    return list(read_trace(log, root, sizes))


def _expect(writer: Writer, wanted: int) -> None:
    code = writer.wait()
    if code != wanted:
        raise Failed(f"the writer ended with {code}, not {wanted}: {writer.talk()}")


def _copied(root: Path) -> Iterator[Operation]:
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_dir():
            yield MakeFolder(name)
        else:
            yield MakeFile(name)
            yield Write(name, 0, path.read_bytes(), at_once=False)
