"""Rules for mass cancels and for cancel-on-disconnect sessions."""

from collections.abc import Iterable
from heapq import heappush, merge
from itertools import islice

from statemachine.accounts import Account, Session
from statemachine.codes import Code
from statemachine.commands import (
    BeatSession,
    CancelAccountOrders,
    CancelInstrumentOrders,
    CloseSession,
    OpenSession,
)
from statemachine.events import SessionChanged
from statemachine.order import Order
from statemachine.records import SweepRecord
from statemachine.results import AnyResult, CanceledMany, SessionOpened
from statemachine.rules.entry import live_session
from statemachine.state import State, refused
from statemachine.types import CHUNK_ORDERS, SESSIONS_OPEN_MAX, Mode, Reason, Status

HALTED = Mode.halted
CANCELED = Status.canceled


def cancel_account_orders(state: State, command: CancelAccountOrders) -> AnyResult:
    account = state.trader(command.account)
    if isinstance(account, Code):
        return refused(account)
    if command.symbol:
        instrument = state.instruments.get(command.symbol)
        if instrument is None:
            return refused(Code.instrument_not_found)
        if instrument.mode is HALTED:
            return refused(Code.instrument_halted)

    # ---- every refusal is above this line ----
    total = sum(
        len(orders)
        for symbol, orders in account.orders_in.items()
        if (not command.symbol or symbol == command.symbol) and state.instruments[symbol].mode is not HALTED
    )
    first = orders_by_id(state, account, command.symbol)
    return start_sweep(state, command.account, command.symbol, "", Reason.mass_cancel, first, total)


def cancel_instrument_orders(state: State, command: CancelInstrumentOrders) -> AnyResult:
    instrument = state.instruments.get(command.symbol)
    if instrument is None:
        return refused(Code.instrument_not_found)
    if instrument.mode is HALTED:
        return refused(Code.instrument_halted)

    # ---- every refusal is above this line ----
    orders = instrument.orders
    return start_sweep(state, "", command.symbol, "", Reason.mass_cancel, orders.values(), len(orders))


def start_sweep(
    state: State, account: str, symbol: str, session: str, reason: Reason, orders: Iterable[Order], total: int
) -> CanceledMany:
    """Cancel the first chunk of these `total` orders now; what is left goes on with each time step.

    Looks at no order that it does not cancel: there may be 100,000 others, and a thousand such commands in a batch.
    """
    chunk = list(islice(orders, CHUNK_ORDERS))
    for order in chunk:
        state.close(order, CANCELED, reason)
    count = len(chunk)
    if count == total:
        return CanceledMany(count, 0)
    # The id is free for the next sweep once this one is done.
    sweep_id = next(reversed(state.sweeps), 0) + 1
    sweep = SweepRecord(sweep_id, account, symbol, session, reason, state.next_order_id - 1)
    for other in state.sweeps.values():
        if (other.account, other.symbol, other.session) == (account, symbol, session):
            sweep = SweepRecord(other.sweep_id, account, symbol, session, reason, sweep.order_id_max)
            break
    state.sweeps[sweep.sweep_id] = sweep
    state.dirty_sweeps[sweep.sweep_id] = None
    return CanceledMany(count, total - count)


def orders_by_id(state: State, account: Account, symbol: str) -> Iterable[Order]:
    """The open orders of an account by ascending id: in one instrument, or in all that are not halted."""
    if symbol:
        return account.orders_in.get(symbol, {}).values()
    books = [
        orders.values() for name, orders in account.orders_in.items() if state.instruments[name].mode is not HALTED
    ]
    return merge(*books, key=lambda order: order.order_id)


def run_sweep(state: State, sweep: SweepRecord, chunk: int) -> int:
    """Cancel up to `chunk` orders of a sweep, by ascending id; returns how many."""
    orders = orders_of(state, sweep, chunk)
    for order in orders:
        state.close(order, CANCELED, sweep.reason)
    return len(orders)


def orders_of(state: State, sweep: SweepRecord, limit: int) -> list[Order]:
    """The first `limit` open orders of a sweep, by ascending id. Looks at none that came after the sweep.

    Orders of halted instruments are passed over, save where a session ended: those die as by expiry.
    """
    orders: Iterable[Order]
    if not sweep.account:
        orders = state.instruments[sweep.symbol].orders.values()
    elif sweep.session:
        orders = state.known_account(sweep.account).orders.values()
    else:
        orders = orders_by_id(state, state.known_account(sweep.account), sweep.symbol)
    found: list[Order] = []
    for order in orders:
        if order.order_id > sweep.order_id_max or len(found) == limit:
            break
        if belongs(order, sweep):
            found.append(order)
    # An order that was reduced in place has a new id since, but its priority says when it came.
    for order in state.reduced.values():
        if len(found) == limit:
            break
        if order.priority <= sweep.order_id_max < order.order_id and belongs(order, sweep):
            found.append(order)
    return found


def belongs(order: Order, sweep: SweepRecord) -> bool:
    if sweep.account and order.account.account != sweep.account:
        return False
    if sweep.session:
        return order.session_id == sweep.session
    return order.instrument.mode is not HALTED and (not sweep.symbol or order.instrument.symbol == sweep.symbol)


def open_session(state: State, command: OpenSession) -> AnyResult:
    account = state.trader(command.account)
    if isinstance(account, Code):
        return refused(account)
    if command.session in account.sessions or is_closing(state, command.account, command.session):
        return refused(Code.session_exists)
    if len(account.sessions) >= SESSIONS_OPEN_MAX:
        return refused(Code.sessions_limit, SESSIONS_OPEN_MAX, len(account.sessions))

    # ---- every refusal is above this line ----
    timeout_us = command.timeout_ms * 1_000
    session = Session(account, command.session, timeout_us, state.now_us + timeout_us)
    account.sessions[command.session] = session
    heappush(state.due_sessions, (session.queued_us, command.account, command.session))
    state.dirty_sessions[command.account, command.session] = None
    state.events.append(SessionChanged(command.account, command.session, True))
    return SessionOpened(session.deadline_us)


def is_closing(state: State, account: str, session: str) -> bool:
    """Are orders of an earlier session of this name still on their way out?"""
    return any(sweep.session == session and sweep.account == account for sweep in state.sweeps.values())


def beat_session(state: State, command: BeatSession) -> AnyResult:
    """Keep a session alive. One whose deadline has passed is over, though its chunk has not come."""
    account = state.trader(command.account)
    if isinstance(account, Code):
        return refused(account)
    session = live_session(account, command.session, state.now_us)
    if session is None:
        return refused(Code.session_not_found)

    # ---- every refusal is above this line ----
    session.deadline_us = state.now_us + session.timeout_us
    state.dirty_sessions[command.account, command.session] = None
    return SessionOpened(session.deadline_us)


def close_session(state: State, command: CloseSession) -> AnyResult:
    account = state.trader(command.account)
    if isinstance(account, Code):
        return refused(account)
    session = account.sessions.get(command.session)
    if session is None:
        return refused(Code.session_not_found)

    # ---- every refusal is above this line ----
    session.end()
    orders = session.orders
    result = start_sweep(
        state, command.account, "", command.session, Reason.session_closed, orders.values(), len(orders)
    )
    remove_session(state, account, session)
    return result


def remove_session(state: State, account: Account, session: Session) -> None:
    del account.sessions[session.session]
    state.session_closed()
    state.dirty_sessions[account.account, session.session] = None
    state.events.append(SessionChanged(account.account, session.session, False))


def expire_session(state: State, session: Session, chunk: int) -> int:
    """Cancel up to `chunk` orders of a session whose deadline has passed; with the last one it ends."""
    orders = list(islice(session.orders.values(), chunk))
    for order in orders:
        state.close(order, CANCELED, Reason.session_expired)
    if not session.orders:
        remove_session(state, session.account, session)
    return len(orders)
