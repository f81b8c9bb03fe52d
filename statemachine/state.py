"""All hot state, and the few verbs that change it and keep the books balanced.

A rule decides from what it reads here, then changes only through these verbs. A batch that is being
applied writes what it did into `applied`.
"""

from heapq import heapify, heappop, heappush

from statemachine.accounts import Account, Balance, Session
from statemachine.codec import UnknownFormat, oldest_bucket
from statemachine.codes import Code
from statemachine.events import AnyEvent, OrderClosed
from statemachine.instrument import Instrument
from statemachine.invariants import must
from statemachine.order import Order
from statemachine.records import (
    RECORDS_VERSION,
    Applied,
    AssetRecord,
    Backing,
    LedgerRow,
    MetaRecord,
    OrderRecord,
    StoredState,
    SweepRecord,
    WithdrawalRecord,
)
from statemachine.results import Refused
from statemachine.types import (
    FEES,
    ROUNDING,
    RULES_VERSIONS,
    SYSTEM_ACCOUNTS,
    WORLD,
    LedgerReason,
    Reason,
    Side,
    Status,
)

BUY = Side.buy
INT_MAX = 2**63 - 1
DUE_SLACK = 1_024
"""Entries of closed orders or sessions that the queue of their times may carry before it is rebuilt."""


def refused(code: Code, need: int = 0, have: int = 0) -> Refused:
    """A refusal whose two sides fit 64 bits, however large what was asked."""
    return Refused(code, min(need, INT_MAX), max(min(have, INT_MAX), -INT_MAX))


def forget_shared_key(by_key: dict[str, Order], order: Order) -> None:
    """Take an order out of those of its key: the key came again, after its retention, while an order rested."""
    newer, older = by_key[order.key], order.same_key
    if newer is order and older is not None:
        by_key[order.key] = older
        return
    while newer.same_key is not None and newer.same_key is not order:
        newer = newer.same_key
    newer.same_key = older


def empty_state() -> StoredState:
    """Where the first log entry starts."""
    meta = MetaRecord(RECORDS_VERSION, 0, 0, bytes(32), bytes(32), 1, 1, 1, 1, 1, False, [])
    return StoredState(meta, [], [], [], [], [], [])


class State:
    """Hot state. now_us, index and key are those of the command being applied."""

    __slots__ = (
        "accounts",
        "applied",
        "assets",
        "backing",
        "closed_ids",
        "digest",
        "digest_reports",
        "dirty_accounts",
        "dirty_assets",
        "dirty_orders",
        "dirty_sessions",
        "dirty_sweeps",
        "dirty_withdrawals",
        "due_closed",
        "due_orders",
        "due_sessions",
        "due_stale",
        "events",
        "fees",
        "index",
        "instruments",
        "key",
        "ledger_chain",
        "ledger_rows",
        "next_ledger_row",
        "next_order_id",
        "next_trade_id",
        "next_withdrawal_id",
        "now_us",
        "orders",
        "reduced",
        "rounding",
        "rules_version",
        "sweeps",
        "time_us",
        "touched",
        "withdrawals",
        "world",
        "writes_stopped",
    )

    def __init__(self, backing: Backing, stored: StoredState) -> None:
        """Raises UnknownFormat: the state goes by rules that this program does not know."""
        meta = stored.meta
        must(meta.version == RECORDS_VERSION, "records of an unknown version", meta.version)
        if meta.rules_version > RULES_VERSIONS[-1]:
            raise UnknownFormat(f"rules version {meta.rules_version}; this program knows up to {RULES_VERSIONS[-1]}")
        self.backing = backing
        self.index = meta.applied_index
        self.time_us = meta.time_us
        self.now_us = meta.time_us
        self.key = ""
        self.digest = meta.digest
        self.ledger_chain = meta.ledger_chain
        self.next_order_id = meta.next_order_id
        self.next_trade_id = meta.next_trade_id
        self.next_ledger_row = meta.next_ledger_row
        self.next_withdrawal_id = meta.next_withdrawal_id
        self.rules_version = meta.rules_version
        self.writes_stopped = meta.writes_stopped
        self.digest_reports = list(meta.digest_reports)

        self.applied = Applied(0, 0)
        self.events: list[AnyEvent] = self.applied.events
        self.ledger_rows: list[LedgerRow] = self.applied.ledger_rows
        self.touched: list[Balance] = []

        self.dirty_accounts: list[Account] = []
        self.dirty_assets: list[AssetRecord] = []
        self.dirty_orders: list[Order] = []
        self.closed_ids: list[int] = []
        self.dirty_withdrawals: dict[int, WithdrawalRecord | None] = {}
        self.dirty_sessions: dict[tuple[str, str], None] = {}
        self.dirty_sweeps: dict[int, None] = {}

        self.accounts: dict[str, Account] = {}
        self.assets = {record.asset: record for record in stored.assets}
        self.instruments: dict[str, Instrument] = {}
        self.orders: dict[int, Order] = {}
        self.reduced: dict[int, Order] = {}
        """Open orders that were reduced in place: their id is newer than their place."""
        self.withdrawals: dict[int, WithdrawalRecord] = {}
        self.sweeps: dict[int, SweepRecord] = {}
        self.due_orders: list[tuple[int, int]] = []
        """Queue of (expires_at_us, order_id); entries of closed orders are skipped when they come up."""
        self.due_stale = 0
        self.due_sessions: list[tuple[int, str, str]] = []
        """Queue of (queued_us, account, session); the real deadline may be later. Those of closed sessions are
        skipped when they come up."""
        self.due_closed = 0

        for name in SYSTEM_ACCOUNTS:
            record = backing.account(name)
            self.accounts[name] = Account(name, 0) if record is None else Account.restored(record)
        self.world = self.accounts[WORLD]
        self.fees = self.accounts[FEES]
        self.rounding = self.accounts[ROUNDING]
        self._restore(stored)

    def _restore(self, stored: StoredState) -> None:
        for listing in stored.instruments:
            base, quote = self.assets[listing.base], self.assets[listing.quote]
            self.instruments[listing.symbol] = Instrument(listing, base.scale, quote.scale)
        for withdrawal in sorted(stored.withdrawals, key=lambda one: one.withdrawal_id):
            self.withdrawals[withdrawal.withdrawal_id] = withdrawal
            self.known_account(withdrawal.account).withdrawals[withdrawal.withdrawal_id] = withdrawal
        for kept in stored.sessions:
            account = self.known_account(kept.account)
            session = Session(account, kept.session, kept.timeout_ms * 1_000, kept.deadline_us)
            account.sessions[kept.session] = session
            self.due_sessions.append((kept.deadline_us, kept.account, kept.session))
        heapify(self.due_sessions)
        for sweep in sorted(stored.sweeps, key=lambda one: one.sweep_id):
            self.sweeps[sweep.sweep_id] = sweep
        ended: dict[tuple[str, str], Session] = {}
        # By id, so that each dict of orders ends up in the order in which it grew.
        for order_record in sorted(stored.orders, key=lambda one: one.order_id):
            self._restore_order(order_record, ended)
        # Into the books by priority: an order that was reduced in place has a new id and its old place.
        for order in sorted(self.orders.values(), key=lambda one: one.priority):
            instrument = order.instrument
            (instrument.bids if order.side is BUY else instrument.asks).append(order)

    def _restore_order(self, record: OrderRecord, ended: dict[tuple[str, str], Session]) -> None:
        account = self.known_account(record.account)
        instrument = self.instruments[record.symbol]
        session: Session | None = None
        if record.session:
            session = account.sessions.get(record.session)
            if session is None:  # closed on request; a sweep is on its way to this order
                name = (record.account, record.session)
                session = ended.get(name)
                if session is None:
                    session = ended[name] = Session(account, record.session, 0, 0)
                    session.end()
        order = Order(
            record.order_id,
            account,
            instrument,
            record.side,
            record.type,
            record.time_in_force,
            record.price_ticks,
            record.quantity_lots,
            record.budget_units,
            record.expires_at_us,
            record.post_only,
            record.self_trade,
            session,
            record.session,
            record.key,
            record.maker_bps,
            record.taker_bps,
            record.hold_units,
            record.opened_index,
            record.opened_at_us,
        )
        order.updated_at_us = record.updated_at_us
        order.priority = record.priority
        order.filled_lots = record.filled_lots
        order.leaves_lots = record.leaves_lots
        order.notional_units = record.notional_units
        order.maker_notional_units = record.maker_notional_units
        order.taker_notional_units = record.taker_notional_units
        order.fee_units = record.fee_units
        order.replaces = record.replaces
        order.stored = True
        self.register(order)

    # ---- reading ----

    def account(self, name: str) -> Account | None:
        """An account, from memory or the store."""
        account = self.accounts.get(name)
        if account is None:
            record = self.backing.account(name)
            if record is None:
                return None
            account = self.accounts[name] = Account.restored(record)
        return account

    def known_account(self, name: str) -> Account:
        account = self.account(name)
        if account is None:
            must(False, "the state names an account that is not there", name)
            raise AssertionError
        return account

    def trader(self, name: str) -> Account | Code:
        """The account that a command may act on, or why it may not."""
        if name.startswith("@"):
            return Code.account_reserved
        account = self.account(name)
        return Code.account_not_found if account is None else account

    def bucket_min(self) -> int:
        """The oldest bucket of keys that counts at now_us."""
        return oldest_bucket(self.now_us)

    # ---- money ----

    def balance(self, account: Account, asset: str) -> Balance:
        """The balance of an asset, made if it is new."""
        balance = account.balances.get(asset)
        if balance is None:
            balance = account.balances[asset] = Balance(account, asset, 0, 0)
        return balance

    def touch(self, balance: Balance) -> None:
        """To be called before a balance changes: the end of the batch checks it against what it was."""
        balance.touched_index = self.index
        balance.owned_before_units = balance.available_units + balance.held_units
        self.touched.append(balance)
        account = balance.account
        if not account.dirty:
            account.dirty = True
            self.dirty_accounts.append(account)

    def hold(self, balance: Balance, units: int) -> None:
        if balance.touched_index != self.index:
            self.touch(balance)
        balance.available_units -= units
        balance.held_units += units

    def release(self, balance: Balance, units: int) -> None:
        if balance.touched_index != self.index:
            self.touch(balance)
        balance.available_units += units
        balance.held_units -= units

    def move(
        self, source: Balance, target: Balance, units: int, from_hold: bool, reason: LedgerReason, reference: int
    ) -> None:
        """Move owned money: out of the source's hold or what it has available, to what the target has available.

        Writes both sides to the ledger. reference: the trade or withdrawal that this belongs to, or 0.
        """
        index = self.index
        if source.touched_index != index:
            self.touch(source)
        if target.touched_index != index:
            self.touch(target)
        if from_hold:
            source.held_units -= units
        else:
            source.available_units -= units
        target.available_units += units

        row = self.next_ledger_row
        self.next_ledger_row = row + 2
        now_us = self.now_us
        rows = self.ledger_rows
        account = source.account
        owned_units = source.available_units + source.held_units
        rows.append(
            LedgerRow(
                row,
                index,
                account.account,
                source.asset,
                -units,
                owned_units,
                reason,
                reference,
                now_us,
                account.last_ledger_row,
            )
        )
        account.last_ledger_row = row
        row += 1
        account = target.account
        owned_units = target.available_units + target.held_units
        rows.append(
            LedgerRow(
                row,
                index,
                account.account,
                target.asset,
                units,
                owned_units,
                reason,
                reference,
                now_us,
                account.last_ledger_row,
            )
        )
        account.last_ledger_row = row

    # ---- orders ----

    def register(self, order: Order) -> None:
        """Make an order known as open, the book apart."""
        order_id = order.order_id
        account = order.account
        instrument = order.instrument
        symbol = instrument.symbol
        self.orders[order_id] = order
        instrument.orders[order_id] = order
        account.orders[order_id] = order
        by_key = account.orders_by_key
        order.same_key = by_key.get(order.key)
        by_key[order.key] = order
        in_symbol = account.orders_in.get(symbol)
        if in_symbol is None:
            in_symbol = account.orders_in[symbol] = {}
        in_symbol[order_id] = order
        if order.session is not None:
            order.session.orders[order_id] = order
        if order.expires_at_us:
            heappush(self.due_orders, (order.expires_at_us, order_id))
        if order.priority != order_id:
            self.reduced[order_id] = order

    def unregister(self, order: Order) -> None:
        """The reverse of register; the store forgets the order with the next collection."""
        order_id = order.order_id
        account = order.account
        symbol = order.instrument.symbol
        del self.orders[order_id]
        del order.instrument.orders[order_id]
        del account.orders[order_id]
        by_key = account.orders_by_key
        if order.same_key is None and by_key[order.key] is order:
            del by_key[order.key]
        else:
            forget_shared_key(by_key, order)
        in_symbol = account.orders_in[symbol]
        del in_symbol[order_id]
        if not in_symbol:
            del account.orders_in[symbol]
        if order.session is not None:
            del order.session.orders[order_id]
        if order.expires_at_us:
            self.due_stale += 1
            if self.due_stale > DUE_SLACK and self.due_stale * 2 > len(self.due_orders):
                self.rebuild_due_orders()
        if order.priority != order_id:
            del self.reduced[order_id]
        if order.stored:
            self.closed_ids.append(order_id)
            order.stored = False

    def rebuild_due_orders(self) -> None:
        """Drop the entries of closed orders."""
        orders = self.orders
        self.due_orders = [entry for entry in self.due_orders if entry[1] in orders]
        heapify(self.due_orders)
        self.due_stale = 0

    def mark(self, order: Order) -> None:
        """A resting order changed."""
        if not order.dirty:
            order.dirty = True
            self.dirty_orders.append(order)

    def rest(self, order: Order) -> None:
        """Put an order into its book, behind all others of its price."""
        instrument = order.instrument
        (instrument.bids if order.side is BUY else instrument.asks).append(order)
        self.register(order)
        self.mark(order)

    def held_balance(self, order: Order) -> Balance:
        """The balance that an order's hold is part of."""
        instrument = order.instrument
        return order.account.balances[instrument.quote if order.side is BUY else instrument.base]

    def close(self, order: Order, status: Status, reason: Reason, replaced_by: int = 0) -> None:
        """End an order, resting or not: out of the book, its hold released, its record into history."""
        level = order.level
        if level is not None:
            instrument = order.instrument
            (instrument.bids if order.side is BUY else instrument.asks).remove(order, level)
            self.unregister(order)
        self.end(order, status, reason, replaced_by)

    def end(self, order: Order, status: Status, reason: Reason, replaced_by: int = 0) -> None:
        """Release the hold of an order that is in no book any more, and write its end down."""
        held_units = order.hold_units
        if held_units:
            self.release(self.held_balance(order), held_units)
            order.hold_units = 0
        self.write_closed(order, status, reason, replaced_by, held_units)

    def write_closed(self, order: Order, status: Status, reason: Reason, replaced_by: int, released_units: int) -> None:
        """Tell the end of an order, and put its record into the account's chain of closed orders."""
        account = order.account
        now_us = self.now_us
        order.updated_at_us = now_us
        self.events.append(
            OrderClosed(
                order.order_id,
                account.account,
                order.instrument.symbol,
                status,
                reason,
                order.filled_lots,
                order.leaves_lots,
                order.notional_units,
                order.fee_units,
                released_units,
                replaced_by,
                now_us,
            )
        )
        self.applied.closed_orders.append(order.record(status, reason, replaced_by, account.last_closed_order_id))
        account.last_closed_order_id = order.order_id
        if not account.dirty:
            account.dirty = True
            self.dirty_accounts.append(account)

    def expire(self, order: Order) -> None:
        """Close an order that is past its own time or its session's."""
        if 0 < order.expires_at_us <= self.now_us:
            self.close(order, Status.expired, order.expiry_reason())
        elif order.session is not None:
            self.close(order, Status.canceled, order.session.reason)

    # ---- what is due ----

    def next_expiry_us(self) -> int | None:
        """When the next open order expires."""
        due = self.due_orders
        orders = self.orders
        while due and due[0][1] not in orders:
            heappop(due)
            self.due_stale -= 1
        return due[0][0] if due else None

    def session_closed(self) -> None:
        """The queue of deadlines has one more entry of a closed session; drop them all once they are most of it."""
        self.due_closed += 1
        if self.due_closed > DUE_SLACK and self.due_closed * 2 > len(self.due_sessions):
            self.due_sessions = [entry for entry in self.due_sessions if self._queued(entry) is not None]
            heapify(self.due_sessions)
            self.due_closed = 0

    def _queued(self, entry: tuple[int, str, str]) -> Session | None:
        """The open session that an entry of the queue of deadlines stands for."""
        queued_us, name, session_id = entry
        account = self.accounts.get(name)
        session = None if account is None else account.sessions.get(session_id)
        return session if session is not None and session.queued_us == queued_us else None

    def next_session(self) -> Session | None:
        """The open session with the earliest deadline."""
        due = self.due_sessions
        while due:
            session = self._queued(due[0])
            if session is None:
                heappop(due)
                self.due_closed -= 1
            elif session.deadline_us != session.queued_us:  # it had a beat since
                _, name, session_id = heappop(due)
                session.queued_us = session.deadline_us
                heappush(due, (session.deadline_us, name, session_id))
            else:
                return session
        return None
