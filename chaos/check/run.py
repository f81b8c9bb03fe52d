"""Judges the folder of a run: all checkers, one verdict. Reads only; a stored run gets the same verdict again."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chaos.check import availability, commands, copies, enough, feed, journals, money, outage, preferences, reading
from chaos.check.replay import replay
from chaos.check.searched import check_registers
from chaos.check.told import COMMANDS, Told, read_told
from chaos.check.verdict import Check, Verdict, overall

NEED_THE_LOG = frozenset(
    {"answers", "order", "false_acks", "lost", "phantoms", "resolved", "idempotence", "money", "reads", "events"}
)
Figures = dict[str, float | int | str | None]


def check_run(folder: Path) -> Verdict:
    """Raises RunUnreadable: this is no run's folder, or what it has is broken in the middle."""
    with _without_collections():
        return judge_told(read_told(folder))


@contextmanager
def _without_collections() -> Iterator[None]:
    """All that is read stays until the end; to look for garbage in it again and again takes a fifth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def judge_told(told: Told) -> Verdict:
    done = replay(told)
    checks = [
        enough.check_faults(told),
        enough.check_enough(told),
        enough.check_final(told),
        commands.check_log(told),
        commands.check_answers(told, done),
        commands.check_order(told, done),
        commands.check_false_acks(told),
        commands.check_lost(told, done),
        commands.check_phantoms(told, done),
        commands.check_resolved(told, done),
        commands.check_idempotence(told),
        money.check_money(told),
        reading.check_reads(told, done),
        reading.check_stale(told),
        check_registers(told),
        journals.check_journals(told),
        feed.check_events(told, done),
        copies.check_digests(told),
        availability.check_minority(told),
        availability.check_gateways(told),
        availability.check_ages(told),
        outage.check_outage(told),
        copies.check_convergence(told),
        preferences.check_items(told),
    ]
    if not told.log_is_whole:
        checks = [_not_told(check) if check.name in NEED_THE_LOG else check for check in checks]
    return Verdict(overall(checks), checks, _figures(told, checks))


def _not_told(check: Check) -> Check:
    """What is wrong by half a log may be right by all of it."""
    if check.verdict != "fail":
        return check
    return Check(check.name, "invalid", f"entries of the log are missing; by the others, {check.why}", check.counts)


def _figures(told: Told, checks: list[Check]) -> Figures:
    """What a report shows beside the verdict."""
    by_name = {check.name: check for check in checks}
    ops = told.history.ops
    begin_ns, end_ns = told.history.phase_ns("faults"), told.history.phase_ns("healing")
    figures: Figures = {
        "operations": len(ops),
        "ok": sum(op.ok for op in ops),
        "failed": sum(op.outcome == "fail" for op in ops),
        "unknown": sum(op.outcome == "unknown" for op in ops),
        "commands": sum(op.kind in COMMANDS for op in ops),
        "log_lines": len(told.log),
        "events": len(told.events),
        "outage_p50_ms": by_name["outage"].counts.get("p50_ms"),
        "outage_max_ms": by_name["outage"].counts.get("max_ms"),
        "converged_ms": told.final.converged_ms if told.final.converged_ms >= 0 else None,
        "gateway_reads": by_name["gateways"].counts.get("reads"),
        "gateway_reads_answered": by_name["gateways"].counts.get("answered"),
        "age_understated_ms_max": by_name["ages"].counts.get("understated_ms_max"),
    }
    if told.run.cpu_short_percent >= 0:
        figures["cpu_short_percent"] = told.run.cpu_short_percent
    if told.run.restarts:
        figures["proxies_restarted"] = len(told.run.restarts)
    if begin_ns is not None and end_ns is not None and end_ns > begin_ns:
        during = [op for op in ops if begin_ns <= op.call_ns < end_ns]
        figures["ok_per_s"] = round(sum(op.ok for op in during) * 1e9 / (end_ns - begin_ns), 1)
    for gateway, one in sorted(availability.asked_of_gateways(told).items()):
        figures[f"answered_by_{gateway}_percent"] = round(one.percent, 3)
    return figures
