"""Balances, holds and open orders of every account, from events alone: what a node's account view says, at an index.

The arithmetic is the events' own: an order's opening holds, a fill spends from both holds, whatever releases says how
much. It decides nothing; `statemachine` did. A test compares it with the nodes' answers.
"""

from collections.abc import Callable, Iterable
from decimal import Decimal

import msgspec
from msgspec import Struct

from gateway.events import (
    AccountOpened,
    AnyEvent,
    AssetAdded,
    HoldReleased,
    InstrumentChanged,
    OrderClosed,
    OrderOpened,
    OrderReduced,
    Traded,
    Transferred,
    WithdrawalClosed,
    WithdrawalOpened,
)
from gateway.projection.projector import Batch, Row, Touch

ZERO = Decimal(0)


class Balance(Struct, array_like=True):
    """owned includes held."""

    owned: Decimal = ZERO
    held: Decimal = ZERO

    @property
    def available(self) -> Decimal:
        return self.owned - self.held


class OpenOrder(Struct, kw_only=True):
    """leaves_qty is None for a market buy with a budget, which never rests."""

    order_id: str
    account: str
    client_order_id: str
    symbol: str
    side: str
    order_type: str
    time_in_force: str
    limit_price: Decimal | None
    qty: Decimal | None
    leaves_qty: Decimal | None
    filled_qty: Decimal
    hold: Decimal
    expires_at: str | None = None


class Instrument(Struct):
    symbol: str
    base: str
    quote: str
    mode: str


class Account(Struct):
    account: str
    balances: dict[str, Balance] = {}
    orders: dict[str, OpenOrder] = {}


class _Catalogue(Struct):
    scales: dict[str, int]
    instruments: dict[str, Instrument]


# Fields in the cache: what changes by itself is one, so that a fill of a busy account writes three small ones, and not
# a thousand orders. `anna`: that there is such an account; `anna USD`: a balance; `#17`: an open order.
CATALOGUE = "@catalogue"
ORDER = "#"
_encode = msgspec.msgpack.Encoder().encode
_decode_catalogue = msgspec.msgpack.Decoder(_Catalogue).decode
_decode_balance = msgspec.msgpack.Decoder(Balance).decode
_decode_order = msgspec.msgpack.Decoder(OpenOrder).decode


class Accounts:
    """Implements Projector. accounts, instruments, scales: as of the projection's position."""

    kind = "accounts"

    def __init__(self) -> None:
        self.touch: Touch = lambda _field: None
        self.accounts: dict[str, Account] = {}
        self.orders: dict[str, OpenOrder] = {}
        self.instruments: dict[str, Instrument] = {}
        self.scales: dict[str, int] = {}
        self._apply: dict[type[AnyEvent], Callable[..., object]] = {
            AssetAdded: self._asset_added,
            InstrumentChanged: self._instrument_changed,
            AccountOpened: lambda e: self._account(e.account),
            Transferred: self._transferred,
            OrderOpened: self._order_opened,
            Traded: self._traded,
            HoldReleased: lambda e: self._release(e.order_id, e.released_units),
            OrderReduced: self._order_reduced,
            OrderClosed: self._order_closed,
            WithdrawalOpened: lambda e: self._withdrawal(e.account, e.asset, e.amount),
            WithdrawalClosed: lambda e: self._withdrawal(e.account, e.asset, -e.amount),
        }

    # ---- Projector ----

    def reset(self) -> None:
        self.accounts.clear()
        self.orders.clear()
        self.instruments.clear()
        self.scales.clear()

    def row(self, table: str, row: Row, at_us: int) -> None:
        match table:
            case "assets":
                self.scales[row["asset"]] = row["scale"]
                self.touch(CATALOGUE)
            case "instruments":
                self.instruments[row["symbol"]] = Instrument(row["symbol"], row["base"], row["quote"], row["mode"])
                self.touch(CATALOGUE)
            case "accounts" if not row["account"].startswith("@"):
                account = self._account(row["account"])
                for one in row["balances"]:
                    available, held = Decimal(one["available"]), Decimal(one["held"])
                    account.balances[one["asset"]] = Balance(available + held, held)
                    self.touch(f"{row['account']} {one['asset']}")
            case "orders":
                self._order_row(row)

    def apply(self, batch: Batch) -> None:
        for event in batch.events:
            handle = self._apply.get(type(event))
            if handle is not None:
                handle(event)

    def fields(self) -> Iterable[str]:
        yield CATALOGUE
        for name, account in self.accounts.items():
            yield name
            for asset in account.balances:
                yield f"{name} {asset}"
        for order_id in self.orders:
            yield ORDER + order_id

    def dump(self, field: str) -> bytes | None:
        if field == CATALOGUE:
            return _encode(_Catalogue(self.scales, self.instruments))
        if field.startswith(ORDER):
            order = self.orders.get(field[1:])
            return None if order is None else _encode(order)
        name, _, asset = field.partition(" ")
        account = self.accounts.get(name)
        if account is None:
            return None
        balance = account.balances.get(asset)
        return b"" if not asset else None if balance is None else _encode(balance)

    def load(self, field: str, value: bytes) -> None:
        if field == CATALOGUE:
            found = _decode_catalogue(value)
            self.scales.update(found.scales)
            self.instruments.update(found.instruments)
        elif field.startswith(ORDER):
            order = _decode_order(value)
            self.orders[order.order_id] = self._account(order.account).orders[order.order_id] = order
        else:
            name, _, asset = field.partition(" ")
            account = self._account(name)
            if asset:
                account.balances[asset] = _decode_balance(value)

    # ---- rows and events ----

    def _order_row(self, row: Row) -> None:
        if row["status"] not in ("new", "partially_filled"):
            return
        order = OpenOrder(
            order_id=row["order_id"],
            account=row["account"],
            client_order_id=row["client_order_id"],
            symbol=row["symbol"],
            side=row["side"],
            order_type=row["order_type"],
            time_in_force=row["time_in_force"],
            limit_price=_decimal(row["limit_price"]),
            qty=Decimal(row["qty"]),
            leaves_qty=Decimal(row["leaves_qty"]),
            filled_qty=Decimal(row["filled_qty"]),
            hold=Decimal(row["hold"]),
            expires_at=row["expires_at"],
        )
        self._add_order(order)

    def _add_order(self, order: OpenOrder) -> None:
        self.orders[order.order_id] = self._account(order.account).orders[order.order_id] = order
        self.touch(ORDER + order.order_id)

    def _account(self, name: str) -> Account:
        account = self.accounts.get(name)
        if account is None:
            account = self.accounts[name] = Account(name, {}, {})
            self.touch(name)
        return account

    def _balance(self, name: str, asset: str) -> Balance:
        """To be changed."""
        self.touch(f"{name} {asset}")
        balances = self._account(name).balances
        balance = balances.get(asset)
        if balance is None:
            balance = balances[asset] = Balance()
        return balance

    def _asset_added(self, event: AssetAdded) -> None:
        self.scales[event.asset] = event.scale
        self.touch(CATALOGUE)

    def _instrument_changed(self, event: InstrumentChanged) -> None:
        self.instruments[event.symbol] = Instrument(event.symbol, event.base, event.quote, event.mode)
        self.touch(CATALOGUE)

    def _transferred(self, event: Transferred) -> None:
        for name, owned in ((event.source, event.source_balance), (event.target, event.target_balance)):
            if not name.startswith("@"):
                self._balance(name, event.asset).owned = owned

    def _withdrawal(self, account: str, asset: str, held: Decimal) -> None:
        # Posted or void: what left the account is in the transfer beside it.
        self._balance(account, asset).held += held

    def _order_opened(self, event: OrderOpened) -> None:
        instrument = self.instruments[event.symbol]
        order = OpenOrder(
            order_id=event.order_id,
            account=event.account,
            client_order_id=event.client_order_id,
            symbol=event.symbol,
            side=event.side,
            order_type=event.order_type,
            time_in_force=event.time_in_force,
            limit_price=event.limit_price,
            qty=event.qty,
            leaves_qty=None if event.qty is None else event.qty - event.filled_qty,
            filled_qty=event.filled_qty,
            hold=event.hold,
            expires_at=event.expires_at,
        )
        self._add_order(order)
        self._balance(event.account, _held_asset(instrument, event.side)).held += event.hold

    def _traded(self, event: Traded) -> None:
        instrument = self.instruments[event.symbol]
        maker_side = "sell" if event.taker_side == "buy" else "buy"
        for side, account, order_id, fee, leaves in (
            (event.taker_side, event.taker_account, event.taker_order_id, event.taker_fee, event.taker_leaves_qty),
            (maker_side, event.maker_account, event.maker_order_id, event.maker_fee, event.maker_leaves_qty),
        ):
            quote, base = self._balance(account, instrument.quote), self._balance(account, instrument.base)
            if side == "buy":
                spent, held = event.notional + fee, quote
                quote.owned -= spent
                base.owned += event.qty
            else:
                spent, held = event.qty, base
                base.owned -= spent
                quote.owned += event.notional - fee
            held.held -= spent
            order = self.orders[order_id]
            self.touch(ORDER + order_id)
            order.hold -= spent
            order.filled_qty += event.qty
            if order.leaves_qty is not None:
                order.leaves_qty = leaves

    def _release(self, order_id: str, units: int) -> None:
        order = self.orders[order_id]
        self.touch(ORDER + order_id)
        asset = _held_asset(self.instruments[order.symbol], order.side)
        amount = Decimal(units).scaleb(-self.scales[asset])
        order.hold -= amount
        self._balance(order.account, asset).held -= amount

    def _order_reduced(self, event: OrderReduced) -> None:
        self._release(event.order_id, event.released_units)
        self.orders[event.order_id].leaves_qty = event.leaves_qty

    def _order_closed(self, event: OrderClosed) -> None:
        self._release(event.order_id, event.released_units)
        del self.orders[event.order_id]
        del self._account(event.account).orders[event.order_id]


def _held_asset(instrument: Instrument, side: str) -> str:
    return instrument.quote if side == "buy" else instrument.base


def _decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)
