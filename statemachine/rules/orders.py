"""Rules for placing, replacing and canceling one order."""

from statemachine.codes import Code
from statemachine.commands import CancelOrder, PlaceOrder, ReplaceOrder
from statemachine.matching import trim_hold
from statemachine.order import Order
from statemachine.results import AnyResult, Canceled, Placed, Refused, Replaced
from statemachine.rules.entry import (
    collar_ticks,
    enter,
    limit_refusal,
    live_session,
    mode_refusal,
    notional_refusal,
    opened,
    quantity_refusal,
    reference_refusal,
    worst_case_units,
)
from statemachine.state import State, refused
from statemachine.types import (
    AMOUNT_UNITS_MAX,
    Mode,
    OrderType,
    Reason,
    Side,
    Status,
    TimeInForce,
)

BUY = Side.buy
LIMIT = OrderType.limit
GTC = TimeInForce.gtc
IOC = TimeInForce.ioc
FOK = TimeInForce.fok
DAY = TimeInForce.day
GTD = TimeInForce.gtd
TRADING = Mode.trading
HALTED = Mode.halted
CANCELED = Status.canceled
REQUESTED = Reason.requested


def field_refusal(command: PlaceOrder, now_us: int) -> Refused | None:
    """Why the order's own fields do not fit together."""
    time_in_force = command.time_in_force
    if command.type is LIMIT:
        if command.price_ticks == 0:
            return refused(Code.price_required)
        if command.quantity_lots == 0:
            return refused(Code.quantity_required)
        if command.budget_units:
            return refused(Code.budget_not_allowed)
        if command.post_only and time_in_force in (IOC, FOK):
            return refused(Code.post_only_not_allowed)
    else:
        if command.budget_units and (command.side is not BUY or command.quantity_lots):
            return refused(Code.budget_not_allowed)
        if command.quantity_lots == 0 and command.budget_units == 0:
            return refused(Code.quantity_required)
        if time_in_force not in (IOC, FOK) or (time_in_force is FOK and command.budget_units):
            return refused(Code.time_in_force_not_allowed)
        if command.post_only:
            return refused(Code.post_only_not_allowed)
    if time_in_force is GTD:
        if command.expires_at_us == 0:
            return refused(Code.expiry_required)
        if command.expires_at_us <= now_us:
            return refused(Code.expiry_in_past, now_us, command.expires_at_us)
    elif command.expires_at_us:
        return refused(Code.time_in_force_not_allowed)
    return None


def place(state: State, command: PlaceOrder) -> AnyResult:
    """A new order. Refusals come in the order in which clients can fix them."""
    account = state.accounts.get(command.account)
    if account is None or account.is_system:
        found = state.trader(command.account)
        if isinstance(found, Code):
            return refused(found)
        account = found
    instrument = state.instruments.get(command.symbol)
    if instrument is None:
        return refused(Code.instrument_not_found)
    if instrument.mode is not TRADING:
        code = mode_refusal(instrument, command.post_only)
        if code is not None:
            return refused(code)
    now_us = state.now_us
    if instrument.calendar.weekly and not instrument.is_open(now_us):
        return refused(Code.market_closed)
    is_limit = command.type is LIMIT
    time_in_force = command.time_in_force
    price_ticks = command.price_ticks
    quantity_lots = command.quantity_lots
    budget_units = command.budget_units
    # The usual order, told apart quickly; everything else takes the long way.
    if (
        not (is_limit and time_in_force is GTC and price_ticks and quantity_lots)
        or budget_units
        or command.expires_at_us
    ):
        refusal = field_refusal(command, now_us)
        if refusal is not None:
            return refusal
    session = None
    if command.session:
        session = live_session(account, command.session, now_us)
        if session is None:
            return refused(Code.session_not_found)

    side = command.side
    if budget_units == 0:
        refusal = quantity_refusal(instrument, quantity_lots)
        if refusal is not None:
            return refusal
    if not is_limit and price_ticks == 0:
        if instrument.reference_ticks == 0:
            return refused(Code.no_reference)
        price_ticks = collar_ticks(instrument, side)
    notional_units = budget_units or price_ticks * quantity_lots * instrument.notional_unit
    refusal = notional_refusal(instrument, notional_units)
    if refusal is not None:
        return refusal
    if is_limit:
        rests = time_in_force is not IOC and time_in_force is not FOK
        count = len(account.orders_in.get(instrument.symbol, ()))
        refusal = limit_refusal(state, account, instrument, side, price_ticks, rests, command.post_only, count)
    else:
        refusal = reference_refusal(state, instrument)
    if refusal is not None:
        return refusal
    maker_bps = instrument.maker_bps
    taker_bps = instrument.taker_bps
    hold_units = budget_units or worst_case_units(instrument, side, notional_units, quantity_lots, maker_bps, taker_bps)
    balance = account.balances.get(instrument.quote if side is BUY else instrument.base)
    if balance is None or balance.available_units < hold_units:
        return refused(Code.insufficient_funds, hold_units, 0 if balance is None else balance.available_units)

    # ---- every refusal is above this line; nothing below it can fail ----
    order_id = state.next_order_id
    state.next_order_id = order_id + 1
    order = Order(
        order_id,
        account,
        instrument,
        side,
        command.type,
        time_in_force,
        price_ticks,
        quantity_lots,
        budget_units,
        instrument.day_ends_at_us(now_us) if time_in_force is DAY else command.expires_at_us,
        command.post_only,
        command.self_trade,
        session,
        command.session,
        state.key,
        maker_bps,
        taker_bps,
        hold_units,
        state.index,
        now_us,
    )
    status, reason = enter(state, order)
    return Placed(
        order_id,
        status,
        reason,
        order.filled_lots,
        order.leaves_lots,
        order.notional_units,
        order.fee_units,
        now_us,
    )


def replace(state: State, command: ReplaceOrder) -> AnyResult:
    """Change price or quantity of an open limit order; a smaller quantity alone keeps its place."""
    account = state.trader(command.account)
    if isinstance(account, Code):
        return refused(account)
    old = account.open_order(command.order_id, command.order_key)
    if old is None or old.type is not LIMIT:
        return refused(Code.order_not_found)
    instrument = old.instrument
    if command.symbol and command.symbol != instrument.symbol:
        return refused(Code.order_not_found)
    price_ticks = command.price_ticks or old.price_ticks
    quantity_lots = command.quantity_lots or old.quantity_lots
    in_place = price_ticks == old.price_ticks and quantity_lots < old.quantity_lots
    mode = instrument.mode
    if mode is not TRADING and (mode is HALTED or not in_place):
        code = mode_refusal(instrument, old.post_only)
        if code is not None:
            return refused(code)
    now_us = state.now_us
    if not instrument.is_open(now_us):
        return refused(Code.market_closed)
    if quantity_lots <= old.filled_lots:
        return refused(Code.below_filled, old.filled_lots, quantity_lots)
    if price_ticks == old.price_ticks and quantity_lots == old.quantity_lots:
        return refused(Code.nothing_to_replace)
    if in_place:
        return reduce_in_place(state, old, quantity_lots)

    if 0 < old.expires_at_us <= now_us:  # a day order too: its day is over, though its chunk has not come
        return refused(Code.expiry_in_past, now_us, old.expires_at_us)
    if old.session is not None and old.session.deadline_us <= now_us:
        return refused(Code.session_not_found)
    notional_unit = instrument.notional_unit
    refusal = quantity_refusal(instrument, quantity_lots)
    if refusal is None:
        refusal = notional_refusal(instrument, price_ticks * quantity_lots * notional_unit)
    if refusal is not None:
        return refusal
    leaves_lots = quantity_lots - old.filled_lots
    leaves_notional_units = price_ticks * leaves_lots * notional_unit
    if old.notional_units + leaves_notional_units > AMOUNT_UNITS_MAX:  # its total must stay inside 64 bits
        return refused(Code.notional_too_large, AMOUNT_UNITS_MAX, old.notional_units + leaves_notional_units)
    open_before = len(account.orders_in[instrument.symbol]) - 1
    refusal = limit_refusal(state, account, instrument, old.side, price_ticks, True, old.post_only, open_before)
    if refusal is not None:
        return refusal
    hold_units = worst_case_units(
        instrument, old.side, leaves_notional_units, leaves_lots, instrument.maker_bps, instrument.taker_bps
    )
    available_units = state.held_balance(old).available_units + old.hold_units
    if available_units < hold_units:
        return refused(Code.insufficient_funds, hold_units, available_units)

    # ---- every refusal is above this line; nothing below it can fail ----
    order_id = state.next_order_id
    state.next_order_id = order_id + 1
    order = Order(
        order_id,
        account,
        instrument,
        old.side,
        LIMIT,
        old.time_in_force,
        price_ticks,
        quantity_lots,
        0,
        instrument.day_ends_at_us(now_us) if old.time_in_force is DAY else old.expires_at_us,
        old.post_only,
        old.self_trade,
        old.session,
        old.session_id,
        state.key,
        instrument.maker_bps,
        instrument.taker_bps,
        hold_units,
        state.index,
        now_us,
    )
    order.replaces = old.order_id
    order.filled_lots = old.filled_lots
    order.leaves_lots = leaves_lots
    order.notional_units = old.notional_units
    order.fee_units = old.fee_units
    state.close(old, Status.replaced, Reason.replaced, order_id)
    status, reason = enter(state, order)
    return replaced(order, False, status, reason, now_us)


def reduce_in_place(state: State, order: Order, quantity_lots: int) -> Replaced:
    """Take lots off a resting order, which keeps its place, fees and rates and gets a new id.

    In events the old order releases all that it held and the new one holds what it needs.
    """
    old_id = order.order_id
    order_id = state.next_order_id
    state.next_order_id = order_id + 1
    held_units = order.hold_units
    order.hold_units = 0
    state.write_closed(order, Status.replaced, Reason.replaced, order_id, held_units)
    state.unregister(order)

    reduced_lots = order.quantity_lots - quantity_lots
    order.order_id = order_id
    order.replaces = old_id
    order.key = state.key
    order.quantity_lots = quantity_lots
    order.leaves_lots -= reduced_lots
    order.hold_units = held_units
    order.opened_index = state.index
    order.opened_at_us = order.updated_at_us = state.now_us
    if order.level is not None:
        order.level.lots -= reduced_lots
    trim_hold(state, order)
    state.register(order)
    state.mark(order)
    state.events.append(opened(order, True))
    status = Status.partially_filled if order.filled_lots else Status.new
    return replaced(order, True, status, Reason.none, state.now_us)


def replaced(order: Order, kept_priority: bool, status: Status, reason: Reason, now_us: int) -> Replaced:
    return Replaced(
        order.order_id,
        order.replaces,
        kept_priority,
        status,
        reason,
        order.filled_lots,
        order.leaves_lots,
        order.notional_units,
        order.fee_units,
        now_us,
    )


def cancel(state: State, command: CancelOrder) -> AnyResult:
    account = state.accounts.get(command.account)
    if account is None or account.is_system:
        found = state.trader(command.account)
        if isinstance(found, Code):
            return refused(found)
        account = found
    order = account.open_order(command.order_id, command.order_key)
    if order is None:
        return refused(Code.order_not_found)
    if order.instrument.mode is HALTED:
        return refused(Code.instrument_halted)

    # ---- every refusal is above this line ----
    state.close(order, CANCELED, REQUESTED)
    return Canceled(order.order_id, order.filled_lots, order.leaves_lots, state.now_us)
