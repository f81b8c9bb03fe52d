"""Price-time matching: how an order that entered walks the other side of its book."""

from statemachine.events import OrderReduced
from statemachine.fees import hold_for_buy, spendable_notional
from statemachine.instrument import Instrument
from statemachine.order import Order
from statemachine.settlement import settle
from statemachine.state import State
from statemachine.types import STEPS_MAX, Reason, SelfTrade, Side, Status

BUY = Side.buy
FILLED = Status.filled
CANCELED = Status.canceled
NO_REASON = Reason.none
REASON_FILLED = Reason.filled
SELF_TRADE = Reason.self_trade
PRICE_BAND = Reason.price_band
FILL_LIMIT = Reason.fill_limit
BUDGET_SPENT = Reason.budget_spent
CANCEL_NEWEST = SelfTrade.cancel_newest
CANCEL_OLDEST = SelfTrade.cancel_oldest
CANCEL_BOTH = SelfTrade.cancel_both
DECREMENT = SelfTrade.decrement


def sweep(state: State, taker: Order) -> Reason:
    """Trade an order that has just entered against the other side.

    Returns why what remains of it must be canceled, `filled` when nothing remains, or `none` when no
    resting order is within its price any more.
    """
    instrument = taker.instrument
    makers = instrument.asks if taker.side is BUY else instrument.bids
    ranks = makers.ranks
    rank_min = taker.price_ticks * makers.sign
    if not ranks or ranks[-1] < rank_min:
        return NO_REASON

    now_us = state.now_us
    band = instrument.band(now_us)
    notional_unit = instrument.notional_unit
    budget_units = taker.budget_units
    notional_max = spendable_notional(budget_units, taker.taker_bps)
    levels = makers.levels
    steps = 0
    while ranks:
        rank = ranks[-1]
        if rank < rank_min:
            return NO_REASON
        price_ticks = rank * makers.sign
        if band is not None and not band[0] <= price_ticks <= band[1]:
            return PRICE_BAND
        if steps == STEPS_MAX:
            return FILL_LIMIT
        steps += 1
        level = levels[rank]
        maker = level.oldest
        if maker is None:
            raise AssertionError("an empty level in the book")
        if (maker.expires_at_us or maker.session is not None) and maker.is_past(now_us):
            state.expire(maker)
            continue
        if maker.account is taker.account:
            mode = taker.self_trade
            if mode is CANCEL_OLDEST:
                state.close(maker, CANCELED, SELF_TRADE)
                continue
            if mode is CANCEL_BOTH:
                state.close(maker, CANCELED, SELF_TRADE)
                return SELF_TRADE
            if mode is CANCEL_NEWEST or budget_units or decrement(state, taker, maker):
                return SELF_TRADE
            continue

        lots = maker.leaves_lots
        if budget_units:
            lots = min(lots, (notional_max - taker.notional_units) // (price_ticks * notional_unit))
            if lots == 0:
                return BUDGET_SPENT
        elif taker.leaves_lots < lots:
            lots = taker.leaves_lots
        level.lots -= lots
        maker.leaves_lots -= lots
        if not budget_units:
            taker.leaves_lots -= lots
        settle(state, taker, maker, lots, lots * price_ticks * notional_unit)
        if maker.leaves_lots == 0:
            state.close(maker, FILLED, REASON_FILLED)
        else:
            state.mark(maker)
            if budget_units:  # it took all the lots that it could pay
                return BUDGET_SPENT
        if taker.leaves_lots == 0 and not budget_units:
            return REASON_FILLED
    return NO_REASON


def decrement(state: State, taker: Order, maker: Order) -> bool:
    """Take the smaller one's lots off two orders of one account. True when the taker is used up."""
    if maker.leaves_lots > taker.leaves_lots:
        reduce(state, maker, taker.leaves_lots)
        return True
    if maker.leaves_lots < taker.leaves_lots:
        reduce(state, taker, maker.leaves_lots)
        state.close(maker, CANCELED, SELF_TRADE)
        return False
    state.close(maker, CANCELED, SELF_TRADE)
    return True


def reduce(state: State, order: Order, lots: int) -> None:
    """Take lots off an order without trading them, and release what it need not hold any more."""
    order.quantity_lots -= lots
    order.leaves_lots -= lots
    if order.level is not None:
        order.level.lots -= lots
        state.mark(order)
    released_units = trim_hold(state, order)
    order.updated_at_us = state.now_us
    state.events.append(
        OrderReduced(
            order.order_id,
            order.account.account,
            order.instrument.symbol,
            lots,
            order.leaves_lots,
            released_units,
        )
    )


def hold_needed(order: Order) -> int:
    """The worst case of what is left of an order, as if it entered now."""
    instrument = order.instrument
    if order.side is BUY:
        notional_units = order.leaves_lots * order.price_ticks * instrument.notional_unit
        return hold_for_buy(notional_units, max(order.maker_bps, order.taker_bps))
    return order.leaves_lots * instrument.base_unit


def trim_hold(state: State, order: Order) -> int:
    """Release what an order holds beyond its present worst case; returns that many units.

    Its fees so far may have been rounded such that it holds one unit less than the formula gives and
    still enough: then it keeps what it has.
    """
    released_units = order.hold_units - hold_needed(order)
    if released_units <= 0:
        return 0
    state.release(state.held_balance(order), released_units)
    order.hold_units -= released_units
    return released_units


def can_fill(state: State, taker: Order) -> bool:
    """Would a sweep fill this order whole? Walks as the sweep will, and changes nothing."""
    instrument = taker.instrument
    makers = instrument.asks if taker.side is BUY else instrument.bids
    rank_min = taker.price_ticks * makers.sign
    now_us = state.now_us
    band = instrument.band(now_us)
    needed_lots = taker.leaves_lots
    steps = 0
    for rank in reversed(makers.ranks):
        price_ticks = rank * makers.sign
        if rank < rank_min or (band is not None and not band[0] <= price_ticks <= band[1]):
            return False
        maker = makers.levels[rank].oldest
        while maker is not None:
            if steps == STEPS_MAX:
                return False
            steps += 1
            if maker.is_past(now_us):
                maker = maker.newer
                continue
            if maker.account is taker.account:
                if taker.self_trade is not CANCEL_OLDEST:
                    return False
            else:
                needed_lots -= maker.leaves_lots
                if needed_lots <= 0:
                    return True
            maker = maker.newer
    return False


def would_cross(state: State, instrument: Instrument, side: Side, price_ticks: int) -> bool:
    """Is there a live order, anyone's, that an order at this price would trade with?

    Looks past at most STEPS_MAX expired ones: entering will clear those, and no more.
    """
    makers = instrument.asks if side is BUY else instrument.bids
    rank_min = price_ticks * makers.sign
    steps = 0
    for rank in reversed(makers.ranks):
        if rank < rank_min:
            return False
        maker = makers.levels[rank].oldest
        while maker is not None:
            if not maker.is_past(state.now_us):
                return True
            steps += 1
            if steps == STEPS_MAX:
                return False
            maker = maker.newer
    return False
