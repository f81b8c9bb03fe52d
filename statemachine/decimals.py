"""Exact conversion between decimal text and whole numbers: units of an asset, ticks, lots. No floats."""

CHARACTERS_MAX = 40


class DecimalError(ValueError):
    """What is wrong with a text, said so that it can follow the name of a field."""


def to_units(digits: str, scale: int) -> int:
    """A plain decimal in units of 10**-scale, exactly.

    Plain is: ASCII digits with at most one point between them. No sign, exponent, NaN, infinity, space or
    separator. Zeros behind the last decimal that counts are no harm. Work is bounded by CHARACTERS_MAX.

    Raises DecimalError.
    """
    if len(digits) > CHARACTERS_MAX:
        raise DecimalError(f"has more than {CHARACTERS_MAX} characters")
    whole, point, part = digits.partition(".")
    # isascii: other scripts have digits too, and int() would take them.
    if not (digits.isascii() and whole.isdigit() and (part.isdigit() or not point)):
        raise DecimalError("must be a plain decimal above or equal to zero, such as 12.50")
    if len(part) > scale:
        if part[scale:].strip("0"):
            raise DecimalError(f"has more than {scale} decimals")
        part = part[:scale]
    return int((whole + part).ljust(len(whole) + scale, "0"))


def text(units: int, scale: int) -> str:
    """A plain decimal without needless zeros; to_units reads it back, where it has no sign."""
    if not scale or not units:
        return str(units)
    sign, units = ("-", -units) if units < 0 else ("", units)
    digits = str(units).rjust(scale + 1, "0")
    part = digits[-scale:].rstrip("0")
    return f"{sign}{digits[:-scale]}.{part}" if part else f"{sign}{digits[:-scale]}"
