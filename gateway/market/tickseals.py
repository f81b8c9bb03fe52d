"""What is known of a finished day of the tick log, also when its ticks are gone."""

from pathlib import Path

import msgspec
from msgspec import Struct


class TickLogError(Exception):
    """The folder can't be used as a tick log; the text says why."""


class Seal(Struct, frozen=True):
    """What a finished day holds. A day with a seal never changes again."""

    day: str
    first_seq: int
    next_seq: int
    ticks: int
    file_bytes: int
    sha256: str
    damaged_bytes: int


def read_seal(path: Path) -> Seal:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Seal)
    except (OSError, msgspec.MsgspecError) as error:
        raise TickLogError(f"{path}: {error}") from error
