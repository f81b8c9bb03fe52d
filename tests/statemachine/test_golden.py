"""Bytes of the first format, kept for ever: what was once written must always be read, and give the same.

`REWRITE=1` adds lines for kinds that have none yet. It never changes a line: a changed line is a broken
format, and needs a new version instead.
"""

import base64
import os
from enum import IntEnum
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest

from statemachine import codec, commands, events, records, results
from statemachine.machine import Machine
from statemachine.memory import MemoryBacking
from tests.statemachine.flow import payloads, run, state_digest

GOLDEN = Path(__file__).parent / "golden"
ENCODINGS = GOLDEN / "encodings-1.txt"
LOG = GOLDEN / "log-1.txt"
REWRITE = os.environ.get("REWRITE") == "1"

NAMES = {"asset": "USD", "base": "AAA", "quote": "USD", "symbol": "AAA-USD", "account": "anna", "session": "s1"}


def members(union: Any) -> list[type]:
    return list(get_args(union))


KINDS: list[type] = [
    *members(commands.AnyCommand),
    *members(results.AnyResult),
    *members(events.AnyEvent),
    records.MetaRecord,
    records.AssetRecord,
    records.InstrumentRecord,
    records.AccountRecord,
    records.OrderRecord,
    records.TradeRow,
    records.LedgerRow,
    records.WithdrawalRecord,
    records.SessionRecord,
    records.SweepRecord,
    records.KeyRecord,
]


def sample(kind: type) -> Any:
    """One of a kind with every field set, none to its default, no two numbers alike."""
    if kind is commands.ActivateRules:
        return commands.ActivateRules(1)  # no program reads a version that it does not know
    hints = get_type_hints(kind)
    names = kind.__struct_fields__
    return kind(*[value(hints[name], name, 101 + 7 * place) for place, name in enumerate(names)])


def value(hint: Any, name: str, number: int) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return value(arguments[0], name, number)
    if origin is list:
        return [value(arguments[0], name, number), value(arguments[0], name, number + 1)]
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return (value(arguments[0], name, number),) * (7 if name == "weekly" else 1)
        return tuple(value(one, name, number + place) for place, one in enumerate(arguments))
    if isinstance(hint, type) and issubclass(hint, IntEnum):
        return list(hint)[-1]
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return sample(hint)
    simple = {int: number, str: NAMES.get(name, f"{name}-{number}"), bool: True, bytes: bytes(range(32))}
    return {**simple, int: 9 if name.endswith("scale") else number}[hint]


def decoder(kind: type) -> Any:
    """Commands, results and events are read as their unions: by tag."""
    for union in (commands.AnyCommand, results.AnyResult, events.AnyEvent):
        if kind in get_args(union):
            return msgspec.msgpack.Decoder(union)
    return msgspec.msgpack.Decoder(kind)


def golden_encodings() -> dict[str, bytes]:
    lines = ENCODINGS.read_text(encoding="ascii").splitlines() if ENCODINGS.exists() else []
    return {name: bytes.fromhex(text) for name, text in (line.split() for line in lines if not line.startswith("#"))}


def test_every_kind_has_its_bytes() -> None:
    known = golden_encodings()
    missing = [kind for kind in KINDS if kind.__name__ not in known]
    if REWRITE and missing:
        with ENCODINGS.open("a", encoding="ascii") as file:
            if not known:
                file.write("# One of each kind, as first encoded. Lines are added, never changed.\n")
            file.writelines(f"{kind.__name__} {codec.encode(sample(kind)).hex()}\n" for kind in missing)
        missing = []
    assert missing == []
    assert len({kind.__name__ for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_bytes_are_as_they_were(kind: type) -> None:
    golden = golden_encodings()[kind.__name__]
    found = decoder(kind).decode(golden)
    assert type(found) is kind
    assert codec.encode(found) == golden, "what was read is not written as it was"
    assert codec.encode(sample(kind)) == golden


def test_batch_bytes() -> None:
    command = commands.CancelOrder("anna", 7)
    envelope = codec.Envelope("anna", "key-1", 1_750_086_000_000_000, codec.encode_command(command))
    payload = codec.encode_batch(1_750_086_000_000_001, [envelope])
    assert payload.hex() == "9301cf000637b1a65b3c019194a4616e6e61a56b65792d31cf000637b1a65b3c00c409940fa4616e6e6107a0"
    assert codec.decode_batch(payload).commands == [envelope]
    assert codec.decode_command(envelope.body) == command
    assert codec.fingerprint(envelope.body, envelope.sent_at_us).hex() == "0d8ef5711bd92c0ad4b660be916c4e2d"
    assert codec.key_digest("anna", "key-1").hex() == "614a1fe0814894eab09d3497e09fc42d"


def test_the_first_log_gives_what_it_gave() -> None:
    """Line by line, so that the first batch that differs is named; then the state as a whole."""
    if not LOG.exists():
        assert REWRITE, f"{LOG} is missing"
        write_log()
    backing = MemoryBacking()
    machine = Machine(backing)
    lines = [line.split() for line in LOG.read_text(encoding="ascii").splitlines() if not line.startswith("#")]
    assert len(lines) > 150
    for place, (digest, payload) in enumerate(lines[:-1], start=1):
        run(machine, backing, [base64.b64decode(payload)])
        assert machine.digest.hex()[:16] == digest, f"batch {place} of the first log gives something else"
    assert lines[-1] == ["state", state_digest(machine, backing)]


def write_log() -> None:
    backing = MemoryBacking()
    machine = Machine(backing)
    with LOG.open("w", encoding="ascii") as file:
        file.write("# The first log: of each batch the digest after it, shortened, and its bytes. Never changed.\n")
        for payload in payloads(2025, 180):
            (applied,) = run(machine, backing, [payload])
            file.write(f"{applied.digest.hex()[:16]} {base64.b64encode(payload).decode()}\n")
        file.write(f"state {state_digest(machine, backing)}\n")
