"""Audits a whole state at rest: what must hold between its records, whoever wrote them.

Written against the records alone, and none of the rules that made them: it shares only the arithmetic
of units and holds.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from statemachine.fees import hold_for_buy
from statemachine.instrument import unit_sizes
from statemachine.records import AccountRecord, InstrumentRecord, LedgerRow, OrderRecord, StoredState
from statemachine.types import WORLD, OrderType, Reason, Side, Status, TimeInForce

Units = dict[str, tuple[int, int]]
"""(notional_unit, base_unit) by symbol."""


class _Seen:
    """What the pass over the accounts keeps for the pass over the ledger."""

    def __init__(self) -> None:
        self.owned_units: dict[tuple[str, str], int] = {}
        self.last_rows: dict[str, int] = {}


def audit(
    state: StoredState, accounts: Iterable[AccountRecord], ledger: Iterable[LedgerRow] | None = None
) -> list[str]:
    """Findings, one sentence each; an empty list says that all holds.

    accounts: every account, in any order; read once, one at a time.
    ledger: rows by ascending row number, from the first or from where retention begins; None leaves the
        comparison with the ledger out.
    """
    findings = list(_identities(state))
    units = _unit_sizes(state)
    for order in state.orders:
        findings.extend(_order(units, order))
    findings.extend(_books(state))
    seen = _Seen()
    findings.extend(_balances(state, accounts, seen))
    if ledger is not None:
        findings.extend(_ledger(state, seen, ledger))
    return findings


def _identities(state: StoredState) -> Iterator[str]:
    """Names and numbers are used once, and nothing is numbered past the counters."""
    meta = state.meta
    numbers: dict[str, list[Any]] = {
        "asset": [one.asset for one in state.assets],
        "instrument": [one.symbol for one in state.instruments],
        "order": [one.order_id for one in state.orders],
        "priority of": [(one.symbol, one.priority) for one in state.orders],
        "withdrawal": [one.withdrawal_id for one in state.withdrawals],
        "session": [(one.account, one.session) for one in state.sessions],
        "sweep": [one.sweep_id for one in state.sweeps],
    }
    for kind, names in numbers.items():
        yield from (f"{kind} {name} is there {count} times" for name, count in Counter(names).items() if count > 1)
    for order in state.orders:
        if order.order_id >= meta.next_order_id or order.priority > order.order_id:
            yield f"order {order.order_id}, priority {order.priority}: the next id is {meta.next_order_id}"
    for withdrawal in state.withdrawals:
        if withdrawal.withdrawal_id >= meta.next_withdrawal_id:
            yield f"withdrawal {withdrawal.withdrawal_id}: the next id is {meta.next_withdrawal_id}"
    assets = {one.asset for one in state.assets}
    for instrument in state.instruments:
        if not {instrument.base, instrument.quote} <= assets:
            yield f"instrument {instrument.symbol}: {instrument.base} or {instrument.quote} is not known"
        if instrument.last_trade_id >= meta.next_trade_id:
            yield f"instrument {instrument.symbol}: last trade {instrument.last_trade_id} is not made yet"


def _order(units: Units, order: OrderRecord) -> Iterator[str]:
    """An open order rests, and its numbers agree with each other and with its hold."""
    name = f"order {order.order_id}"
    if order.type is not OrderType.limit or order.time_in_force in (TimeInForce.ioc, TimeInForce.fok):
        yield f"{name} rests as {order.type.name} {order.time_in_force.name}"
    expected = Status.partially_filled if order.filled_lots else Status.new
    if order.status is not expected or order.reason is not Reason.none:
        yield f"{name} is open as {order.status.name}, {order.reason.name}"
    if order.leaves_lots <= 0 or order.filled_lots < 0 or order.price_ticks <= 0:
        yield f"{name}: leaves {order.leaves_lots}, filled {order.filled_lots}, price {order.price_ticks}"
    if order.quantity_lots != order.filled_lots + order.leaves_lots:
        yield f"{name}: quantity {order.quantity_lots} is not {order.filled_lots} filled + {order.leaves_lots} leaves"
    if order.symbol not in units:
        yield f"{name}: instrument {order.symbol} is not there"
        return
    notional_unit, base_unit = units[order.symbol]
    if order.side is Side.sell:
        if order.hold_units != order.leaves_lots * base_unit:
            yield f"{name} holds {order.hold_units}, not the {order.leaves_lots * base_unit} it sells"
        return
    # From here on it only trades as maker; its hold may be above that, since it was made for the higher rate.
    notional_units = order.leaves_lots * order.price_ticks * notional_unit
    before = order.maker_notional_units * order.maker_bps
    fee_units = -(-(before + notional_units * order.maker_bps) // 10_000) + -before // 10_000
    most_units = hold_for_buy(notional_units, max(order.maker_bps, order.taker_bps))
    filled_as_maker_units = -(-order.maker_notional_units * max(order.maker_bps, order.taker_bps) // 10_000)
    if not notional_units + fee_units <= order.hold_units <= most_units + filled_as_maker_units:
        yield f"{name} holds {order.hold_units}; it needs {notional_units + fee_units}, at most {most_units}"


def _unit_sizes(state: StoredState) -> Units:
    scales = {one.asset: one.scale for one in state.assets}
    return {
        one.symbol: unit_sizes(one, scales[one.base], scales[one.quote])
        for one in state.instruments
        if one.base in scales and one.quote in scales
    }


def _books(state: StoredState) -> Iterator[str]:
    """The best bid is below the best ask."""
    best_bid: dict[str, int] = {}
    best_ask: dict[str, int] = {}
    for order in state.orders:
        symbol, price_ticks = order.symbol, order.price_ticks
        if order.side is Side.buy:
            best_bid[symbol] = max(best_bid.get(symbol, price_ticks), price_ticks)
        else:
            best_ask[symbol] = min(best_ask.get(symbol, price_ticks), price_ticks)
    for symbol, bid_ticks in best_bid.items():
        if symbol in best_ask and bid_ticks >= best_ask[symbol]:
            yield f"the book of {symbol} is crossed: bid {bid_ticks}, ask {best_ask[symbol]}"


def _balances(state: StoredState, accounts: Iterable[AccountRecord], seen: _Seen) -> Iterator[str]:
    """Sums per asset are zero, holds are those of open orders and pending withdrawals, only the world owes."""
    symbols = {one.symbol: one for one in state.instruments}
    held_units = _holds(state, symbols)
    sums: Counter[str] = Counter()
    assets = {one.asset: one for one in state.assets}
    for account in accounts:
        name = account.account
        if name in seen.last_rows:
            yield f"account {name} is there twice"
        seen.last_rows[name] = account.last_ledger_row
        if account.last_ledger_row >= state.meta.next_ledger_row:
            yield f"account {name}: last ledger row {account.last_ledger_row} is not written yet"
        for asset, available, held in account.balances:
            seen.owned_units[name, asset] = available + held
            sums[asset] += available + held
            if asset not in assets:
                yield f"account {name} owns {asset}, which is not known"
            elif name == WORLD and -available > assets[asset].supply_units_max:
                yield f"{-available} of {asset} exist; at most {assets[asset].supply_units_max} may"
            if held < 0 or (available < 0 and name != WORLD):
                yield f"account {name} has {available} of {asset} available and {held} held"
            expected = held_units.pop((name, asset), 0)
            if held != expected:
                yield f"account {name} holds {held} of {asset}; its orders and withdrawals hold {expected}"
    for (name, asset), expected in held_units.items():
        if expected:
            yield f"account {name} has no balance of {asset}, of which its orders and withdrawals hold {expected}"
    for asset, units in sums.items():
        if units:
            yield f"all of {asset} sums to {units}, not 0"
    names = {one.account for one in state.orders}
    names.update(one.account for one in state.withdrawals)
    names.update(one.account for one in state.sessions)
    for name in sorted(names - seen.last_rows.keys()):
        yield f"account {name} has something open and is not there"


def _holds(state: StoredState, symbols: dict[str, InstrumentRecord]) -> dict[tuple[str, str], int]:
    """What should be held by (account, asset)."""
    held_units: Counter[tuple[str, str]] = Counter()
    for order in state.orders:
        if order.symbol in symbols:
            instrument = symbols[order.symbol]
            asset = instrument.quote if order.side is Side.buy else instrument.base
            held_units[order.account, asset] += order.hold_units
    for withdrawal in state.withdrawals:
        held_units[withdrawal.account, withdrawal.asset] += withdrawal.amount_units
    return dict(held_units)


def _ledger(state: StoredState, seen: _Seen, ledger: Iterable[LedgerRow]) -> Iterator[str]:
    """Rows come in pairs that cancel out, each continues its account's last, and they end in the balances."""
    owned_units: dict[tuple[str, str], int] = {}
    last_rows: dict[str, int] = {}
    whole = False
    expected_row = 0
    source: LedgerRow | None = None
    for row in ledger:
        if expected_row == 0:
            whole = row.row == 1
        elif row.row != expected_row:
            yield f"ledger row {row.row} follows row {expected_row - 1}"
        expected_row = row.row + 1
        # A movement is an odd row and the even one after it.
        if row.row % 2:
            source = row
        elif source is not None and (source.asset, source.delta_units) != (row.asset, -row.delta_units):
            yield f"ledger rows {source.row} and {row.row} do not cancel out"
        if row.account in last_rows or whole:
            previous = last_rows.get(row.account, 0)
            if row.previous != previous:
                yield f"ledger row {row.row} of {row.account} continues row {row.previous}, not {previous}"
        last_rows[row.account] = row.row
        position = (row.account, row.asset)
        if (position in owned_units or whole) and row.owned_units != owned_units.get(position, 0) + row.delta_units:
            before = owned_units.get(position, 0)
            yield f"ledger row {row.row}: {before} {row.asset} and {row.delta_units} do not make {row.owned_units}"
        owned_units[position] = row.owned_units
    if expected_row and expected_row != state.meta.next_ledger_row:
        yield f"the ledger ends with row {expected_row - 1}; the state says {state.meta.next_ledger_row - 1}"
    for name, last_row in last_rows.items():
        if seen.last_rows.get(name) != last_row:
            yield f"account {name}: last ledger row {seen.last_rows.get(name)}, in the ledger {last_row}"
    for position in sorted(owned_units.keys() | seen.owned_units.keys()) if whole else sorted(owned_units):
        owned, written = seen.owned_units.get(position, 0), owned_units.get(position, 0)
        if owned != written:
            yield f"account {position[0]} owns {owned} of {position[1]}, in the ledger {written}"
