"""run.json: what a run was asked to be, written before it begins; the one file of its folder that must be there."""

from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

NAME = "run.json"


class RunUnreadable(Exception):
    """A run's folder can't be read. The message names the file, the line where there is one, and what is wrong."""


class Planned(Struct, frozen=True, omit_defaults=True):
    """One fault of the plan. at_s: after the phase `faults` began. targets: as asked for, `leader` or a name."""

    number: int
    at_s: float
    for_s: float
    nemesis: str
    targets: list[str] = []
    detail: dict[str, Any] = {}


class Run(Struct, frozen=True, omit_defaults=True):
    """engine: hardened or stock. program: the shipped one, or a mutant's name. repeat_with: the command.

    versions: commit, python, toxiproxy. started_at: RFC 3339, UTC. expect: nemeses that must have bitten at least
    once. min_ok: fewer acknowledged operations show nothing. stock: the engine as published; failing is expected.
    sites: the site of each member and gateway. witnesses: members that hold no state. outage_ms_max: the longest
    time from a fault to the next acknowledged write that this scenario allows; 0: no bound, it is only reported.
    story: what the scenario does and expects, in a sentence or two, for the report. restarts: what had to be started
    again of the tool's own proxies, and when: connections ended then, and no fault of the plan says so.
    cpu_short_percent: for how much of the time with faults some program of the machine waited for a CPU; -1: not known.
    """

    scenario: str
    seed: int
    seconds: float
    shape: str
    engine: str
    program: str
    repeat_with: str
    versions: dict[str, str]
    started_at: str
    plan: list[Planned]
    expect: list[str]
    min_ok: int
    stock: bool = False
    sites: dict[str, str] = {}
    witnesses: list[str] = []
    outage_ms_max: int = 0
    story: str = ""
    restarts: list[str] = []
    cpu_short_percent: int = -1


def write_run(folder: Path, run: Run) -> None:
    (folder / NAME).write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=2) + b"\n")


def read_run(folder: Path) -> Run:
    """Raises RunUnreadable."""
    path = folder / NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Run)
    except OSError as error:
        raise RunUnreadable(f"{path}: {error.strerror}: is this the folder of a run?") from error
    except msgspec.MsgspecError as error:
        raise RunUnreadable(f"{path}: {error}") from error
