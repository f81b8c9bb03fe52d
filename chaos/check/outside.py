"""Judges histories of others, whose verdicts are known: is the search of `wgl` right?"""

from collections import defaultdict
from pathlib import Path
from typing import Any

from chaos.check.registers import MapKey, Register
from chaos.check.verdict import Check, Verdict
from chaos.check.wgl import NEVER, Judged, Timed, check
from chaos.history.outside import Format, OutsideOp, read_outside

TIMEOUT_S = 60.0


def check_outside(path: Path, format: Format, *, timeout_s: float = TIMEOUT_S) -> Verdict:
    """Whether a history is linearizable, key by key. timeout_s: for each key; running out of it is invalid.

    Raises RunUnreadable.
    """
    by_key: dict[str, list[Timed]] = defaultdict(list)
    ops = read_outside(path, format)
    for number, op in enumerate(ops):
        if (timed := _timed(number, op)) is not None:
            by_key[op.key].append(timed)
    told: list[tuple[str, Judged]] = []
    for key, of_key in sorted(by_key.items()):
        judged = (
            check(of_key, MapKey(), timeout_s=timeout_s)
            if format == "porcupine"
            else check(of_key, Register(), timeout_s=timeout_s)
        )
        told.append((key, judged))
        if judged.answer == "illegal":
            break
    one = _summed(told, len(ops))
    return Verdict(one.verdict, [one], {"steps": sum(judged.steps for _, judged in told)})


def _timed(number: int, op: OutsideOp) -> Timed | None:
    """As the models want it. A read that did not end in an answer tells nothing."""
    is_read = op.does in ("read", "get")
    if is_read and op.outcome != "ok":
        return None
    if op.outcome == "fail" and op.does != "cas":
        return None
    doing: tuple[str, ...] = (op.does,) if is_read else (op.does, op.asked)
    said: Any = op.said
    if op.does == "cas":
        doing = ("cas", *op.asked.strip("[]").split())
        said = op.outcome == "ok"
    return Timed(op.begin_at, NEVER if op.end_at is None else op.end_at, doing, said, number)


def _summed(told: list[tuple[str, Judged]], count: int) -> Check:
    counts: dict[str, int | float] = {"operations": count, "keys": len(told)}
    for key, judged in told:
        if judged.answer == "illegal" and judged.stuck is not None:
            stuck = judged.stuck
            example = {
                "key": key,
                "operation": stuck.number,
                "does": " ".join(map(str, stuck.doing)),
                "said": str(stuck.said),
                "lines": [stuck.begin_at, stuck.end_at],
                "longest": judged.longest,
            }
            why = f"operation {stuck.number} can take effect nowhere after the {len(judged.longest)} that can"
            return Check("linearizable", "fail", why, counts, [example])
    if any(judged.answer == "unknown" for _, judged in told):
        return Check("linearizable", "invalid", "the search did not end in time", counts)
    return Check("linearizable", "pass", "an order of all operations explains every answer", counts)
