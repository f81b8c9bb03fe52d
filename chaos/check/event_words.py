"""Events of the ledger as the feed tells them: every field, numbers as fractions, to be compared by value."""

from collections.abc import Callable
from typing import Any

from chaos.check.ledger import Model
from chaos.check.words import Words, amount, at, lots, price
from statemachine.commands import Calendar, Limits, SessionHours
from statemachine.events import (
    AccountOpened,
    AnyEvent,
    AssetAdded,
    DigestDisagreed,
    HoldReleased,
    InstrumentChanged,
    OrderClosed,
    OrderOpened,
    OrderReduced,
    ReferenceSet,
    RulesActivated,
    SessionChanged,
    Traded,
    Transferred,
    WithdrawalClosed,
    WithdrawalOpened,
)
from statemachine.types import Side


def told(model: Model, event: AnyEvent, time_us: int) -> Words:
    """All that the feed must say of an event of an entry of this time; only its position is not the ledger's.

    model: the ledger after any later entry; units of assets and instruments never change.
    """
    return {"at": at(time_us), **_OF[type(event)](model, event)}


def _asset_added(model: Model, event: AssetAdded) -> Words:
    supply = amount(model, event.asset, event.supply_units_max)
    return {"type": "asset_added", "asset": event.asset, "scale": event.scale, "supply_max": supply}


def _instrument_changed(model: Model, event: InstrumentChanged) -> Words:
    return {
        "type": "instrument_changed",
        "symbol": event.symbol,
        "base": event.base,
        "quote": event.quote,
        "tick_size": price(model, event.symbol, 1),
        "lot_size": lots(model, event.symbol, 1),
        "price_scale": event.price_scale,
        "quantity_scale": event.quantity_scale,
        "tick": event.tick,
        "lot": event.lot,
        "mode": event.mode.name,
        "maker_bps": event.maker_bps,
        "taker_bps": event.taker_bps,
        "limits": _limits(model, event.symbol, event.limits),
        "calendar": _calendar(event.calendar),
    }


def _limits(model: Model, symbol: str, limits: Limits) -> Words:
    quote = model.instruments[symbol].quote
    return {
        "qty_min": lots(model, symbol, limits.quantity_lots_min),
        "qty_max": lots(model, symbol, limits.quantity_lots_max),
        "notional_min": amount(model, quote, limits.notional_units_min),
        "notional_max": amount(model, quote, limits.notional_units_max),
        "open_orders_max": limits.open_orders_max,
        "band_bps": limits.band_bps,
        "collar_bps": limits.collar_bps,
        "reference_age_ms_max": limits.reference_age_us_max // 1000,
    }


def _calendar(calendar: Calendar) -> Words:
    return {
        "weekly": [_hours(hours) for hours in calendar.weekly],
        "utc_offset_minutes": calendar.utc_offset_minutes,
        "exceptions": [[day, _hours(hours)] for day, hours in calendar.exceptions],
    }


def _hours(hours: SessionHours | None) -> list[int] | None:
    return [hours.open_minute, hours.close_minute] if hours else None


def _account_opened(_model: Model, event: AccountOpened) -> Words:
    return {"type": "account_opened", "account": event.account}


def _transferred(model: Model, event: Transferred) -> Words:
    return {
        "type": "transferred",
        "source": event.source,
        "target": event.target,
        "asset": event.asset,
        "amount": amount(model, event.asset, event.amount_units),
        "reason": event.reason.name,
        "source_balance": amount(model, event.asset, event.source_units),
        "target_balance": amount(model, event.asset, event.target_units),
    }


def _order_opened(model: Model, event: OrderOpened) -> Words:
    listed = model.instruments[event.symbol]
    held_in = listed.quote if event.side == Side.buy else listed.base
    return {
        "type": "order_opened",
        "account": event.account,
        "order_id": str(event.order_id),
        "client_order_id": event.key,
        "symbol": event.symbol,
        "side": event.side.name,
        "order_type": event.type.name,
        "time_in_force": event.time_in_force.name,
        "limit_price": price(model, event.symbol, event.price_ticks) if event.price_ticks else None,
        "qty": lots(model, event.symbol, event.quantity_lots) if event.quantity_lots else None,
        "notional": amount(model, listed.quote, event.budget_units) if event.budget_units else None,
        "filled_qty": lots(model, event.symbol, event.filled_lots),
        "expires_at": at(event.expires_at_us) if event.expires_at_us else None,
        "post_only": event.post_only,
        "self_trade": event.self_trade.name,
        "session": event.session or None,
        "hold": amount(model, held_in, event.hold_units),
        "replaces": str(event.replaces) if event.replaces else None,
        "kept_priority": event.kept_priority,
    }


def _traded(model: Model, event: Traded) -> Words:
    quote = model.instruments[event.symbol].quote
    return {
        "type": "traded",
        "trade_id": str(event.trade_id),
        "symbol": event.symbol,
        "price": price(model, event.symbol, event.price_ticks),
        "qty": lots(model, event.symbol, event.quantity_lots),
        "notional": amount(model, quote, event.notional_units),
        "taker_side": event.taker_side.name,
        "taker_order_id": str(event.taker_order_id),
        "taker_account": event.taker_account,
        "taker_fee": amount(model, quote, event.taker_fee_units),
        "taker_leaves_qty": lots(model, event.symbol, event.taker_leaves_lots),
        "maker_order_id": str(event.maker_order_id),
        "maker_account": event.maker_account,
        "maker_fee": amount(model, quote, event.maker_fee_units),
        "maker_leaves_qty": lots(model, event.symbol, event.maker_leaves_lots),
    }


def _place(word: str, event: HoldReleased | OrderReduced | OrderClosed) -> Words:
    return {
        "type": word,
        "account": event.account,
        "order_id": str(event.order_id),
        "symbol": event.symbol,
        "released_units": event.released_units,
    }


def _hold_released(_model: Model, event: HoldReleased) -> Words:
    return _place("hold_released", event)


def _order_reduced(model: Model, event: OrderReduced) -> Words:
    return {
        **_place("order_reduced", event),
        "reduced_qty": lots(model, event.symbol, event.reduced_lots),
        "leaves_qty": lots(model, event.symbol, event.leaves_lots),
    }


def _order_closed(model: Model, event: OrderClosed) -> Words:
    quote = model.instruments[event.symbol].quote
    return {
        **_place("order_closed", event),
        "status": event.status.name,
        "reason": event.reason.name,
        "filled_qty": lots(model, event.symbol, event.filled_lots),
        "leaves_qty": lots(model, event.symbol, event.leaves_lots),
        "filled_notional": amount(model, quote, event.notional_units),
        "fee": amount(model, quote, event.fee_units),
        "replaced_by": str(event.replaced_by) if event.replaced_by else None,
    }


def _withdrawal(word: str, model: Model, event: WithdrawalOpened | WithdrawalClosed) -> Words:
    return {
        "type": word,
        "account": event.account,
        "withdrawal_id": str(event.withdrawal_id),
        "asset": event.asset,
        "amount": amount(model, event.asset, event.amount_units),
    }


def _withdrawal_opened(model: Model, event: WithdrawalOpened) -> Words:
    return _withdrawal("withdrawal_opened", model, event)


def _withdrawal_closed(model: Model, event: WithdrawalClosed) -> Words:
    return {**_withdrawal("withdrawal_closed", model, event), "posted": event.posted}


def _reference_set(model: Model, event: ReferenceSet) -> Words:
    return {
        "type": "reference_set",
        "symbol": event.symbol,
        "price": price(model, event.symbol, event.price_ticks),
        "observed_at": at(event.observed_at_us),
    }


def _session_changed(_model: Model, event: SessionChanged) -> Words:
    return {"type": "session_changed", "account": event.account, "session": event.session, "open": event.open}


def _digest_disagreed(_model: Model, event: DigestDisagreed) -> Words:
    return {"type": "digest_disagreed", "digest_index": event.digest_index, "members": list(event.members)}


def _rules_activated(_model: Model, event: RulesActivated) -> Words:
    return {"type": "rules_activated", "version": event.version}


_OF: dict[type[Any], Callable[[Model, Any], Words]] = {
    AssetAdded: _asset_added,
    InstrumentChanged: _instrument_changed,
    AccountOpened: _account_opened,
    Transferred: _transferred,
    OrderOpened: _order_opened,
    Traded: _traded,
    HoldReleased: _hold_released,
    OrderReduced: _order_reduced,
    OrderClosed: _order_closed,
    WithdrawalOpened: _withdrawal_opened,
    WithdrawalClosed: _withdrawal_closed,
    ReferenceSet: _reference_set,
    SessionChanged: _session_changed,
    DigestDisagreed: _digest_disagreed,
    RulesActivated: _rules_activated,
}
