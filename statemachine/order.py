"""An open order and the price level that it stands in, as they are in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from statemachine.records import OrderRecord
from statemachine.types import OrderType, Reason, SelfTrade, Side, Status, TimeInForce

if TYPE_CHECKING:
    from statemachine.accounts import Account, Session
    from statemachine.instrument import Instrument

BUY = Side.buy
NEW = Status.new
PARTIALLY_FILLED = Status.partially_filled
NO_REASON = Reason.none
DAY = TimeInForce.day


class Order:
    """An order from its entry to its close. quantity_lots = filled_lots + leaves_lots, save for a market buy by budget.

    level is None while it does not rest. stored: the store has a record under order_id.
    same_key: the next older open order of its account and key. Keys may come again after their retention.
    """

    __slots__ = (
        "account",
        "budget_units",
        "dirty",
        "expires_at_us",
        "fee_units",
        "filled_lots",
        "hold_units",
        "instrument",
        "key",
        "leaves_lots",
        "level",
        "maker_bps",
        "maker_notional_units",
        "newer",
        "notional_units",
        "older",
        "opened_at_us",
        "opened_index",
        "order_id",
        "post_only",
        "price_ticks",
        "priority",
        "quantity_lots",
        "replaces",
        "same_key",
        "self_trade",
        "session",
        "session_id",
        "side",
        "stored",
        "taker_bps",
        "taker_notional_units",
        "time_in_force",
        "type",
        "updated_at_us",
    )

    def __init__(
        self,
        order_id: int,
        account: Account,
        instrument: Instrument,
        side: Side,
        type_: OrderType,
        time_in_force: TimeInForce,
        price_ticks: int,
        quantity_lots: int,
        budget_units: int,
        expires_at_us: int,
        post_only: bool,
        self_trade: SelfTrade,
        session: Session | None,
        session_id: str,
        key: str,
        maker_bps: int,
        taker_bps: int,
        hold_units: int,
        opened_index: int,
        opened_at_us: int,
    ) -> None:
        self.order_id = order_id
        self.account = account
        self.instrument = instrument
        self.side = side
        self.type = type_
        self.time_in_force = time_in_force
        self.price_ticks = price_ticks
        self.quantity_lots = quantity_lots
        self.budget_units = budget_units
        self.expires_at_us = expires_at_us
        self.post_only = post_only
        self.self_trade = self_trade
        self.session = session
        self.session_id = session_id
        self.key = key
        self.maker_bps = maker_bps
        self.taker_bps = taker_bps
        self.hold_units = hold_units
        self.opened_index = opened_index
        self.opened_at_us = opened_at_us
        self.updated_at_us = opened_at_us
        self.priority = order_id
        self.leaves_lots = quantity_lots
        self.filled_lots = 0
        self.notional_units = 0
        self.maker_notional_units = 0
        self.taker_notional_units = 0
        self.fee_units = 0
        self.replaces = 0
        self.level: Level | None = None
        self.older: Order | None = None
        self.newer: Order | None = None
        self.same_key: Order | None = None
        self.dirty = False
        self.stored = False

    def record(self, status: Status, reason: Reason, replaced_by: int, previous_closed: int) -> OrderRecord:
        return OrderRecord(
            self.order_id,
            self.account.account,
            self.instrument.symbol,
            self.side,
            self.type,
            self.time_in_force,
            self.price_ticks,
            self.quantity_lots,
            self.budget_units,
            self.expires_at_us,
            self.post_only,
            self.self_trade,
            self.session_id,
            self.key,
            self.maker_bps,
            self.taker_bps,
            status,
            reason,
            self.filled_lots,
            self.leaves_lots,
            self.notional_units,
            self.maker_notional_units,
            self.taker_notional_units,
            self.fee_units,
            self.hold_units,
            self.priority,
            self.replaces,
            replaced_by,
            self.opened_index,
            self.opened_at_us,
            self.updated_at_us,
            previous_closed,
        )

    def open_record(self) -> OrderRecord:
        """The record of an order that is still open."""
        return self.record(PARTIALLY_FILLED if self.filled_lots else NEW, NO_REASON, 0, 0)

    def is_past(self, now_us: int) -> bool:
        """Its time or its session's is over: it never matches again, though its chunk has not come."""
        session = self.session
        return (0 < self.expires_at_us <= now_us) or (session is not None and session.deadline_us <= now_us)

    def expiry_reason(self) -> Reason:
        return Reason.day_ended if self.time_in_force is DAY else Reason.gtd_expired


class Level:
    """All orders of one side at one price, the oldest first."""

    __slots__ = ("count", "lots", "newest", "oldest", "rank")

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.lots = 0
        self.count = 0
        self.oldest: Order | None = None
        self.newest: Order | None = None
