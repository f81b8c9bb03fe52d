"""Decimal text and whole numbers: exact both ways, everything else refused."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statemachine.decimals import DecimalError, from_multiple, from_units, to_multiple, to_units

ROWS = [
    # text,      scale, units or part of the message
    ("0", 0, 0),
    ("12", 2, 1200),
    ("12.5", 2, 1250),
    ("12.50", 2, 1250),
    ("12.500", 2, "3 decimals"),
    ("0012", 0, 12),
    ("1.0", 0, "1 decimals"),
    ("0.000000000001", 12, 1),
    ("9" * 40, 0, int("9" * 40)),
    ("9" * 41, 0, "40 characters"),
    ("", 2, "plain decimal"),
    (".5", 2, "plain decimal"),
    ("5.", 2, "plain decimal"),
    ("1.2.3", 2, "plain decimal"),
    ("-1", 2, "negative"),
    ("-0", 2, "negative"),
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


@pytest.mark.parametrize(("text", "scale", "expected"), ROWS)
def test_text_is_exact_or_refused(text: str, scale: int, expected: int | str) -> None:
    if isinstance(expected, int):
        assert to_units(text, scale) == expected
    else:
        with pytest.raises(DecimalError, match=expected):
            to_units(text, scale)


def test_a_sign_passes_where_it_is_allowed() -> None:
    assert to_units("-1.5", 2, signed=True) == -150
    with pytest.raises(DecimalError):
        to_units("--1", 2, signed=True)


def test_a_price_is_a_whole_number_of_ticks() -> None:
    assert to_multiple("1.25", 2, 5) == 25
    assert from_multiple(25, 2, 5) == "1.25"
    with pytest.raises(DecimalError, match=r"multiple of 0\.05"):
        to_multiple("1.26", 2, 5)


@given(st.integers(-(2**62), 2**62), st.integers(0, 12))
def test_units_come_back(units: int, scale: int) -> None:
    text = from_units(units, scale)
    assert to_units(text, scale, signed=True) == units
    assert Decimal(text) == Decimal(units).scaleb(-scale)
