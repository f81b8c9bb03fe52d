"""Wrong clocks on a real child: its wall clock goes wrong while it runs, and its steady clock does not."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from chaos.faults import clock
from chaos.faults.nemeses import NEMESES
from tests.chaos.faults.paper import PaperTarget

pytestmark = pytest.mark.skipif(clock.library() is None, reason="libfaketime is not installed: NO CLOCK WAS WRONG")

SHOW = "import sys, time\nfor _ in sys.stdin: print(time.time(), time.monotonic(), flush=True)"


class Child:
    """Says what its clocks show when it is asked. `ahead_s`: of ours; `steady_s`: the same of its steady clock."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", SHOW],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
            text=True,
        )

    def look(self) -> tuple[float, float]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        wall, steady = map(float, self.process.stdout.readline().split())
        return wall - time.time(), steady - time.monotonic()


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    made = Child(clock.clock_environment(tmp_path / "clock"))
    assert abs(made.look()[0]) < 0.5  # it runs
    yield made
    made.process.kill()
    made.process.communicate()


@pytest.fixture
def target(child: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PaperTarget:
    made = PaperTarget("1+1+1", tmp_path)
    monkeypatch.setattr(made, "pid", lambda name: child.process.pid)
    return made


@pytest.mark.parametrize("by_s", [1, -1, 3_600, -3_600])
def test_a_clock_jumps_and_comes_back(by_s: int, child: Child, target: PaperTarget) -> None:
    async def run() -> None:
        nemesis = NEMESES["clock-jump"]()
        await nemesis.begin(target, Random(1), {"who": "dc-a", "by_s": by_s})
        wall_s, steady_s = child.look()
        assert abs(wall_s - by_s) < 0.5 and abs(steady_s) < 0.5
        await nemesis.end(target)
        assert abs(child.look()[0]) < 0.5

    asyncio.run(run())


@pytest.mark.parametrize("rate", [0.5, 1.5])
def test_a_rate_begins_at_the_right_time_and_ends(rate: float, child: Child, target: PaperTarget) -> None:
    async def run() -> None:
        await asyncio.sleep(1)  # what it would have gained since its start is not there at once
        nemesis = NEMESES["clock-rate"]()
        await nemesis.begin(target, Random(1), {"who": "dc-a", "rate": rate})
        began = time.monotonic()
        first_s, _ = child.look()
        assert abs(first_s) < 0.4
        await asyncio.sleep(2)
        wall_s, steady_s = child.look()
        assert abs(wall_s - first_s - (rate - 1) * (time.monotonic() - began)) < 0.3 and abs(steady_s) < 0.5
        await nemesis.end(target)
        assert abs(child.look()[0]) < 0.3

    asyncio.run(run())


def test_a_strobe_goes_to_and_fro(child: Child, target: PaperTarget) -> None:
    async def run() -> None:
        nemesis = NEMESES["clock-strobe"]()
        await nemesis.begin(target, Random(1), {"who": "dc-a", "by_s": 60, "every_s": 0.1})
        shown = set()
        for _ in range(400):
            shown.add(round(child.look()[0], -1))
            if shown == {0.0, 60.0}:
                break
            await asyncio.sleep(0.02)
        assert shown == {0.0, 60.0}
        await nemesis.end(target)
        assert abs(child.look()[0]) < 0.5

    asyncio.run(run())


def test_a_member_without_the_library_is_restarted_with_it(tmp_path: Path) -> None:
    async def run() -> None:
        target = await PaperTarget("1+1+1", tmp_path).start_all()
        try:
            nemesis = NEMESES["clock-jump"]()
            await nemesis.begin(target, Random(1), {"who": "dc-a", "by_s": 60})
            assert target.events == [("kill", "dc-a"), ("start", "dc-a")]
            given = target.given["dc-a"]
            assert (tmp_path / "dc-a.clock" / clock.FILE).read_text("ascii") == "+60\n"
            assert given[clock.TIMESTAMP_FILE] == str(tmp_path / "dc-a.clock" / clock.FILE)
            assert set(given) == set(clock.clock_environment(tmp_path / "other"))
            await nemesis.end(target)
        finally:
            target.close()

    asyncio.run(run())


BUSY = """
import threading, time
threading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()
began = time.monotonic()
for _ in range(50):
    time.sleep(0.005)
print(time.monotonic() - began)
"""


def busy_s(environment: dict[str, str]) -> float:
    done = subprocess.run(
        [sys.executable, "-S", "-c", BUSY], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    return float(done.stdout)


def test_threads_go_on_taking_turns(tmp_path: Path) -> None:
    # Who waits for Python's lock asks for it after 5 ms by the steady clock. Where the library gets that wait wrong,
    # a member stands still for seconds, whatever its wall clock shows.
    environment = {**os.environ, **clock.clock_environment(tmp_path)}
    (tmp_path / clock.FILE).write_text("-3600\n")
    least_s = min(busy_s(environment) for _ in range(3))
    assert least_s < 1 + 2 * min(busy_s(dict(os.environ)) for _ in range(2))
