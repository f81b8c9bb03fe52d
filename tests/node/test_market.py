"""Decimals at the door: exact or refused, whatever the tick, the lot and the scale."""

from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import InvalidField
from node.market import Market, Money, parse

MARKET = Market(
    "ACME-USD", base="ACME", base_scale=3, quote="USD", quote_scale=6, price_scale=2, quantity_scale=1, tick=5, lot=25
)
# A tick of 0.05, a lot of 2.5.

PRICES = [
    ("0.05", 1),
    ("0.050", 1),
    ("12.35", 247),
    (1, 20),
    (0.15, 3),
    (1e15, None),
    ("0.04", None),
    ("0", None),
    ("0.00", None),
    ("-0.05", None),
    ("+0.05", None),
    (" 0.05", None),
    ("0.05 ", None),
    ("0_1", None),
    (".5", None),
    ("5.", None),
    ("", None),
    ("0x5", None),
    ("٥", None),
    ("²", None),
    ("1,5", None),
    ("inf", None),
    (float("nan"), None),
    (float("inf"), None),
    (-0.05, None),
    (-(10**40), None),
    (10**400, None),
    ("9" * 41, None),
    ("50000000000.00", 10**12),
    ("50000000000.05", None),
]


@pytest.mark.parametrize(("given_", "ticks"), PRICES)
def test_prices_are_whole_ticks(given_: str | int | float, ticks: int | None) -> None:
    if ticks is None:
        with pytest.raises(InvalidField) as caught:
            MARKET.ticks(given_)
        assert caught.value.field == "limit_price"
    else:
        assert MARKET.ticks(given_) == ticks
        assert MARKET.ticks(given_) == ticks  # from the cache


def test_quantities_are_whole_lots() -> None:
    assert MARKET.lots("7.5") == 3
    assert MARKET.quantity(3) == "7.5"
    with pytest.raises(InvalidField, match=r"multiple of 2\.5"):
        MARKET.lots("5.5")
    with pytest.raises(InvalidField, match="multiple"):
        MARKET.lots("0")


@given(st.integers(1, 10**12))
def test_what_is_written_is_read_back(count: int) -> None:
    assert MARKET.ticks(MARKET.price(count)) == count
    assert MARKET.lots(MARKET.quantity(count)) == count


@given(st.floats(min_value=0, max_value=9e14))
def test_floats_mean_their_shortest_decimal(number: float) -> None:
    exact = Decimal(repr(number))
    if exact == round(exact, 12):
        assert parse(number, 12, "x", largest=10**40) == int(exact.scaleb(12))
    else:
        with pytest.raises(InvalidField):
            parse(number, 12, "x", largest=10**40)


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_an_average_is_near_the_true_one(notional_units: int, lots: int) -> None:
    with localcontext() as context:
        context.prec = 60
        true = Decimal(notional_units).scaleb(-6) / (Decimal(lots) * Decimal("2.5"))
        assert abs(Decimal(MARKET.average_price(notional_units, lots)) - true) <= Decimal("0.5e-8")


def test_amounts_are_bounded() -> None:
    money = Money("USD", 2)
    assert money.units("0.01") == 1
    assert money.units(str(2**62 // 100)) == 2**62 // 100 * 100
    for bad in ("0", "0.001", str(2**62), "1e5"):
        with pytest.raises(InvalidField):
            money.units(bad)
