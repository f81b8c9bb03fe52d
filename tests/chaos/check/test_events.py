"""Every kind of event and each of its fields is compared with what the independent ledger makes of the log."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from chaos.check.ledger import snake_case
from chaos.check.run import check_run
from chaos.check.verdict import Check
from chaos.history.records import Event, Final
from chaos.history.run import Run
from statemachine import commands as c
from statemachine.events import AnyEvent, RulesActivated
from statemachine.types import Mode, OrderType, SelfTrade, Side, TimeInForce
from tests.chaos.check import made
from tests.chaos.check.made import Asked, Maker, Parts

DAY_US = 24 * 3_600_000_000
CANNOT_HAPPEN = {RulesActivated}
"""There is one version of the rules, and it is in force."""


def asked(command: c.Command, scope: str = "@operator") -> Asked:
    """As the log has it; no client's words are needed here."""
    return "", scope, {}, command


def order(account: str, side: Side, ticks: int, lots: int, **more: Any) -> Asked:
    given = {"type": OrderType.limit, "time_in_force": TimeInForce.gtc, "budget_units": 0, "expires_at_us": 0,
             "post_only": False, "self_trade": SelfTrade.decrement, **more}  # fmt: skip
    return asked(c.PlaceOrder(account, "ABC-USD", side, price_ticks=ticks, quantity_lots=lots, **given), account)


def everything() -> Parts:
    """A log that leads to every kind of event, and the events as the node tells them."""
    maker = Maker(1)
    a, b = "alice", "bob"
    limits = c.Limits(quantity_lots_max=900, notional_units_max=10**9, open_orders_max=50, band_bps=2_000)
    week = (None, *[c.SessionHours(0, 1_440)] * 6)
    commands = [
        *(made.asset(name) for name in ("USD", "ABC")),
        made.listed("ABC-USD", "ABC"),
        made.listed("NEW-USD", "ABC"),
        asked(c.SetFees("ABC-USD", 10, 25)),
        asked(c.SetLimits("ABC-USD", limits)),
        asked(c.SetCalendar("NEW-USD", c.Calendar(week, 60, ((30_000, None), (30_001, c.SessionHours(600, 700)))))),
        asked(c.SetMode("", Mode.post_only)),
        asked(c.SetMode("", Mode.trading)),
        *(made.opened(name) for name in (a, b)),
        *(made.deposit(name, 50_000_000) for name in (a, b)),
        *(made.holdings(name, "ABC", 500_000) for name in (a, b)),
        made.transfer(a, b, 333),
        asked(c.RequestWithdrawal(a, "USD", 5_000), "@custodian"),
        asked(c.RequestWithdrawal(b, "USD", 6_000), "@custodian"),
        asked(c.PostWithdrawal(1), "@custodian"),
        asked(c.VoidWithdrawal(2), "@custodian"),
        made.priced("ABC-USD", 1_000, made.START_US),
        asked(c.OpenSession(a, "s1", 5_000), a),
        order(a, Side.sell, 1_001, 7, session="s1"),
        order(a, Side.sell, 1_003, 5, time_in_force=TimeInForce.gtd, expires_at_us=made.START_US + DAY_US),
        # It rests, having traded cheaper than it held for, and holds less.
        order(b, Side.buy, 1_010, 30),
        order(a, Side.sell, 1_010, 4, post_only=False, time_in_force=TimeInForce.ioc),
        # It meets itself: 18 lots fewer.
        order(b, Side.sell, 1_000, 11),
        order(b, Side.sell, 1_050, 20, time_in_force=TimeInForce.day),
        asked(c.ReplaceOrder(b, 0, 0, 15, "key-of-b", ""), b),
        asked(c.ReplaceOrder(b, 0, 1_060, 0, "again", ""), b),
        order(a, Side.buy, 0, 0, type=OrderType.market, time_in_force=TimeInForce.ioc, budget_units=9_000),
        order(a, Side.sell, 1_100, 3, session="s1"),
        asked(c.CloseSession(a, "s1"), a),
        asked(c.CancelAccountOrders(b, ""), b),
    ]
    for number, one in enumerate(commands):
        maker.now_ns += 4 * made.MS
        kept = {"day": "key-of-b", "in place": "again"}
        command = one[3]
        is_day = isinstance(command, c.PlaceOrder) and command.time_in_force is TimeInForce.day
        is_first = isinstance(command, c.ReplaceOrder) and command.order_key == "key-of-b"
        key = kept["day"] if is_day else kept["in place"] if is_first else f"key-{number}"
        maker.execute(key, one)
    for member, digest in (("dc-a", b"a" * 32), ("dc-b", b"b" * 32), ("dc-c", b"b" * 32)):
        maker.execute("", asked(c.ReportDigest(member, 3, digest, 3)))
    run = Run("made", 1, 10, "1+1+1", "hardened", "shipped", "", {}, "2026-01-01T00:00:00Z", [], [], 0)
    return Parts(run, [], maker.log, maker.events, Final(True, index=maker.index))


def judged(parts: Parts, folder: Path) -> Check:
    return next(check for check in check_run(parts.write(folder)).checks if check.name == "events")


def test_every_kind_of_event_is_the_ledgers(tmp_path: Path) -> None:
    parts = everything()
    kinds = {snake_case(kind.__name__) for kind in AnyEvent.__args__ if kind not in CANNOT_HAPPEN}
    assert {event.kind for event in parts.events} == kinds
    check = judged(parts, tmp_path / "run")
    assert (check.verdict, check.counts["events"]) == ("pass", len(parts.events)), check


def other(value: Any) -> Any:
    """Another value of the same look."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case None:
            return "1"
        case str() if value.replace(".", "").isdigit():
            return value + "1"
        case str():
            return value[:-1] + ("0" if value[-1] != "0" else "1")
        case dict():
            name = sorted(value)[-1]
            return {**value, name: other(value[name])}
        case list():
            return [*value, "dc-z"]
    raise AssertionError(value)


def test_a_change_of_any_field_is_noticed(tmp_path: Path) -> None:
    parts = everything()
    passed = []
    last = {event.kind: at for at, event in enumerate(parts.events)}
    for number, (kind, at) in enumerate(sorted(last.items())):
        for name, value in parts.events[at].fields.items():
            events = list(parts.events)
            events[at] = replace(events[at], fields={**events[at].fields, name: other(value)})
            found = judged(Parts(parts.run, [], parts.log, events, parts.final), tmp_path / f"{number}")
            if found.verdict != "fail" or name not in found.why:
                passed.append(f"{kind} {name}: {found.why}")
    assert not passed


@pytest.mark.parametrize("spoil", ["swap", "more", "less", "leave one out", "another kind"])
def test_what_is_told_and_nothing_else(spoil: str, tmp_path: Path) -> None:
    parts = everything()
    at = next(at for at, event in enumerate(parts.events) if event.kind == "hold_released")
    event, before = parts.events[at], parts.events[at - 1]
    match spoil:
        case "swap":
            parts.events[at - 1] = replace(before, kind=event.kind, fields=event.fields)
            parts.events[at] = replace(event, kind=before.kind, fields=before.fields)
        case "more":
            parts.events[at] = replace(event, fields={**event.fields, "colour": "red"})
        case "less":
            parts.events[at] = replace(event, fields={"account": event.fields["account"]})
        case "leave one out":
            last = max(one.seq for one in parts.events if one.index == event.index)
            parts.events[:] = [one for one in parts.events if (one.index, one.seq) != (event.index, last)]
        case _:
            parts.events[at] = replace(event, kind="order_reduced")
    assert judged(parts, tmp_path / "run").verdict == "fail"


def test_events_are_what_a_reader_of_json_gets() -> None:
    """Else a comparison of these would say little of what runs record."""
    for event in everything().events:
        assert msgspec.json.decode(msgspec.json.encode(event), type=Event) == event
