"""The events of a node's feed as this room knows them: what `/v1/feed` says, typed, decimals exact.

Field names are the feed's. An event of a kind that is not here ends the following with UnknownEvent: a
projection that left something out would show wrong numbers as fresh.
"""

from decimal import Decimal

import msgspec
from msgspec import Struct

SEQ_ALL = (1 << 32) - 1
"""The `seq` of a position behind all events of its entry."""


class Position(Struct, frozen=True, order=True, gc=False):
    """A place in the feed: behind event `seq` of log entry `index`. As text: group.epoch.index.seq."""

    group: int
    epoch: int
    index: int
    seq: int

    def __str__(self) -> str:
        return f"{self.group}.{self.epoch}.{self.index}.{self.seq}"

    @classmethod
    def parse(cls, text: str) -> "Position":
        """Raises ValueError."""
        parts = text.split(".") if len(text) <= 64 else []
        if len(parts) != 4 or not all(part.isascii() and part.isdigit() for part in parts):
            raise ValueError(f"{text[:64]!r} is no position; one is group.epoch.index.seq")
        return cls(*map(int, parts))


class Event(Struct, frozen=True, tag_field="type", kw_only=True, gc=False):
    """position: of this event. at: the time of its batch, RFC 3339, by the leader's clock."""

    position: str
    at: str


class AssetAdded(Event, frozen=True, tag="asset_added", kw_only=True, gc=False):
    asset: str
    scale: int


class InstrumentChanged(Event, frozen=True, tag="instrument_changed", kw_only=True, gc=False):
    symbol: str
    base: str
    quote: str
    mode: str


class AccountOpened(Event, frozen=True, tag="account_opened", kw_only=True, gc=False):
    account: str


class Transferred(Event, frozen=True, tag="transferred", kw_only=True, gc=False):
    """Between accounts, or with the outside world (`@world`). *_balance: owned afterwards, held included."""

    source: str
    target: str
    asset: str
    amount: Decimal
    reason: str
    source_balance: Decimal
    target_balance: Decimal


class OrderOpened(Event, frozen=True, tag="order_opened", kw_only=True, gc=False):
    """hold: in the quote asset for a buy, in the base asset for a sell. kept_priority: the order stays in its place."""

    account: str
    order_id: str
    client_order_id: str
    symbol: str
    side: str
    order_type: str
    time_in_force: str
    limit_price: Decimal | None
    qty: Decimal | None
    notional: Decimal | None
    filled_qty: Decimal
    expires_at: str | None
    hold: Decimal
    replaces: str | None
    kept_priority: bool


class Traded(Event, frozen=True, tag="traded", kw_only=True, gc=False):
    """notional and fees in the quote asset; leaves: after this fill."""

    trade_id: str
    symbol: str
    price: Decimal
    qty: Decimal
    notional: Decimal
    taker_side: str
    taker_order_id: str
    taker_account: str
    taker_fee: Decimal
    taker_leaves_qty: Decimal
    maker_order_id: str
    maker_account: str
    maker_fee: Decimal
    maker_leaves_qty: Decimal


class HoldReleased(Event, frozen=True, tag="hold_released", kw_only=True, gc=False):
    """released_units: in the smallest unit of what the order holds."""

    account: str
    order_id: str
    symbol: str
    released_units: int


class OrderReduced(Event, frozen=True, tag="order_reduced", kw_only=True, gc=False):
    account: str
    order_id: str
    symbol: str
    reduced_qty: Decimal
    leaves_qty: Decimal
    released_units: int


class OrderClosed(Event, frozen=True, tag="order_closed", kw_only=True, gc=False):
    account: str
    order_id: str
    symbol: str
    status: str
    reason: str
    filled_qty: Decimal
    leaves_qty: Decimal
    filled_notional: Decimal
    fee: Decimal
    released_units: int
    replaced_by: str | None


class WithdrawalOpened(Event, frozen=True, tag="withdrawal_opened", kw_only=True, gc=False):
    account: str
    withdrawal_id: str
    asset: str
    amount: Decimal


class WithdrawalClosed(Event, frozen=True, tag="withdrawal_closed", kw_only=True, gc=False):
    account: str
    withdrawal_id: str
    asset: str
    amount: Decimal
    posted: bool


class ReferenceSet(Event, frozen=True, tag="reference_set", kw_only=True, gc=False):
    symbol: str
    price: Decimal
    observed_at: str


class SessionChanged(Event, frozen=True, tag="session_changed", kw_only=True, gc=False):
    account: str
    session: str
    open: bool


class DigestDisagreed(Event, frozen=True, tag="digest_disagreed", kw_only=True, gc=False):
    digest_index: int
    members: list[str]


class RulesActivated(Event, frozen=True, tag="rules_activated", kw_only=True, gc=False):
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


class UnknownEvent(ValueError):
    """The feed says something that this version does not know."""


class Message(Struct, frozen=True, kw_only=True):
    """What the feed's WebSocket sends. position: behind all of `events`.

    newest: of a heartbeat: the node is with the majority, which has nothing newer.
    """

    stream: str
    position: str = ""
    events: list[AnyEvent] = []
    newest: bool = True
    # Of errors and of goodbyes.
    error: str = ""
    message: str = ""
    resume: str = ""


_decode = msgspec.json.Decoder(Message).decode


def decode(frame: str | bytes) -> Message:
    """Raises UnknownEvent."""
    try:
        return _decode(frame)
    except msgspec.MsgspecError as error:
        raise UnknownEvent(str(error)) from error
