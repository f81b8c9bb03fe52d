"""The outgoing side of one WebSocket: bounded, written by one task, cut off when its reader is too slow."""

import asyncio
import struct
import time
from collections.abc import Callable

import structlog
from aiohttp import WSMsgType

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.stream")

CLOSE_SHUTDOWN = 1012
"""The node leaves; resume on another one. (RFC 6455's registry: service restart.)"""
CLOSE_MALFORMED = 1007
CLOSE_UNAUTHENTICATED = 4401
CLOSE_SLOW = 4008
CLOSE_SNAPSHOT_REQUIRED = 4410
CLOSE_EPOCH_CHANGED = 4409

_REASON_BYTES_MAX = 120
"""A close frame holds 125 bytes, two of them the code."""
_CLOSE_TIMEOUT_S = 2.0
_UNSENT_BYTES_MAX = 256 * 1024
"""While the kernel has so much left to take, nothing more is written."""
_LOOK_S = 0.002
_HEADER_16 = struct.Struct(">BBH").pack
_HEADER_64 = struct.Struct(">BBQ").pack


class Channel:
    """Messages go out in the order of `send`, which never waits.

    What was put in during one turn of the loop is written in the next one as one piece: a write costs 3 to 7 us
    (measured, uvloop), so forty answers written one by one through aiohttp cost ten times as much as joined.
    More than bytes_max waiting, or no progress for stall_s, and the consumer is cut off: `on_slow` names the
    position to resume from.
    """

    def __init__(
        self,
        transport: asyncio.Transport | None,
        *,
        bytes_max: int,
        stall_s: float,
        on_slow: Callable[[], str],
    ) -> None:
        self.waiting_bytes = 0
        self.is_cut = False
        self.sent_at_s = time.monotonic()
        self._transport = transport
        self._bytes_max = bytes_max
        self._stall_s = stall_s
        self._on_slow = on_slow
        self._queue: list[tuple[bytes, WSMsgType]] = []
        self._wake: asyncio.Future[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._ended = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None
        self._task = asyncio.get_running_loop().create_task(self._run(), name="channel")

    def send(self, data: bytes, opcode: WSMsgType) -> None:
        if self.is_cut:
            return
        if self.waiting_bytes > self._bytes_max:
            self.cut()  # one large message is no sin; another one behind so much is
            return
        self._queue.append((data, opcode))
        self.waiting_bytes += len(data)
        if self._wake is not None:
            self._idle.clear()
            self.sent_at_s = time.monotonic()
            if not self._wake.done():  # else the writer is being stopped
                self._wake.set_result(None)
            self._wake = None

    def check_progress(self, now_s: float) -> None:
        """Cut when something has waited for stall_s without any progress."""
        if self.waiting_bytes and now_s - self.sent_at_s > self._stall_s:
            self.cut()

    def cut(self) -> None:
        """End a slow consumer. What waits is dropped: the close frame must come next, if it gets through at all."""
        if self.is_cut:
            return
        self.is_cut = True
        reason = f"slow_consumer resume={self._on_slow()}"
        self._queue.clear()
        self._closing = asyncio.get_running_loop().create_task(self.close(CLOSE_SLOW, reason, flush=False))

    async def close(self, code: int, reason: str, *, flush: bool = True) -> None:
        """Say goodbye, what waits first if `flush`, and wait for the other side's; two seconds in all, then the
        connection is dropped. For any task but the reader's, which then finds the stream at its end."""
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                if flush:
                    await self._idle.wait()
                self.is_cut = True
                # Not WebSocketResponse.close: beside a reader that waits, it closes the connection at once, and a
                # client that answers the goodbye sees a broken connection instead of the code.
                if self._transport is not None and not self._transport.is_closing():
                    goodbye = code.to_bytes(2, "big") + reason.encode()[:_REASON_BYTES_MAX]
                    self._transport.write(_header(len(goodbye), WSMsgType.CLOSE) + goodbye)
                await self._ended.wait()
        except TimeoutError:
            self.abort()

    async def flush(self) -> None:
        """Wait until what was sent is written; a consumer too slow for it is not waited for."""
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._idle.wait()
        except TimeoutError:
            self.abort()

    def ended(self) -> None:
        """The reader is at the end of the stream."""
        self._ended.set()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def stop(self) -> None:
        """End the tasks; the WebSocket is closed already."""
        tasks = [
            task for task in (self._task, self._closing) if task is not None and task is not asyncio.current_task()
        ]
        self._task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        transport = self._transport
        try:
            while transport is not None:
                if not self._queue:
                    self._idle.set()
                    self._wake = loop.create_future()
                    await self._wake
                queue, self._queue = self._queue, []
                if transport.is_closing():
                    return  # the connection is gone; the reader sees it too
                parts: list[bytes] = []
                size = 0
                for message, opcode in queue:
                    parts += (_header(len(message), opcode), message)
                    size += len(message)
                transport.write(b"".join(parts))
                self.sent_at_s = time.monotonic()
                if transport.get_write_buffer_size() > _UNSENT_BYTES_MAX:
                    await self._taken(transport)
                self.waiting_bytes -= size
        except Exception:
            log.exception("the writer of a stream failed")
            self.abort()  # a stream that takes commands and answers none would be worse
        finally:
            self.is_cut = True
            self._wake = None
            self._idle.set()

    async def _taken(self, transport: asyncio.Transport) -> None:
        """Wait until the other side has taken most of what was written. Rare, so looking now and then will do."""
        before = transport.get_write_buffer_size()
        while (unsent := transport.get_write_buffer_size()) > _UNSENT_BYTES_MAX and not transport.is_closing():
            if unsent < before:
                self.sent_at_s = time.monotonic()
            before = unsent
            await asyncio.sleep(_LOOK_S)


def _header(size: int, opcode: int) -> bytes:
    """Of an unfragmented, unmasked frame, as servers send them (RFC 6455, 5.2)."""
    if size < 126:
        return bytes((0x80 | opcode, size))
    if size < 65_536:
        return _HEADER_16(0x80 | opcode, 126, size)
    return _HEADER_64(0x80 | opcode, 127, size)
