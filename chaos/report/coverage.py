"""What a run exercised: faults by kind, and how often the cluster did what only faults make it do."""

from collections import Counter
from pathlib import Path

from msgspec import Struct

from chaos.history.file import History
from chaos.history.records import Seen
from chaos.report.timeline import Timeline

COUNTERS = {
    "truncations": "logs cut back: a member dropped entries that were never committed",
    "pre_votes": "members asked whether an election made sense, before one",
    "refused_disruption": "elections refused because the leader was there",
    "stale_reply": "late acknowledgements dropped",
    "superseded": "connections replaced by a newer one",
    "snapshot_bytes_sent": "bytes of snapshots sent to members that were too far behind",
    "snapshots_failed": "snapshots cut off on their way",
    "membership_changes": "changes of who belongs to the cluster",
}
"""What the watcher reads from each member's metrics, and what it means; each counts from its process's start."""
WORD = "counters"
"""Under this name in the detail of a sighting."""


INSTALLED = b'"snapshot installed"'
"""A line of a member's log."""


class Kind(Struct):
    """How often one kind of fault was begun, seen to hold, and could not be put in."""

    nemesis: str
    begun: int = 0
    bit: int = 0
    failed: int = 0


class Coverage(Struct):
    """events: by what happened. workloads: for each, how many operations ended how."""

    kinds: list[Kind]
    events: dict[str, int]
    workloads: dict[str, dict[str, int]]


def coverage(history: History, made: Timeline, *, snapshots: int = 0) -> Coverage:
    """snapshots: how many were installed."""
    kinds: dict[str, Kind] = {}
    for band in made.bands:
        kind = kinds.setdefault(band.nemesis, Kind(band.nemesis))
        kind.begun += 1
        kind.bit += band.bit
        kind.failed += band.failed
    events = {"elections": len({reign.term for reign in made.reigns})} | processes(history.seen)
    events |= {"snapshots installed": snapshots} | counted(history.seen)
    workloads: dict[str, dict[str, int]] = {}
    for op in history.ops:
        ends = workloads.setdefault(op.workload, {"ok": 0, "fail": 0, "unknown": 0})
        ends[op.outcome] += 1
    return Coverage(sorted(kinds.values(), key=lambda one: -one.begun), events, workloads)


def installed(folder: Path) -> int:
    """How often a member put a snapshot in the place of its state, by the members' logs in a run's folder."""
    return sum(path.read_bytes().count(INSTALLED) for path in sorted(folder.glob("members/*.log")))


def processes(seen: list[Seen]) -> dict[str, int]:
    """How often members and gateways were started again, by the pids that they told."""
    pids: dict[str, set[int]] = {}
    for one in seen:
        pid = one.detail.get("pid")
        if isinstance(pid, int):
            pids.setdefault(one.name, set()).add(pid)
    return {"processes started again": sum(len(own) - 1 for own in pids.values())}


def counted(seen: list[Seen]) -> dict[str, int]:
    """The members' own counters, over all lives of each process."""
    last: dict[tuple[str, object], dict[str, int]] = {}
    for one in seen:
        counters = one.detail.get(WORD)
        if isinstance(counters, dict):
            last[one.name, one.detail.get("pid")] = counters
    total: Counter[str] = Counter()
    for counters in last.values():
        total.update({name: int(value) for name, value in counters.items()})
    return {name: total[name] for name in COUNTERS}
