"""Links between members: one mutual TLS 1.3 stream per pair, typed frames, the certificate says who it is."""

import asyncio
import contextlib
import logging
import random
import socket
import ssl
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Protocol, cast

from cluster.consensus.messages import (
    PROTOCOL_VERSION,
    Application,
    Hello,
    Malformed,
    Message,
    Ping,
    Pong,
    decode,
    encode,
)
from cluster.consensus.settings import FRAME_BYTES_MAX, Limits
from cluster.topology import Timing

log = logging.getLogger(__name__)

HEADER_BYTES = 4
HANDSHAKE_SECONDS = 3.0
CLOCK_SAMPLES = 8
STOP_SECONDS = 0.02
ACCEPT_PAUSE_SECONDS = 0.1


class Receiver(Protocol):
    def link_up(self, member: str) -> None: ...

    def link_down(self, member: str) -> None: ...

    def received(self, member: str, message: Message) -> None: ...

    def links_failed(self, error: BaseException) -> None:
        """A task that keeps the links ended with an error: we were wrong."""
        ...


def wall_us() -> int:
    return time.time_ns() // 1000


def steady_us() -> int:
    """A clock that nobody sets; where it can, it goes on while the machine sleeps."""
    return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)) // 1000


class ClockSamples:
    """The offset of a peer's wall clock, from the quickest of the last few round trips.

    Kept against our steady clock, not our wall clock: when that is set, the offset to all peers is another at once,
    while what was measured stays true.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[int, int]] = deque(maxlen=CLOCK_SAMPLES)  # (round trip, theirs - steady), us

    def add(self, sent_us: int, theirs_us: int, now_us: int) -> None:
        """sent_us, now_us: our steady clock when we asked and when the answer came; theirs_us: their wall clock."""
        round_trip_us = now_us - sent_us
        if round_trip_us >= 0:
            self._samples.append((round_trip_us, theirs_us - sent_us - round_trip_us // 2))

    def offset_ms(self, *, wall_us: int, steady_us: int) -> int | None:
        """Their wall clock minus ours, now."""
        return round((min(self._samples)[1] + steady_us - wall_us) / 1000) if self._samples else None


class Peer:
    """What outlives a connection: who it is, when it was heard, how its clock differs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.connection: Connection | None = None
        self.heard_at = 0.0
        self.incarnation = 0
        self.clock = ClockSamples()


class Connection(asyncio.Protocol):
    """One TLS stream. It delivers only after a good hello, and only while it is its peer's newest."""

    def __init__(self, links: "Links", dialed: str | None) -> None:
        self._links = links
        self._dialed = dialed
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._later: deque[tuple[float, bytes]] = deque()
        self.peer: Peer | None = None
        self.named: str | None = None
        self.opened_at = time.monotonic()
        self.settled = asyncio.Event()  # greeted, or gone

    # -- asyncio's side --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        certificate = transport.get_extra_info("peercert") or {}
        names = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
        self.named = names[0] if len(names) == 1 else None
        if self.named not in self._links.peers or (self._dialed is not None and self.named != self._dialed):
            self.refuse("refused_name", f"its certificate names {names}")
            return
        self._links.opened(self)
        self.write(self._links.hello())

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        start = 0
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
            if not self._take(message):
                return
        del buffer[:start]

    def connection_lost(self, _error: Exception | None) -> None:
        self._transport = None
        self.settled.set()
        self._links.closed(self)

    # -- ours ------------------------------------------------------------------------------------

    def _take(self, message: Message) -> bool:
        """False: nothing more is taken from this connection."""
        links = self._links
        if self.peer is None:
            if not isinstance(message, Hello):
                self.refuse("refused_garbage", f"{type(message).__name__} before hello")
                return False
            return links.greeted(self, message)
        if self.peer.connection is not self:
            # Superseded while its bytes were under way: never delivers again.
            links.counters["refused_superseded"] += 1
            return False
        self.peer.heard_at = time.monotonic()
        match message:
            case Ping(sent_us):
                self.write(Pong(sent_us, links.clock_us()))
            case Pong(sent_us, received_us):
                self.peer.clock.add(sent_us, received_us, steady_us())
            case Hello():
                self.refuse("refused_garbage", "a second hello")
                return False
            case _:
                links.receiver.received(self.peer.name, message)
        return self._transport is not None

    def write(self, message: Message) -> None:
        frame = encode(message)
        if len(frame) > FRAME_BYTES_MAX:
            raise ValueError(f"a frame of {len(frame)} bytes; at most {FRAME_BYTES_MAX} are sent")
        data = len(frame).to_bytes(HEADER_BYTES, "big") + frame
        delay = self._links.delay_seconds.get(self.named or "", 0.0)
        if delay:
            self._write_later(data, delay)
        elif self._transport is not None:
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

    def refuse(self, counter: str, why: str) -> None:
        self._links.counters[counter] += 1
        log.warning("link to %s refused: %s (%s)", self.named or "a stranger", why, counter)
        self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Links:
    """All links of one member. Of each pair, the member whose name sorts later dials.

    Counts what it refuses in `counters`. Raises OSError from `start` when the address is taken.
    """

    def __init__(
        self,
        *,
        member: str,
        cluster_id: str,
        listen: tuple[str, int],
        dial: dict[str, tuple[str, int]],
        server_tls: ssl.SSLContext,
        client_tls: ssl.SSLContext,
        timing: Timing,
        limits: Limits,
        delay_ms: dict[str, float],
        receiver: Receiver,
        clock_us: Callable[[], int] = wall_us,
    ) -> None:
        self.member = member
        self.receiver = receiver
        self.clock_us = clock_us
        self.peers = {name: Peer(name) for name in dial}
        self.counters: Counter[str] = Counter()
        self.delay_seconds = {name: ms / 1000 for name, ms in delay_ms.items() if ms > 0}
        self._cluster_id = cluster_id
        self._listen = listen
        self._dial = dial
        self._server_tls = server_tls
        self._client_tls = client_tls
        self._timing = timing
        self._limits = limits
        self._incarnation = random.SystemRandom().getrandbits(63)
        self._open: set[Connection] = set()
        self._strangers: set[socket.socket] = set()  # accepted, not yet through the handshake
        self._tasks: set[asyncio.Task[None]] = set()
        self._socket: socket.socket | None = None
        self._stopping = False

    async def start(self) -> None:
        family = socket.AF_INET6 if ":" in self._listen[0] else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        try:
            listener.bind(self._listen)
            listener.listen(128)
        except OSError as error:
            listener.close()
            host, port = self._listen
            raise OSError(error.errno, f"{error.strerror}: members are to be heard at {host}:{port}") from error
        self._socket = listener
        self._listen_again()
        self._spawn(self._watch())
        for name in self.peers:
            if self.member > name:
                self._spawn(self._keep_dialed(name))

    async def stop(self) -> None:
        self._stopping = True
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for accepted in self._strangers:
            accepted.close()
        for connection in list(self._open):
            connection.abort()
        if self._socket is not None:
            self._socket.close()
        # Aborted transports, and handshakes that were cut short, close their sockets in the loop's next rounds.
        await asyncio.sleep(STOP_SECONDS)

    def send(self, member: str, message: Message) -> bool:
        """False: no link, or so much is waiting that the link is given up; not sent."""
        connection = self.peers[member].connection
        if connection is None:
            return False
        if connection.buffered_bytes > self._limits.write_buffer_bytes_max:
            connection.refuse("overfull", f"{connection.buffered_bytes} bytes wait to be sent")
            self.closed(connection)
            return False
        connection.write(message)
        return True

    def send_application(self, member: str, kind: str, body: bytes) -> bool:
        """As send, but gives way much earlier: consensus shares the link."""
        peer = self.peers.get(member)
        if peer is None or peer.connection is None:
            return False
        if peer.connection.buffered_bytes > self._limits.application_buffer_bytes_max:
            self.counters["application_held_back"] += 1
            return False
        peer.connection.write(Application(kind, body))
        return True

    def buffered_bytes(self, member: str) -> int:
        connection = self.peers[member].connection
        return connection.buffered_bytes if connection is not None else 0

    def heard_ms_ago(self, member: str) -> int:
        heard_at = self.peers[member].heard_at
        return round((time.monotonic() - heard_at) * 1000) if heard_at else -1

    # -- connections -----------------------------------------------------------------------------

    def hello(self) -> Hello:
        return Hello(PROTOCOL_VERSION, self._cluster_id, self.member, self._incarnation)

    def opened(self, connection: Connection) -> None:
        self._open.add(connection)

    def greeted(self, connection: Connection, hello: Hello) -> bool:
        if hello.protocol != PROTOCOL_VERSION:
            connection.refuse("refused_protocol", f"it speaks version {hello.protocol}, this is {PROTOCOL_VERSION}")
            return False
        if hello.cluster_id != self._cluster_id:
            connection.refuse("refused_cluster", f"its cluster is {hello.cluster_id!r}, ours {self._cluster_id!r}")
            return False
        if hello.member != connection.named:
            connection.refuse("refused_name", f"it says {hello.member!r}, its certificate {connection.named!r}")
            return False
        peer = self.peers[hello.member]
        older, peer.connection = peer.connection, connection
        connection.peer = peer
        if older is not None:
            self.counters["superseded"] += 1
            self.receiver.link_down(peer.name)
            older.abort()
        if peer.incarnation not in (0, hello.incarnation):
            log.info("%s was restarted", peer.name)
        peer.incarnation = hello.incarnation
        peer.heard_at = time.monotonic()
        self.receiver.link_up(peer.name)
        connection.write(Ping(steady_us()))
        connection.settled.set()
        return True

    def closed(self, connection: Connection) -> None:
        self._open.discard(connection)
        peer = connection.peer
        if peer is not None and peer.connection is connection:
            peer.connection = None
            if not self._stopping:
                self.receiver.link_down(peer.name)

    def _listen_again(self) -> None:
        # Not sock_accept: cancelled at the wrong moment, it loses the socket that it has just accepted.
        if not self._stopping and self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket, self._accept, self._socket)

    def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            accepted, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Out of descriptors, say. The listener stays.
            self.counters["accept_failed"] += 1
            log.warning("accept failed: %s", error)
            loop.remove_reader(listener)
            loop.call_later(ACCEPT_PAUSE_SECONDS, self._listen_again)
            return
        if len(self._strangers) >= self._limits.strangers_max:
            self.counters["refused_crowd"] += 1
            accepted.close()
            return
        accepted.setblocking(False)
        self._strangers.add(accepted)
        self._spawn(self._welcome(accepted))

    async def _welcome(self, accepted: socket.socket) -> None:
        try:
            _no_delay(accepted)
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: Connection(self, None), accepted, ssl=self._server_tls
                )
        except Exception as error:
            # Whatever a stranger does to the handshake, it is a refusal and nothing more.
            self.counters["refused_handshake"] += 1
            log.warning("handshake refused: %s", str(error) or type(error).__name__)
            accepted.close()
        except BaseException:
            accepted.close()
            raise
        finally:
            self._strangers.discard(accepted)

    async def _keep_dialed(self, name: str) -> None:
        timing = self._timing
        pause_ms = float(timing.redial_ms_min)
        while True:
            peer = self.peers[name]
            if peer.connection is not None:
                pause_ms = float(timing.redial_ms_min)
            elif not await self._dial_once(name):
                pause_ms = min(pause_ms * 2, timing.redial_ms_max)
            await asyncio.sleep(random.uniform(0.5, 1.0) * pause_ms / 1000)

    async def _dial_once(self, name: str) -> bool:
        """Dial and wait for the other's hello, or for the end. False: nobody was reached."""
        host, port = self._dial[name]
        try:
            async with asyncio.timeout(min(HANDSHAKE_SECONDS, self._timing.link_silent_ms_max / 1000)):
                transport, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(self, name), host, port, ssl=self._client_tls, server_hostname=name
                )
        except (OSError, TimeoutError) as error:
            if isinstance(error, ssl.SSLError):
                self.counters["refused_handshake"] += 1
                log.warning("%s at %s:%d refused: %s", name, host, port, error)
            return False
        dialed = transport.get_extra_info("socket")
        if dialed is not None:
            with contextlib.suppress(OSError):
                _no_delay(dialed)
        await connection.settled.wait()
        return connection.peer is not None

    def clock_offset_ms(self, member: str) -> int | None:
        """Its wall clock minus ours, now; None before the first answer."""
        return self.peers[member].clock.offset_ms(wall_us=self.clock_us(), steady_us=steady_us())

    async def _watch(self) -> None:
        """Ping, and give up links that are silent: after a cut, TCP itself would wait for minutes."""
        timing = self._timing
        while True:
            await asyncio.sleep(timing.ping_ms / 1000)
            now = time.monotonic()
            for connection in list(self._open):
                peer = connection.peer
                since = now - (peer.heard_at if peer is not None else connection.opened_at)
                if since > timing.link_silent_ms_max / 1000:
                    connection.refuse("silent", f"silent for {since * 1000:.0f} ms")
                elif peer is not None:
                    connection.write(Ping(steady_us()))

    def _spawn(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Dialing or pinging that ended would leave this member alone without a word.
            self.receiver.links_failed(error)


def _no_delay(connected: socket.socket) -> None:
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
