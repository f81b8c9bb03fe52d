"""What the door and the views ask the state about: names, units, whose order, whose withdrawal."""

from typing import Protocol

from node.market import Market, Money
from statemachine.commands import Limits
from statemachine.records import AssetRecord, InstrumentRecord, OrderRecord, WithdrawalRecord


class State(Protocol):
    """The part of the machine that is read here."""

    def asset(self, name: str) -> AssetRecord | None: ...

    def instrument(self, symbol: str) -> InstrumentRecord | None: ...

    def order(self, order_id: int) -> OrderRecord | None: ...

    def withdrawal(self, withdrawal_id: int) -> WithdrawalRecord | None: ...


class Past(Protocol):
    """The part of the history that is read here."""

    def closed_order(self, order_id: int) -> OrderRecord | None: ...


class Catalogue:
    """Reads the state as it is applied here. Units of assets and instruments never change, so they are kept."""

    def __init__(self, state: State, past: Past) -> None:
        self._state = state
        self._past = past
        self._markets: dict[str, Market] = {}
        self._moneys: dict[str, Money] = {}

    def market(self, symbol: str) -> Market | None:
        market = self._markets.get(symbol)
        if market is None:
            record = self._state.instrument(symbol)
            if record is None:
                return None
            base, quote = self.money(record.base), self.money(record.quote)
            if base is None or quote is None:
                return None
            market = self._markets[symbol] = Market(
                record.symbol,
                base=base.asset,
                base_scale=base.scale,
                quote=quote.asset,
                quote_scale=quote.scale,
                price_scale=record.price_scale,
                quantity_scale=record.quantity_scale,
                tick=record.tick,
                lot=record.lot,
            )
        return market

    def money(self, asset: str) -> Money | None:
        money = self._moneys.get(asset)
        if money is None:
            record = self._state.asset(asset)
            if record is None:
                return None
            money = self._moneys[asset] = Money(record.asset, record.scale)
        return money

    def limits(self, symbol: str) -> Limits | None:
        record = self._state.instrument(symbol)
        return None if record is None else record.limits

    def order(self, order_id: int) -> OrderRecord | None:
        """An order, open or closed."""
        return self._state.order(order_id) or self._past.closed_order(order_id)

    def market_of_order(self, account: str, order_id: int, *, closed: bool) -> Market | None:
        """The market of an order of this account; of a closed one only when asked, since that may read the disk."""
        order = self.order(order_id) if closed else self._state.order(order_id)
        return None if order is None or order.account != account else self.market(order.symbol)

    def account_of_withdrawal(self, withdrawal_id: int) -> str | None:
        """Whose pending withdrawal it is."""
        record = self._state.withdrawal(withdrawal_id)
        return None if record is None else record.account
