"""What every order that enters must pass, new or replacing another, and how it enters."""

from statemachine.accounts import Account, Session
from statemachine.codes import Code
from statemachine.events import HoldReleased, OrderOpened
from statemachine.fees import hold_for_buy
from statemachine.instrument import Instrument
from statemachine.matching import can_fill, sweep, trim_hold, would_cross
from statemachine.order import Order
from statemachine.results import Refused
from statemachine.state import State, refused
from statemachine.types import BPS, Mode, OrderType, Reason, Side, Status, TimeInForce

BUY = Side.buy
LIMIT = OrderType.limit
IOC = TimeInForce.ioc
FOK = TimeInForce.fok
TRADING = Mode.trading
POST_ONLY = Mode.post_only
HALTED = Mode.halted
NO_REASON = Reason.none
REASON_FILLED = Reason.filled
FILLED = Status.filled
CANCELED = Status.canceled
NEW = Status.new
PARTIALLY_FILLED = Status.partially_filled


def mode_refusal(instrument: Instrument, post_only: bool) -> Code | None:
    """Why the instrument's mode keeps an order out."""
    mode = instrument.mode
    if mode is TRADING or (mode is POST_ONLY and post_only):
        return None
    if mode is POST_ONLY:
        return Code.instrument_post_only
    return Code.instrument_halted if mode is HALTED else Code.instrument_cancel_only


def live_session(account: Account, name: str, now_us: int) -> Session | None:
    """An open session whose deadline has not passed."""
    session = account.sessions.get(name)
    return None if session is None or session.deadline_us <= now_us else session


def quantity_refusal(instrument: Instrument, quantity_lots: int) -> Refused | None:
    limits = instrument.limits
    if quantity_lots < limits.quantity_lots_min:
        return refused(Code.quantity_too_small, limits.quantity_lots_min, quantity_lots)
    if quantity_lots > limits.quantity_lots_max:
        return refused(Code.quantity_too_large, limits.quantity_lots_max, quantity_lots)
    return None


def notional_refusal(instrument: Instrument, notional_units: int) -> Refused | None:
    limits = instrument.limits
    if notional_units < limits.notional_units_min:
        return refused(Code.notional_too_small, limits.notional_units_min, notional_units)
    if notional_units > limits.notional_units_max:
        return refused(Code.notional_too_large, limits.notional_units_max, notional_units)
    return None


def collar_ticks(instrument: Instrument, side: Side) -> int:
    """The worst price of a market order that names none, from the reference price."""
    reference_ticks = instrument.reference_ticks
    collar_bps = instrument.limits.collar_bps
    if side is BUY:
        return reference_ticks * (BPS + collar_bps) // BPS
    return max(1, -(-reference_ticks * (BPS - collar_bps) // BPS))


def reference_refusal(state: State, instrument: Instrument) -> Refused | None:
    """Why no market order may enter now."""
    if instrument.reference_ticks == 0:
        return refused(Code.no_reference)
    if not instrument.reference_is_fresh(state.now_us):
        age_us = state.now_us - instrument.reference_at_us
        return refused(Code.stale_reference, instrument.limits.reference_age_us_max, age_us)
    return None


def limit_refusal(
    state: State,
    account: Account,
    instrument: Instrument,
    side: Side,
    price_ticks: int,
    rests: bool,
    post_only: bool,
    open_before: int,
) -> Refused | None:
    """Band, open-order limit and crossing, for a limit order.

    rests: it may stay in the book. open_before: open orders of the account here that this one does not replace.
    """
    band = instrument.band(state.now_us)
    if band is not None and not band[0] <= price_ticks <= band[1]:
        bound_ticks = band[0] if price_ticks < band[0] else band[1]
        return refused(Code.price_out_of_band, bound_ticks, price_ticks)
    if rests and open_before >= instrument.limits.open_orders_max:
        return refused(Code.open_orders_limit, instrument.limits.open_orders_max, open_before)
    if post_only and would_cross(state, instrument, side, price_ticks):
        return refused(Code.would_cross)
    return None


def worst_case_units(
    instrument: Instrument, side: Side, notional_units: int, quantity_lots: int, maker_bps: int, taker_bps: int
) -> int:
    """What an order must hold: of the quote asset for a buy, of the base asset for a sell."""
    if side is BUY:
        return hold_for_buy(notional_units, maker_bps if maker_bps > taker_bps else taker_bps)
    return quantity_lots * instrument.base_unit


def enter(state: State, order: Order) -> tuple[Status, Reason]:
    """Hold, tell, match, and rest or close. Nothing here can fail: every refusal came before.

    Returns the status in which the order is now and the reason if it left.
    """
    account = order.account
    instrument = order.instrument
    asset = instrument.quote if order.side is BUY else instrument.base
    state.hold(account.balances[asset], order.hold_units)
    state.events.append(opened(order, False))
    if order.time_in_force is FOK and not can_fill(state, order):
        state.end(order, CANCELED, Reason.fok_unfilled)
        return CANCELED, Reason.fok_unfilled

    filled_before_lots = order.filled_lots
    reason = sweep(state, order)
    if reason is NO_REASON:
        if order.type is LIMIT and order.time_in_force is not IOC:
            if order.filled_lots != filled_before_lots:
                released_units = trim_hold(state, order)
                if released_units:
                    state.events.append(
                        HoldReleased(order.order_id, account.account, instrument.symbol, released_units)
                    )
            state.rest(order)
            return PARTIALLY_FILLED if order.filled_lots else NEW, NO_REASON
        reason = Reason.ioc_remainder
        others = instrument.asks if order.side is BUY else instrument.bids
        if order.type is not LIMIT and others.ranks:
            reason = Reason.price_collar
    bought_for_budget = reason is Reason.budget_spent and order.filled_lots > 0
    status = FILLED if reason is REASON_FILLED or bought_for_budget else CANCELED
    state.end(order, status, reason)
    return status, reason


def opened(order: Order, kept_priority: bool) -> OrderOpened:
    return OrderOpened(
        order.order_id,
        order.account.account,
        order.instrument.symbol,
        order.side,
        order.type,
        order.time_in_force,
        order.price_ticks,
        order.quantity_lots,
        order.budget_units,
        order.expires_at_us,
        order.post_only,
        order.self_trade,
        order.session_id,
        order.key,
        order.hold_units,
        order.replaces,
        order.filled_lots,
        kept_priority,
        order.opened_at_us,
    )
