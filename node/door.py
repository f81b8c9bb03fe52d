"""From what a client sent to what goes into the log: who may, which key, exact numbers, bounded fields.

Nothing that is refused here was logged. Whether an order makes sense is for the rules to say.
"""

import re
from collections.abc import Callable
from datetime import UTC, date, datetime
from hashlib import blake2b
from typing import Any, NoReturn, Protocol

import msgspec

from cluster import wire
from node.auth import Principal, Role
from node.errors import Forbidden, InvalidField
from node.market import Market, Money, parse
from node.outcomes import RuleRefused
from node.submit import Outcome, Prepared
from statemachine import commands
from statemachine.codec import Envelope, encode_command
from statemachine.codes import Code
from statemachine.records import OrderRecord
from statemachine.results import Moved
from statemachine.types import (
    ACCOUNT_PATTERN,
    AMOUNT_UNITS_MAX,
    ASSET_PATTERN,
    KEY_PATTERN,
    SCALE_MAX,
    SYMBOL_PATTERN,
    TIME_US_MAX,
    Mode,
    OrderType,
    SelfTrade,
    Side,
    TimeInForce,
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_DAY = date(1970, 1, 1)
_is_key = re.compile(KEY_PATTERN).match
_is_account = re.compile(ACCOUNT_PATTERN).match
_is_asset = re.compile(ASSET_PATTERN).match
_is_symbol = re.compile(SYMBOL_PATTERN).match
_is_time = re.compile(r"^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)\Z", re.ASCII).match

_SIDES = {side.name: side for side in Side}
_TYPES = {kind.name: kind for kind in OrderType}
_TIMES_IN_FORCE = {time.name: time for time in TimeInForce}
_SELF_TRADES = {mode.name: mode for mode in SelfTrade}
_MODES = {mode.name: mode for mode in Mode}
_BUY, _LIMIT = Side.buy, OrderType.limit
_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class Catalogue(Protocol):
    """What the door knows of the state: names and units, as applied here."""

    def market(self, symbol: str) -> Market | None: ...

    def money(self, asset: str) -> Money | None: ...

    def limits(self, symbol: str) -> commands.Limits | None: ...

    def market_of_order(self, account: str, order_id: int, *, closed: bool) -> Market | None:
        """The market of an order of this account; of a closed one only when asked, since that may read the disk."""
        ...

    def account_of_withdrawal(self, withdrawal_id: int) -> str | None: ...


class Keyed(Protocol):
    """What stands under keys, as applied here."""

    def order_of_key(self, account: str, key: str, *, closed: bool) -> OrderRecord | None: ...

    def of_envelope(self, envelope: Envelope) -> Outcome | None:
        """The answer that this very command had, or None when its key is free or another's."""
        ...


class Unseen(RuleRefused):
    """This node may be behind: something named is not known here, or what is left out is to be filled in from a
    state that another has changed. Whoever gets this can catch up and try again, and say so."""


def time_us(given: str, field: str) -> int:
    """An RFC 3339 time in microseconds since 1970; finer digits are cut off. Raises InvalidField."""
    if not _is_time(given):
        raise InvalidField(f"{field} must be an RFC 3339 time such as 2026-01-31T09:30:00Z", field=field)
    try:
        moment = datetime.fromisoformat(given) - _EPOCH
    except (ValueError, OverflowError) as error:
        raise InvalidField(f"{field} is not a time that exists: {given}", field=field) from error
    micros = (moment.days * 86_400 + moment.seconds) * 1_000_000 + moment.microseconds
    if not 0 <= micros <= TIME_US_MAX:
        raise InvalidField(f"{field} must be between 1970 and 2255", field=field)
    return micros


class Door:
    """Turns requests into envelopes. Plain calls: nothing waits, nothing is kept but caches."""

    def __init__(self, catalogue: Catalogue, keyed: Keyed, *, account_secret: bytes) -> None:
        """account_secret: up to 64 bytes, the same on all nodes; drawn account ids can't be guessed without it."""
        self._catalogue = catalogue
        self._keyed = keyed
        self._secret = account_secret
        self._makers: dict[type[wire.Request], Callable[[Any, Principal, str], Prepared]] = {
            wire.PlaceOrder: self._place,
            wire.ReplaceOrder: self._replace,
            wire.CancelOrder: self._cancel,
            wire.CancelOrders: self._cancel_all,
            wire.OpenAccount: self._open_account,
            wire.TransferFunds: self._transfer,
            wire.CloseWithdrawal: self._close_withdrawal,
            wire.AddAsset: self._add_asset,
            wire.AddInstrument: self._add_instrument,
            wire.ChangeInstrument: self._change_instrument,
            wire.SetReference: self._set_reference,
        }

    def envelope(
        self, request: wire.AnyRequest, principal: Principal, *, header_key: str = "", looked: bool = False
    ) -> Prepared:
        """looked: this node was brought up to date since the request came.

        Raises NodeError: the request can't be taken; nothing was logged.
        """
        key = request.key
        if header_key:
            if key and key != header_key:
                _differ("key", "the header Idempotency-Key")
            key = header_key
        if isinstance(request, wire.PlaceOrder | wire.ReplaceOrder) and request.client_order_id:
            if key and key != request.client_order_id:
                _differ("client_order_id", "the key" if not header_key else "the header Idempotency-Key")
            key = request.client_order_id
        _check_key(key)
        prepared = self._makers[type(request)](request, principal, key)
        if not looked and isinstance(request, wire.ChangeInstrument) and _fills_in(request.limits):
            # From an old state it would put another operator's limits back, without a word.
            raise Unseen(Code.instrument_not_found, key=key)
        return prepared

    def guard(self, action: wire.GuardOrders, principal: Principal) -> Prepared:
        """Open a cancel-on-disconnect session; its id is the key."""
        _check_key(action.key)
        account = _trader_account(principal, action.account)
        if action.timeout_ms < wire.GUARD_TIMEOUT_MS_MIN:
            raise InvalidField(
                f"timeout_ms is {action.timeout_ms}; it must be at least {wire.GUARD_TIMEOUT_MS_MIN}, or beats would "
                "fill the log",
                field="timeout_ms",
            )
        command = commands.OpenSession(account, action.key, action.timeout_ms)
        return self._made(None, command, account, action.key, account=account)

    def unguard(self, account: str, session: str, key: str) -> Prepared:
        """Close a session that this node opened for a principal that was checked then."""
        return self._made(None, commands.CloseSession(account, session), account, key, account=account, is_cancel=True)

    # ---- orders ----

    def _place(self, request: wire.PlaceOrder, principal: Principal, key: str) -> Prepared:
        account = _trader_account(principal, request.account)
        market = self._market(request.symbol)
        side = _SIDES[request.side]
        kind = _TYPES[request.type]
        word = request.time_in_force
        time_in_force = _TIMES_IN_FORCE[word or ("gtc" if kind is _LIMIT else "ioc")]
        price, quantity, budget = request.limit_price, request.qty, request.notional
        if budget is not None:
            if quantity is not None:
                raise InvalidField("give qty or notional, not both", field="notional")
            if kind is _LIMIT or side is not _BUY:
                raise RuleRefused(Code.budget_not_allowed, key=key)
            budget_units = market.budget_units(budget)
        else:
            budget_units = 0
        command = commands.PlaceOrder(
            account,
            market.symbol,
            side,
            kind,
            time_in_force,
            0 if price is None else market.ticks(price),
            0 if quantity is None else market.lots(quantity),
            budget_units,
            time_us(request.expires_at, "expires_at") if request.expires_at else 0,
            request.post_only,
            _SELF_TRADES[request.self_trade],
            request.session,
        )
        sent_at_us = time_us(request.sent_at, "sent_at") if request.sent_at else 0
        return Prepared(
            Envelope(account, key, sent_at_us, encode_command(command)), request, account=account, instrument=market
        )

    def _replace(self, request: wire.ReplaceOrder, principal: Principal, key: str) -> Prepared:
        account = _trader_account(principal, request.account)
        order_id, order_key = _named_order(request)
        if request.symbol:
            market = self._market(request.symbol)
        else:
            found = self._market_named(account, order_id, order_key, closed=True)
            if found is None:
                hint = "if it is still on its way, give its symbol too" if order_key else ""
                raise Unseen(Code.order_not_found, key=key, detail=hint)
            market = found
        if request.qty is None and request.limit_price is None:
            raise RuleRefused(Code.nothing_to_replace, key=key)
        command = commands.ReplaceOrder(
            account,
            order_id,
            0 if request.limit_price is None else market.ticks(request.limit_price),
            0 if request.qty is None else market.lots(request.qty),
            order_key,
            # An id never changes its instrument; what a key names may, until this is applied.
            market.symbol if order_key or request.symbol else "",
        )
        return self._made(request, command, account, key, account=account, market=market)

    def _cancel(self, request: wire.CancelOrder, principal: Principal, key: str) -> Prepared:
        account = _trader_account(principal, request.account)
        order_id, order_key = _named_order(request)
        # Unknown here it may still be open: a cancel does not wait until this node has caught up.
        market = self._market_named(account, order_id, order_key, closed=False)
        command = commands.CancelOrder(account, order_id, order_key)
        return self._made(request, command, account, key, account=account, market=market, is_cancel=True)

    def _cancel_all(self, request: wire.CancelOrders, principal: Principal, key: str) -> Prepared:
        symbol = self._market(request.symbol).symbol if request.symbol else ""
        command: commands.Command
        if principal.role == Role.operator:
            scope, account = "@operator", request.account
            if account:
                if not principal.may_touch(account):
                    raise RuleRefused(Code.account_not_found, key=key)
                command = commands.CancelAccountOrders(account, symbol)
            elif symbol:
                command = commands.CancelInstrumentOrders(symbol)
            else:
                raise InvalidField("name an account, a symbol, or both", field="symbol")
        else:
            scope = account = _trader_account(principal, request.account)
            command = commands.CancelAccountOrders(account, symbol)
        return self._made(request, command, scope, key, account=account, is_cancel=True)

    # ---- accounts and money ----

    def _open_account(self, request: wire.OpenAccount, principal: Principal, key: str) -> Prepared:
        _require(principal, Role.custodian)
        account = request.account
        if account:
            if not _is_account(account):
                raise InvalidField("account must be 3 to 64 of a-z, 0-9, _ and -", field="account")
        else:
            account = self._drawn(principal.role, key)
        if not principal.may_touch(account):
            raise Forbidden("this token may not open that account; a custodian for all accounts may", field="account")
        command = commands.OpenAccount(account, request.keys_max)
        return self._made(request, command, "@custodian", key, account=account)

    def _drawn(self, role: Role, key: str) -> str:
        """An id that looks random, yet a repeat of the request draws the same one."""
        return "a" + blake2b(f"{role}\0{key}".encode(), key=self._secret, digest_size=13).hexdigest()

    def _transfer(self, request: wire.TransferFunds, principal: Principal, key: str) -> Prepared:
        account = _custodian_account(principal, request.account, key)
        money = self._catalogue.money(request.asset)
        if money is None:
            raise Unseen(Code.asset_not_found, key=key)
        units = money.units(request.amount)
        command: commands.Command
        if request.kind == "transfer":
            if not request.target:
                raise InvalidField("a transfer needs target", field="target")
            if not principal.may_touch(request.target):
                raise RuleRefused(Code.account_not_found, key=key)
            command = commands.Transfer(account, request.target, money.asset, units)
        elif request.target:
            raise InvalidField(f"target does not go with a {request.kind}", field="target")
        elif request.kind == "deposit":
            command = commands.Deposit(account, money.asset, units)
        else:
            command = commands.RequestWithdrawal(account, money.asset, units)
        return self._made(request, command, "@custodian", key, account=account, scale=money.scale)

    def _close_withdrawal(self, request: wire.CloseWithdrawal, principal: Principal, key: str) -> Prepared:
        _require(principal, Role.custodian)
        number = _identifier(request.withdrawal_id, "withdrawal_id")
        command = commands.PostWithdrawal(number) if request.post else commands.VoidWithdrawal(number)
        prepared = self._made(request, command, "@custodian", key)
        if not principal.all_accounts:
            account = self._catalogue.account_of_withdrawal(number)
            if account is None:
                # A repeat comes when the withdrawal is not pending any more: it was judged when it came first.
                first = self._keyed.of_envelope(prepared.envelope)
                if first is not None and (
                    not isinstance(first.result, Moved) or principal.may_touch(first.result.source)
                ):
                    return prepared
            if account is None or not principal.may_touch(account):
                raise Unseen(Code.withdrawal_not_found, key=key)
        return prepared

    # ---- listing ----

    def _add_asset(self, request: wire.AddAsset, principal: Principal, key: str) -> Prepared:
        _require(principal, Role.operator)
        if not _is_asset(request.asset):
            raise InvalidField("asset must be 1 to 12 of A-Z and 0-9, a letter first", field="asset")
        supply = request.supply_max
        units = AMOUNT_UNITS_MAX if supply is None else Money(request.asset, request.scale).units(supply, "supply_max")
        return self._made(request, commands.AddAsset(request.asset, request.scale, units), "@operator", key)

    def _add_instrument(self, request: wire.AddInstrument, principal: Principal, key: str) -> Prepared:
        _require(principal, Role.operator)
        if not _is_symbol(request.symbol):
            raise InvalidField("symbol must be 1 to 16 of A-Z, 0-9, '.', '_' and '-'", field="symbol")
        base, quote = self._catalogue.money(request.base), self._catalogue.money(request.quote)
        if base is None or quote is None:
            raise Unseen(Code.asset_not_found, key=key, detail=request.quote if base is not None else request.base)
        price_scale, tick = _step(request.tick_size, "tick_size")
        quantity_scale, lot = _step(request.lot_size, "lot_size")
        market = Market(
            request.symbol,
            base=base.asset,
            base_scale=base.scale,
            quote=quote.asset,
            quote_scale=quote.scale,
            price_scale=price_scale,
            quantity_scale=quantity_scale,
            tick=tick,
            lot=lot,
        )
        command = commands.AddInstrument(
            request.symbol,
            base.asset,
            quote.asset,
            price_scale,
            quantity_scale,
            tick,
            lot,
            request.maker_bps,
            request.taker_bps,
            _limits(request.limits, commands.Limits(), market),
            _calendar(request.calendar),
        )
        return self._made(request, command, "@operator", key)

    def _change_instrument(self, request: wire.ChangeInstrument, principal: Principal, key: str) -> Prepared:
        _require(principal, Role.operator)
        fees = request.maker_bps is not None or request.taker_bps is not None
        groups = [request.mode is not None, fees, request.limits is not None, request.calendar is not None]
        if sum(groups) != 1:
            raise InvalidField("give exactly one of: mode; maker_bps and taker_bps; limits; calendar", field="mode")
        command: commands.Command
        if request.mode is not None:
            symbol = self._market(request.symbol).symbol if request.symbol else ""
            command = commands.SetMode(symbol, _MODES[request.mode])
            return self._made(request, command, "@operator", key)
        market = self._market(request.symbol)
        if fees:
            if request.maker_bps is None or request.taker_bps is None:
                raise InvalidField("give both maker_bps and taker_bps", field="maker_bps")
            command = commands.SetFees(market.symbol, request.maker_bps, request.taker_bps)
        elif request.limits is not None:
            present = self._catalogue.limits(market.symbol) or commands.Limits()
            command = commands.SetLimits(market.symbol, _limits(request.limits, present, market))
        else:
            command = commands.SetCalendar(market.symbol, _calendar(request.calendar or wire.CalendarBody()))
        return self._made(request, command, "@operator", key)

    def _set_reference(self, request: wire.SetReference, principal: Principal, key: str) -> Prepared:
        _require(principal, Role.feed)
        market = self._market(request.symbol)
        command = commands.SetReference(
            market.symbol, market.ticks(request.price, "price"), time_us(request.observed_at, "observed_at")
        )
        return self._made(request, command, "@feed", key)

    # ---- shared ----

    def _market_named(self, account: str, order_id: int, order_key: str, *, closed: bool) -> Market | None:
        if order_id:
            return self._catalogue.market_of_order(account, order_id, closed=closed)
        order = self._keyed.order_of_key(account, order_key, closed=closed)
        return None if order is None else self._catalogue.market(order.symbol)

    def _market(self, symbol: str) -> Market:
        market = self._catalogue.market(symbol)
        if market is None:
            raise Unseen(Code.instrument_not_found)
        return market

    def _made(
        self,
        request: wire.AnyRequest | None,
        command: commands.Command,
        scope: str,
        key: str,
        *,
        account: str = "",
        market: Market | None = None,
        scale: int = 0,
        is_cancel: bool = False,
    ) -> Prepared:
        sent_at_us = time_us(request.sent_at, "sent_at") if request is not None and request.sent_at else 0
        envelope = Envelope(scope, key, sent_at_us, encode_command(command))
        return Prepared(envelope, request, account=account, instrument=market, scale=scale, is_cancel=is_cancel)


def _check_key(key: str) -> None:
    if not key:
        raise RuleRefused(Code.key_required)
    if not _is_key(key):
        raise InvalidField("a key is 1 to 64 printable ASCII characters without spaces", field="key")


def _differ(field: str, other: str) -> NoReturn:
    raise InvalidField(f"{field} and {other} are both given and differ: they name one key", field=field)


def _require(principal: Principal, role: Role) -> None:
    if principal.role is not role:
        raise Forbidden(f"this needs a token of role {role}; this one is of role {principal.role}")


def _trader_account(principal: Principal, named: str) -> str:
    """The account that a trader acts on. Raises Forbidden, RuleRefused, InvalidField."""
    if principal.role is not Role.trader:
        _require(principal, Role.trader)
    if named:
        if named not in principal.accounts:
            raise RuleRefused(Code.account_not_found)
        return named
    only = principal.only_account
    if not only:
        raise InvalidField("name an account: this token is good for several, or for none", field="account")
    return only


def _custodian_account(principal: Principal, named: str, key: str) -> str:
    _require(principal, Role.custodian)
    account = named or principal.only_account
    if not account:
        raise InvalidField("name an account", field="account")
    if not principal.may_touch(account):
        raise RuleRefused(Code.account_not_found, key=key)
    return account


def _identifier(given: str, field: str) -> int:
    number = int(given) if given else 0
    if not 0 < number < 2**63:
        raise InvalidField(f"{field} must be a whole number above zero", field=field)
    return number


def _named_order(request: wire.ReplaceOrder | wire.CancelOrder) -> tuple[int, str]:
    """(order_id, 0 where there is none; key under which it was placed or last replaced). Raises InvalidField."""
    order_key = request.original_client_order_id
    if request.order_id:
        if order_key:
            raise InvalidField(
                "name the order by order_id or by original_client_order_id, not by both",
                field="original_client_order_id",
            )
        return _identifier(request.order_id, "order_id"), ""
    if not order_key:
        raise InvalidField("name the order: by order_id, or by original_client_order_id", field="order_id")
    if not _is_key(order_key):
        raise InvalidField(
            "original_client_order_id is 1 to 64 printable ASCII characters without spaces",
            field="original_client_order_id",
        )
    return 0, order_key


def _step(number: wire.Number, field: str) -> tuple[int, int]:
    """(scale, step) of a tick or lot size, the scale as small as it can be."""
    units = parse(number, SCALE_MAX, field, largest=10 ** (2 * SCALE_MAX))
    if not units:
        raise InvalidField(f"{field} must be above zero", field=field)
    scale = SCALE_MAX
    while scale and units % 10 == 0:
        units //= 10
        scale -= 1
    if units > 10**12:
        raise InvalidField(f"{field} must have at most 12 digits", field=field)
    return scale, units


def _limits(body: wire.LimitsBody, present: commands.Limits, market: Market) -> commands.Limits:
    quote = Money(market.quote, market.quote_scale)

    def lots(number: wire.Number | None, field: str, otherwise: int) -> int:
        return otherwise if number is None else market.lots(number, f"limits.{field}")

    def notional(number: wire.Number | None, field: str, otherwise: int) -> int:
        if number is None:
            return otherwise
        return parse(number, quote.scale, f"limits.{field}", largest=AMOUNT_UNITS_MAX)

    age_ms = body.reference_age_ms_max
    return commands.Limits(
        lots(body.qty_min, "qty_min", present.quantity_lots_min),
        lots(body.qty_max, "qty_max", present.quantity_lots_max),
        notional(body.notional_min, "notional_min", present.notional_units_min),
        notional(body.notional_max, "notional_max", present.notional_units_max),
        present.open_orders_max if body.open_orders_max is None else body.open_orders_max,
        present.band_bps if body.band_bps is None else body.band_bps,
        present.collar_bps if body.collar_bps is None else body.collar_bps,
        present.reference_age_us_max if age_ms is None else age_ms * 1_000,
    )


def _fills_in(body: wire.LimitsBody | None) -> bool:
    """Some limits are left out, so that present ones stay."""
    return body is not None and None in msgspec.structs.astuple(body)


def _calendar(body: wire.CalendarBody) -> commands.Calendar:
    weekly: tuple[commands.SessionHours | None, ...] = ()
    if body.weekly:
        weekly = tuple(_hours(body.weekly[day], f"weekly.{day}") if day in body.weekly else None for day in _WEEKDAYS)
    days: dict[int, commands.SessionHours | None] = {}
    for given in body.holidays:
        days[_day(given, "calendar.holidays")] = None
    for given, hours in body.special.items():
        day = _day(given, "calendar.special")
        if day in days:
            raise InvalidField(f"{given} is both a holiday and a special day", field="calendar.special")
        days[day] = _hours(hours, f"special.{given}")
    if len(days) > 400:
        raise InvalidField(f"{len(days)} holidays and special days; at most 400", field="calendar.holidays")
    return commands.Calendar(weekly, body.utc_offset_minutes, tuple(sorted(days.items())))


def _hours(body: wire.HoursBody, field: str) -> commands.SessionHours:
    opens, closes = _minute(body.open, field), _minute(body.close, field)
    return commands.SessionHours(opens, closes if closes > opens else closes + 1_440)


def _minute(given: str, field: str) -> int:
    hours, minutes = int(given[:2]), int(given[3:])
    if hours > 23:
        raise InvalidField(f"{given} must be between 00:00 and 23:59", field=f"calendar.{field}")
    return hours * 60 + minutes


def _day(given: str, field: str) -> int:
    try:
        day = (date.fromisoformat(given) - _EPOCH_DAY).days if len(given) == 10 else -1
    except ValueError as error:
        raise InvalidField(f"{given!r} must be a date such as 2026-12-25", field=field) from error
    if not 0 <= day <= 100_000:
        raise InvalidField(f"{given!r} must be a date from 1970 on", field=field)
    return day
