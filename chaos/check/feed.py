"""The event stream: ordered, without gap or repeat, at whichever member it was read on, and what the log leads to."""

from itertools import groupby
from typing import Any

from chaos.check import words
from chaos.check.judging import Wrong, invalid, judge
from chaos.check.ledger import Model
from chaos.check.replay import Replayed
from chaos.check.told import Told
from chaos.check.verdict import Check
from chaos.check.words import Words
from chaos.history.records import Event
from statemachine.results import Moved
from statemachine.types import Reason, Status


def check_events(told: Told, done: Replayed) -> Check:
    if lacks := told.lacks("log.jsonl", "events.jsonl"):
        return invalid("events", lacks)
    if not told.events:
        return invalid("events", "no event was read")
    switches = sum(before.source != after.source for before, after in zip(told.events, told.events[1:], strict=False))
    counts = {"events": len(told.events), "switches": switches}
    wrong = _sequence(told.events)
    last = told.events[-1].index
    if not wrong:
        by_index = {index: list(group) for index, group in groupby(told.events, lambda event: event.index)}
        for index in sorted({*by_index, *done.happened, *done.moved}):
            if index <= last:
                wrong += _entry(done, index, by_index.get(index, []))
    unread = [index for index in done.happened if last < index <= told.final.index]
    if unread and not wrong:
        return invalid("events", f"reading ended at index {last}; {len(unread)} entries with events follow", counts)
    return judge("events", "every event once, in order, as the log makes them", wrong, counts)


def _sequence(events: list[Event]) -> Wrong:
    """(index, seq) goes up; inside an entry it counts up from zero."""
    wrong: Wrong = []
    index, seq = 0, -1
    for event in events:
        after = (event.index, event.seq)
        shown = {"after": f"{index}.{seq}", "event": f"{event.index}.{event.seq}", "source": event.source}
        if after <= (index, seq):
            wrong.append((f"event {event.index}.{event.seq} comes again, or too late", shown))
        elif event.seq != (seq + 1 if event.index == index else 0):
            wrong.append((f"before event {event.index}.{event.seq} one is missing", shown))
        index, seq = max((index, seq), after)
    return wrong


def _entry(done: Replayed, index: int, events: list[Event]) -> Wrong:
    """The events of one entry against what the ledger tells of it."""
    wrong: Wrong = []
    model = done.model
    expected = [said for line in done.happened.get(index, []) if (said := _words(model, line))]
    expected_moves = [_transfer(model, moved) for moved in done.moved.get(index, [])]
    told = [event for event in events if event.kind in _TOLD]
    told_moves = [event for event in events if event.kind == "transferred"]
    for should, found in ((expected, told), (expected_moves, told_moves)):
        if len(should) != len(found):
            why = f"index {index} leads to {len(should)} events, {len(found)} were told"
            wrong.append((why, {"told": [f"{event.kind} {event.seq}" for event in found]}))
            continue
        for one, event in zip(should, found, strict=True):
            fields = {name: value for name, value in event.fields.items() if name in one}
            names = [] if event.kind == one["type"] else ["type"]
            names += [name for name, value in fields.items() if not words.same(one[name], value)]
            if names:
                why = f"event {event.index}.{event.seq} tells another {names[0]}"
                wrong.append((why, {"told": {"type": event.kind, **fields}, "ledger": words.shown(one)}))
    return wrong


_TOLD = frozenset(
    {"order_opened", "traded", "order_reduced", "order_closed", "reference_set", "session_changed", "rules_activated"}
)


def _transfer(model: Model, moved: Moved) -> Words:
    return {
        "type": "transferred",
        "source": moved.source,
        "target": moved.target,
        "asset": moved.asset,
        "amount": words.amount(model, moved.asset, moved.amount_units),
        "source_balance": words.amount(model, moved.asset, moved.source_units),
        "target_balance": words.amount(model, moved.asset, moved.target_units),
    }


def _words(model: Model, line: tuple[Any, ...]) -> Words | None:
    """What the ledger says happened, as the feed tells it; None for what it does not tell."""
    match line:
        case ("opened", order_id, account, hold, replaces, filled, kept):
            order = model.orders[order_id]
            return {
                "type": "order_opened",
                "order_id": str(order_id),
                "account": account,
                "hold": words.amount(model, model.held_in(order), hold),
                "replaces": str(replaces) if replaces else None,
                "filled_qty": words.lots(model, order.ask.symbol, filled),
                "kept_priority": kept,
            }
        case (
            "traded",
            trade_id,
            price,
            lots,
            notional,
            taker,
            taker_fee,
            taker_leaves,
            maker,
            maker_fee,
            maker_leaves,
        ):
            symbol = model.orders[taker].ask.symbol
            quote = model.instruments[symbol].quote
            return {
                "type": "traded",
                "trade_id": str(trade_id),
                "symbol": symbol,
                "price": words.price(model, symbol, price),
                "qty": words.lots(model, symbol, lots),
                "notional": words.amount(model, quote, notional),
                "taker_order_id": str(taker),
                "taker_fee": words.amount(model, quote, taker_fee),
                "taker_leaves_qty": words.lots(model, symbol, taker_leaves),
                "maker_order_id": str(maker),
                "maker_fee": words.amount(model, quote, maker_fee),
                "maker_leaves_qty": words.lots(model, symbol, maker_leaves),
            }
        case ("reduced", order_id, lots, leaves):
            symbol = model.orders[order_id].ask.symbol
            return {
                "type": "order_reduced",
                "order_id": str(order_id),
                "reduced_qty": words.lots(model, symbol, lots),
                "leaves_qty": words.lots(model, symbol, leaves),
            }
        case ("closed", order_id, Status() as status, Reason() as reason, filled, leaves, notional, fee, replaced_by):
            symbol = model.orders[order_id].ask.symbol
            quote = model.instruments[symbol].quote
            return {
                "type": "order_closed",
                "order_id": str(order_id),
                "status": status.name,
                "reason": reason.name,
                "filled_qty": words.lots(model, symbol, filled),
                "leaves_qty": words.lots(model, symbol, leaves),
                "filled_notional": words.amount(model, quote, notional),
                "fee": words.amount(model, quote, fee),
                "replaced_by": str(replaced_by) if replaced_by else None,
            }
        case ("reference", symbol, price, observed_at_us):
            return {
                "type": "reference_set",
                "symbol": symbol,
                "price": words.price(model, symbol, price),
                "observed_at": words.at(observed_at_us),
            }
        case ("session", account, session, is_open):
            return {"type": "session_changed", "account": account, "session": session, "open": is_open}
        case ("rules", version):
            return {"type": "rules_activated", "version": version}
        case _:
            return None
