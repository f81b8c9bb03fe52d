"""Signs of life for replicated sessions: those of all streams of this node, together and not too often."""

import asyncio
from typing import Protocol

from statemachine.commands import BeatSession, Command

BEATS_PER_TIMEOUT = 3
PAUSE_S = 0.25
"""Beats of one node go into the log at most so often: each costs every member an entry's work."""
BEATS_PER_ENTRY = 500

Session = tuple[str, str]
"""(account, session)"""


class Tells(Protocol):
    def tell(self, *commands: Command) -> None: ...


class Beats:
    """Beats for each session at a third of its time-out, or sooner where others beat anyway; one event loop.

    A session that several streams hold is kept once.
    """

    def __init__(self, submitter: Tells) -> None:
        self._submitter = submitter
        self._kept: dict[Session, list[int]] = {}
        """Session to the time-outs, in milliseconds, of those that hold it."""
        self._due: dict[Session, float] = {}
        self._beat_at = float("-inf")
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, session: Session, timeout_ms: int) -> None:
        """Beat at once, or with the next ones, and from then on until `drop`."""
        self._kept.setdefault(session, []).append(timeout_ms)
        self._due[session] = 0.0
        self._set(0.0)

    def drop(self, session: Session, timeout_ms: int) -> None:
        """One of those that keep it does so no more."""
        held = self._kept[session]
        held.remove(timeout_ms)
        if not held:
            del self._kept[session], self._due[session]
        if not self._kept and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, due_at: float) -> None:
        at = max(due_at, self._beat_at + PAUSE_S)
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(at, self._beat)

    def _beat(self) -> None:
        """Beat for all that would be due before there may be beats again."""
        self._timer = None
        self._beat_at = now = asyncio.get_running_loop().time()
        beats: list[Command] = []
        for session, due_at in self._due.items():
            if due_at <= now + PAUSE_S:
                self._due[session] = now + min(self._kept[session]) / 1000 / BEATS_PER_TIMEOUT
                beats.append(BeatSession(*session))
        for start in range(0, len(beats), BEATS_PER_ENTRY):
            self._submitter.tell(*beats[start : start + BEATS_PER_ENTRY])
        self._set(min(self._due.values()))
