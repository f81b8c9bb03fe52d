"""Decimal text and whole numbers: exact both ways, everything else refused."""

from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statemachine.decimals import DecimalError, text, to_units

ROWS = [
    # digits,    scale, units or part of the message
    ("0", 0, 0),
    ("12", 2, 1200),
    ("12.5", 2, 1250),
    ("12.50", 2, 1250),
    ("12.500", 2, 1250),
    ("12.501", 2, "2 decimals"),
    ("0012", 0, 12),
    ("1.0", 0, 1),
    ("1.1", 0, "0 decimals"),
    ("0.000000000001", 12, 1),
    ("9" * 40, 0, int("9" * 40)),
    ("9" * 41, 0, "40 characters"),
    ("", 2, "plain decimal"),
    (".", 2, "plain decimal"),
    (".5", 2, "plain decimal"),
    ("5.", 2, "plain decimal"),
    ("1.2.3", 2, "plain decimal"),
    ("-1", 2, "above or equal to zero"),
    ("-0", 2, "above or equal to zero"),
    ("+1", 2, "plain decimal"),
    (" 1", 2, "plain decimal"),
    ("1\n", 2, "plain decimal"),
    ("1_000", 2, "plain decimal"),
    ("1,000", 2, "plain decimal"),
    ("1e3", 2, "plain decimal"),
    ("1e999999", 2, "plain decimal"),
    ("1E-999999999", 2, "plain decimal"),
    ("NaN", 2, "plain decimal"),
    ("Infinity", 2, "plain decimal"),
    ("0x10", 2, "plain decimal"),
    ("१२", 2, "plain decimal"),
    ("１２", 2, "plain decimal"),
    ("1²", 2, "plain decimal"),
]


@pytest.mark.parametrize(("digits", "scale", "expected"), ROWS)
def test_text_is_exact_or_refused(digits: str, scale: int, expected: int | str) -> None:
    if isinstance(expected, int):
        assert to_units(digits, scale) == expected
    else:
        with pytest.raises(DecimalError, match=expected):
            to_units(digits, scale)


@given(st.integers(0, 2**62), st.integers(0, 12))
def test_units_come_back(units: int, scale: int) -> None:
    written = text(units, scale)
    assert to_units(written, scale) == units
    assert Decimal(written).scaleb(scale) == units
    assert "E" not in written
    assert not (("." in written) and written.endswith(("0", ".")))
    assert text(-units, scale) == ("-" + written if units else "0")


@given(st.decimals(min_value=0, max_value=10**18, places=12), st.integers(0, 12))
def test_a_decimal_is_exact_or_refused(number: Decimal, scale: int) -> None:
    with localcontext() as context:
        context.prec = 60
        exact = number.scaleb(scale)
        if exact == exact.to_integral_value():
            assert to_units(f"{number:f}", scale) == int(exact)
        else:
            with pytest.raises(DecimalError):
                to_units(f"{number:f}", scale)
