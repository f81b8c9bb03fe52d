"""The last price is the newest trade's that may move one; the tape holds the newest trades of all kinds."""

import pytest

from gateway.feeds.ticks import SUSPECT, Trade
from gateway.market import tape
from gateway.market.tape import Tape


def trade(price: int, at_us: int = 1, *, eligible: bool = True, marks: int = 0, symbol: str = "A") -> Trade:
    return Trade(symbol, "x", price, 1, at_us, at_us, str(price), eligible, "", marks)


ROWS = [
    ([trade(1), trade(2)], 2),
    ([trade(1, 5), trade(2, 4)], 1),
    ([trade(1), trade(2, eligible=False)], 1),
    ([trade(1), trade(2, marks=SUSPECT)], 1),
    ([trade(2, eligible=False)], None),
]


@pytest.mark.parametrize(("trades", "last"), ROWS)
def test_the_last_price(trades: list[Trade], last: int | None) -> None:
    made = Tape()
    made.apply(trades)
    found = made.last("A")
    assert (None if found is None else found.price_e9) == last
    assert made.recent("A") == trades
    assert made.last("B") is None
    assert made.recent("B") == []


def test_only_the_newest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Tape(kept=3)
    made.apply([trade(price) for price in range(1, 10)])
    assert [one.price_e9 for one in made.recent("A")] == [7, 8, 9]
    assert [one.price_e9 for one in made.recent("A", 2)] == [8, 9]
    monkeypatch.setattr(tape, "SYMBOLS_MAX", 1)
    made.apply([trade(1, symbol="B")])
    assert made.symbols_refused == 1
    assert made.last("B") is None
