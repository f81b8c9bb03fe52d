"""Records of the state and of the past as clients read them."""

from datetime import UTC, datetime, timedelta
from typing import Literal

from msgspec import UNSET

from cluster import wire
from node.catalogue import Catalogue
from node.errors import InternalError
from node.market import Market
from node.outcomes import REASON_WORD, STATUS_WORD, at
from node.submit import Prepared
from statemachine.commands import Calendar, Limits, SessionHours
from statemachine.decimals import text
from statemachine.records import AccountRecord, InstrumentRecord, LedgerRow, OrderRecord, TradeRow, WithdrawalRecord
from statemachine.results import Placed
from statemachine.types import Mode, OrderType, SelfTrade, Side, Status, TimeInForce

SIDES: dict[Side, wire.SideWord] = {Side.buy: "buy", Side.sell: "sell"}
TYPES: dict[OrderType, wire.TypeWord] = {OrderType.limit: "limit", OrderType.market: "market"}
TIMES_IN_FORCE: dict[TimeInForce, wire.TimeInForceWord] = {
    TimeInForce.gtc: "gtc",
    TimeInForce.ioc: "ioc",
    TimeInForce.fok: "fok",
    TimeInForce.day: "day",
    TimeInForce.gtd: "gtd",
}
SELF_TRADES: dict[SelfTrade, wire.SelfTradeWord] = {
    SelfTrade.cancel_newest: "cancel_newest",
    SelfTrade.cancel_oldest: "cancel_oldest",
    SelfTrade.cancel_both: "cancel_both",
    SelfTrade.decrement: "decrement",
}
MODES: dict[Mode, wire.ModeWord] = {
    Mode.trading: "trading",
    Mode.post_only: "post_only",
    Mode.cancel_only: "cancel_only",
    Mode.halted: "halted",
}
Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_WEEKDAYS: tuple[Weekday, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_EPOCH_DAY = datetime(1970, 1, 1, tzinfo=UTC)
_ENDED = {
    Status.filled: "filled_at",
    Status.canceled: "canceled_at",
    Status.expired: "expired_at",
    Status.replaced: "replaced_at",
}


def order_view(order: OrderRecord, market: Market) -> wire.OrderView:
    ended = _ENDED.get(order.status, "")
    updated_at = at(order.updated_at_us)
    created_at = at(order.opened_at_us)
    return wire.OrderView(
        id=str(order.order_id),
        client_order_id=order.key,
        account=order.account,
        symbol=order.symbol,
        side=SIDES[order.side],
        type=TYPES[order.type],
        order_type=TYPES[order.type],
        time_in_force=TIMES_IN_FORCE[order.time_in_force],
        qty=market.quantity(order.quantity_lots) if order.quantity_lots else None,
        notional=text(order.budget_units, market.quote_scale) if order.budget_units else None,
        limit_price=market.price(order.price_ticks) if order.price_ticks else None,
        filled_qty=market.quantity(order.filled_lots),
        filled_avg_price=market.average_price(order.notional_units, order.filled_lots) or None,
        leaves_qty=market.quantity(order.leaves_lots),
        fee=text(order.fee_units, market.quote_scale),
        status=STATUS_WORD[order.status],
        reason=REASON_WORD[order.reason],
        post_only=order.post_only,
        self_trade=SELF_TRADES[order.self_trade],
        session=order.session or None,
        created_at=created_at,
        submitted_at=created_at,
        updated_at=updated_at,
        filled_at=updated_at if ended == "filled_at" else None,
        canceled_at=updated_at if ended == "canceled_at" else None,
        expired_at=updated_at if ended == "expired_at" else None,
        replaced_at=updated_at if ended == "replaced_at" else None,
        expires_at=at(order.expires_at_us) if order.expires_at_us else None,
        replaces=str(order.replaces) if order.replaces else None,
        replaced_by=str(order.replaced_by) if order.replaced_by else None,
    )


def placed_view(prepared: Prepared, result: Placed, *, replay: bool) -> wire.OrderView:
    """The order as it stood when its placing was answered; a repeat gets the same."""
    request, market = prepared.request, prepared.instrument
    if not isinstance(request, wire.PlaceOrder) or market is None:
        raise InternalError("the answer to an order belongs to no order", key=prepared.envelope.key)
    moment = at(result.at_us)
    status = result.status
    return wire.OrderView(
        id=str(result.order_id),
        client_order_id=prepared.envelope.key,
        account=prepared.account,
        symbol=request.symbol,
        side=request.side,
        type=request.type,
        order_type=request.type,
        time_in_force=request.time_in_force or ("gtc" if request.type == "limit" else "ioc"),
        qty=None if request.qty is None else market.quantity(market.lots(request.qty)),
        notional=None if request.notional is None else _budget(request.notional, market),
        limit_price=None if request.limit_price is None else market.price(market.ticks(request.limit_price)),
        filled_qty=market.quantity(result.filled_lots),
        filled_avg_price=market.average_price(result.notional_units, result.filled_lots) or None,
        leaves_qty=market.quantity(result.leaves_lots),
        fee=text(result.fee_units, market.quote_scale),
        status=STATUS_WORD[status],
        reason=REASON_WORD[result.reason],
        post_only=request.post_only,
        self_trade=request.self_trade,
        session=request.session or None,
        created_at=moment,
        submitted_at=moment,
        updated_at=moment,
        filled_at=moment if status is Status.filled else None,
        canceled_at=moment if status is Status.canceled else None,
        expired_at=moment if status is Status.expired else None,
        expires_at=request.expires_at or None,
        replay=True if replay else UNSET,
    )


def _budget(number: wire.Number, market: Market) -> str:
    return text(market.budget_units(number), market.quote_scale)


def account_view(account: AccountRecord, catalogue: Catalogue, *, open_orders: int) -> wire.AccountView:
    balances = []
    for asset, available_units, held_units in sorted(account.balances):
        money = catalogue.money(asset)
        scale = 0 if money is None else money.scale
        balances.append(wire.BalanceView(asset, text(available_units, scale), text(held_units, scale)))
    return wire.AccountView(account.account, "active", balances, open_orders)


def trade_view(trade: TradeRow, market: Market, account: str = "") -> wire.TradeView:
    """With an account, the side that it had; on both sides of one trade it was the taker here."""
    public = wire.TradeView(
        id=str(trade.trade_id),
        symbol=trade.symbol,
        price=market.price(trade.price_ticks),
        qty=market.quantity(trade.quantity_lots),
        taker_side=SIDES[trade.taker_side],
        at=at(trade.at_us),
        index=trade.index,
    )
    if not account:
        return public
    is_taker = trade.taker_account == account
    maker_side = Side.sell if trade.taker_side is Side.buy else Side.buy
    return wire.TradeView(
        id=public.id,
        symbol=public.symbol,
        price=public.price,
        qty=public.qty,
        taker_side=public.taker_side,
        at=public.at,
        index=public.index,
        account=account,
        order_id=str(trade.taker_order_id if is_taker else trade.maker_order_id),
        side=SIDES[trade.taker_side if is_taker else maker_side],
        liquidity="taker" if is_taker else "maker",
        fee=text(trade.taker_fee_units if is_taker else trade.maker_fee_units, market.quote_scale),
    )


def withdrawal_view(record: WithdrawalRecord, catalogue: Catalogue) -> wire.WithdrawalView:
    money = catalogue.money(record.asset)
    amount = text(record.amount_units, 0 if money is None else money.scale)
    return wire.WithdrawalView(
        str(record.withdrawal_id), record.account, record.asset, amount, "pending", at(record.opened_at_us)
    )


def ledger_view(row: LedgerRow, catalogue: Catalogue) -> wire.LedgerView:
    money = catalogue.money(row.asset)
    scale = 0 if money is None else money.scale
    return wire.LedgerView(
        str(row.row),
        row.index,
        row.account,
        row.asset,
        text(row.delta_units, scale),
        text(row.owned_units, scale),
        row.reason.name,
        str(row.reference) if row.reference else "",
        at(row.at_us),
    )


def instrument_view(record: InstrumentRecord, market: Market, *, is_open: bool) -> wire.InstrumentView:
    return wire.InstrumentView(
        symbol=record.symbol,
        base=record.base,
        quote=record.quote,
        tick_size=text(record.tick, record.price_scale),
        lot_size=text(record.lot, record.quantity_scale),
        mode=MODES[record.mode],
        maker_bps=record.maker_bps,
        taker_bps=record.taker_bps,
        limits=_limits(record.limits, market),
        calendar=_calendar(record.calendar),
        reference_price=market.price(record.reference_ticks) if record.reference_ticks else None,
        reference_at=at(record.reference_at_us) if record.reference_at_us else None,
        open=is_open,
    )


def _limits(limits: Limits, market: Market) -> wire.LimitsBody:
    return wire.LimitsBody(
        qty_min=market.quantity(limits.quantity_lots_min),
        qty_max=market.quantity(limits.quantity_lots_max),
        notional_min=text(limits.notional_units_min, market.quote_scale),
        notional_max=text(limits.notional_units_max, market.quote_scale),
        open_orders_max=limits.open_orders_max,
        band_bps=limits.band_bps,
        collar_bps=limits.collar_bps,
        reference_age_ms_max=limits.reference_age_us_max // 1_000,
    )


def _calendar(calendar: Calendar) -> wire.CalendarBody:
    return wire.CalendarBody(
        weekly={
            day: _hours(hours) for day, hours in zip(_WEEKDAYS, calendar.weekly, strict=False) if hours is not None
        },
        utc_offset_minutes=calendar.utc_offset_minutes,
        holidays=[_day(day) for day, hours in calendar.exceptions if hours is None],
        special={_day(day): _hours(hours) for day, hours in calendar.exceptions if hours is not None},
    )


def _hours(hours: SessionHours) -> wire.HoursBody:
    return wire.HoursBody(_clock(hours.open_minute), _clock(hours.close_minute % 1_440))


def _clock(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"


def _day(day: int) -> str:
    return f"{_EPOCH_DAY + timedelta(days=day):%Y-%m-%d}"
