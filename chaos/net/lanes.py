"""A proxied link of our own: its connections, and what is done to the bytes on their way.

Each connection has two lanes, one for each way. A lane keeps what it may not pass on yet, up to a bound; then it
stops reading, and what follows waits with the sender.
"""

import asyncio
import random
import socket
import struct
from collections import deque
from typing import Literal, cast

from chaos.net.links import Address, Way

QUEUE_BYTES_MAX = 4 << 20
"""Read while nothing may pass: what a sender that closes meanwhile has said is not lost for that."""
WRITE_BYTES_MAX = 256 << 10
LINGER_NOT = struct.pack("ii", 1, 0)
CONNECT_TIMEOUT_S = 10.0

Direction = Literal["to_target", "to_dialer"]
DIRECTIONS: tuple[Direction, ...] = ("to_target", "to_dialer")


def directions(way: Way) -> tuple[Direction, ...]:
    return DIRECTIONS if way == "both" else (way,)


class Faults:
    """What stands on one way of a link. Limits: 0 is none."""

    def __init__(self) -> None:
        self.stalled = False
        self.dropping = False
        self.latency_s = 0.0
        self.jitter_s = 0.0
        self.slice_bytes = 0
        self.slice_delay_s = 0.0
        self.cut_after_bytes = -1
        self.era = 0
        """Changes with cut_after, whose count begins then."""


class Proxied:
    """One link. All verbs act at once: when they return, nothing that they forbid passes any more."""

    def __init__(self, name: str, listen: Address, target_at: Address, seed: int) -> None:
        self.name = name
        self.listen = listen
        self.target_at = target_at
        self.faults: dict[Direction, Faults] = {way: Faults() for way in DIRECTIONS}
        self.passed: dict[Direction, int] = dict.fromkeys(DIRECTIONS, 0)
        self.connections: set[Connection] = set()
        self.chance = random.Random(f"{seed} {name}")
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Raises OSError: the port is in use."""
        if self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(lambda: Connection(self).dialer, *self.listen)

    def shut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def end_all(self, *, reset: bool = False) -> None:
        for connection in list(self.connections):
            connection.end(reset=reset)

    def hold_old(self) -> None:
        for connection in self.connections:
            connection.held = True

    async def heal(self) -> None:
        """Raises OSError: somebody took the port meanwhile."""
        dropped = any(fault.dropping for fault in self.faults.values())
        self.faults = {way: Faults() for way in DIRECTIONS}
        for connection in list(self.connections):
            connection.held = False
            if dropped:  # a stream with a hole is no stream
                connection.end()
            else:
                connection.go_on()
        await self.open()


class Connection:
    def __init__(self, link: Proxied) -> None:
        self.link = link
        self.held = False
        self.dialer, self.target = End(self), End(self)
        self.lanes: dict[Direction, Lane] = {
            "to_target": Lane(self, "to_target", self.dialer, self.target),
            "to_dialer": Lane(self, "to_dialer", self.target, self.dialer),
        }
        self.dialer.reads_for, self.target.reads_for = self.lanes["to_target"], self.lanes["to_dialer"]
        self.dialer.writes_for, self.target.writes_for = self.lanes["to_dialer"], self.lanes["to_target"]
        self._connecting: asyncio.Task[None] | None = None

    def made(self, end: "End") -> None:
        if end is self.dialer:
            self.link.connections.add(self)
            self._connecting = asyncio.create_task(self._connect())
        else:
            self.go_on()

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await asyncio.get_running_loop().create_connection(lambda: self.target, *self.link.target_at)
        except (OSError, TimeoutError):
            self.end()

    def go_on(self) -> None:
        for lane in self.lanes.values():
            lane.pump()

    def end(self, *, reset: bool = False) -> None:
        """Both sides, at once; what was held is lost."""
        if self._connecting is not None:
            self._connecting.cancel()
        for lane in self.lanes.values():
            lane.forget()
        for end in (self.dialer, self.target):
            end.end(reset=reset)
        self.link.connections.discard(self)

    def close(self) -> None:
        """Both sides, after what was passed on already."""
        for lane in self.lanes.values():
            lane.forget()
        self.dialer.close()
        self.target.close()

    def lost(self) -> None:
        if self.dialer.gone and self.target.gone:
            self.end()


class End(asyncio.Protocol):
    """One socket of a connection."""

    reads_for: "Lane"
    writes_for: "Lane"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._transport: asyncio.Transport | None = None
        self.gone = False
        self.full = False

    @property
    def ready(self) -> bool:
        return self._transport is not None and not self.gone

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_BYTES_MAX)
        sock = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.made(self)

    def data_received(self, data: bytes) -> None:
        self.reads_for.take(data)

    def eof_received(self) -> bool:
        self.reads_for.finish(reset=False)
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self.gone = True
        self.reads_for.finish(reset=isinstance(error, ConnectionError))
        self.writes_for.forget()
        self._connection.lost()

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        self.writes_for.pump()

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self.gone:
            self._transport.write(data)

    def finish(self) -> None:
        if self._transport is not None and not self.gone and self._transport.can_write_eof():
            self._transport.write_eof()

    def close(self) -> None:
        """After what was written."""
        if self._transport is not None:
            self._transport.close()

    def end(self, *, reset: bool) -> None:
        if self._transport is None or self.gone:
            self.gone = True
            return
        if reset:
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
        self._transport.abort()

    def reading(self, wanted: bool) -> None:
        if self._transport is None or self._transport.is_closing() or self._transport.is_reading() == wanted:
            return
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()


class Lane:
    """One way of one connection."""

    def __init__(self, connection: Connection, way: Direction, source: End, sink: End) -> None:
        self._connection = connection
        self._way = way
        self._source, self._sink = source, sink
        self._queue: deque[tuple[float, bytes]] = deque()
        self.queued_bytes = 0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._ended: Literal["", "eof", "reset"] = ""
        self.told = False
        self._era = 0
        self._counted_bytes = 0

    @property
    def _faults(self) -> Faults:
        return self._connection.link.faults[self._way]

    def take(self, data: bytes) -> None:
        faults = self._faults
        if faults.dropping or self._sink.gone:
            return
        now = asyncio.get_running_loop().time()
        jitter_s = self._connection.link.chance.uniform(-1, 1) * faults.jitter_s if faults.jitter_s else 0.0
        self._due = max(self._due, now + max(faults.latency_s + jitter_s, 0.0))  # order is kept
        self._queue.append((self._due, data))
        self.queued_bytes += len(data)
        if self.queued_bytes >= QUEUE_BYTES_MAX:
            self._source.reading(False)
        self.pump()

    def finish(self, *, reset: bool) -> None:
        """The source has said all."""
        self._ended = "reset" if reset else self._ended or "eof"
        self.told = self.told and not reset
        self.pump()

    def forget(self) -> None:
        self._queue.clear()
        self.queued_bytes = 0
        self._source.reading(True)  # nobody takes it any more, and its end is to be seen

    def pump(self) -> None:
        """Pass on what may pass now."""
        loop, faults = asyncio.get_running_loop(), self._faults
        if faults.stalled or faults.dropping or self._connection.held or not self._sink.ready:
            return
        while self._queue and not self._sink.full:
            due, data = self._queue[0]
            if due > loop.time() and (faults.latency_s or faults.slice_bytes):
                if self._timer is not None:
                    self._timer.cancel()
                self._timer = loop.call_at(due, self.pump)
                return
            self._queue.popleft()
            if faults.slice_bytes and len(data) > faults.slice_bytes:
                self._due = max(self._due, loop.time() + faults.slice_delay_s)
                self._queue.appendleft((loop.time() + faults.slice_delay_s, data[faults.slice_bytes :]))
                data = data[: faults.slice_bytes]
            if self._cut(faults, data):
                return
            self._pass(data)
        if self.queued_bytes < QUEUE_BYTES_MAX // 2:
            self._source.reading(True)
        if self._ended and not self._queue and not self.told:
            self._tell()

    def _pass(self, data: bytes) -> None:
        self.queued_bytes -= len(data)
        self._connection.link.passed[self._way] += len(data)
        self._sink.write(data)

    def _cut(self, faults: Faults, data: bytes) -> bool:
        """Whether the connection ends within these bytes."""
        if faults.cut_after_bytes < 0:
            return False
        if self._era != faults.era:
            self._era, self._counted_bytes = faults.era, 0
        left = faults.cut_after_bytes - self._counted_bytes
        self._counted_bytes += len(data)
        if len(data) < left:
            return False
        self._pass(data[:left])
        self._connection.close()
        return True

    def _tell(self) -> None:
        """The sink learns how the source ended."""
        self.told = True
        if self._ended == "reset":
            self._sink.end(reset=True)
        elif self._source.gone:
            self._sink.close()
        else:
            self._sink.finish()
            if all(lane.told for lane in self._connection.lanes.values()):
                self._connection.close()
