"""Steps of a member at which it can be killed or held, wrapped from outside: the product has no such switch.

TIEBREAK_FAILPOINTS="after_append:kill:3,before_sync:sleep=200" kills it after the third entry that its journal takes,
and makes each write of a group 200 ms longer. What strikes says so in the member's log.
"""

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from msgspec import Struct

from cluster.consensus import snapshots as consensus_snapshots
from cluster.consensus import storage
from cluster.consensus.journal import Journal
from cluster.consensus.snapshots import SnapshotSender
from cluster.consensus.storage import LmdbStorage
from node import install
from node.submit import Submitter
from statemachine.machine import Machine
from statemachine.records import Applied
from statemachine.store_flush import Flush
from statemachine.store_pinned import PinnedState

SLEEP_MS_MAX = 600_000
KILL, SLEEP, FAIL = "kill", "sleep", "fail"


class UnknownFailpoint(ValueError):
    """The variable names no step, or no action; nothing was started. The message says which there are."""


class Failpoint(Struct, frozen=True):
    """action: kill (SIGKILL), sleep (sleep_ms) or fail (an OSError, as of a disk). at: the how many-eth time; 0: each.

    A kill without a number is at the first time.
    """

    step: str
    action: str
    sleep_ms: int = 0
    at: int = 0


def parse(text: str) -> list[Failpoint]:
    """Raises UnknownFailpoint."""
    return [_parse(one.strip()) for one in text.split(",") if one.strip()]


def _parse(text: str) -> Failpoint:
    step, _, rest = text.partition(":")
    word, _, number = rest.partition(":")
    action, _, given = word.partition("=")
    if step not in STEPS:
        raise UnknownFailpoint(f"failpoint {text!r}: {step!r} is none of {', '.join(STEPS)}")
    if action not in (KILL, SLEEP, FAIL) or bool(given) != (action == SLEEP):
        raise UnknownFailpoint(f"failpoint {text!r}: {word!r} is none of kill, fail, sleep=MILLISECONDS")
    at = _number(text, number, 1_000_000_000) if number else int(action == KILL)
    return Failpoint(step, action, _number(text, given, SLEEP_MS_MAX) if given else 0, at)


def _number(text: str, given: str, most: int) -> int:
    if not (given.isascii() and given.isdigit() and len(given) <= 10 and 1 <= int(given) <= most):
        raise UnknownFailpoint(f"failpoint {text!r}: {given!r} must be a whole number from 1 to {most}")
    return int(given)


class Armed:
    """The failpoints of this process, and how often each step was reached."""

    def __init__(self, failpoints: list[Failpoint]) -> None:
        self._failpoints = failpoints
        self._reached: dict[str, int] = {}
        self._lock = threading.Lock()

    def reached(self, step: str) -> None:
        with self._lock:
            count = self._reached[step] = self._reached.get(step, 0) + 1
        for failpoint in self._failpoints:
            if failpoint.step == step and failpoint.at in (0, count):
                _strike(failpoint, count)


def _strike(failpoint: Failpoint, count: int) -> None:
    print(f"failpoint {failpoint.step} strikes: {failpoint.action}, time {count}", file=sys.stderr, flush=True)
    if failpoint.action == KILL:
        os.kill(os.getpid(), signal.SIGKILL)
    elif failpoint.action == SLEEP:
        time.sleep(failpoint.sleep_ms / 1000)
    else:
        raise OSError(errno.EIO, f"failpoint {failpoint.step}")


Reached = Callable[[str], None]


def _around(owner: Any, name: str, before: str, after: str) -> Callable[[Reached], None]:
    """Reach one step before a function is called and one after it returned."""

    def wrap(reached: Reached) -> None:
        real: Any = getattr(owner, name)

        def wrapped(*arguments: Any, **given: Any) -> Any:
            if before:
                reached(before)
            result = real(*arguments, **given)
            if after:
                reached(after)
            return result

        setattr(owner, name, wrapped)

    return wrap


def _before_reply(reached: Reached) -> None:
    real = Submitter.applied

    def applied(self: Submitter, applied: Applied, payload: bytes) -> None:
        if self.waiting:
            reached("before_reply")
        real(self, applied, payload)

    Submitter.applied = applied  # type: ignore[method-assign]


def _mid_install(reached: Reached) -> None:
    for name in ("decide", "finish"):
        real: Any = getattr(install, name)

        def wrapped(*arguments: Any, _real: Any = real, **given: Any) -> Any:
            return _real(*arguments, failpoint=lambda _step: reached("mid_install"), **given)

        setattr(install, name, wrapped)


_WRAPS: list[tuple[tuple[str, ...], Callable[[Reached], None]]] = [
    (("before_append", "after_append"), _around(Journal, "add", "before_append", "after_append")),
    (("before_sync", "after_sync"), _around(LmdbStorage, "write", "before_sync", "after_sync")),
    (("mid_trim",), _around(storage, "_delete_below", "", "mid_trim")),
    (("before_apply", "after_apply"), _around(Machine, "apply", "before_apply", "after_apply")),
    (("before_reply",), _before_reply),
    (("before_store", "after_store"), _around(Flush, "write", "before_store", "after_store")),
    (("mid_snapshot",), _around(PinnedState, "copy_to", "", "mid_snapshot")),
    (("mid_send",), _around(SnapshotSender, "asked", "", "mid_send")),
    (("mid_receive",), _around(consensus_snapshots, "_append", "", "mid_receive")),
    (("mid_install",), _mid_install),
]
STEPS = [step for steps, _ in _WRAPS for step in steps]
"""append: one entry into the journal's memory. sync: one group of the journal, written and synced, in its thread.
apply: one entry, on the loop. reply: of an entry, to those who wait here. store: one flush, in its thread.
mid_trim: inside the transaction that drops old entries. mid_snapshot: the copy is on disk and not offered. mid_send,
mid_receive: a piece of a snapshot was asked for, was written. mid_install: each of its steps."""


def arm(failpoints: list[Failpoint]) -> None:
    """Wrap the steps that are named; nothing else is touched."""
    armed, named = Armed(failpoints), {failpoint.step for failpoint in failpoints}
    for wrap in _wraps(named):
        wrap(armed.reached)


def _wraps(named: set[str]) -> Iterator[Callable[[Reached], None]]:
    return (wrap for steps, wrap in _WRAPS if named & set(steps))
