"""What the suite must notice: the library as published and known faults of the product, each under a named scenario."""

import time
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct
from rich.console import Console

from chaos.live.child_run import run_apart
from chaos.live.playing import Asked
from chaos.live.programs import STOCK


class Tooth(Struct, frozen=True):
    """red: names of checks; one of them at least must say fail. seeds: tried in turn until one does."""

    program: str
    scenario: str
    red: tuple[str, ...]
    seconds: float = 30
    seeds: tuple[int, ...] = (1, 2, 3)
    shape: str = ""


class Bitten(Struct, frozen=True):
    """noticed: a check that had to said fail. red: all that did."""

    program: str
    scenario: str
    seed: int
    verdict: str
    red: list[str]
    noticed: bool
    took_s: float


LOST = ("lost", "answers", "log", "digests", "resolved")
"""What says that something acknowledged is gone, from one side or another."""
WRONG = ("answers", "reads", "money", "registers")

TEETH = (
    Tooth(STOCK, "all-power-lost", LOST),
    Tooth(STOCK, "leader-kill", (*LOST, "false_acks", "stale")),
    Tooth("no-sync", "all-power-lost", LOST),
    Tooth("lying-sync", "all-power-lost", LOST),
    Tooth("keys-not-in-snapshot", "lost-disk", ("idempotence", "answers", "resolved", "digests")),
    Tooth("read-without-quorum", "dc-cut", ("stale", "reads")),
    Tooth("double-credit", "leader-kill", WRONG),
    Tooth("blind-digest", "leader-kill", (*WRONG, "journals")),
)


def run_teeth(names: Sequence[str], *, folder: Path, console: Console) -> list[Bitten]:
    """names: of programs; empty: all. Raises KeyboardInterrupt."""
    bitten = []
    for tooth in TEETH:
        if not names or tooth.program in names:
            bitten.append(_bite(tooth, folder, console))
            said = "noticed" if bitten[-1].noticed else bitten[-1].verdict
            console.print(
                f"{tooth.program} under {tooth.scenario}: {said} ({', '.join(bitten[-1].red) or 'nothing red'})"
            )
    return bitten


def _bite(tooth: Tooth, folder: Path, console: Console) -> Bitten:
    began = time.monotonic()
    last = Bitten(tooth.program, tooth.scenario, 0, "invalid", [], noticed=False, took_s=0)
    for seed in tooth.seeds:
        path = folder / f"teeth-{tooth.program}-{tooth.scenario}-{seed}-{time.strftime('%H%M%S')}"
        asked = Asked(tooth.scenario, seed, tooth.seconds, path, tooth.shape, tooth.program)
        with console.status(f"{tooth.program} under {tooth.scenario}, seed {seed}"):
            verdict, _ = run_apart(asked)
        red = [check.name for check in verdict.checks if check.verdict == "fail"] if verdict is not None else []
        word = verdict.verdict if verdict is not None else "invalid"
        noticed = bool(set(red) & set(tooth.red))
        last = Bitten(tooth.program, tooth.scenario, seed, word, red, noticed, time.monotonic() - began)
        if noticed:
            break
    return last
