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
OUTAGE_ASKED_MIN = 3
"""Where fewer asked, nobody can tell a pause from a quiet moment."""
GATEWAY = "gateway-"
TOOK_MS = "took_ms"
"""In the detail of a fault: how long it took to put it in."""


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
    """Everything in seconds since the load began; what was before it is not in the picture, nor the restart after."""

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
    history, began_ns, ended_ns = _loaded(history)
    seconds = (ended_ns - began_ns) / 1e9
    bin_s = next((one for one in BIN_SECONDS if seconds / one <= BINS_MAX), BIN_SECONDS[-1])
    made = Timeline(seconds, bin_s, [], [], [], [], [])
    made.phases = _phases(history.phases, began_ns, seconds)
    made.bands = _bands(history.faults, began_ns, seconds)
    made.reigns = _reigns(history.seen, began_ns, seconds)
    made.lanes = _lanes(history, sites, began_ns, made)
    made.outages = _outages(history.ops, began_ns, made)
    return made


def _loaded(history: History) -> tuple[History, int, int]:
    """The part with load, from when to when. Where a run was cut off before its end, up to there."""
    stamps = [op.call_ns for op in history.ops] + [one.at_ns for one in history.seen]
    stamps += [op.return_ns for op in history.ops if op.return_ns != NEVER_NS]
    stamps += [fault.at_ns for fault in history.faults] + [phase.at_ns for phase in history.phases]
    began_ns = history.phase_ns("warmup") or min(stamps, default=0)
    ended_ns = history.phase_ns("final") or max(stamps, default=0)
    part = History(
        [op for op in history.ops if began_ns <= op.call_ns <= ended_ns],
        [fault for fault in history.faults if began_ns <= fault.at_ns <= ended_ns],
        [phase for phase in history.phases if began_ns <= phase.at_ns < ended_ns],
        [one for one in history.seen if began_ns <= one.at_ns <= ended_ns],
    )
    return part, began_ns, ended_ns


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
            # It is written down when it stands everywhere; until then links are cut one after the other.
            took_s = fault.detail.get(TOOK_MS, 0) / 1000
            from_s = max(0.0, at - took_s)
            band = Band(fault.number, fault.nemesis, [], {}, from_s, seconds, bit=False, failed=False)
            bands[fault.number] = band
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
        place = int((at_ns - began_ns) / 1e9 / made.bin_s)
        own.per_bin[op.outcome][min(place, made.bins - 1)] += 1
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
    for op in ops:
        is_gateway = op.target.startswith(GATEWAY)
        called_s = (op.call_ns - began_ns) / 1e9
        if not is_gateway and not op.key:
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
        if asked >= OUTAGE_ASKED_MIN:
            ended = place < len(answers)
            yield Outage(who, before, after - before, asked, [], ended)
