"""Events as clients see them: the whole truth for the feed, one's own side for a trader.

Prices, quantities and amounts are decimal strings, as everywhere on the wire. `released_units` alone stays
in the smallest unit: a closing event does not say whether its order bought (quote) or sold (base), and
whoever follows holds knows that from the order's opening.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from msgspec import Struct

from node.market import Market, Money
from node.outcomes import at
from statemachine import events as ev
from statemachine.commands import Calendar, Limits, SessionHours
from statemachine.decimals import text
from statemachine.types import ORDINAL_MAX, Side

View = dict[str, Any]


class Catalogue(Protocol):
    """Units of instruments and assets, as applied here; what it says of one never changes."""

    def market(self, symbol: str) -> Market | None: ...

    def money(self, asset: str) -> Money | None: ...


class Position(Struct, frozen=True, order=True, gc=False):
    """A place in the feed: behind the event `seq` of the entry `index`. As text: group.epoch.index.seq."""

    group: int
    epoch: int
    index: int
    seq: int

    def __str__(self) -> str:
        return f"{self.group}.{self.epoch}.{self.index}.{self.seq}"

    @classmethod
    def parse(cls, text: str, *, group: int = 0) -> "Position":
        """Also takes epoch.index.seq, of the group given. Raises ValueError for anything else."""
        parts = text.split(".") if len(text) <= 64 else []
        if len(parts) == 3:
            parts.insert(0, str(group))
        if len(parts) != 4 or not all(part.isascii() and part.isdigit() for part in parts):
            raise ValueError("a position is group.epoch.index.seq")
        return cls(*map(int, parts))

    @classmethod
    def behind(cls, group: int, epoch: int, index: int) -> "Position":
        """Behind all events of an entry, however many there are."""
        return cls(group, epoch, index, ORDINAL_MAX)


class EventViews:
    """Turns applied events into dicts."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._makers: dict[type[Any], Callable[[Any], View]] = {
            ev.AssetAdded: self._asset_added,
            ev.InstrumentChanged: self._instrument_changed,
            ev.AccountOpened: lambda e: {"type": "account_opened", "account": e.account},
            ev.Transferred: self._transferred,
            ev.OrderOpened: self._order_opened,
            ev.Traded: self._traded,
            ev.HoldReleased: self._hold_released,
            ev.OrderReduced: self._order_reduced,
            ev.OrderClosed: self._order_closed,
            ev.WithdrawalOpened: self._withdrawal("withdrawal_opened"),
            ev.WithdrawalClosed: self._withdrawal("withdrawal_closed"),
            ev.ReferenceSet: self._reference_set,
            ev.SessionChanged: lambda e: {
                "type": "session_changed",
                "account": e.account,
                "session": e.session,
                "open": e.open,
            },
            ev.DigestDisagreed: lambda e: {
                "type": "digest_disagreed",
                "digest_index": e.digest_index,
                "members": list(e.members),
            },
            ev.RulesActivated: lambda e: {"type": "rules_activated", "version": e.version},
        }

    def public(self, event: ev.AnyEvent, position: str, happened_at: str) -> View:
        """All of an event, for those who may read everything. `position` and `at` come first."""
        return {"position": position, "at": happened_at, **self._makers[type(event)](event)}

    def private(self, event: ev.AnyEvent, position: str, happened_at: str) -> Iterator[tuple[str, View]]:
        """(account, what that account may see), once for each account that the event concerns."""
        if type(event) is ev.Traded:
            yield event.taker_account, {"position": position, "at": happened_at, **self._fill(event, taker=True)}
            yield event.maker_account, {"position": position, "at": happened_at, **self._fill(event, taker=False)}
        elif type(event) is ev.Transferred:
            for account, units, owned in (
                (event.source, -event.amount_units, event.source_units),
                (event.target, event.amount_units, event.target_units),
            ):
                yield (
                    account,
                    {"position": position, "at": happened_at, **self._transfer_side(event, account, units, owned)},
                )
        else:
            account = getattr(event, "account", "")
            if account:
                yield account, {"position": position, "at": happened_at, **self._own(event)}

    def _own(self, event: ev.AnyEvent) -> View:
        view = self._makers[type(event)](event)
        word = view.pop("type")
        if word == "order_opened":
            word = "new"
        elif word == "order_closed":
            word = view["status"]
        elif word == "order_reduced":
            word = "reduced"
        return {"event": word, **view}

    def _fill(self, event: ev.Traded, *, taker: bool) -> View:
        leaves_lots = event.taker_leaves_lots if taker else event.maker_leaves_lots
        market = self._market(event.symbol)
        taker_side, maker_side = ("buy", "sell") if event.taker_side == Side.buy else ("sell", "buy")
        return {
            "event": "partial_fill" if leaves_lots else "fill",
            "account": event.taker_account if taker else event.maker_account,
            "order_id": str(event.taker_order_id if taker else event.maker_order_id),
            "symbol": event.symbol,
            "side": taker_side if taker else maker_side,
            "liquidity": "taker" if taker else "maker",
            "trade_id": str(event.trade_id),
            "price": market.price(event.price_ticks),
            "qty": market.quantity(event.quantity_lots),
            "notional": text(event.notional_units, market.quote_scale),
            "fee": text(event.taker_fee_units if taker else event.maker_fee_units, market.quote_scale),
            "leaves_qty": market.quantity(leaves_lots),
        }

    def _transfer_side(self, event: ev.Transferred, account: str, units: int, owned_units: int) -> View:
        return {
            "event": "transferred",
            "account": account,
            "asset": event.asset,
            "amount": self._amount(event.asset, units),
            "balance": self._amount(event.asset, owned_units),
            "reason": event.reason.name,
        }

    def _market(self, symbol: str) -> Market:
        market = self._catalogue.market(symbol)
        if market is None:
            raise LookupError(f"an event names {symbol!r}, which was never listed here")
        return market

    def _amount(self, asset: str, units: int) -> str:
        money = self._catalogue.money(asset)
        if money is None:
            raise LookupError(f"an event names {asset!r}, which was never added here")
        return text(units, money.scale)

    def _asset_added(self, event: ev.AssetAdded) -> View:
        return {
            "type": "asset_added",
            "asset": event.asset,
            "scale": event.scale,
            "supply_max": text(event.supply_units_max, event.scale),
        }

    def _instrument_changed(self, event: ev.InstrumentChanged) -> View:
        return {
            "type": "instrument_changed",
            "symbol": event.symbol,
            "base": event.base,
            "quote": event.quote,
            "tick_size": text(event.tick, event.price_scale),
            "lot_size": text(event.lot, event.quantity_scale),
            "price_scale": event.price_scale,
            "quantity_scale": event.quantity_scale,
            "tick": event.tick,
            "lot": event.lot,
            "mode": event.mode.name,
            "maker_bps": event.maker_bps,
            "taker_bps": event.taker_bps,
            "limits": self._limits(self._market(event.symbol), event.limits),
            "calendar": _calendar(event.calendar),
        }

    def _limits(self, market: Market, limits: Limits) -> View:
        return {
            "qty_min": market.quantity(limits.quantity_lots_min),
            "qty_max": market.quantity(limits.quantity_lots_max),
            "notional_min": text(limits.notional_units_min, market.quote_scale),
            "notional_max": text(limits.notional_units_max, market.quote_scale),
            "open_orders_max": limits.open_orders_max,
            "band_bps": limits.band_bps,
            "collar_bps": limits.collar_bps,
            "reference_age_ms_max": limits.reference_age_us_max // 1000,
        }

    def _transferred(self, event: ev.Transferred) -> View:
        return {
            "type": "transferred",
            "source": event.source,
            "target": event.target,
            "asset": event.asset,
            "amount": self._amount(event.asset, event.amount_units),
            "reason": event.reason.name,
            "source_balance": self._amount(event.asset, event.source_units),
            "target_balance": self._amount(event.asset, event.target_units),
        }

    def _order_opened(self, event: ev.OrderOpened) -> View:
        market = self._market(event.symbol)
        hold_scale = market.quote_scale if event.side is Side.buy else market.base_scale
        return {
            "type": "order_opened",
            "account": event.account,
            "order_id": str(event.order_id),
            "client_order_id": event.key,
            "symbol": event.symbol,
            "side": event.side.name,
            "order_type": event.type.name,
            "time_in_force": event.time_in_force.name,
            "limit_price": market.price(event.price_ticks) if event.price_ticks else None,
            "qty": market.quantity(event.quantity_lots) if event.quantity_lots else None,
            "notional": text(event.budget_units, market.quote_scale) if event.budget_units else None,
            "filled_qty": market.quantity(event.filled_lots),
            "expires_at": at(event.expires_at_us) if event.expires_at_us else None,
            "post_only": event.post_only,
            "self_trade": event.self_trade.name,
            "session": event.session or None,
            "hold": text(event.hold_units, hold_scale),
            "replaces": str(event.replaces) if event.replaces else None,
            "kept_priority": event.kept_priority,
        }

    def _traded(self, event: ev.Traded) -> View:
        market = self._market(event.symbol)
        return {
            "type": "traded",
            "trade_id": str(event.trade_id),
            "symbol": event.symbol,
            "price": market.price(event.price_ticks),
            "qty": market.quantity(event.quantity_lots),
            "notional": text(event.notional_units, market.quote_scale),
            "taker_side": event.taker_side.name,
            "taker_order_id": str(event.taker_order_id),
            "taker_account": event.taker_account,
            "taker_fee": text(event.taker_fee_units, market.quote_scale),
            "taker_leaves_qty": market.quantity(event.taker_leaves_lots),
            "maker_order_id": str(event.maker_order_id),
            "maker_account": event.maker_account,
            "maker_fee": text(event.maker_fee_units, market.quote_scale),
            "maker_leaves_qty": market.quantity(event.maker_leaves_lots),
        }

    def _hold_released(self, event: ev.HoldReleased) -> View:
        return {
            "type": "hold_released",
            "account": event.account,
            "order_id": str(event.order_id),
            "symbol": event.symbol,
            "released_units": event.released_units,
        }

    def _order_reduced(self, event: ev.OrderReduced) -> View:
        market = self._market(event.symbol)
        return {
            "type": "order_reduced",
            "account": event.account,
            "order_id": str(event.order_id),
            "symbol": event.symbol,
            "reduced_qty": market.quantity(event.reduced_lots),
            "leaves_qty": market.quantity(event.leaves_lots),
            "released_units": event.released_units,
        }

    def _order_closed(self, event: ev.OrderClosed) -> View:
        market = self._market(event.symbol)
        return {
            "type": "order_closed",
            "account": event.account,
            "order_id": str(event.order_id),
            "symbol": event.symbol,
            "status": event.status.name,
            "reason": event.reason.name,
            "filled_qty": market.quantity(event.filled_lots),
            "leaves_qty": market.quantity(event.leaves_lots),
            "filled_notional": text(event.notional_units, market.quote_scale),
            "fee": text(event.fee_units, market.quote_scale),
            "released_units": event.released_units,
            "replaced_by": str(event.replaced_by) if event.replaced_by else None,
        }

    def _withdrawal(self, word: str) -> Callable[[Any], View]:
        def make(event: ev.WithdrawalOpened | ev.WithdrawalClosed) -> View:
            view: View = {
                "type": word,
                "account": event.account,
                "withdrawal_id": str(event.withdrawal_id),
                "asset": event.asset,
                "amount": self._amount(event.asset, event.amount_units),
            }
            if isinstance(event, ev.WithdrawalClosed):
                view["posted"] = event.posted
            return view

        return make

    def _reference_set(self, event: ev.ReferenceSet) -> View:
        return {
            "type": "reference_set",
            "symbol": event.symbol,
            "price": self._market(event.symbol).price(event.price_ticks),
            "observed_at": at(event.observed_at_us),
        }


def _hours(hours: SessionHours | None) -> list[int] | None:
    return None if hours is None else [hours.open_minute, hours.close_minute]


def _calendar(calendar: Calendar) -> View:
    """Minutes after local midnight, as the machine keeps them; days count from 1970-01-01, local."""
    return {
        "weekly": [_hours(hours) for hours in calendar.weekly],
        "utc_offset_minutes": calendar.utc_offset_minutes,
        "exceptions": [[day, _hours(hours)] for day, hours in calendar.exceptions],
    }
