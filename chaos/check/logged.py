"""Entries of the log as lines of log.jsonl, and the same lines as what the ledger takes."""

import re
from functools import cache
from typing import Any

import msgspec

from chaos.history.records import Logged
from statemachine.codec import Envelope, decode_batch, decode_command, encode_command
from statemachine.commands import AnyCommand, Command


@cache
def kind_of(name: str) -> str:
    """PlaceOrder: place_order."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


_TYPES: dict[str, Any] = {kind_of(one.__name__): one for one in AnyCommand.__args__}
_TAGS = {kind: one.__struct_config__.tag for kind, one in _TYPES.items()}


def lines(index: int, payload: bytes | None) -> list[Logged]:
    """One line per command of an entry; one of an empty kind where it holds none. payload: the encoded batch, or None
    for an entry that is no batch. Raises UnknownFormat."""
    if payload is None:
        return [Logged(index, 0, "", "", "")]
    batch = decode_batch(payload)
    found = []
    for position, envelope in enumerate(batch.commands):
        command = decode_command(envelope.body)
        kind, fields = told(command)
        found.append(
            Logged(index, position, envelope.scope, envelope.key, kind, fields, batch.stamp_us, envelope.sent_at_us)
        )
    return found or [Logged(index, 0, "", "", "", stamp_us=batch.stamp_us)]


def told(command: Command) -> tuple[str, dict[str, Any]]:
    """Kind and fields of a command, as a line says them."""
    values: list[Any] = msgspec.to_builtins(command)
    return kind_of(type(command).__name__), dict(zip(command.__struct_fields__, values[1:], strict=True))


def command_of(line: Logged) -> AnyCommand:
    """Raises ValueError: no such kind, a field that is missing or none of it."""
    kind = _TYPES.get(line.kind)
    if kind is None:
        raise ValueError(f"index {line.index}: no command is a {line.kind!r}")
    unknown = set(line.command) - set(kind.__struct_fields__)
    if unknown:
        raise ValueError(f"index {line.index}: {line.kind} has no {', '.join(sorted(unknown))}")
    values = [_TAGS[line.kind]]
    for name in kind.__struct_fields__:
        if name not in line.command:
            break  # the rest has its defaults, or is missing
        values.append(line.command[name])
    try:
        found: AnyCommand = msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"index {line.index}: {line.kind}: {error}") from error
    return found


def envelope_of(line: Logged, command: AnyCommand) -> Envelope:
    """command: the line's."""
    return Envelope(line.scope, line.key, line.sent_at_us, encode_command(command))
