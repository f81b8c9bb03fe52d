"""What the API asks of preferences and alerts: checked, written under one stamp, synced before the answer."""

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

from msgspec import Struct, structs

from gateway.prefs import crdt, fields
from gateway.prefs.alert import ALERT_ID_PATTERN, Terms, check
from gateway.prefs.crdt import Document, Register, Version
from gateway.prefs.errors import InvalidAlert, NoSuchAlert
from gateway.prefs.fields import Preferences
from gateway.prefs.seal import Keyring, NotOpened
from gateway.prefs.store import Change, Store, Writing

KNOWN_MAX = 20_000
TURN = 200
"""So many documents are looked at, or sealed anew, at once."""


class Alert(Struct, frozen=True):
    """An alert as its user sees it. fired_value: the price, or for moves the basis points, that fired it last."""

    alert_id: str
    terms: Terms
    armed: bool
    fired: int
    fired_at_us: int
    fired_value: int
    written_at_ms: int


def _shown(alert_id: str, version: Version) -> Alert:
    return Alert(
        alert_id,
        version.terms,
        version.armed,
        version.fired,
        version.fired_at_us,
        version.fired_value,
        version.stamp.ms,
    )


class Prefs:
    """Reads answer from this site's store at once, writes when they are on its disk; neither asks the other site.

    Every write may raise the store's StoreBusy, StoreFull and StoreFailed.
    """

    def __init__(self, store: Store, keyring: Keyring) -> None:
        self._store = store
        self._keyring = keyring
        self._known: dict[str, Preferences] = {}
        self._hidden: dict[str, bool] = {}
        store.on_change(self._changed)

    def _changed(self, change: Change) -> None:
        self._known.pop(change.user, None)
        self._hidden.pop(change.user, None)

    def preferences(self, user: str) -> Preferences:
        """With contacts and secrets in plain: `fields.shown` is what the user may see. The last KNOWN_MAX are in
        memory: an order's every fill asks."""
        if self._store.digests.get(user) is None:  # most accounts never wrote anything
            return fields.DEFAULTS
        known = self._known.get(user)
        if known is None:
            known = fields.read(user, self._store.document(user), self._keyring)
            if len(self._known) >= KNOWN_MAX:
                del self._known[next(iter(self._known))]
            self._known[user] = known
        return known

    def hidden_from_leaderboard(self, user: str) -> bool:
        """Kept in memory for each user who wrote anything: a leaderboard asks for all of them every few seconds."""
        if self._store.digests.get(user) is None:
            return False
        hidden = self._hidden.get(user)
        if hidden is None:
            hidden = self._hidden[user] = self.preferences(user).leaderboard_hidden
        return hidden

    async def change(self, user: str, changes: Mapping[str, object]) -> Preferences:
        """Set the named preferences, unset those that are None, leave the rest. Raises InvalidPreference."""
        values = fields.stored(user, fields.checked(changes), self._keyring)

        def work(writing: Writing) -> Document:
            document = writing.document(user)
            if not values:
                return document
            document = crdt.with_fields(document, values, writing.clock.next())
            writing.put(user, document)
            return document

        return fields.read(user, await self._store.write(work), self._keyring)

    def alerts(self, user: str) -> list[Alert]:
        return [_shown(alert_id, version) for alert_id, version in sorted(self._store.document(user).standing())]

    def alert(self, user: str, alert_id: str) -> Alert:
        """Raises NoSuchAlert."""
        version = self._store.document(user).alert(alert_id)
        if version is None:
            raise NoSuchAlert(f"no alert {alert_id[:40]!r}")
        return _shown(alert_id, version)

    async def put_alert(self, user: str, alert_id: str, terms: Terms) -> Alert:
        """Add it, or replace it; either arms it anew. Raises InvalidAlert, TooManyAlerts."""
        if not re.match(ALERT_ID_PATTERN, alert_id):
            raise InvalidAlert("alert_id: 1 to 32 of letters, digits, - and _", field="alert_id")
        check(terms)

        def work(writing: Writing) -> Alert:
            document = crdt.with_alert(writing.document(user), alert_id, terms, writing.clock.next())
            writing.put(user, document)
            version = document.alerts[alert_id][0]
            return _shown(alert_id, version)

        return await self._store.write(work)

    async def remove_alert(self, user: str, alert_id: str) -> None:
        """Raises NoSuchAlert."""

        def work(writing: Writing) -> None:
            document = writing.document(user)
            if alert_id not in document.alerts:
                raise NoSuchAlert(f"no alert {alert_id[:40]!r}")
            writing.put(user, crdt.without_alerts(document, [alert_id]))

        await self._store.write(work)

    async def erase(self, user: str) -> None:
        """Take away all that the user wrote, here now and at the other site when they next meet. LMDB overwrites the
        freed pages as it needs them; what is sealed is unreadable once its key is taken out of the key file."""

        def work(writing: Writing) -> None:
            document = writing.document(user)
            if document != crdt.EMPTY:
                writing.put(user, crdt.erased(document, writing.clock.next()))

        await self._store.write(work, frees=True)

    def keys_changed(self) -> None:
        """The keyring has others: what could not be opened is tried again."""
        self._known.clear()

    async def sealed_under(self) -> dict[int, int]:
        """By the number of a key, how many documents have a value under it."""
        found: Counter[int] = Counter()
        for place, (_, document) in enumerate(self._store.documents()):
            found.update(set(self._numbers(document)))
            if place % TURN == TURN - 1:
                await asyncio.sleep(0)
        return dict(sorted(found.items()))

    async def seal_anew(self) -> int:
        """Seal under the newest key what is sealed under older ones, and count the documents. A write keeps its stamp,
        so this wins against no user's. When both sites have done it, older keys may leave the key file."""
        newest = self._keyring.newest
        old: list[str] = []
        for place, (user, document) in enumerate(self._store.documents()):
            if any(number != newest for number in self._numbers(document)):
                old.append(user)
            if place % TURN == TURN - 1:
                await asyncio.sleep(0)
        for begin in range(0, len(old), TURN):
            # Together, for they share a sync; in parts, for users' own writes have their turn between.
            work = [partial(self._reseal, user=user) for user in old[begin : begin + TURN]]
            await asyncio.gather(*(self._store.write(one) for one in work))
        return len(old)

    def _numbers(self, document: Document) -> list[int]:
        return [
            self._keyring.number_of(register.value)
            for name, register in document.fields.items()
            if name in fields.SEALED and register.value is not None
        ]

    def _reseal(self, writing: Writing, user: str) -> None:
        document = writing.document(user)
        found: dict[str, Any] = dict(document.fields)
        for name, register in document.fields.items():
            if name in fields.SEALED and register.value is not None and self._keyring.is_old(register.value):
                about = fields.about(user, name)
                with contextlib.suppress(NotOpened):  # what can't be read can't be sealed anew, and need not be
                    plain = self._keyring.open(register.value, about)
                    found[name] = Register(register.stamp, self._keyring.seal(plain, about))
        writing.put(user, structs.replace(document, fields=found))
