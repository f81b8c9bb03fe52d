"""Events as clients see them: exact decimals, the whole for the feed, one's own side for a trader."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.event_views import EventViews, Position
from node.market import Market, Money
from statemachine import events as ev
from statemachine.commands import Calendar, Limits, SessionHours
from statemachine.types import (
    ORDINAL_MAX,
    LedgerReason,
    Mode,
    OrderType,
    Reason,
    SelfTrade,
    Side,
    Status,
    TimeInForce,
)


class Units:
    def market(self, symbol: str) -> Market | None:
        return Market(
            symbol,
            base="BTC",
            base_scale=8,
            quote="USD",
            quote_scale=2,
            price_scale=2,
            quantity_scale=4,
            tick=50,
            lot=10,
        )

    def money(self, asset: str) -> Money | None:
        return Money(asset, 8 if asset == "BTC" else 2)


VIEWS = EventViews(Units())
TRADED = ev.Traded(7, "BTC-USD", 201, 15, 1_507, Side.sell, 11, "ann", 2, 0, 12, "bob", 1, 5, 1_000_000)
OPENED = ev.OrderOpened(
    11, "ann", "BTC-USD", Side.buy, OrderType.limit, TimeInForce.gtd, 201, 15, 0, 2_000_000, True, SelfTrade.decrement,
    "s", "key", 1_512, 0, 0, False, 1_000_000,
)  # fmt: skip

EVENTS: list[tuple[ev.AnyEvent, dict[str, Any]]] = [
    (TRADED, {"type": "traded", "price": "100.5", "qty": "0.015", "notional": "15.07", "taker_side": "sell",
              "taker_fee": "0.02", "maker_fee": "0.01", "taker_leaves_qty": "0", "maker_leaves_qty": "0.005"}),
    (OPENED, {"type": "order_opened", "hold": "15.12", "qty": "0.015", "limit_price": "100.5", "notional": None,
              "time_in_force": "gtd", "expires_at": "1970-01-01T00:00:02.000000Z", "client_order_id": "key"}),
    (ev.OrderOpened(1, "ann", "BTC-USD", Side.sell, OrderType.market, TimeInForce.ioc, 0, 3, 0, 0, False,
                    SelfTrade.cancel_newest, "", "k", 300_000, 0, 0, False, 1),
     {"hold": "0.003", "limit_price": None, "session": None, "replaces": None, "expires_at": None}),
    (ev.OrderOpened(1, "ann", "BTC-USD", Side.buy, OrderType.market, TimeInForce.ioc, 0, 0, 5_000, 0, False,
                    SelfTrade.cancel_newest, "", "k", 5_000, 0, 0, False, 1),
     {"hold": "50", "qty": None, "notional": "50"}),
    (ev.OrderClosed(11, "ann", "BTC-USD", Status.canceled, Reason.requested, 5, 10, 500, 1, 77, 0, 1),
     {"type": "order_closed", "status": "canceled", "reason": "requested", "filled_qty": "0.005",
      "filled_notional": "5", "fee": "0.01", "released_units": 77, "replaced_by": None}),
    (ev.OrderReduced(11, "ann", "BTC-USD", 2, 8, 90), {"reduced_qty": "0.002", "leaves_qty": "0.008"}),
    (ev.HoldReleased(11, "ann", "BTC-USD", 4), {"type": "hold_released", "released_units": 4}),
    (ev.Transferred("@world", "ann", "USD", 1_250, LedgerReason.deposit, -1_250, 1_250),
     {"amount": "12.5", "reason": "deposit", "source_balance": "-12.5", "target_balance": "12.5"}),
    (ev.AccountOpened("ann"), {"type": "account_opened", "account": "ann"}),
    (ev.AssetAdded("USD", 2, 2**62), {"supply_max": "46116860184273879.04"}),
    (ev.InstrumentChanged("BTC-USD", "BTC", "USD", 2, 4, 50, 10, Mode.halted, 1, 2, Limits(quantity_lots_max=100),
                          Calendar((SessionHours(570, 960), None), 60, ((20_000, None),))),
     {"tick_size": "0.5", "lot_size": "0.001", "mode": "halted", "maker_bps": 1,
      "calendar": {"weekly": [[570, 960], None], "utc_offset_minutes": 60, "exceptions": [[20_000, None]]}}),
    (ev.WithdrawalOpened(3, "ann", "BTC", 1), {"amount": "0.00000001", "withdrawal_id": "3"}),
    (ev.WithdrawalClosed(3, "ann", "BTC", 1, True), {"type": "withdrawal_closed", "posted": True}),
    (ev.ReferenceSet("BTC-USD", 200, 1), {"price": "100", "observed_at": "1970-01-01T00:00:00.000001Z"}),
    (ev.SessionChanged("ann", "s", False), {"type": "session_changed", "open": False}),
    (ev.DigestDisagreed(5, ("dc-a",)), {"members": ["dc-a"]}),
    (ev.RulesActivated(2), {"version": 2}),
]  # fmt: skip


@pytest.mark.parametrize(("event", "expected"), EVENTS)
def test_all_of_an_event(event: ev.AnyEvent, expected: dict[str, Any]) -> None:
    view = VIEWS.public(event, "0.1.2.3", "now")
    assert list(view)[:2] == ["position", "at"]
    assert {name: view[name] for name in expected} == expected


def test_every_kind_of_event_has_a_view() -> None:
    assert {type(event) for event, _ in EVENTS} == set(ev.AnyEvent.__args__)  # type: ignore[attr-defined]


def test_each_side_of_a_trade_sees_its_own() -> None:
    (ann, hers), (bob, his) = VIEWS.private(TRADED, "p", "t")
    assert (ann, bob) == ("ann", "bob")
    assert (hers["event"], hers["side"], hers["liquidity"], hers["fee"], hers["order_id"]) == (
        "fill", "sell", "taker", "0.02", "11",
    )  # fmt: skip
    assert (his["event"], his["side"], his["liquidity"], his["fee"], his["order_id"]) == (
        "partial_fill", "buy", "maker", "0.01", "12",
    )  # fmt: skip
    assert "bob" not in str(hers)
    assert "ann" not in str(his)
    assert "12" not in (hers["order_id"], hers["leaves_qty"])


def test_each_side_of_a_transfer_sees_its_own() -> None:
    event = ev.Transferred("ann", "bob", "USD", 100, LedgerReason.transfer, 900, 5_100)
    (_, hers), (_, his) = VIEWS.private(event, "p", "t")
    assert (hers["amount"], hers["balance"], his["amount"], his["balance"]) == ("-1", "9", "1", "51")
    assert "bob" not in str(hers)
    assert "51" not in str(hers)


@pytest.mark.parametrize(("event", "_"), EVENTS)
def test_private_views_go_to_the_accounts_of_the_event_only(event: ev.AnyEvent, _: dict[str, Any]) -> None:
    named = {getattr(event, name, "") for name in ("account", "taker_account", "maker_account", "source", "target")}
    assert {account for account, _ in VIEWS.private(event, "p", "t")} == named - {""}


@given(st.integers(0, 9), st.integers(1, 9), st.integers(0, 2**63), st.integers(0, ORDINAL_MAX))
def test_a_position_comes_back_from_its_text(group: int, epoch: int, index: int, seq: int) -> None:
    position = Position(group, epoch, index, seq)
    assert Position.parse(str(position)) == position
    assert Position.parse(f"{epoch}.{index}.{seq}", group=group) == position
    assert position <= Position.behind(group, epoch, index) < Position(group, epoch, index + 1, 0)


@pytest.mark.parametrize(
    "text", ["", ".", "1.2", "1.2.3.4.5", "-1.2.3.4", "a.b.c.d", "1.2.3.\u0661", "1. 2.3.4", "9" * 65]
)
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="position"):
        Position.parse(text)
