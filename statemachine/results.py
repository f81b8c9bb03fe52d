"""What the machine answers: one struct per kind of result, stored with the batch for as long as its keys."""

from msgspec import Struct

from statemachine.codes import Code
from statemachine.types import Reason, Status


class Result(Struct, frozen=True, array_like=True, gc=False, tag_field="kind"):
    """Base of all results."""


class Refused(Result, frozen=True, tag=0):
    """Nothing changed. need and have are the two sides of the comparison that failed, where there is one."""

    code: Code
    need: int = 0
    have: int = 0


class Done(Result, frozen=True, tag=1):
    """Done; there is nothing more to say."""


class Repeat(Result, frozen=True, tag=2):
    """The key was seen before with this body: the answer is the one at (index, ordinal)."""

    index: int
    ordinal: int


class Placed(Result, frozen=True, tag=3):
    """The order entered. It may have traded, and it may have left already."""

    order_id: int
    status: Status
    reason: Reason
    filled_lots: int
    leaves_lots: int
    notional_units: int
    fee_units: int
    at_us: int


class Replaced(Result, frozen=True, tag=4):
    """`replaces` is closed as replaced; `order_id` goes on with what it had filled."""

    order_id: int
    replaces: int
    kept_priority: bool
    status: Status
    reason: Reason
    filled_lots: int
    leaves_lots: int
    notional_units: int
    fee_units: int
    at_us: int


class Canceled(Result, frozen=True, tag=5):
    order_id: int
    filled_lots: int
    leaves_lots: int
    at_us: int


class CanceledMany(Result, frozen=True, tag=6):
    """`remaining` orders are still to be canceled, in the chunks that follow."""

    count: int
    remaining: int


class Moved(Result, frozen=True, tag=7):
    """Balances owned (available and held) after the move; for a deposit `source` is the outside world."""

    source: str
    target: str
    asset: str
    amount_units: int
    source_units: int
    target_units: int
    at_us: int


class WithdrawalPending(Result, frozen=True, tag=8):
    withdrawal_id: int
    account: str
    asset: str
    amount_units: int
    at_us: int


class SessionOpened(Result, frozen=True, tag=9):
    deadline_us: int


class Stepped(Result, frozen=True, tag=10):
    """A time step closed `count` orders; `more` says that another chunk is due now."""

    count: int
    more: bool


AnyResult = (
    Refused
    | Done
    | Repeat
    | Placed
    | Replaced
    | Canceled
    | CanceledMany
    | Moved
    | WithdrawalPending
    | SessionOpened
    | Stepped
)
