"""Bounds and field types that commands, results and events share.

Everything that enters the log is bounded here, once. Whole numbers only: an asset's amounts are
counted in its smallest unit, prices in ticks, quantities in lots.
"""

from enum import IntEnum
from typing import Annotated

from msgspec import Meta

AMOUNT_UNITS_MAX = 2**62
"""Largest supply of one asset, hence the largest balance; sums of two stay inside 64 bits."""
PRICE_TICKS_MAX = 10**12
QUANTITY_LOTS_MAX = 10**12
SCALE_MAX = 12
FEE_BPS_MAX = 1_000
BPS = 10_000
TIME_US_MAX = 2**53
"""Microseconds since 1970 UTC; inside the integers that every JSON reader keeps exact."""
ORDINAL_MAX = 2**32 - 1
OPEN_ORDERS_MAX = 100_000
REPLICAS_MAX = 255
SESSION_TIMEOUT_MS_MIN = 100
SESSION_TIMEOUT_MS_MAX = 86_400_000

ACCOUNT_PATTERN = r"^[a-z0-9][a-z0-9_-]{2,63}\Z"
ASSET_PATTERN = r"^[A-Z][A-Z0-9]{0,11}\Z"
SYMBOL_PATTERN = r"^[A-Z0-9][A-Z0-9._-]{0,15}\Z"
KEY_PATTERN = r"^[\x21-\x7e]{1,64}\Z"

# A pattern is checked where a name is made; where a name only has to exist, its length is enough.
NewAccount = Annotated[str, Meta(pattern=ACCOUNT_PATTERN)]
NewAsset = Annotated[str, Meta(pattern=ASSET_PATTERN)]
NewSymbol = Annotated[str, Meta(pattern=SYMBOL_PATTERN)]
AccountId = Annotated[str, Meta(max_length=64)]
AssetId = Annotated[str, Meta(max_length=12)]
Symbol = Annotated[str, Meta(max_length=16)]
Key = Annotated[str, Meta(max_length=64)]
SessionId = Annotated[str, Meta(max_length=64)]
MemberName = Annotated[str, Meta(max_length=64)]

AmountUnits = Annotated[int, Meta(gt=0, le=AMOUNT_UNITS_MAX)]
BudgetUnits = Annotated[int, Meta(ge=0, le=AMOUNT_UNITS_MAX)]
PriceTicks = Annotated[int, Meta(ge=0, le=PRICE_TICKS_MAX)]
QuantityLots = Annotated[int, Meta(ge=0, le=QUANTITY_LOTS_MAX)]
Scale = Annotated[int, Meta(ge=0, le=SCALE_MAX)]
FeeBps = Annotated[int, Meta(ge=0, le=FEE_BPS_MAX)]
BandBps = Annotated[int, Meta(ge=0, le=BPS)]
TimeUs = Annotated[int, Meta(ge=0, le=TIME_US_MAX)]
Id = Annotated[int, Meta(ge=0, le=2**63 - 1)]

WORLD = "@world"
"""The outside: deposits come from it, withdrawals go to it; the only balance that may be negative."""
FEES = "@fees"
ROUNDING = "@rounding"
SYSTEM_ACCOUNTS = (WORLD, FEES, ROUNDING)


class Side(IntEnum):
    buy = 1
    sell = 2


class OrderType(IntEnum):
    limit = 1
    market = 2


class TimeInForce(IntEnum):
    gtc = 1
    ioc = 2
    fok = 3
    day = 4
    gtd = 5


class SelfTrade(IntEnum):
    """What happens when an order meets one of its own account; the taker's mode decides."""

    cancel_newest = 1
    cancel_oldest = 2
    cancel_both = 3
    decrement = 4


class Mode(IntEnum):
    """What an instrument accepts. Cancels pass in every mode but `halted`."""

    trading = 1
    post_only = 2
    cancel_only = 3
    halted = 4


class Status(IntEnum):
    new = 1
    partially_filled = 2
    filled = 3
    canceled = 4
    expired = 5
    replaced = 6
    rejected = 7


class Reason(IntEnum):
    """Why an order left its state; part of the event and of the closed order's record."""

    none = 0
    filled = 1
    requested = 2
    mass_cancel = 3
    ioc_remainder = 4
    fok_unfilled = 5
    self_trade = 6
    gtd_expired = 7
    day_ended = 8
    session_expired = 9
    session_closed = 10
    fill_limit = 11
    price_band = 12
    price_collar = 13
    budget_spent = 14
    replaced = 15


class LedgerReason(IntEnum):
    """Why money or shares moved; part of every ledger row."""

    deposit = 1
    withdrawal = 2
    transfer = 3
    trade = 4
    fee = 5
    rounding = 6


# What the rules count with. Each is replicated behaviour: another value is another version of the rules.
KEY_RETENTION_US = 24 * 3_600 * 1_000_000
"""How long a key is remembered; a command first sent longer ago is never executed."""
KEY_BUCKET_US = 6 * 3_600 * 1_000_000
"""Keys live in buckets of this length, which are dropped whole."""
CANCEL_KEYS_MIN = 1_000
CANCEL_KEYS_SHARE = 10
"""An account with all its keys in use can still cancel: one key more for so many, and at least so many more."""
SENT_AHEAD_US_MAX = 600 * 1_000_000
REFERENCE_AHEAD_US_MAX = 10 * 1_000_000
CHUNK_ORDERS = 256
"""Orders that one mass cancel or one time step closes at most."""
CHUNK_SESSIONS = 256
"""Sessions that one time step ends at most."""
STEPS_MAX = 1_000
"""Makers that one command touches at most."""
WITHDRAWALS_OPEN_MAX = 1_000
SESSIONS_OPEN_MAX = 100
DIGEST_REPORTS_MAX = 64
"""Log indexes of which reported digests are kept."""
RULES_VERSIONS = (1,)
"""Versions of the rules that this program knows, the newest last."""
