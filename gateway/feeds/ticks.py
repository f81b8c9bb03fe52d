"""What every feed handler gives, whatever the venue: quotes, trades, books and statuses in whole numbers.

Prices and sizes are integers of 1e-9 (`_e9`), for every symbol alike. Floats are not exact, Decimals take
3.5 times as long to compare and 3 times as long to log (measured), and a scale per symbol would have to be
looked up, and agreed on, wherever two venues meet. 1e-9 holds what the venues that we read send (8 decimals and
9), and up to 18.4 billion units fit in the 64 bits of a record (Kraken's books hold asks at 9,999,999,997
francs, so 63 would not do). What does not fit exactly is refused: two of Kraken's pairs have 10 decimals.
"""

from collections.abc import Callable
from enum import StrEnum

from msgspec import Struct

E9 = 1_000_000_000
E9_MAX = (1 << 64) - 1
"""The largest price or size: 18,446,744,073.709551615 units."""

# Marks: a tick that carries one is kept, and is not taken for more than it is.
SUSPECT = 1
"""More than 50 % away from what this venue said before, and not confirmed yet."""
RECEIVE_TIME = 2
"""The venue gave no time, or an impossible one; venue_us is the receive time."""
CROSSED = 4
"""The venue's own bid is above its own ask."""
LATE = 8
"""Its venue time is before that of what came before. A quote's is then set to the latest seen."""
HALTED = 16
"""The venue does not trade the symbol now."""

UNUSABLE = SUSPECT | CROSSED | HALTED
"""A quote with one of these is not in an NBBO; a suspect trade is not in a candle."""

Level = tuple[int, int]
"""(price_e9, size_e9)"""


class Quote(Struct, frozen=True, gc=False, array_like=True, tag="q"):
    """The best bid and ask of one symbol at one venue. A side that is not there has price and size 0."""

    symbol: str
    venue: str
    bid_e9: int
    bid_size_e9: int
    ask_e9: int
    ask_size_e9: int
    venue_us: int
    receive_us: int
    marks: int = 0


class Trade(Struct, frozen=True, gc=False, array_like=True, tag="t"):
    """One trade. Not every trade may move open, high, low and close: only those that are `eligible`."""

    symbol: str
    venue: str
    price_e9: int
    size_e9: int
    venue_us: int
    receive_us: int
    trade_id: str
    eligible: bool = True
    aggressor: str = ""
    """`buy`, `sell`, or nothing where the venue does not say."""
    marks: int = 0


class BookSnapshot(Struct, frozen=True, gc=False, array_like=True, tag="s"):
    """A venue's whole book of one symbol as we know it, best levels first. It replaces what was there."""

    symbol: str
    venue: str
    seq: int
    bids: tuple[Level, ...]
    asks: tuple[Level, ...]
    venue_us: int
    receive_us: int


class BookDiff(Struct, frozen=True, gc=False, array_like=True, tag="d"):
    """Levels that changed; a size of 0 removes the level. It applies to the book at `seq` - 1 and to no other.

    seq: ours, one by one per venue and symbol, also where a venue numbers in another way.
    """

    symbol: str
    venue: str
    seq: int
    bids: tuple[Level, ...]
    asks: tuple[Level, ...]
    venue_us: int
    receive_us: int


class StatusKind(StrEnum):
    ALIVE = "alive"
    """The venue is there, though nothing changed."""
    GAP = "gap"
    """Something was missed: the quotes named can't be trusted until new ones come."""
    BOOK_GAP = "book_gap"
    """The book can't be trusted until a snapshot comes; the quotes come another way and can."""
    TRADE_GAP = "trade_gap"
    """Trades were missed."""
    RESUBSCRIBED = "resubscribed"
    """What was missed is whole again."""
    HALTED = "halted"
    RESUMED = "resumed"
    TRADE_BROKEN = "trade_broken"
    """The venue took a trade back; `detail` is its id."""
    DOWN = "down"
    """The connection is gone, or its circuit breaker is open: nothing of the venue can be trusted."""
    UP = "up"
    LOST = "lost"
    """A tick log has a hole here; `detail` says how many records."""


class Status(Struct, frozen=True, gc=False, array_like=True, tag="x"):
    """What happened to a feed, of one symbol or (symbol empty) of all its symbols."""

    venue: str
    kind: StatusKind
    receive_us: int
    symbol: str = ""
    detail: str = ""


Tick = Quote | Trade | BookSnapshot | BookDiff | Status
Sink = Callable[[list[Tick]], None]
"""Takes what a feed gives, at once and without waiting."""


def e9(text: str) -> int:
    """A plain decimal as units of 1e-9.

    Raises:
        ValueError: a sign, an exponent, anything but digits and one dot, too large, or more than 9 decimals.
    """
    whole, _, fraction = text.partition(".")
    if len(fraction) > 9:
        fraction = fraction.rstrip("0")
        if len(fraction) > 9:
            raise ValueError("more than 9 decimals")
    digits = whole + fraction.ljust(9, "0")
    # isdigit() alone would take other alphabets' digits; int() alone would take "1_0", "+1" and " 1".
    if not whole or len(digits) > 28 or not digits.isascii() or not digits.isdigit():
        raise ValueError("not a plain decimal")
    value = int(digits)
    if value > E9_MAX:
        raise ValueError("too large")
    return value


def decimal_text(value_e9: int) -> str:
    """Units of 1e-9 as the shortest plain decimal."""
    sign = "-" if value_e9 < 0 else ""
    whole, fraction = divmod(abs(value_e9), E9)
    return f"{sign}{whole}.{fraction:09d}".rstrip("0").rstrip(".")
