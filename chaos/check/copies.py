"""Checkers of copies: members' digests, and how soon the sites agree again."""

from chaos.check.judging import Wrong, invalid, judge
from chaos.check.told import Told
from chaos.check.verdict import Check
from chaos.history.records import Replica

CONVERGED_MS_MAX = 5_000
"""From the last heal until all gateways have the same preferences and alerts."""


def check_digests(told: Told) -> Check:
    """Full replicas have one digest at one index, before and after all of them were stopped and started."""
    if lacks := told.lacks("final.json"):
        return invalid("digests", lacks)
    before, after = told.final.digests, told.final.digests_after_restart
    counts = {"before": len(before), "after_restart": len(after)}
    if len(before) < 2 or len(after) < 2:
        return invalid("digests", "fewer than two replicas were compared, before and after a restart", counts)
    by_index: dict[int, dict[str, list[str]]] = {}
    for when, replicas in (("before", before), ("after the restart", after)):
        for replica in replicas:
            by_index.setdefault(replica.applied, {}).setdefault(replica.digest, []).append(f"{replica.name} {when}")
    wrong = [
        (f"digests differ at index {index}", {"index": index, "digests": digests})
        for index, digests in sorted(by_index.items())
        if len(digests) > 1
    ]
    apart = [replicas for replicas in (before, after) if len({replica.applied for replica in replicas}) > 1]
    if apart and not wrong:
        return invalid("digests", f"replicas were compared at different indexes: {_indexes(apart[0])}", counts)
    return judge("digests", "all replicas are equal, before and after a restart", wrong, counts)


def _indexes(replicas: list[Replica]) -> str:
    return ", ".join(f"{replica.name} {replica.applied}" for replica in replicas)


def check_convergence(told: Told) -> Check:
    """After the heal the sites' preferences become equal, within CONVERGED_MS_MAX."""
    if lacks := told.lacks("final.json"):
        return invalid("convergence", lacks)
    sites = told.final.sites
    if len(sites) < 2 or not any(sites.values()):
        return judge("convergence", "no sites that could differ", [], {"sites": len(sites)})
    wrong: Wrong = []
    first, *others = sorted(sites)
    for other in others:
        for user in sorted({*sites[first], *sites[other]}):
            one, two = sites[first].get(user), sites[other].get(user)
            if _form(one) != _form(two):
                wrong.append((f"{first} and {other} differ on {user}", {first: one, other: two}))
    took_ms = told.final.converged_ms
    if not 0 <= took_ms <= CONVERGED_MS_MAX:
        took = f"took {took_ms} ms" if took_ms >= 0 else "did not end"
        wrong.append((f"convergence {took}; {CONVERGED_MS_MAX} ms are allowed", {}))
    return judge("convergence", f"the sites were equal {took_ms} ms after the heal", wrong, {"converged_ms": took_ms})


def _form(site: object) -> object:
    """Without regard to the order of items."""
    if isinstance(site, dict):
        return {name: sorted(value) if isinstance(value, list) else value for name, value in site.items()}
    return site
