"""Takes what is due from the outbox to its channel: at least once, with back-off, until it is delivered or dead."""

import asyncio
import contextlib
import itertools
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from heapq import heappop, heappush
from typing import TypeVar

from msgspec import structs

from gateway.notify import outbox
from gateway.notify.allowance import Allowance
from gateway.notify.notice import DeliveryError, Later, Never
from gateway.notify.outbox import DeadLetter, Item
from gateway.notify.policy import DISTURBING, quiet_until, wanted
from gateway.notify.webhook import Sender
from gateway.prefs.errors import PrefsError
from gateway.prefs.fields import Channel, Preferences
from gateway.prefs.store import Store, Writing
from gateway.tasks import end

log = logging.getLogger(__name__)

ATTEMPTS_MAX = 12
AGE_S_MAX = 86_400
"""What could not be delivered in a day is of no use any more; it is a dead letter then."""
MISTAKE_S = 60
"""Until what failed by a mistake of ours is tried again."""
BACK_OFF_S = 2.0
BACK_OFF_S_MAX = 3_600.0
ATTEMPT_S = 30.0
CONCURRENT = 64
PER_USER = 2
"""One user's slow webhook does not take everyone's place."""
SECOND_US = 1_000_000

T = TypeVar("T")


def wall_us() -> int:
    return time.time_ns() // 1_000


def back_off_s(attempts: int, chance: random.Random) -> float:
    """Twice as long each time; by chance half to all of it, so that what failed together does not meet again."""
    longest = min(BACK_OFF_S * 2.0 ** min(attempts - 1, 30), BACK_OFF_S_MAX)
    return float(longest * chance.uniform(0.5, 1.0))


class Dispatcher:
    """senders: by channel; a channel without one is a dead letter at once. preferences: of a user, as of now: the
    addresses, and whether the channel is still wanted, are read at each attempt."""

    def __init__(
        self,
        store: Store,
        preferences: Callable[[str], Preferences],
        senders: Mapping[Channel, Sender],
        *,
        clock_us: Callable[[], int] = wall_us,
        chance: random.Random | None = None,
    ) -> None:
        self._store = store
        self._preferences = preferences
        self._senders = dict(senders)
        self._clock_us = clock_us
        self._chance = chance or random.Random()
        self._allowance = Allowance()
        self._heap: list[tuple[int, int, Item]] = []
        self._order = itertools.count()
        self._waiting: set[bytes] = set()
        self._parked: dict[str, deque[Item]] = {}
        self._busy: Counter[str] = Counter()
        self._running: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None
        self.counters: Counter[str] = Counter()

    async def start(self) -> None:
        """Take up what the last run left."""
        self.added(outbox.load(self._store))
        self._loop_task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """What is under way is given up; it stays in the outbox, and may come twice."""
        await end(*([self._loop_task] if self._loop_task else []))
        await end(*self._running)
        for sender in self._senders.values():
            await sender.close()

    def added(self, items: Iterable[Item]) -> None:
        """These are in the outbox, on disk."""
        for item in items:
            if item.key not in self._waiting:
                self._waiting.add(item.key)
                heappush(self._heap, (item.due_us, next(self._order), item))
        self._wake.set()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    # -- dead letters --------------------------------------------------------------------------

    def dead_letters(self, *, limit: int = 100, user: str | None = None) -> list[DeadLetter]:
        return outbox.dead_letters(self._store, limit=limit, user=user)

    async def redrive(self, letter_ids: Iterable[str]) -> int:
        """Send these dead letters again, with all attempts before them, and count those that were there."""
        found = []
        for letter_id in letter_ids:
            item = await self._with_letter(letter_id, lambda w, name: outbox.exhume(w, name, self._clock_us()))
            if item is not None:
                found.append(item)
        self.added(found)
        return len(found)

    async def forget(self, letter_ids: Iterable[str]) -> int:
        """Throw these dead letters away, and count those that were there."""
        return sum([bool(await self._with_letter(letter_id, outbox.forget)) for letter_id in letter_ids])

    async def _with_letter(self, letter_id: str, work: Callable[[Writing, str], T]) -> T | None:
        try:
            bytes.fromhex(letter_id)
        except ValueError:
            return None
        return await self._store.write(lambda writing: work(writing, letter_id), frees=True)

    # -- the loop ------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            now_us = self._clock_us()
            while self._heap and self._heap[0][0] <= now_us and len(self._running) < CONCURRENT:
                self._begin(heappop(self._heap)[2])
            wait_s = (self._heap[0][0] - now_us) / SECOND_US if self._heap else 3_600.0
            if len(self._running) >= CONCURRENT:
                wait_s = 3_600.0  # whoever ends wakes us
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, min(wait_s, 3_600.0))):
                    await self._wake.wait()

    def _begin(self, item: Item) -> None:
        user = item.notice.user
        if self._busy[user] >= PER_USER:
            self._parked.setdefault(user, deque()).append(item)
            return
        self._busy[user] += 1
        task = asyncio.create_task(self._deliver(item))
        self._running.add(task)
        task.add_done_callback(lambda done: self._ended(done, item))

    def _ended(self, task: "asyncio.Task[None]", item: Item) -> None:
        user = item.notice.user
        self._running.discard(task)
        self._busy[user] -= 1
        if not self._busy[user]:
            del self._busy[user]
        parked = self._parked.get(user)
        if parked:
            heappush(self._heap, (0, next(self._order), parked.popleft()))
            if not parked:
                del self._parked[user]
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a delivery ended with %r", error, exc_info=error)
            again_us = self._clock_us() + MISTAKE_S * SECOND_US
            heappush(self._heap, (again_us, next(self._order), item))

    async def _deliver(self, item: Item) -> None:
        now_us = self._clock_us()
        preferences = self._preferences(item.notice.user)
        if item.channel not in wanted(preferences, item.notice):
            self.counters["unwanted"] += 1
            await self._done(item)
            return
        due_us = quiet_until(preferences, now_us) if item.channel in DISTURBING else now_us
        if due_us == now_us:
            due_us = self._allowance.take(item.notice.user, item.channel, now_us)
        if due_us > now_us:
            await self._again(structs.replace(item, due_us=due_us))
            return
        try:
            await self._send(item, preferences)
        except Never as error:
            await self._bury(item, str(error))
        except DeliveryError as error:
            asked_s = error.retry_after_s if isinstance(error, Later) else 0.0
            await self._failed(item, str(error), asked_s)
        else:
            self.counters[f"delivered_{item.channel.value}"] += 1
            await self._done(item)

    async def _send(self, item: Item, preferences: Preferences) -> None:
        sender = self._senders.get(item.channel)
        if sender is None:
            raise Never(f"this gateway has no {item.channel.value}")
        try:
            async with asyncio.timeout(ATTEMPT_S):
                await sender.send(item.notice, preferences)
        except DeliveryError:
            raise
        except TimeoutError as error:
            raise Later(f"no answer in {ATTEMPT_S:.0f} s") from error
        except Exception as error:
            # Our mistake in one channel must not stop the others; it is not repeated for ever either.
            log.error("%s failed", item.channel.value, exc_info=True)
            raise Later(type(error).__name__) from error

    async def _failed(self, item: Item, why: str, asked_s: float) -> None:
        attempts = item.attempts + 1
        now_us = self._clock_us()
        item = structs.replace(item, attempts=attempts, error=why)
        self.counters[f"failed_{item.channel.value}"] += 1
        if attempts >= ATTEMPTS_MAX or now_us - item.made_us > AGE_S_MAX * SECOND_US:
            await self._bury(item, why)
            return
        wait_s = max(back_off_s(attempts, self._chance), asked_s)
        await self._again(structs.replace(item, due_us=now_us + round(wait_s * SECOND_US)))

    async def _again(self, item: Item) -> None:
        await self._written(lambda writing: outbox.put(writing, item))
        heappush(self._heap, (item.due_us, next(self._order), item))

    async def _bury(self, item: Item, why: str) -> None:
        self.counters["dead"] += 1
        log.warning("%s to a user by %s is a dead letter: %s", item.notice.notice_id, item.channel.value, why)
        dead = structs.replace(item, error=why)
        await self._written(lambda writing: outbox.bury(writing, dead, self._clock_us()))
        self._waiting.discard(item.key)

    async def _done(self, item: Item) -> None:
        await self._written(lambda writing: outbox.remove(writing, item))
        self._waiting.discard(item.key)

    async def _written(self, work: Callable[[Writing], None]) -> None:
        try:
            await self._store.write(work, frees=True)
        except PrefsError as error:
            # It is in memory as it should be; after a restart the disk's older word holds, and it may come twice.
            self.counters["not_written"] += 1
            log.error("the outbox could not be written: %s", error)
