"""The trading rules written a second time, naively: sorted lists, fractions, what can be computed anew is.

It shares only the contract (commands, results, codes, types) with the machine that it judges, and none of its rules.
Where a line could be clever it is not, but what is open is found by account and by side, and keys by their name: a
run of 100,000 commands has to be judged in seconds. Beside the machine itself it is tested in tests/statemachine/model.
"""

import re
from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache
from math import ceil, floor

from statemachine.codec import Envelope, decode_command, fingerprint
from statemachine.codes import Code
from statemachine.commands import (
    INTERNAL,
    ActivateRules,
    AddAsset,
    AddInstrument,
    AnyCommand,
    BeatSession,
    Calendar,
    CancelAccountOrders,
    CancelInstrumentOrders,
    CancelOrder,
    CloseSession,
    Deposit,
    OpenAccount,
    OpenSession,
    PlaceOrder,
    PostWithdrawal,
    ReplaceOrder,
    ReportDigest,
    RequestWithdrawal,
    SessionHours,
    SetCalendar,
    SetFees,
    SetLimits,
    SetMode,
    SetReference,
    TimeStep,
    Transfer,
    VoidWithdrawal,
)
from statemachine.events import (
    AccountOpened,
    AnyEvent,
    AssetAdded,
    DigestDisagreed,
    HoldReleased,
    InstrumentChanged,
    OrderClosed,
    OrderOpened,
    OrderReduced,
    ReferenceSet,
    SessionChanged,
    Traded,
    Transferred,
    WithdrawalClosed,
    WithdrawalOpened,
)
from statemachine.results import (
    AnyResult,
    Canceled,
    CanceledMany,
    Done,
    Moved,
    Placed,
    Repeat,
    Replaced,
    SessionOpened,
    Stepped,
    WithdrawalPending,
)
from statemachine.types import (
    FEES,
    ROUNDING,
    WORLD,
    LedgerReason,
    Mode,
    OrderType,
    Reason,
    SelfTrade,
    Side,
    Status,
    TimeInForce,
)

MINUTE_US = 60_000_000
DAY_MINUTES = 1_440
RESTING = (TimeInForce.gtc, TimeInForce.day, TimeInForce.gtd)


@dataclass(frozen=True)
class Bounds:
    """The limits that the rules count with; a test shrinks them, so that they are met within a few commands."""

    steps_max: int = 1_000
    chunk: int = 256
    chunk_sessions: int = 256
    key_retention_us: int = 24 * 3_600_000_000
    key_bucket_us: int = 6 * 3_600_000_000
    cancel_keys_min: int = 1_000
    sent_ahead_us: int = 10 * 60_000_000
    observed_ahead_us: int = 10_000_000
    withdrawals_max: int = 1_000
    sessions_max: int = 100


class No(Exception):
    """A refusal. Where the rules leave the order of two checks open, any of the codes is right."""

    def __init__(self, *codes: Code) -> None:
        super().__init__(*codes)
        self.codes = frozenset(codes)


@dataclass
class Order:
    id: int
    ask: PlaceOrder
    expires_at_us: int
    maker_bps: int
    taker_bps: int
    priority: int
    leaves: int
    key: str
    hold: int = 0
    filled: int = 0
    notional: int = 0
    maker_notional: int = 0
    taker_notional: int = 0
    fee: int = 0
    open: bool = True
    status: Status = Status.new
    reason: Reason = Reason.none

    @property
    def buys(self) -> bool:
        return self.ask.side == Side.buy


@dataclass
class Session:
    timeout_ms: int
    deadline_us: int


@dataclass
class Sweep:
    """A mass cancel that has not come to its end."""

    account: str
    symbol: str
    session: str
    reason: Reason
    order_id_max: int

    def covers(self, order: Order) -> bool:
        return (
            order.open
            and order.priority <= self.order_id_max
            and self.account in ("", order.ask.account)
            and self.symbol in ("", order.ask.symbol)
            and self.session in ("", order.ask.session)
        )


@dataclass
class Key:
    fingerprint: bytes
    index: int
    ordinal: int
    bucket: int


@dataclass
class Reference:
    price: int
    observed_at_us: int


@dataclass
class Log:
    """What one batch did, in order: the codes that would be right for each command, and the events it led to."""

    answers: list[AnyResult | No] = field(default_factory=list)
    happened: list[AnyEvent] = field(default_factory=list)
    met: set[str] = field(default_factory=set)
    """Which meetings of features came about, for a test to count."""


@cache
def snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def place_of(order: Order) -> tuple[int, int, int]:
    """Where an order stands on its side: the best price first, the oldest first among equals."""
    return (-order.ask.price_ticks if order.buys else order.ask.price_ticks, order.priority, order.id)


def up(value: Fraction) -> int:
    return ceil(value)


def units_of(ask: AddInstrument, base: AddAsset, quote: AddAsset) -> tuple[Fraction, Fraction]:
    """Quote units of one tick times one lot, and base units of one lot; exact, whole or not."""
    tick = Fraction(ask.tick, 10**ask.price_scale)
    lot = Fraction(ask.lot, 10**ask.quantity_scale)
    return tick * lot * 10**quote.scale, lot * 10**base.scale


class Model:
    """The state, and one method per command, of its name."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.now = 0
        self.index = 0
        self.assets: dict[str, AddAsset] = {}
        self.instruments: dict[str, AddInstrument] = {}
        self.known_units: dict[str, tuple[int, int]] = {}
        self.modes: dict[str, Mode] = {}
        self.references: dict[str, Reference] = {}
        self.accounts: dict[str, int] = {}
        self.owned: dict[tuple[str, str], int] = {}
        self.orders: dict[int, Order] = {}
        self.open: dict[int, Order] = {}
        self.open_of: dict[str, dict[int, Order]] = defaultdict(dict)
        self.books: dict[tuple[str, Side], list[tuple[int, int, int]]] = defaultdict(list)
        self.withdrawals: dict[int, RequestWithdrawal] = {}
        self.sessions: dict[tuple[str, str], Session] = {}
        self.sweeps: list[Sweep] = []
        self.keys: dict[tuple[str, str], Key] = {}
        self.keys_used: dict[str, Counter[int]] = defaultdict(Counter)
        self.reports: list[tuple[int, str, bytes]] = []
        self.stopped = False
        self.orders_made = self.trades_made = self.withdrawals_made = 0
        self.log = Log()
        self.key = ""

    # ---- a batch

    def apply(self, index: int, stamp_us: int, envelopes: list[Envelope]) -> Log:
        self.index = index
        self.now = max(self.now + 1, stamp_us)
        self.log = Log()
        for ordinal, envelope in enumerate(envelopes):
            try:
                answer: AnyResult | No = self.answer(envelope, ordinal)
            except No as no:
                answer = no
            self.log.answers.append(answer)
        return self.log

    def answer(self, envelope: Envelope, ordinal: int) -> AnyResult:
        command = decode_command(envelope.body)
        if isinstance(command, INTERNAL) and (self.stopped or not envelope.key):
            return self.run(command)
        if self.stopped:
            raise No(Code.writes_stopped)
        if not envelope.key:
            raise No(Code.key_required)
        bounds = self.bounds
        if envelope.sent_at_us and envelope.sent_at_us < self.now - bounds.key_retention_us:
            raise No(Code.key_too_old)
        if envelope.sent_at_us > self.now + bounds.sent_ahead_us:
            raise No(Code.sent_in_future)
        oldest_bucket = (self.now - bounds.key_retention_us - bounds.sent_ahead_us) // bounds.key_bucket_us
        print_ = fingerprint(envelope.body, envelope.sent_at_us)
        if key := self.keys.get((envelope.scope, envelope.key)):
            if key.bucket >= oldest_bucket:
                if key.fingerprint == print_:
                    return Repeat(key.index, key.ordinal)
                raise No(Code.key_reused)
            self.met("a key is forgotten after its retention")
        counted = envelope.scope in self.accounts
        used = sum(count for bucket, count in self.keys_used[envelope.scope].items() if bucket >= oldest_bucket)
        if counted and used >= self.accounts[envelope.scope]:
            room = max(bounds.cancel_keys_min, self.accounts[envelope.scope] // 10)
            cancels = isinstance(command, CancelOrder | CancelAccountOrders | CloseSession)
            if not cancels or used >= self.accounts[envelope.scope] + room:
                raise No(Code.key_quota_exceeded)
            self.met("a cancel beyond the quota of keys")
        bucket = self.now // bounds.key_bucket_us
        self.keys[envelope.scope, envelope.key] = Key(print_, self.index, ordinal, bucket)
        self.keys_used[envelope.scope][bucket] += counted
        self.key = envelope.key
        return self.run(command)

    def run(self, command: AnyCommand) -> AnyResult:
        result: AnyResult = getattr(self, snake_case(type(command).__name__))(command)
        return result

    def met(self, what: str) -> None:
        self.log.met.add(what)

    def tell(self, event: AnyEvent) -> None:
        self.log.happened.append(event)

    # ---- what can be asked of the state

    def open_orders(self) -> list[Order]:
        return list(self.open.values())

    def holds(self) -> dict[tuple[str, str], int]:
        """Everything held, by account and asset: open withdrawals and the holds of open orders."""
        holds: dict[tuple[str, str], int] = defaultdict(int)
        for withdrawal in self.withdrawals.values():
            holds[withdrawal.account, withdrawal.asset] += withdrawal.amount_units
        for order in self.open_orders():
            holds[order.ask.account, self.held_in(order)] += order.hold
        return holds

    def held(self, account: str, asset: str) -> int:
        withdrawals = [w for w in self.withdrawals.values() if (w.account, w.asset) == (account, asset)]
        orders = [order for order in self.open_of[account].values() if self.held_in(order) == asset]
        return sum(w.amount_units for w in withdrawals) + sum(order.hold for order in orders)

    def held_in(self, order: Order) -> str:
        listed = self.instruments[order.ask.symbol]
        return listed.quote if order.buys else listed.base

    def available(self, account: str, asset: str) -> int:
        return self.owned.get((account, asset), 0) - self.held(account, asset)

    def side(self, symbol: str, side: Side) -> list[Order]:
        """The open orders of one side, best first, oldest first among equals."""
        return [self.open[order_id] for _, _, order_id in self.books[symbol, side]]

    def join_book(self, order: Order) -> None:
        self.orders[order.id] = self.open[order.id] = self.open_of[order.ask.account][order.id] = order
        insort(self.books[order.ask.symbol, order.ask.side], place_of(order))

    def leave_book(self, order: Order) -> None:
        order.open = False
        del self.open[order.id], self.open_of[order.ask.account][order.id]
        book = self.books[order.ask.symbol, order.ask.side]
        del book[bisect_left(book, place_of(order))]

    def units(self, symbol: str) -> tuple[int, int]:
        """Quote units of one tick times one lot, and base units of one lot; of one symbol they never change."""
        if symbol not in self.known_units:
            ask = self.instruments[symbol]
            notional, base = units_of(ask, self.assets[ask.base], self.assets[ask.quote])
            self.known_units[symbol] = int(notional), int(base)
        return self.known_units[symbol]

    def notional_unit(self, symbol: str) -> int:
        return self.units(symbol)[0]

    def base_unit(self, symbol: str) -> int:
        return self.units(symbol)[1]

    def dead(self, order: Order) -> Reason:
        """Why time, or the end of its session, has ended this order, closed yet or not."""
        if late := self.late(order):
            return late
        if (session := self.sessions.get((order.ask.account, order.ask.session))) and session.deadline_us <= self.now:
            return Reason.session_expired
        for sweep in self.sweeps:
            if sweep.session and sweep.covers(order):
                return sweep.reason
        return Reason.none

    def fresh(self, symbol: str) -> Reference | None:
        reference = self.references.get(symbol)
        age_max = self.instruments[symbol].limits.reference_age_us_max
        return reference if reference and self.now - reference.observed_at_us <= age_max else None

    def outside_band(self, symbol: str, price: int) -> bool:
        reference, band = self.fresh(symbol), self.instruments[symbol].limits.band_bps
        if not reference or not band:
            return False
        return abs(price - reference.price) > Fraction(reference.price * band, 10_000)

    def worst_hold(self, order: Order) -> int:
        """What the rest of an order may cost at most."""
        symbol = order.ask.symbol
        if not order.buys:
            return order.leaves * self.base_unit(symbol)
        if order.ask.budget_units:
            return order.ask.budget_units
        notional = self.limit_of(order.ask) * order.leaves * self.notional_unit(symbol)
        rate = max(order.maker_bps, order.taker_bps)
        return notional + up(Fraction(notional * rate, 10_000)) + 1 if rate else notional

    def limit_of(self, ask: PlaceOrder) -> int:
        """The worst price: the limit, what a market order names, or the collar around the reference."""
        if ask.price_ticks:
            return ask.price_ticks
        collar = self.instruments[ask.symbol].limits.collar_bps
        reference = self.references[ask.symbol].price
        if ask.side == Side.buy:
            return floor(Fraction(reference * (10_000 + collar), 10_000))
        return max(1, up(Fraction(reference * (10_000 - collar), 10_000)))

    # ---- listing

    def add_asset(self, c: AddAsset) -> AnyResult:
        if c.asset in self.assets:
            raise No(Code.asset_exists)
        self.assets[c.asset] = c
        self.tell(AssetAdded(c.asset, c.scale, c.supply_units_max))
        return Done()

    def add_instrument(self, c: AddInstrument) -> AnyResult:
        if c.symbol in self.instruments:
            raise No(Code.instrument_exists)
        codes = []
        if c.base == c.quote:
            codes.append(Code.assets_must_differ)
        if c.base not in self.assets or c.quote not in self.assets:
            codes.append(Code.asset_not_found)
        if codes:
            raise No(*codes)
        if any(unit.denominator != 1 or unit < 1 for unit in units_of(c, self.assets[c.base], self.assets[c.quote])):
            codes.append(Code.inexact_instrument)
        if limits_are_bad(c):
            codes.append(Code.bad_limits)
        if calendar_is_bad(c.calendar):
            codes.append(Code.bad_calendar)
        if codes:
            raise No(*codes)
        self.instruments[c.symbol] = c
        self.modes[c.symbol] = Mode.trading
        self.changed(c.symbol)
        return Done()

    def listed(self, symbol: str) -> AddInstrument:
        if symbol not in self.instruments:
            raise No(Code.instrument_not_found)
        return self.instruments[symbol]

    def change(self, listed: AddInstrument, **fields: object) -> AnyResult:
        values = {name: getattr(listed, name) for name in listed.__struct_fields__} | fields
        self.instruments[listed.symbol] = AddInstrument(**values)
        self.changed(listed.symbol)
        return Done()

    def changed(self, symbol: str) -> None:
        c = self.instruments[symbol]
        scales = (c.price_scale, c.quantity_scale, c.tick, c.lot)
        fees = (c.maker_bps, c.taker_bps)
        self.tell(InstrumentChanged(symbol, c.base, c.quote, *scales, self.modes[symbol], *fees, c.limits, c.calendar))

    def set_mode(self, c: SetMode) -> AnyResult:
        if c.symbol:
            self.listed(c.symbol)
        for symbol in sorted(self.instruments):
            if c.symbol in ("", symbol):
                self.modes[symbol] = c.mode
                self.changed(symbol)
        return Done()

    def set_fees(self, c: SetFees) -> AnyResult:
        return self.change(self.listed(c.symbol), maker_bps=c.maker_bps, taker_bps=c.taker_bps)

    def set_limits(self, c: SetLimits) -> AnyResult:
        listed = self.listed(c.symbol)
        if limits_are_bad(c):
            raise No(Code.bad_limits)
        return self.change(listed, limits=c.limits)

    def set_calendar(self, c: SetCalendar) -> AnyResult:
        listed = self.listed(c.symbol)
        if calendar_is_bad(c.calendar):
            raise No(Code.bad_calendar)
        return self.change(listed, calendar=c.calendar)

    def set_reference(self, c: SetReference) -> AnyResult:
        self.listed(c.symbol)
        if c.observed_at_us > self.now + self.bounds.observed_ahead_us:
            raise No(Code.sent_in_future)
        present = self.references.get(c.symbol)
        if c.observed_at_us <= (present.observed_at_us if present else 0):
            raise No(Code.older_reference)
        self.references[c.symbol] = Reference(c.price_ticks, c.observed_at_us)
        self.tell(ReferenceSet(c.symbol, c.price_ticks, c.observed_at_us))
        return Done()

    def activate_rules(self, c: ActivateRules) -> AnyResult:
        raise No(Code.unknown_rules)  # there is but one version, and it is in force

    # ---- accounts and money

    def named(self, *accounts: str) -> None:
        reserved = [Code.account_reserved for account in accounts if account.startswith("@")]
        unknown = [Code.account_not_found for account in accounts if account[0] != "@" and account not in self.accounts]
        if reserved or unknown:
            raise No(*reserved, *unknown)

    def asset(self, asset: str) -> AddAsset:
        if asset not in self.assets:
            raise No(Code.asset_not_found)
        return self.assets[asset]

    def move(self, asset: str, source: str, target: str, amount: int) -> None:
        self.owned[source, asset] = self.owned.get((source, asset), 0) - amount
        self.owned[target, asset] = self.owned.get((target, asset), 0) + amount

    def moved(self, asset: str, source: str, target: str, amount: int, reason: LedgerReason) -> Moved:
        self.move(asset, source, target, amount)
        owned = self.owned[source, asset], self.owned[target, asset]
        self.tell(Transferred(source, target, asset, amount, reason, *owned))
        return Moved(source, target, asset, amount, *owned, self.now)

    def open_account(self, c: OpenAccount) -> AnyResult:
        if c.account in self.accounts:
            raise No(Code.account_exists)
        self.accounts[c.account] = c.keys_max
        self.tell(AccountOpened(c.account))
        return Done()

    def deposit(self, c: Deposit) -> AnyResult:
        self.named(c.account)
        asset = self.asset(c.asset)
        if c.amount_units - self.owned.get((WORLD, c.asset), 0) > asset.supply_units_max:
            raise No(Code.supply_exceeded)
        return self.moved(c.asset, WORLD, c.account, c.amount_units, LedgerReason.deposit)

    def transfer(self, c: Transfer) -> AnyResult:
        if c.source == c.target:
            raise No(Code.accounts_must_differ)
        self.named(c.source, c.target)
        self.asset(c.asset)
        if self.available(c.source, c.asset) < c.amount_units:
            raise No(Code.insufficient_funds)
        return self.moved(c.asset, c.source, c.target, c.amount_units, LedgerReason.transfer)

    def request_withdrawal(self, c: RequestWithdrawal) -> AnyResult:
        self.named(c.account)
        self.asset(c.asset)
        codes = []
        if sum(1 for w in self.withdrawals.values() if w.account == c.account) >= self.bounds.withdrawals_max:
            codes.append(Code.withdrawals_limit)
        if self.available(c.account, c.asset) < c.amount_units:
            codes.append(Code.insufficient_funds)
        if codes:
            raise No(*codes)
        self.withdrawals_made += 1
        self.withdrawals[self.withdrawals_made] = c
        self.tell(WithdrawalOpened(self.withdrawals_made, c.account, c.asset, c.amount_units))
        return WithdrawalPending(self.withdrawals_made, c.account, c.asset, c.amount_units, self.now)

    def post_withdrawal(self, c: PostWithdrawal) -> AnyResult:
        if c.withdrawal_id not in self.withdrawals:
            raise No(Code.withdrawal_not_found)
        w = self.close_withdrawal(c.withdrawal_id, posted=True)
        return self.moved(w.asset, w.account, WORLD, w.amount_units, LedgerReason.withdrawal)

    def void_withdrawal(self, c: VoidWithdrawal) -> AnyResult:
        if c.withdrawal_id not in self.withdrawals:
            raise No(Code.withdrawal_not_found)
        self.close_withdrawal(c.withdrawal_id, posted=False)
        return Done()

    def close_withdrawal(self, withdrawal_id: int, *, posted: bool) -> RequestWithdrawal:
        w = self.withdrawals.pop(withdrawal_id)
        self.tell(WithdrawalClosed(withdrawal_id, w.account, w.asset, w.amount_units, posted))
        return w

    # ---- an order enters

    def place_order(self, c: PlaceOrder) -> AnyResult:
        self.named(c.account)
        self.listed(c.symbol)
        order = self.draft(c, c.quantity_lots)
        self.check_entry(order, c.quantity_lots, None)
        self.enter(order, 0)
        return Placed(
            order.id, order.status, order.reason, order.filled, order.leaves, order.notional, order.fee, self.now
        )

    def draft(self, ask: PlaceOrder, leaves: int) -> Order:
        listed = self.instruments[ask.symbol]
        order_id = self.orders_made + 1
        expires = ask.expires_at_us
        if ask.time_in_force == TimeInForce.day:
            expires = self.closing_us(listed.calendar) or 0
        return Order(order_id, ask, expires, listed.maker_bps, listed.taker_bps, order_id, leaves, self.key)

    def check_entry(self, order: Order, quantity: int, old: Order | None) -> None:
        """Refuse, or not. quantity: the whole of it, with what filled before a replacement."""
        ask, symbol = order.ask, order.ask.symbol
        limits = self.instruments[symbol].limits
        self.check_mode(symbol, post_only=ask.post_only)
        if self.closing_us(self.instruments[symbol].calendar) is None:
            raise No(Code.market_closed)
        if codes := list(self.field_errors(ask, quantity)):
            raise No(*codes)
        if ask.session:
            session = self.sessions.get((ask.account, ask.session))
            if not session or session.deadline_us <= self.now:
                raise No(Code.session_not_found)

        market = ask.type == OrderType.market
        if not ask.budget_units and quantity < limits.quantity_lots_min:
            raise No(Code.quantity_too_small)
        if not ask.budget_units and quantity > limits.quantity_lots_max:
            raise No(Code.quantity_too_large)
        if not ask.price_ticks and symbol not in self.references:
            raise No(Code.no_reference)
        notional = ask.budget_units or self.limit_of(ask) * quantity * self.notional_unit(symbol)
        if notional < limits.notional_units_min:
            raise No(Code.notional_too_small)
        if notional > limits.notional_units_max:
            raise No(Code.notional_too_large)
        if market and not self.fresh(symbol):
            raise No(Code.stale_reference if symbol in self.references else Code.no_reference)
        if not market and self.outside_band(symbol, ask.price_ticks):
            raise No(Code.price_out_of_band)
        if not market and ask.time_in_force in RESTING:
            mine = [o for o in self.open_of[ask.account].values() if o.ask.symbol == symbol]
            if len([o for o in mine if o is not old]) >= limits.open_orders_max:
                raise No(Code.open_orders_limit)
        # Entering clears this many expired makers and no more; behind those it would end by the fill limit.
        if ask.post_only and (crossed := self.crossed(order)[: self.bounds.steps_max]):
            if any(not self.dead(maker) for maker in crossed):
                raise No(Code.would_cross)
            self.met("post-only enters beside expired makers")
        listed = self.instruments[symbol]
        money = listed.quote if order.buys else listed.base
        if self.worst_hold(order) > self.available(ask.account, money) + (old.hold if old else 0):
            raise No(Code.insufficient_funds)

    def check_mode(self, symbol: str, *, post_only: bool) -> None:
        if self.modes[symbol] == Mode.halted:
            raise No(Code.instrument_halted)
        if self.modes[symbol] == Mode.cancel_only:
            raise No(Code.instrument_cancel_only)
        if self.modes[symbol] == Mode.post_only and not post_only:
            raise No(Code.instrument_post_only)

    def field_errors(self, ask: PlaceOrder, quantity: int) -> Iterator[Code]:
        market, tif = ask.type == OrderType.market, ask.time_in_force
        takes_budget = market and ask.side == Side.buy and quantity == 0
        if not market and not ask.price_ticks:
            yield Code.price_required
        if market and tif not in (TimeInForce.ioc, TimeInForce.fok):
            yield Code.time_in_force_not_allowed
        if ask.budget_units and takes_budget and tif == TimeInForce.fok:
            yield Code.time_in_force_not_allowed
        if ask.expires_at_us and tif != TimeInForce.gtd:
            yield Code.time_in_force_not_allowed
        if ask.post_only and (market or tif in (TimeInForce.ioc, TimeInForce.fok)):
            yield Code.post_only_not_allowed
        if ask.budget_units and not takes_budget:
            yield Code.budget_not_allowed
        if not quantity and not (takes_budget and ask.budget_units):
            yield Code.quantity_required
        if tif == TimeInForce.gtd and not ask.expires_at_us:
            yield Code.expiry_required
        elif tif == TimeInForce.gtd and ask.expires_at_us <= self.now:
            yield Code.expiry_in_past

    def enter(self, order: Order, replaces: int) -> None:
        self.orders_made += 1
        self.join_book(order)
        order.hold = self.worst_hold(order)
        if order.filled:
            order.status = Status.partially_filled
        self.opened(order, replaces, kept=False)
        if order.ask.time_in_force == TimeInForce.fok and not self.fills_whole(order):
            self.close(order, Status.canceled, Reason.fok_unfilled)
            return
        if reason := self.sweep(order):
            spent = reason == Reason.budget_spent and order.filled > 0
            self.close(order, Status.filled if spent or reason == Reason.filled else Status.canceled, reason)
        else:
            if order.hold < self.worst_hold(order):
                self.met("a resting buy keeps less than a new one would hold")
            if released := self.trim(order):
                self.tell(HoldReleased(order.id, order.ask.account, order.ask.symbol, released))

    def trim(self, order: Order) -> int:
        """Hold no more than the rest may cost. Returns what is free again."""
        before, order.hold = order.hold, min(order.hold, self.worst_hold(order))
        return before - order.hold

    def opened(self, order: Order, replaces: int, *, kept: bool) -> None:
        ask = order.ask
        self.tell(
            OrderOpened(
                order_id=order.id,
                account=ask.account,
                symbol=ask.symbol,
                side=ask.side,
                type=ask.type,
                time_in_force=ask.time_in_force,
                price_ticks=self.limit_of(ask),
                quantity_lots=ask.quantity_lots,
                budget_units=ask.budget_units,
                expires_at_us=order.expires_at_us,
                post_only=ask.post_only,
                self_trade=ask.self_trade,
                session=ask.session,
                key=order.key,
                hold_units=order.hold,
                replaces=replaces,
                filled_lots=order.filled,
                kept_priority=kept,
                at_us=self.now,
            )
        )

    # ---- matching

    def crossed(self, taker: Order) -> list[Order]:
        """The makers that the taker's price reaches, in the order in which it meets them."""
        limit = self.limit_of(taker.ask)
        side = Side.sell if taker.buys else Side.buy
        book = self.books[taker.ask.symbol, side]
        reached = bisect_left(book, (limit + 1 if taker.buys else 1 - limit, 0, 0))
        return [self.open[order_id] for _, _, order_id in book[:reached]]

    def fills_whole(self, taker: Order) -> bool:
        lots = 0
        for maker in self.crossed(taker)[: self.bounds.steps_max]:
            if self.outside_band(taker.ask.symbol, maker.ask.price_ticks):
                self.met("fok looks beyond the band")
                break
            if self.dead(maker):
                self.met("fok passes over an expired maker")
                continue
            if maker.ask.account == taker.ask.account:
                self.met(f"fok meets itself, {taker.ask.self_trade.name}")
                if taker.ask.self_trade == SelfTrade.cancel_oldest:
                    continue
                break
            lots += maker.leaves
        return lots >= taker.leaves

    def sweep(self, taker: Order) -> Reason:
        """Trade until something stops it. Returns why the taker leaves, or none: it rests."""
        ask = taker.ask
        for step, maker in enumerate(self.crossed(taker)):
            if not ask.budget_units and not taker.leaves:
                break
            if self.outside_band(ask.symbol, maker.ask.price_ticks):
                return Reason.price_band
            if step == self.bounds.steps_max:
                return Reason.fill_limit
            if dead := self.dead(maker):
                self.met(f"a taker meets a maker that is {dead.name}")
                by_session = dead in (Reason.session_expired, Reason.session_closed)
                self.close(maker, Status.canceled if by_session else Status.expired, dead)
            elif maker.ask.account == ask.account:
                kind = "budget" if ask.budget_units else f"{ask.type.name} {ask.time_in_force.name}"
                self.met(f"{kind} meets itself, {ask.self_trade.name}")
                if not self.meet_oneself(taker, maker):
                    return Reason.self_trade
            else:
                lots = min(maker.leaves, self.affordable(taker, maker))
                if not lots:
                    self.met(f"a budget is spent, {'with' if taker.filled else 'without'} fills")
                    return Reason.budget_spent
                self.trade(taker, maker, lots)
                if ask.budget_units and maker.leaves:
                    self.met("a budget buys a part of a maker")
                    return Reason.budget_spent
        if not ask.budget_units and not taker.leaves:
            return Reason.filled
        if ask.type == OrderType.market:
            opposite = self.side(ask.symbol, Side.sell if taker.buys else Side.buy)
            return Reason.price_collar if opposite else Reason.ioc_remainder
        return Reason.none if ask.time_in_force in RESTING else Reason.ioc_remainder

    def meet_oneself(self, taker: Order, maker: Order) -> bool:
        """Apply the taker's mode. True: the taker goes on."""
        mode = taker.ask.self_trade
        if taker.ask.budget_units and mode == SelfTrade.decrement:
            mode = SelfTrade.cancel_newest
        if mode in (SelfTrade.cancel_oldest, SelfTrade.cancel_both):
            self.close(maker, Status.canceled, Reason.self_trade)
        if mode != SelfTrade.decrement:
            return mode == SelfTrade.cancel_oldest
        # Whoever would reach zero closes with what never traded; the other loses as many lots.
        lots, equal = min(taker.leaves, maker.leaves), taker.leaves == maker.leaves
        taker_goes_on, maker_stays = taker.leaves > lots, maker.leaves > lots
        for order in (maker, taker):
            if order.leaves > lots:
                order.leaves -= lots
                place = (order.id, order.ask.account, order.ask.symbol)
                self.tell(OrderReduced(*place, lots, order.leaves, self.trim(order)))
        if not maker_stays:
            self.close(maker, Status.canceled, Reason.self_trade)
        self.met(f"decrement: {'both end' if equal else 'one ends'}")
        return taker_goes_on

    def affordable(self, taker: Order, maker: Order) -> int:
        """Lots that a budget still buys at the maker's price, fees included; what is left for other orders."""
        if not taker.ask.budget_units:
            return taker.leaves
        unit = maker.ask.price_ticks * self.notional_unit(taker.ask.symbol)
        lots = 0
        while lots < maker.leaves:
            notional = taker.notional + (lots + 1) * unit
            if notional + up(Fraction(notional * taker.taker_bps, 10_000)) > taker.ask.budget_units:
                break
            lots += 1
        return lots

    def trade(self, taker: Order, maker: Order, lots: int) -> None:
        listed = self.instruments[taker.ask.symbol]
        price = maker.ask.price_ticks
        notional = price * lots * self.notional_unit(listed.symbol)
        buyer, seller = (taker, maker) if taker.buys else (maker, taker)
        self.move(listed.quote, buyer.ask.account, seller.ask.account, notional)
        self.move(listed.base, seller.ask.account, buyer.ask.account, lots * self.base_unit(listed.symbol))
        before = (taker.fee, maker.fee)
        self.charge(taker, taker.taker_notional, notional, taker.taker_bps, listed.quote)
        self.charge(maker, maker.maker_notional, notional, maker.maker_bps, listed.quote)
        taker.taker_notional += notional
        maker.maker_notional += notional
        paid = "both pay" if taker.taker_bps and maker.maker_bps else "not both pay"
        self.met(f"{listed.symbol}: {taker.ask.side.name} {taker.ask.type.name} takes, {paid}")
        for order in (taker, maker):
            order.filled += lots
            order.notional += notional
            order.status = Status.partially_filled
            if not order.ask.budget_units:
                order.leaves -= lots
        fees = (taker.fee - before[0], maker.fee - before[1])
        for order, fee in ((taker, fees[0]), (maker, fees[1])):
            order.hold -= notional + fee if order.buys else lots * self.base_unit(listed.symbol)
        self.trades_made += 1
        sides = (
            *(taker.ask.side, taker.id, taker.ask.account, fees[0], taker.leaves),
            *(maker.id, maker.ask.account, fees[1], maker.leaves),
        )
        self.tell(Traded(self.trades_made, listed.symbol, price, lots, notional, *sides, self.now))
        if not maker.leaves:
            self.close(maker, Status.filled, Reason.filled)

    def charge(self, order: Order, before: int, notional: int, bps: int, asset: str) -> None:
        """The fee so far is rounded up; what is exact by whole units is earned, what rounding adds is set apart."""
        was, is_ = Fraction(before * bps, 10_000), Fraction((before + notional) * bps, 10_000)
        rounding = (up(is_) - floor(is_)) - (up(was) - floor(was))
        self.met(f"rounding of {rounding}, {order.ask.side.name}")
        self.move(asset, order.ask.account, FEES, floor(is_) - floor(was))
        self.move(asset, order.ask.account, ROUNDING, rounding)
        order.fee += up(is_) - up(was)

    def close(self, order: Order, status: Status, reason: Reason, replaced_by: int = 0) -> None:
        self.leave_book(order)
        released, order.hold = order.hold, 0
        order.status, order.reason = status, reason
        place = (order.id, order.ask.account, order.ask.symbol)
        amounts = (order.filled, order.leaves, order.notional, order.fee, released)
        self.tell(OrderClosed(*place, status, reason, *amounts, replaced_by, self.now))

    # ---- orders change and leave

    def mine(self, c: ReplaceOrder | CancelOrder) -> Order:
        """The order that a command names: by its id or, without one, the newest that is open under a key."""
        self.named(c.account)
        mine = self.open_of[c.account].values()
        named = [order for order in mine if (order.id == c.order_id if c.order_id else order.key == c.order_key)]
        if not named:
            raise No(Code.order_not_found)
        if not c.order_id:
            self.met("a key names an open order" if len(named) == 1 else "a key names several open orders")
        return max(named, key=lambda order: order.id)

    def replace_order(self, c: ReplaceOrder) -> AnyResult:
        old = self.mine(c)
        symbol = old.ask.symbol
        if c.symbol not in ("", symbol):
            raise No(Code.order_not_found)
        present = old.filled + old.leaves
        quantity, price = c.quantity_lots or present, c.price_ticks or old.ask.price_ticks
        in_place = price == old.ask.price_ticks and quantity < present
        self.check_halted(symbol)
        if not in_place:
            self.check_mode(symbol, post_only=old.ask.post_only)
        if self.closing_us(self.instruments[symbol].calendar) is None:
            raise No(Code.market_closed)
        if quantity <= old.filled:
            raise No(Code.below_filled)
        if (quantity, price) == (present, old.ask.price_ticks):
            raise No(Code.nothing_to_replace)
        ask = change_ask(old.ask, price, quantity)
        leaves = quantity - old.filled
        if in_place:
            new = replace(old, id=self.orders_made + 1, ask=ask, leaves=leaves, key=self.key)
            new.hold = min(old.hold, self.worst_hold(new))
            self.met(f"replaced in place: {'filled' if old.filled else 'unfilled'} {old.ask.side.name}")
            self.orders_made += 1
            self.close(old, Status.replaced, Reason.replaced, new.id)
            self.join_book(new)
            self.opened(new, old.id, kept=True)
        else:
            if self.late(old):
                raise No(Code.expiry_in_past)
            new = self.draft(ask, leaves)
            self.check_entry(new, quantity, old)
            new.filled, new.notional, new.fee = old.filled, old.notional, old.fee
            self.met(f"replaced anew: {'filled' if old.filled else 'unfilled'} {old.ask.side.name}")
            self.close(old, Status.replaced, Reason.replaced, new.id)
            self.enter(new, old.id)
        answer = (new.status, new.reason, new.filled, new.leaves, new.notional, new.fee, self.now)
        return Replaced(new.id, old.id, in_place, *answer)

    def cancel_order(self, c: CancelOrder) -> AnyResult:
        order = self.mine(c)
        if self.modes[order.ask.symbol] == Mode.halted:
            raise No(Code.instrument_halted)
        self.close(order, Status.canceled, Reason.requested)
        return Canceled(order.id, order.filled, order.leaves, self.now)

    def cancel_account_orders(self, c: CancelAccountOrders) -> AnyResult:
        self.named(c.account)
        if c.symbol:
            self.listed(c.symbol)
            self.check_halted(c.symbol)
        return self.mass_cancel(Sweep(c.account, c.symbol, "", Reason.mass_cancel, self.orders_made))

    def cancel_instrument_orders(self, c: CancelInstrumentOrders) -> AnyResult:
        self.listed(c.symbol)
        self.check_halted(c.symbol)
        return self.mass_cancel(Sweep("", c.symbol, "", Reason.mass_cancel, self.orders_made))

    def check_halted(self, symbol: str) -> None:
        if self.modes[symbol] == Mode.halted:
            raise No(Code.instrument_halted)

    def mass_cancel(self, sweep: Sweep) -> AnyResult:
        count = self.sweep_on(sweep, self.bounds.chunk)
        remaining = len(self.swept(sweep))
        if remaining:
            same = (sweep.account, sweep.symbol, sweep.session)
            for other in self.sweeps:
                if (other.account, other.symbol, other.session) == same:
                    self.met("two mass cancels of the same become one")
                    other.order_id_max = sweep.order_id_max
                    return CanceledMany(count, remaining)
            self.met(f"{sweep.reason.name} leaves orders for later")
            self.sweeps.append(sweep)
        return CanceledMany(count, remaining)

    def swept(self, sweep: Sweep) -> list[Order]:
        """What a mass cancel still has to cancel. It passes over halted instruments; a session's end does not."""
        orders = [order for order in self.open_orders() if sweep.covers(order)]
        halted = [order for order in orders if self.modes[order.ask.symbol] == Mode.halted and not sweep.session]
        if halted:
            self.met("a mass cancel passes over a halted instrument")
        orders = [order for order in orders if order not in halted]
        return sorted(orders, key=lambda order: order.id)

    def sweep_on(self, sweep: Sweep, count_max: int) -> int:
        orders = self.swept(sweep)[:count_max]
        for order in orders:
            self.close(order, Status.canceled, sweep.reason)
        return len(orders)

    # ---- sessions and time

    def alive_session(self, account: str, session: str) -> Session:
        self.named(account)
        found = self.sessions.get((account, session))
        if not found or found.deadline_us <= self.now:
            raise No(Code.session_not_found)
        return found

    def open_session(self, c: OpenSession) -> AnyResult:
        self.named(c.account)
        ending = any((sweep.account, sweep.session) == (c.account, c.session) for sweep in self.sweeps)
        if (c.account, c.session) in self.sessions or ending:
            raise No(Code.session_exists)
        if sum(1 for account, _ in self.sessions if account == c.account) >= self.bounds.sessions_max:
            raise No(Code.sessions_limit)
        deadline = self.now + c.timeout_ms * 1_000
        self.sessions[c.account, c.session] = Session(c.timeout_ms, deadline)
        self.tell(SessionChanged(c.account, c.session, True))
        return SessionOpened(deadline)

    def beat_session(self, c: BeatSession) -> AnyResult:
        session = self.alive_session(c.account, c.session)
        session.deadline_us = self.now + session.timeout_ms * 1_000
        return SessionOpened(session.deadline_us)

    def close_session(self, c: CloseSession) -> AnyResult:
        self.named(c.account)
        if (c.account, c.session) not in self.sessions:
            raise No(Code.session_not_found)
        del self.sessions[c.account, c.session]
        answer = self.mass_cancel(Sweep(c.account, "", c.session, Reason.session_closed, self.orders_made))
        self.tell(SessionChanged(c.account, c.session, False))
        return answer

    def time_step(self, c: TimeStep) -> AnyResult:
        """Sessions whose time is over, then orders, then mass cancels."""
        left, count = self.bounds.chunk, 0
        for _ in range(self.bounds.chunk_sessions):
            expired = self.expired_sessions()
            if not expired or not left:
                break
            orders = self.of_session(*expired[0])[:left]
            for order in orders:
                self.met("time closes: session_expired")
                self.close(order, Status.canceled, Reason.session_expired)
            if not self.of_session(*expired[0]):
                del self.sessions[expired[0]]
                self.tell(SessionChanged(*expired[0], False))
            left, count = left - len(orders), count + len(orders)
        while left > 0 and (late := self.late_orders()):
            reason = self.late(late[0])
            self.met(f"time closes: {reason.name}")
            self.close(late[0], Status.expired, reason)
            left, count = left - 1, count + 1
        for sweep in list(self.sweeps):
            if left > 0:
                closed = self.sweep_on(sweep, left)
                left, count = left - closed, count + closed
                if not self.swept(sweep):
                    self.sweeps.remove(sweep)
        more = bool(self.expired_sessions() or self.late_orders() or self.sweeps)
        self.met("a time step leaves more" if more else "a time step leaves nothing")
        return Stepped(count, more)

    def expired_sessions(self) -> list[tuple[str, str]]:
        """By deadline, then by name."""
        expired = sorted((s.deadline_us, name) for name, s in self.sessions.items() if s.deadline_us <= self.now)
        return [name for _, name in expired]

    def of_session(self, account: str, session: str) -> list[Order]:
        orders = [order for order in self.open_of[account].values() if order.ask.session == session]
        return sorted(orders, key=lambda order: order.id)

    def late_orders(self) -> list[Order]:
        orders = [order for order in self.open_orders() if self.late(order)]
        return sorted(orders, key=lambda order: (order.expires_at_us, order.id))

    def late(self, order: Order) -> Reason:
        if not order.expires_at_us or order.expires_at_us > self.now:
            return Reason.none
        return Reason.day_ended if order.ask.time_in_force == TimeInForce.day else Reason.gtd_expired

    def closing_us(self, calendar: Calendar) -> int | None:
        """When the present opening ends, or None when the market is closed now."""
        minutes_now = Fraction(self.now, MINUTE_US) + calendar.utc_offset_minutes
        today = floor(minutes_now / DAY_MINUTES)
        ends = []
        for day in (today - 1, today):
            if hours := hours_of(calendar, day):
                opens, closes = day * DAY_MINUTES + hours.open_minute, day * DAY_MINUTES + hours.close_minute
                if opens <= minutes_now < closes:
                    ends.append((closes - calendar.utc_offset_minutes) * MINUTE_US)
        if len(ends) > 1:
            self.met("two openings overlap")
        return max(ends, default=None)

    # ---- replicas are compared

    def report_digest(self, c: ReportDigest) -> AnyResult:
        repeated = (c.digest_index, c.member, c.digest) in self.reports
        self.reports = [r for r in self.reports if r[:2] != (c.digest_index, c.member)]
        self.reports.append((c.digest_index, c.member, c.digest))
        kept = sorted({index for index, _, _ in self.reports})[-64:]
        self.reports = [report for report in self.reports if report[0] in kept]
        told = {member: digest for index, member, digest in self.reports if index == c.digest_index}
        if len(set(told.values())) > 1 and not repeated:
            self.met("digests disagree, " + self.judge(c, told))
        return Done()

    def judge(self, c: ReportDigest, told: dict[str, bytes]) -> str:
        """Could each digest, with every replica that is still to report, have a majority of all of them?"""
        replicas = max(c.replicas, len(told))
        votes = [list(told.values()).count(digest) for digest in told.values()]
        if any(2 * count > replicas for count in votes):
            agreed = max(told.values(), key=list(told.values()).count)
            outvoted = sorted(member for member, digest in told.items() if digest != agreed)
            self.tell(DigestDisagreed(c.digest_index, tuple(outvoted)))
            return "with a majority"
        if any(2 * (count + replicas - len(told)) > replicas for count in votes):
            return "and more may come"
        self.stopped = True
        self.tell(DigestDisagreed(c.digest_index, tuple(sorted(told))))
        return "without a majority"


def hours_of(calendar: Calendar, day: int) -> SessionHours | None:
    """The opening that begins on a day: an exception's, else the weekday's. Day 0 was a Thursday."""
    if not calendar.weekly:
        return SessionHours(0, DAY_MINUTES)
    for exception, hours in calendar.exceptions:
        if exception == day:
            return hours
    return calendar.weekly[(day + 3) % 7]


def limits_are_bad(c: AddInstrument | SetLimits) -> bool:
    limits = c.limits
    return limits.quantity_lots_min > limits.quantity_lots_max or limits.notional_units_min > limits.notional_units_max


def calendar_is_bad(calendar: Calendar) -> bool:
    hours = [h for h in calendar.weekly if h] + [h for _, h in calendar.exceptions if h]
    if len(calendar.weekly) not in (0, 7) or any(h.open_minute >= h.close_minute for h in hours):
        return True
    days = [day for day, _ in calendar.exceptions]
    return len(days) > len(set(days)) or bool(days and not calendar.weekly)


def change_ask(ask: PlaceOrder, price: int, quantity: int) -> PlaceOrder:
    values = {name: getattr(ask, name) for name in ask.__struct_fields__}
    return PlaceOrder(**values | {"price_ticks": price, "quantity_lots": quantity})
