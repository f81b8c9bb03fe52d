"""One TLS stream between two members: frames in, frames out, and nothing is believed before a good hello."""

import asyncio
import logging
import time
from collections import Counter, deque
from typing import Protocol, cast

from cluster.consensus.messages import Hello, Malformed, Message, Ping, Pong, decode, encode
from cluster.consensus.peers import Peer, steady_us
from cluster.consensus.rates import Bucket
from cluster.consensus.settings import FRAME_BYTES_MAX, Limits

log = logging.getLogger(__name__)

HEADER_BYTES = 4


class Home(Protocol):
    """What a connection needs of the links that it belongs to."""

    counters: Counter[str]
    delay_seconds: dict[str, float]
    limits: Limits

    def opened(self, connection: "Connection") -> bool:
        """False: it was refused."""
        ...

    def greeted(self, connection: "Connection", hello: Hello) -> None:
        """Refuses it, or makes it its peer's."""
        ...

    def received(self, member: str, message: Message) -> None: ...

    def closed(self, connection: "Connection") -> None: ...

    def hello(self) -> Hello: ...

    def clock_us(self) -> int: ...


class Connection(asyncio.Protocol):
    """One TLS stream. It delivers only after a good hello, and only while it is its peer's newest.

    dialed: the member that was dialed, None for an accepted stream. named: whom the certificate names.
    generation: of the identity that was shown; see Identity.
    settled: it was greeted, or it is gone.
    """

    def __init__(self, home: Home, dialed: str | None, generation: int) -> None:
        self._home = home
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._later: deque[tuple[float, bytes]] = deque()
        self._ended = False
        self._bytes = Bucket(home.limits.link_bytes_per_s)
        self._frames = Bucket(home.limits.link_frames_per_s)
        self.dialed = dialed
        self.generation = generation
        self.peer: Peer | None = None
        self.named: str | None = None
        self.opened_at = time.monotonic()
        self.settled = asyncio.Event()

    # -- asyncio's side --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        certificate = transport.get_extra_info("peercert") or {}
        names = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
        self.named = names[0] if len(names) == 1 else None
        if self.named is None or self.dialed not in (None, self.named):
            self.refuse("refused_name", f"its certificate names {names}")
        elif self._home.opened(self) and self.dialed is not None:
            # Who accepts says hello only to one who is welcome.
            self.write(self._home.hello())

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        now = time.monotonic()
        if self.peer is not None and self.peer.connection is self:
            # Also in the middle of a frame: a large one may take longer on its way than a link may be silent.
            self.peer.heard_at = now
        buffer = self._buffer
        buffer += data
        start = frames = 0
        while len(buffer) - start >= HEADER_BYTES:
            size = int.from_bytes(buffer[start : start + HEADER_BYTES], "big")
            if size > FRAME_BYTES_MAX:
                self.refuse("refused_length", f"a frame of {size} bytes; at most {FRAME_BYTES_MAX} are taken")
                return
            end = start + HEADER_BYTES + size
            if len(buffer) < end:
                break
            try:
                with memoryview(buffer) as view:
                    message = decode(view[start + HEADER_BYTES : end])
            except Malformed as error:
                self.refuse("refused_garbage", str(error))
                return
            start = end
            frames += 1
            self._take(message)
            if self.closing:
                return
        del buffer[:start]
        self._pace(max(self._bytes.take(len(data), now), self._frames.take(frames, now)))

    def _pace(self, seconds: float) -> None:
        """Read no further for so long. TCP tells the other side, so that what waits, waits there."""
        if seconds > 0 and self._transport is not None:
            self._home.counters["reading_paused"] += 1
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(seconds, self._read_on)

    def _read_on(self) -> None:
        if self._transport is not None and not self._ended:
            self._transport.resume_reading()

    def connection_lost(self, _error: Exception | None) -> None:
        self._end()
        self._transport = None
        self._home.closed(self)

    # -- ours ------------------------------------------------------------------------------------

    def _take(self, message: Message) -> None:
        home = self._home
        if self.peer is None:
            if isinstance(message, Hello):
                home.greeted(self, message)
            else:
                self.refuse("refused_garbage", f"{type(message).__name__} before hello")
            return
        if self.peer.connection is not self:
            # Superseded while its bytes were under way: never delivers again.
            home.counters["refused_superseded"] += 1
            self.abort()
            return
        match message:
            case Ping(sent_us):
                self.write(Pong(sent_us, home.clock_us()))
            case Pong(sent_us, received_us):
                self.peer.clock.add(sent_us, received_us, steady_us())
            case Hello():
                self.refuse("refused_garbage", "a second hello")
            case _:
                home.received(self.peer.name, message)

    def write(self, message: Message) -> None:
        frame = encode(message)
        if len(frame) > FRAME_BYTES_MAX:
            raise ValueError(f"a frame of {len(frame)} bytes; at most {FRAME_BYTES_MAX} are sent")
        data = len(frame).to_bytes(HEADER_BYTES, "big") + frame
        delay = self._home.delay_seconds.get(self.named or "", 0.0)
        if delay:
            self._write_later(data, delay)
        elif self._transport is not None and not self._ended:
            self._transport.write(data)

    def _write_later(self, data: bytes, delay: float) -> None:
        loop = asyncio.get_running_loop()
        self._later.append((loop.time() + delay, data))
        if len(self._later) == 1:
            loop.call_later(delay, self._write_due)

    def _write_due(self) -> None:
        loop = asyncio.get_running_loop()
        # A millisecond of grace: the loop's timers are not finer.
        now = loop.time() + 0.001
        while self._later and self._later[0][0] <= now:
            _, data = self._later.popleft()
            if self._transport is not None:
                self._transport.write(data)
        if self._later and self._transport is not None:
            loop.call_later(max(0.0, self._later[0][0] - loop.time()), self._write_due)

    @property
    def buffered_bytes(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    # -- the end ---------------------------------------------------------------------------------

    def refuse(self, counter: str, why: str) -> None:
        """Count, say why, and cut the stream at once."""
        self._home.counters[counter] += 1
        log.warning("link to %s refused: %s (%s)", self.named or "a stranger", why, counter)
        self.abort()

    def close(self) -> None:
        """Take nothing more, send what waits, then close. Whoever keeps the links aborts it if that takes too long."""
        self._end()
        self.opened_at = time.monotonic()
        if self._transport is not None:
            for _, data in self._later:
                self._transport.write(data)
            self._later.clear()
            self._transport.close()

    @property
    def closing(self) -> bool:
        return self._ended

    def abort(self) -> None:
        self._end()
        if self._transport is not None:
            self._transport.abort()

    def _end(self) -> None:
        self._ended = True
        self._buffer = bytearray()
        self.settled.set()
