"""How long writes stood still: from each fault until the side with a majority acknowledges again."""

from bisect import bisect_left

from chaos.check.availability import Force, forces
from chaos.check.judging import Wrong, judge
from chaos.check.told import COMMANDS, Told
from chaos.check.verdict import Check
from chaos.history.file import Op


def outages(told: Told) -> list[tuple[Force, int]]:
    """(fault, ms) of each that cuts or stops members; -1: nobody acknowledged anything any more.

    Where no side has a majority it counts from when the fault was taken away.
    """
    writes = [op for op in told.history.ops if op.ok and not op.replay and op.index and op.kind in COMMANDS]
    writes.sort(key=lambda op: op.call_ns)
    calls = [op.call_ns for op in writes]
    found = []
    for force in forces(told):
        if not (force.minority or force.majority):
            continue
        members = force.majority
        since_ns = force.begin_ns if members else force.end_ns
        after = writes[bisect_left(calls, since_ns) :]
        found.append((force, _first_ms(after, members, since_ns)))
    return found


def _first_ms(writes: list[Op], members: list[str], since_ns: int) -> int:
    """By any member of that side; in a chaos run the first is among the first few."""
    ended = [op.return_ns for op in writes if not members or op.target in members]
    return (min(ended) - since_ns) // 1_000_000 if ended else -1


def check_outage(told: Told) -> Check:
    """Within the scenario's bound, where it has one."""
    found = outages(told)
    bound_ms = told.run.outage_ms_max
    wrong: Wrong = []
    for force, ms in found:
        shown = {"nemesis": force.nemesis, "targets": force.targets, "ms": ms}
        if ms < 0:
            wrong.append((f"after {force.nemesis} no write was acknowledged any more", shown))
        elif bound_ms and ms > bound_ms:
            wrong.append((f"after {force.nemesis} writes stood still for {ms} ms; {bound_ms} are allowed", shown))
    known = sorted(ms for _, ms in found if ms >= 0)
    counts: dict[str, int | float] = {"faults": len(found)}
    if known:
        counts |= {"p50_ms": known[(len(known) - 1) // 2], "max_ms": known[-1]}
    return judge("outage", "writes went on after every fault", wrong, counts)
