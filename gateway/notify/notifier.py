"""One door for notices: to the user's open WebSockets at once, to all else through the outbox."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable

from gateway.notify import outbox
from gateway.notify.dispatcher import Dispatcher
from gateway.notify.notice import Notice
from gateway.notify.policy import Planned, plan, wanted
from gateway.prefs.errors import PrefsError
from gateway.prefs.fields import Channel, Preferences
from gateway.prefs.store import Store
from gateway.tasks import end

log = logging.getLogger(__name__)

QUEUEING_MAX = 10_000
TRIES = 5
TRY_AGAIN_S = 1.0


def wall_us() -> int:
    return time.time_ns() // 1_000


class Notifier:
    """deliver: to the user's WebSockets at this site; it must not wait."""

    def __init__(
        self,
        store: Store,
        preferences: Callable[[str], Preferences],
        dispatcher: Dispatcher,
        deliver: Callable[[Notice], None],
        *,
        clock_us: Callable[[], int] = wall_us,
    ) -> None:
        self._store = store
        self._preferences = preferences
        self._deliver = deliver
        self._clock_us = clock_us
        self._queueing: set[asyncio.Task[None]] = set()
        self.dispatcher = dispatcher
        self.counters: Counter[str] = Counter()

    def show(self, notice: Notice) -> None:
        """On the WebSockets here, where the user wants that. Nobody who is not connected is waited for."""
        if Channel.websocket in wanted(self._preferences(notice.user), notice):
            self._deliver(notice)

    def queue(self, notice: Notice) -> None:
        """By the channels of the outbox that the user wants. Costs no write where there are none."""
        planned = plan(self._preferences(notice.user), notice, self._clock_us())
        if not planned:
            return
        if len(self._queueing) >= QUEUEING_MAX:
            self.counters["lost"] += 1
            return
        task = asyncio.get_running_loop().create_task(self._queued(notice, planned))
        self._queueing.add(task)
        task.add_done_callback(self._queueing.discard)

    async def _queued(self, notice: Notice, planned: list[Planned]) -> None:
        for attempt in range(TRIES):
            try:
                added = await self._store.write(lambda writing: outbox.add(writing, notice, planned, self._clock_us()))
            except PrefsError as error:
                log.warning("%s waits for the outbox: %s", notice.notice_id, error)
                await asyncio.sleep(TRY_AGAIN_S * (attempt + 1))
            else:
                self.dispatcher.added(added)
                return
        self.counters["lost"] += 1
        log.error("%s is not told: the outbox takes nothing", notice.notice_id)

    async def stop(self) -> None:
        """What is being queued is given a moment; then the dispatcher stops."""
        if self._queueing:
            await asyncio.wait(self._queueing, timeout=TRY_AGAIN_S)
        await end(*self._queueing)
        await self.dispatcher.stop()
