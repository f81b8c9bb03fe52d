"""The second opinion: registers and accounts of a run, one by one, searched for an order without trusting an index."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import datetime
from fractions import Fraction
from typing import Any

from chaos.check import words
from chaos.check.commands import TwoBodies, merged
from chaos.check.judging import Wrong, invalid, judge
from chaos.check.reading import consistency
from chaos.check.registers import Account, Reference, Register
from chaos.check.told import Told
from chaos.check.verdict import Check
from chaos.check.wgl import NEVER, Judged, Timed, check
from chaos.history.file import Op

OPS_MAX = 200
"""Of one object: the first so many are judged. The search can take for ever on long histories."""
TIMEOUT_S = 5.0
"""For each object."""
UNITS = 10**12
"""Amounts are counted in so small a part: no asset has a smaller one."""
NOT_DONE = ("key_reused", "instrument_not_found", "account_not_found")
"""Refusals that say nothing of a register's value."""

Judge = Callable[[list[Timed]], Judged]
Objects = dict[tuple[str, ...], list[Timed]]


def check_registers(told: Told) -> Check:
    """Each object by itself: a history is linearizable exactly when each part that shares nothing is.

    An account takes part when no order or withdrawal ever held anything of it.
    """
    orders, references, accounts = _registers(told)
    jobs: list[tuple[tuple[str, ...], list[Timed], Judge]] = []
    jobs += [(name, ops, lambda ops: check(ops, Register(), timeout_s=TIMEOUT_S)) for name, ops in orders.items()]
    jobs += [(name, ops, lambda ops: check(ops, Reference(), timeout_s=TIMEOUT_S)) for name, ops in references.items()]
    jobs += [(name, ops, lambda ops: check(ops, Account(), timeout_s=TIMEOUT_S)) for name, ops in accounts.items()]
    wrong: Wrong = []
    given_up: list[str] = []
    judged_ops = left_out = 0
    for name, ops, judge_one in jobs:
        first = earliest(ops, OPS_MAX)
        judged_ops += len(first)
        left_out += len(ops) - len(first)
        judged = judge_one(first)
        if judged.answer == "unknown":
            given_up.append(" ".join(name))
        elif judged.answer == "illegal" and judged.stuck is not None:
            stuck = judged.stuck
            why = f"{' '.join(name)}: nothing explains operation {stuck.number}"
            shown = {"does": " ".join(map(str, stuck.doing)), "said": str(stuck.said), "longest": judged.longest}
            wrong.append((why, {"operation": stuck.number, **shown}))
    counts = {"objects": len(jobs), "operations": judged_ops, "left_out": left_out}
    if given_up and not wrong:
        return invalid("registers", f"the search did not end in time for {given_up[0]}", counts)
    return judge("registers", "an order of all operations explains each register and account", wrong, counts)


def earliest(ops: Iterable[Timed], count: int) -> list[Timed]:
    """The first operations by their calls. Of what ended after the next one's call, an answer may tell of operations
    that are left out: such reads are left out too, and such writes are of unknown outcome."""
    by_call = sorted(ops, key=lambda op: op.begin_at)
    if len(by_call) <= count:
        return by_call
    until = by_call[count].begin_at
    first = []
    for op in by_call[:count]:
        if op.end_at < until:
            first.append(op)
        elif op.doing != ("read",):
            first.append(Timed(op.begin_at, NEVER, op.doing, None, op.number))
    return first


def _registers(told: Told) -> tuple[Objects, Objects, Objects]:
    orders: Objects = defaultdict(list)
    references: Objects = defaultdict(list)
    accounts: Objects = defaultdict(list)
    by_key = told.commands
    held = _not_judged(by_key)
    cas_accounts = {op.args["register"] for op in told.history.ops if op.args.get("f") == "cas"}
    for ops in by_key.values():
        try:
            op = merged(ops)
        except TwoBodies:
            continue
        if op is None:
            continue
        end_at = op.return_ns if op.ok else NEVER
        error = op.answer.get("error", "")
        if error in NOT_DONE:
            continue
        if op.kind == "place_order" and op.args.get("account") in cas_accounts and not error:
            orders["register", op.args["account"]].append(Timed(op.call_ns, end_at, ("write", op.key), None, op.op))
        elif op.args.get("f") == "cas":
            doing = ("cas", op.args["expect"], op.args["value"])
            orders["register", op.args["register"]].append(Timed(op.call_ns, end_at, doing, not error, op.op))
        elif op.kind == "set_reference":
            doing = ("set", _micros(op.args["observed_at"]), str(words.number(op.args["price"])))
            references["reference", op.args["symbol"]].append(Timed(op.call_ns, end_at, doing, not error, op.op))
        else:
            _money(accounts, op, end_at, error, held)
    for op in told.history.ops:
        if op.ok and consistency(op) == "linearizable":
            _read(orders, references, accounts, op)
    return orders, references, accounts


_HOLDING = frozenset({"place_order", "request_withdrawal"})


def _not_judged(by_key: dict[str, list[Op]]) -> set[Any]:
    """Accounts of which something may be held, or of which nobody knows what was done to them."""
    found = set()
    for ops in by_key.values():
        unclear = False
        try:
            merged(ops)
        except TwoBodies:
            unclear = True
        for op in ops:
            if unclear or op.kind in _HOLDING:
                found |= {op.args.get(name) for name in ("account", "source", "target")}
    return found


def _money(accounts: Objects, op: Op, end_at: int, error: str, held: set[Any]) -> None:
    if op.kind not in ("deposit", "transfer"):
        return
    source, target = op.args.get("source"), op.args.get("target", op.args.get("account"))
    units, asset = _units(op.args["amount"]), op.args["asset"]
    if source is not None and source not in held and error in ("", "insufficient_funds"):
        accounts["account", source, asset].append(Timed(op.call_ns, end_at, ("take", units), not error, op.op))
    if target is not None and target not in held and not error:
        accounts["account", target, asset].append(Timed(op.call_ns, end_at, ("add", units), None, op.op))


def _read(orders: Objects, references: Objects, accounts: Objects, op: Op) -> None:
    def seen(of: Objects, name: tuple[str, ...], said: Any) -> None:
        if name in of:
            of[name].append(Timed(op.call_ns, op.return_ns, ("read",), said, op.op))

    if op.kind == "read_open_orders" and "value" in op.answer:
        seen(orders, ("register", op.args["account"]), op.answer["value"] or "")
    elif op.kind == "read_reference":
        shown = op.answer.get("value", op.answer.get("price"))
        seen(references, ("reference", op.args["symbol"]), None if shown is None else str(words.number(shown)))
    elif op.kind in ("read_account", "read_accounts"):
        found = op.answer.get("balances", {})
        of_each = {op.args["account"]: found} if op.kind == "read_account" else found
        for account, of in of_each.items():
            for asset, (total, _) in of.items():
                seen(accounts, ("account", account, asset), _units(total))


def _units(amount: Any) -> int:
    found = words.number(amount)
    return -1 if found is None else int(Fraction(found) * UNITS)


def _micros(rfc3339: str) -> int:
    moment = datetime.fromisoformat(rfc3339)
    return int(moment.timestamp()) * 1_000_000 + moment.microsecond
