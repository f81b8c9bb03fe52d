"""The core's side of its workers: fans out to them what they ask for, encoded once, and answers their questions.

A worker is one more reader of the core's hub: what it misses of quotes and books is replaced by the newest, and one
that can't keep up with what may not be lost is dropped, so that it starts anew.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import cast

import msgspec
import structlog

from gateway.fanout.fragment import JSON, MSGPACK, Fragment
from gateway.fanout.hub import Hub, Reader, Round, Topic
from gateway.fanout.ring import After, parse_after
from gateway.fanout.source import LocalSource, Opened
from gateway.fanout.topics import CHANNELS, Key, Kind
from gateway.stream.admission import Admission
from gateway.stream.places import Places
from gateway.workers.words import (
    ADMISSION,
    Answer,
    Ask,
    Close,
    Free,
    Hello,
    Hold,
    Leave,
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
    from_worker,
)

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.workers")

WATERMARK_BYTES = 4 << 20
QUEUE_BYTES_MAX = 64 << 20
STUCK_S = 5.0
BEAT_S = 0.5
ASKED_MAX = 1_000
"""Questions of one worker under way at once."""

Handler = Callable[[bytes], Awaitable[bytes]]
"""Answers a question. A ValueError or LookupError is told to the asker; any other is ours, and logged."""


class WorkerReader(Reader, asyncio.Protocol):
    """One worker's connection. formats_of: which formats of a topic it asked for."""

    __slots__ = (
        "_core", "_diffs", "_full_since_s", "_lasting", "_queued_bytes", "_tasks", "_unframer", "formats_of", "number",
        "pid", "sent_at_s", "transport",
    )  # fmt: skip

    def __init__(self, core: "Core") -> None:
        super().__init__()
        self.number = self.pid = -1
        self.formats_of: dict[Key, int] = {}
        self.sent_at_s = 0.0
        self.transport: asyncio.Transport | None = None
        self._core = core
        self._lasting: list[Row] = []
        self._diffs: list[Row] = []
        self._queued_bytes = 0
        self._full_since_s = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._unframer = Unframer()

    # ---- the connection ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._core.left(self)
        self.transport = None
        for task in self._tasks:
            task.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._unframer.feed(data):
                message = from_worker(payload)
                if isinstance(message, Hello):
                    self._core.entered(self, message)
                elif self not in self._core.workers:
                    raise ValueError("say hello first")
                elif isinstance(message, Open):
                    self._open(message)
                elif isinstance(message, Reopen):
                    self._reopen(message)
                elif isinstance(message, Close):
                    for channel, symbol in message.topics:
                        self._core.hub.unsubscribe(self, (channel, symbol))
                        self.formats_of.pop((channel, symbol), None)
                elif isinstance(message, Tally):
                    self._core.tallies[self.number] = message.counts
                elif isinstance(message, Take):
                    self.send(Taken(message.id, self._core.taken(self, message)))
                elif isinstance(message, Free):
                    for kind, name, count in message.rows:
                        self._core.places.free(self, kind, name, count)
                elif isinstance(message, Hold):
                    self._core.places.hold(self, message.rows)
                else:
                    self._ask(message)
        except (ValueError, KeyError, msgspec.MsgspecError) as error:
            self._core.drop(self, f"it says what no worker says: {error}")

    def send(self, message: msgspec.Struct) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(framed(message))

    # ---- topics ----

    def _open(self, message: Open) -> None:
        after = parse_after(message.after) if message.after else None
        keys = [(message.channel, symbol) for symbol in message.symbols]
        self._core.source.open(
            keys, message.formats, after, partial(self._opened, message.id, dict.fromkeys(keys, message.formats))
        )

    def _opened(self, number: int, formats: dict[Key, int], opened: Opened) -> None:
        for key in opened.states:
            self._want(key, formats[key])
        self.send(
            OpenedTopics(
                number,
                opened.seq,
                [_row(key, fragment, formats[key]) for key, fragment in opened.states.items()],
                None
                if opened.missed is None
                else [_row(key, fragment, formats[key], seq) for seq, key, fragment in opened.missed],
                [(*key, why) for key, why in opened.refused.items()],
            )
        )

    def _reopen(self, message: Reopen) -> None:
        """All in one answer: between two, a tick could move the worker past what the second one brings."""
        after: After = parse_after(message.after)
        formats = {(channel, symbol): mask for channel, symbol, mask in message.topics}
        whole = Opened(self._core.source.rings.seq, {}, [], {})
        for channel in dict.fromkeys(channel for channel, _ in formats):
            keys = [key for key in formats if key[0] == channel]
            lasts = CHANNELS[channel].kind is Kind.every
            self._core.source.open(keys, 0, after if lasts else None, partial(_merge, whole, lasts))
        if whole.missed is not None:
            whole.missed.sort(key=lambda one: one[0])
        self._opened(message.id, formats, whole)

    def _want(self, key: Key, formats: int) -> None:
        self.formats_of[key] = formats = self.formats_of.get(key, 0) | formats
        self._core.hub.subscribe(self, key, formats=formats)

    # ---- what goes to it ----

    def take(self, topic: Topic, fragment: Fragment, seq: int) -> None:
        self._queue(self._lasting, topic, fragment, seq)

    def take_diff(self, topic: Topic, fragment: Fragment) -> None:
        self._queue(self._diffs, topic, fragment, 0)

    def _queue(self, rows: list[Row], topic: Topic, fragment: Fragment, seq: int) -> None:
        row = _row(topic.key, fragment, self.formats_of.get(topic.key, 0), seq)
        rows.append(row)
        self._queued_bytes += len(row.json) + len(row.msgpack)
        if self._queued_bytes > QUEUE_BYTES_MAX:
            self._core.drop(self, "it does not keep up")

    def write(self, now: Round) -> int:
        transport = self.transport
        if transport is None or not (
            self.dirty or self._lasting or self._diffs or now.now_s - self.sent_at_s >= BEAT_S
        ):
            return 0
        if transport.get_write_buffer_size() > WATERMARK_BYTES:
            self._full_since_s = self._full_since_s or now.now_s
            if now.now_s - self._full_since_s > STUCK_S:
                self._core.drop(self, f"it has taken nothing for {STUCK_S:g} s")
            return 0
        self._full_since_s = 0.0
        newest = [self._newest(topic) for topic in self.dirty if topic.fragment is not None]
        self.dirty.clear()
        lasting, self._lasting = self._lasting, []
        diffs, self._diffs = self._diffs, []
        self._queued_bytes = 0
        self.sent_at_s = now.now_s
        self.send(Tick(now.seq, now.at_us, newest, lasting, diffs, list(self._core.hub.shed)))
        return len(newest) + len(lasting) + len(diffs) or 1

    def _newest(self, topic: Topic) -> Row:
        formats, fragment = self.formats_of.get(topic.key, 0), topic.fragment
        return Row(
            *topic.key,
            topic.json if formats & JSON else b"",
            topic.msgpack if formats & MSGPACK else b"",
            fragment.born_us if fragment is not None else 0,
        )

    # ---- questions ----

    def _ask(self, message: Ask) -> None:
        handler = self._core.handlers.get(message.name)
        if handler is None:
            self.send(Answer(message.id, b"", f"there is no question {message.name!r}"))
        elif len(self._tasks) >= ASKED_MAX:
            self.send(Answer(message.id, b"", "overloaded: too many questions are under way"))
        else:
            task = asyncio.get_running_loop().create_task(self._answer(message, handler))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, message: Ask, handler: Handler) -> None:
        try:
            self.send(Answer(message.id, await handler(message.body)))
        except (ValueError, LookupError) as error:
            self.send(Answer(message.id, b"", str(error) or type(error).__name__))
        except Exception:
            log.exception("a question failed", name=message.name)
            self.send(Answer(message.id, b"", "internal error; the core's log has it"))


class Core:
    """Listens for workers on a unix socket. handlers: by the name of the question.

    run: names this run; a worker that another run started is told to leave. on_drop: given the pid of a worker that
    was dropped: it is to be killed. places, admission: of all workers together.
    """

    def __init__(
        self,
        path: Path,
        hub: Hub,
        source: LocalSource,
        *,
        places: Places,
        admission: Admission,
        run: str = "",
        handlers: Mapping[str, Handler] | None = None,
        on_drop: Callable[[int], None] = lambda _pid: None,
    ) -> None:
        self.path = path
        self.hub = hub
        self.source = source
        self.run = run
        self.handlers: dict[str, Handler] = dict(handlers or {})
        self.places = places
        self.admission = admission
        self.workers: set[WorkerReader] = set()
        self.counters = {"connected": 0, "dropped": 0}
        self.tallies: dict[int, dict[str, float]] = {}
        """What each worker said of itself last."""
        self._on_drop = on_drop
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Raises OSError."""
        self.path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: WorkerReader(self), str(self.path))
        os.chmod(self.path, 0o600)

    async def stop(self) -> None:
        """Workers go on with what they have."""
        if self._server is not None:
            self._server.close()
        for worker in list(self.workers):
            if worker.transport is not None:
                worker.transport.abort()
        self.path.unlink(missing_ok=True)

    def entered(self, worker: WorkerReader, hello: Hello) -> None:
        worker.number, worker.pid = hello.number, hello.pid
        if hello.run != self.run:
            worker.send(Leave("another run of the core has the port"))
            return
        self.workers.add(worker)
        self.hub.readers[worker] = None
        self.counters["connected"] += 1
        worker.sent_at_s = time.monotonic()
        worker.send(Welcome(self.hub.epoch, self.source.rings.seq, list(self.source.channels)))

    def taken(self, worker: WorkerReader, take: Take) -> float:
        """See Taken. Raises ValueError, KeyError: no worker asks so."""
        if take.kind == ADMISSION:
            return self.admission.admit()
        if take.count < 0:
            raise ValueError(f"take {take.count}")
        return 0.0 if self.places.take(worker, take.kind, take.name, take.count) else -1.0

    def left(self, worker: WorkerReader) -> None:
        self.workers.discard(worker)
        self.places.left(worker)
        self.tallies.pop(worker.number, None)
        worker.formats_of.clear()
        self.hub.leave(worker)

    def drop(self, worker: WorkerReader, why: str) -> None:
        if worker in self.workers:
            log.error("a worker is dropped", number=worker.number, pid=worker.pid, why=why)
            self.counters["dropped"] += 1
            self.left(worker)
            self._on_drop(worker.pid)
        if worker.transport is not None:
            worker.transport.abort()


def _row(key: Key, fragment: Fragment | None, formats: int, seq: int = 0) -> Row:
    if fragment is None:
        return Row(*key, b"", b"", 0, seq)
    json = fragment.json() if formats & JSON else b""
    return Row(*key, json, fragment.msgpack() if formats & MSGPACK else b"", fragment.born_us, seq)


def _merge(whole: Opened, lasts: bool, one: Opened) -> None:
    whole.states |= one.states
    whole.refused |= one.refused
    if lasts:
        whole.missed = None if whole.missed is None or one.missed is None else whole.missed + one.missed
