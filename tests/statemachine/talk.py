"""A tiny language in which a conversation with a machine is written down; see conversations/*.txt.

A block is command lines, `----`, and what the machine said. Each command is a batch of its own.

    VERB VALUE... NAME=VALUE...   a command: positional fields first, any other field by name
        key=K  sent_at_us=T  scope=S   on its envelope; the key is a new one each time unless given
    wait 10s | 5m | 2h            let replicated time pass
    events on | off               show what followed, indented
    balances ACCOUNT | book SYMBOL | order ID | orders ACCOUNT | sessions ACCOUNT | withdrawals ACCOUNT | due |
        ledger | audit
    repeat N COMMAND              N times; `#` in it counts from 1; only the last answer is shown

Times are relative to the start: +90s. Enums go by their names. Zero and empty fields are not shown.
"""

import re
from enum import IntEnum
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

from statemachine import commands as c
from statemachine.audit import audit
from statemachine.codec import Envelope, encode_batch, encode_command
from statemachine.machine import Machine
from statemachine.memory import MemoryBacking
from statemachine.types import OrderType, TimeInForce

START_US = 1_750_086_000_000_000
"""2025-06-16 15:00 UTC, a Monday."""
UNITS_US = {"ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}

LIMIT = {"type": OrderType.limit, "time_in_force": TimeInForce.gtc}
MARKET = {"type": OrderType.market, "time_in_force": TimeInForce.ioc, "price_ticks": 0, "quantity_lots": 0}
VERBS: dict[str, tuple[type[c.Command], str, dict[str, Any]]] = {
    "asset": (c.AddAsset, "asset scale supply_units_max", {"supply_units_max": 10**12}),
    "instrument": (
        c.AddInstrument,
        "symbol base quote price_scale quantity_scale tick lot",
        {"price_scale": 0, "quantity_scale": 0, "tick": 1, "lot": 1},
    ),
    "mode": (c.SetMode, "symbol mode", {}),
    "fees": (c.SetFees, "symbol maker_bps taker_bps", {}),
    "limits": (c.SetLimits, "symbol", {"limits": c.Limits()}),
    "calendar": (c.SetCalendar, "symbol calendar", {}),
    "account": (c.OpenAccount, "account", {}),
    "deposit": (c.Deposit, "account asset amount_units", {}),
    "transfer": (c.Transfer, "source target asset amount_units", {}),
    "withdraw": (c.RequestWithdrawal, "account asset amount_units", {}),
    "post": (c.PostWithdrawal, "withdrawal_id", {}),
    "void": (c.VoidWithdrawal, "withdrawal_id", {}),
    "place": (c.PlaceOrder, "account symbol side quantity_lots price_ticks", LIMIT),
    "market": (c.PlaceOrder, "account symbol side quantity_lots", MARKET),
    "replace": (c.ReplaceOrder, "account order_id", {"order_id": 0}),
    "cancel": (c.CancelOrder, "account order_id", {"order_id": 0}),
    "cancel_all": (c.CancelAccountOrders, "account symbol", {}),
    "cancel_symbol": (c.CancelInstrumentOrders, "symbol", {}),
    "reference": (c.SetReference, "symbol price_ticks observed_at_us", {}),
    "session": (c.OpenSession, "account session timeout_ms", {}),
    "beat": (c.BeatSession, "account session", {}),
    "close_session": (c.CloseSession, "account session", {}),
    "step": (c.TimeStep, "", {}),
    "report": (c.ReportDigest, "member digest_index digest replicas", {}),
    "rules": (c.ActivateRules, "version", {}),
}
HIDDEN = {"at_us", "limits", "calendar", "base", "quote", "price_scale", "quantity_scale", "tick", "lot"}


class Talk:
    """One conversation. restarting: rebuild the machine from its store after every line."""

    def __init__(self, *, restarting: bool = False) -> None:
        self.backing = MemoryBacking()
        self.machine = Machine(self.backing)
        self.restarting = restarting
        self.repeating = False
        self.stamp_us = START_US
        self.keys = 0
        self.show_events = False

    def say(self, line: str) -> list[str]:
        """Run one line; returns what is to be shown of it."""
        words = line.split()
        verb = words[0]
        if verb == "wait":
            self.stamp_us += span_us(words[1])
            return []
        if verb == "events":
            self.show_events = words[1] == "on"
            return []
        if verb == "repeat":
            shown: list[str] = []
            for left in reversed(range(int(words[1]))):
                self.repeating = left > 0
                shown = self.say(" ".join(words[2:]).replace("#", str(int(words[1]) - left)))
            return shown
        if verb in VERBS:
            return self.send(verb, words[1:])
        ask = getattr(self, f"show_{verb}")
        shown = ask(*words[1:])
        return shown or ["nothing"]

    def send(self, verb: str, words: list[str]) -> list[str]:
        named = dict(word.split("=", 1) for word in words if "=" in word)
        body = self.command(verb, [word for word in words if "=" not in word], named)
        self.keys += 1
        key = "" if isinstance(body, c.INTERNAL) else f"key-{self.keys}"
        scope = named.get("scope") or getattr(body, "account", "@operator")
        sent_at_us = self.time(named["sent_at_us"]) if "sent_at_us" in named else 0
        envelope = Envelope(scope, named.get("key", key), sent_at_us, encode_command(body))
        return self.apply([envelope])

    def apply(self, envelopes: list[Envelope]) -> list[str]:
        applied = self.machine.apply(self.machine.applied_index + 1, encode_batch(self.stamp_us, envelopes))
        self.backing.write(applied)
        if self.restarting and not self.repeating:
            self.backing.store(self.machine.collect())
            self.machine = Machine(self.backing, self.backing.state())
        shown = [render(result) for result in applied.results]
        if self.show_events:
            shown += [f"  {render(event)}" for event in applied.events]
        return shown

    def command(self, verb: str, positional: list[str], named: dict[str, str]) -> c.Command:
        kind, names, defaults = VERBS[verb]
        hints = get_type_hints(kind)
        fields = dict(defaults)
        for name, text in [*zip(names.split(), positional, strict=False), *named.items()]:
            if name in hints:
                fields[name] = self.value(hints[name], name, "" if text == "*" else text)
        limits = {name: int(text) for name, text in named.items() if name in c.Limits.__struct_fields__}
        if limits:
            fields["limits"] = msgspec.structs.replace(c.Limits(), **limits)
        return kind(**fields)

    def value(self, kind: Any, name: str, text: str) -> Any:
        if get_origin(kind) is not None and get_args(kind):
            kind = get_args(kind)[0]
        if isinstance(kind, type) and issubclass(kind, IntEnum):
            return kind[text]
        if name.endswith("_us"):
            return self.time(text)
        if kind is bool:
            return text == "yes"
        if kind is c.Calendar:
            return msgspec.json.decode(text, type=c.Calendar)
        if kind is bytes:
            return text.encode() * 16
        return int(text) if kind is int else text

    def time(self, text: str) -> int:
        """`+5s` from the start, `now`, `now-5s`, or plain microseconds."""
        if text.startswith("now"):
            base_us = max(self.stamp_us, self.machine.time_us + 1)
            return base_us + (span_us(text[3:]) if text != "now" else 0)
        return START_US + span_us(text) if text[0] in "+-" else int(text)

    # ---- looking ----

    def show_balances(self, name: str) -> list[str]:
        account = self.machine.account(name)
        rows = account.balances if account else []
        return [f"{asset} available {available} held {held}" for asset, available, held in sorted(rows)]

    def show_book(self, symbol: str) -> list[str]:
        found = self.machine.book(symbol, 100)
        bids, asks = found if found else ([], [])
        lines = [f"sell {lots} @ {price} in {count}" for price, lots, count in reversed(asks)]
        return lines + [f"buy {lots} @ {price} in {count}" for price, lots, count in bids]

    def show_order(self, order_id: str) -> list[str]:
        order = self.machine.order(int(order_id))
        return [render(order)] if order else []

    def show_orders(self, account: str) -> list[str]:
        return [render(order) for order in self.machine.open_orders(account)]

    def show_withdrawals(self, account: str) -> list[str]:
        return [render(withdrawal) for withdrawal in self.machine.withdrawals(account)]

    def show_sessions(self, account: str) -> list[str]:
        return [render(session) for session in self.machine.sessions(account)]

    def show_due(self) -> list[str]:
        due_at_us = self.machine.due_at_us()
        if due_at_us is None:
            return []
        return ["now" if due_at_us <= self.machine.time_us else shown_time(due_at_us)]

    def show_ledger(self) -> list[str]:
        """What the last batch that moved anything wrote."""
        rows = self.backing.ledger
        last = [row for row in rows if row.index == rows[-1].index]
        return [
            f"{row.row} {row.account} {row.delta_units:+d} {row.asset} {row.reason.name} owns {row.owned_units}"
            for row in last
        ]

    def show_audit(self) -> list[str]:
        return self.findings() or ["all holds"]

    def findings(self) -> list[str]:
        self.backing.store(self.machine.collect())
        return audit(self.backing.state(), self.backing.accounts(), self.backing.ledger)


def converse(text: str, *, restarting: bool = False) -> tuple[str, list[str]]:
    """The text with every answer as it is now, and what the audit finds at the end."""
    talk = Talk(restarting=restarting)
    lines: list[str] = []
    answers: list[str] = []
    skipping = False
    for line in text.splitlines():
        if line == "----":
            lines += ["----", *answers]
            answers = []
            skipping = True
        elif not line.strip():
            skipping = False
            lines.append("")
        elif not skipping:
            lines.append(line)
            if not line.startswith("#"):
                answers += talk.say(line)
    return "\n".join(lines) + "\n", talk.findings()


def span_us(text: str) -> int:
    match = re.fullmatch(r"([+-]?)([0-9]+)(ms|s|m|h|d|us)", text)
    assert match, f"{text!r} is not a span of time"
    sign, number, unit = match.groups()
    return (-1 if sign == "-" else 1) * int(number) * UNITS_US.get(unit, 1)


def shown_time(at_us: int) -> str:
    """Exact, in the largest unit that fits."""
    span = at_us - START_US
    for unit in ("h", "m", "s", "ms"):
        if span % UNITS_US[unit] == 0:
            return f"{span // UNITS_US[unit]:+d}{unit}"
    return f"{span:+d}us"


def render(struct: msgspec.Struct) -> str:
    """Name and what is in it; what is zero, empty or only a time of its own is left out."""
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(struct).__name__).lower().removesuffix("_record")
    parts = [name]
    for field in struct.__struct_fields__:
        value = getattr(struct, field)
        if field in HIDDEN or (not value and field != "code"):
            continue
        if isinstance(value, IntEnum):
            value = value.name
        elif field.endswith("_at_us") or field == "deadline_us":
            if field in ("opened_at_us", "updated_at_us"):
                continue
            value = shown_time(value)
        parts.append(value if field == "code" else f"{field}={value}")
    return " ".join(parts)
