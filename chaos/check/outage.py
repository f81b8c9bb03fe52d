"""How long writes stood still under each fault, on the side that has a majority."""

from bisect import bisect_left

from chaos.check.availability import Force, forces
from chaos.check.judging import Wrong, judge
from chaos.check.told import COMMANDS, Told
from chaos.check.verdict import Check


def outages(told: Told) -> list[tuple[Force, int]]:
    """(fault, ms) of each that cuts or stops members; -1: nobody acknowledged anything any more.

    The longest time between two acknowledged writes of the majority's members that falls into the fault, from before
    it was begun: putting a fault in takes seconds, and nobody knows at which moment of these it took hold. So it is
    never too short; on a slow run it holds the time between two writes as well. Where no side has a majority, it is
    the time from when the fault was gone until the first.
    """
    writes = [op for op in told.history.ops if op.ok and not op.replay and op.index and op.kind in COMMANDS]
    found = []
    for force in forces(told):
        if force.majority:
            # Until it was in, and when it was gone, whoever acknowledges shows that it does not hold.
            acked = sorted(
                op.return_ns
                for op in writes
                if op.target in force.majority or not force.begin_ns <= op.return_ns <= force.end_ns
            )
            found.append((force, _longest_ms(acked, force.started_ns, force.end_ns)))
        elif force.minority:
            acked = sorted(op.return_ns for op in writes)
            first = bisect_left(acked, force.until_ns)
            found.append((force, max(0, acked[first] - force.end_ns) // 1_000_000 if first < len(acked) else -1))
    return found


def _longest_ms(acked: list[int], begin_ns: int, end_ns: int) -> int:
    first = bisect_left(acked, begin_ns)
    if first == len(acked):
        return -1
    longest_ns, before_ns = 0, begin_ns
    for at_ns in acked[first:]:
        longest_ns = max(longest_ns, at_ns - before_ns)
        if at_ns > end_ns:
            break
        before_ns = at_ns
    return longest_ns // 1_000_000


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
