"""Lines of the log say all of a command: what they are turned back into is the same batch."""

import pytest

from chaos.check.logged import command_of, envelope_of, lines
from chaos.check.told import holes
from chaos.history.records import Logged
from statemachine.codec import Envelope, encode_batch, encode_command
from statemachine.commands import (
    AddInstrument,
    Calendar,
    Command,
    Deposit,
    Limits,
    PlaceOrder,
    ReportDigest,
    SessionHours,
    SetCalendar,
    SetMode,
)
from statemachine.types import Mode, OrderType, Side, TimeInForce

HOURS = SessionHours(540, 1_020)
COMMANDS: tuple[Command, ...] = (
    Deposit("alice", "USD", 5),
    PlaceOrder("alice", "ABC-USD", Side.sell, OrderType.limit, TimeInForce.gtd, 9, 4, expires_at_us=7, post_only=True),
    AddInstrument(
        "ABC-USD", "ABC", "USD", 2, 0, 1, 1, 5, 10, Limits(band_bps=60), Calendar((HOURS, None) * 3 + (HOURS,))
    ),
    SetCalendar("ABC-USD", Calendar((), 60, ((20_000, None), (20_001, HOURS)))),
    SetMode("", Mode.cancel_only),
    ReportDigest("dc-a", 7, bytes(range(16)), 2),
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
def test_a_line_says_all_of_a_command(command: Command) -> None:
    envelope = Envelope("alice", "k", 123, encode_command(command))
    (line,) = lines(4, encode_batch(99, [envelope]))
    assert (line.index, line.position, line.stamp_us) == (4, 0, 99)
    assert envelope_of(line, command_of(line)) == envelope


def test_an_entry_without_commands_is_a_line() -> None:
    assert [line.kind for line in [*lines(1, None), *lines(2, encode_batch(5, []))]] == ["", ""]


@pytest.mark.parametrize(
    ("kind", "command", "told"),
    [
        ("borrow", {}, "no command is a 'borrow'"),
        ("deposit", {"account": "alice", "asset": "USD", "amount": 1}, "deposit has no amount"),
        ("deposit", {"account": "alice", "asset": "USD"}, "deposit: "),
        ("deposit", {"account": "alice", "asset": "USD", "amount_units": -1}, "deposit: "),
    ],
)
def test_what_is_no_command_is_refused(kind: str, command: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=f"index 3: .*{told}|index 3: {told}"):
        command_of(Logged(3, 0, "alice", "k", kind, command))


def test_holes_are_named() -> None:
    assert holes([Logged(index, 0, "", "", "") for index in (1, 2, 2, 5, 6, 9)]) == [(3, 4), (7, 8)]
    assert holes([Logged(2, 0, "", "", "")]) == []
    assert holes([Logged(4, 0, "", "", "")]) == [(2, 3)]
