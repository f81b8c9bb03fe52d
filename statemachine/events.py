"""What followed from a batch, in order. An event names its account and symbol; its position is (index, seq).

Balances can be followed from events alone: Transferred and Traded move what is owned, OrderOpened and
WithdrawalOpened hold, Traded spends from holds, HoldReleased and the closing events release.
Readers may be lenient: fields are only ever added at the end.
"""

from msgspec import Struct

from statemachine.commands import Calendar, Limits
from statemachine.types import LedgerReason, Mode, OrderType, Reason, SelfTrade, Side, Status, TimeInForce


class Event(Struct, frozen=True, array_like=True, gc=False, tag_field="kind"):
    """Base of all events."""


class AssetAdded(Event, frozen=True, tag=1):
    asset: str
    scale: int
    supply_units_max: int


class InstrumentChanged(Event, frozen=True, tag=2):
    """Listed, or changed in mode, fees, limits or calendar: the whole instrument as it is now."""

    symbol: str
    base: str
    quote: str
    price_scale: int
    quantity_scale: int
    tick: int
    lot: int
    mode: Mode
    maker_bps: int
    taker_bps: int
    limits: Limits
    calendar: Calendar


class AccountOpened(Event, frozen=True, tag=3):
    account: str


class Transferred(Event, frozen=True, tag=4):
    source: str
    target: str
    asset: str
    amount_units: int
    reason: LedgerReason
    source_units: int
    target_units: int


class OrderOpened(Event, frozen=True, tag=5):
    """An order entered with everything it asked for. hold_units of the quote (buy) or base (sell) asset are held.

    `replaces` is the order that it continues, or 0; filled_lots is what it brings from there.
    kept_priority: it stands where the replaced order stood.
    """

    order_id: int
    account: str
    symbol: str
    side: Side
    type: OrderType
    time_in_force: TimeInForce
    price_ticks: int
    quantity_lots: int
    budget_units: int
    expires_at_us: int
    post_only: bool
    self_trade: SelfTrade
    session: str
    key: str
    hold_units: int
    replaces: int
    filled_lots: int
    kept_priority: bool
    at_us: int


class Traded(Event, frozen=True, tag=6):
    """One fill at the maker's price. Fees are in the quote asset; leaves are after the fill."""

    trade_id: int
    symbol: str
    price_ticks: int
    quantity_lots: int
    notional_units: int
    taker_side: Side
    taker_order_id: int
    taker_account: str
    taker_fee_units: int
    taker_leaves_lots: int
    maker_order_id: int
    maker_account: str
    maker_fee_units: int
    maker_leaves_lots: int
    at_us: int


class HoldReleased(Event, frozen=True, tag=7):
    """An open order needs less held than before: it traded at better prices."""

    order_id: int
    account: str
    symbol: str
    released_units: int


class OrderReduced(Event, frozen=True, tag=8):
    """Self-trade prevention took lots off an order; it did not trade them."""

    order_id: int
    account: str
    symbol: str
    reduced_lots: int
    leaves_lots: int
    released_units: int


class OrderClosed(Event, frozen=True, tag=9):
    """The order left. leaves_lots is what never traded."""

    order_id: int
    account: str
    symbol: str
    status: Status
    reason: Reason
    filled_lots: int
    leaves_lots: int
    notional_units: int
    fee_units: int
    released_units: int
    replaced_by: int
    at_us: int


class WithdrawalOpened(Event, frozen=True, tag=10):
    withdrawal_id: int
    account: str
    asset: str
    amount_units: int


class WithdrawalClosed(Event, frozen=True, tag=11):
    """posted: the money left (a Transferred stands beside this). Else it is available again."""

    withdrawal_id: int
    account: str
    asset: str
    amount_units: int
    posted: bool


class ReferenceSet(Event, frozen=True, tag=12):
    symbol: str
    price_ticks: int
    observed_at_us: int


class SessionChanged(Event, frozen=True, tag=13):
    """A cancel-on-disconnect session opened or ended."""

    account: str
    session: str
    open: bool


class DigestDisagreed(Event, frozen=True, tag=14):
    """Replicas reported different digests for one index.

    members: those that a majority of the group outvotes, which leave; or all that reported, where no digest
        can have a majority any more: then writes stop.
    """

    digest_index: int
    members: tuple[str, ...]


class RulesActivated(Event, frozen=True, tag=15):
    version: int


AnyEvent = (
    AssetAdded
    | InstrumentChanged
    | AccountOpened
    | Transferred
    | OrderOpened
    | Traded
    | HoldReleased
    | OrderReduced
    | OrderClosed
    | WithdrawalOpened
    | WithdrawalClosed
    | ReferenceSet
    | SessionChanged
    | DigestDisagreed
    | RulesActivated
)
