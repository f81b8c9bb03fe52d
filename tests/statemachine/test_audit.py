"""The audit is shown states that are broken in one place each, and must say so; the whole one passes."""

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from statemachine.audit import audit
from statemachine.machine import Machine
from statemachine.memory import MemoryBacking
from statemachine.records import AccountRecord, LedgerRow, StoredState
from statemachine.types import OrderType, Reason, Status
from tests.statemachine.talk import Talk

SCRIPT = """
asset USD 2
asset XYZ 0
instrument XYZ-USD XYZ USD 2 maker_bps=5 taker_bps=10
account alice
account bob
deposit alice USD 100000
deposit bob XYZ 100
session alice s1 60000
place alice XYZ-USD buy 10 100 session=s1
place alice XYZ-USD buy 7 99
place bob XYZ-USD sell 4 100
place bob XYZ-USD sell 5 105
withdraw alice USD 500
"""
BUY, OTHER_BUY, SELL = 1, 2, 4


class Whole:
    """A state with everything in it, as records that a test may spoil."""

    def __init__(self) -> None:
        talk = Talk()
        for line in SCRIPT.strip().splitlines():
            talk.say(line)
        talk.backing.store(talk.machine.collect())
        self.state: StoredState = talk.backing.state()
        self.accounts: list[AccountRecord] = talk.backing.accounts()
        self.ledger: list[LedgerRow] = talk.backing.ledger

    def findings(self) -> list[str]:
        return audit(self.state, self.accounts, self.ledger)

    def order(self, order_id: int, **fields: Any) -> None:
        orders = self.state.orders
        self.state.orders = [replace(one, **fields) if one.order_id == order_id else one for one in orders]

    def balance(self, name: str, asset: str, available: int, held: int) -> None:
        """Add to one balance."""
        for place, account in enumerate(self.accounts):
            if account.account == name:
                rows = [(a, b + available, c + held) if a == asset else (a, b, c) for a, b, c in account.balances]
                self.accounts[place] = replace(account, balances=rows)

    def row(self, number: int, **fields: Any) -> None:
        self.ledger = [replace(one, **fields) if one.row == number else one for one in self.ledger]

    def meta(self, **fields: Any) -> None:
        self.state.meta = replace(self.state.meta, **fields)


def test_the_whole_state_passes() -> None:
    whole = Whole()
    assert len(whole.state.orders) == 3
    assert whole.findings() == []


def test_an_empty_state_passes() -> None:
    backing = MemoryBacking()
    backing.store(Machine(backing).collect())
    assert audit(backing.state(), backing.accounts(), []) == []


def drop_account(whole: Whole, name: str) -> None:
    whole.accounts = [one for one in whole.accounts if one.account != name]


SPOILED: list[tuple[str, str, Callable[[Whole], object]]] = [
    ("sums to 1,", "money from nowhere", lambda w: w.balance("bob", "USD", 1, 0)),
    ("alice holds", "a hold without an order", lambda w: w.balance("alice", "USD", -1, 1)),
    ("alice holds", "a withdrawal forgotten", lambda w: w.state.withdrawals.clear()),
    ("USD available and 0 held", "overdrawn", lambda w: w.balance("bob", "USD", -(10**6), 0)),
    ("may", "more than the supply", lambda w: w.balance("@world", "USD", -(10**12), 0)),
    ("is there twice", "an account twice", lambda w: w.accounts.append(w.accounts[-1])),
    ("is not there", "an account lost", lambda w: drop_account(w, "bob")),
    ("which is not known", "an asset lost", lambda w: w.state.assets.pop()),
    ("instrument XYZ-USD is not there", "an instrument lost", lambda w: w.state.instruments.clear()),
    ("is there 2 times", "an order twice", lambda w: w.state.orders.append(w.state.orders[0])),
    ("the next id is 2", "ids used again", lambda w: w.meta(next_order_id=2)),
    ("the next id is 1", "withdrawal ids used again", lambda w: w.meta(next_withdrawal_id=1)),
    ("is not made yet", "trade ids used again", lambda w: w.meta(next_trade_id=1)),
    ("is not written yet", "ledger rows used again", lambda w: w.meta(next_ledger_row=2)),
    ("priority 99", "a place before its time", lambda w: w.order(BUY, priority=99)),
    ("priority of", "two in one place", lambda w: w.order(OTHER_BUY, priority=1)),
    ("is crossed: bid 100", "a crossed book", lambda w: w.order(SELL, price_ticks=100)),
    ("rests as market", "a market order that rests", lambda w: w.order(SELL, type=OrderType.market)),
    ("is open as filled", "a closed order that is open", lambda w: w.order(SELL, status=Status.filled)),
    ("is open as new, requested", "a reason without an end", lambda w: w.order(SELL, reason=Reason.requested)),
    ("is not 4 filled + 5 leaves", "lots from nowhere", lambda w: w.order(BUY, leaves_lots=5)),
    ("leaves 0", "nothing left", lambda w: w.order(SELL, leaves_lots=0, quantity_lots=0)),
    ("not the 5 it sells", "a short sale", lambda w: w.order(SELL, hold_units=4)),
    ("it needs 694", "a hold too small", lambda w: w.order(OTHER_BUY, hold_units=693)),
    ("at most 695", "a hold too large", lambda w: w.order(OTHER_BUY, hold_units=696)),
    ("ledger row 3 follows row 1", "a row lost", lambda w: w.ledger.pop(1)),
    ("do not cancel out", "one side only", lambda w: w.row(2, delta_units=99_999)),
    ("do not make", "a wrong running balance", lambda w: w.row(4, owned_units=99)),
    ("continues row 3, not 0", "a broken chain", lambda w: w.row(1, previous=3)),
    ("in the ledger", "a balance beside the ledger", lambda w: w.balance("alice", "XYZ", 1, 0)),
    ("the ledger ends with row", "the newest rows lost", lambda w: w.ledger.pop()),
]


@pytest.mark.parametrize(("finding", "what", "spoil"), SPOILED, ids=[what for _, what, _ in SPOILED])
def test_each_wrong_is_found(finding: str, what: str, spoil: Callable[[Whole], object]) -> None:
    whole = Whole()
    spoil(whole)
    assert any(finding in one for one in whole.findings()), (what, whole.findings())


def test_a_ledger_that_starts_later_is_compared_as_far_as_it_goes() -> None:
    whole = Whole()
    whole.ledger = whole.ledger[4:]
    assert whole.findings() == []
    whole.row(7, owned_units=1)
    assert whole.findings() != []
