"""The batch: what one log entry holds. Bytes in, structs out, and back; nothing here decides anything."""

from hashlib import blake2b
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from statemachine.commands import AnyCommand, Command
from statemachine.events import AnyEvent
from statemachine.results import AnyResult
from statemachine.types import KEY_BUCKET_US, KEY_RETENTION_US, SENT_AHEAD_US_MAX, Key, TimeUs

BATCH_VERSION = 1
COMMANDS_PER_BATCH_MAX = 4_096
COMMAND_BYTES_MAX = 65_536
BATCH_BYTES_MAX = 4 * 1024 * 1024


class UnknownFormat(Exception):
    """A batch or a snapshot of a version that this program does not know. The node stops: it must not guess."""


class Envelope(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One command on its way.

    scope: whose key this is: the account for a trader's command, `@` and the role for the others'.
    key: idempotency key, unique per scope; empty for the internal commands of members only.
    sent_at_us: when the client first sent it, 0 if it does not say; part of the fingerprint.
    body: the encoded command.
    """

    scope: Annotated[str, Meta(max_length=64)]
    key: Key
    sent_at_us: TimeUs
    body: Annotated[bytes, Meta(max_length=COMMAND_BYTES_MAX)]


class Batch(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One log entry: the leader's time stamp and the commands, in the order in which they take effect."""

    version: int
    stamp_us: TimeUs
    commands: Annotated[list[Envelope], Meta(max_length=COMMANDS_PER_BATCH_MAX)]


_encoder = msgspec.msgpack.Encoder()
_batch_decoder = msgspec.msgpack.Decoder(Batch)
_command_decoder = msgspec.msgpack.Decoder(AnyCommand)
_results_decoder = msgspec.msgpack.Decoder(list[AnyResult])
_events_decoder = msgspec.msgpack.Decoder(list[AnyEvent])

encode = _encoder.encode
decode_results = _results_decoder.decode
decode_events = _events_decoder.decode


def encode_command(command: Command) -> bytes:
    """The canonical bytes of a command: what its fingerprint is taken of."""
    return _encoder.encode(command)


def decode_command(body: bytes) -> AnyCommand:
    """Raises UnknownFormat: this was checked before it was logged, so it comes from a newer program."""
    try:
        command: AnyCommand = _command_decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise UnknownFormat(f"command {body[:64].hex()}: {error}") from error
    return command


def encode_batch(stamp_us: int, commands: list[Envelope]) -> bytes:
    return _encoder.encode(Batch(BATCH_VERSION, stamp_us, commands))


def decode_batch(payload: bytes) -> Batch:
    """Raises UnknownFormat for another version or anything that is not a batch."""
    try:
        batch = _batch_decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise UnknownFormat(f"batch {payload[:16].hex()}: {error}") from error
    if batch.version != BATCH_VERSION:
        raise UnknownFormat(f"batch version {batch.version}; this program knows {BATCH_VERSION}")
    return batch


def fingerprint(body: bytes, sent_at_us: int) -> bytes:
    """16 bytes that tell whether a repeated key brings the same request."""
    return blake2b(body + sent_at_us.to_bytes(8, "big"), digest_size=16).digest()


def oldest_bucket(now_us: int) -> int:
    """The oldest bucket of keys that still counts: none is forgotten while its command may yet be taken.

    A command may be sent by a clock that is ahead, and is taken until its own time is past retention.
    """
    return max(0, (now_us - KEY_RETENTION_US - SENT_AHEAD_US_MAX) // KEY_BUCKET_US)


def key_digest(scope: str, key: str) -> bytes:
    """16 bytes under which a key is stored; a scope holds no NUL."""
    return blake2b(f"{scope}\0{key}".encode(), digest_size=16).digest()
