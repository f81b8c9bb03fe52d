"""What is known of a process from outside, and how one comes back."""

import asyncio
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path

from chaos.faults.nemesis import BACK_S, felt
from chaos.faults.target import Target
from chaos.net.links import NotCut

STOPPED, ZOMBIE = "T", "Z"


def state(pid: int | None) -> str:
    """The letter that the kernel gives it: R, S, D, T (stopped), t (traced), Z; empty when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("latin-1")
    except OSError:
        return ""
    # The name, in brackets, may hold anything.
    return stat.rpartition(")")[2].split()[0]


def tracer(pid: int) -> int:
    """Who traces it, by pid; 0: nobody, or it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("latin-1").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("TracerPid:")), 0)


def environment(pid: int) -> dict[str, str]:
    """What it was started with; empty when it is gone."""
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    return dict(word.decode("utf-8", "replace").split("=", 1) for word in words if b"=" in word)


def must_run(target: Target, name: str) -> int:
    """Its pid. Raises NotCut."""
    pid = target.pid(name)
    if pid is None or state(pid) in ("", ZOMBIE):
        raise NotCut(f"{name} does not run")
    return pid


async def gone(target: Target, names: Iterable[str]) -> str:
    """What shows that they are dead, or nothing yet."""
    named = list(names)
    if any(target.pid(name) is not None for name in named):
        return ""
    answers = await asyncio.gather(*map(target.status, named))
    return "" if any(answer is not None for answer in answers) else f"no process and no answer: {', '.join(named)}"


async def bring_back(
    target: Target, names: Iterable[str], *, environments: Mapping[str, Mapping[str, str]] | None = None
) -> None:
    """Start those that are down, all at once, and wait until each answers, ready or not: it may be cut off.

    Raises NotCut when one does not, and LaunchError.
    """
    named = list(names)
    for name in named:
        if target.pid(name) is None:
            await target.start(name, environment=(environments or {}).get(name), ready_timeout_ms=0)
    await answering(target, named)


async def answering(target: Target, names: Iterable[str]) -> None:
    """Wait until each answers. Raises NotCut: it does not, or died."""
    named = [name for name in names if name in target.addresses]

    async def look() -> str:
        waits = [name for name in named if await target.status(name) is None]
        dead = [name for name in waits if target.pid(name) is None]
        if dead:
            raise NotCut(f"{', '.join(dead)} was started and died")
        return "" if waits else "all answer"

    await felt(look, f"an answer of {', '.join(named)}", within_s=BACK_S)


async def go_on(target: Target, name: str) -> None:
    """End a pause. Does nothing to one that runs, or is gone."""
    pid = target.pid(name)
    if pid is not None and state(pid) == STOPPED:
        await target.signal(name, signal.SIGCONT)
