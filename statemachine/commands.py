"""What a client can ask: one frozen struct per command.

A command is in the log for ever. Tags and field order are fixed; a new field goes to the end with a
default that means what its absence meant. Unknown fields are refused: a field that one replica skips
is a field that forks the group. The codec refuses malformed fields; everything else is for the rules
to say.
"""

from typing import Annotated

from msgspec import Meta, Struct

from statemachine.types import (
    OPEN_ORDERS_MAX,
    QUANTITY_LOTS_MAX,
    REPLICAS_MAX,
    RULES_VERSIONS,
    SESSION_TIMEOUT_MS_MAX,
    SESSION_TIMEOUT_MS_MIN,
    AccountId,
    AmountUnits,
    AssetId,
    BandBps,
    BudgetUnits,
    FeeBps,
    Id,
    Key,
    MemberName,
    Mode,
    NewAccount,
    NewAsset,
    NewSymbol,
    OrderType,
    PriceTicks,
    QuantityLots,
    Scale,
    SelfTrade,
    SessionId,
    Side,
    Symbol,
    TimeInForce,
    TimeUs,
)


class Command(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False, tag_field="kind"):
    """Base of all commands."""


class AddAsset(Command, frozen=True, tag=1):
    """Make an asset known. Its smallest unit is 10**-scale; `supply_units_max` bounds what may exist."""

    asset: NewAsset
    scale: Scale
    supply_units_max: AmountUnits


class Limits(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Bounds on the orders of one instrument. A zero switches a bound off, save for the maxima."""

    quantity_lots_min: QuantityLots = 1
    quantity_lots_max: QuantityLots = QUANTITY_LOTS_MAX
    notional_units_min: BudgetUnits = 0
    notional_units_max: BudgetUnits = 2**62
    open_orders_max: Annotated[int, Meta(ge=1, le=OPEN_ORDERS_MAX)] = 10_000
    """Open orders that one account may have in this instrument."""
    band_bps: BandBps = 0
    """Furthest that a price may be from the reference price, on entry and at execution; 0: no band."""
    collar_bps: BandBps = 500
    """Furthest from the reference price that a market order trades when it names no price."""
    reference_age_us_max: TimeUs = 5_000_000
    """Older than this, a reference price is stale: bands pause and market orders are refused."""


class SessionHours(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One opening: minutes after local midnight; `close_minute` may be up to 2880 (past midnight)."""

    open_minute: Annotated[int, Meta(ge=0, lt=1440)]
    close_minute: Annotated[int, Meta(gt=0, le=2880)]


class Calendar(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """When an instrument trades. No weekly hours at all means always; a day order then ends at midnight.

    weekly: seven entries, Monday first; None is a closed day.
    utc_offset_minutes: local time minus UTC. The machine has no time zone database (two replicas could
        hold different ones), so a change to summer time is a new calendar, sent as a command.
    exceptions: (day, hours) for holidays (None) and short days; a day counts from 1970-01-01, local.
    """

    weekly: Annotated[tuple[SessionHours | None, ...], Meta(max_length=7)] = ()
    utc_offset_minutes: Annotated[int, Meta(ge=-840, le=840)] = 0
    exceptions: Annotated[
        tuple[tuple[Annotated[int, Meta(ge=0, le=100_000)], SessionHours | None], ...], Meta(max_length=400)
    ] = ()


class AddInstrument(Command, frozen=True, tag=2):
    """List an instrument. tick and lot are counted in 10**-price_scale and 10**-quantity_scale.

    Refused as `inexact_instrument` unless one tick times one lot is a whole number of the quote
    asset's units and one lot a whole number of the base asset's.
    """

    symbol: NewSymbol
    base: AssetId
    quote: AssetId
    price_scale: Scale
    quantity_scale: Scale
    tick: Annotated[int, Meta(gt=0, le=10**12)]
    lot: Annotated[int, Meta(gt=0, le=10**12)]
    maker_bps: FeeBps = 0
    taker_bps: FeeBps = 0
    limits: Limits = Limits()
    calendar: Calendar = Calendar()


class SetMode(Command, frozen=True, tag=3):
    """Change what an instrument accepts; an empty symbol is all of them."""

    symbol: Symbol
    mode: Mode


class SetFees(Command, frozen=True, tag=4):
    """Change rates for orders that enter from now on; an open order keeps the rates that it entered with."""

    symbol: Symbol
    maker_bps: FeeBps
    taker_bps: FeeBps


class SetLimits(Command, frozen=True, tag=5):
    symbol: Symbol
    limits: Limits


class SetCalendar(Command, frozen=True, tag=6):
    """Change the calendar; day orders already open keep the end that they entered with."""

    symbol: Symbol
    calendar: Calendar


class OpenAccount(Command, frozen=True, tag=7):
    """Open an account under an opaque id. keys_max bounds the idempotency keys it may hold at once."""

    account: NewAccount
    keys_max: Annotated[int, Meta(ge=1, le=10**9)] = 10_000_000


class Deposit(Command, frozen=True, tag=8):
    account: AccountId
    asset: AssetId
    amount_units: AmountUnits


class Transfer(Command, frozen=True, tag=9):
    """Move `amount_units` of one asset from `source` to `target`."""

    source: AccountId
    target: AccountId
    asset: AssetId
    amount_units: AmountUnits


class RequestWithdrawal(Command, frozen=True, tag=10):
    """Hold an amount until the outside has been paid (post) or not (void)."""

    account: AccountId
    asset: AssetId
    amount_units: AmountUnits


class PostWithdrawal(Command, frozen=True, tag=11):
    withdrawal_id: Id


class VoidWithdrawal(Command, frozen=True, tag=12):
    withdrawal_id: Id


class PlaceOrder(Command, frozen=True, tag=13):
    """A new order.

    price_ticks: the limit. For a market order the worst price it may trade at; 0 takes the instrument's
        collar around the reference price.
    quantity_lots: 0 only for a market buy with `budget_units`, fees included, of the quote asset.
    expires_at_us: for gtd only.
    session: id of a cancel-on-disconnect session of the same account, or empty.
    """

    account: AccountId
    symbol: Symbol
    side: Side
    type: OrderType
    time_in_force: TimeInForce
    price_ticks: PriceTicks
    quantity_lots: QuantityLots
    budget_units: BudgetUnits = 0
    expires_at_us: TimeUs = 0
    post_only: bool = False
    self_trade: SelfTrade = SelfTrade.cancel_newest
    session: SessionId = ""


class ReplaceOrder(Command, frozen=True, tag=14):
    """Give an open limit order a new total quantity (what has filled counts) and a new price.

    price_ticks 0 or quantity_lots 0 keeps the present one. Same price and a smaller quantity keep the
    place in the queue; anything else enters anew. The order gets a new id either way, and the key of this
    command for its own.

    order_key: with order_id 0, the open order of the account that was placed or last replaced under this key;
        so an order can be changed before its id is known.
    symbol: when given, the order must be of this instrument. Whoever counted the lots and ticks of an order
        that it had not seen yet says here in which instrument's.
    """

    account: AccountId
    order_id: Id
    price_ticks: PriceTicks = 0
    quantity_lots: QuantityLots = 0
    order_key: Key = ""
    symbol: Symbol = ""


class CancelOrder(Command, frozen=True, tag=15):
    """Cancel an open order, named by its id or (order_id 0) by its key, as in ReplaceOrder."""

    account: AccountId
    order_id: Id
    order_key: Key = ""


class CancelAccountOrders(Command, frozen=True, tag=16):
    """Cancel all open orders of an account, in one instrument or (empty symbol) in all, in chunks."""

    account: AccountId
    symbol: Symbol = ""


class CancelInstrumentOrders(Command, frozen=True, tag=17):
    """Cancel all open orders of an instrument, in chunks."""

    symbol: Symbol


class SetReference(Command, frozen=True, tag=18):
    """A price from outside, as seen at `observed_at_us`; an older one than the present is refused."""

    symbol: Symbol
    price_ticks: Annotated[int, Meta(gt=0, le=10**12)]
    observed_at_us: TimeUs


class OpenSession(Command, frozen=True, tag=19):
    """Cancel-on-disconnect: orders that name the session die `timeout_ms` after its last beat."""

    account: AccountId
    session: Annotated[str, Meta(pattern=r"^[\x21-\x7e]{1,64}\Z")]
    timeout_ms: Annotated[int, Meta(ge=SESSION_TIMEOUT_MS_MIN, le=SESSION_TIMEOUT_MS_MAX)]


class BeatSession(Command, frozen=True, tag=20):
    """Keep a session alive. Internal: sent by the node that holds the socket, without a key."""

    account: AccountId
    session: SessionId


class CloseSession(Command, frozen=True, tag=21):
    """End a session and cancel its orders, in chunks."""

    account: AccountId
    session: SessionId


class TimeStep(Command, frozen=True, tag=22):
    """Let time pass: expire what is due and go on with mass cancels, one chunk. Internal, from the leader."""


class ReportDigest(Command, frozen=True, tag=23):
    """What a replica computed at an index. Internal: replicas are compared through the log.

    replicas: how many full replicas the group has, so that a majority is one of all, not of those heard so far.
    """

    member: MemberName
    digest_index: Id
    digest: Annotated[bytes, Meta(min_length=16, max_length=32)]
    replicas: Annotated[int, Meta(ge=1, le=REPLICAS_MAX)]


class ActivateRules(Command, frozen=True, tag=24):
    """Switch to a newer version of the rules, on all members at this index.

    A version that this program does not know can't be decoded, so it stops here, as an unknown batch does:
    going on by the old rules would end in another state than that of the members that know the new ones.
    """

    version: Annotated[int, Meta(ge=1, le=RULES_VERSIONS[-1])]


AnyCommand = (
    AddAsset
    | AddInstrument
    | SetMode
    | SetFees
    | SetLimits
    | SetCalendar
    | OpenAccount
    | Deposit
    | Transfer
    | RequestWithdrawal
    | PostWithdrawal
    | VoidWithdrawal
    | PlaceOrder
    | ReplaceOrder
    | CancelOrder
    | CancelAccountOrders
    | CancelInstrumentOrders
    | SetReference
    | OpenSession
    | BeatSession
    | CloseSession
    | TimeStep
    | ReportDigest
    | ActivateRules
)

INTERNAL = (BeatSession, TimeStep, ReportDigest)
"""Commands that members send themselves. Each is idempotent by its nature, so it needs no key."""
