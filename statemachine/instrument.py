"""An instrument as it is in memory: its record, what follows from it, and its book."""

from statemachine.book import BookSide
from statemachine.calendar import next_midnight_us, opening
from statemachine.commands import AddInstrument, Limits
from statemachine.events import InstrumentChanged
from statemachine.order import Order
from statemachine.records import InstrumentRecord
from statemachine.types import BPS


def exact_units(factor: int, asset_scale: int, scale: int) -> int:
    """factor * 10**-scale in units of an asset of `asset_scale`; 0 when that is not a whole number."""
    units, rest = divmod(factor * 10**asset_scale, 10**scale)
    return 0 if rest else units


def limits_are_valid(limits: Limits) -> bool:
    return (
        limits.quantity_lots_min <= limits.quantity_lots_max and limits.notional_units_min <= limits.notional_units_max
    )


class Instrument:
    """One market. price_ticks * lots * notional_unit is a notional in the quote asset's units, lots * base_unit
    a quantity in the base asset's."""

    __slots__ = (
        "asks",
        "base",
        "base_unit",
        "bids",
        "calendar",
        "dirty",
        "last_trade_id",
        "limits",
        "lot",
        "maker_bps",
        "mode",
        "notional_unit",
        "opening_end_us",
        "opening_until_us",
        "orders",
        "price_scale",
        "quantity_scale",
        "quote",
        "reference_at_us",
        "reference_ticks",
        "symbol",
        "taker_bps",
        "tick",
    )

    def __init__(self, record: InstrumentRecord, base_scale: int, quote_scale: int) -> None:
        self.symbol = record.symbol
        self.base = record.base
        self.quote = record.quote
        self.price_scale = record.price_scale
        self.quantity_scale = record.quantity_scale
        self.tick = record.tick
        self.lot = record.lot
        self.mode = record.mode
        self.maker_bps = record.maker_bps
        self.taker_bps = record.taker_bps
        self.limits = record.limits
        self.calendar = record.calendar
        self.reference_ticks = record.reference_ticks
        self.reference_at_us = record.reference_at_us
        self.last_trade_id = record.last_trade_id
        self.notional_unit, self.base_unit = unit_sizes(record, base_scale, quote_scale)
        self.bids = BookSide(1)
        self.asks = BookSide(-1)
        self.orders: dict[int, Order] = {}
        # What the calendar last said, and until when that holds: a cache, which may not change an answer.
        self.opening_end_us = 0
        self.opening_until_us = 0
        self.dirty = False

    def record(self) -> InstrumentRecord:
        return InstrumentRecord(
            self.symbol,
            self.base,
            self.quote,
            self.price_scale,
            self.quantity_scale,
            self.tick,
            self.lot,
            self.mode,
            self.maker_bps,
            self.taker_bps,
            self.limits,
            self.calendar,
            self.reference_ticks,
            self.reference_at_us,
            self.last_trade_id,
        )

    def changed(self) -> InstrumentChanged:
        return InstrumentChanged(
            self.symbol,
            self.base,
            self.quote,
            self.price_scale,
            self.quantity_scale,
            self.tick,
            self.lot,
            self.mode,
            self.maker_bps,
            self.taker_bps,
            self.limits,
            self.calendar,
        )

    def is_open(self, now_us: int) -> bool:
        if not self.calendar.weekly:
            return True
        if now_us >= self.opening_until_us:
            self.opening_end_us, self.opening_until_us = opening(self.calendar, now_us)
        return self.opening_end_us > 0

    def day_ends_at_us(self, now_us: int) -> int:
        """When a day order that enters now ends; asked after is_open said yes."""
        if not self.calendar.weekly:
            return next_midnight_us(self.calendar, now_us)
        return self.opening_end_us

    def forget_opening(self) -> None:
        """After a change of calendar."""
        self.opening_end_us = self.opening_until_us = 0

    def reference_is_fresh(self, now_us: int) -> bool:
        return self.reference_ticks > 0 and now_us - self.reference_at_us <= self.limits.reference_age_us_max

    def band(self, now_us: int) -> tuple[int, int] | None:
        """Lowest and highest price allowed now, in ticks; None without a band or a fresh reference."""
        band_bps = self.limits.band_bps
        if band_bps == 0 or not self.reference_is_fresh(now_us):
            return None
        low = self.reference_ticks * (BPS - band_bps)
        return -(-low // BPS), self.reference_ticks * (BPS + band_bps) // BPS


def unit_sizes(listing: AddInstrument | InstrumentRecord, base_scale: int, quote_scale: int) -> tuple[int, int]:
    """(notional_unit, base_unit) of an instrument; a zero where it is not exact."""
    notional = exact_units(listing.tick * listing.lot, quote_scale, listing.price_scale + listing.quantity_scale)
    return notional, exact_units(listing.lot, base_scale, listing.quantity_scale)
