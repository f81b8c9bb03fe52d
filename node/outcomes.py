"""Turns what the machine answered into what a client reads: statuses, words, and messages that say what to do."""

from datetime import UTC, datetime
from functools import lru_cache

from cluster import wire
from node.errors import InternalError, NodeError
from node.market import Market
from node.submit import Outcome, Prepared
from statemachine.codes import Code
from statemachine.decimals import text
from statemachine.results import (
    Canceled,
    CanceledMany,
    Done,
    Moved,
    Placed,
    Refused,
    Replaced,
    Result,
    SessionOpened,
    WithdrawalPending,
)
from statemachine.types import Reason, Status

ERRORS: dict[Code, tuple[int, str]] = {
    Code.key_required: (400, "every command needs a key: send the header Idempotency-Key, `key` or `client_order_id`"),
    Code.key_reused: (409, "this key was used with another request: use a new key, or send the first request again"),
    Code.key_too_old: (422, "sent_at is older than keys are kept: read what happened, then send it under a new key"),
    Code.key_quota_exceeded: (429, "the account holds as many keys as it may: wait until older ones expire"),
    Code.sent_in_future: (422, "the time given lies in the future: set the clock of the sender"),
    Code.account_not_found: (404, "no such account, or it is not yours"),
    Code.account_exists: (409, "an account of this id exists: choose another, or leave the id out to get one"),
    Code.asset_not_found: (404, "no such asset: GET /v1/assets lists them"),
    Code.asset_exists: (409, "an asset of this name exists"),
    Code.instrument_not_found: (404, "no such symbol: GET /v1/instruments lists them"),
    Code.instrument_exists: (409, "an instrument of this symbol exists"),
    Code.order_not_found: (404, "no open order of this id or key in this account: it may have filled or been canceled"),
    Code.withdrawal_not_found: (404, "no pending withdrawal of this id: it may be posted or voided already"),
    Code.session_not_found: (404, "no open session of this id in this account: open one with cancel_on_disconnect"),
    Code.session_exists: (409, "a session of this id is open: choose another id"),
    Code.accounts_must_differ: (422, "account and target must differ"),
    Code.insufficient_funds: (403, "not enough available: reduce the amount, or cancel orders that hold it"),
    Code.supply_exceeded: (422, "the asset's largest supply would be exceeded: deposit less"),
    Code.account_reserved: (403, "accounts that begin with @ belong to the system"),
    Code.assets_must_differ: (422, "base and quote must be two assets"),
    Code.inexact_instrument: (
        422,
        "one tick times one lot must be a whole number of the quote's smallest unit, and one lot of the base's: "
        "choose a larger tick or lot",
    ),
    Code.bad_limits: (422, "a minimum is above its maximum"),
    Code.bad_calendar: (422, "the calendar contradicts itself: check opening hours and special days"),
    Code.instrument_halted: (422, "the instrument is halted: wait until it trades again"),
    Code.instrument_cancel_only: (422, "the instrument takes cancels only"),
    Code.instrument_post_only: (422, "the instrument takes post-only limit orders only: set post_only"),
    Code.market_closed: (422, "the market is closed: see the calendar at GET /v1/instruments"),
    Code.no_reference: (422, "there is no reference price yet: send a limit order"),
    Code.stale_reference: (422, "the reference price is too old for a market order: send a limit order, or wait"),
    Code.price_out_of_band: (422, "the price is too far from the reference price: move it closer"),
    Code.would_cross: (422, "the post-only order would trade at once: move its price, or leave post_only out"),
    Code.writes_stopped: (503, "replicas disagree, so nothing is written: an operator must look at GET /v1/status"),
    Code.older_reference: (422, "a newer reference price is known: observed_at must be later"),
    Code.price_required: (422, "a limit order needs limit_price"),
    Code.price_not_allowed: (422, "limit_price is not allowed here"),
    Code.quantity_required: (422, "give qty, or for a market buy notional"),
    Code.budget_not_allowed: (422, "notional is for market buys without qty"),
    Code.time_in_force_not_allowed: (
        422,
        "this time_in_force does not go with this order: market orders take ioc or fok, expires_at goes with gtd",
    ),
    Code.expiry_required: (422, "a gtd order needs expires_at"),
    Code.expiry_in_past: (422, "expires_at is past"),
    Code.quantity_too_small: (422, "qty is below the instrument's minimum"),
    Code.quantity_too_large: (422, "qty is above the instrument's maximum"),
    Code.notional_too_small: (422, "price times quantity is below the instrument's minimum"),
    Code.notional_too_large: (422, "price times quantity is above the instrument's maximum"),
    Code.open_orders_limit: (422, "the account has as many open orders here as it may: cancel some first"),
    Code.below_filled: (422, "qty is the new total and must be more than what has filled already"),
    Code.nothing_to_replace: (422, "neither qty nor limit_price would change"),
    Code.post_only_not_allowed: (422, "post_only goes with limit orders that may rest"),
    Code.sessions_limit: (422, "the account has as many sessions open as it may: close some first"),
    Code.withdrawals_limit: (422, "the account has as many withdrawals pending as it may: post or void some first"),
    Code.unknown_rules: (422, "these rules, or newer ones, are in force already"),
}
"""HTTP status and message of each refusal; its name is the word."""

if missing := set(Code) - set(ERRORS) - {Code.ok}:
    raise RuntimeError(f"codes without a status and a message: {sorted(missing)}")

FIELDS: dict[Code, str] = {
    Code.key_required: "key",
    Code.key_reused: "key",
    Code.key_too_old: "sent_at",
    Code.account_not_found: "account",
    Code.account_exists: "account",
    Code.account_reserved: "account",
    Code.asset_not_found: "asset",
    Code.asset_exists: "asset",
    Code.instrument_not_found: "symbol",
    Code.instrument_exists: "symbol",
    Code.order_not_found: "order_id",
    Code.withdrawal_not_found: "withdrawal_id",
    Code.session_not_found: "session",
    Code.price_required: "limit_price",
    Code.price_not_allowed: "limit_price",
    Code.price_out_of_band: "limit_price",
    Code.quantity_required: "qty",
    Code.quantity_too_small: "qty",
    Code.quantity_too_large: "qty",
    Code.below_filled: "qty",
    Code.budget_not_allowed: "notional",
    Code.expiry_required: "expires_at",
    Code.expiry_in_past: "expires_at",
    Code.time_in_force_not_allowed: "time_in_force",
    Code.post_only_not_allowed: "post_only",
    Code.older_reference: "observed_at",
}


class RuleRefused(NodeError):
    """A refusal of the rules, or one that the door can tell without them. Nothing changed."""

    def __init__(self, code: Code, *, key: str = "", detail: str = "") -> None:
        status, message = ERRORS[code]
        super().__init__(f"{message} ({detail})" if detail else message, field=FIELDS.get(code, ""), key=key)
        self.status = status
        self.number = int(code)
        self.error = code.name


@lru_cache(maxsize=4_096)
def at(time_us: int) -> str:
    """RFC 3339 in UTC with microseconds; cached, since all commands of a batch share their time."""
    seconds, micros = divmod(time_us, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{micros:06d}Z"


STATUS_WORD = {status: status.name for status in Status}
REASON_WORD = {reason: "" if reason is Reason.none else reason.name for reason in Reason}


def error_of(prepared: Prepared, outcome: Outcome) -> NodeError | None:
    """The error that an outcome is, or None when the command was done."""
    result = outcome.result
    if isinstance(result, NodeError):
        result.key = result.key or prepared.envelope.key
        return result
    if type(result) is Refused:
        return RuleRefused(result.code, key=prepared.envelope.key, detail=_detail(prepared, result))
    return None


def answer(prepared: Prepared, outcome: Outcome) -> wire.Answer:
    """What a client reads of one command."""
    key = prepared.envelope.key
    result = outcome.result
    kind = type(result)
    if kind is Placed:
        return placed(key, outcome, prepared.instrument)
    error = error_of(prepared, outcome)
    if error is not None:
        return wire.Answer(
            key=key,
            index=outcome.index,
            replay=outcome.replay,
            error=error.error,
            code=error.code,
            message=error.message,
            field=error.field,
        )
    return rendered(
        key,
        outcome.index,
        outcome.replay,
        result,
        market=prepared.instrument,
        scale=prepared.scale,
        account=prepared.account,
    )


def placed(key: str, outcome: Outcome, market: Market | None) -> wire.Answer:
    """The answer to most commands, so it is written out."""
    result = outcome.result
    if type(result) is not Placed or market is None:
        raise InternalError(f"the answer at {outcome.index} is no order's")
    filled_lots = result.filled_lots
    if not filled_lots:
        return wire.Answer(
            key=key,
            index=outcome.index,
            replay=outcome.replay,
            id=str(result.order_id),
            status=STATUS_WORD[result.status],
            reason=REASON_WORD[result.reason],
            filled_qty="0",
            leaves_qty=market.quantity(result.leaves_lots),
            fee="0",
            at=at(result.at_us),
        )
    return wire.Answer(
        key=key,
        index=outcome.index,
        replay=outcome.replay,
        id=str(result.order_id),
        status=STATUS_WORD[result.status],
        reason=REASON_WORD[result.reason],
        filled_qty=market.quantity(filled_lots),
        leaves_qty=market.quantity(result.leaves_lots),
        filled_avg_price=market.average_price(result.notional_units, filled_lots),
        fee=text(result.fee_units, market.quote_scale),
        at=at(result.at_us),
    )


def rendered(
    key: str,
    index: int,
    replay: bool,
    result: Result | NodeError,
    *,
    market: Market | None,
    scale: int,
    account: str,
) -> wire.Answer:
    """Any result but a refusal. scale: decimals of the asset that a transfer names."""
    match result:
        case Placed():
            return placed(key, Outcome(index, result, replay), market)
        case Replaced() if market is not None:
            return wire.Answer(
                key=key,
                index=index,
                replay=replay,
                id=str(result.order_id),
                status=STATUS_WORD[result.status],
                reason=REASON_WORD[result.reason],
                filled_qty=market.quantity(result.filled_lots),
                leaves_qty=market.quantity(result.leaves_lots),
                filled_avg_price=market.average_price(result.notional_units, result.filled_lots),
                fee=text(result.fee_units, market.quote_scale),
                at=at(result.at_us),
                replaces=str(result.replaces),
                kept_priority=result.kept_priority,
            )
        case Canceled():
            return wire.Answer(
                key=key,
                index=index,
                replay=replay,
                id=str(result.order_id),
                status=Status.canceled.name,
                reason=Reason.requested.name,
                filled_qty=market.quantity(result.filled_lots) if market is not None else "",
                leaves_qty=market.quantity(result.leaves_lots) if market is not None else "",
                at=at(result.at_us),
            )
        case CanceledMany():
            return wire.Answer(
                key=key,
                index=index,
                replay=replay,
                status="done" if not result.remaining else "going_on",
                count=result.count,
                remaining=result.remaining,
            )
        case Moved():
            return wire.Answer(
                key=key,
                index=index,
                replay=replay,
                status="done",
                account=account or result.source,
                at=at(result.at_us),
            )
        case WithdrawalPending():
            return wire.Answer(
                key=key,
                index=index,
                replay=replay,
                id=str(result.withdrawal_id),
                status="pending",
                account=result.account,
                at=at(result.at_us),
            )
        case SessionOpened():
            return wire.Answer(
                key=key, index=index, replay=replay, status="open", account=account, at=at(result.deadline_us)
            )
        case Done():
            return wire.Answer(key=key, index=index, replay=replay, status="done", account=account)
        case _:
            raise InternalError(f"no client is answered with {type(result).__name__}", key=key)


def _detail(prepared: Prepared, result: Refused) -> str:
    """The two sides of the comparison that failed, in the client's units."""
    need, have, market = result.need, result.have, prepared.instrument
    if not need and not have:
        return ""
    match result.code:
        case Code.insufficient_funds if isinstance(prepared.request, wire.PlaceOrder) and market is not None:
            sell = prepared.request.side == "sell"
            scale, asset = (market.base_scale, market.base) if sell else (market.quote_scale, market.quote)
            return f"needs {text(need, scale)} {asset}, available {text(have, scale)}"
        case Code.insufficient_funds | Code.supply_exceeded if isinstance(prepared.request, wire.TransferFunds):
            return f"needs {text(need, prepared.scale)}, available {text(have, prepared.scale)}"
        case Code.quantity_too_small | Code.quantity_too_large | Code.below_filled if market is not None:
            return f"bound {market.quantity(need)}, given {market.quantity(have)}"
        case Code.notional_too_small | Code.notional_too_large if market is not None:
            return f"bound {text(need, market.quote_scale)}, given {text(have, market.quote_scale)}"
        case Code.insufficient_funds:
            return ""  # a replacement: of which asset, its order says
        case Code.price_out_of_band if market is not None:
            return f"bound {market.price(need)}, given {market.price(have)}"
        case Code.expiry_in_past | Code.older_reference | Code.key_too_old:
            return f"must be after {at(need)}, is {at(have)}"
        case Code.sent_in_future:
            return f"must not be after {at(need)}, is {at(have)}"
        case Code.stale_reference:
            return f"{have / 1e6:.3f} s old, at most {need / 1e6:.3f} s"
        case Code.open_orders_limit | Code.withdrawals_limit | Code.sessions_limit | Code.key_quota_exceeded:
            return f"at most {need}, has {have}"
        case _:
            return f"needs {need}, has {have}"
