"""Plays open loops against a cluster while a script breaks something, and marks when, on the axis of the samples."""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from bench import progress
from bench.report import Mark
from bench.running import RunError, asked_of_process
from bench.sweep.openloop import Result, Spec
from bench.sweep.samples import DONE, REFUSED, UNKNOWN, Samples

START_S = 3.0
"""For generators to import what they need; connections come on top."""
CONNECTED_PER_S = 400
APART_S_MAX = 0.2
"""Generators that begin further apart than this have no common axis."""


class Script:
    """What is done during a run, by the clock of the samples: 0 is when the first request is due."""

    def __init__(self, begin_at: float) -> None:
        self._begin_at = begin_at
        self.marks: list[tuple[float, float, str]] = []
        """Wall clock."""

    @property
    def now_s(self) -> float:
        return time.time() - self._begin_at

    async def until(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, at_s - self.now_s))

    @contextmanager
    def mark(self, label: str) -> Iterator[None]:
        """A band on the axis from here to its end."""
        began = time.time()
        try:
            yield
        finally:
            self.marks.append((began, time.time(), label))


class Watched(Struct, kw_only=True):
    """What came of a run. parts: by group of clients; marks: in seconds of the samples."""

    seconds: float
    parts: dict[str, Samples]
    results: dict[str, Result]
    marks: list[Mark]

    @property
    def samples(self) -> Samples:
        """Of all groups."""
        found = list(self.parts.values())
        return found[0] if len(found) == 1 else Samples.merged(found)

    @property
    def requests(self) -> int:
        return sum(map(len, self.parts.values()))

    @property
    def done(self) -> int:
        return sum(part.count(DONE) for part in self.parts.values())

    @property
    def refused(self) -> int:
        return sum(part.count(REFUSED) for part in self.parts.values())

    @property
    def unknown(self) -> int:
        return sum(part.count(UNKNOWN) for part in self.parts.values())

    @property
    def fills(self) -> int:
        """In the answers, of the taking side."""
        return sum(result.fills for result in self.results.values())

    @property
    def words(self) -> dict[str, int]:
        """Why, for each of those that were refused or are unknown."""
        found: dict[str, int] = {}
        for result in self.results.values():
            for word, count in result.words.items():
                found[word] = found.get(word, 0) + count
        return found


async def quiet(_: Script) -> None:
    """Nothing is broken."""


async def watch(
    specs: Mapping[str, Spec], script: Callable[[Script], Awaitable[None]] = quiet, *, words: str = "load"
) -> Watched:
    """Run a generator for each group of clients, and the script beside them. Raises RunError.

    The specs' warm-up is left out: what is drawn over time begins with the first request.
    """
    seconds = max(spec.seconds for spec in specs.values())
    begin_at = time.time() + START_S + max(spec.connections for spec in specs.values()) / CONNECTED_PER_S
    with tempfile.TemporaryDirectory(prefix="tiebreak-timeline-") as folder:
        asked = {
            name: replace(spec, warmup_s=0.0, begin_at=begin_at, samples=str(Path(folder) / f"{number}.samples"))
            for number, (name, spec) in enumerate(specs.items())
        }
        acted = Script(begin_at)
        with progress.during(words, seconds):
            playing = asyncio.ensure_future(
                asyncio.gather(*(asked_of_process("bench.sweep.openloop", spec, Result) for spec in asked.values()))
            )
            acting = asyncio.ensure_future(script(acted))
            try:
                await asyncio.gather(playing, acting)
            finally:
                for task in (playing, acting):
                    task.cancel()
                await asyncio.gather(playing, acting, return_exceptions=True)
        results = dict(zip(asked, playing.result(), strict=True))
        parts = {name: Samples.read(Path(spec.samples), results[name].requests) for name, spec in asked.items()}
    began = [result.began_at for result in results.values()]
    if max(began) - min(began) > APART_S_MAX:
        raise RunError(f"the load generators began {max(began) - min(began):.1f} s apart: the machine is too busy")
    marks = [Mark(begin - began[0], end - began[0], label) for begin, end, label in acted.marks]
    if any(mark.begin < 0 for mark in marks):
        raise RunError("the load had not begun when something was broken: the machine is too busy")
    return Watched(seconds=seconds, parts=parts, results=results, marks=marks)
