"""Events as clients see them: the whole truth for the feed, one's own side for a trader.

Prices, quantities and amounts are decimal strings, as everywhere on the wire. `released_units` alone stays
in the smallest unit: a closing event does not say whether its order bought (quote) or sold (base), and
whoever follows holds knows that from the order's opening.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from msgspec import Struct

from statemachine import events as ev
from statemachine.commands import Calendar, Limits, SessionHours
from statemachine.types import ORDINAL_MAX, Side

View = dict[str, Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Listing(Protocol):
    """What of an instrument never changes once it is listed."""

    @property
    def symbol(self) -> str: ...
    @property
    def base(self) -> str: ...
    @property
    def quote(self) -> str: ...
    @property
    def price_scale(self) -> int: ...
    @property
    def quantity_scale(self) -> int: ...
    @property
    def tick(self) -> int: ...
    @property
    def lot(self) -> int: ...


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


def decimal_text(units: int, scale: int) -> str:
    """units * 10**-scale without trailing zeros: 1250 at scale 2 is 12.5."""
    if not scale:
        return str(units)
    whole, rest = divmod(abs(units), 10**scale)
    sign = "-" if units < 0 else ""
    if not rest:
        return f"{sign}{whole}"
    return f"{sign}{whole}.{rest:0{scale}d}".rstrip("0")


def time_text(at_us: int) -> str:
    """RFC 3339 in UTC with microseconds."""
    return (_EPOCH + timedelta(microseconds=at_us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class EventViews:
    """Turns events into dicts. The two functions give an instrument and an asset's scale by name, as they are now."""

    def __init__(self, listing: Callable[[str], Listing], scale: Callable[[str], int]) -> None:
        self._listing = listing
        self._scale = scale
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

    def public(self, event: ev.AnyEvent, position: str, at: str) -> View:
        """All of an event, for those who may read everything. `position` and `at` come first."""
        return {"position": position, "at": at, **self._makers[type(event)](event)}

    def private(self, event: ev.AnyEvent, position: str, at: str) -> Iterator[tuple[str, View]]:
        """(account, what that account may see), once for each account that the event concerns."""
        if type(event) is ev.Traded:
            yield event.taker_account, {"position": position, "at": at, **self._fill(event, taker=True)}
            yield event.maker_account, {"position": position, "at": at, **self._fill(event, taker=False)}
        elif type(event) is ev.Transferred:
            for account, units, owned in (
                (event.source, -event.amount_units, event.source_units),
                (event.target, event.amount_units, event.target_units),
            ):
                yield account, {"position": position, "at": at, **self._transfer_side(event, account, units, owned)}
        else:
            account = getattr(event, "account", "")
            if account:
                yield account, {"position": position, "at": at, **self._own(event)}

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
        listing = self._listing(event.symbol)
        taker_side, maker_side = ("buy", "sell") if event.taker_side == Side.buy else ("sell", "buy")
        return {
            "event": "partial_fill" if leaves_lots else "fill",
            "account": event.taker_account if taker else event.maker_account,
            "order_id": str(event.taker_order_id if taker else event.maker_order_id),
            "symbol": event.symbol,
            "side": taker_side if taker else maker_side,
            "liquidity": "taker" if taker else "maker",
            "trade_id": str(event.trade_id),
            "price": _price(listing, event.price_ticks),
            "qty": _quantity(listing, event.quantity_lots),
            "notional": self._amount(listing.quote, event.notional_units),
            "fee": self._amount(listing.quote, event.taker_fee_units if taker else event.maker_fee_units),
            "leaves_qty": _quantity(listing, leaves_lots),
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

    def _amount(self, asset: str, units: int) -> str:
        return decimal_text(units, self._scale(asset))

    def _asset_added(self, event: ev.AssetAdded) -> View:
        return {
            "type": "asset_added",
            "asset": event.asset,
            "scale": event.scale,
            "supply_max": decimal_text(event.supply_units_max, event.scale),
        }

    def _instrument_changed(self, event: ev.InstrumentChanged) -> View:
        return {
            "type": "instrument_changed",
            "symbol": event.symbol,
            "base": event.base,
            "quote": event.quote,
            "tick_size": decimal_text(event.tick, event.price_scale),
            "lot_size": decimal_text(event.lot, event.quantity_scale),
            "price_scale": event.price_scale,
            "quantity_scale": event.quantity_scale,
            "tick": event.tick,
            "lot": event.lot,
            "mode": event.mode.name,
            "maker_bps": event.maker_bps,
            "taker_bps": event.taker_bps,
            "limits": self._limits(event, event.limits),
            "calendar": _calendar(event.calendar),
        }

    def _limits(self, listing: Listing, limits: Limits) -> View:
        return {
            "qty_min": _quantity(listing, limits.quantity_lots_min),
            "qty_max": _quantity(listing, limits.quantity_lots_max),
            "notional_min": self._amount(listing.quote, limits.notional_units_min),
            "notional_max": self._amount(listing.quote, limits.notional_units_max),
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
        listing = self._listing(event.symbol)
        held = listing.quote if event.side == Side.buy else listing.base
        return {
            "type": "order_opened",
            "account": event.account,
            "order_id": str(event.order_id),
            "client_order_id": event.key,
            "symbol": event.symbol,
            "side": event.side.name,
            "order_type": event.type.name,
            "time_in_force": event.time_in_force.name,
            "limit_price": _price(listing, event.price_ticks) if event.price_ticks else None,
            "qty": _quantity(listing, event.quantity_lots) if event.quantity_lots else None,
            "notional": self._amount(listing.quote, event.budget_units) if event.budget_units else None,
            "filled_qty": _quantity(listing, event.filled_lots),
            "expires_at": time_text(event.expires_at_us) if event.expires_at_us else None,
            "post_only": event.post_only,
            "self_trade": event.self_trade.name,
            "session": event.session or None,
            "hold": self._amount(held, event.hold_units),
            "replaces": str(event.replaces) if event.replaces else None,
            "kept_priority": event.kept_priority,
        }

    def _traded(self, event: ev.Traded) -> View:
        listing = self._listing(event.symbol)
        return {
            "type": "traded",
            "trade_id": str(event.trade_id),
            "symbol": event.symbol,
            "price": _price(listing, event.price_ticks),
            "qty": _quantity(listing, event.quantity_lots),
            "notional": self._amount(listing.quote, event.notional_units),
            "taker_side": event.taker_side.name,
            "taker_order_id": str(event.taker_order_id),
            "taker_account": event.taker_account,
            "taker_fee": self._amount(listing.quote, event.taker_fee_units),
            "taker_leaves_qty": _quantity(listing, event.taker_leaves_lots),
            "maker_order_id": str(event.maker_order_id),
            "maker_account": event.maker_account,
            "maker_fee": self._amount(listing.quote, event.maker_fee_units),
            "maker_leaves_qty": _quantity(listing, event.maker_leaves_lots),
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
        listing = self._listing(event.symbol)
        return {
            "type": "order_reduced",
            "account": event.account,
            "order_id": str(event.order_id),
            "symbol": event.symbol,
            "reduced_qty": _quantity(listing, event.reduced_lots),
            "leaves_qty": _quantity(listing, event.leaves_lots),
            "released_units": event.released_units,
        }

    def _order_closed(self, event: ev.OrderClosed) -> View:
        listing = self._listing(event.symbol)
        return {
            "type": "order_closed",
            "account": event.account,
            "order_id": str(event.order_id),
            "symbol": event.symbol,
            "status": event.status.name,
            "reason": event.reason.name,
            "filled_qty": _quantity(listing, event.filled_lots),
            "leaves_qty": _quantity(listing, event.leaves_lots),
            "filled_notional": self._amount(listing.quote, event.notional_units),
            "fee": self._amount(listing.quote, event.fee_units),
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
            "price": _price(self._listing(event.symbol), event.price_ticks),
            "observed_at": time_text(event.observed_at_us),
        }


def _price(listing: Listing, ticks: int) -> str:
    return decimal_text(ticks * listing.tick, listing.price_scale)


def _quantity(listing: Listing, lots: int) -> str:
    return decimal_text(lots * listing.lot, listing.quantity_scale)


def _hours(hours: SessionHours | None) -> list[int] | None:
    return None if hours is None else [hours.open_minute, hours.close_minute]


def _calendar(calendar: Calendar) -> View:
    """Minutes after local midnight, as the machine keeps them; days count from 1970-01-01, local."""
    return {
        "weekly": [_hours(hours) for hours in calendar.weekly],
        "utc_offset_minutes": calendar.utc_offset_minutes,
        "exceptions": [[day, _hours(hours)] for day, hours in calendar.exceptions],
    }
