"""What a run showed, in sentences for somebody who never saw the project."""

from collections import Counter

from chaos.check.verdict import EXAMPLES_MAX, Verdict
from chaos.history.file import History
from chaos.history.run import Run
from chaos.report.timeline import Timeline

NOT_JUDGED = "not judged"
ANSWERED_BY = "answered_by_"
"""Figures of a verdict that begin so: of one gateway, in percent."""
HEADLINES = {
    "pass": "Every promise was kept.",
    "fail": "A promise was broken.",
    "invalid": "This run proves nothing either way.",
    NOT_JUDGED: "Nobody has judged this run yet.",
}
MEANS = {
    "pass": "The faults took hold, clients were busy throughout, and no check found anything wrong.",
    "fail": "At least one check found something that must not happen. It is shown below, with examples.",
    "invalid": "A fault did not take hold, too little was asked, or something could not be read back at the end. "
    "An invalid run counts as a failure of the test, and says nothing of the cluster.",
    NOT_JUDGED: "The run was cut off before its checks. What was recorded is shown; `tiebreak chaos check` judges it.",
}
SHAPES = {
    "1+1+1": "one full replica in each of two datacenters and a tiebreaker that only votes: three real processes",
    "2+2+1": "two full replicas in each of two datacenters and a tiebreaker that only votes: five real processes",
}
GLOSSARY = (
    (
        "answered",
        "The request was carried out. A refusal by a rule, such as too little money, counts: it is an answer.",
    ),
    (
        "refused",
        "The member or gateway said at once that it did not and will not do it, for example since it reaches no "
        "majority. That is what a side that is cut off must do.",
    ),
    (
        "outcome unknown",
        "No answer within the deadline, or a connection that broke. It may have been done or not; the checks look up "
        "each such request afterwards, and it must have happened once or not at all.",
    ),
    (
        "member",
        "A process of the group that agrees on one order of all commands. Any majority can go on without the rest.",
    ),
    ("gateway", "A process in each datacenter that serves prices, portfolios and preferences, whatever is cut."),
    ("term", "Counts up with each election. In one term there is one leader at most."),
)


def verdict_word(verdict: Verdict | None) -> str:
    return verdict.verdict if verdict is not None else NOT_JUDGED


def sentences(run: Run, verdict: Verdict | None, history: History, made: Timeline) -> list[str]:
    """The run in three or four sentences: what was done to what, what came of it, why the verdict is so."""
    asked = Counter(op.outcome for op in history.ops)
    kinds = Counter(band.nemesis for band in made.bands if band.bit)
    faults = ", ".join(f"{count} × {name}" for name, count in kinds.most_common()) or "none"
    said = [
        f"For {run.seconds:.0f} seconds clients traded on {SHAPES.get(run.shape, run.shape)}, with a gateway in each "
        f"datacenter, while faults were put in: {faults}.",
        f"{sum(asked.values()):,} requests were made: {asked['ok']:,} were answered, {asked['fail']:,} refused, and "
        f"of {asked['unknown']:,} the outcome stayed unknown to whoever asked.",
    ]
    if busy := busy_words(run):
        said.append(busy)
    if verdict is not None:
        wrong = [check for check in verdict.checks if check.verdict != "pass"]
        if wrong:
            said += [f"{check.name}: {check.why}" for check in wrong[:EXAMPLES_MAX]]
        else:
            said.append(f"All {len(verdict.checks)} checks passed.")
    return said


BUSY_PERCENT = 60
"""A run of its own, on two cores, has less."""


def busy_words(run: Run) -> str:
    """Where the machine was short of CPU; else nothing."""
    if run.cpu_short_percent < BUSY_PERCENT:
        return ""
    return (
        f"The machine was short of CPU: during the faults some program waited for one {run.cpu_short_percent} % of the "
        "time. Late answers and long pauses may be the machine's own."
    )


def engine_words(run: Run) -> str:
    if run.stock:
        return "the Raft library as published, without what Tiebreak adds: it is expected to fail"
    if run.program not in ("", "shipped"):
        return f"a copy with one known fault put in ({run.program}): it is expected to fail"
    return "Tiebreak as shipped"


def tiles(verdict: Verdict | None, history: History, made: Timeline) -> list[tuple[str, str]]:
    """(figure, what it is), most telling first."""
    writes = max((one.for_s for one in made.outages if one.who == "writes"), default=0.0)
    figures = verdict.figures if verdict is not None else {}
    shares = [value for name, value in figures.items() if name.startswith(ANSWERED_BY) and isinstance(value, float)]
    bit = sum(band.bit for band in made.bands)
    shown = [
        (f"{sum(op.ok for op in history.ops):,}", "requests answered"),
        (f"{bit} of {len(made.bands)}", "faults seen to take hold"),
        (f"{len({reign.term for reign in made.reigns})}", "terms with a leader"),
        (seconds(writes) if writes else "none", "longest pause of writes"),
    ]
    if shares:
        shown.append((f"{min(shares):.2f} %".replace("100.00", "100"), "of reads answered, by either gateway at least"))
    heal = figures.get("converged_ms")
    if isinstance(heal, int | float) and heal >= 0:
        shown.append((seconds(heal / 1000), "until both sites agreed again"))
    return shown


def seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
