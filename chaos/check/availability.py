"""Who answered while faults held: never a side without a majority for writes, always both gateways for reads."""

from bisect import bisect_right

from chaos.check.judging import Wrong, invalid, judge
from chaos.check.replay import READS
from chaos.check.told import COMMANDS, Told
from chaos.check.verdict import Check
from chaos.history.file import NEVER_NS, Op
from chaos.history.records import Fault

GATEWAY = "gateway"
GATEWAY_SHARE_MIN = 0.999
"""What came later than its client waited, 1.2 s, was not answered."""
GATEWAY_READS_MIN = 1_000
"""Of fewer, not one could be missing: 99.9 % can't be told from less."""
AGE_SLACK_MS = 2_000
"""A follower learns of a commit a heartbeat later, and processes of a busy machine wait."""
AN_ANSWER = frozenset({"account_not_found", "order_not_found", "not_found", "symbol_not_found"})
"""Refusals that are what a gateway knows."""
OF_CLIENTS = frozenset({"client-cut"})
"""Faults of the clients' own connections: what was under way then says nothing of a gateway."""
FELT_NS = 100_000_000
"""A client may send one more before it sees that its connection was cut."""
BACK_NS = 5_000_000_000
"""A gateway that was killed or stopped may take so long to be back."""


class Force:
    """One fault while it surely held: from when it was seen to bite until it began to be taken away."""

    def __init__(self, told: Told, bite: Fault) -> None:
        mine = [fault for fault in told.history.faults if fault.number == bite.number]
        begin = next((fault for fault in mine if fault.did == "begin"), bite)
        end_ns = next((fault.at_ns for fault in mine if fault.did == "end"), NEVER_NS)
        planned = next((planned for planned in told.run.plan if planned.number == bite.number), None)
        self.nemesis = bite.nemesis
        self.targets = bite.targets or begin.targets
        self.detail = {**begin.detail, **bite.detail}
        self.begin_ns = begin.at_ns
        # Putting a fault in takes time, and `begin` is written after it.
        self.started_ns = begin.at_ns - int(self.detail.get("took_ms", 0)) * 1_000_000
        self.bite_ns = bite.at_ns
        self.end_ns = end_ns
        # Taking a fault away takes time, and `end` is written after it.
        held_ns = int(planned.for_s * 1e9) if planned is not None else NEVER_NS
        self.until_ns = min(end_ns, self.started_ns + held_ns)

    @property
    def minority(self) -> list[str]:
        return list(self.detail.get("minority", []))

    @property
    def majority(self) -> list[str]:
        return list(self.detail.get("majority", []))


def forces(told: Told) -> list[Force]:
    return [Force(told, fault) for fault in told.history.faults if fault.did == "bite"]


def check_minority(told: Told) -> Check:
    """A member that reaches no majority acknowledges no new write: it refuses, or says that it does not know."""
    changing = [force for force in forces(told) if force.nemesis == "replaced"]
    held = [force for force in forces(told) if force.minority]
    wrong: Wrong = []
    asked = 0
    for op in told.history.ops:
        if op.kind not in COMMANDS:
            continue
        for force in held:
            if op.target in force.minority and force.bite_ns <= op.call_ns and op.return_ns <= force.until_ns:
                asked += 1
                if op.ok and not op.replay and not any(_overlap(force, other) for other in changing):
                    why = f"operation {op.op} was acknowledged by {op.target}, which could reach no majority"
                    wrong.append((why, {**op.said(), "fault": force.nemesis, "number": held.index(force) + 1}))
    return judge("minority", "who had no majority acknowledged nothing", wrong, {"faults": len(held), "asked": asked})


def _overlap(one: Force, other: Force) -> bool:
    return one.started_ns < other.end_ns and other.started_ns < one.end_ns


def is_gateway_read(op: Op) -> bool:
    """What a gateway answers by itself; reads of the ledger that it passes on need a leader."""
    return op.target.startswith(GATEWAY) and op.kind.startswith("read_") and op.kind not in READS


class Asked:
    """What one gateway was asked while faults held, and how much of it was answered."""

    def __init__(self) -> None:
        self.reads = 0
        self.missed: list[Op] = []

    @property
    def percent(self) -> float:
        return 100 * (self.reads - len(self.missed)) / self.reads


def asked_of_gateways(told: Told) -> dict[str, Asked]:
    """By gateway; what it could not answer because it was killed itself is left out."""
    found: dict[str, Asked] = {}
    begin_ns = told.history.phase_ns("faults") or 0
    end_ns = told.history.phase_ns("final") or NEVER_NS
    struck = forces(told)
    for op in told.history.ops:
        if is_gateway_read(op) and begin_ns <= op.call_ns < end_ns and not _excused(op, struck):
            of_one = found.setdefault(op.target, Asked())
            of_one.reads += 1
            if not (op.ok or op.error in AN_ANSWER):
                of_one.missed.append(op)
    return found


def check_gateways(told: Told) -> Check:
    """Each gateway answers at least 99.9 % of what it is asked while faults hold, save while it was killed itself."""
    if told.history.phase_ns("faults") is None:
        return invalid("gateways", "the history names no phase of faults")
    found = asked_of_gateways(told)
    wrong: Wrong = [
        (
            f"{gateway} answered {one.percent:.2f} % of {one.reads} reads",
            {"missed": len(one.missed), "first": one.missed[0].said()},
        )
        for gateway, one in sorted(found.items())
        if len(one.missed) > one.reads * (1 - GATEWAY_SHARE_MIN)
    ]
    reads = sum(one.reads for one in found.values())
    answered = reads - sum(len(one.missed) for one in found.values())
    counts = {"reads": reads, "answered": answered}
    few = [
        f"{gateway} was asked {found[gateway].reads if gateway in found else 0} times"
        for gateway in sorted({name for name in told.run.sites if name.startswith(GATEWAY)} | set(found))
        if gateway not in found or found[gateway].reads < GATEWAY_READS_MIN
    ]
    if few and not wrong:
        why = f"{', '.join(few)}; under {GATEWAY_READS_MIN} a single miss would decide: run it longer"
        return invalid("gateways", why, counts)
    holds = f"gateways answered {answered} of {reads} reads" if reads else "there is no gateway"
    return judge("gateways", holds, wrong, counts)


def _excused(op: Op, struck: list[Force]) -> bool:
    """Whether the gateway itself, or the caller's connection, was the target."""
    for force in struck:
        if force.nemesis in OF_CLIENTS:
            # They are cut when it begins; who asks later has a new one.
            held = op.call_ns < force.begin_ns + FELT_NS
        else:
            held = op.target in force.targets and op.call_ns < force.end_ns + BACK_NS
        if held and op.return_ns > force.started_ns:
            return True
    return False


def check_ages(told: Told) -> Check:
    """No gateway says that it is younger than it is: what it shows was the newest at the time that it names.

    By what was acknowledged: when the first command behind a gateway's index had been answered, that index was old.
    """
    acked = sorted(
        ((op.index, op.return_ns) for op in told.history.ops if op.ok and op.index and op.kind in COMMANDS),
        reverse=True,
    )
    indexes, earliest = [], []
    soonest_ns = NEVER_NS
    for index, return_ns in acked:
        soonest_ns = min(soonest_ns, return_ns)
        indexes.append(-index)
        earliest.append(soonest_ns)
    wrong: Wrong = []
    worst_ms = shown = 0
    for op in told.history.ops:
        index = op.answer.get("index", 0) if is_gateway_read(op) and op.ok else 0
        if not index:
            continue
        shown += 1
        beyond = bisect_right(indexes, -int(index) - 1)
        old_since_ns = earliest[beyond - 1] if beyond else NEVER_NS
        old_ms = (op.call_ns - old_since_ns) // 1_000_000
        if op.age_ms < 0:
            wrong.append((f"operation {op.op}: an answer with an index and without an age", op.said()))
        elif old_ms > 0:
            worst_ms = max(worst_ms, old_ms - op.age_ms)
            if old_ms - op.age_ms > AGE_SLACK_MS:
                why = f"operation {op.op}: {op.target} said {op.age_ms} ms, and was at least {old_ms} ms old"
                wrong.append((why, op.said()))
    return judge("ages", "no gateway was older than it said", wrong, {"answers": shown, "understated_ms_max": worst_ms})
