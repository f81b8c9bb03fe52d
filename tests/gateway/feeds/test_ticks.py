"""Decimals become whole numbers of 1e-9, exactly or not at all; ticks go through msgpack unchanged."""

from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.feeds.ticks import E9_MAX, Quote, Status, StatusKind, Tick, Trade, decimal_text, e9

GOOD = [
    ("0", 0),
    ("61837.63000000", 61_837_630_000_000),
    ("0.000022900", 22_900),
    ("0.000000001", 1),
    ("1.0000000010000", 1_000_000_001),
    ("9999999997.00000", 9_999_999_997_000_000_000),
    ("18446744073.709551615", E9_MAX),
    ("5.", 5_000_000_000),
]
BAD = ["", ".", ".5", "-1", "+1", "1e3", "1_0", " 1", "1 ", "1.2.3", "NaN", "Infinity", "0x1", "١", "0.0000000001",
       "18446744073.709551616", "9" * 400]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), GOOD)
def test_a_decimal_is_exact(text: str, value: int) -> None:
    assert e9(text) == value


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_plain_decimal_or_does_not_fit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"decimal|large"):
        e9(text)


@given(st.integers(0, E9_MAX))
def test_text_and_back(value: int) -> None:
    assert e9(decimal_text(value)) == value
    assert Decimal(decimal_text(value)) == Decimal(value).scaleb(-9)


@given(st.text(max_size=30))
def test_any_text_is_a_number_that_decimal_agrees_with_or_is_refused(text: str) -> None:
    try:
        value = e9(text)
    except ValueError:
        return
    assert Decimal(value).scaleb(-9) == Decimal(text)


def test_ticks_go_through_msgpack_unchanged() -> None:
    ticks: list[Tick] = [
        Quote("AAPL", "iex", E9_MAX, 1, 2, 3, 4, 5, 6),
        Trade("AAPL", "iex", 1, 2, 3, 4, "t1", False, "buy"),
        Status("iex", StatusKind.GAP, 7, "AAPL", "3 messages"),
    ]
    decoder = msgspec.msgpack.Decoder(list[Quote | Trade | Status])
    assert decoder.decode(msgspec.msgpack.encode(ticks)) == ticks
