"""Hands each account's events to those who listen to it, from now on or from a position in the past."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from node.errors import EpochChanged, InvalidField, SnapshotRequired
from node.event_views import EventViews, Position, View
from node.outcomes import at
from statemachine.codec import decode_events
from statemachine.events import AnyEvent
from statemachine.records import Applied
from statemachine.store_files import PastGone
from statemachine.store_rows import EventBatch
from statemachine.types import ORDINAL_MAX

READ_BYTES_MAX = 256 * 1024
CATCH_UPS_MAX = 4
"""Listeners that read the past at the same time; others wait. Each reads all accounts' events to find its own."""


class Past(Protocol):
    """What is kept of events: see statemachine/history.py."""

    def events_after(self, index: int, *, bytes_max: int) -> list[EventBatch]: ...


class Listener(Protocol):
    """accounts None: all. deliver must not wait or raise; room waits until more can be taken."""

    accounts: frozenset[str] | None

    def deliver(self, position: str, events: list[View]) -> None: ...

    async def room(self) -> None: ...


def resume_position(text: str, *, group: int, epoch: int, field: str = "after") -> Position:
    """Read a position that a client brings back.

    Raises InvalidField: not a position of this cluster. EpochChanged: of another history.
    """
    try:
        position = Position.parse(text, group=group)
    except ValueError as error:
        raise InvalidField(f"{field} must be a position, such as {group}.{epoch}.0.0", field=field) from error
    if position.group != group:
        raise InvalidField(f"there is no group {position.group} here", field=field)
    if position.epoch != epoch:
        raise EpochChanged(
            f"the position is of epoch {position.epoch}, the cluster is in epoch {epoch}: start anew", field=field
        )
    return position


class PrivateEvents:
    """Everyone who listens on this node. With no listener a batch costs one comparison."""

    def __init__(self, past: Past, views: EventViews, *, group: int, epoch: int, applied_index: int) -> None:
        self.group = group
        self.epoch = epoch
        self.applied_index = applied_index
        self._past = past
        self._views = views
        self._of_account: dict[str, set[Listener]] = {}
        self._of_all: set[Listener] = set()
        self._catching_up = asyncio.Semaphore(CATCH_UPS_MAX)

    @property
    def now(self) -> Position:
        """Behind everything applied here."""
        return Position.behind(self.group, self.epoch, self.applied_index)

    def applied(self, applied: Applied) -> None:
        """Deliver one batch. Called for every batch, in order."""
        self.applied_index = applied.index
        if applied.events and (self._of_account or self._of_all):
            self._deliver(applied.index, applied.time_us, applied.events, 0, None)

    async def listen(self, listener: Listener, after: Position | None) -> None:
        """Add a listener; with a position it first gets what it missed. Returns once it is up to date.

        Raises SnapshotRequired: what it missed is no longer kept.
        """
        if after is not None:
            async with self._catching_up:
                await self._catch_up(listener, after)
        # No await between the last read of the past and this line: nothing falls between the two.
        if listener.accounts is None:
            self._of_all.add(listener)
        else:
            for account in listener.accounts:
                self._of_account.setdefault(account, set()).add(listener)

    def leave(self, listener: Listener) -> None:
        self._of_all.discard(listener)
        for account in listener.accounts or ():
            listeners = self._of_account.get(account)
            if listeners is not None:
                listeners.discard(listener)
                if not listeners:
                    del self._of_account[account]

    async def _catch_up(self, listener: Listener, after: Position) -> None:
        # A position may point into the middle of an entry: that one is read again, and what was seen is skipped.
        index = after.index if after.seq >= ORDINAL_MAX else max(after.index - 1, 0)
        while True:
            try:
                batches = self._past.events_after(index, bytes_max=READ_BYTES_MAX)
            except PastGone as error:
                raise SnapshotRequired(
                    f"events before index {error.first_index} are no longer kept: read your orders anew", field="after"
                ) from error
            if not batches:
                return
            for batch in batches:
                seen = after.seq + 1 if batch.index == after.index else 0
                self._deliver(batch.index, batch.time_us, decode_events(batch.events), seen, listener)
                index = batch.index
            await asyncio.sleep(0)
            await listener.room()

    def _deliver(self, index: int, time_us: int, events: Sequence[AnyEvent], skip: int, only: Listener | None) -> None:
        """Give the events from `skip` on to `only`, or to all who listen to their accounts."""
        happened_at = at(time_us)
        taken: dict[Listener, list[View]] = {}
        position = ""
        for seq, event in enumerate(events):
            if seq < skip or not self._wanted(event, only):
                continue
            position = f"{self.group}.{self.epoch}.{index}.{seq}"
            for account, view in self._views.private(event, position, happened_at):
                for listener in self._listeners(account, only):
                    taken.setdefault(listener, []).append(view)
        for listener, views in taken.items():
            listener.deliver(str(views[-1]["position"]), views)

    def _wanted(self, event: AnyEvent, only: Listener | None) -> bool:
        """Cheap first look: most events concern nobody who listens here."""
        if only is not None and only.accounts is None:
            return True
        if only is None and self._of_all:
            return True
        accounts = self._of_account if only is None else (only.accounts or ())
        return any(
            getattr(event, name, None) in accounts
            for name in ("account", "taker_account", "maker_account", "source", "target")
        )

    def _listeners(self, account: str, only: Listener | None) -> Sequence[Listener]:
        if only is not None:
            return (only,) if only.accounts is None or account in only.accounts else ()
        return (*self._of_account.get(account, ()), *self._of_all)
