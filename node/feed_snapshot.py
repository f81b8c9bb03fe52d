"""The whole state at one log index, in pages: where a follower starts when the feed's past is gone.

A snapshot is a pinned view of the store, which trails the machine by one flush at most; the feed goes on
behind its index. Few are open at once, each for a bounded time.
"""

import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from node.errors import InvalidField, Overloaded, SnapshotRequired
from node.event_views import Catalogue, View
from node.market import Market
from node.outcomes import REASON_WORD, STATUS_WORD, at
from statemachine.decimals import text
from statemachine.records import (
    ACCOUNTS,
    ASSETS,
    INSTRUMENTS,
    ORDERS,
    SESSIONS,
    WITHDRAWALS,
    AccountRecord,
    AssetRecord,
    InstrumentRecord,
    OrderRecord,
    SessionRecord,
    WithdrawalRecord,
)
from statemachine.types import Side

SNAPSHOTS_MAX = 4
IDLE_S = 30.0
"""A snapshot of which no page is asked for so long is closed."""
AGE_S = 600.0
TABLES = (ASSETS, INSTRUMENTS, ACCOUNTS, ORDERS, WITHDRAWALS, SESSIONS)
"""In this order, so that a reader knows the units before the amounts."""


class Pinned(Protocol):
    """A view of the store that later flushes do not change: see statemachine/store_pinned.py."""

    @property
    def index(self) -> int: ...

    def page(self, table: str, after: bytes, *, limit: int) -> list[tuple[bytes, bytes]]: ...

    def close(self) -> None: ...


class _Open:
    __slots__ = ("opened_at_s", "pinned", "used_at_s")

    def __init__(self, pinned: Pinned, now_s: float) -> None:
        self.pinned = pinned
        self.opened_at_s = now_s
        self.used_at_s = now_s


class Page:
    """Some rows of one table. next_token is empty on the last page of all."""

    __slots__ = ("index", "next_token", "rows", "table")

    def __init__(self, index: int, table: str, rows: list[View], next_token: str) -> None:
        self.index = index
        self.table = table
        self.rows = rows
        self.next_token = next_token


class Snapshots:
    """The snapshots that are being paged through on this node."""

    def __init__(
        self, pin: Callable[[], Pinned], catalogue: Catalogue, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pin = pin
        self._views = RecordViews(catalogue)
        self._clock = clock
        self._open: dict[str, _Open] = {}

    def __len__(self) -> int:
        return len(self._open)

    def page(self, token: str, *, limit: int) -> Page:
        """A page of rows; an empty token opens a new snapshot.

        Raises:
            Overloaded: too many are open; try again in a while.
            SnapshotRequired: this one was closed (time, or another node): start again without a token.
            InvalidField: not a page token.
        """
        self.sweep()
        name, table, after = _parse(token) if token else (self._start(), TABLES[0], b"")
        snapshot = self._open.get(name)
        if snapshot is None:
            raise SnapshotRequired("this snapshot is closed: start again without page_token", field="page_token")
        snapshot.used_at_s = self._clock()
        found: list[tuple[bytes, bytes]] = []
        place = TABLES.index(table)
        while not found and place < len(TABLES):
            table = TABLES[place]
            found = snapshot.pinned.page(table, after, limit=limit)
            place, after = place + 1, b""
        index = snapshot.pinned.index
        rows = [self._views.row(table, value) for _, value in found]
        if len(found) == limit:
            next_token = _token(name, table, found[-1][0])
        elif place < len(TABLES):
            next_token = _token(name, TABLES[place], b"")
        else:
            next_token = ""
            self._close(name)
        return Page(index, table, rows, next_token)

    def sweep(self) -> None:
        """Close what was forgotten."""
        now_s = self._clock()
        for name, snapshot in list(self._open.items()):
            if now_s - snapshot.used_at_s > IDLE_S or now_s - snapshot.opened_at_s > AGE_S:
                self._close(name)

    def close(self) -> None:
        for name in list(self._open):
            self._close(name)

    def _start(self) -> str:
        if len(self._open) >= SNAPSHOTS_MAX:
            raise Overloaded(f"{SNAPSHOTS_MAX} snapshots are being read here: try again later", retry_after_s=5.0)
        name = secrets.token_urlsafe(12)
        self._open[name] = _Open(self._pin(), self._clock())
        return name

    def _close(self, name: str) -> None:
        self._open.pop(name).pinned.close()


def _token(name: str, table: str, after: bytes) -> str:
    return f"{name}.{TABLES.index(table)}.{urlsafe_b64encode(after).decode()}"


def _parse(token: str) -> tuple[str, str, bytes]:
    name, _, rest = token.partition(".")
    number, _, after = rest.partition(".")
    try:
        if len(token) > 256 or len(number) != 1 or int(number) >= len(TABLES):
            raise ValueError
        return name, TABLES[int(number)], urlsafe_b64decode(after.encode("ascii"))
    except (ValueError, NotBase64) as error:
        raise InvalidField("page_token is not one that this node gave", field="page_token") from error


class RecordViews:
    """Records of the store as clients see them, in the words of the events."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._rows: dict[str, Callable[[Any], View]] = {
            ASSETS: _asset,
            INSTRUMENTS: self._instrument,
            ACCOUNTS: self._account,
            ORDERS: self._order,
            WITHDRAWALS: self._withdrawal,
            SESSIONS: _session,
        }
        kinds = (AssetRecord, InstrumentRecord, AccountRecord, OrderRecord, WithdrawalRecord, SessionRecord)
        self._decode = {table: msgspec.msgpack.Decoder(kind).decode for table, kind in zip(TABLES, kinds, strict=True)}

    def row(self, table: str, value: bytes) -> View:
        return self._rows[table](self._decode[table](value))

    def _amount(self, asset: str, units: int) -> str:
        money = self._catalogue.money(asset)
        return text(units, money.scale if money is not None else 0)

    def _market(self, symbol: str) -> Market:
        market = self._catalogue.market(symbol)
        if market is None:
            raise LookupError(f"a record names {symbol!r}, which was never listed here")
        return market

    def _account(self, record: AccountRecord) -> View:
        return {
            "account": record.account,
            "balances": [
                {"asset": asset, "available": self._amount(asset, available), "held": self._amount(asset, held)}
                for asset, available, held in record.balances
            ],
        }

    def _instrument(self, record: InstrumentRecord) -> View:
        market = self._market(record.symbol)
        return {
            "symbol": record.symbol,
            "base": record.base,
            "quote": record.quote,
            "tick_size": text(record.tick, record.price_scale),
            "lot_size": text(record.lot, record.quantity_scale),
            "price_scale": record.price_scale,
            "quantity_scale": record.quantity_scale,
            "tick": record.tick,
            "lot": record.lot,
            "mode": record.mode.name,
            "maker_bps": record.maker_bps,
            "taker_bps": record.taker_bps,
            "reference_price": market.price(record.reference_ticks) if record.reference_ticks else None,
            "reference_at": at(record.reference_at_us) if record.reference_at_us else None,
        }

    def _order(self, record: OrderRecord) -> View:
        market = self._market(record.symbol)
        hold_scale = market.quote_scale if record.side is Side.buy else market.base_scale
        return {
            "order_id": str(record.order_id),
            "account": record.account,
            "client_order_id": record.key,
            "symbol": record.symbol,
            "side": record.side.name,
            "order_type": record.type.name,
            "time_in_force": record.time_in_force.name,
            "limit_price": market.price(record.price_ticks) if record.price_ticks else None,
            "qty": market.quantity(record.quantity_lots),
            "filled_qty": market.quantity(record.filled_lots),
            "leaves_qty": market.quantity(record.leaves_lots),
            "filled_notional": text(record.notional_units, market.quote_scale),
            "fee": text(record.fee_units, market.quote_scale),
            "hold": text(record.hold_units, hold_scale),
            "status": STATUS_WORD[record.status],
            "reason": REASON_WORD[record.reason],
            "post_only": record.post_only,
            "session": record.session or None,
            "priority": record.priority,
            "expires_at": at(record.expires_at_us) if record.expires_at_us else None,
            "replaces": str(record.replaces) if record.replaces else None,
            "opened_at": at(record.opened_at_us),
        }

    def _withdrawal(self, record: WithdrawalRecord) -> View:
        return {
            "withdrawal_id": str(record.withdrawal_id),
            "account": record.account,
            "asset": record.asset,
            "amount": self._amount(record.asset, record.amount_units),
            "opened_at": at(record.opened_at_us),
        }


def _asset(record: AssetRecord) -> View:
    return {
        "asset": record.asset,
        "scale": record.scale,
        "supply_max": text(record.supply_units_max, record.scale),
    }


def _session(record: SessionRecord) -> View:
    return {
        "account": record.account,
        "session": record.session,
        "timeout_ms": record.timeout_ms,
        "deadline": at(record.deadline_us),
    }
