"""Exact conversion between decimal text and whole numbers: units of an asset, ticks, lots. No floats."""

import re

TEXT_CHARACTERS_MAX = 40
_PLAIN = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?", re.ASCII)


class DecimalError(ValueError):
    """The text is not a plain decimal, or what it says is not a whole number of units. Its message says which."""


def to_units(text: str, scale: int, *, signed: bool = False) -> int:
    """A plain decimal in units of 10**-scale, exactly.

    Plain is: ASCII digits with at most one point between them, and a minus sign only where `signed`. No
    exponent, NaN, infinity, plus sign, space or separator. Work is bounded by TEXT_CHARACTERS_MAX.

    Raises DecimalError.
    """
    if len(text) > TEXT_CHARACTERS_MAX:
        raise DecimalError(f"a decimal has at most {TEXT_CHARACTERS_MAX} characters, this one {len(text)}")
    match = _PLAIN.fullmatch(text)
    if match is None:
        raise DecimalError(f"{text!a} is not a plain decimal such as 12 or 12.50")
    sign, whole, fraction = match.group(1), match.group(2), match.group(3) or ""
    if sign and not signed:
        raise DecimalError(f"{text!a} may not be negative")
    if len(fraction) > scale:
        raise DecimalError(f"{text!a} has {len(fraction)} decimals; at most {scale} are allowed")
    units = int(whole + fraction.ljust(scale, "0"))
    return -units if sign else units


def to_multiple(text: str, scale: int, step: int) -> int:
    """How many steps of `step` * 10**-scale a decimal is: a price in ticks or a quantity in lots.

    Raises DecimalError, also when it is not a whole number of steps.
    """
    units = to_units(text, scale)
    steps, rest = divmod(units, step)
    if rest:
        raise DecimalError(f"{text!a} is not a multiple of {from_units(step, scale)}")
    return steps


def from_units(units: int, scale: int) -> str:
    """Plain decimal text with exactly `scale` decimals; to_units reads it back."""
    sign = "-" if units < 0 else ""
    digits = str(abs(units)).rjust(scale + 1, "0")
    return f"{sign}{digits[:-scale]}.{digits[-scale:]}" if scale else sign + digits


def from_multiple(steps: int, scale: int, step: int) -> str:
    """The decimal text of a price in ticks or a quantity in lots."""
    return from_units(steps * step, scale)
