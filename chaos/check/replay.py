"""Executes the committed log once more in the independent ledger, and asks it at each index what was read there."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby

from msgspec import Struct

from chaos.check import words
from chaos.check.ledger import Bounds, Model, No
from chaos.check.logged import command_of, envelope_of
from chaos.check.told import Told
from chaos.check.words import Words
from chaos.history.file import Op
from chaos.history.records import Logged
from statemachine.codes import Code
from statemachine.events import AnyEvent
from statemachine.results import Repeat

NOT_STORED = frozenset(
    {Code.key_required, Code.key_reused, Code.key_too_old, Code.key_quota_exceeded, Code.sent_in_future}
    | {Code.writes_stopped}
)
"""Refusals that are not kept under the key."""
OPEN_ORDERS_SHOWN = 50
Place = tuple[str, str]


class Executed(Struct, frozen=True):
    """The first, and only, time that a key took effect. answer: what all who sent it must be told. asked: its body."""

    index: int
    position: int
    line: Logged
    answer: Words
    asked: Words

    @property
    def place(self) -> tuple[int, int]:
        return self.index, self.position


class Wrong(Struct, frozen=True):
    """A read that the ledger does not explain. why: what is different, and how it should be."""

    op: Op
    why: str


class Replayed(Struct):
    """executed: by key. lines: all of a key, executed or not, with what each must have been answered.

    owned: (index, units) after each entry that changed what an account owns of an asset. happened: the time of an
    entry, and the events that it must have led to, where there are any. error: where it ended early.
    """

    model: Model
    executed: dict[str, Executed]
    lines: dict[str, dict[int, Words]]
    owned: dict[Place, list[tuple[int, int]]]
    happened: dict[int, tuple[int, list[AnyEvent]]]
    wrong_reads: list[Wrong]
    reads: int = 0
    last_index: int = 0
    error: str = ""


class _Recording(Model):
    """Notes whose balances an entry changes."""

    def __init__(self, bounds: Bounds) -> None:
        super().__init__(bounds)
        self.touched: set[Place] = set()

    def move(self, asset: str, source: str, target: str, amount: int) -> None:
        super().move(asset, source, target, amount)
        self.touched.add((source, asset))
        self.touched.add((target, asset))


def replay(told: Told) -> Replayed:
    """Reads nothing but `told`. Work: one command of the ledger per line, one look per read."""
    model = _Recording(Bounds())
    done = Replayed(model, {}, defaultdict(dict), defaultdict(list), {}, [])
    reads = _reads(told)
    waiting = next(reads, None)
    for index, group in groupby(told.log, lambda line: line.index):
        while waiting is not None and waiting.index < index:
            _ask(done, waiting)
            waiting = next(reads, None)
        try:
            _execute(done, model, index, [line for line in group if line.kind])
        except ValueError as error:
            done.error = str(error)
            return done
        done.last_index = index
    while waiting is not None:
        if waiting.index > done.last_index:
            done.wrong_reads.append(Wrong(waiting, f"read at index {waiting.index}; the log ends at {done.last_index}"))
        else:
            _ask(done, waiting)
        waiting = next(reads, None)
    return done


def _reads(told: Told) -> Iterator[Op]:
    """By the index that they were served at; the balances that were read in the end among them."""
    reads = [op for op in told.history.ops if op.ok and op.index and op.kind in _LOOKS]
    if told.final.balances and told.final.index:
        final = Op(0, 0, "final", "read_accounts", "", "", {"accounts": list(told.final.balances)}, 0)
        final.index, final.answer = told.final.index, {"balances": told.final.balances}
        reads.append(final)
    return iter(sorted(reads, key=lambda op: op.index))


def _execute(done: Replayed, model: _Recording, index: int, lines: list[Logged]) -> None:
    if not lines:
        return
    model.touched.clear()
    told = [command_of(line) for line in lines]
    log = model.apply(index, lines[0].stamp_us, list(map(envelope_of, lines, told)))
    for line, command, result in zip(lines, told, log.answers, strict=True):
        if not line.key:
            continue
        if isinstance(result, Repeat):
            # Not in place of a refusal of another body that stands in the same entry.
            done.lines[line.key].setdefault(index, done.executed[line.key].answer)
            continue
        answer = words.answer(model, command, result)
        done.lines[line.key][index] = answer
        if not (isinstance(result, No) and result.codes & NOT_STORED):
            executed = Executed(index, line.position, line, answer, words.asked(model, command))
            done.executed.setdefault(line.key, executed)
    if log.happened:
        done.happened[index] = model.now, log.happened
    for place in model.touched:
        done.owned[place].append((index, model.owned[place]))


# ---- what reads must have shown ----


def _ask(done: Replayed, op: Op) -> None:
    done.reads += 1
    why = _LOOKS[op.kind](done, op)
    if why:
        done.wrong_reads.append(Wrong(op, why))


def _account(done: Replayed, op: Op) -> str:
    return _balances(done, op.args["account"], op.answer.get("balances", {}))


def _accounts(done: Replayed, op: Op) -> str:
    found: dict[str, dict[str, list[str]]] = op.answer.get("balances", {})
    for account in op.args.get("accounts", found):
        if account not in found:
            if account in done.model.accounts:
                return f"{account} is missing"
            continue
        if why := _balances(done, account, found[account]):
            return why
    return ""


def _balances(done: Replayed, account: str, said: dict[str, list[str]]) -> str:
    expected = words.balances(done.model, account)
    for asset in sorted({*expected, *said}):
        pair = expected.get(asset, (0, 0))
        shown = said.get(asset, ["0", "0"])
        if [words.number(one) for one in shown] != list(pair):
            return f"{account} has {words.plain(pair)} {asset}, total and available, not {shown}"
    return ""


def _order(done: Replayed, op: Op) -> str:
    found = done.model.orders.get(int(op.args["order_id"]))
    if found is None:
        return f"there is no order {op.args['order_id']}"
    return _told(words.order(done.model, found), op)


def _open_orders(done: Replayed, op: Op) -> str:
    """keys, the newest first; or value: the only one's, of a register."""
    orders = sorted(done.model.open_of[op.args["account"]].values(), key=lambda order: -order.id)
    keys = [order.key for order in orders]
    if "value" in op.answer:
        only = keys[0] if len(keys) == 1 else None
        return "" if op.answer["value"] == only else f"the only open order's key is {only}"
    shown = op.answer.get("keys")
    return "" if shown == keys[:OPEN_ORDERS_SHOWN] else f"the open orders' keys are {keys}"


def _reference(done: Replayed, op: Op) -> str:
    symbol = op.args["symbol"]
    present = done.model.references.get(symbol)
    expected = None if present is None else words.price(done.model, symbol, present.price)
    shown = op.answer.get("value", op.answer.get("price"))
    said = None if shown is None else words.number(shown)
    return "" if said == expected else f"the reference price is {words.plain(expected)}"


def _outcome(done: Replayed, op: Op) -> str:
    return outcome_wrong(done, op.args["of_key"], op.answer)


def outcome_wrong(done: Replayed, key: str, said: Words) -> str:
    """What is wrong with what was said to have become of a key; an empty string: nothing."""
    executed = done.executed.get(key)
    if executed is None:
        return "" if said.get("none") else "the log has it not"
    if said.get("none"):
        return f"it was executed at index {executed.index}"
    if said.get("index", executed.index) != executed.index:
        return f"it was executed at index {executed.index}"
    names = words.differing(executed.answer, said)
    return f"{names[0]} is {words.plain(executed.answer.get(names[0]))}" if names else ""


def _ledger(done: Replayed, op: Op) -> str:
    """Rows are [row, index, amount, balance]; after the last row of an index the balance is the ledger's."""
    account, asset = op.args["account"], op.args["asset"]
    owned = dict(done.owned[account, asset])
    rows: list[list[str]] = op.answer.get("rows", [])
    last = {int(index): balance for _, index, _, balance in rows}
    for index, balance in last.items():
        units = owned.get(index)
        if units is None or words.number(balance) != words.amount(done.model, asset, units):
            return f"index {index} left {account} with {units} units of {asset}, not {balance}"
    oldest = min(last, default=0) if op.answer.get("more") else 0
    unseen = [index for index in owned if index not in last and index >= oldest]
    return f"index {unseen[0]} changed what {account} has, and no row says so" if unseen else ""


def _told(expected: Words, op: Op) -> str:
    names = words.differing(expected, op.answer)
    return f"{names[0]} is {words.plain(expected.get(names[0]))}" if names else ""


_LOOKS = {
    "read_account": _account,
    "read_accounts": _accounts,
    "read_order": _order,
    "read_open_orders": _open_orders,
    "read_reference": _reference,
    "read_outcome": _outcome,
    "read_ledger": _ledger,
}
READS = frozenset(_LOOKS)
"""Kinds of reads of members that are served at an index."""
