"""Checkers of commands: answers are the ledger's, in an order that real time allows, none lost, none invented."""

from collections import defaultdict
from collections.abc import Mapping

from chaos.check import words
from chaos.check.judging import Wrong, invalid, judge
from chaos.check.replay import Replayed, outcome_wrong
from chaos.check.told import Told
from chaos.check.verdict import Check
from chaos.history.file import NEVER_NS, Op

NOT_STORED = frozenset({"key_reused", "key_too_old", "key_quota_exceeded", "sent_in_future", "writes_stopped"})
"""Answers that stand at an index of their own, and not under the key."""


def is_stored(op: Op) -> bool:
    """Acknowledged, with an answer that is kept under its key."""
    return op.ok and op.answer.get("error") not in NOT_STORED


class TwoBodies(Exception):
    """A key was sent with two bodies, and nobody was told which one it took."""


def merged(ops: list[Op]) -> Op | None:
    """One operation for a key, however often it was sent; None where it was never done. Raises TwoBodies."""
    tried = [op for op in ops if op.outcome != "fail" and (not op.ok or is_stored(op))]
    answered = [op for op in tried if op.ok]
    if answered:
        one = min(answered, key=lambda op: op.return_ns)
        begin = min(op.call_ns for op in tried if op.args == one.args)
        return Op(
            one.op, one.process, one.workload, one.kind, one.target, one.key, one.args, begin, one.return_ns, "ok",
            one.index, one.replay, one.answer,
        )  # fmt: skip
    if any(op.args != tried[0].args for op in tried):
        raise TwoBodies(ops[0].key)
    return min(tried, key=lambda op: op.call_ns, default=None)


def check_log(told: Told) -> Check:
    """Members agree on the log, and none of it is missing."""
    counts = {"lines": len(told.log), "last_index": told.log[-1].index if told.log else 0}
    if told.disagreement:
        return Check("log", "fail", "members hold different entries at one committed index", {}, [told.disagreement])
    if lacks := told.lacks("log.jsonl"):
        return invalid("log", lacks)
    if not told.log_is_whole:
        return invalid("log", "entries are missing: what came of every command can't be told", counts)
    wrong: Wrong = [
        (f"index {after.index}.{after.position} follows {before.index}.{before.position}", {})
        for before, after in zip(told.log, told.log[1:], strict=False)
        if (after.index, after.position) <= (before.index, before.position)
    ]
    return judge("log", "all members agree on one log, and it is whole", wrong, counts)


def check_answers(told: Told, done: Replayed) -> Check:
    """Index replay: every answer is what the independent ledger answers at that place of the log."""
    if lacks := told.lacks("log.jsonl"):
        return invalid("answers", lacks)
    if done.error:
        return Check("answers", "fail", f"the ledger can't execute the log: {done.error}")
    wrong: Wrong = []
    checked = 0
    for key, ops in told.commands.items():
        executed = done.executed.get(key)
        for op in ops:
            if not op.ok:
                continue
            expected = done.lines.get(key, {}).get(op.index)
            if expected is None or is_stored(op):
                # The answer of the past has the index of the past, which a client is not always told.
                expected = executed.answer if executed is not None else None
            if expected is None:
                continue  # `lost` says so
            checked += 1
            if names := words.differing(expected, op.answer):
                should = {name: words.plain(expected.get(name)) for name in names}
                wrong.append((f"operation {op.op} was told another {names[0]}", {**op.said(), "ledger": should}))
    return judge("answers", "every answer is the ledger's at its index", wrong, {"answers": checked})


def check_order(told: Told, done: Replayed) -> Check:
    """Real time: what was called after something had been answered stands behind it in the log.

    One pass with a running maximum, by key: a key takes effect between its first call and its first answer.
    """
    if lacks := told.lacks("log.jsonl"):
        return invalid("order", lacks)
    wrong: Wrong = []
    spans = []
    for key, ops in told.commands.items():
        executed = done.executed.get(key)
        if executed is None:
            continue
        tried = [op for op in ops if op.outcome != "fail"]
        if tried:
            first = min(tried, key=lambda op: op.call_ns)
            ended_ns = min((op.return_ns for op in tried if is_stored(op)), default=NEVER_NS)
            spans.append((executed.place, first.call_ns, ended_ns, first))
    spans.sort(key=lambda span: span[0])
    latest_ns, latest = 0, None
    for place, call_ns, ended_ns, op in spans:
        if ended_ns < latest_ns and latest is not None:
            example = {"earlier_in_log": latest.said(), "later_in_log": op.said(), "place": list(place)}
            wrong.append(
                (f"operation {latest.op} was called after {op.op} was answered, and stands before it", example)
            )
        if call_ns > latest_ns:
            latest_ns, latest = call_ns, op
    return judge("order", "the order of the log is one that real time allows", wrong, {"commands": len(spans)})


def check_false_acks(told: Told) -> Check:
    """An acknowledgement is that command's own: its index holds its key."""
    if lacks := told.lacks("log.jsonl"):
        return invalid("false_acks", lacks)
    held: dict[int, set[str]] = defaultdict(set)
    for line in told.log:
        held[line.index].add(line.key)
    wrong: Wrong = []
    checked = 0
    for key, ops in told.commands.items():
        for op in ops:
            if not op.ok:
                continue
            checked += 1
            if op.answer.get("key", key) != key:
                wrong.append((f"operation {op.op} got the answer of {op.answer['key']}", op.said()))
            elif op.index and key not in held.get(op.index, ()):
                wrong.append((f"operation {op.op} was told index {op.index}, which holds other commands", op.said()))
    return judge("false_acks", "every acknowledgement is of its own command", wrong, {"acknowledged": checked})


def check_lost(told: Told, done: Replayed) -> Check:
    """What was acknowledged is in the log, and after healing and a restart the cluster still says so."""
    if lacks := told.lacks("log.jsonl", "final.json"):
        return invalid("lost", lacks)
    wrong: Wrong = []
    acked = silent = 0
    for key, ops in told.commands.items():
        op = next((op for op in ops if is_stored(op)), None)
        if op is None:
            continue
        acked += 1
        if key not in done.executed:
            wrong.append((f"operation {op.op} was acknowledged and is not in the log", op.said()))
        elif key not in told.final.outcomes:
            silent += 1
        elif why := outcome_wrong(done, key, told.final.outcomes[key]):
            shown = {**op.said(), "told": told.final.outcomes[key]}
            wrong.append((f"operation {op.op} was acknowledged; in the end it is told wrong: {why}", shown))
    counts = {"acknowledged": acked}
    if silent and not wrong:
        return invalid("lost", f"of {silent} acknowledged keys nobody said in the end what became of them", counts)
    return judge("lost", "everything acknowledged is in the log and still known", wrong, counts)


def check_phantoms(told: Told, done: Replayed) -> Check:
    """Nothing took effect that nobody asked for, or that was definitely refused; nor with another body."""
    if lacks := told.lacks("log.jsonl"):
        return invalid("phantoms", lacks)
    by_key = told.commands
    wrong: Wrong = []
    for key, executed in done.executed.items():
        ops = by_key.get(key, [])
        where = {"key": key, "index": executed.index, "kind": executed.line.kind, "command": executed.line.command}
        if not ops:
            wrong.append((f"index {executed.index} holds a command that nobody sent", where))
        elif all(op.outcome == "fail" for op in ops):
            why = f"operation {ops[0].op} was definitely refused ({ops[0].error}) and took effect"
            wrong.append((why, {**where, **ops[0].said()}))
        elif not any(_is_body(executed.asked, op.args) for op in ops if op.outcome != "fail"):
            wrong.append((f"operation {ops[0].op} took effect with another body", {**where, "args": ops[0].args}))
    return judge("phantoms", "nothing took effect that nobody asked for", wrong, {"executed": len(done.executed)})


def _is_body(asked: Mapping[str, object], args: Mapping[str, object]) -> bool:
    names = {name for name in args if name in asked}
    return all(words.same(asked[name], args[name]) for name in names)


def check_resolved(told: Told, done: Replayed) -> Check:
    """What nobody was told at the time is known in the end, and as the log has it: it took effect once, or never."""
    if lacks := told.lacks("log.jsonl", "final.json"):
        return invalid("resolved", lacks)
    unanswered = {key: ops for key, ops in told.commands.items() if not any(is_stored(op) for op in ops)}
    wrong: Wrong = []
    silent = 0
    for key, ops in unanswered.items():
        said = told.final.outcomes.get(key)
        if said is None:
            silent += 1
        elif why := outcome_wrong(done, key, said):
            wrong.append((f"in the end key {key} is told wrong: {why}", {**ops[0].said(), "told": said}))
    counts = {"unanswered": len(unanswered), "took_effect": len(unanswered.keys() & done.executed.keys())}
    if silent and not wrong:
        return invalid("resolved", f"of {silent} keys nobody said in the end what became of them", counts)
    return judge("resolved", "the fate of every key is known, and as the log has it", wrong, counts)


def check_idempotence(told: Told) -> Check:
    """Each key took effect once: all who sent it with its body were told the same, others were refused."""
    wrong: Wrong = []
    repeats = refused = 0
    for key, ops in told.commands.items():
        answered = [op for op in ops if is_stored(op)]
        refused += sum(op.answer.get("error") == "key_reused" for op in ops)
        if len(answered) < 2:
            continue
        first = answered[0]
        for op in answered[1:]:
            repeats += 1
            pair = {"key": key, "first": first.said(), "other": op.said()}
            if first.index and op.index and first.index != op.index:
                wrong.append((f"key {key} took effect at index {first.index} and at {op.index}", pair))
            elif op.args != first.args:
                wrong.append((f"key {key} was acknowledged with two bodies", pair))
            elif _differ(first.answer, op.answer):
                wrong.append((f"key {key} got two answers", pair))
            elif not (op.replay or first.replay or op.return_ns > first.call_ns):
                continue
    return judge(
        "idempotence", "each key took effect once, with one answer", wrong, {"repeats": repeats, "other_body": refused}
    )


def _differ(one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    """A repeat of a deposit names the account that the money came from: the outside world."""
    shared = set(one) & set(other) - {"account"}
    return ("error" in one) != ("error" in other) or any(one[name] != other[name] for name in shared)
