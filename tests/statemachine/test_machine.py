"""The machine around the rules: time, indexes, formats, keys within a batch, what is dirty, what stops it."""

from typing import NoReturn

import msgspec
import pytest

from statemachine import codec
from statemachine import commands as c
from statemachine.codec import Envelope, UnknownFormat, encode_batch, encode_command
from statemachine.codes import Code
from statemachine.events import RulesActivated
from statemachine.invariants import InvariantBroken
from statemachine.machine import DIGESTS_KEPT, RULES, Machine
from statemachine.memory import MemoryBacking
from statemachine.order import Order
from statemachine.records import Applied
from statemachine.results import AnyResult, CanceledMany, Done, Moved, Refused, Repeat
from statemachine.state import DUE_SLACK, State, empty_state
from statemachine.types import CHUNK_ORDERS, KEY_BUCKET_US, KEY_RETENTION_US, RULES_VERSIONS, SENT_AHEAD_US_MAX
from tests.statemachine.talk import START_US, Talk

LISTED = ("asset USD 2", "asset XYZ 0", "instrument XYZ-USD XYZ USD 2", "account alice", "account bob")
FUNDED = ("deposit alice USD 1000000", "deposit bob XYZ 1000000")


def talk(*lines: str) -> Talk:
    made = Talk()
    for line in (*LISTED, *FUNDED, *lines):
        made.say(line)
    return made


def apply(made: Talk, *envelopes: Envelope, stamp_us: int | None = None) -> Applied:
    payload = encode_batch(made.stamp_us if stamp_us is None else stamp_us, list(envelopes))
    applied = made.machine.apply(made.machine.applied_index + 1, payload)
    made.backing.write(applied)
    return applied


def deposit(key: str, units: int = 1, *, sent_at_us: int = 0) -> Envelope:
    return Envelope("@custodian", key, sent_at_us, encode_command(c.Deposit("alice", "USD", units)))


def test_time_is_the_stamp_forced_forward() -> None:
    made = Talk()
    for stamp_us, time_us in ((100, 100), (100, 101), (7, 102), (102, 103), (500, 500)):
        assert apply(made, stamp_us=stamp_us).time_us == time_us
        assert made.machine.time_us == time_us


def test_an_index_is_applied_once_and_in_order() -> None:
    made = Talk()
    apply(made)
    made.machine.apply(7, encode_batch(0, []))  # entries that are not ours may lie between
    for index in (7, 6):
        with pytest.raises(InvariantBroken, match="out of order"):
            made.machine.apply(index, encode_batch(0, []))


def test_what_is_not_understood_changes_nothing() -> None:
    made = talk()
    before = (made.machine.applied_index, made.machine.digest, made.machine.account("alice"))
    unknown_kind = Envelope("alice", "k", 0, codec.encode([99, 1]))
    too_many_fields = Envelope("alice", "k", 0, codec.encode([7, "alice", 5, 5]))
    for payload in (
        b"",
        b"\xc1",
        codec.encode([codec.BATCH_VERSION + 1, START_US, []]),
        codec.encode([codec.BATCH_VERSION, START_US, [], 1]),
        encode_batch(START_US, [deposit("a"), unknown_kind]),
        encode_batch(START_US, [deposit("b"), too_many_fields]),
    ):
        with pytest.raises(UnknownFormat):
            made.machine.apply(made.machine.applied_index + 1, payload)
        assert (made.machine.applied_index, made.machine.digest, made.machine.account("alice")) == before


def test_rules_that_are_not_known_stop_the_machine() -> None:
    """Members whose programs know them go on by them; going on by the old ones here would be another state."""
    made = talk()
    before = (made.machine.applied_index, made.machine.digest)
    newest = RULES_VERSIONS[-1]
    body = encode_command(c.ActivateRules(newest))
    assert codec.encode([24, newest]) == body
    with pytest.raises(UnknownFormat):
        apply(made, deposit("before"), Envelope("@operator", "k", 0, codec.encode([24, newest + 1])))
    assert (made.machine.applied_index, made.machine.digest) == before
    assert apply(made, Envelope("@operator", "k", 0, body)).results == [Refused(Code.unknown_rules, newest + 1, newest)]


def test_rules_are_activated_once() -> None:
    older = msgspec.structs.replace(empty_state().meta, rules_version=0)
    made = Machine(MemoryBacking(), msgspec.structs.replace(empty_state(), meta=older))
    body = encode_command(c.ActivateRules(1))
    applied = made.apply(1, encode_batch(0, [Envelope("@operator", key, 0, body) for key in ("a", "b")]))
    assert applied.results == [Done(), Refused(Code.unknown_rules, 2, 1)]
    assert applied.events == [RulesActivated(1)]
    assert made.collect().meta.rules_version == 1


def test_a_state_by_rules_that_are_not_known_is_not_opened() -> None:
    newer = msgspec.structs.replace(empty_state().meta, rules_version=RULES_VERSIONS[-1] + 1)
    with pytest.raises(UnknownFormat, match="rules version"):
        Machine(MemoryBacking(), msgspec.structs.replace(empty_state(), meta=newer))


def test_digests_are_kept_by_index() -> None:
    made = Talk()
    first = made.machine.digest
    digests = [apply(made).digest for _ in range(DIGESTS_KEPT)]
    assert made.machine.digest_at(0) is None  # one too long ago
    assert made.machine.digest_at(1) == digests[0]
    assert made.machine.digest_at(DIGESTS_KEPT) == digests[-1] == made.machine.digest
    assert made.machine.digest_at(DIGESTS_KEPT + 1) is None
    assert len({first, *digests}) == DIGESTS_KEPT + 1, "even an empty batch moves the digest on"


def test_a_key_counts_within_its_own_batch() -> None:
    made = talk()
    applied = apply(made, deposit("k"), deposit("k"), deposit("k", 2), deposit("l"))
    index = applied.index
    assert [type(result) for result in applied.results] == [Moved, Repeat, Refused, Moved]
    assert applied.results[1] == Repeat(index, 0)
    assert applied.scopes_and_keys == [("@custodian", key) for key in "kkkl"]
    assert [record.ordinal for _, _, record in applied.keys] == [0, 3]
    assert apply(made, deposit("l")).results == [Repeat(index, 3)]


def test_keys_of_a_bucket_go_together() -> None:
    made = talk()
    bucket_start_us = -(-START_US // KEY_BUCKET_US) * KEY_BUCKET_US
    apply(made, deposit("early"), stamp_us=bucket_start_us)
    late = apply(made, deposit("late"), stamp_us=bucket_start_us + KEY_BUCKET_US - 1)
    assert [bucket for bucket, _, _ in late.keys] == [bucket_start_us // KEY_BUCKET_US]
    end_us = bucket_start_us + KEY_BUCKET_US + KEY_RETENTION_US + SENT_AHEAD_US_MAX
    assert isinstance(apply(made, deposit("early"), stamp_us=end_us - 2).results[0], Repeat)
    assert made.machine.collect().drop_buckets_before == bucket_start_us // KEY_BUCKET_US
    assert isinstance(apply(made, deposit("late"), stamp_us=end_us).results[0], Moved)
    assert made.machine.collect().drop_buckets_before == bucket_start_us // KEY_BUCKET_US + 1


def test_a_key_is_known_for_as_long_as_its_command_may_be_taken() -> None:
    """A sender whose clock is ahead may repeat its command for longer than the retention."""
    made = talk()
    bucket_end_us = (START_US // KEY_BUCKET_US + 2) * KEY_BUCKET_US
    sent_at_us = bucket_end_us - 1 + SENT_AHEAD_US_MAX
    assert isinstance(apply(made, deposit("a", sent_at_us=sent_at_us), stamp_us=bucket_end_us - 1).results[0], Moved)
    for stamp_us, expected in (
        (bucket_end_us + KEY_RETENTION_US, Repeat),
        (sent_at_us + KEY_RETENTION_US, Repeat),
        (sent_at_us + KEY_RETENTION_US + 1, Refused),
    ):
        applied = apply(made, deposit("a", sent_at_us=sent_at_us), stamp_us=stamp_us)
        assert type(applied.results[0]) is expected, applied.results
        made.machine.collect()


class NotWalked(dict[int, Order]):
    """The orders of an account that nobody may look through one by one."""

    def values(self) -> NoReturn:
        raise AssertionError("an account may have 100,000 orders, and a batch a thousand mass cancels")


def test_a_mass_cancel_looks_only_at_what_it_cancels() -> None:
    made = talk()
    made.say("asset ABC 0")
    made.say("instrument ABC-USD ABC USD 2")
    for name in ("XYZ", "ABC", "XYZ"):
        made.say(f"place alice {name}-USD buy 1 100")
    account = made.machine._state.accounts["alice"]
    account.orders = NotWalked(account.orders)
    state = made.machine._state
    for command, count in (
        (c.CancelAccountOrders("bob"), 0),
        (c.CancelAccountOrders("alice", "ABC-USD"), 1),
        (c.CancelAccountOrders("alice", "ABC-USD"), 0),
        (c.CancelAccountOrders("alice"), 2),
    ):
        assert RULES[type(command)](state, command) == CanceledMany(count, 0)
    assert RULES[c.OpenSession](state, c.OpenSession("alice", "s", 1_000))
    assert RULES[c.CloseSession](state, c.CloseSession("alice", "s")) == CanceledMany(0, 0)


def test_only_what_changed_is_collected() -> None:
    made = talk()
    made.machine.collect()
    assert made.machine.collect().puts == []
    made.say("place alice XYZ-USD buy 1 100")
    made.say("cancel alice 1")
    changes = made.machine.collect()
    assert [(table, key) for table, key, _ in changes.puts] == [("accounts", b"alice")]
    assert changes.deletes == [], "an order that came and went is nothing to the store"
    made.say("place alice XYZ-USD buy 1 100")
    order_key = (2).to_bytes(8, "big")
    assert ("orders", order_key) in [(table, key) for table, key, _ in made.machine.collect().puts]
    made.say("cancel alice 2")
    assert made.machine.collect().deletes == [("orders", order_key)]
    assert made.machine.collect().deletes == []


def test_the_queue_of_expiries_does_not_keep_canceled_orders() -> None:
    made = talk()
    for order_id in range(1, 4 * DUE_SLACK):
        made.say("place alice XYZ-USD buy 1 1 time_in_force=gtd expires_at_us=+24h")
        made.say(f"cancel alice {order_id}")
    assert len(made.machine._state.due_orders) <= DUE_SLACK + 1
    assert made.machine.due_at_us() is None


def test_work_of_a_time_step_is_bounded() -> None:
    made = talk()
    made.say(f"repeat {2 * CHUNK_ORDERS + 1} place alice XYZ-USD buy 1 1 time_in_force=gtd expires_at_us=+1m")
    made.say("wait 1m")
    assert made.machine.due_at_us() == START_US + 60_000_000
    said = [made.say("step")[0] for _ in range(4)]
    assert said == ["stepped count=256 more=True", "stepped count=256 more=True", "stepped count=1", "stepped"]


def conjure(state: State, command: c.Transfer) -> AnyResult:
    """A broken rule: money from nowhere."""
    balance = state.accounts["alice"].balances["USD"]
    state.touch(balance)
    balance.available_units += 1
    return Done()


def overdraw(state: State, command: c.Transfer) -> AnyResult:
    """A broken rule: balanced, but nobody asked whether the money is there."""
    accounts = state.accounts
    state.hold(accounts["alice"].balances["USD"], 10**9)
    return Done()


def overspend(state: State, command: c.Transfer) -> AnyResult:
    """A broken rule: gives a hold back that was not there."""
    state.release(state.accounts["alice"].balances["USD"], 1)
    return Done()


@pytest.mark.parametrize(
    ("rule", "words"), [(conjure, "appeared or vanished, USD, 1"), (overdraw, "overdrawn"), (overspend, "overdrawn")]
)
def test_a_broken_rule_stops_the_machine(monkeypatch: pytest.MonkeyPatch, rule: object, words: str) -> None:
    made = talk()
    monkeypatch.setitem(RULES, c.Transfer, rule)
    with pytest.raises(InvariantBroken, match=words):
        made.say("transfer alice bob USD 1")


def test_a_hold_that_is_too_small_stops_the_machine() -> None:
    made = talk("place alice XYZ-USD buy 10 100")
    made.machine._state.orders[1].hold_units -= 1
    with pytest.raises(InvariantBroken, match="more than was held"):
        made.say("place bob XYZ-USD sell 10 100")


def test_what_a_node_reads() -> None:
    made = talk("place alice XYZ-USD buy 10 100", "withdraw alice USD 5", "reference XYZ-USD 100 now")
    machine = made.machine
    asset, instrument = machine.asset("USD"), machine.instrument("XYZ-USD")
    assert asset is not None and asset.scale == 2
    assert instrument is not None and instrument.reference_ticks == 100
    assert machine.instruments() == [instrument]
    assert machine.reference("XYZ-USD") == (100, START_US + 9)
    assert machine.book("XYZ-USD", 1) == ([(100, 10, 1)], [])
    assert machine.book("XYZ-USD", 0) == ([], [])
    order, withdrawal = machine.order(1), machine.withdrawal(1)
    assert order is not None and order.leaves_lots == 10
    assert machine.open_orders("alice") == machine.open_orders("alice", "XYZ-USD") == [order]
    assert machine.open_orders("alice", "ABC") == machine.open_orders("nobody") == []
    assert withdrawal is not None and withdrawal.amount_units == 5
    assert not machine.writes_stopped
    for missing in (machine.asset("X"), machine.instrument("X"), machine.account("nobody"), machine.order(2)):
        assert missing is None
    assert machine.reference("X") is machine.book("X", 1) is machine.withdrawal(2) is None
    assert machine.sessions("nobody") == []


def test_the_cache_of_accounts_is_bounded() -> None:
    backing = MemoryBacking()
    machine = Machine(backing, accounts_cached=10)
    commands = [Envelope("@operator", f"k{n}", 0, encode_command(c.OpenAccount(f"acc-{n:04}"))) for n in range(2_000)]
    backing.write(machine.apply(1, encode_batch(START_US, commands)))
    for _ in range(3):
        backing.store(machine.collect())
    assert len(machine._state.accounts) == 10
    account = machine.account("acc-0000")
    assert account is not None and account.account == "acc-0000"


def test_the_queue_of_deadlines_does_not_keep_closed_sessions() -> None:
    made = talk()
    state = made.machine._state
    rules = RULES
    for _ in range(3 * DUE_SLACK):
        rules[c.OpenSession](state, c.OpenSession("alice", "again", 86_400_000))
        rules[c.OpenSession](state, c.OpenSession("bob", "once", 1_000))
        rules[c.CloseSession](state, c.CloseSession("alice", "again"))
    assert len(state.due_sessions) <= 2 * DUE_SLACK
    session = state.next_session()
    assert session is not None
    assert (session.account.account, session.session) == ("bob", "once")
