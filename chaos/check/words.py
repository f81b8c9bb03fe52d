"""What the ledger says, in the words of a client's answer; numbers as fractions, to be compared by value."""

from collections.abc import Mapping
from datetime import UTC, datetime
from fractions import Fraction
from functools import lru_cache
from math import gcd
from typing import Any

from chaos.check.ledger import Model, No, Order
from statemachine.commands import AnyCommand, PlaceOrder
from statemachine.results import (
    AnyResult,
    Canceled,
    CanceledMany,
    Done,
    Moved,
    Placed,
    Replaced,
    SessionOpened,
    WithdrawalPending,
)
from statemachine.types import Reason, Side, Status

AVERAGE_DIGITS = 6
"""Behind those of the price, that an average price is rounded to."""

Words = dict[str, Any]
"""A value is a text, a Fraction, a bool, or a set of texts of which each is right."""


def answer(model: Model, command: AnyCommand, result: AnyResult | No) -> Words:
    """What a client must have been answered. Call it when the ledger has just executed the command."""
    match result:
        case No(codes=codes):
            return {"error": {code.name for code in codes}}
        case Placed() | Replaced():
            order = model.orders[result.order_id]
            found = {
                "id": str(result.order_id),
                "status": result.status.name,
                "reason": "" if result.reason is Reason.none else result.reason.name,
                "filled_qty": lots(model, order.ask.symbol, result.filled_lots),
                "leaves_qty": lots(model, order.ask.symbol, result.leaves_lots),
                "fee": amount(model, model.instruments[order.ask.symbol].quote, result.fee_units),
                "at": at(result.at_us),
            }
            if isinstance(result, Replaced):
                found |= {"replaces": str(result.replaces), "kept_priority": result.kept_priority}
            if result.filled_lots:
                found["filled_avg_price"] = average(model, order.ask.symbol, result.notional_units, result.filled_lots)
            return found
        case Canceled():
            symbol = model.orders[result.order_id].ask.symbol
            return {
                "id": str(result.order_id),
                "status": "canceled",
                "reason": "requested",
                "filled_qty": lots(model, symbol, result.filled_lots),
                "leaves_qty": lots(model, symbol, result.leaves_lots),
                "at": at(result.at_us),
            }
        case CanceledMany():
            status = "going_on" if result.remaining else "done"
            return {"status": status, "count": Fraction(result.count), "remaining": Fraction(result.remaining)}
        case Moved():
            return {"status": "done", "at": at(result.at_us)}
        case WithdrawalPending():
            return {"id": str(result.withdrawal_id), "status": "pending", "at": at(result.at_us)}
        case SessionOpened():
            return {"status": "open", "at": at(result.deadline_us)}
        case Done():
            return {"status": "done"}
        case _:
            return {}


def order(model: Model, found: Order) -> Words:
    """An order as reads show it, open or closed."""
    symbol, ask = found.ask.symbol, found.ask
    words: Words = {
        "status": found.status.name if found.status else Status.new.name,
        "reason": "" if found.reason is Reason.none else found.reason.name,
        "filled_qty": lots(model, symbol, found.filled),
        "leaves_qty": lots(model, symbol, found.leaves),
        "fee": amount(model, model.instruments[symbol].quote, found.fee),
    }
    if ask.quantity_lots:
        words["qty"] = lots(model, symbol, ask.quantity_lots)
    if ask.price_ticks:
        words["limit_price"] = price(model, symbol, ask.price_ticks)
    if found.filled:
        words["filled_avg_price"] = average(model, symbol, found.notional, found.filled)
    return words


def balances(model: Model, account: str) -> dict[str, tuple[Fraction, Fraction]]:
    """asset: (total, available)."""
    found = {}
    for asset in model.assets:
        units = model.owned.get((account, asset), 0)
        if (account, asset) in model.owned:
            free = units - model.held(account, asset)
            found[asset] = (amount(model, asset, units), amount(model, asset, free))
    return found


def amount(model: Model, asset: str, units: int) -> Fraction:
    return _ratio(units, 10 ** model.assets[asset].scale)


def lots(model: Model, symbol: str, count: int) -> Fraction:
    listed = model.instruments[symbol]
    return _ratio(count * listed.lot, 10**listed.quantity_scale)


def price(model: Model, symbol: str, ticks: int) -> Fraction:
    listed = model.instruments[symbol]
    return _ratio(ticks * listed.tick, 10**listed.price_scale)


@lru_cache(maxsize=100_000)
def _ratio(numerator: int, denominator: int) -> Fraction:
    divisor = gcd(numerator, denominator)
    return _reduced(numerator // divisor, denominator // divisor)


@lru_cache(maxsize=100_000)
def _reduced(numerator: int, denominator: int) -> Fraction:
    """One object for one number, mostly: two that are one need not be compared, which takes Fraction long."""
    return Fraction(numerator, denominator)


def average(model: Model, symbol: str, notional: int, count: int) -> Fraction:
    """The price per whole unit of the base asset, rounded half up."""
    listed = model.instruments[symbol]
    exact = amount(model, listed.quote, notional) / lots(model, symbol, count)
    unit = 10 ** (listed.price_scale + AVERAGE_DIGITS)
    return Fraction((2 * exact * unit + 1) // 2, unit)


@lru_cache(maxsize=1_000)
def at(time_us: int) -> str:
    seconds, micros = divmod(time_us, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{micros:06d}Z"


def asked(model: Model, command: AnyCommand) -> Words:
    """A command of the log in a client's words, as far as both have them: to tell whose body a key was used for."""
    fields = {name: getattr(command, name) for name in command.__struct_fields__}
    words: Words = {name: fields[name] for name in ("account", "source", "target", "asset", "symbol") if name in fields}
    asset = fields.get("asset", "")
    if "amount_units" in fields and asset in model.assets:
        words["amount"] = amount(model, asset, fields["amount_units"])
    symbol = fields.get("symbol", "")
    if symbol in model.instruments and fields.get("quantity_lots"):
        words["qty"] = lots(model, symbol, fields["quantity_lots"])
    if symbol in model.instruments and fields.get("price_ticks"):
        words["limit_price"] = words["price"] = price(model, symbol, fields["price_ticks"])
    if isinstance(command, PlaceOrder):
        words["side"] = "buy" if command.side is Side.buy else "sell"
    if fields.get("order_id"):
        words["order_id"] = str(fields["order_id"])
    if "withdrawal_id" in fields:
        words["withdrawal_id"] = str(fields["withdrawal_id"])
    return words


def differing(expected: Mapping[str, Any], said: Mapping[str, Any]) -> list[str]:
    """Names of what was said that is not as expected. An error must be said where one is expected, and only there."""
    if "error" in expected or "error" in said:
        return [] if said.get("error") in expected.get("error", ()) else ["error"]
    return [name for name, value in said.items() if name in expected and not same(expected[name], value)]


def same(expected: Any, said: Any) -> bool:
    if type(expected) is Fraction:  # a check by isinstance takes ten times as long
        found = number(said)
        return found is expected or found == expected
    return bool(expected == said)


def number(said: Any) -> Fraction | None:
    """A decimal text or a whole number; None for anything else."""
    return _number(said) if isinstance(said, str | int) else None


@lru_cache(maxsize=100_000)
def _number(said: str | int) -> Fraction | None:
    try:
        found = Fraction(said)
    except ValueError:
        return None
    return _reduced(found.numerator, found.denominator)


def shown(words: Mapping[str, Any]) -> dict[str, Any]:
    """For an example in a verdict."""
    return {name: plain(value) for name, value in words.items()}


def plain(value: Any) -> Any:
    if isinstance(value, Fraction):
        return str(value.numerator) if value.denominator == 1 else str(float(value))
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return shown(value)
    return value
