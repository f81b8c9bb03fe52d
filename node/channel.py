"""The outgoing side of one WebSocket: bounded, written by one task, cut off when its reader is too slow."""

import asyncio
import time
from collections.abc import Callable

from aiohttp import WSMsgType, web

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


def _reason(text: str) -> bytes:
    return text.encode()[:_REASON_BYTES_MAX]


class Channel:
    """Messages go out in the order of `send`, which never waits.

    What was put in during one turn of the loop is written in the next one, together. More than bytes_max
    waiting, or no progress for stall_s, and the consumer is cut off: `on_slow` names the position to resume from.
    """

    def __init__(
        self,
        socket: web.WebSocketResponse,
        transport: asyncio.Transport | None,
        *,
        bytes_max: int,
        stall_s: float,
        on_slow: Callable[[], str],
    ) -> None:
        self.waiting_bytes = 0
        self.is_cut = False
        self.sent_at_s = time.monotonic()
        self._socket = socket
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
                await self._socket.send_frame(code.to_bytes(2, "big") + _reason(reason), WSMsgType.CLOSE)
                await self._ended.wait()
        except (TimeoutError, ConnectionError, RuntimeError):
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
        send_frame = self._socket.send_frame
        try:
            while True:
                if not self._queue:
                    self._idle.set()
                    self._wake = loop.create_future()
                    await self._wake
                queue, self._queue = self._queue, []
                self.sent_at_s = time.monotonic()
                for data, opcode in queue:
                    await send_frame(data, opcode)
                    self.waiting_bytes -= len(data)
                    self.sent_at_s = time.monotonic()
        except (ConnectionError, RuntimeError):
            pass  # the connection is gone; the reader sees it too
        finally:
            self.is_cut = True
            self._wake = None
            self._idle.set()
