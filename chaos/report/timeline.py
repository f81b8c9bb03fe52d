"""A run's history in pieces of a second: who answered what, what was cut meanwhile, and who led."""

from collections.abc import Iterable, Mapping
from itertools import pairwise

from msgspec import Struct

from chaos.history.file import NEVER_NS, History, Op
from chaos.history.records import Fault, Outcome, Phase, Seen, Stage

OUTCOMES: tuple[Outcome, ...] = ("ok", "fail", "unknown")
BINS_MAX = 180
"""More bars than this can't be told apart on a page."""
BIN_SECONDS = (0.5, 1, 2, 5, 10, 20, 30, 60)
OUTAGE_MIN_S = 0.5
"""Shorter gaps between two answers are what any busy machine shows."""
GATEWAY = "gateway-"


class Lane(Struct):
    """What one process answered. per_bin: for each outcome, how many in each piece. down: (from, to) when it was not
    to be reached by the watcher."""

    name: str
    site: str
    is_gateway: bool
    per_bin: dict[Outcome, list[int]]
    totals: dict[Outcome, int]
    down: list[tuple[float, float]]


class Band(Struct):
    """One fault. bit: it was seen to hold. to_s: its end, or the end of the run."""

    number: int
    nemesis: str
    targets: list[str]
    detail: dict[str, object]
    from_s: float
    to_s: float
    bit: bool
    failed: bool


class Reign(Struct):
    """Who led, from when to when."""

    name: str
    term: int
    from_s: float
    to_s: float


class Outage(Struct):
    """From the last acknowledged command before it to the first after it, while clients went on asking.

    who: `writes` for the cluster as a whole, a member, or a gateway. asked: requests that were sent meanwhile.
    faults: numbers of those that were in force. ended: False where no answer came any more.
    """

    who: str
    from_s: float
    for_s: float
    asked: int
    faults: list[int]
    ended: bool = True


class Timeline(Struct):
    """Everything in seconds since the first line of the history."""

    seconds: float
    bin_s: float
    lanes: list[Lane]
    bands: list[Band]
    reigns: list[Reign]
    phases: list[tuple[Stage, float, float]]
    outages: list[Outage]

    @property
    def bins(self) -> int:
        return max(1, int(self.seconds / self.bin_s) + 1)


def timeline(history: History, sites: Mapping[str, str]) -> Timeline:
    """Nothing needs to be complete: what is missing is not drawn. sites: of each member and gateway."""
    began_ns, ended_ns = _ends(history)
    seconds = (ended_ns - began_ns) / 1e9
    bin_s = next((one for one in BIN_SECONDS if seconds / one <= BINS_MAX), BIN_SECONDS[-1])
    made = Timeline(seconds, bin_s, [], [], [], [], [])
    made.phases = _phases(history.phases, began_ns, seconds)
    made.bands = _bands(history.faults, began_ns, seconds)
    made.reigns = _reigns(history.seen, began_ns, seconds)
    made.lanes = _lanes(history, sites, began_ns, made)
    made.outages = _outages(history.ops, began_ns, made)
    return made


def asked_until_s(made: Timeline) -> float:
    """When clients stopped asking: the final reads, restarts and checks behind it are no load."""
    ends = [to for name, _, to in made.phases if name in ("warmup", "faults", "healing")]
    return max(ends, default=made.seconds)


def _ends(history: History) -> tuple[int, int]:
    stamps = [fault.at_ns for fault in history.faults]
    stamps += [phase.at_ns for phase in history.phases]
    stamps += [one.at_ns for one in history.seen]
    stamps += [op.call_ns if op.return_ns == NEVER_NS else op.return_ns for op in history.ops]
    stamps += [op.call_ns for op in history.ops[:1]]
    return (min(stamps), max(stamps)) if stamps else (0, 0)


def _phases(phases: Iterable[Phase], began_ns: int, seconds: float) -> list[tuple[Stage, float, float]]:
    starts = [((one.at_ns - began_ns) / 1e9, one.name) for one in phases]
    ends = [*(at for at, _ in starts[1:]), seconds]
    return [(name, at, end) for (at, name), end in zip(starts, ends, strict=False)]


def _bands(faults: Iterable[Fault], began_ns: int, seconds: float) -> list[Band]:
    """One for each number of the plan, from its beginning to its end or to the run's."""
    bands: dict[int, Band] = {}
    for fault in faults:
        at = (fault.at_ns - began_ns) / 1e9
        band = bands.get(fault.number)
        if band is None:
            band = bands[fault.number] = Band(fault.number, fault.nemesis, [], {}, at, seconds, bit=False, failed=False)
        band.targets = fault.targets or band.targets
        band.detail = {**band.detail, **fault.detail}
        band.bit = band.bit or fault.did == "bite"
        if fault.did in ("end", "failed"):
            band.to_s = at
            band.failed = band.failed or fault.did == "failed"
    return sorted(bands.values(), key=lambda band: band.from_s)


def _reigns(seen: Iterable[Seen], began_ns: int, seconds: float) -> list[Reign]:
    """Each leader until one of a higher term is seen, or until it says itself that it leads no more, or is gone."""
    reigns: list[Reign] = []
    term, open_for = 0, ""
    for one in seen:
        at = (one.at_ns - began_ns) / 1e9
        leads = one.up and one.state == "leader"
        if leads and one.term > term:
            if open_for:
                reigns[-1].to_s = at
            reigns.append(Reign(one.name, one.term, at, seconds))
            term, open_for = one.term, one.name
        elif one.name == open_for and not leads:
            reigns[-1].to_s = at
            open_for = ""
        elif leads and one.term == term and not open_for and reigns and one.name == reigns[-1].name:
            # It did not answer for a moment, and leads the same term still.
            reigns[-1].to_s, open_for = seconds, one.name
    return reigns


def _lanes(history: History, sites: Mapping[str, str], began_ns: int, made: Timeline) -> list[Lane]:
    lanes: dict[str, Lane] = {}
    for op in history.ops:
        own = lanes.get(op.target)
        if own is None:
            empty: dict[Outcome, list[int]] = {outcome: [0] * made.bins for outcome in OUTCOMES}
            site, totals = sites.get(op.target, op.target), dict.fromkeys(OUTCOMES, 0)
            own = lanes[op.target] = Lane(op.target, site, op.target.startswith(GATEWAY), empty, totals, [])
        # Where no answer came at all, the time of the call is all there is.
        at_ns = op.call_ns if op.return_ns == NEVER_NS else op.return_ns
        own.per_bin[op.outcome][int((at_ns - began_ns) / 1e9 / made.bin_s)] += 1
        own.totals[op.outcome] += 1
    for name, spans in _downs(history.seen, began_ns, made.seconds).items():
        if name in lanes:
            lanes[name].down = spans
    return sorted(lanes.values(), key=lambda one: (one.site, one.is_gateway, one.name))


def _downs(seen: Iterable[Seen], began_ns: int, seconds: float) -> dict[str, list[tuple[float, float]]]:
    spans: dict[str, list[tuple[float, float]]] = {}
    since: dict[str, float] = {}
    for one in seen:
        at = (one.at_ns - began_ns) / 1e9
        if not one.up:
            since.setdefault(one.name, at)
        elif one.name in since:
            spans.setdefault(one.name, []).append((since.pop(one.name), at))
    for name, at in since.items():
        spans.setdefault(name, []).append((at, seconds))
    return spans


def _outages(ops: Iterable[Op], began_ns: int, made: Timeline) -> list[Outage]:
    """Commands for the cluster and each member; at gateways everything counts, as they serve reads."""
    answered: dict[str, list[float]] = {}
    asked: dict[str, list[float]] = {}
    until = asked_until_s(made)
    for op in ops:
        is_gateway = op.target.startswith(GATEWAY)
        called_s = (op.call_ns - began_ns) / 1e9
        if called_s > until or (not is_gateway and not op.key):
            continue
        for who in (op.target,) if is_gateway else (op.target, "writes"):
            asked.setdefault(who, []).append(called_s)
            if op.ok:
                answered.setdefault(who, []).append((op.return_ns - began_ns) / 1e9)
    found = [
        outage for who, calls in asked.items() for outage in _gaps(who, sorted(answered.get(who, [])), sorted(calls))
    ]
    for outage in found:
        to_s = outage.from_s + outage.for_s
        outage.faults = [band.number for band in made.bands if band.from_s < to_s and band.to_s > outage.from_s]
    return sorted(found, key=lambda one: -one.for_s)


def _gaps(who: str, answers: list[float], calls: list[float]) -> Iterable[Outage]:
    """Where somebody asked and the next answer was long in coming."""
    marks = [calls[0], *answers, calls[-1]]
    for place, (before, after) in enumerate(pairwise(marks)):
        if after - before < OUTAGE_MIN_S:
            continue
        asked = sum(before <= at < after for at in calls)
        if asked:
            ended = place < len(answers)
            yield Outage(who, before, after - before, asked, [], ended)
