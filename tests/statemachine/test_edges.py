"""Edges in tables: each refusal beside the neighbour that passes, and every code met somewhere."""

import re
from pathlib import Path

import pytest
from msgspec.structs import replace

from statemachine.codes import Code
from statemachine.commands import Calendar, Limits
from statemachine.instrument import Instrument, unit_sizes
from statemachine.records import InstrumentRecord
from statemachine.rules.entry import collar_ticks
from statemachine.types import AMOUNT_UNITS_MAX, Mode, Side
from tests.statemachine.talk import Talk

BUY, SELL = Side.buy, Side.sell
RECORD = InstrumentRecord("X", "A", "B", 2, 0, 1, 1, Mode.trading, 0, 0, Limits(), Calendar(), 0, 0, 0)

FUNDS = [
    # maker, taker bps, side,  lots, ticks, funds, code
    (     0,         0, "buy",   10,   100,  1000, Code.ok),
    (     0,         0, "buy",   10,   100,   999, Code.insufficient_funds),
    (     0,        10, "buy",   10,   100,  1002, Code.ok),  # 1000 + 1 fee + 1 to spare
    (     0,        10, "buy",   10,   100,  1001, Code.insufficient_funds),
    (    10,         0, "buy",   10,   100,  1002, Code.ok),  # the higher rate counts, whichever it is
    (    10,         0, "buy",   10,   100,  1001, Code.insufficient_funds),
    (     0,        10, "buy",   10,   101,  1013, Code.ok),  # 1010 + ceil(1.01) + 1
    (     0,        10, "buy",   10,   101,  1012, Code.insufficient_funds),
    (    10,        10, "sell",  10,   100,    10, Code.ok),
    (    10,        10, "sell",  10,   100,     9, Code.insufficient_funds),
]  # fmt: skip


@pytest.mark.parametrize(("maker", "taker", "side", "lots", "ticks", "funds", "code"), FUNDS)
def test_an_order_holds_its_worst_case(
    maker: int, taker: int, side: str, lots: int, ticks: int, funds: int, code: Code
) -> None:
    talk = Talk()
    for line in (
        "asset USD 2",
        "asset XYZ 0",
        f"instrument XYZ-USD XYZ USD 2 maker_bps={maker} taker_bps={taker}",
        "account alice",
        f"deposit alice {'USD' if side == 'buy' else 'XYZ'} {funds}",
    ):
        talk.say(line)
    (said,) = talk.say(f"place alice XYZ-USD {side} {lots} {ticks}")
    assert said.split()[0] == ("placed" if code is Code.ok else "refused")
    assert code is Code.ok or said.split()[1] == code.name


COLLARS = [
    # reference, bps, side, worst price
    (100, 500, BUY, 105),
    (100, 500, SELL, 95),
    (99, 500, BUY, 103),  # 103.95 rounds down
    (99, 500, SELL, 95),  # 94.05 rounds up
    (100, 0, BUY, 100),
    (100, 0, SELL, 100),
    (1, 500, BUY, 1),
    (1, 500, SELL, 1),
    (100, 10_000, SELL, 1),  # never free
    (10**12, 10_000, BUY, 2 * 10**12),
]


@pytest.mark.parametrize(("reference", "bps", "side", "worst"), COLLARS)
def test_a_collar_rounds_towards_the_reference(reference: int, bps: int, side: Side, worst: int) -> None:
    record = replace(RECORD, reference_ticks=reference, limits=Limits(collar_bps=bps))
    assert collar_ticks(Instrument(record, 0, 2), side) == worst


BANDS = [
    # reference, bps, age, band
    (100, 1_000, 0, (90, 110)),
    (99, 1_000, 0, (90, 108)),  # 89.1 rounds up, 108.9 down
    (100, 0, 0, None),
    (0, 1_000, 0, None),
    (100, 1_000, 5_000_000, (90, 110)),
    (100, 1_000, 5_000_001, None),
    (100, 1_000, -10, (90, 110)),  # a feed's clock may be a little ahead
]


@pytest.mark.parametrize(("reference", "bps", "age_us", "band"), BANDS)
def test_a_band_needs_a_fresh_reference(reference: int, bps: int, age_us: int, band: tuple[int, int] | None) -> None:
    limits = Limits(band_bps=bps, reference_age_us_max=5_000_000)
    record = replace(RECORD, reference_ticks=reference, reference_at_us=1_000, limits=limits)
    assert Instrument(record, 0, 2).band(1_000 + age_us) == band


UNITS = [
    # price scale, quantity scale, tick, lot, base scale, quote scale, (notional unit, base unit), 0 where inexact
    (2, 0, 1, 1, 0, 2, (1, 1)),
    (2, 0, 5, 1, 0, 2, (5, 1)),
    (2, 8, 1, 100_000_000, 8, 2, (1, 100_000_000)),
    (2, 8, 1, 10_000_000, 8, 2, (0, 10_000_000)),
    (0, 0, 1, 1, 6, 6, (1_000_000, 1_000_000)),
    (4, 0, 1, 1, 0, 2, (0, 1)),
    (4, 0, 100, 1, 0, 2, (1, 1)),
    (0, 3, 1, 1, 2, 2, (0, 0)),
    (0, 3, 10, 10, 2, 2, (10, 1)),
]


@pytest.mark.parametrize(("prices", "quantities", "tick", "lot", "base", "quote", "units"), UNITS)
def test_units_are_whole_or_zero(
    prices: int, quantities: int, tick: int, lot: int, base: int, quote: int, units: tuple[int, int]
) -> None:
    record = replace(RECORD, price_scale=prices, quantity_scale=quantities, tick=tick, lot=lot)
    assert unit_sizes(record, base, quote) == units


def test_a_replaced_order_never_counts_beyond_64_bits() -> None:
    """Money goes round and round, and one order shows all that it ever traded."""
    talk = Talk()
    half = AMOUNT_UNITS_MAX // 2
    for line in (
        f"asset USD 0 {AMOUNT_UNITS_MAX}",
        "asset XYZ 0",
        "instrument XYZ-USD XYZ USD",
        "account alice",
        "account bob",
        f"deposit alice USD {half + 10**15}",
        "deposit bob XYZ 1000000000000",
    ):
        talk.say(line)
    lots = 4_000_000
    ticks = half // lots
    for _ in range(2):
        talk.say(f"place bob XYZ-USD sell {lots} {ticks}")
    assert talk.say(f"place alice XYZ-USD buy {lots} {ticks}")[0].startswith("placed order_id=3 status=filled")
    talk.say(f"transfer bob alice USD {lots * ticks}")
    talk.say(f"place alice XYZ-USD buy {lots} {ticks}")
    talk.say(f"transfer bob alice USD {lots * ticks}")
    # This one fills half of all that there is, again and again.
    talk.say(f"place alice XYZ-USD buy {lots + 1} {ticks - 1}")
    talk.say(f"place bob XYZ-USD sell {lots} {ticks - 1}")
    talk.say(f"transfer bob alice USD {lots * (ticks - 1)}")
    order_id = 5
    assert talk.say(f"replace alice {order_id} quantity_lots={2 * lots}")[0].startswith("replaced")
    talk.say(f"place bob XYZ-USD sell {lots - 1} {ticks - 1}")
    talk.say(f"transfer bob alice USD {(lots - 1) * (ticks - 1)}")
    # Its price times its quantity is small now, but what it has traded and what it may still trade is not.
    (said,) = talk.say(f"replace alice 7 quantity_lots={2 * lots + 10**9} price_ticks=1000")
    assert said.split()[:2] == ["refused", "notional_too_large"]
    (said,) = talk.say(f"replace alice 7 quantity_lots={2 * lots + 10**6} price_ticks=1000")
    assert said.startswith("replaced")


def test_every_refusal_is_met_in_a_conversation() -> None:
    said = "".join(path.read_text("utf-8") for path in (Path(__file__).parent / "conversations").glob("*.txt"))
    met = set(re.findall(r"^refused (\w+)", said, re.MULTILINE))
    never = {"ok", "price_not_allowed"}  # kept for an order type that takes no price
    assert {code.name for code in Code} - met == never
