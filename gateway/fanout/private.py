"""Private order events from the cluster's feed: to each account its own side of what happened, as the nodes say it."""

from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
from typing import Any

import msgspec

from gateway.events import SEQ_ALL, AnyEvent, OrderClosed, OrderOpened, OrderReduced, Position, Traded, Transferred
from gateway.fanout.fragment import JSON, Fragment
from gateway.fanout.hub import Hub
from gateway.fanout.ring import Rings
from gateway.fanout.topics import CHANNELS
from gateway.projection.projector import Batch

CHANNEL = CHANNELS["orders"]
View = dict[str, Any]
_WORLD = "@"
"""Accounts that begin so are nobody's."""


class PrivateEvents:
    """`apply` and `reset` are hooks of the projection: on_batch and on_reset.

    on_gap: events may be missing (the projection was rebuilt from a snapshot); whoever listens must be told.
    """

    def __init__(self, hub: Hub, rings: Rings, on_gap: Callable[[], None] = lambda: None) -> None:
        self.hub = hub
        self.rings = rings
        self.on_gap = on_gap
        self._begun = False

    def reset(self) -> None:
        self._begun = False
        self.rings.forget(CHANNEL.name)
        self.on_gap()

    def apply(self, batch: Batch) -> None:
        """Deliver one batch of the feed. One update per account."""
        if not self._begun and batch.events:
            self.rings.begin(CHANNEL.name, _before(Position.parse(batch.events[0].position)))
            self._begun = True
        found: dict[str, list[View]] = {}
        for event in batch.events:
            for account, view in sides(event):
                if not account.startswith(_WORLD):
                    found.setdefault(account, []).append(view)
        for account, rows in found.items():
            mark = Position.parse(rows[-1]["position"])
            kept = self.rings.append((CHANNEL.name, account), _fragment(account, rows), mark)
            self.hub.append(kept.key, kept.fragment, kept.seq)


def _before(first: Position) -> Position:
    """What comes behind this is held, from the first event on."""
    if first.seq:
        return Position(first.group, first.epoch, first.index, first.seq - 1)
    return Position(first.group, first.epoch, first.index - 1, SEQ_ALL)


def sides(event: AnyEvent) -> Iterator[tuple[str, View]]:
    """(account, what that account may see), once for each account that the event concerns."""
    base: View = {"position": event.position, "at": event.at}
    if isinstance(event, Traded):
        yield event.taker_account, base | _fill(event, taker=True)
        yield event.maker_account, base | _fill(event, taker=False)
    elif isinstance(event, Transferred):
        yield event.source, base | _moved(event, event.source, -event.amount, event.source_balance)
        yield event.target, base | _moved(event, event.target, event.amount, event.target_balance)
    else:
        account = getattr(event, "account", "")
        if account:
            yield account, base | {"event": _word(event)} | _own(event)


def _word(event: AnyEvent) -> str:
    if isinstance(event, OrderOpened):
        return "new"
    if isinstance(event, OrderClosed):
        return event.status
    if isinstance(event, OrderReduced):
        return "reduced"
    return str(event.__struct_config__.tag)


def _own(event: AnyEvent) -> View:
    return {name: value for name, value in msgspec.structs.asdict(event).items() if name not in ("position", "at")}


def _fill(event: Traded, *, taker: bool) -> View:
    leaves: Decimal = event.taker_leaves_qty if taker else event.maker_leaves_qty
    other = "sell" if event.taker_side == "buy" else "buy"
    return {
        "event": "fill" if not leaves else "partial_fill",
        "account": event.taker_account if taker else event.maker_account,
        "order_id": event.taker_order_id if taker else event.maker_order_id,
        "symbol": event.symbol,
        "side": event.taker_side if taker else other,
        "liquidity": "taker" if taker else "maker",
        "trade_id": event.trade_id,
        "price": event.price,
        "qty": event.qty,
        "notional": event.notional,
        "fee": event.taker_fee if taker else event.maker_fee,
        "leaves_qty": leaves,
    }


def _moved(event: Transferred, account: str, amount: Decimal, balance: Decimal) -> View:
    return {
        "event": "transferred",
        "account": account,
        "asset": event.asset,
        "amount": amount,
        "balance": balance,
        "reason": event.reason,
    }


def _fragment(account: str, rows: list[View]) -> Fragment:
    return Fragment(partial(_make, account, rows))


def _make(account: str, rows: list[View], formats: int) -> Any:
    if formats != JSON:
        return CHANNEL.code, account, rows
    return {"channel": CHANNEL.name, "symbol": account, "events": rows}
