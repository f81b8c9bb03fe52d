"""What a part of the projection must be: fed by a snapshot's rows and by events, kept in the cache field by field."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from msgspec import Struct

from gateway.events import AnyEvent, Position

Row = dict[str, Any]
Touch = Callable[[str], None]
"""touch(field): this field changed; what it holds is asked for when the cache is written."""


class Batch(Struct, frozen=True):
    """Events in order, all behind the last batch's position. at_us: the time of the newest, by the leader's clock."""

    position: Position
    at_us: int
    events: Sequence[AnyEvent]


class Projector(Protocol):
    """One view of the events. Deterministic: the same rows and events give the same fields, on every gateway.

    kind: names its hash in the cache.
    """

    kind: str
    touch: Touch

    def reset(self) -> None:
        """Forget everything."""
        ...

    def row(self, table: str, row: Row, at_us: int) -> None:
        """One row of a node's snapshot (`assets`, `instruments`, `accounts`, `orders`, `withdrawals`, `sessions`)."""
        ...

    def apply(self, batch: Batch) -> None: ...

    def fields(self) -> Iterable[str]:
        """Every field that it has now."""
        ...

    def dump(self, field: str) -> bytes | None:
        """What the cache holds of this field; None when it is gone."""
        ...

    def load(self, field: str, value: bytes) -> None:
        """Take back what `dump` gave, on a fresh projector. Raises ValueError: of another version."""
        ...
