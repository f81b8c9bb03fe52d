"""Accounts, their balances and their cancel-on-disconnect sessions, as they are in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from statemachine.records import AccountRecord, SessionRecord, WithdrawalRecord
from statemachine.types import SYSTEM_ACCOUNTS, WORLD, Reason

if TYPE_CHECKING:
    from statemachine.order import Order


class Balance:
    """What an account owns of one asset: available and held.

    touched_index: the last batch that changed it; owned_before_units is what was owned before that batch.
    """

    __slots__ = ("account", "asset", "available_units", "held_units", "owned_before_units", "touched_index")

    def __init__(self, account: Account, asset: str, available_units: int, held_units: int) -> None:
        self.account = account
        self.asset = asset
        self.available_units = available_units
        self.held_units = held_units
        self.owned_before_units = 0
        self.touched_index = -1


class Account:
    """An account with its open orders. It stays in memory while it is dirty or has anything open.

    keys: [bucket, count] of live idempotency keys, oldest bucket first; keys_live is their sum.
    orders_in: open orders by symbol, then by id; as in all dicts of orders, by ascending id.
    orders_by_key: open orders by the key that they were placed or last replaced under, the newest of a key.
    """

    __slots__ = (
        "account",
        "balances",
        "dirty",
        "is_system",
        "is_world",
        "keys",
        "keys_live",
        "keys_max",
        "last_closed_order_id",
        "last_ledger_row",
        "last_trade_id",
        "orders",
        "orders_by_key",
        "orders_in",
        "sessions",
        "withdrawals",
    )

    def __init__(self, account: str, keys_max: int) -> None:
        self.account = account
        self.is_system = account in SYSTEM_ACCOUNTS
        self.is_world = account == WORLD
        self.keys_max = keys_max
        self.balances: dict[str, Balance] = {}
        self.keys: list[list[int]] = []
        self.keys_live = 0
        self.last_ledger_row = 0
        self.last_trade_id = 0
        self.last_closed_order_id = 0
        self.orders: dict[int, Order] = {}
        self.orders_by_key: dict[str, Order] = {}
        self.orders_in: dict[str, dict[int, Order]] = {}
        self.sessions: dict[str, Session] = {}
        self.withdrawals: dict[int, WithdrawalRecord] = {}
        self.dirty = False

    @classmethod
    def restored(cls, record: AccountRecord) -> Account:
        account = cls(record.account, record.keys_max)
        for asset, available_units, held_units in record.balances:
            account.balances[asset] = Balance(account, asset, available_units, held_units)
        account.keys = [[bucket, count] for bucket, count in record.keys]
        account.keys_live = sum(count for _, count in record.keys)
        account.last_ledger_row = record.last_ledger_row
        account.last_trade_id = record.last_trade_id
        account.last_closed_order_id = record.last_closed_order_id
        return account

    def record(self, bucket_min: int) -> AccountRecord:
        """The account as stored; keys of buckets below `bucket_min` are gone."""
        return AccountRecord(
            self.account,
            self.keys_max,
            [(one.asset, one.available_units, one.held_units) for one in self.balances.values()],
            [(bucket, count) for bucket, count in self.keys if bucket >= bucket_min],
            self.last_ledger_row,
            self.last_trade_id,
            self.last_closed_order_id,
        )

    def open_order(self, order_id: int, order_key: str) -> Order | None:
        """The open order of this id or, where that is 0, of this key."""
        return self.orders.get(order_id) if order_id else self.orders_by_key.get(order_key)

    def is_pinned(self) -> bool:
        """It must stay in memory: something of it is only there, or points at it."""
        return self.dirty or self.is_system or bool(self.orders or self.sessions or self.withdrawals)

    def forget_keys(self, bucket_min: int) -> None:
        """Stop counting the keys of buckets below `bucket_min`."""
        keys = self.keys
        while keys and keys[0][0] < bucket_min:
            self.keys_live -= keys[0][1]
            del keys[0]

    def count_key(self, bucket: int) -> None:
        keys = self.keys
        if keys and keys[-1][0] == bucket:
            keys[-1][1] += 1
        else:
            keys.append([bucket, 1])
        self.keys_live += 1


class Session:
    """A cancel-on-disconnect session. Its orders hold on to it after its end, so that they never match again.

    queued_us: the deadline under which it stands in the queue of deadlines.
    """

    __slots__ = ("account", "deadline_us", "dirty", "orders", "queued_us", "reason", "session", "timeout_us")

    def __init__(self, account: Account, session: str, timeout_us: int, deadline_us: int) -> None:
        self.account = account
        self.session = session
        self.timeout_us = timeout_us
        self.deadline_us = deadline_us
        self.queued_us = deadline_us
        self.orders: dict[int, Order] = {}
        self.reason = Reason.session_expired
        self.dirty = False

    def end(self) -> None:
        """Closed on request: from now on its orders count as past."""
        self.deadline_us = 0
        self.reason = Reason.session_closed

    def record(self) -> SessionRecord:
        return SessionRecord(self.account.account, self.session, self.timeout_us // 1_000, self.deadline_us)
