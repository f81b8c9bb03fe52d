"""Wrong clocks, by libfaketime: a member's wall clock jumps, strobes or runs at another rate, its steady one not.

The library is the one of the package index, not Debian's: that one breaks Python's sleep and its steady clock.
"""

import asyncio
import contextlib
import importlib.util
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from chaos.faults import processes
from chaos.faults.nemesis import Detail, Nemesis, Part, Struck, choose, drawn, felt
from chaos.faults.target import Target
from chaos.net.links import NotCut

CLOCKS: frozenset[Part] = frozenset({"clocks"})
FILE = "clock"
TIMESTAMP_FILE = "FAKETIME_TIMESTAMP_FILE"
RIGHT = "+0"
JUMPS_S = (1, 2, 10, 60, 600, 3_600)
STROBE_S = (0.05, 1.0)
STEP_S = 0.02


def library() -> Path | None:
    """libfaketime.so.1, or None where the package is not installed. Nothing of it is imported."""
    found = importlib.util.find_spec("libfaketime")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"
    return path if path.exists() else None


def clock_environment(folder: Path) -> dict[str, str]:
    """What a process is started with so that its clock can be set while it runs: by a file in `folder`, made here.

    Raises NotCut: there is no library.
    """
    shim = library()
    if shim is None:
        raise NotCut("clock faults need the package libfaketime")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / FILE
    if not file.exists():
        _set(file, RIGHT)
    return {
        "LD_PRELOAD": str(shim),
        TIMESTAMP_FILE: str(file),
        # Read at each look at the clock: a strobe is quicker than the library's cache.
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        # Without this each timed wait of a thread is off by what the clock is, those for Python's own lock too.
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",
    }


def _set(file: Path, words: str) -> None:
    fresh = file.with_suffix(".new")
    fresh.write_text(words + "\n", "ascii")
    fresh.replace(file)


class ClockNemesis(Nemesis):
    """A member that runs without the library is restarted with it.

    detail: `who`.
    """

    parts = CLOCKS

    def __init__(self) -> None:
        self.who = ""
        self.file = Path()

    def available(self, target: Target) -> str:
        return "" if library() is not None else "the package libfaketime is not installed"

    async def aim(self, target: Target, rng: Random, detail: Detail) -> str:
        who = drawn(detail, "who", lambda: rng.choice(("leader", "replica", "one")))
        name = (await choose(target, rng, who))[0]
        pid = processes.must_run(target, name)
        file = processes.environment(pid).get(TIMESTAMP_FILE)
        if file is None:
            environment = clock_environment(target.folder_of(name).parent / f"{name}.clock")
            await target.stop(name)
            await processes.bring_back(target, [name], environments={name: environment})
            file = environment[TIMESTAMP_FILE]
        self.who, self.file = name, Path(file)
        return name

    def set(self, words: str) -> None:
        _set(self.file, words)

    async def bite(self, target: Target, struck: Struck) -> str:
        """A clock that is off by more than the bound bars its member from leading."""

        async def look() -> str:
            status = await target.status(self.who)
            return f"{self.who} is barred: {status['barred']}" if status is not None and status["barred"] else ""

        return await felt(look, f"{self.name}: {self.who} barred from leading", within_s=15)

    async def end(self, target: Target) -> None:
        if self.who:
            self.set(RIGHT)


class ClockJump(ClockNemesis):
    """detail: `by_s`: seconds, either way."""

    name = "clock-jump"
    line = "a member's wall clock jumps by a second to an hour, either way"

    async def begin(self, target: Target, rng: Random, detail: Detail) -> Struck:
        by_s = drawn(detail, "by_s", lambda: rng.choice(JUMPS_S) * rng.choice((-1, 1)))
        name = await self.aim(target, rng, detail)
        self.set(f"{by_s:+}")
        return Struck([name], {"who": name, "by_s": by_s})


class Moving(ClockNemesis):
    """A clock that is set again and again until the end. The library's own rates are not used: with them timed waits
    of threads last for minutes."""

    def __init__(self) -> None:
        super().__init__()
        self._task: asyncio.Task[None] | None = None
        self._enough = asyncio.Event()

    def move(self, offsets: Iterator[tuple[float, float]]) -> None:
        """offsets: how far the clock is off, and for how long, both in seconds."""
        self._task = asyncio.create_task(self._move(offsets))

    async def _move(self, offsets: Iterator[tuple[float, float]]) -> None:
        for by_s, for_s in offsets:
            self.set(f"{by_s:+.3f}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._enough.wait(), for_s)
            if self._enough.is_set():
                return

    async def end(self, target: Target) -> None:
        self._enough.set()
        if self._task is not None:
            await asyncio.wait([self._task])
        await super().end(target)


class ClockRate(Moving):
    """In steps of a fiftieth of a second, so that a slow clock also goes back, a little, again and again.

    detail: `rate`: seconds of the member's clock in a second.
    """

    name = "clock-rate"
    line = "a member's wall clock runs at 0.5 to 1.5 times the right rate"

    async def begin(self, target: Target, rng: Random, detail: Detail) -> Struck:
        rate = drawn(detail, "rate", lambda: rng.choice((0.5, 0.8, 1.2, 1.5)))
        name = await self.aim(target, rng, detail)
        began = time.monotonic()
        self.move(((rate - 1) * (time.monotonic() - began), STEP_S) for _ in itertools.count())
        return Struck([name], {"who": name, "rate": rate})


class ClockStrobe(Moving):
    """detail: `by_s`; `every_s`: the longest that it shows one time."""

    name = "clock-strobe"
    line = "a member's wall clock goes to and fro, several times a second"

    async def begin(self, target: Target, rng: Random, detail: Detail) -> Struck:
        by_s = drawn(detail, "by_s", lambda: rng.choice(JUMPS_S) * rng.choice((-1, 1)))
        every_s = drawn(detail, "every_s", lambda: round(rng.uniform(*STROBE_S), 2))
        name = await self.aim(target, rng, detail)
        chance, least_s = Random(rng.random()), STROBE_S[0]
        spans = (chance.uniform(least_s, max(every_s, least_s)) for _ in itertools.count())
        self.move(zip(itertools.cycle((by_s, 0.0)), spans, strict=True))
        return Struck([name], {"who": name, "by_s": by_s, "every_s": every_s})
