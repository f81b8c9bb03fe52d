"""What accounts hold and what became of it: lots, cost, realised gains, from the same events as the balances.

Cash is an asset that others are priced in and that is itself priced in none. A gateway that starts from a node's
snapshot knows what is held, and not for how much it was bought: until `basis.py` has found out, those lots have no
basis, and the view says so.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from decimal import Decimal

import msgspec
from msgspec import Struct

from gateway.events import AssetAdded, InstrumentChanged, Position, Traded, Transferred
from gateway.projection.accounts import Account, Instrument
from gateway.projection.projector import Batch, Row, Touch
from gateway.views.lots import SALES_MAX, ZERO, Holding, Lot, Sale, Totals

MOVED = Decimal(1).scaleb(-12)
SINCE_MAX = 1_000
"""What an account did since its snapshot, while its past is not known yet. Beyond it, it stays unknown."""


class Deed(Struct, array_like=True, frozen=True):
    """A trade's side, or (no quote) shares that came or went otherwise. qty: below zero when they went."""

    index: int
    at_us: int
    asset: str
    qty: Decimal
    quote: str = ""
    notional: Decimal = ZERO
    fee: Decimal = ZERO


class Past(Struct):
    """owned: at the snapshot, by asset. since: what was done behind it. index: the snapshot's, 0 while it is read."""

    owned: dict[str, Decimal]
    since: list[Deed]
    index: int = 0


class Mark(Struct, frozen=True):
    """What one unit of an asset is worth. stale: the price is older than its time to live, or was never heard."""

    price: Decimal
    currency: str
    as_of_us: int
    stale: bool


Marks = Callable[[str], Mark | None]
"""By asset."""


class Book(Struct):
    """One account's lots by asset, and its newest sales. past: of the time before a snapshot, to be found out."""

    holdings: dict[str, Holding] = {}
    sales: list[Sale] = []
    past: Past | None = None


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
    """equity: cash and positions by currency; incomplete: an asset is left out of it, for want of a price.

    basis_pending: what its lots cost is being found out; until then sales of them count as without a basis.
    """

    account: str
    cash: list[CashView]
    positions: list[PositionView]
    equity: dict[str, Decimal]
    incomplete: bool
    basis_pending: bool = False


# Fields in the cache: what changes by itself is one, so that a sale writes a lot and a sale, and not a thousand lots.
# `anna AAPL`: the totals of a holding; `anna AAPL 7`: a lot of it; `anna # 9`: a sale; `anna`: its unknown past.
SALE = "#"
_encode = msgspec.msgpack.Encoder().encode
_decode_totals = msgspec.msgpack.Decoder(Totals).decode
_decode_lot = msgspec.msgpack.Decoder(Lot).decode
_decode_sale = msgspec.msgpack.Decoder(Sale).decode
_decode_past = msgspec.msgpack.Decoder(Past | None).decode


class Portfolios:
    """Implements Projector, beside Accounts, whose instruments it shares."""

    kind = "portfolios"

    def __init__(self, instruments: dict[str, Instrument], scales: dict[str, int]) -> None:
        self.touch: Touch = lambda _field: None
        self.books: dict[str, Book] = {}
        self.unknown: dict[str, None] = {}
        """Accounts whose lots from before a snapshot are to be found out, the first one first."""
        self.asked: dict[str, None] = {}
        """Those of them that somebody looked at: they come first."""
        self._instruments = instruments
        self._scales = scales
        self._cash: set[str] | None = None

    # ---- Projector ----

    def reset(self) -> None:
        self.books.clear()
        self.unknown.clear()
        self.asked.clear()
        self._cash = None

    def row(self, table: str, row: Row, at_us: int) -> None:
        self._cash = None
        if table == "accounts" and not row["account"].startswith("@"):
            name = row["account"]
            for one in row["balances"]:
                owned = Decimal(one["available"]) + Decimal(one["held"])
                if owned and one["asset"] not in self.cash_assets:
                    self._holding(name, one["asset"]).acquire(Lot(owned, None, "", at_us))
                    book = self.books[name]
                    if book.past is None:
                        book.past = Past({}, [])
                        self.unknown[name] = None
                    book.past.owned[one["asset"]] = owned
            self._changed(name)

    def rebuilt(self, index: int) -> None:
        """The snapshot whose rows came is of this index: what happened before is to be found out."""
        for name in self.unknown:
            past = self.books[name].past
            if past is not None and not past.index:
                past.index = index

    def fields(self) -> Iterable[str]:
        for name, book in self.books.items():
            yield from self.fields_of(name, book)

    @staticmethod
    def fields_of(name: str, book: Book) -> Iterable[str]:
        yield name
        for asset, holding in book.holdings.items():
            yield f"{name} {asset}"
            yield from (f"{name} {asset} {lot.number}" for lot in holding.lots)
        yield from (f"{name} {SALE} {sale.number}" for sale in book.sales)

    def dump(self, field: str) -> bytes | None:
        name, _, rest = field.partition(" ")
        book = self.books.get(name)
        if book is None:
            return None
        asset, _, number = rest.partition(" ")
        if not asset:
            return _encode(book.past)
        found: Sale | Lot | Totals | None
        if asset == SALE:
            place = bisect_left(book.sales, int(number), key=lambda one: one.number)
            found = book.sales[place] if place < len(book.sales) and book.sales[place].number == int(number) else None
        else:
            holding = book.holdings.get(asset)
            found = None if holding is None else holding.lot(int(number)) if number else holding.totals
        return None if found is None else _encode(found)

    def load(self, field: str, value: bytes) -> None:
        name, _, rest = field.partition(" ")
        asset, _, number = rest.partition(" ")
        book = self._book(name)
        if not asset:
            book.past = _decode_past(value)
            if book.past is not None:
                self.unknown[name] = None
        elif asset == SALE:
            insort(book.sales, _decode_sale(value), key=lambda one: one.number)
        elif number:
            self._holding(name, asset).put_lot(_decode_lot(value))
        else:
            self._holding(name, asset).put_totals(_decode_totals(value))

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

    def _book(self, account: str) -> Book:
        book = self.books.get(account)
        if book is None:
            book = self.books[account] = Book({}, [])
            self.touch(account)
        return book

    def _holding(self, account: str, asset: str) -> Holding:
        """To be changed."""
        self.touch(f"{account} {asset}")
        book = self._book(account)
        holding = book.holdings.get(asset)
        if holding is None:
            holding = book.holdings[asset] = Holding([], {}, {}, {})
        return holding

    def _changed(self, account: str) -> None:
        """Tell which of its lots did."""
        for asset, holding in self.books[account].holdings.items():
            if holding.changed:
                for number in holding.changed:
                    self.touch(f"{account} {asset} {number}")
                holding.changed.clear()

    def _exponent(self, asset: str) -> Decimal:
        return Decimal(1).scaleb(-self._scales.get(asset, 12))

    def _traded(self, event: Traded, at_us: int) -> None:
        instrument = self._instruments[event.symbol]
        index = Position.parse(event.position).index if self.unknown else 0
        maker_side = "sell" if event.taker_side == "buy" else "buy"
        for side, account, fee in (
            (event.taker_side, event.taker_account, event.taker_fee),
            (maker_side, event.maker_account, event.maker_fee),
        ):
            sign = 1 if side == "buy" else -1
            deed = Deed(index, at_us, instrument.base, sign * event.qty, instrument.quote, sign * event.notional, fee)
            self._did(account, deed)

    def _did(self, account: str, deed: Deed) -> None:
        book = self._book(account)
        self._do(book, account, deed)
        self._keep(account, deed)

    def _keep(self, account: str, deed: Deed) -> None:
        self._changed(account)
        past = self.books[account].past
        if past is not None:
            past.since.append(deed)
            self.touch(account)
            if len(past.since) > SINCE_MAX:
                self.give_up(account)

    def _do(self, book: Book, account: str, deed: Deed) -> None:
        """One deed of an account, without those it dealt with."""
        asset, qty, at_us = deed.asset, abs(deed.qty), deed.at_us
        holding = self._holding_in(book, account, asset)
        if not deed.quote:
            if deed.qty > 0:
                holding.acquire(Lot(qty, None, "", at_us))
            else:
                holding.take(qty, MOVED)
            return
        quote, notional, fee = deed.quote, abs(deed.notional), deed.fee
        if fee:
            holding.fees[quote] = holding.fees.get(quote, ZERO) + fee
        if deed.qty > 0:
            holding.acquire(Lot(qty, notional + fee, quote, at_us))
        else:
            for sale in holding.sell(asset, qty, notional - fee, quote, at_us, self._exponent(quote)):
                number = book.sales[-1].number + 1 if book.sales else 1
                book.sales.append(msgspec.structs.replace(sale, number=number))
                self.touch(f"{account} {SALE} {number}")
            for old in book.sales[:-SALES_MAX]:
                self.touch(f"{account} {SALE} {old.number}")
            del book.sales[:-SALES_MAX]
        if quote not in self.cash_assets:
            # Shares paid with shares: the other leg has lots, too, and no price in money here.
            other = self._holding_in(book, account, quote)
            if deed.qty > 0:
                for lot in other.take(notional + fee, self._exponent(quote)):
                    other.no_basis += lot.qty
            else:
                other.acquire(Lot(notional - fee, None, "", at_us))

    def _holding_in(self, book: Book, account: str, asset: str) -> Holding:
        self.touch(f"{account} {asset}")
        return book.holdings.setdefault(asset, Holding([], {}, {}, {}))

    def _transferred(self, event: Transferred, at_us: int) -> None:
        if event.asset in self.cash_assets:
            return
        index = Position.parse(event.position).index if self.unknown else 0
        deed = Deed(index, at_us, event.asset, event.amount)
        lots = [Lot(event.amount, None, "", at_us)]
        if not event.source.startswith("@"):
            lots = self._holding(event.source, event.asset).take(event.amount, MOVED)
            self._keep(event.source, msgspec.structs.replace(deed, qty=-event.amount))
        if not event.target.startswith("@"):
            # Lots keep their cost and age when they move between accounts here.
            for lot in lots:
                self._holding(event.target, event.asset).acquire(lot)
            self._keep(event.target, deed)

    # ---- the time before a snapshot ----

    def fill_in(self, account: str, deeds: Iterable[Deed]) -> str:
        """Work an account's lots out anew: its deeds up to its snapshot, then what it did since.

        Empty: done. Else why not: what is here stays as it is, and the past is asked for no more.
        """
        book = self.books[account]
        past = book.past
        if past is None:
            return "nothing is unknown"
        made = Book({}, [])
        for deed in deeds:
            self._do(made, account, deed)
        wrong = {
            asset: (str(made.holdings[asset].qty if asset in made.holdings else ZERO), str(owned))
            for asset, owned in past.owned.items()
            if asset not in made.holdings or made.holdings[asset].qty != owned
        }
        extra = [asset for asset, holding in made.holdings.items() if holding.qty and asset not in past.owned]
        if wrong or extra:
            self.give_up(account)
            return f"its past does not add up to what it held: {wrong or extra}"
        for deed in past.since:
            self._do(made, account, deed)
        before = list(self.fields_of(account, book))
        self.books[account] = made
        self.unknown.pop(account, None)
        self.asked.pop(account, None)
        for field in (*before, *self.fields_of(account, made)):
            self.touch(field)
        for holding in made.holdings.values():
            holding.changed.clear()
        return ""

    def give_up(self, account: str) -> None:
        """Its past stays unknown."""
        self.books[account].past = None
        self.unknown.pop(account, None)
        self.asked.pop(account, None)
        self.touch(account)

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
        pending = account.account in self.unknown
        if pending:
            self.asked[account.account] = None
        return PortfolioView(account.account, cash, positions, equity, incomplete, pending)

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
