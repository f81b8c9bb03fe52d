"""Decimals at the door: prices, quantities and amounts as clients write them, and as the machine counts them."""

from typing import TypeVar

from msgspec import Struct

from cluster.wire import Number
from node.errors import InvalidField
from statemachine.decimals import CHARACTERS_MAX, DecimalError, text, to_units
from statemachine.types import AMOUNT_UNITS_MAX, PRICE_TICKS_MAX, QUANTITY_LOTS_MAX

_CACHED_MAX = 4_096
_AVERAGE_DIGITS = 6
"""Digits behind those of the price that an average price is rounded to."""

Key = TypeVar("Key")
Value = TypeVar("Value")


def parse(number: Number, scale: int, field: str, *, largest: int = 10**30) -> int:
    """The number in units of 10**-scale, exactly.

    Raises InvalidField: not a plain decimal, negative, more decimals than `scale`, or above `largest`.
    """
    if type(number) is str:
        digits = number
    elif type(number) is int:
        if not 0 <= number <= 10**CHARACTERS_MAX:  # str() of a huge one takes long
            raise InvalidField(f"{field} must be between 0 and {text(largest, scale)}", field=field)
        digits = str(number)
    else:
        digits = _of_float(float(number), field)
    try:
        units = to_units(digits, scale)
    except DecimalError as error:
        raise InvalidField(f"{field} {error}", field=field) from error
    if units > largest:
        raise InvalidField(f"{field} must be at most {text(largest, scale)}", field=field)
    return units


def _of_float(number: float, field: str) -> str:
    """The shortest decimal that means this float: what a JSON writer was given, in all likelihood."""
    if not -1e15 < number < 1e15:  # NaN too
        raise InvalidField(f"{field} as a number must be below 1e15; send larger ones as text", field=field)
    digits = repr(number)
    if "e" not in digits:
        return digits
    mantissa, _, exponent = digits.partition("e")
    whole, _, part = mantissa.partition(".")
    return f"0.{'0' * (-int(exponent) - 1)}{whole}{part}"


class Market:
    """What never changes about an instrument: enough to read and write its prices and quantities."""

    __slots__ = (
        "_lots",
        "_quantities",
        "_ticks",
        "base",
        "base_scale",
        "lot",
        "price_scale",
        "quantity_scale",
        "quote",
        "quote_scale",
        "symbol",
        "tick",
    )

    def __init__(
        self,
        symbol: str,
        *,
        base: str,
        base_scale: int,
        quote: str,
        quote_scale: int,
        price_scale: int,
        quantity_scale: int,
        tick: int,
        lot: int,
    ) -> None:
        self.symbol = symbol
        self.base = base
        self.base_scale = base_scale
        self.quote = quote
        self.quote_scale = quote_scale
        self.price_scale = price_scale
        self.quantity_scale = quantity_scale
        self.tick = tick
        self.lot = lot
        # The same few thousand texts come again and again; each cache is emptied when it is full.
        self._ticks: dict[Number, int] = {}
        self._lots: dict[Number, int] = {}
        self._quantities: dict[int, str] = {}

    def ticks(self, number: Number, field: str = "limit_price") -> int:
        """Raises InvalidField: not a positive multiple of the tick within bounds."""
        ticks = self._ticks.get(number)
        if ticks is None:
            ticks = self._whole(number, self.price_scale, self.tick, PRICE_TICKS_MAX, field)
            _remember(self._ticks, number, ticks)
        return ticks

    def lots(self, number: Number, field: str = "qty") -> int:
        """Raises InvalidField: not a positive multiple of the lot within bounds."""
        lots = self._lots.get(number)
        if lots is None:
            lots = self._whole(number, self.quantity_scale, self.lot, QUANTITY_LOTS_MAX, field)
            _remember(self._lots, number, lots)
        return lots

    def _whole(self, number: Number, scale: int, step: int, most: int, field: str) -> int:
        units = parse(number, scale, field, largest=most * step)
        count, rest = divmod(units, step)
        if rest or not count:
            raise InvalidField(f"{field} must be a positive multiple of {text(step, scale)}", field=field)
        return count

    def price(self, ticks: int) -> str:
        return text(ticks * self.tick, self.price_scale)

    def quantity(self, lots: int) -> str:
        quantity = self._quantities.get(lots)
        if quantity is None:
            quantity = text(lots * self.lot, self.quantity_scale)
            _remember(self._quantities, lots, quantity)
        return quantity

    def budget_units(self, number: Number, field: str = "notional") -> int:
        """An amount of the quote asset. Raises InvalidField: not positive, not exact, or too large."""
        return positive_units(number, self.quote_scale, field)

    def average_price(self, notional_units: int, lots: int) -> str:
        """Rounded half up to six digits behind those of the price; empty when nothing traded."""
        if not lots:
            return ""
        scale = self.price_scale + _AVERAGE_DIGITS
        above = notional_units * 10 ** (scale + self.quantity_scale)
        below = lots * self.lot * 10**self.quote_scale
        return text((2 * above + below) // (2 * below), scale)


def _remember(cache: dict[Key, Value], key: Key, value: Value) -> None:
    if len(cache) >= _CACHED_MAX:
        cache.clear()
    cache[key] = value


class Money(Struct, frozen=True):
    """An asset's name and decimals."""

    asset: str
    scale: int

    def units(self, number: Number, field: str = "amount") -> int:
        """Raises InvalidField: not positive, not exact, or more than may exist."""
        return positive_units(number, self.scale, field)


def positive_units(number: Number, scale: int, field: str) -> int:
    units = parse(number, scale, field, largest=AMOUNT_UNITS_MAX)
    if not units:
        raise InvalidField(f"{field} must be above zero", field=field)
    return units
