"""Rules for what members send themselves: time steps and digests."""

from collections import Counter

from statemachine.commands import ReportDigest, TimeStep
from statemachine.events import DigestDisagreed
from statemachine.results import AnyResult, Done, Stepped
from statemachine.rules.sessions import expire_session, orders_of, run_sweep
from statemachine.state import State
from statemachine.types import CHUNK_ORDERS, CHUNK_SESSIONS, DIGEST_REPORTS_MAX


def due_at_us(state: State) -> int | None:
    """The earliest time at which a time step has work: 0 for now, None for never as things stand."""
    if state.sweeps:
        return 0
    order_due_us = state.next_expiry_us()
    session = state.next_session()
    if session is None:
        return order_due_us
    return session.deadline_us if order_due_us is None else min(order_due_us, session.deadline_us)


def time_step(state: State, command: TimeStep) -> AnyResult:
    """One chunk: sessions past their deadline first, then orders past their time, then mass cancels."""
    now_us = state.now_us
    chunk = CHUNK_ORDERS
    count = 0
    for _ in range(CHUNK_SESSIONS):
        session = state.next_session()
        if chunk <= 0 or session is None or session.deadline_us > now_us:
            break
        closed = expire_session(state, session, chunk)
        count += closed
        chunk -= closed
    while chunk > 0:
        due_us = state.next_expiry_us()
        if due_us is None or due_us > now_us:
            break
        state.expire(state.orders[state.due_orders[0][1]])
        count += 1
        chunk -= 1
    for sweep in list(state.sweeps.values()):
        if chunk <= 0:
            break
        closed = run_sweep(state, sweep, chunk)
        count += closed
        chunk -= closed
        if not orders_of(state, sweep, 1):
            del state.sweeps[sweep.sweep_id]
            state.dirty_sweeps[sweep.sweep_id] = None
    due_us = due_at_us(state)
    return Stepped(count, due_us is not None and due_us <= now_us)


def report_digest(state: State, command: ReportDigest) -> AnyResult:
    """Compare what replicas computed, as soon as a majority of all replicas agrees or none can any more.

    Until then a difference waits for the other reports. Without a majority nobody may write any more.
    """
    report = (command.digest_index, command.member, command.digest)
    if report in state.digest_reports:
        return Done()
    kept = [one for one in state.digest_reports if one[:2] != report[:2]]
    kept.append(report)
    indexes = sorted({index for index, _, _ in kept})
    index_min = indexes[-DIGEST_REPORTS_MAX:][0]
    state.digest_reports = sorted(one for one in kept if one[0] >= index_min)

    digests = {member: digest for index, member, digest in kept if index == command.digest_index}
    ((digest, count), *others) = Counter(digests.values()).most_common()
    replicas = max(command.replicas, len(digests))
    if others and count * 2 > replicas:
        outvoted = sorted(member for member, told in digests.items() if told != digest)
        state.events.append(DigestDisagreed(command.digest_index, tuple(outvoted)))
    elif others and (count + replicas - len(digests)) * 2 <= replicas:
        state.writes_stopped = True
        state.events.append(DigestDisagreed(command.digest_index, tuple(sorted(digests))))
    return Done()
