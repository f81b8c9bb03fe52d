"""What an alert may say: each refusal beside the neighbour that passes."""

import pytest
from msgspec import structs

from gateway.prefs.alert import PRICE_E9_MAX, Condition, Terms, check, describe, price_e9
from gateway.prefs.errors import InvalidAlert

ABOVE = Terms("AAPL", Condition.above, price_e9=price_e9("200.05"))
MOVES = Terms("AAPL", Condition.moves, move_bps=200, window_s=300)

ROWS = [
    (ABOVE, {"price_e9": 1}, ""),
    (ABOVE, {"price_e9": 0}, "price_e9"),
    (ABOVE, {"price_e9": PRICE_E9_MAX}, ""),
    (ABOVE, {"price_e9": PRICE_E9_MAX + 1}, "price_e9"),
    (ABOVE, {"move_bps": 1}, "move_bps"),
    (ABOVE, {"window_s": 300}, "window_s"),
    (ABOVE, {"cooldown_s": 60}, ""),
    (ABOVE, {"cooldown_s": 59}, "cooldown_s"),
    (ABOVE, {"cooldown_s": 86_400}, ""),
    (ABOVE, {"cooldown_s": 86_401}, "cooldown_s"),
    (ABOVE, {"hysteresis_bps": 0}, ""),
    (ABOVE, {"hysteresis_bps": -1}, "hysteresis_bps"),
    (ABOVE, {"note": "sell some"}, ""),
    (ABOVE, {"note": "a\r\nBcc: x"}, "note"),
    (MOVES, {"move_bps": 10_000}, ""),
    (MOVES, {"move_bps": 10_001}, "move_bps"),
    (MOVES, {"move_bps": 0}, "move_bps"),
    (MOVES, {"window_s": 60}, ""),
    (MOVES, {"window_s": 61}, "window_s"),
    (MOVES, {"price_e9": 1}, "price_e9"),
]


@pytest.mark.parametrize(("terms", "change", "field"), ROWS)
def test_the_edges(terms: Terms, change: dict[str, object], field: str) -> None:
    changed = structs.replace(terms, **change)
    if not field:
        assert check(changed) == changed
        return
    with pytest.raises(InvalidAlert) as caught:
        check(changed)
    assert caught.value.field == field


@pytest.mark.parametrize("text", ["", "-1", "1e3", "0x1", "1.0000000001", "1_0", "nan", "9" * 30])
def test_a_price_is_a_plain_decimal(text: str) -> None:
    with pytest.raises(InvalidAlert) as caught:
        price_e9(text)
    assert caught.value.field == "price"


def test_people_read_it_as_they_said_it() -> None:
    assert describe(ABOVE) == "AAPL above 200.05"
    assert describe(MOVES) == "AAPL moves 2 % in 5 min"
    assert describe(Terms("X", Condition.falls, move_bps=25, window_s=3600)) == "X falls 0.25 % in 60 min"
