"""Fans updates out: each is encoded once per round, and each reader gets one frame per round with all that is its own.

A round marks who must be told of what changed, then writes. A reader whose connection is full is left out and keeps
its marks, so that it gets the newest when there is room: that is all there is to conflation. Nobody is waited for.
"""

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import structlog

from gateway.fanout.fragment import JSON, MSGPACK, Fragment
from gateway.fanout.frames import json_head, msgpack_head
from gateway.fanout.pace import Pace
from gateway.fanout.topics import CHANNELS, SHED, Channel, Key, Kind

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.fanout")

SLICE_S = 0.005
"""After so much writing others get a turn of the loop."""
LOOK_EVERY = 32
DRIFT = 0.9
"""A round may come so many ticks after the one before. What is published once per tick, in another phase, would wait
for the rest of ours every time; so the phase moves, a tenth at a time, until the two fall together. Not under load:
workers that fall together would all send at once there."""
IDLE_S = 0.5
"""A round at least this often, for readers that had no room, or that want it once a second."""


def wall_us() -> int:
    return time.time_ns() // 1000


class Topic:
    """What someone subscribes to. json, msgpack: the newest update of a conflated channel, as of the last round."""

    __slots__ = ("channel", "formats", "fragment", "json", "key", "live", "msgpack", "slow")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.channel: Channel = CHANNELS[key[0]]
        self.fragment: Fragment | None = None
        self.json = b""
        self.msgpack = b""
        self.live: dict[Reader, set[Topic]] = {}
        """Readers, each with the set that says what it must be told."""
        self.slow: dict[Reader, set[Topic]] = {}
        """Those that want it once a second."""
        self.formats = 0
        """In which anyone has read it."""

    def encode(self) -> None:
        """In the formats that are read."""
        fragment = self.fragment
        if fragment is not None:
            self.json = fragment.json() if self.formats & JSON else b""
            self.msgpack = fragment.msgpack() if self.formats & MSGPACK else b""


class Round:
    """One round of sending. The heads of its frames are made once for all readers."""

    __slots__ = ("_json", "_msgpack", "at_us", "now_s", "seq")

    def __init__(self) -> None:
        self.at_us = 0
        self.now_s = 0.0
        self.seq = 0
        self._json = self._msgpack = b""

    def begin(self, at_us: int, now_s: float, seq: int) -> None:
        self.at_us, self.now_s = at_us, now_s
        self.moved(seq)

    def moved(self, seq: int) -> None:
        """Updates up to `seq` are in the queues now."""
        self.seq = seq
        self._json, self._msgpack = json_head(self.at_us, seq), msgpack_head(self.at_us, seq)

    def head(self, formats: int) -> bytes:
        return self._json if formats == JSON else self._msgpack


class Reader(ABC):
    """Whoever is told: a client's connection, or a worker process."""

    __slots__ = ("dirty", "slow", "slow_at_s", "topics")

    def __init__(self) -> None:
        self.dirty: set[Topic] = set()
        self.slow: set[Topic] = set()
        self.slow_at_s = 0.0
        self.topics: dict[Key, Topic] = {}

    @abstractmethod
    def take(self, topic: Topic, fragment: Fragment, seq: int) -> None:
        """One update that must not be lost."""

    @abstractmethod
    def take_diff(self, topic: Topic, fragment: Fragment) -> None:
        """One diff of a book."""

    @abstractmethod
    def write(self, now: Round) -> int:
        """Send what there is, if there is room; gives how many updates went. Never waits, never raises."""


class Hub:
    """The topics that someone reads, and who. One event loop; `run` does the rounds.

    epoch: of the gateway's run that numbers the updates. seq: the newest number that was given out to readers.
    """

    def __init__(self, epoch: int, *, pace: Pace | None = None, clock_us: Callable[[], int] = wall_us) -> None:
        self.epoch = epoch
        self.seq = 0
        self.pace = pace or Pace()
        self.topics: dict[Key, Topic] = {}
        self.readers: dict[Reader, None] = {}
        self.on_empty: list[Callable[[Key], None]] = []
        """Called for a topic that nobody reads any more."""
        self.counters = {"rounds": 0, "frames": 0, "updates": 0}
        self.shed_above: tuple[str, ...] = ()
        """Shed before it came here."""
        self.round = Round()
        self._changed: dict[Topic, None] = {}
        self._held: dict[Topic, None] = {}
        """Changed while their channels are shed."""
        self._wake = asyncio.Event()
        self._clock_us = clock_us
        self._begun_s = 0.0
        self.pace.on_change.append(self._paced)

    # ---- who reads what ----

    def subscribe(self, reader: Reader, key: Key, *, formats: int, slow: bool = False) -> Topic:
        """slow: once a second. Again: the rate is changed."""
        topic = self.topics.get(key)
        if topic is None:
            topic = self.topics[key] = Topic(key)
        reader.topics[key] = topic
        if formats & ~topic.formats:
            topic.formats |= formats
            topic.encode()
        (topic.live if slow else topic.slow).pop(reader, None)
        if slow:
            topic.slow[reader] = reader.slow
        else:
            topic.live[reader] = reader.dirty
        self.readers[reader] = None
        return topic

    def unsubscribe(self, reader: Reader, key: Key) -> bool:
        """False: it was not subscribed."""
        topic = reader.topics.pop(key, None)
        if topic is None:
            return False
        topic.live.pop(reader, None)
        topic.slow.pop(reader, None)
        reader.dirty.discard(topic)
        reader.slow.discard(topic)
        if not topic.live and not topic.slow:
            del self.topics[key]
            self._changed.pop(topic, None)
            self._held.pop(topic, None)
            self.forget(key)
        return True

    def forget(self, key: Key) -> None:
        """Nobody reads this topic any more, or nobody ever did."""
        for hook in self.on_empty:
            hook(key)

    def leave(self, reader: Reader) -> None:
        for key in list(reader.topics):
            self.unsubscribe(reader, key)
        self.readers.pop(reader, None)

    # ---- what is to be sent ----

    def publish(self, topic: Topic, fragment: Fragment) -> None:
        """The newest state of a conflated topic; what came before and was not sent is forgotten."""
        topic.fragment = fragment
        (self._held if topic.channel.shed and self.pace.level else self._changed)[topic] = None
        self._wake.set()

    def append(self, key: Key, fragment: Fragment, seq: int) -> None:
        """One update of a channel that loses none."""
        self.seq = max(self.seq, seq)
        topic = self.topics.get(key)
        if topic is not None:
            for reader in list(topic.live):  # a reader whose queue is full is cut, and leaves
                reader.take(topic, fragment, seq)
            self._wake.set()

    def diff(self, key: Key, fragment: Fragment) -> None:
        topic = self.topics.get(key)
        if topic is not None and topic.channel.kind is Kind.diffs:
            for reader in topic.live:
                reader.take_diff(topic, fragment)
            self._wake.set()

    def wake(self) -> None:
        """A reader has something to send."""
        self._wake.set()

    def _paced(self) -> None:
        log.info("pace", level=self.pace.level, tick_ms=self.pace.tick_ms, shed=self.pace.shed)
        if not self.pace.level:
            self._changed |= self._held
            self._held.clear()
            self._wake.set()

    # ---- rounds ----

    async def run(self) -> None:
        """Send until cancelled: at once when something changed after a pause, else about one round per tick."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_S):
                    await self._wake.wait()
            due_s = self._begun_s + self.pace.tick_ms / 1000 * (1.0 if self.pace.level else DRIFT)
            wait_s = due_s - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            began_s = time.monotonic()
            lag_s = began_s - due_s if wait_s > 0 else 0.0
            await self.flush()
            self.pace.observe((time.monotonic() - began_s) * 1000, lag_s * 1000)

    async def flush(self) -> None:
        """One round."""
        self._wake.clear()
        self._begun_s = began_s = time.monotonic()
        self._mark()
        now = self.round
        now.begin(self._clock_us(), began_s, self.seq)
        readers = list(self.readers)
        # Another one is first each time: the last of many waits for all others.
        turn = self.counters["rounds"] * 997 % len(readers) if readers else 0
        frames = updates = 0
        slice_s = began_s + SLICE_S
        for number, reader in enumerate(readers[turn:] + readers[:turn]):
            sent = reader.write(now)
            if sent:
                frames += 1
                updates += sent
            if number % LOOK_EVERY == 0 and time.monotonic() > slice_s:
                await asyncio.sleep(0)
                slice_s = time.monotonic() + SLICE_S
                if now.seq != self.seq:
                    now.moved(self.seq)
        counters = self.counters
        counters["rounds"] += 1
        counters["frames"] += frames
        counters["updates"] += updates

    def _mark(self) -> None:
        """Encode what changed, and mark it for its readers: both now, so that no mark is cleared by an older update."""
        changed, self._changed = self._changed, {}
        for topic in changed:
            topic.encode()
            for marks in topic.live.values():
                marks.add(topic)
            for marks in topic.slow.values():
                marks.add(topic)

    def begin(self, epoch: int, seq: int) -> None:
        """What numbers the updates began anew."""
        self.epoch, self.seq = epoch, seq

    @property
    def shed(self) -> tuple[str, ...]:
        return SHED if self.pace.level else self.shed_above
