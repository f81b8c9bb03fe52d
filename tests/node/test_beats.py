"""A node's beats leave together, never more often than every quarter of a second, and never too late for a session."""

import asyncio
from itertools import pairwise

import pytest

from node.beats import PAUSE_S, Beats
from node.order_guard import OrderGuard
from statemachine.commands import BeatSession, Command


class Log:
    """What was told, each with the time at which it was."""

    def __init__(self) -> None:
        self.told: list[tuple[float, list[Command]]] = []

    def tell(self, *commands: Command) -> None:
        self.told.append((asyncio.get_running_loop().time(), list(commands)))


def test_the_beats_of_all_streams_leave_together() -> None:
    async def main() -> None:
        log = Log()
        beats = Beats(log)
        guards = [OrderGuard(log, beats, lambda *_: None) for _ in range(100)]  # type: ignore[arg-type]
        began = asyncio.get_running_loop().time()
        for number, guard in enumerate(guards):
            guard.opened("alice", f"s{number}", 1_000)
            await asyncio.sleep(0.002)
        await asyncio.sleep(1.3)
        took = asyncio.get_running_loop().time() - began
        times = [at for at, _ in log.told]
        assert len(times) <= took / PAUSE_S + 1
        pauses = [after - before for before, after in pairwise(times)]
        assert min(pauses) > PAUSE_S * 0.9
        for number in range(100):
            mine = [at for at, told in log.told if BeatSession("alice", f"s{number}") in told]
            # With one beat lost it is still in time.
            assert max(after - before for before, after in pairwise(mine)) < 0.5
        for guard in guards:
            guard.leave()
        log.told.clear()
        assert len(beats) == 0
        await asyncio.sleep(0.4)
        assert log.told == []

    asyncio.run(main())


def test_a_session_that_two_streams_hold_beats_once_until_both_let_go() -> None:
    async def main() -> None:
        log = Log()
        beats = Beats(log)
        for timeout_ms in (60_000, 900):
            beats.keep(("alice", "desk"), timeout_ms)
        await asyncio.sleep(0.35)
        assert [told for _, told in log.told] == [[BeatSession("alice", "desk")]] * 2
        beats.drop(("alice", "desk"), 60_000)
        await asyncio.sleep(0.35)
        assert len(log.told) == 3
        beats.drop(("alice", "desk"), 900)
        assert len(beats) == 0
        with pytest.raises(KeyError):
            beats.drop(("alice", "desk"), 900)

    asyncio.run(main())


def test_a_long_session_beats_seldom() -> None:
    async def main() -> None:
        log = Log()
        beats = Beats(log)
        beats.keep(("alice", "long"), 60_000)
        await asyncio.sleep(0.6)
        assert len(log.told) == 1
        # Another's pace is not its own.
        beats.keep(("bob", "short"), 1_000)
        await asyncio.sleep(0.6)
        assert sum(BeatSession("alice", "long") in told for _, told in log.told) == 1

    asyncio.run(main())
