"""Returns: a deposit is no gain, days begin anew, ties keep their places, who opted out is not there."""

import asyncio
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from gateway.events import Position, Transferred
from gateway.projection.accounts import Account, Balance
from gateway.projection.projector import Batch
from gateway.views.leaderboard import Leaderboard, Period, period_names

NOON_US = 1_795_176_000_000_000  # 2026-11-20 12:00 UTC, a Friday
DAY_US = 86_400_000_000


class Room:
    """Accounts with USD and AAA, a price that moves, and the board over them."""

    def __init__(self, *names: str) -> None:
        self.now_us = NOON_US
        self.price: float | None = 10.0
        self.hidden: set[str] = set()
        self.accounts = {
            name: Account(name, {"USD": Balance(Decimal(0)), "AAA": Balance(Decimal(10))}, {}) for name in names
        }
        self.board = Leaderboard(
            self.accounts,
            lambda asset: 1.0 if asset == "USD" else self.price,
            hidden=lambda name: name in self.hidden,
            wall_us=lambda: self.now_us,
        )

    def flow(self, name: str, amount: int, asset: str = "USD") -> None:
        """Money or shares from outside, and the event of it."""
        balance = self.accounts[name].balances[asset]
        balance.owned += amount
        event = Transferred(
            position="0.1.1.0",
            at="",
            source="@world",
            target=name,
            asset=asset,
            amount=Decimal(amount),
            reason="deposit",
            source_balance=Decimal(-amount),
            target_balance=balance.owned,
        )
        self.board.apply(Batch(Position(0, 1, 1, 0), self.now_us, [event]))

    def rank(self) -> dict[str, tuple[int, float]]:
        asyncio.run(self.board.rank())
        return {place.account: (place.rank, round(place.return_pct, 6)) for place in self.board.tables[Period.day].top}


def test_a_deposit_is_no_gain_and_a_price_is() -> None:
    room = Room("anna", "bert")
    assert room.rank() == {"anna": (1, 0.0), "bert": (2, 0.0)}
    room.flow("bert", 1_000_000)
    assert room.rank() == {"anna": (1, 0.0), "bert": (2, 0.0)}
    room.price = 11.0
    found = room.rank()
    assert found["anna"] == (1, 10.0)
    assert found["bert"][1] == round(10.0 / 1_000_100.0 * 100, 6)
    room.flow("anna", 5, "AAA")
    assert room.rank()["anna"] == (1, 10.0), "shares that came in are no gain either"


@given(st.lists(st.tuples(st.floats(0.9, 1.1), st.integers(0, 10_000)), min_size=1, max_size=30))
def test_the_return_of_one_asset_is_its_price_s_whatever_flows(steps: list[tuple[float, int]]) -> None:
    room = Room("anna")
    room.rank()
    for factor, shares in steps:
        room.price = (room.price or 0.0) * factor
        room.flow("anna", shares, "AAA")
    [(_, return_pct)] = room.rank().values()
    assert abs(return_pct - ((room.price or 0.0) / 10.0 - 1) * 100) < 1e-4


def test_days_weeks_and_all_time() -> None:
    room = Room("anna")
    room.rank()
    room.price = 12.0
    room.rank()
    room.now_us += DAY_US  # Saturday
    room.rank()
    room.price = 18.0
    room.rank()
    returns = {period: room.board.place(period, "anna") for period in Period}
    assert {period: round(place.return_pct, 6) for period, place in returns.items() if place} == {
        "day": 50.0,
        "week": 80.0,
        "all": 80.0,
    }
    room.now_us += 2 * DAY_US  # Monday
    room.rank()
    assert {period: round(place.return_pct, 6) for period in Period if (place := room.board.place(period, "anna"))} == {
        "day": 0.0,
        "week": 0.0,
        "all": 80.0,
    }


def test_ties_keep_their_places_and_who_opted_out_is_not_ranked() -> None:
    room = Room("dora", "anna", "cleo", "bert")
    assert [place for place, _ in room.rank().values()] == [1, 2, 3, 4]
    assert list(room.rank()) == ["anna", "bert", "cleo", "dora"]
    room.hidden = {"anna"}
    assert list(room.rank()) == ["bert", "cleo", "dora"]
    assert room.board.place(Period.day, "anna") is None
    place = room.board.place(Period.day, "cleo")
    assert place is not None and place.rank == 2


def test_without_a_price_nobody_s_return_is_guessed() -> None:
    room = Room("anna")
    room.rank()
    room.price = None
    assert room.rank() == {}
    room.price = 20.0
    assert room.rank() == {"anna": (1, 100.0)}


def test_it_is_kept_and_taken_back() -> None:
    room = Room("anna")
    room.rank()
    room.price = 15.0
    room.rank()
    again = Room("anna")
    again.price = 15.0
    for field in room.board.fields():
        again.board.load(field, room.board.dump(field) or b"")
    assert again.rank() == {"anna": (1, 50.0)}


def test_periods_have_names() -> None:
    assert period_names(NOON_US) == {"day": "2026-11-20", "week": "2026-W47", "all": "all"}
