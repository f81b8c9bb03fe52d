"""The long budget: every scenario in turn with a fresh seed each time, until the time is over."""

import os
import shutil
import time
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from rich.console import Console

from chaos.history.run import RunUnreadable
from chaos.live.child_run import examples, run_apart
from chaos.live.ledger import Entry, append, entry_of
from chaos.live.playing import Asked
from chaos.live.scenarios import SCENARIOS

SEEDS = 1_000_000_000


def run_nightly(
    names: Sequence[str], *, minutes: float, seconds: float, folder: Path, ledger: Path, console: Console
) -> list[Entry]:
    """One entry for each run, in the ledger as soon as it ended. Folders of runs that passed are removed.

    Raises KeyboardInterrupt: it was interrupted, and the run under way has ended.
    """
    until = time.monotonic() + minutes * 60
    entries: list[Entry] = []
    for turn, name in enumerate(cycle(names)):
        if time.monotonic() >= until:
            return entries
        seed = int.from_bytes(os.urandom(8)) % SEEDS
        shapes = SCENARIOS[name].shapes
        shape = shapes[turn // len(names) % len(shapes)]
        asked = Asked(name, seed, seconds, folder / f"{name}-{seed}", shape)
        entry = _one(asked, console)
        append(ledger, entry)
        entries.append(entry)
        left_min = max(0.0, until - time.monotonic()) / 60
        colour = {"pass": "green", "fail": "red"}.get(entry.verdict, "yellow")
        faults = sum(entry.injections.values())
        console.print(
            f"[{colour}]{entry.verdict:7}[/] {name} {shape} seed {seed}: {faults} faults, "
            f"{entry.outcomes.get('ok', 0):,} answered; {left_min:.0f} min left",
            soft_wrap=True,
        )
        if entry.verdict == "pass":
            shutil.rmtree(asked.folder)
        else:
            console.print(f"        {entry.why}", markup=False, soft_wrap=True)
            console.print(f"        {asked.command}, kept in {asked.folder}", markup=False, soft_wrap=True)
    return entries


def _one(asked: Asked, console: Console) -> Entry:
    with console.status(f"{asked.scenario} {asked.shape} seed {asked.seed}, {asked.seconds:g} s of faults"):
        verdict, why = run_apart(asked)
    try:
        return entry_of(asked.folder, verdict, why=why or (examples(verdict) if verdict is not None else ""))
    except RunUnreadable as error:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return Entry(
            at, asked.scenario, asked.seed, asked.shape, asked.program, "invalid", 0, {}, {}, {}, [], f"{error}; {why}"
        )
