"""Tax lots of one account: what was bought when and for how much, sold first in first out.

Costs are kept as totals of a lot, not per unit, so that parts of it add up to the whole: a part is rounded to
the currency's smallest unit, the rest stays. Fees belong to cost and proceeds. A lot whose cost nobody told (a deposit
of shares, a past that is gone) has none, and a sale of it is no gain or loss but a quantity without a basis.
"""

from bisect import bisect_left, insort
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal

from msgspec import Struct

ZERO = Decimal(0)
LOTS_MAX = 1_000
"""Per account and asset. Beyond it the two oldest with a cost in one currency become one."""
SALES_MAX = 200
"""The newest sales that are kept; all of them are in the trade history."""
YEARS_MAX = 60


class Lot(Struct, array_like=True):
    """cost: of all of it, fees included, in `currency`; None: unknown. at_us: when it was acquired.

    number: in the order in which its holding got them.
    """

    qty: Decimal
    cost: Decimal | None
    currency: str
    at_us: int
    number: int = 0


class Sale(Struct, array_like=True, frozen=True):
    """One lot, or a part of one, that was sold. gain: proceeds after fees less cost; None without a basis."""

    asset: str
    qty: Decimal
    proceeds: Decimal
    cost: Decimal | None
    currency: str
    acquired_us: int
    sold_us: int
    number: int = 0
    """In the order of its account's sales."""

    @property
    def gain(self) -> Decimal | None:
        return None if self.cost is None else self.proceeds - self.cost


class Totals(Struct):
    """What a holding came to: all of it but the lots."""

    realised: dict[str, Decimal]
    by_year: dict[str, Decimal]
    fees: dict[str, Decimal]
    no_basis: Decimal
    bought: int


class Holding(Struct):
    """One asset of one account. realised: by currency. by_year: (UTC year, currency) as `2026 USD` -> gain."""

    lots: list[Lot] = []
    realised: dict[str, Decimal] = {}
    by_year: dict[str, Decimal] = {}
    fees: dict[str, Decimal] = {}
    no_basis: Decimal = ZERO
    """Sold so far without a known cost."""
    bought: int = 0
    """The number of the newest lot."""
    changed: list[int] = []
    """Numbers of lots that changed, came or went since somebody took them down."""

    @property
    def totals(self) -> Totals:
        return Totals(self.realised, self.by_year, self.fees, self.no_basis, self.bought)

    def put_totals(self, totals: Totals) -> None:
        self.realised, self.by_year, self.fees = totals.realised, totals.by_year, totals.fees
        self.no_basis, self.bought = totals.no_basis, totals.bought

    def put_lot(self, lot: Lot) -> None:
        """A lot with its number, at its place."""
        insort(self.lots, lot, key=lambda one: one.number)

    def lot(self, number: int) -> Lot | None:
        place = bisect_left(self.lots, number, key=lambda one: one.number)
        return self.lots[place] if place < len(self.lots) and self.lots[place].number == number else None

    @property
    def qty(self) -> Decimal:
        return sum((lot.qty for lot in self.lots), ZERO)

    def cost(self, currency: str) -> tuple[Decimal, Decimal]:
        """(quantity, total cost) of the lots whose cost is known in this currency."""
        known = [lot for lot in self.lots if lot.cost is not None and lot.currency == currency]
        return sum((lot.qty for lot in known), ZERO), sum((lot.cost or ZERO for lot in known), ZERO)

    def acquire(self, lot: Lot) -> None:
        self.bought += 1
        self.lots.append(Lot(lot.qty, lot.cost, lot.currency, lot.at_us, self.bought))
        self.changed.append(self.bought)
        if len(self.lots) > LOTS_MAX:
            self._merge()

    def _merge(self) -> None:
        for place in range(len(self.lots) - 1):
            old, next_ = self.lots[place], self.lots[place + 1]
            if (old.cost is None) == (next_.cost is None) and old.currency == next_.currency:
                cost = None if old.cost is None or next_.cost is None else old.cost + next_.cost
                self.lots[place : place + 2] = [Lot(old.qty + next_.qty, cost, old.currency, old.at_us, old.number)]
                self.changed += (old.number, next_.number)
                return
        old, next_ = self.lots[0], self.lots[1]
        self.lots[:2] = [Lot(old.qty + next_.qty, None, "", old.at_us, old.number)]
        self.changed += (old.number, next_.number)

    def take(self, qty: Decimal, exponent: Decimal) -> list[Lot]:
        """Take out the oldest lots up to a quantity; the last one may be a part. exponent: the currency's unit.

        What is not there (the past is gone) comes as a lot without a basis.
        """
        taken: list[Lot] = []
        while qty and self.lots:
            lot = self.lots[0]
            self.changed.append(lot.number)
            if lot.qty <= qty:
                taken.append(self.lots.pop(0))
                qty -= lot.qty
                continue
            cost = None
            if lot.cost is not None:
                cost = (lot.cost * qty / lot.qty).quantize(exponent, ROUND_HALF_EVEN)
                lot.cost -= cost
            lot.qty -= qty
            taken.append(Lot(qty, cost, lot.currency, lot.at_us))
            qty = ZERO
        if qty:
            taken.append(Lot(qty, None, "", 0))
        return taken

    def sell(
        self, asset: str, qty: Decimal, proceeds: Decimal, currency: str, at_us: int, exponent: Decimal
    ) -> list[Sale]:
        """Sell first in, first out. proceeds: after fees, shared among the lots by quantity."""
        sales: list[Sale] = []
        left, of = proceeds, qty
        for lot in self.take(qty, exponent):
            share = left if lot.qty == of else (left * lot.qty / of).quantize(exponent, ROUND_HALF_EVEN)
            left, of = left - share, of - lot.qty
            cost = lot.cost if lot.currency == currency else None
            sale = Sale(asset, lot.qty, share, cost, currency, lot.at_us, at_us)
            sales.append(sale)
            gain = sale.gain
            if gain is None:
                self.no_basis += lot.qty
                continue
            self.realised[currency] = self.realised.get(currency, ZERO) + gain
            year = f"{datetime.fromtimestamp(at_us / 1e6, UTC).year} {currency}"
            self.by_year[year] = self.by_year.get(year, ZERO) + gain
            if len(self.by_year) > YEARS_MAX:
                del self.by_year[min(self.by_year)]
        return sales
