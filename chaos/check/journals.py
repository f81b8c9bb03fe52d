"""list-append: each account's journal is a list that shows its order in full; no index is trusted here."""

from collections import defaultdict

from chaos.check import words
from chaos.check.commands import TwoBodies, merged
from chaos.check.judging import Wrong, judge
from chaos.check.reading import consistency
from chaos.check.told import Told
from chaos.check.verdict import Check
from chaos.history.file import Op

Row = list[str]


def check_journals(told: Told) -> Check:
    """Reads of one journal are prefixes of one list, whose balances add up, in an order that real time allows; what was
    acknowledged before a read is in it, what was refused is in none."""
    appends: dict[str, dict[object, Op]] = defaultdict(dict)
    reads: dict[tuple[str, str], list[Op]] = defaultdict(list)
    for ops in told.commands.values():
        if "element" in ops[0].args:
            op = _one(ops)
            element = words.number(op.args["element"])
            for name in ("account", "source", "target"):
                if name in op.args:
                    appends[op.args[name]][element] = op
    for op in told.history.ops:
        if op.kind == "read_ledger" and op.ok:
            reads[op.args["account"], op.args["asset"]].append(op)
    wrong: Wrong = []
    for (account, _), of in reads.items():
        wrong += _judge(account, of, appends[account])
    counts = {
        "journals": len(reads),
        "reads": sum(map(len, reads.values())),
        "appends": sum(map(len, appends.values())),
    }
    return judge("journals", "every journal is one list, in an order that real time allows", wrong, counts)


def _one(ops: list[Op]) -> Op:
    try:
        return merged(ops) or ops[0]
    except TwoBodies:
        return ops[0]


def _judge(account: str, reads: list[Op], appends: dict[object, Op]) -> Wrong:
    whole = [op for op in reads if not op.answer.get("more")]
    if not whole:
        return []
    longest = max(whole, key=lambda op: len(op.answer["rows"]))
    rows: list[Row] = longest.answer["rows"]
    wrong: Wrong = []
    for op in whole:
        mine: list[Row] = op.answer["rows"]
        if mine != rows[: len(mine)]:
            wrong.append((f"{account}: operations {op.op} and {longest.op} read two lists", {"one": mine, "two": rows}))
    wrong += [(f"{account}: {why}", longest.said()) for why in (_chain(rows), _order(rows, appends)) if why]
    for op in whole:
        if consistency(op) == "linearizable" and (why := _missing(op, appends)):
            wrong.append((f"{account}: {why}", op.said()))
    return wrong


def _chain(rows: list[Row]) -> str:
    balance = words.number("0")
    for row, _, amount, after in rows:
        change = words.number(amount)
        if balance is None or change is None or words.number(after) != balance + change:
            return f"row {row} does not add up"
        balance = words.number(after)
    return "" if len({row[0] for row in rows}) == len(rows) else "a row is there twice"


def _order(rows: list[Row], appends: dict[object, Op]) -> str:
    """Each element once, by an operation that was not refused; none behind one that was called after its end."""
    latest: Op | None = None
    seen = set()
    for _, _, amount, _ in rows:
        element = _size(amount)
        op = appends.get(element)
        if op is None:
            continue
        if element in seen:
            return f"{amount} was appended twice"
        seen.add(element)
        if op.outcome == "fail" or "error" in op.answer:
            return f"{amount} was refused (operation {op.op}), and is there"
        if latest is not None and op.ok and op.return_ns < latest.call_ns:
            return f"operation {op.op} ended before {latest.op} was called, and stands behind it"
        if latest is None or op.call_ns > latest.call_ns:
            latest = op
    return ""


def _missing(read: Op, appends: dict[object, Op]) -> str:
    shown = {_size(amount) for _, _, amount, _ in read.answer["rows"]}
    for element, op in appends.items():
        asset = op.args.get("asset", read.args["asset"])
        acked = op.ok and "error" not in op.answer and op.return_ns < read.call_ns and asset == read.args["asset"]
        if acked and element not in shown:
            return f"operation {read.op} does not show what operation {op.op} had appended"
    return ""


def _size(amount: str) -> object:
    found = words.number(amount)
    return None if found is None else abs(found)
