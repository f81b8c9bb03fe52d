"""The machine: one committed batch in, its answers, events and history out, the same on every replica."""

from collections.abc import Callable
from hashlib import blake2b
from itertools import islice
from typing import Any, cast

from statemachine import codec, commands
from statemachine.accounts import Account
from statemachine.codec import Envelope, decode_batch, decode_command, encode
from statemachine.codes import Code
from statemachine.invariants import must
from statemachine.records import (
    ACCOUNTS,
    ASSETS,
    INSTRUMENTS,
    ORDERS,
    RECORDS_VERSION,
    SESSIONS,
    SWEEPS,
    WITHDRAWALS,
    AccountRecord,
    Applied,
    AssetRecord,
    Backing,
    Changes,
    InstrumentRecord,
    KeyRecord,
    MetaRecord,
    OrderRecord,
    SessionRecord,
    StoredState,
    WithdrawalRecord,
    encode_record,
    id_key,
)
from statemachine.results import AnyResult, Refused, Repeat
from statemachine.rules import listing, money, orders, sessions, time
from statemachine.state import State, empty_state, refused
from statemachine.types import (
    CANCEL_KEYS_MIN,
    CANCEL_KEYS_SHARE,
    KEY_BUCKET_US,
    KEY_RETENTION_US,
    SENT_AHEAD_US_MAX,
)

DIGESTS_KEPT = 4_096
ACCOUNTS_CACHED = 100_000
"""Accounts kept in memory when nothing of them is open."""

CANCELS = (commands.CancelOrder, commands.CancelAccountOrders, commands.CloseSession)
"""What an account may still say when all its keys are in use: whoever can't cancel can't get out of a market."""

Rule = Callable[[State, Any], AnyResult]

RULES: dict[type, Rule] = {
    commands.AddAsset: listing.add_asset,
    commands.AddInstrument: listing.add_instrument,
    commands.SetMode: listing.set_mode,
    commands.SetFees: listing.set_fees,
    commands.SetLimits: listing.set_limits,
    commands.SetCalendar: listing.set_calendar,
    commands.SetReference: listing.set_reference,
    commands.ActivateRules: listing.activate_rules,
    commands.OpenAccount: money.open_account,
    commands.Deposit: money.deposit,
    commands.Transfer: money.transfer,
    commands.RequestWithdrawal: money.request_withdrawal,
    commands.PostWithdrawal: money.post_withdrawal,
    commands.VoidWithdrawal: money.void_withdrawal,
    commands.PlaceOrder: orders.place,
    commands.ReplaceOrder: orders.replace,
    commands.CancelOrder: orders.cancel,
    commands.CancelAccountOrders: sessions.cancel_account_orders,
    commands.CancelInstrumentOrders: sessions.cancel_instrument_orders,
    commands.OpenSession: sessions.open_session,
    commands.BeatSession: sessions.beat_session,
    commands.CloseSession: sessions.close_session,
    commands.TimeStep: time.time_step,
    commands.ReportDigest: time.report_digest,
}


class Machine:
    """The replicated state machine. Not thread-safe; nothing here waits, and only `backing` reads from outside.

    Every Applied must reach `backing` before the next apply, and every Changes before the next account
    or key is asked for: the backing answers for all that this machine has handed out.
    """

    def __init__(
        self, backing: Backing, state: StoredState | None = None, *, accounts_cached: int = ACCOUNTS_CACHED
    ) -> None:
        self._state = State(backing, empty_state() if state is None else state)
        self._backing = backing
        self._accounts_cached = accounts_cached
        self._digests: list[tuple[int, bytes]] = [(-1, b"")] * DIGESTS_KEPT
        self._digests[self._state.index % DIGESTS_KEPT] = (self._state.index, self._state.digest)

    def apply(self, index: int, payload: bytes) -> Applied:
        """Apply one committed entry. Its time is the batch's stamp, forced to be after the last one.

        Raises:
            UnknownFormat: not a batch that this program knows. Nothing changed; the node must stop.
            InvariantBroken: a bug. The state is not to be used any more; the node must stop.
        """
        batch = decode_batch(payload)
        bodies = [decode_command(envelope.body) for envelope in batch.commands]
        state = self._state
        if index <= state.index:
            must(False, "an entry out of order", index, state.index)
        now_us = max(state.time_us + 1, batch.stamp_us)
        applied = Applied(index, now_us)
        state.index = index
        state.now_us = state.time_us = now_us
        state.applied = applied
        state.events = applied.events
        state.ledger_rows = applied.ledger_rows
        state.touched = []

        self._run(applied, batch.commands, bodies)
        self._check_conserved()
        applied.results_bytes = encode(applied.results)
        applied.events_bytes = encode(applied.events)
        if applied.ledger_rows:
            applied.ledger_bytes = encode(applied.ledger_rows)
            state.ledger_chain = blake2b(state.ledger_chain + applied.ledger_bytes, digest_size=32).digest()
        digest = blake2b(
            b"".join(
                (
                    state.digest,
                    index.to_bytes(8, "big"),
                    applied.results_bytes,
                    applied.events_bytes,
                    state.ledger_chain,
                )
            ),
            digest_size=32,
        ).digest()
        state.digest = applied.digest = digest
        self._digests[index % DIGESTS_KEPT] = (index, digest)
        return applied

    def _run(self, applied: Applied, envelopes: list[Envelope], bodies: list[commands.AnyCommand]) -> None:
        """Answer each command of a batch: from its key if that is known, else by its rule."""
        state = self._state
        now_us = state.now_us
        index = state.index
        find_key = self._backing.key
        results = applied.results
        new_keys: dict[bytes, KeyRecord] = {}
        bucket = now_us // KEY_BUCKET_US
        bucket_min = state.bucket_min()
        sent_min_us = now_us - KEY_RETENTION_US
        sent_max_us = now_us + SENT_AHEAD_US_MAX
        accounts = state.accounts
        for ordinal, envelope in enumerate(envelopes):
            body = bodies[ordinal]
            scope = envelope.scope
            key = envelope.key
            applied.scopes_and_keys.append((scope, key))
            if not key or state.writes_stopped:
                state.key = ""
                if isinstance(body, commands.INTERNAL):
                    results.append(RULES[type(body)](state, body))
                else:
                    results.append(Refused(Code.writes_stopped if state.writes_stopped else Code.key_required))
                continue
            sent_at_us = envelope.sent_at_us
            if sent_at_us and not sent_min_us <= sent_at_us <= sent_max_us:
                if sent_at_us < sent_min_us:
                    results.append(refused(Code.key_too_old, sent_min_us, sent_at_us))
                else:
                    results.append(refused(Code.sent_in_future, sent_max_us, sent_at_us))
                continue
            key_digest = codec.key_digest(scope, key)
            fingerprint = codec.fingerprint(envelope.body, sent_at_us)
            known = new_keys.get(key_digest) or find_key(key_digest, bucket_min)
            if known is not None:
                if known.fingerprint == fingerprint:
                    results.append(Repeat(known.index, known.ordinal))
                else:
                    results.append(Refused(Code.key_reused))
                continue
            account: Account | None = None
            if not scope.startswith("@"):
                account = accounts.get(scope) or state.account(scope)
            if account is not None:
                if account.keys and account.keys[0][0] < bucket_min:
                    account.forget_keys(bucket_min)
                if account.keys_live >= account.keys_max:
                    keys_max = account.keys_max
                    if isinstance(body, CANCELS):
                        keys_max += max(CANCEL_KEYS_MIN, keys_max // CANCEL_KEYS_SHARE)
                    if account.keys_live >= keys_max:
                        results.append(refused(Code.key_quota_exceeded, keys_max, account.keys_live))
                        continue
                account.count_key(bucket)
                if not account.dirty:
                    account.dirty = True
                    state.dirty_accounts.append(account)
            state.key = key
            results.append(RULES[type(body)](state, body))
            record = KeyRecord(fingerprint, index, ordinal)
            new_keys[key_digest] = record
            applied.keys.append((bucket, key_digest, record))

    def _check_conserved(self) -> None:
        """Every movement has two sides: per asset, what the touched balances own sums to the same as before."""
        change_units: dict[str, int] = {}
        for balance in self._state.touched:
            available_units = balance.available_units
            held_units = balance.held_units
            asset = balance.asset
            change_units[asset] = change_units.get(asset, 0) + available_units + held_units - balance.owned_before_units
            if held_units < 0 or (available_units < 0 and not balance.account.is_world):
                must(False, "overdrawn", balance.account.account, asset, available_units, held_units)
        for asset, units in change_units.items():
            if units:
                must(False, "money appeared or vanished", asset, units)

    def collect(self) -> Changes:
        """The records that changed since the last call, as of applied_index. Nothing is dirty afterwards."""
        state = self._state
        changes = Changes(self._meta())
        puts = changes.puts
        deletes = changes.deletes
        bucket_min = state.bucket_min()
        changes.drop_buckets_before = bucket_min
        for asset in state.dirty_assets:
            puts.append((ASSETS, asset.asset.encode(), encode_record(asset)))
        for instrument in state.instruments.values():
            if instrument.dirty:
                instrument.dirty = False
                puts.append((INSTRUMENTS, instrument.symbol.encode(), encode_record(instrument.record())))
        for account in state.dirty_accounts:
            account.dirty = False
            puts.append((ACCOUNTS, account.account.encode(), encode_record(account.record(bucket_min))))
        deletes.extend([(ORDERS, id_key(order_id)) for order_id in state.closed_ids])
        for order in state.dirty_orders:
            order.dirty = False
            if order.level is not None:
                order.stored = True
                puts.append((ORDERS, id_key(order.order_id), encode_record(order.open_record())))
        for withdrawal_id, withdrawal in state.dirty_withdrawals.items():
            id_bytes = id_key(withdrawal_id)
            if withdrawal is None:
                deletes.append((WITHDRAWALS, id_bytes))
            else:
                puts.append((WITHDRAWALS, id_bytes, encode_record(withdrawal)))
        for name, session_id in state.dirty_sessions:
            session = state.known_account(name).sessions.get(session_id)
            session_key = f"{name}\0{session_id}".encode()
            if session is None:
                deletes.append((SESSIONS, session_key))
            else:
                puts.append((SESSIONS, session_key, encode_record(session.record())))
        for sweep_id in state.dirty_sweeps:
            sweep = state.sweeps.get(sweep_id)
            id_bytes = id_key(sweep_id)
            if sweep is None:
                deletes.append((SWEEPS, id_bytes))
            else:
                puts.append((SWEEPS, id_bytes, encode_record(sweep)))
        state.dirty_assets = []
        state.dirty_accounts = []
        state.closed_ids = []
        state.dirty_orders = []
        state.dirty_withdrawals = {}
        state.dirty_sessions = {}
        state.dirty_sweeps = {}
        self.forget_accounts()
        return changes

    def _meta(self) -> MetaRecord:
        state = self._state
        return MetaRecord(
            RECORDS_VERSION,
            state.index,
            state.time_us,
            state.digest,
            state.ledger_chain,
            state.next_order_id,
            state.next_trade_id,
            state.next_ledger_row,
            state.next_withdrawal_id,
            state.rules_version,
            state.writes_stopped,
            list(state.digest_reports),
        )

    def forget_accounts(self) -> None:
        """Forget accounts that the store has and nothing points at, those first that were looked at longest ago.

        Each collection does that; while nothing is collected, reads alone fill the memory. Looks at a bounded
        number; what must stay goes to the end, so that the next call looks at others.
        """
        accounts = self._state.accounts
        excess = len(accounts) - self._accounts_cached
        if excess <= 0:
            return
        for name in list(islice(accounts, 2 * excess + 1_000)):
            account = accounts.pop(name)
            if excess <= 0 or account.is_pinned():
                accounts[name] = account
            else:
                excess -= 1

    # ---- reading, between batches ----

    @property
    def cached_accounts(self) -> int:
        """Accounts in memory."""
        return len(self._state.accounts)

    @property
    def applied_index(self) -> int:
        return self._state.index

    @property
    def time_us(self) -> int:
        """The time of the last batch; replicated time stands still between batches."""
        return self._state.time_us

    @property
    def digest(self) -> bytes:
        return self._state.digest

    @property
    def writes_stopped(self) -> bool:
        return self._state.writes_stopped

    def digest_at(self, index: int) -> bytes | None:
        """The digest after an entry; None when it is not among the last DIGESTS_KEPT or was not ours."""
        kept, digest = self._digests[index % DIGESTS_KEPT]
        return digest if kept == index else None

    def digests_told(self, index: int) -> dict[str, bytes]:
        """The digests after an entry that members reported, as far as they are kept, by member."""
        return {member: digest for at, member, digest in self._state.digest_reports if at == index}

    def due_at_us(self) -> int | None:
        """The earliest replicated time at which a TimeStep has work: 0 for now, None while nothing can be due."""
        return time.due_at_us(self._state)

    def asset(self, name: str) -> AssetRecord | None:
        return self._state.assets.get(name)

    def assets(self) -> list[AssetRecord]:
        """All of them, by name."""
        return [record for _, record in sorted(self._state.assets.items())]

    def instrument(self, symbol: str) -> InstrumentRecord | None:
        instrument = self._state.instruments.get(symbol)
        return None if instrument is None else instrument.record()

    def instruments(self) -> list[InstrumentRecord]:
        """All of them, by symbol."""
        return [one.record() for _, one in sorted(self._state.instruments.items())]

    def account(self, account_id: str) -> AccountRecord | None:
        """The account as it is now, whether the store has it already or not."""
        account = self._state.account(account_id)
        return None if account is None else account.record(self._state.bucket_min())

    def order(self, order_id: int) -> OrderRecord | None:
        """An open order."""
        order = self._state.orders.get(order_id)
        return None if order is None else order.open_record()

    def order_of_key(self, account_id: str, key: str) -> OrderRecord | None:
        """The open order of an account that was placed or last replaced under a key."""
        account = self._state.account(account_id)
        order = None if account is None else account.orders_by_key.get(key)
        return None if order is None else order.open_record()

    def open_orders(self, account_id: str, symbol: str | None = None) -> list[OrderRecord]:
        """The open orders of an account by ascending id."""
        account = self._state.account(account_id)
        if account is None:
            return []
        return [
            order.open_record()
            for order in account.orders.values()
            if symbol is None or order.instrument.symbol == symbol
        ]

    def book(self, symbol: str, depth: int) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]] | None:
        """(bids, asks), each (price_ticks, lots, orders) of the best `depth` levels; None for no such symbol."""
        instrument = self._state.instruments.get(symbol)
        return None if instrument is None else (instrument.bids.best(depth), instrument.asks.best(depth))

    def reference(self, symbol: str) -> tuple[int, int] | None:
        """(price_ticks, observed_at_us) of the reference price; None before the first."""
        instrument = self._state.instruments.get(symbol)
        if instrument is None or instrument.reference_ticks == 0:
            return None
        return instrument.reference_ticks, instrument.reference_at_us

    def withdrawal(self, withdrawal_id: int) -> WithdrawalRecord | None:
        """A pending withdrawal."""
        return self._state.withdrawals.get(withdrawal_id)

    def withdrawals(self, account_id: str) -> list[WithdrawalRecord]:
        """The pending withdrawals of an account by ascending id."""
        account = self._state.account(account_id)
        return [] if account is None else list(account.withdrawals.values())

    def sessions(self, account_id: str) -> list[SessionRecord]:
        account = self._state.account(account_id)
        return [] if account is None else [one.record() for one in account.sessions.values()]


must(set(RULES) == set(cast(Any, commands.AnyCommand).__args__), "a command without a rule")
