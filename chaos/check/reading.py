"""Checkers of reads: each shows the ledger as it was at its index, and none is older than it may be."""

from chaos.check.commands import is_stored
from chaos.check.judging import Wrong, invalid, judge
from chaos.check.replay import READS, Replayed
from chaos.check.told import COMMANDS, Told
from chaos.check.verdict import Check
from chaos.history.file import NEVER_NS, Op


def consistency(op: Op) -> str:
    return str(op.args.get("consistency", "linearizable"))


def check_reads(told: Told, done: Replayed) -> Check:
    """Every read, old ones and the last ones of all too, shows what a prefix of the log makes: that of its index."""
    if lacks := told.lacks("log.jsonl"):
        return invalid("reads", lacks)
    wrong = [(f"operation {one.op.op} read what never was: {one.why}", one.op.said()) for one in done.wrong_reads]
    return judge("reads", "every read shows the ledger as it was at its index", wrong, {"reads": done.reads})


def check_stale(told: Told) -> Check:
    """A linearizable read sees all that anybody had been told before it was called; a session's, what that client was.

    By the indexes that were told alone, so it needs no log.
    """
    told_ops = [op for op in told.history.ops if op.ok and op.index and (op.kind in READS or _is_acked(op))]
    ended = sorted((op for op in told_ops if op.return_ns != NEVER_NS), key=lambda op: op.return_ns)
    known: dict[int, tuple[int, Op]] = {}
    newest: Op | None = None
    counts = {"linearizable": 0, "session": 0, "local": 0}
    wrong: Wrong = []
    at = 0
    for op in sorted(told_ops, key=lambda op: op.call_ns):
        while at < len(ended) and ended[at].return_ns < op.call_ns:
            before = ended[at]
            at += 1
            if newest is None or before.index > newest.index:
                newest = before
            if _is_acked(before) and before.index > known.get(before.process, (0, before))[0]:
                known[before.process] = (before.index, before)
        if op.kind not in READS:
            continue
        how = consistency(op)
        counts[how] = counts.get(how, 0) + 1
        seen, source = (newest.index, newest) if newest is not None else (0, op)
        if how == "session":
            seen, source = known.get(op.process, (0, op))
            seen = max(seen, int(op.args.get("seen", 0)))
        if how != "local" and op.index < seen:
            why = f"operation {op.op}, a {how} read, saw index {op.index}; {seen} was known before it was called"
            wrong.append((why, {**op.said(), "known_by": source.said()}))
    return judge("stale", "no read is older than it may be", wrong, counts)


def _is_acked(op: Op) -> bool:
    return op.kind in COMMANDS and is_stored(op)
