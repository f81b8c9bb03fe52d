"""Lots against a naive model, and the portfolio of a random flow against balances and a plain ledger of trades."""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from gateway.events import Traded, Transferred
from gateway.projection.accounts import Accounts
from gateway.projection.host import Projection
from gateway.projection.projector import Batch
from gateway.views.lots import LOTS_MAX, Holding, Lot
from gateway.views.portfolio import Mark, Portfolios
from tests.gateway.feeding import Gateway, batches, feed, url
from tests.node.solo import Solo, run

CENT = Decimal("0.01")
DAY_US = 86_400_000_000


def moments(days: int) -> int:
    return int(datetime(2026, 12, 30, tzinfo=UTC).timestamp() * 1e6) + days * DAY_US


amounts = st.decimals(Decimal("0.01"), Decimal(1000), places=2)
steps = st.lists(st.tuples(st.booleans(), amounts, amounts), max_size=60)


@given(steps)
def test_nothing_is_lost_between_lots(steps: list[tuple[bool, Decimal, Decimal]]) -> None:
    """What was paid is in the lots that are left or in the cost of what was sold, to the cent; first in first out."""
    holding, paid, cost_of_sales, proceeds, qty = (
        Holding([], {}, {}, {}),
        Decimal(0),
        Decimal(0),
        Decimal(0),
        Decimal(0),
    )
    acquired: list[int] = []
    for number, (buy, amount, money) in enumerate(steps):
        if buy:
            holding.acquire(Lot(amount, money, "USD", number))
            paid, qty = paid + money, qty + amount
        elif qty:
            sold = min(amount, qty)
            sales = holding.sell("AAA", sold, money, "USD", moments(number), CENT)
            assert sum(sale.qty for sale in sales) == sold
            assert sum(sale.proceeds for sale in sales) == money
            cost_of_sales += sum((sale.cost or Decimal(0) for sale in sales), Decimal(0))
            proceeds, qty = proceeds + money, qty - sold
            acquired += [sale.acquired_us for sale in sales]
    assert holding.qty == qty
    assert holding.cost("USD")[1] + cost_of_sales == paid
    assert holding.realised.get("USD", Decimal(0)) == proceeds - cost_of_sales
    assert sum(holding.by_year.values()) == proceeds - cost_of_sales
    assert acquired == sorted(acquired)


def test_a_known_year() -> None:
    holding = Holding([], {}, {}, {})
    holding.acquire(Lot(Decimal(10), Decimal("100.00"), "USD", 1))
    holding.acquire(Lot(Decimal(10), Decimal("150.00"), "USD", 2))
    first = holding.sell("AAA", Decimal(15), Decimal("240.00"), "USD", moments(0), CENT)
    assert [(sale.qty, sale.proceeds, sale.cost, sale.gain) for sale in first] == [
        (Decimal(10), Decimal("160.00"), Decimal("100.00"), Decimal("60.00")),
        (Decimal(5), Decimal("80.00"), Decimal("75.00"), Decimal("5.00")),
    ]
    holding.sell("AAA", Decimal(5), Decimal("50.00"), "USD", moments(5), CENT)
    assert holding.by_year == {"2026 USD": Decimal("65.00"), "2027 USD": Decimal("-25.00")}
    assert holding.lots == []


def test_what_has_no_basis_is_no_gain() -> None:
    holding = Holding([], {}, {}, {})
    holding.acquire(Lot(Decimal(3), None, "", 1))
    [known, unknown] = holding.sell("AAA", Decimal(5), Decimal("50.00"), "USD", moments(0), CENT)
    assert (known.gain, unknown.gain, unknown.qty) == (None, None, Decimal(2))
    assert (holding.realised, holding.no_basis) == ({}, Decimal(5))
    holding.acquire(Lot(Decimal(1), Decimal(9), "EUR", 1))
    [other] = holding.sell("AAA", Decimal(1), Decimal("10.00"), "USD", moments(0), CENT)
    assert other.gain is None, "another currency is no basis"


def test_lots_are_bounded_and_keep_their_sum() -> None:
    holding = Holding([], {}, {}, {})
    for number in range(LOTS_MAX + 50):
        holding.acquire(Lot(Decimal(1), Decimal(number), "USD", number))
    assert len(holding.lots) == LOTS_MAX
    assert holding.cost("USD") == (Decimal(LOTS_MAX + 50), Decimal(sum(range(LOTS_MAX + 50))))


class Watched(Gateway):
    """Also keeps portfolios, and a plain list of what happened."""

    def __init__(self) -> None:
        super().__init__()
        self.portfolios = Portfolios(self.accounts.instruments, self.accounts.scales)
        self.projection = Projection([self.accounts, self.books, self.portfolios], None)
        self.seen: list[Traded | Transferred] = []
        self.projection.on_batch.append(self._see)

    def _see(self, batch: Batch) -> None:
        self.seen += [event for event in batch.events if isinstance(event, Traded | Transferred)]


def marks(asset: str) -> Mark | None:
    return Mark(Decimal("1.25"), "USD", 7, False) if asset != "USD" else None


def test_a_random_flow(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            gateway = Watched()
            async with gateway.following(url(solo)):
                feed(solo, batches(11, 500))
                await gateway.catches_up(solo)
            assert gateway.portfolios.cash_assets == {"USD"}
            for name, account in gateway.accounts.accounts.items():
                view = gateway.portfolios.view(account, marks)
                for position in view.positions:
                    holding = gateway.portfolios.books[name].holdings[position.asset]
                    assert holding.qty == position.qty == account.balances[position.asset].owned
                    assert position.basis_unknown_qty <= position.qty
                    known, cost = holding.cost("USD")
                    if known:
                        assert position.unrealised == (known * Decimal("1.25")).quantize(CENT) - cost
                assert view.equity["USD"] == account.balances["USD"].owned + sum(
                    (position.market_value or Decimal(0) for position in view.positions), Decimal(0)
                )
                assert not view.incomplete
                paid = sum(
                    (
                        fee
                        for event in gateway.seen
                        if isinstance(event, Traded) and event.symbol.endswith("-USD")
                        for who, fee in (
                            (event.taker_account, event.taker_fee),
                            (event.maker_account, event.maker_fee),
                        )
                        if who == name
                    ),
                    Decimal(0),
                )
                fees = sum((p.fees.get("USD", Decimal(0)) for p in view.positions), Decimal(0))
                assert fees == paid
            # Kept in the cache and taken back, it is the same.
            again = Portfolios(gateway.accounts.instruments, gateway.accounts.scales)
            for field in gateway.portfolios.fields():
                again.load(field, gateway.portfolios.dump(field) or b"")
            assert again.books == gateway.portfolios.books

    run(talk())


def test_from_a_snapshot_the_basis_is_unknown_and_said(tmp_path: Path) -> None:
    accounts = Accounts()
    portfolios = Portfolios(accounts.instruments, accounts.scales)
    projection = Projection([accounts, portfolios], None)
    projection.begin_snapshot()
    projection.row("assets", {"asset": "USD", "scale": 2})
    projection.row("instruments", {"symbol": "AAA-USD", "base": "AAA", "quote": "USD", "mode": "trading"})
    balances = [{"asset": asset, "available": "7", "held": "3"} for asset in ("USD", "AAA")]
    projection.row("accounts", {"account": "anna", "balances": balances})
    view = portfolios.view(accounts.accounts["anna"], lambda _asset: None)
    [position] = view.positions
    assert (position.qty, position.basis_unknown_qty, position.avg_cost) == (Decimal(10), Decimal(10), None)
    assert (position.market_value, position.price_stale, view.incomplete) == (None, True, True)
    assert view.equity == {"USD": Decimal(10)}
