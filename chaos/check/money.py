"""Money: nobody has less than nothing, and all that came in and did not go out is still there."""

from collections import defaultdict
from fractions import Fraction

from chaos.check import words
from chaos.check.judging import Wrong, invalid, judge
from chaos.check.told import Told
from chaos.check.verdict import Check
from chaos.history.file import Op

WORLD, FEES = "@world", "@fees"
Bounds = dict[str, tuple[Fraction, Fraction]]


def check_money(told: Told) -> Check:
    """By what clients were told alone: no log, no ledger. Each balance read, and the sum of those read in the end.

    The sum lies between what was acknowledged and what may have happened; fees that nobody read leave it a lower end.
    """
    wrong: Wrong = []
    seen = 0
    for op in told.history.ops:
        if op.ok and op.kind in ("read_account", "read_accounts"):
            seen += 1
            if why := _negative(op):
                wrong.append((f"operation {op.op}: {why}", op.said()))
    if lacks := told.lacks("final.json"):
        return invalid("money", lacks) if not wrong else judge("money", "", wrong, {"balances": seen})
    balances = told.final.balances
    for account, of in balances.items():
        if why := _less_than_nothing(account, of):
            wrong.append((f"in the end {why}", {account: of}))
    bounds = _bounds(told)
    for asset in sorted({asset for of in balances.values() for asset in of}):
        total = sum((_number(of[asset][0]) for of in balances.values() if asset in of), Fraction())
        low, high = (Fraction(), Fraction()) if WORLD in balances else bounds.get(asset, (Fraction(), Fraction()))
        if not low <= total <= high:
            between = f"{words.plain(low)} and {words.plain(high)}"
            wrong.append((f"all accounts together have {words.plain(total)} {asset}, not between {between}", {}))
    return judge(
        "money", "nobody owes, and nothing was made or lost", wrong, {"balances": seen, "accounts": len(balances)}
    )


def _bounds(told: Told) -> Bounds:
    """The least and the most that can be there of each asset, by the deposits and withdrawals of the history."""
    low: dict[str, Fraction] = defaultdict(Fraction)
    high: dict[str, Fraction] = defaultdict(Fraction)
    asked: dict[str, Op] = {}
    posted: list[Op] = []
    takes_fees = False
    for ops in told.commands.values():
        done = next((op for op in ops if op.ok and "error" not in op.answer), None)
        refused = all(op.outcome == "fail" or "error" in op.answer for op in ops)
        if refused:
            continue
        op = done or ops[0]
        if op.kind == "deposit":
            amounts = [_number(one.args["amount"]) for one in ops if one.outcome != "fail"]
            high[op.args["asset"]] += max(amounts) if done is None else _number(done.args["amount"])
            low[op.args["asset"]] += _number(done.args["amount"]) if done is not None else 0
        elif op.kind == "request_withdrawal" and done is not None:
            asked[str(done.answer.get("id"))] = done
        elif op.kind == "close_withdrawal" and op.args.get("post"):
            posted.append(op)
        elif op.kind in ("add_instrument", "change_instrument") and (
            op.args.get("maker_bps") or op.args.get("taker_bps")
        ):
            takes_fees = True
    for op in posted:
        withdrawal = asked.get(str(op.args["withdrawal_id"]))
        if withdrawal is not None:
            amount = _number(withdrawal.args["amount"])
            low[withdrawal.args["asset"]] -= amount
            if op.ok:
                high[withdrawal.args["asset"]] -= amount
    if takes_fees and FEES not in told.final.balances:
        low.clear()
    return {asset: (low[asset], high[asset]) for asset in high}


def _negative(op: Op) -> str:
    found = op.answer.get("balances", {})
    of_one = {op.args["account"]: found} if op.kind == "read_account" else found
    return next((why for account, of in of_one.items() if (why := _less_than_nothing(account, of))), "")


def _less_than_nothing(account: str, of: dict[str, list[str]]) -> str:
    for asset, (total, available) in of.items():
        if account != WORLD and not 0 <= _number(available) <= _number(total):
            return f"{account} has {total} {asset}, of which {available} is available"
    return ""


def _number(text: object) -> Fraction:
    """A balance that is no number is less than nothing."""
    found = words.number(text)
    return Fraction(-1) if found is None else found
