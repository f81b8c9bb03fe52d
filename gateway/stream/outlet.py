"""The outgoing side of one client: one frame per round with all that is new, conflated while its connection is full."""

import asyncio
from abc import abstractmethod

import msgspec
from msgspec import Struct

from gateway.fanout.fragment import JSON, Fragment
from gateway.fanout.frames import (
    BINARY,
    TEXT,
    close_frame,
    frame,
    header,
    json_frame,
    json_head,
    msgpack_frame,
    msgpack_head,
)
from gateway.fanout.hub import Reader, Round, Topic
from gateway.fanout.views import broken

WATERMARK_BYTES = 16 * 1024
"""While the connection has so much left to send, the client is left out."""
QUEUE_BYTES_MAX = 512 * 1024
"""Of updates that may not be lost."""

CHUNK_BYTES = 256 * 1024
"""A frame holds little more of a queue than this."""

_json = msgspec.json.Encoder().encode
_msgpack = msgspec.msgpack.Encoder().encode


class Outlet(Reader):
    """A Reader over a WebSocket whose upgrade is done.

    full_since_s: since when there has been no room; 0 while there is. position_seq: what it was sent, up to here.
    Raw frames go straight to the transport: a send through aiohttp costs a third more (DESIGN.md, Fan-out).
    """

    __slots__ = (
        "allowed_bytes", "broken", "diffs", "formats", "full_since_s", "opcode", "position_seq", "queue",
        "queued_bytes", "sent_at_s", "skipped", "transport",
    )  # fmt: skip

    def __init__(self, transport: asyncio.Transport, formats: int) -> None:
        super().__init__()
        self.formats = formats
        self.transport = transport
        self.opcode = TEXT if formats == JSON else BINARY
        self.queue: list[tuple[int, bytes]] = []
        """Each with its sequence."""
        self.queued_bytes = 0
        self.allowed_bytes = QUEUE_BYTES_MAX
        self.diffs: list[tuple[Topic, bytes]] = []
        self.broken: dict[Topic, None] = {}
        self.position_seq = 0
        self.full_since_s = 0.0
        self.sent_at_s = 0.0
        self.skipped = 0

    def use(self, formats: int) -> None:
        """Another format, while nothing is subscribed."""
        self.formats, self.opcode = formats, TEXT if formats == JSON else BINARY

    # ---- what is to be sent ----

    def take(self, topic: Topic, fragment: Fragment, seq: int) -> None:
        self.put(fragment, seq)

    def put(self, fragment: Fragment, seq: int, *, recovered: bool = False) -> None:
        """recovered: it was missed before; however much that is, it is no fault of this reader."""
        data = fragment.bytes_of(self.formats)
        if not data:
            return
        self.queue.append((seq, data))
        self.queued_bytes += len(data)
        if recovered:
            self.allowed_bytes += len(data)
        if self.queued_bytes > self.allowed_bytes:
            self.full()

    @abstractmethod
    def full(self) -> None:
        """Its queue is full: it must be cut."""

    def take_diff(self, topic: Topic, fragment: Fragment) -> None:
        if self.full_since_s:
            self.broken[topic] = None
            self.diffs = [one for one in self.diffs if one[0] is not topic]
        elif topic not in self.broken:
            self.diffs.append((topic, fragment.bytes_of(self.formats)))

    def write(self, now: Round) -> int:
        dirty = self.dirty
        if self.slow and now.now_s >= self.slow_at_s:
            dirty |= self.slow
            self.slow.clear()
            self.slow_at_s = now.now_s + 1.0
        if not (dirty or self.queue or self.diffs or self.broken):
            return 0
        transport = self.transport
        if transport.get_write_buffer_size() > WATERMARK_BYTES:
            self.skipped += 1
            self.full_since_s = self.full_since_s or now.now_s
            if self.diffs:
                self.broken |= dict.fromkeys(topic for topic, _ in self.diffs)
                self.diffs.clear()
            return 0
        self.full_since_s = 0.0
        if self.queued_bytes > CHUNK_BYTES:
            return self._write_part(now)
        is_json = self.formats == JSON
        fragments = [topic.json for topic in dirty] if is_json else [topic.msgpack for topic in dirty]
        dirty.clear()
        if self.queue or self.diffs or self.broken:
            fragments = self._all(fragments)
        transport.write((json_frame if is_json else msgpack_frame)(now.head(self.formats), fragments))
        self.position_seq = now.seq
        self.sent_at_s = now.now_s
        return len(fragments)

    def _all(self, newest: list[bytes]) -> list[bytes]:
        """What may not be lost first, in the order in which it came."""
        fragments = [data for _, data in self.queue]
        fragments += [data for _, data in self.diffs if data]
        fragments += [broken(topic.key).bytes_of(self.formats) for topic in self.broken]
        fragments += newest
        self.queue, self.queued_bytes, self.allowed_bytes = [], 0, QUEUE_BYTES_MAX
        self.diffs.clear()
        self.broken.clear()
        return fragments

    def _write_part(self, now: Round) -> int:
        """A long queue goes in parts: else a slow reader would have to take all of it before it has any of it."""
        count = size = 0
        while size < CHUNK_BYTES:
            size += len(self.queue[count][1])
            count += 1
        part, self.queue = self.queue[:count], self.queue[count:]
        self.queued_bytes -= size
        # Queues of several channels were joined, so what is left may be older than what goes.
        self.position_seq = min([*(seq for seq, _ in self.queue), now.seq + 1]) - 1
        fragments = [data for _, data in part]
        if self.formats == JSON:
            data = json_frame(json_head(now.at_us, self.position_seq), fragments)
        else:
            data = msgpack_frame(msgpack_head(now.at_us, self.position_seq), fragments)
        self.transport.write(data)
        self.sent_at_s = now.now_s
        return count

    def forget(self, topic: Topic) -> None:
        """It is no longer subscribed."""
        self.broken.pop(topic, None)
        self.diffs = [one for one in self.diffs if one[0] is not topic]

    # ---- what is sent at once ----

    def say(self, message: Struct) -> None:
        """A message of its own, behind whatever was written."""
        encode = _json if self.formats == JSON else _msgpack
        self.send(encode(message))

    def send(self, payload: bytes) -> None:
        """Encoded already, in this client's format."""
        if not self.transport.is_closing():
            self.transport.write(header(len(payload), self.opcode) + payload)

    def control(self, payload: bytes, opcode: int) -> None:
        if not self.transport.is_closing():
            self.transport.write(frame(payload, opcode))

    def goodbye(self, code: int, reason: str) -> None:
        if not self.transport.is_closing():
            self.transport.write(close_frame(code, reason))
