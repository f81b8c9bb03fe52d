"""What can be wrong with a run: each spoils the folder of a good one, and names the checkers that must turn red."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from msgspec.structs import replace

from chaos.check.availability import GATEWAY_READS_MIN
from chaos.history.records import Call, Event, Fault, Logged, Phase, Replica, Return
from tests.chaos.check.made import GATEWAYS, NOBODY, Parts

SECOND_NS = 10**9


class Told:
    """The calls and returns of a history, and how to change one."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.calls = {line.op: line for line in parts.history if isinstance(line, Call)}
        self.returns = {line.op: line for line in parts.history if isinstance(line, Return)}

    def acked(self, *kinds: str, consistency: str = "") -> Iterator[tuple[Call, Return]]:
        for op, call in self.calls.items():
            told = self.returns.get(op)
            fits = not consistency or call.args.get("consistency") == consistency
            if call.kind in kinds and told is not None and told.outcome == "ok" and fits:
                yield call, told

    def change(self, line: Call | Return, **fields: Any) -> None:
        history = self.parts.history
        history[history.index(line)] = replace(line, **fields)

    def answer(self, line: Return, **fields: Any) -> None:
        self.change(line, answer={**line.answer, **fields})

    def of_key(self, key: str) -> tuple[Call, Return]:
        call = next(call for call in self.calls.values() if call.key == key)
        return call, self.returns[call.op]

    def once(self, *kinds: str) -> Iterator[tuple[Call, Return]]:
        """Acknowledged, done, and sent once only."""
        keys = [call.key for call in self.calls.values()]
        for call, told in self.acked(*kinds):
            if keys.count(call.key) == 1 and "error" not in told.answer:
                yield call, told


class Spoiled(NamedTuple):
    """what: in words. red: the checkers that must fail, all of them; invalid: those that can't say."""

    what: str
    spoil: Callable[[Parts], None]
    red: frozenset[str]
    invalid: frozenset[str] = frozenset()


def _line_of(parts: Parts, key: str) -> int:
    return next(at for at, line in enumerate(parts.log) if line.key == key)


# ---- commands ----


def lose_an_acknowledged_entry(parts: Parts) -> None:
    at = _line_of(parts, f"for-{NOBODY[0]}")
    parts.log[at] = Logged(parts.log[at].index, 0, "", "", "")
    parts.final.outcomes[f"for-{NOBODY[0]}"] = {"none": True}


def forget_an_acknowledged_key(parts: Parts) -> None:
    call, _ = next(Told(parts).once("transfer"))
    parts.final.outcomes[call.key] = {"none": True}


def tell_another_answer(parts: Parts) -> None:
    told = Told(parts)
    _, answer = next(told.once("place_order"))
    told.answer(answer, leaves_qty="777")


def say_done_where_it_was_refused(parts: Parts) -> None:
    told = Told(parts)
    _, answer = told.of_key(f"for-{NOBODY[0]}")
    told.change(answer, answer={"status": "done"})


def swap_two_entries(parts: Parts) -> None:
    """The second was called after the first had been answered."""
    told = Told(parts)
    keys = [f"for-{name}" for name in NOBODY[:2]]
    one, two = (_line_of(parts, key) for key in keys)
    first, second = parts.log[one], parts.log[two]
    parts.log[one] = replace(second, index=first.index, stamp_us=first.stamp_us)
    parts.log[two] = replace(first, index=second.index, stamp_us=second.stamp_us)
    for key, line in zip(keys, (parts.log[two], parts.log[one]), strict=True):
        told.change(told.of_key(key)[1], index=line.index)
        parts.final.outcomes[key]["index"] = line.index


def acknowledge_with_anothers_index(parts: Parts) -> None:
    told = Told(parts)
    _, answer = told.of_key(f"for-{NOBODY[1]}")
    told.change(answer, index=answer.index - 1)


def acknowledge_with_anothers_key(parts: Parts) -> None:
    told = Told(parts)
    _, answer = next(told.once("transfer"))
    told.answer(answer, key="key-of-another")


def execute_what_nobody_sent(parts: Parts) -> None:
    last = parts.log[-1]
    args = {"account": "nobody-9", "asset": "USD", "amount_units": 5}
    parts.log.append(Logged(last.index + 1, 0, "@custodian", "phantom", "deposit", args, last.stamp_us + 1))


def execute_what_was_refused(parts: Parts) -> None:
    told = Told(parts)
    key = f"for-{NOBODY[0]}"
    _, answer = told.of_key(key)
    told.change(answer, outcome="fail", index=0, answer={}, error="no_quorum")


def change_an_amount_in_the_log(parts: Parts) -> None:
    at = _line_of(parts, f"for-{NOBODY[0]}")
    line = parts.log[at]
    parts.log[at] = replace(line, command={**line.command, "amount_units": 999_999})


def change_an_amount_that_moved(parts: Parts) -> None:
    """Everybody who looks at the account afterwards sees another sum than the log makes."""
    told = Told(parts)
    call, _ = next(told.once("deposit"))
    at = _line_of(parts, call.key)
    line = parts.log[at]
    parts.log[at] = replace(line, command={**line.command, "amount_units": line.command["amount_units"] + 1})


def tell_a_wrong_fate_of_an_unknown(parts: Parts) -> None:
    answered = {call.key for call, _ in Told(parts).acked(*_ALL_COMMANDS)}
    key = next(key for key, said in parts.final.outcomes.items() if key not in answered and said.get("none"))
    parts.final.outcomes[key] = {"status": "done", "index": 9}


_ALL_COMMANDS = (
    "deposit", "transfer", "place_order", "cancel_order", "replace_order", "set_reference", "open_account",
    "add_asset", "add_instrument",
)  # fmt: skip


def apply_a_repeat_again(parts: Parts) -> None:
    """The repeat was logged at an index of its own, and its client is told that index."""
    told = Told(parts)
    key = f"for-{NOBODY[-1]}"
    *_, again = (line.index for line in parts.log if line.key == key)
    *_, (_, answer) = (pair for pair in told.acked("deposit") if pair[0].key == key)
    told.change(answer, index=again, replay=False)


def take_a_key_with_another_body(parts: Parts) -> None:
    told = Told(parts)
    call, answer = next((call, told) for call, told in Told(parts).acked("deposit") if told.replay)
    told.change(call, args={**call.args, "amount": "1.23"})
    assert answer.replay


# ---- money, reads ----


def credit_twice(parts: Parts) -> None:
    told = Told(parts)
    call, _ = next(told.once("deposit"))
    balance = parts.final.balances[call.args["account"]]["USD"]
    balance[:] = [f"{float(one) + float(call.args['amount']):.2f}" for one in balance]


def overdraw(parts: Parts) -> None:
    told = Told(parts)
    _, answer = next(told.acked("read_account", consistency="local"))
    told.answer(answer, balances={"USD": ["5", "-1"]})


def show_what_never_was(parts: Parts) -> None:
    told = Told(parts)
    _, answer = next(told.acked("read_account", consistency="local"))
    told.answer(answer, balances={"USD": ["123456.78", "5"]})


def serve_an_old_read(parts: Parts) -> None:
    """Of what did not change since, so that only its index gives it away."""
    told = Told(parts)
    *_, (_, answer) = told.acked("read_order", consistency="linearizable")
    told.change(answer, index=answer.index - 4)


def serve_an_old_session_read(parts: Parts) -> None:
    told = Told(parts)
    *_, (call, answer) = told.acked("read_order", "read_account", "read_ledger", consistency="session")
    told.change(call, args={**call.args, "seen": answer.index + 1})


def serve_an_old_value_without_an_index(parts: Parts) -> None:
    told = Told(parts)
    *_, (call, answer) = told.acked("read_open_orders", consistency="linearizable")
    reads = [(c, a) for c, a in told.acked("read_open_orders", consistency="linearizable") if "value" in a.answer]
    first, last = (
        reads[0],
        next(one for one in reversed(reads) if one[0].args["account"] == reads[0][0].args["account"]),
    )
    assert first[1].answer != last[1].answer
    told.change(last[1], index=0, answer=first[1].answer)
    assert call.kind and answer.op


def swap_rows_of_a_journal(parts: Parts) -> None:
    told = Told(parts)
    *_, (_, answer) = told.acked("read_ledger", consistency="linearizable")
    rows = answer.answer["rows"]
    told.change(answer, index=0, answer={"rows": [rows[1], rows[0], *rows[2:]]})


def leave_out_the_end_of_a_journal(parts: Parts) -> None:
    told = Told(parts)
    *_, (_, answer) = told.acked("read_ledger", consistency="linearizable")
    told.change(answer, index=0, answer={"rows": answer.answer["rows"][:-3]})


# ---- events ----


def leave_out_an_event(parts: Parts) -> None:
    del parts.events[50]


def leave_out_an_entry_of_events(parts: Parts) -> None:
    traded = next(event for event in parts.events if event.kind == "traded")
    parts.events[:] = [event for event in parts.events if event.index != traded.index]


def repeat_an_event(parts: Parts) -> None:
    parts.events.insert(60, replace(parts.events[59], source="dc-b"))


def swap_two_events(parts: Parts) -> None:
    parts.events[70:72] = parts.events[71:69:-1]


def change_an_event(parts: Parts) -> None:
    at, event = next((at, event) for at, event in enumerate(parts.events) if event.kind == "traded")
    parts.events[at] = replace(event, fields={**event.fields, "qty": "4444"})


def invent_an_event(parts: Parts) -> None:
    last = parts.events[-1]
    fields = {"source": "@world", "target": "bank-0", "asset": "USD", "amount": "1"}
    parts.events.append(Event(last.at_ns, last.source, last.index, last.seq + 1, "transferred", fields))


# ---- copies, availability, gateways ----


def disagree_at_one_index(parts: Parts) -> None:
    first = parts.final.digests[0]
    parts.final.digests[0] = Replica(first.name, first.applied, "00" * 32)


def come_back_different(parts: Parts) -> None:
    after = parts.final.digests_after_restart
    after[:] = [Replica(one.name, one.applied, "11" * 32) for one in after]


def _in_the_cut(parts: Parts) -> Iterator[tuple[Call, Return]]:
    bite, end = (next(f for f in parts.history if isinstance(f, Fault) and f.did == did) for did in ("bite", "end"))
    for call, told in Told(parts).acked(*_ALL_COMMANDS):
        if bite.at_ns < call.at_ns and told.at_ns < end.at_ns and not told.replay:
            yield call, told


def acknowledge_on_the_minority_side(parts: Parts) -> None:
    call, _ = next(_in_the_cut(parts))
    Told(parts).change(call, target="dc-b")


def _gateway_reads(parts: Parts) -> list[tuple[Call, Return]]:
    begin_ns = next(line.at_ns for line in parts.history if isinstance(line, Phase) and line.name == "faults")
    told = Told(parts)
    kinds = ("read_portfolio", "read_items", "read_quotes")
    return [pair for pair in told.acked(*kinds) if pair[0].at_ns > begin_ns]


def fail_to_answer_at_a_gateway(parts: Parts, count: int = 3, *, error: str = "not_ready") -> list[Call]:
    """The last ones, of a few more than a thousand; the calls."""
    told = Told(parts)
    of_one = [(call, answer) for call, answer in _gateway_reads(parts) if call.target == GATEWAYS[0]]
    missed = of_one[len(of_one) - count :]
    for _, answer in missed:
        told.change(answer, outcome="fail", answer={}, error=error, age_ms=-1)
    return [call for call, _ in missed]


def ask_a_gateway_too_seldom(parts: Parts, count: int = GATEWAY_READS_MIN - 1, gateway: str = GATEWAYS[1]) -> None:
    of_one = [(call, answer) for call, answer in _gateway_reads(parts) if call.target == gateway]
    dropped = {call.op for call, _ in of_one[count:]}
    parts.history[:] = [line for line in parts.history if not (isinstance(line, Call | Return) and line.op in dropped)]


def ask_one_gateway_never(parts: Parts) -> None:
    parts.run = replace(parts.run, sites={"dc-a": "dc-a", "gateway-dc-c": "dc-c", **dict.fromkeys(GATEWAYS, "dc-a")})


def understate_an_age(parts: Parts) -> None:
    call, answer = next(pair for pair in reversed(_gateway_reads(parts)) if pair[0].kind == "read_portfolio")
    assert call.at_ns - parts.history[0].at_ns > 10 * SECOND_NS
    Told(parts).answer(answer, index=30)


def say_no_age(parts: Parts) -> None:
    _, answer = next(pair for pair in _gateway_reads(parts) if pair[0].kind == "read_portfolio")
    Told(parts).change(answer, age_ms=-1)


def stand_still_too_long(parts: Parts) -> None:
    """No write is acknowledged while the fault holds; it is the majority side that was asked."""
    told = Told(parts)
    for call, _ in list(_in_the_cut(parts)):
        told.change(call, target="dc-elsewhere")


def converge_late(parts: Parts) -> None:
    parts.final = replace(parts.final, converged_ms=9_000)


def never_converge(parts: Parts) -> None:
    parts.final = replace(parts.final, converged_ms=-1)


def lose_an_added_item(parts: Parts) -> None:
    for gateway in GATEWAYS:
        parts.final.sites[gateway]["user-0"]["items"].pop()


def bring_a_removed_item_back(parts: Parts) -> None:
    call, _ = next(Told(parts).acked("remove"))
    for gateway in GATEWAYS:
        parts.final.sites[gateway][call.args["user"]]["items"].append(call.args["item"])


def invent_an_item(parts: Parts) -> None:
    for gateway in GATEWAYS:
        parts.final.sites[gateway]["user-1"]["items"].append("item-of-nobody")


def show_a_removed_item(parts: Parts) -> None:
    told = Told(parts)
    for removed, done in told.acked("remove"):
        for call, answer in told.acked("read_items"):
            same = (call.target, call.args["user"]) == (removed.target, removed.args["user"])
            if same and call.at_ns > done.at_ns:
                told.answer(answer, items=[*answer.answer["items"], removed.args["item"]])
                return
    raise AssertionError("no read follows a removal")


def keep_an_overwritten_value(parts: Parts) -> None:
    for gateway in GATEWAYS:
        parts.final.sites[gateway]["user-0"]["values"]["language"] = "xx"


def differ_between_sites(parts: Parts) -> None:
    parts.final.sites[GATEWAYS[0]]["user-0"]["values"]["other"] = "xx"


# ---- runs that show nothing ----


def _drop(parts: Parts, kind: type[Any], **fields: Any) -> None:
    parts.history[:] = [
        line
        for line in parts.history
        if not (isinstance(line, kind) and all(getattr(line, name) == value for name, value in fields.items()))
    ]


def never_bite(parts: Parts) -> None:
    _drop(parts, Fault, did="bite")


def expect_more(parts: Parts) -> None:
    parts.run = replace(parts.run, expect=["isolate", "power-cut"])


def fail_to_strike(parts: Parts) -> None:
    parts.history.append(Fault(2, parts.history[-1].at_ns, "pause", "failed", detail={"why": "not permitted"}))


def do_too_little(parts: Parts) -> None:
    parts.run = replace(parts.run, min_ok=100_000)


def end_too_early(parts: Parts) -> None:
    _drop(parts, Phase, name="end")


def read_back_too_little(parts: Parts) -> None:
    parts.final = replace(parts.final, complete=False, why="nobody says what became of key-9")


def read_back_no_fate(parts: Parts) -> None:
    parts.final.outcomes.clear()


def compare_nothing(parts: Parts) -> None:
    parts.final = replace(parts.final, digests_after_restart=[])


def stop_reading_the_feed(parts: Parts) -> None:
    del parts.events[len(parts.events) // 2 :]
    while parts.events[-1].seq:
        parts.events.pop()
    parts.events.pop()


def leave_out_an_entry_of_the_log(parts: Parts) -> None:
    """Of a repeat, which changed nothing: but who knows that, without it?"""
    key = f"for-{NOBODY[-1]}"
    *_, again = (at for at, line in enumerate(parts.log) if line.key == key)
    parts.log[again:] = [replace(parts.log[again], index=parts.log[again].index + 1, kind="", key="")]


SPOILED = [
    Spoiled("an acknowledged entry is not in the log", lose_an_acknowledged_entry, frozenset({"lost", "false_acks"})),
    Spoiled("an acknowledged key is forgotten in the end", forget_an_acknowledged_key, frozenset({"lost"})),
    Spoiled("another answer than the ledger's", tell_another_answer, frozenset({"answers"})),
    Spoiled("done, where the ledger refused", say_done_where_it_was_refused, frozenset({"answers", "money"})),
    Spoiled("two entries swapped", swap_two_entries, frozenset({"order"})),
    Spoiled("an acknowledgement with another's index", acknowledge_with_anothers_index, frozenset({"false_acks"})),
    Spoiled("an acknowledgement with another's key", acknowledge_with_anothers_key, frozenset({"false_acks"})),
    Spoiled("executed, and nobody sent it", execute_what_nobody_sent, frozenset({"phantoms"})),
    Spoiled("executed, and definitely refused", execute_what_was_refused, frozenset({"phantoms"})),
    Spoiled("another amount in the log", change_an_amount_in_the_log, frozenset({"phantoms"})),
    Spoiled("another amount moved", change_an_amount_that_moved, frozenset({"phantoms", "reads", "events"})),
    Spoiled("a wrong fate of an unknown", tell_a_wrong_fate_of_an_unknown, frozenset({"resolved"})),
    Spoiled("a repeat takes effect again", apply_a_repeat_again, frozenset({"idempotence"})),
    Spoiled("a key is taken with another body", take_a_key_with_another_body, frozenset({"idempotence"})),
    Spoiled("a deposit is credited twice", credit_twice, frozenset({"money", "reads"})),
    Spoiled("an account is overdrawn", overdraw, frozenset({"money", "reads"})),
    Spoiled("a local read shows what never was", show_what_never_was, frozenset({"reads"})),
    Spoiled("an old read", serve_an_old_read, frozenset({"stale"})),
    Spoiled("an old read in a session", serve_an_old_session_read, frozenset({"stale"})),
    Spoiled("an old value, without an index", serve_an_old_value_without_an_index, frozenset({"registers"})),
    Spoiled("rows of a journal swapped", swap_rows_of_a_journal, frozenset({"journals"})),
    Spoiled("the end of a journal left out", leave_out_the_end_of_a_journal, frozenset({"journals"})),
    Spoiled("an event left out", leave_out_an_event, frozenset({"events"})),
    Spoiled("all events of an entry left out", leave_out_an_entry_of_events, frozenset({"events"})),
    Spoiled("an event repeated at another member", repeat_an_event, frozenset({"events"})),
    Spoiled("two events swapped", swap_two_events, frozenset({"events"})),
    Spoiled("another event than the log's", change_an_event, frozenset({"events"})),
    Spoiled("an event of nothing", invent_an_event, frozenset({"events"})),
    Spoiled("replicas differ", disagree_at_one_index, frozenset({"digests"})),
    Spoiled("replicas come back different", come_back_different, frozenset({"digests"})),
    Spoiled("the minority acknowledges", acknowledge_on_the_minority_side, frozenset({"minority"})),
    Spoiled("a gateway does not answer", fail_to_answer_at_a_gateway, frozenset({"gateways"})),
    Spoiled("a gateway is asked too seldom", ask_a_gateway_too_seldom, frozenset(), frozenset({"gateways"})),
    Spoiled("a gateway is never asked", ask_one_gateway_never, frozenset(), frozenset({"gateways"})),
    Spoiled("an age understated", understate_an_age, frozenset({"ages"})),
    Spoiled("no age said", say_no_age, frozenset({"ages"})),
    Spoiled("writes stand still", stand_still_too_long, frozenset({"outage"})),
    Spoiled("sites converge late", converge_late, frozenset({"convergence"})),
    Spoiled("sites never converge", never_converge, frozenset({"convergence"})),
    Spoiled("an added item is lost", lose_an_added_item, frozenset({"items"})),
    Spoiled("a removed item comes back", bring_a_removed_item_back, frozenset({"items"})),
    Spoiled("an item that nobody added", invent_an_item, frozenset({"items"})),
    Spoiled("a removed item is shown", show_a_removed_item, frozenset({"items"})),
    Spoiled("a value that nobody wrote", keep_an_overwritten_value, frozenset({"items"})),
    Spoiled("sites differ", differ_between_sites, frozenset({"convergence"})),
    Spoiled("a fault never bit", never_bite, frozenset(), frozenset({"faults"})),
    Spoiled("a kind of fault is missing", expect_more, frozenset(), frozenset({"faults"})),
    Spoiled("a fault failed", fail_to_strike, frozenset(), frozenset({"faults"})),
    Spoiled("too few operations", do_too_little, frozenset(), frozenset({"enough"})),
    Spoiled("no end", end_too_early, frozenset(), frozenset({"enough"})),
    Spoiled("final reads incomplete", read_back_too_little, frozenset(), frozenset({"final"})),
    Spoiled("no fates in the end", read_back_no_fate, frozenset(), frozenset({"lost", "resolved"})),
    Spoiled("no digests after a restart", compare_nothing, frozenset(), frozenset({"digests"})),
    Spoiled("the feed was not read to its end", stop_reading_the_feed, frozenset(), frozenset({"events"})),
    Spoiled("an entry is missing", leave_out_an_entry_of_the_log, frozenset(), frozenset({"log"})),
]
