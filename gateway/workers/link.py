"""A worker's side of the core: its topics, what came of them, and questions; all of it kept when the core is away."""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import msgspec
import structlog

from gateway.fanout.fragment import Fragment
from gateway.fanout.hub import Hub
from gateway.fanout.ring import After, Place
from gateway.fanout.source import Done, Opened
from gateway.fanout.topics import CHANNELS, Key, Kind
from gateway.workers.words import (
    Answer,
    Ask,
    Close,
    FromCore,
    Hello,
    Open,
    OpenedTopics,
    Reopen,
    Row,
    Take,
    Taken,
    Tally,
    Tick,
    Unframer,
    Welcome,
    framed,
    from_core,
)
from node.errors import NotReady

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.workers")

SILENT_S = 2.0
"""The core says something twice a second; what is served is marked as old when it did not for so long."""
AGAIN_S = 0.2
AWAY = "the gateway's core is away: what was subscribed goes on with what is known; come back"


class QuestionFailed(ValueError):
    """The core answered that it can't answer."""


class CoreLink(asyncio.Protocol):
    """Implements Source. Keeps a connection to the core for as long as `run` runs.

    on_lost_past: given the channels of which updates are missing for good. on_leave: this worker is not wanted.
    on_welcome: the core is there, and knows nothing of what this worker holds; from here on it is told.
    """

    def __init__(self, hub: Hub, path: Path, *, number: int = 0, run: str = "") -> None:
        self.hub = hub
        self.path = path
        self.channels: Sequence[str] = list(CHANNELS)
        self.on_lost_past: Callable[[list[str]], None] = lambda _channels: None
        self.on_leave: Callable[[], None] = lambda: None
        self.on_welcome: Callable[[], None] = lambda: None
        self.counters = {"connected": 0, "lost": 0, "ticks": 0, "rows": 0}
        self._number = number
        self._run = run
        self._transport: asyncio.Transport | None = None
        self._unframer = Unframer()
        self._lost = asyncio.Event()
        self._heard_s = 0.0
        self._is_whole = False
        """Welcomed, and everything that was read before is open again."""
        self._ids = 0
        self._opening: dict[int, tuple[list[Key], int, Done]] = {}
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        self._taking: dict[int, Callable[[float | None], None]] = {}
        self._formats: dict[Key, int] = {}
        """What the core sends us."""
        self._waiting: Counter[Key] = Counter()
        """Topics whose opening is not answered yet."""
        self._shed: tuple[str, ...] = ()
        hub.on_empty.append(self._unread)

    # ---- Source ----

    @property
    def is_live(self) -> bool:
        return self._is_whole and time.monotonic() - self._heard_s < SILENT_S

    @property
    def age_ms(self) -> int:
        return int((time.monotonic() - self._heard_s) * 1000) if self._heard_s else -1

    def open(self, keys: Sequence[Key], formats: int, after: After | None, done: Done) -> None:
        """What this worker has is answered at once, the rest is asked of the core."""
        known = {key: self._state(key) for key in keys if self._has(key, formats, after)}
        if len(known) == len(keys):
            done(Opened(self.hub.seq, known))
            return
        if not self._is_whole:
            if known:
                why = {key: AWAY for key in keys if key not in known}
                done(Opened(self.hub.seq, known, refused=why))
            else:
                done(Opened(self.hub.seq, {}, away=AWAY))
            return
        self._ids += 1
        self._opening[self._ids] = list(keys), formats, done
        self._waiting.update(keys)
        place = str(after) if after is not None else ""
        self.send(Open(self._ids, keys[0][0], [symbol for _, symbol in keys], formats, place))

    def _has(self, key: Key, formats: int, after: After | None) -> bool:
        if after is not None or key not in self.hub.topics or formats & ~self._formats.get(key, 0):
            return False
        # A book's reader needs a snapshot that belongs to the next diff; while the core is away there is none.
        return CHANNELS[key[0]].kind is not Kind.diffs

    def _state(self, key: Key) -> Fragment | None:
        return self.hub.topics[key].fragment

    def _unread(self, key: Key) -> None:
        if key in self._formats and not self._waiting[key]:
            del self._formats[key]
            self.send(Close([key]))

    # ---- questions ----

    async def ask(self, name: str, body: bytes, *, timeout_s: float = 2.0) -> bytes:
        """Ask the core. Raises NotReady: it is away, or does not answer in time. QuestionFailed: it says why not."""
        if not self._is_whole:
            raise NotReady("the gateway's core is away; what only it knows can't be answered now")
        self._ids += 1
        number = self._ids
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        self.send(Ask(number, name, body))
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError as error:
            raise NotReady(f"the gateway's core did not answer within {timeout_s:g} s") from error
        finally:
            self._asked.pop(number, None)

    # ---- places ----

    @property
    def is_whole(self) -> bool:
        return self._is_whole

    def take(self, kind: str, name: str, count: int, done: Callable[[float | None], None]) -> None:
        """done: told the core's word (see Taken), or None: it is away."""
        if not self._is_whole:
            done(None)
            return
        self._ids += 1
        self._taking[self._ids] = done
        self.send(Take(self._ids, kind, name, count))

    def tell(self, counts: dict[str, float]) -> None:
        """What this worker did and does, for the core's metrics."""
        if self._is_whole:
            self.send(Tally(counts))

    # ---- the connection ----

    async def run(self) -> None:
        """Until cancelled. Raises nothing else."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._lost.clear()
                try:
                    await loop.create_unix_connection(lambda: self, str(self.path))
                    await self._lost.wait()
                except OSError as error:
                    log.debug("the core is away", error=str(error))
                await asyncio.sleep(random.uniform(0.5, 1.0) * AGAIN_S)
        finally:
            if self._transport is not None:
                self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self._unframer = cast(asyncio.Transport, transport), Unframer()
        self.send(Hello(self._number, os.getpid(), self._run))

    def connection_lost(self, exc: Exception | None) -> None:
        log.warning("the core is lost", number=self._number)
        self.counters["lost"] += 1
        self._transport, self._is_whole = None, False
        opening, self._opening = self._opening, {}
        self._waiting.clear()
        for _, _, done in opening.values():
            done(Opened(self.hub.seq, {}, away=AWAY))
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(NotReady("the gateway's core went away"))
        taking, self._taking = self._taking, {}
        for taken in taking.values():
            taken(None)
        self._lost.set()

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._unframer.feed(data):
                self._take(from_core(payload))
        except (ValueError, msgspec.MsgspecError) as error:
            log.error("the core says what no core says", error=str(error))
            if self._transport is not None:
                self._transport.abort()

    def send(self, message: msgspec.Struct) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(framed(message))

    # ---- what the core says ----

    def _take(self, message: FromCore) -> None:
        self._heard_s = time.monotonic()
        if isinstance(message, Tick):
            self._tick(message)
        elif isinstance(message, OpenedTopics):
            self._opened(message)
        elif isinstance(message, Answer):
            answer = self._asked.get(message.id)
            if answer is not None and not answer.done():
                if message.error:
                    answer.set_exception(QuestionFailed(message.error))
                else:
                    answer.set_result(message.body)
        elif isinstance(message, Taken):
            told = self._taking.pop(message.id, None)
            if told is not None:
                told(message.wait_s)
        elif isinstance(message, Welcome):
            self._welcomed(message)
        else:
            log.warning("told to leave", why=message.why)
            self.on_leave()

    def _welcomed(self, message: Welcome) -> None:
        self.counters["connected"] += 1
        self.channels = message.channels
        before = Place(self.hub.epoch, self.hub.seq)
        if message.epoch != self.hub.epoch:
            self.hub.begin(message.epoch, message.seq)
        topics = [(*key, topic.formats) for key, topic in self.hub.topics.items()]
        self._formats = {}
        if not topics:
            self._is_whole = True
            self.on_welcome()
            return
        self._ids += 1
        keys = [(channel, symbol) for channel, symbol, _ in topics]
        self._opening[self._ids] = keys, 0, self._reopened
        self._waiting.update(keys)
        self.send(Reopen(self._ids, topics, str(before)))

    def _reopened(self, opened: Opened) -> None:
        """All topics go on from here, where the core can say what came meanwhile."""
        if opened.away:
            return
        self._is_whole = True
        self.on_welcome()
        hub = self.hub
        for key, fragment in opened.states.items():
            topic = hub.topics.get(key)
            if topic is None:
                self._unread(key)
            elif fragment is not None and topic.channel.kind is Kind.diffs:
                hub.diff(key, fragment)
            elif fragment is not None:
                hub.publish(topic, fragment)
        for seq, key, fragment in opened.missed or ():
            hub.append(key, fragment, seq)
        hub.seq = max(hub.seq, opened.seq)
        if opened.missed is None:
            lasting = {key[0] for key in hub.topics if CHANNELS[key[0]].kind is Kind.every}
            self.on_lost_past(sorted(lasting))

    def _opened(self, message: OpenedTopics) -> None:
        asked = self._opening.pop(message.id, None)
        if asked is None:
            return
        keys, formats, done = asked
        for key in keys:
            self._waiting[key] -= 1
            if self._waiting[key] <= 0:
                del self._waiting[key]
        opened = Opened(message.seq, {}, refused={(channel, symbol): why for channel, symbol, why in message.refused})
        for row in message.states:
            key = row.channel, row.symbol
            topic = self.hub.topics.get(key)
            self._formats[key] = self._formats.get(key, 0) | (formats or (topic.formats if topic is not None else 0))
            opened.states[key] = self._fragment(row) if row.json or row.msgpack else None
        if message.missed is not None:
            opened.missed = [(row.seq, (row.channel, row.symbol), _fragment(row)) for row in message.missed]
        done(opened)
        for key in keys:  # refused, or its asker left meanwhile
            if key not in self.hub.topics and key in self._formats:
                self._unread(key)

    def _tick(self, message: Tick) -> None:
        hub, topics = self.hub, self.hub.topics
        self.counters["ticks"] += 1
        self.counters["rows"] += len(message.newest) + len(message.lasting)
        self._shed = tuple(message.shed)
        hub.shed_above = self._shed
        for row in message.newest:
            topic = topics.get((row.channel, row.symbol))
            if topic is not None:
                hub.publish(topic, self._fragment(row))
        for row in message.diffs:
            hub.diff((row.channel, row.symbol), _fragment(row))
        for row in message.lasting:
            hub.append((row.channel, row.symbol), _fragment(row), row.seq)
        hub.seq = max(hub.seq, message.seq)

    def _fragment(self, row: Row) -> Fragment:
        """A format that this row does not bring keeps what it had: the core was asked for one of them only."""
        json, packed = row.json, row.msgpack
        if not (json and packed):
            topic = self.hub.topics.get((row.channel, row.symbol))
            if topic is not None and topic.fragment is not None:
                json, packed = json or topic.fragment.json(), packed or topic.fragment.msgpack()
        return Fragment.of_bytes(json, packed, row.born_us)


def _fragment(row: Row) -> Fragment:
    return Fragment.of_bytes(row.json, row.msgpack, row.born_us)
