"""What accounts hold and what became of it: lots, cost, realised gains, from the same events as the balances.

Cash is an asset that others are priced in and that is itself priced in none. A gateway that starts from a node's
snapshot knows what is held, and not for how much it was bought: those lots have no basis, and the view says so.
"""

from collections.abc import Callable, Iterable
from decimal import Decimal

import msgspec
from msgspec import Struct

from gateway.events import AssetAdded, InstrumentChanged, Traded, Transferred
from gateway.projection.accounts import Account, Instrument
from gateway.projection.projector import Batch, Row, Touch
from gateway.views.lots import SALES_MAX, ZERO, Holding, Lot, Sale

WORLD = "@world"


class Mark(Struct, frozen=True):
    """What one unit of an asset is worth. stale: the price is older than its time to live, or was never heard."""

    price: Decimal
    currency: str
    as_of_us: int
    stale: bool


Marks = Callable[[str], Mark | None]
"""By asset."""


class Book(Struct):
    """One account's lots by asset, and its newest sales."""

    holdings: dict[str, Holding] = {}
    sales: list[Sale] = []


class PositionView(Struct, frozen=True):
    """Decimals as text. avg_cost, cost, unrealised: of the part whose basis is known, basis_unknown_qty apart."""

    asset: str
    qty: Decimal
    available: Decimal
    held: Decimal
    currency: str | None
    avg_cost: Decimal | None
    cost: Decimal | None
    basis_unknown_qty: Decimal
    market_price: Decimal | None
    market_value: Decimal | None
    price_as_of_us: int
    price_stale: bool
    unrealised: Decimal | None
    realised: dict[str, Decimal]
    fees: dict[str, Decimal]


class CashView(Struct, frozen=True):
    asset: str
    total: Decimal
    available: Decimal
    held: Decimal


class PortfolioView(Struct, frozen=True):
    """equity: cash and positions by currency; incomplete: an asset is left out of it, for want of a price."""

    account: str
    cash: list[CashView]
    positions: list[PositionView]
    equity: dict[str, Decimal]
    incomplete: bool


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Book).decode


class Portfolios:
    """Implements Projector, beside Accounts, whose instruments it shares."""

    kind = "portfolios"

    def __init__(self, instruments: dict[str, Instrument], scales: dict[str, int]) -> None:
        self.touch: Touch = lambda _field: None
        self.books: dict[str, Book] = {}
        self._instruments = instruments
        self._scales = scales
        self._cash: set[str] | None = None

    # ---- Projector ----

    def reset(self) -> None:
        self.books.clear()
        self._cash = None

    def row(self, table: str, row: Row, at_us: int) -> None:
        self._cash = None
        if table == "accounts" and not row["account"].startswith("@"):
            for one in row["balances"]:
                owned = Decimal(one["available"]) + Decimal(one["held"])
                if owned and one["asset"] not in self.cash_assets:
                    self._holding(row["account"], one["asset"]).acquire(Lot(owned, None, "", at_us))

    def fields(self) -> Iterable[str]:
        return self.books

    def dump(self, field: str) -> bytes | None:
        book = self.books.get(field)
        return None if book is None else _encode(book)

    def load(self, field: str, value: bytes) -> None:
        self.books[field] = _decode(value)

    def apply(self, batch: Batch) -> None:
        for event in batch.events:
            if isinstance(event, Traded):
                self._traded(event, batch.at_us)
            elif isinstance(event, Transferred):
                self._transferred(event, batch.at_us)
            elif isinstance(event, AssetAdded | InstrumentChanged):
                self._cash = None

    # ---- events ----

    @property
    def cash_assets(self) -> set[str]:
        """Quotes of some instrument, base of none. Until an asset is priced in another, it is cash."""
        if self._cash is None:
            bases = {instrument.base for instrument in self._instruments.values()}
            self._cash = {instrument.quote for instrument in self._instruments.values()} - bases
        return self._cash

    def _holding(self, account: str, asset: str) -> Holding:
        book = self.books.get(account)
        if book is None:
            book = self.books[account] = Book({}, [])
        self.touch(account)
        holding = book.holdings.get(asset)
        if holding is None:
            holding = book.holdings[asset] = Holding([], {}, {}, {})
        return holding

    def _exponent(self, asset: str) -> Decimal:
        return Decimal(1).scaleb(-self._scales.get(asset, 12))

    def _traded(self, event: Traded, at_us: int) -> None:
        instrument = self._instruments[event.symbol]
        maker_side = "sell" if event.taker_side == "buy" else "buy"
        for side, account, fee in (
            (event.taker_side, event.taker_account, event.taker_fee),
            (maker_side, event.maker_account, event.maker_fee),
        ):
            self._one_side(instrument, side, account, event.qty, event.notional, fee, at_us)

    def _one_side(
        self, instrument: Instrument, side: str, account: str, qty: Decimal, notional: Decimal, fee: Decimal, at_us: int
    ) -> None:
        base, quote = instrument.base, instrument.quote
        holding = self._holding(account, base)
        if fee:
            holding.fees[quote] = holding.fees.get(quote, ZERO) + fee
        if side == "buy":
            holding.acquire(Lot(qty, notional + fee, quote, at_us))
        else:
            book = self.books[account]
            book.sales += holding.sell(base, qty, notional - fee, quote, at_us, self._exponent(quote))
            del book.sales[:-SALES_MAX]
        if quote not in self.cash_assets:
            # Shares paid with shares: the other leg has lots, too, and no price in money here.
            other = self._holding(account, quote)
            if side == "buy":
                for lot in other.take(notional + fee, self._exponent(quote)):
                    other.no_basis += lot.qty
            else:
                other.acquire(Lot(notional - fee, None, "", at_us))

    def _transferred(self, event: Transferred, at_us: int) -> None:
        if event.asset in self.cash_assets:
            return
        lots = [Lot(event.amount, None, "", at_us)]
        if not event.source.startswith("@"):
            exponent = Decimal(1).scaleb(-12)
            lots = self._holding(event.source, event.asset).take(event.amount, exponent)
        if not event.target.startswith("@"):
            # Lots keep their cost and age when they move between accounts here.
            for lot in lots:
                self._holding(event.target, event.asset).acquire(lot)

    # ---- the view ----

    def view(self, account: Account, marks: Marks) -> PortfolioView:
        """cash_assets as cash, all else as positions at their marks."""
        cash: list[CashView] = []
        positions: list[PositionView] = []
        equity: dict[str, Decimal] = {}
        incomplete = False
        holdings = self.books.get(account.account, Book({}, [])).holdings
        for asset in sorted(account.balances.keys() | holdings.keys()):
            balance = account.balances.get(asset)
            owned, held = (balance.owned, balance.held) if balance is not None else (ZERO, ZERO)
            if asset in self.cash_assets:
                cash.append(CashView(asset, owned, owned - held, held))
                equity[asset] = equity.get(asset, ZERO) + owned
                continue
            position = self._position(asset, owned, held, holdings.get(asset) or Holding([], {}, {}, {}), marks(asset))
            positions.append(position)
            if position.market_value is not None and position.currency is not None:
                equity[position.currency] = equity.get(position.currency, ZERO) + position.market_value
            elif owned:
                incomplete = True
        return PortfolioView(account.account, cash, positions, equity, incomplete)

    def _position(self, asset: str, owned: Decimal, held: Decimal, holding: Holding, mark: Mark | None) -> PositionView:
        currency = mark.currency if mark is not None else next((lot.currency for lot in holding.lots if lot.cost), None)
        known_qty, cost = holding.cost(currency) if currency is not None else (ZERO, ZERO)
        exponent = self._exponent(currency) if currency is not None else ZERO
        value = (owned * mark.price).quantize(exponent) if mark is not None else None
        unrealised = (known_qty * mark.price).quantize(exponent) - cost if mark is not None and known_qty else None
        return PositionView(
            asset=asset,
            qty=owned,
            available=owned - held,
            held=held,
            currency=currency,
            avg_cost=(cost / known_qty).quantize(Decimal(1).scaleb(-9)).normalize() if known_qty else None,
            cost=cost if known_qty else None,
            basis_unknown_qty=max(ZERO, owned - known_qty),
            market_price=mark.price if mark is not None else None,
            market_value=value,
            price_as_of_us=mark.as_of_us if mark is not None else 0,
            price_stale=mark is None or mark.stale,
            unrealised=unrealised,
            realised=holding.realised,
            fees=holding.fees,
        )
