"""The ledger of all runs against real processes: a line each, and what they sum up to."""

import time
from collections import Counter
from pathlib import Path

import msgspec
from msgspec import Struct

from chaos.check.verdict import Verdict
from chaos.history.file import NAME as HISTORY
from chaos.history.file import read_history
from chaos.history.run import RunUnreadable, read_run

LEDGER = Path(__file__).parents[1] / "ledger.jsonl"
"""Of the checkout that runs: chaos/ledger.jsonl."""


FIGURES = (
    "outage_p50_ms", "outage_max_ms", "converged_ms", "gateway_reads", "gateway_reads_answered", "ok_per_s",
    "cpu_short_percent", "proxies_restarted",
)  # fmt: skip


class Entry(Struct, frozen=True, omit_defaults=True):
    """hours: with load. injections: faults seen to bite, by kind. red: checks that did not pass. figures: those of
    FIGURES that the verdict has.
    """

    at: str
    scenario: str
    seed: int
    shape: str
    program: str
    verdict: str
    hours: float
    injections: dict[str, int]
    outcomes: dict[str, int]
    versions: dict[str, str]
    red: list[str] = []
    why: str = ""
    figures: dict[str, float | int] = {}


def entry_of(folder: Path, verdict: Verdict | None, *, why: str = "") -> Entry:
    """The line of a run. verdict: None, and why, where it could not be run to its end. Raises RunUnreadable."""
    run = read_run(folder)
    injections: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    hours = 0.0
    if (folder / HISTORY).exists():
        history = read_history(folder / HISTORY)
        injections.update(fault.nemesis for fault in history.faults if fault.did == "bite")
        outcomes.update(op.outcome for op in history.ops)
        began, ended = history.phase_ns("warmup"), history.phase_ns("final")
        hours = (ended - began) / 3.6e12 if began is not None and ended is not None else 0.0
    return Entry(
        at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        scenario=run.scenario,
        seed=run.seed,
        shape=run.shape,
        program=run.program,
        verdict=verdict.verdict if verdict is not None else "invalid",
        hours=round(hours, 5),
        injections=dict(injections),
        outcomes=dict(outcomes),
        versions=run.versions,
        red=[check.name for check in verdict.checks if check.verdict != "pass"] if verdict is not None else [],
        why=why,
        figures={name: value for name in FIGURES if isinstance(value := _figure(verdict, name), int | float)},
    )


def _figure(verdict: Verdict | None, name: str) -> float | int | str | None:
    return verdict.figures.get(name) if verdict is not None else None


def append(path: Path, entry: Entry) -> None:
    with path.open("ab") as ledger:
        ledger.write(msgspec.json.encode(entry) + b"\n")


def read(path: Path) -> list[Entry]:
    """Raises RunUnreadable: a line that is no entry, by its number."""
    entries = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else [], 1):
        try:
            entries.append(msgspec.json.decode(line, type=Entry))
        except msgspec.MsgspecError as error:
            raise RunUnreadable(f"{path}, line {number}: {error}") from error
    return entries


def told(entries: list[Entry]) -> str:
    """What the figures of all runs say together; empty where none has any."""
    asked = sum(entry.figures.get("gateway_reads", 0) for entry in entries)
    answered = sum(entry.figures.get("gateway_reads_answered", 0) for entry in entries)
    longest = [f"{words} {max(values):,.0f} ms" for name, words in _LONGEST if (values := _values(entries, name))]
    share = [f"gateways answered {answered:,} of {asked:,} reads ({100 * answered / asked:.3f} %)"] if asked else []
    return "; ".join([*share, *longest])


_LONGEST = (("outage_max_ms", "longest outage of writes"), ("converged_ms", "sites agreed after a heal within"))


def _values(entries: list[Entry], name: str) -> list[float | int]:
    return [entry.figures[name] for entry in entries if name in entry.figures]


def summed(entries: list[Entry]) -> list[tuple[str, int, int, int, int, int, int, int, int, int]]:
    """By scenario, and all of them last: runs, how many had which verdict, minutes, faults, outcomes."""
    names = [*dict.fromkeys(entry.scenario for entry in entries)]
    rows = [_row(name, [entry for entry in entries if entry.scenario == name]) for name in sorted(names)]
    return [*rows, _row("all", entries)] if rows else []


def _row(name: str, entries: list[Entry]) -> tuple[str, int, int, int, int, int, int, int, int, int]:
    words = Counter(entry.verdict for entry in entries)
    outcomes: Counter[str] = Counter()
    for entry in entries:
        outcomes.update(entry.outcomes)
    minutes = round(60 * sum(entry.hours for entry in entries))
    faults = sum(sum(entry.injections.values()) for entry in entries)
    return (
        name, len(entries), words["pass"], words["fail"], words["invalid"], minutes, faults,
        outcomes["ok"], outcomes["fail"], outcomes["unknown"],
    )  # fmt: skip
