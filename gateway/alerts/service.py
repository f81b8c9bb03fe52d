"""Price alerts in a running gateway: follows the store, takes ticks, and fires by one write that disarms and queues."""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable

from gateway.alerts.engine import Engine, Firing
from gateway.feeds.ticks import decimal_text
from gateway.notify import outbox
from gateway.notify.notice import Kind, Notice
from gateway.notify.outbox import Item
from gateway.notify.policy import plan
from gateway.prefs import crdt, fields
from gateway.prefs.alert import MOVES, Terms, describe
from gateway.prefs.errors import PrefsError
from gateway.prefs.seal import Keyring
from gateway.prefs.store import Change, Store, Writing
from gateway.tasks import end

log = logging.getLogger(__name__)

DUE_S = 0.25
PIECE = 200
"""Users taken in at once at the start."""
TELL_S_MAX = 900
"""What the other site fired longer ago is not shown here any more; it is in the list of alerts."""
CHUNK = 250
"""Firings that are written together: a round price may be the level of very many."""


def wall_us() -> int:
    return time.time_ns() // 1_000


def notice_of(
    user: str, alert_id: str, terms: Terms, firing_id: str, at_us: int, price_text: str, value: int
) -> Notice:
    details: dict[str, str | int | bool] = {
        "alert_id": alert_id,
        "firing_id": firing_id,
        "symbol": terms.symbol,
        "condition": terms.condition.value,
        "repeat": terms.repeat,
    }
    if price_text:
        details["price"] = price_text
    if terms.condition in MOVES:
        details |= {"moved_bps": value, "window_s": terms.window_s}
    else:
        details["threshold"] = decimal_text(terms.price_e9)
    if terms.note:
        details["note"] = terms.note
    moved = f"{value / 100:g} %" if terms.condition in MOVES else price_text
    return Notice(firing_id, user, Kind.price_alert, at_us, f"{describe(terms)}: {moved}", details)


class Alerts:
    """show: to the user's open WebSockets at this site; called for each firing here, and for each that the other site
    tells of, with the same notice id. queued: given what the outbox got."""

    def __init__(
        self,
        store: Store,
        keyring: Keyring,
        *,
        show: Callable[[Notice], None],
        queued: Callable[[Iterable[Item]], None],
        clock_us: Callable[[], int] = wall_us,
    ) -> None:
        self._store = store
        self._keyring = keyring
        self._show = show
        self._queued = queued
        self._clock_us = clock_us
        self._pending: deque[Firing] = deque()
        self._wake = asyncio.Event()
        self._stopping = False
        self._timer: asyncio.Task[None] | None = None
        self._writer: asyncio.Task[None] | None = None
        self.engine = Engine(store.site)
        self.counters: Counter[str] = Counter()
        store.on_change(self._changed)

    async def start(self) -> None:
        # 19 us per alert: with very many the loop must go on. What changes meanwhile comes by `_changed` as well.
        for number, user in enumerate(list(self._store.digests.all_users())):
            self.engine.put(user, self._store.document(user).standing())
            if number % PIECE == PIECE - 1:
                await asyncio.sleep(0)
        self._timer = asyncio.create_task(self._tick_over())
        self._writer = asyncio.create_task(self._write_all())

    async def stop(self) -> None:
        """Firings that the disk has taken are told; others are met again by the next fresh price."""
        if self._timer is not None:
            await end(self._timer)
        self._stopping = True
        self._wake.set()
        if self._writer is not None:
            await self._writer

    def tick(self, symbol: str, price_e9: int, time_us: int) -> None:
        """A price that may be shown as fresh: no suspect or stale one. time_us: when the venue said it."""
        for firing in self.engine.tick(symbol, price_e9, time_us, self._clock_us()):
            self._fire(firing)

    def set_live(self, sites: Iterable[str]) -> None:
        """The sites that are heard now, from `Sites.live_sites`, at each change."""
        for firing in self.engine.set_live(sites):
            self._fire(firing)

    # -- the rest ------------------------------------------------------------------------------

    async def _tick_over(self) -> None:
        while True:
            await asyncio.sleep(DUE_S)
            try:
                for firing in self.engine.due(self._clock_us()):
                    self._fire(firing)
            except Exception:
                log.error("alerts that were due failed", exc_info=True)

    def _changed(self, change: Change) -> None:
        if change.before.alerts or change.after.alerts:
            self.engine.put(change.user, change.after.standing())
            if change.from_peer:
                self._tell_elsewhere(change)

    def _tell_elsewhere(self, change: Change) -> None:
        """The other site fired: users with a WebSocket here are told as well."""
        for alert_id, version in change.after.standing():
            before = change.before.alert(alert_id)
            known = before.fired if before is not None and before.dot == version.dot else 0
            # A site that is filled after its disk was lost does not tell what is long past.
            late = self._clock_us() - version.fired_at_us > TELL_S_MAX * 1_000_000
            if version.fired <= known or late:
                continue
            firing_id = f"{alert_id}/{version.dot.writer}/{version.dot.number}/{version.fired - 1}"
            price_text = "" if version.terms.condition in MOVES else decimal_text(version.fired_value)
            self._show(
                notice_of(
                    change.user,
                    alert_id,
                    version.terms,
                    firing_id,
                    version.fired_at_us,
                    price_text,
                    version.fired_value,
                )
            )
            self.counters["fired_elsewhere"] += 1

    def _fire(self, firing: Firing) -> None:
        # No bound is needed: an alert is off its ladder from here until it was counted.
        self._pending.append(firing)
        self._wake.set()

    async def _write_all(self) -> None:
        while not self._stopping:
            self._wake.clear()
            while self._pending and not self._stopping:
                chunk = [self._pending.popleft() for _ in range(min(CHUNK, len(self._pending)))]
                await self._write(chunk)
            await self._wake.wait()

    async def _write(self, chunk: list[Firing]) -> None:
        try:
            outcomes = await self._store.write(lambda writing: [self._count(writing, firing) for firing in chunk])
        except PrefsError as error:
            outcomes = [error] * len(chunk)
        except Exception as error:
            log.error("firing alerts failed", exc_info=True)
            outcomes = [error] * len(chunk)
        failed = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if failed:
            self.counters["not_written"] += len(failed)
            log.warning("%d alerts wait: %s", len(failed), failed[0])
        for firing, outcome in zip(chunk, outcomes, strict=True):
            if isinstance(outcome, Exception):
                # Not counted, so not told either: it is tried again until the disk takes it, or the other site does.
                self.engine.hold(firing, self._clock_us())
            elif outcome is None:
                self.counters["fired_already"] += 1
            else:
                self.counters["fired"] += 1
                self._queued(outcome)
                self._show(_notice(firing))

    def _count(self, writing: Writing, firing: Firing) -> list[Item] | Exception | None:
        """Queue and disarm, together. None: it was fired elsewhere, replaced or removed meanwhile."""
        document = writing.document(firing.user)
        fired = crdt.with_fired(document, firing.alert_id, firing.dot, firing.arming, firing.at_us, firing.value)
        if fired is None:
            return None
        preferences = fields.read(firing.user, document, self._keyring)
        notice, now_us = _notice(firing), self._clock_us()
        try:
            items = outbox.add(writing, notice, plan(preferences, notice, now_us), now_us)
        except outbox.OutboxFull as error:
            return error  # before anything of it was changed, so the others of the chunk go on
        writing.put(firing.user, fired)
        return items


def _notice(firing: Firing) -> Notice:
    return notice_of(
        firing.user,
        firing.alert_id,
        firing.terms,
        firing.firing_id,
        firing.at_us,
        decimal_text(firing.price_e9),
        firing.value,
    )
