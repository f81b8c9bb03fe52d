"""One fill: shares one way, money the other, fees from both sides, all at the maker's price."""

from statemachine.accounts import Balance
from statemachine.events import Traded
from statemachine.fees import charge
from statemachine.invariants import must
from statemachine.order import Order
from statemachine.records import TradeRow
from statemachine.state import State
from statemachine.types import LedgerReason, Side

BUY = Side.buy
TRADE = LedgerReason.trade
FEE = LedgerReason.fee
ROUNDING = LedgerReason.rounding


def settle(state: State, taker: Order, maker: Order, lots: int, notional_units: int) -> None:
    """Move everything that a fill moves and write it down. The lots were already taken off both orders."""
    instrument = taker.instrument
    now_us = state.now_us
    trade_id = state.next_trade_id
    state.next_trade_id = trade_id + 1
    base_units = lots * instrument.base_unit
    taker_account = taker.account
    maker_account = maker.account

    taker_quote = state.balance(taker_account, instrument.quote)
    taker_base = state.balance(taker_account, instrument.base)
    maker_quote = state.balance(maker_account, instrument.quote)
    maker_base = state.balance(maker_account, instrument.base)
    taker_buys = taker.side is BUY
    if taker_buys:
        state.move(taker_quote, maker_quote, notional_units, True, TRADE, trade_id)
        state.move(maker_base, taker_base, base_units, True, TRADE, trade_id)
        taker.hold_units -= notional_units
        maker.hold_units -= base_units
    else:
        state.move(maker_quote, taker_quote, notional_units, True, TRADE, trade_id)
        state.move(taker_base, maker_base, base_units, True, TRADE, trade_id)
        taker.hold_units -= base_units
        maker.hold_units -= notional_units

    taker_fee_units = maker_fee_units = 0
    if taker.taker_bps:
        taker_fee_units, earned_units = charge(taker.taker_notional_units, notional_units, taker.taker_bps)
        pay_fee(state, taker_quote, taker_fee_units, earned_units, taker_buys, trade_id)
        if taker_buys:
            taker.hold_units -= taker_fee_units
    if maker.maker_bps:
        maker_fee_units, earned_units = charge(maker.maker_notional_units, notional_units, maker.maker_bps)
        pay_fee(state, maker_quote, maker_fee_units, earned_units, not taker_buys, trade_id)
        if not taker_buys:
            maker.hold_units -= maker_fee_units
    if taker.hold_units < 0 or maker.hold_units < 0:
        must(
            False, "a fill spent more than was held", taker.order_id, taker.hold_units, maker.order_id, maker.hold_units
        )

    taker.taker_notional_units += notional_units
    taker.notional_units += notional_units
    taker.filled_lots += lots
    taker.fee_units += taker_fee_units
    maker.maker_notional_units += notional_units
    maker.notional_units += notional_units
    maker.filled_lots += lots
    maker.fee_units += maker_fee_units
    maker.updated_at_us = now_us

    price_ticks = maker.price_ticks
    state.events.append(
        Traded(
            trade_id,
            instrument.symbol,
            price_ticks,
            lots,
            notional_units,
            taker.side,
            taker.order_id,
            taker_account.account,
            taker_fee_units,
            taker.leaves_lots,
            maker.order_id,
            maker_account.account,
            maker_fee_units,
            maker.leaves_lots,
            now_us,
        )
    )
    state.applied.trades.append(
        TradeRow(
            trade_id,
            state.index,
            instrument.symbol,
            price_ticks,
            lots,
            notional_units,
            taker.side,
            taker.order_id,
            taker_account.account,
            taker_fee_units,
            maker.order_id,
            maker_account.account,
            maker_fee_units,
            now_us,
            instrument.last_trade_id,
            taker_account.last_trade_id,
            maker_account.last_trade_id,
        )
    )
    instrument.last_trade_id = trade_id
    instrument.dirty = True
    taker_account.last_trade_id = trade_id
    maker_account.last_trade_id = trade_id


def pay_fee(
    state: State, payer: Balance, charged_units: int, earned_units: int, from_hold: bool, trade_id: int
) -> None:
    """Split what a payer is charged between fees and rounding.

    Where less is charged than was earned, rounding gives back the unit that it took from an earlier fill.
    """
    rounded_units = charged_units - earned_units
    if rounded_units < 0:
        rounding = state.balance(state.rounding, payer.asset)
        state.move(rounding, payer, 1, False, ROUNDING, trade_id)
        if from_hold:
            state.hold(payer, 1)
    if earned_units:
        state.move(payer, state.balance(state.fees, payer.asset), earned_units, from_hold, FEE, trade_id)
    if rounded_units > 0:
        state.move(payer, state.balance(state.rounding, payer.asset), rounded_units, from_hold, ROUNDING, trade_id)
