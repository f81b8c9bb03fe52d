"""A refusal names both sides of the comparison that failed, in the client's own units."""

import pytest

from cluster import wire
from node.market import Market
from node.outcomes import ERRORS, FIELDS, answer
from node.submit import Outcome, Prepared
from statemachine.codec import Envelope
from statemachine.codes import Code
from statemachine.results import Refused

MARKET = Market(
    "ABC", base="ABC", base_scale=3, quote="USD", quote_scale=2, price_scale=2, quantity_scale=1, tick=5, lot=10
)
BUY = wire.PlaceOrder(symbol="ABC", side="buy", type="limit")
SELL = wire.PlaceOrder(symbol="ABC", side="sell", type="limit")
DEPOSIT = wire.TransferFunds(kind="deposit", asset="USD", amount=1)
REPLACE = wire.ReplaceOrder(order_id="1")

ROWS = [
    # code,                     need,                  have,                  request, what it says
    (Code.insufficient_funds,   1_000,                 999,                   BUY,     "needs 10 USD, available 9.99"),
    (Code.insufficient_funds,   1_000,                 999,                   SELL,    "needs 1 ABC, available 0.999"),
    (Code.insufficient_funds,   1_000,                 999,                   DEPOSIT, "needs 10, available 9.99"),
    (Code.insufficient_funds,   1_000,                 999,                   REPLACE, ""),
    (Code.quantity_too_small,   7,                     6,                     BUY,     "bound 7, given 6"),
    (Code.notional_too_large,   700,                   701,                   BUY,     "bound 7, given 7.01"),
    (Code.price_out_of_band,    20,                    21,                    BUY,     "bound 1, given 1.05"),
    (Code.stale_reference,      60_000_000,            75_300_000,            BUY,    "75.300 s old, at most 60.000 s"),
    (Code.open_orders_limit,    10,                    10,                    BUY,     "at most 10, has 10"),
    (Code.expiry_in_past,       1_795_157_195_193_532, 1_577_836_800_000_000, BUY,
     "must be after 2026-11-20T06:46:35.193532Z, is 2020-01-01T00:00:00.000000Z"),
    (Code.sent_in_future,       1_577_836_800_000_000, 1_577_836_800_000_001, BUY,
     "must not be after 2020-01-01T00:00:00.000000Z, is 2020-01-01T00:00:00.000001Z"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "need", "have", "request_", "says"), ROWS)
def test_both_sides_are_told(code: Code, need: int, have: int, request_: wire.AnyRequest, says: str) -> None:
    prepared = Prepared(Envelope("alice", "k", 0, b""), request_, instrument=MARKET, scale=2)
    told = answer(prepared, Outcome(5, Refused(code, need, have)))
    status, message = ERRORS[code]
    assert told.message == (f"{message} ({says})" if says else message)
    assert (told.error, told.code, told.field) == (code.name, status * 100_000 + code, FIELDS.get(code, ""))
