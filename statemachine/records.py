"""What the store keeps: one struct per table, msgpack arrays, versioned by RECORDS_VERSION in the meta record."""

from typing import Protocol

import msgspec
from msgspec import Struct

from statemachine.commands import Calendar, Limits
from statemachine.events import AnyEvent
from statemachine.results import AnyResult
from statemachine.types import LedgerReason, Mode, OrderType, Reason, SelfTrade, Side, Status, TimeInForce

RECORDS_VERSION = 1

# The tables that Changes name, and their keys. Names are UTF-8; an id is `id_key`, so that tables are in id order.
ACCOUNTS = "accounts"
ASSETS = "assets"
INSTRUMENTS = "instruments"
ORDERS = "orders"
WITHDRAWALS = "withdrawals"
SESSIONS = "sessions"
"""Keyed by account, NUL, session."""
SWEEPS = "sweeps"
TABLES = (ACCOUNTS, ASSETS, INSTRUMENTS, ORDERS, WITHDRAWALS, SESSIONS, SWEEPS)


def id_key(number: int) -> bytes:
    return number.to_bytes(8, "big")


class Record(Struct, frozen=True, array_like=True, gc=False):
    """Base of all records."""


class MetaRecord(Record, frozen=True):
    """The one record that says where the state stands; written in the same transaction as all others."""

    version: int
    applied_index: int
    time_us: int
    digest: bytes
    ledger_chain: bytes
    next_order_id: int
    next_trade_id: int
    next_ledger_row: int
    next_withdrawal_id: int
    rules_version: int
    writes_stopped: bool
    digest_reports: list[tuple[int, str, bytes]]


class AssetRecord(Record, frozen=True):
    asset: str
    scale: int
    supply_units_max: int


class InstrumentRecord(Record, frozen=True):
    symbol: str
    base: str
    quote: str
    price_scale: int
    quantity_scale: int
    tick: int
    lot: int
    mode: Mode
    maker_bps: int
    taker_bps: int
    limits: Limits
    calendar: Calendar
    reference_ticks: int
    reference_at_us: int
    last_trade_id: int


class AccountRecord(Record, frozen=True):
    """balances: (asset, available, held). keys: (bucket, count). last_*: heads of the account's chains, 0 if none."""

    account: str
    keys_max: int
    balances: list[tuple[str, int, int]]
    keys: list[tuple[int, int]]
    last_ledger_row: int
    last_trade_id: int
    last_closed_order_id: int


class OrderRecord(Record, frozen=True):
    """An order, open or closed. previous_closed links the closed orders of one account, newest first."""

    order_id: int
    account: str
    symbol: str
    side: Side
    type: OrderType
    time_in_force: TimeInForce
    price_ticks: int
    quantity_lots: int
    budget_units: int
    expires_at_us: int
    post_only: bool
    self_trade: SelfTrade
    session: str
    key: str
    maker_bps: int
    taker_bps: int
    status: Status
    reason: Reason
    filled_lots: int
    leaves_lots: int
    notional_units: int
    maker_notional_units: int
    taker_notional_units: int
    fee_units: int
    hold_units: int
    priority: int
    replaces: int
    replaced_by: int
    opened_index: int
    opened_at_us: int
    updated_at_us: int
    previous_closed: int


class TradeRow(Record, frozen=True):
    """A trade. previous_*: the trade before this one of the symbol and of either side's account, 0 if none."""

    trade_id: int
    index: int
    symbol: str
    price_ticks: int
    quantity_lots: int
    notional_units: int
    taker_side: Side
    taker_order_id: int
    taker_account: str
    taker_fee_units: int
    maker_order_id: int
    maker_account: str
    maker_fee_units: int
    at_us: int
    previous_of_symbol: int
    previous_of_taker: int
    previous_of_maker: int


class LedgerRow(Record, frozen=True):
    """One side of one movement. owned_units: available and held of that asset after it. reference: trade,
    withdrawal or 0. previous: the account's row before this one, 0 if none."""

    row: int
    index: int
    account: str
    asset: str
    delta_units: int
    owned_units: int
    reason: LedgerReason
    reference: int
    at_us: int
    previous: int


class WithdrawalRecord(Record, frozen=True):
    withdrawal_id: int
    account: str
    asset: str
    amount_units: int
    opened_at_us: int


class SessionRecord(Record, frozen=True):
    account: str
    session: str
    timeout_ms: int
    deadline_us: int


class SweepRecord(Record, frozen=True):
    """A mass cancel that goes on: the orders up to `order_id_max` of an account, a session or an instrument."""

    sweep_id: int
    account: str
    symbol: str
    session: str
    reason: Reason
    order_id_max: int


class KeyRecord(Record, frozen=True):
    """A key that was used: where its answer stands."""

    fingerprint: bytes
    index: int
    ordinal: int


class Applied:
    """All that one batch did: answers, events and history rows, with the digest after it.

    results_bytes and events_bytes are the encoded lists, as stored and served. scopes_and_keys holds
    (scope, key) of each command, in order, so that whoever waits for a key can be answered.
    """

    __slots__ = (
        "closed_orders",
        "digest",
        "events",
        "events_bytes",
        "index",
        "keys",
        "ledger_bytes",
        "ledger_rows",
        "results",
        "results_bytes",
        "scopes_and_keys",
        "time_us",
        "trades",
    )

    def __init__(self, index: int, time_us: int) -> None:
        self.index = index
        self.time_us = time_us
        self.results: list[AnyResult] = []
        self.results_bytes = b""
        self.events: list[AnyEvent] = []
        self.events_bytes = b""
        self.scopes_and_keys: list[tuple[str, str]] = []
        self.keys: list[tuple[int, bytes, KeyRecord]] = []
        """(bucket, key digest, record) of each key first used here."""
        self.ledger_rows: list[LedgerRow] = []
        self.ledger_bytes = b""
        self.trades: list[TradeRow] = []
        self.closed_orders: list[OrderRecord] = []
        self.digest = b""


class Changes:
    """The records that changed since they were last collected, encoded, as of one index.

    puts and deletes go to the tables named; `meta` goes into the same transaction.
    """

    __slots__ = ("deletes", "drop_buckets_before", "meta", "puts")

    def __init__(self, meta: MetaRecord) -> None:
        self.meta = meta
        self.puts: list[tuple[str, bytes, bytes]] = []
        self.deletes: list[tuple[str, bytes]] = []
        self.drop_buckets_before = 0
        """Key and result buckets below this one are past retention on every replica."""


class StoredState(Struct):
    """What a machine is restored from. Accounts are not in it: they are read when they are needed."""

    meta: MetaRecord
    assets: list[AssetRecord]
    instruments: list[InstrumentRecord]
    orders: list[OrderRecord]
    withdrawals: list[WithdrawalRecord]
    sessions: list[SessionRecord]
    sweeps: list[SweepRecord]


class Backing(Protocol):
    """What the machine reads while it applies. Whatever implements it must answer the same on every replica:
    it holds everything collected so far, flushed or not."""

    def account(self, account: str) -> AccountRecord | None: ...

    def key(self, digest: bytes, bucket_min: int) -> KeyRecord | None:
        """The record of a key in any bucket from bucket_min on."""
        ...


encode_record = msgspec.msgpack.Encoder().encode
