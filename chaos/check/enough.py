"""Does a run show anything? Faults bit, enough was acknowledged, and all was read back."""

from chaos.check.judging import invalid, judge
from chaos.check.told import Told
from chaos.check.verdict import Check


def check_faults(told: Told) -> Check:
    """Every fault that began was seen to bite, none failed, and all kinds that the scenario requires were there."""
    did: dict[str, set[int]] = {"begin": set(), "bite": set(), "end": set(), "failed": set()}
    bitten: dict[str, int] = {}
    for fault in told.history.faults:
        did[fault.did].add(fault.number)
        if fault.did == "bite":
            bitten[fault.nemesis] = bitten.get(fault.nemesis, 0) + 1
    counts = {"began": len(did["begin"]), "bit": len(did["bite"])}
    failed = [fault for fault in told.history.faults if fault.did == "failed"]
    if failed:
        why = failed[0].detail.get("why", "")
        return invalid("faults", f"{failed[0].nemesis} (number {failed[0].number}) failed: {why}", counts)
    if unseen := did["begin"] - did["bite"]:
        return invalid("faults", f"number {min(unseen)} was not seen to bite", counts)
    if missing := [nemesis for nemesis in told.run.expect if nemesis not in bitten]:
        return invalid("faults", f"{', '.join(missing)} had to bite and never did", counts)
    return judge("faults", "every fault was seen to bite", [], counts)


def check_enough(told: Told) -> Check:
    """At least so many operations were acknowledged, and the history has an end."""
    ok = sum(op.ok for op in told.history.ops)
    counts = {"operations": len(told.history.ops), "ok": ok, "torn_lines": told.history.torn}
    if told.history.phase_ns("end") is None or told.history.torn:
        return invalid("enough", "the history has no end: the run was cut short", counts)
    if ok < told.run.min_ok:
        return invalid(
            "enough", f"{ok} operations were acknowledged; under {told.run.min_ok} a run shows little", counts
        )
    return judge("enough", "enough was acknowledged", [], counts)


def check_final(told: Told) -> Check:
    """All that had to be read back was."""
    if lacks := told.lacks("final.json"):
        return invalid("final", lacks)
    final = told.final
    counts = {"keys": len(final.outcomes), "accounts": len(final.balances), "sites": len(final.sites)}
    if not final.complete:
        return invalid("final", f"the final reads are not complete: {final.why}", counts)
    return judge("final", "everything was read back", [], counts)
