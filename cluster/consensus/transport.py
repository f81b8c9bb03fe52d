"""Links between members: one mutual TLS 1.3 stream per pair, typed frames, the certificate says who it is."""

import asyncio
import contextlib
import logging
import random
import ssl
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

from cluster.certificates import MemberContext
from cluster.consensus.connection import Connection
from cluster.consensus.identity import Identity
from cluster.consensus.listener import HANDSHAKE_SECONDS, Listener, no_delay
from cluster.consensus.messages import PROTOCOL_VERSION, Application, Hello, Message, Ping
from cluster.consensus.peers import Peer, steady_us
from cluster.consensus.rates import Handshakes
from cluster.consensus.refusals import of_handshake
from cluster.consensus.settings import Limits
from cluster.topology import GATEWAY_PREFIX, Timing

log = logging.getLogger(__name__)

STOP_SECONDS = 0.02
SEEK_SECONDS = 5.0
"""How often who was away when it was removed is dialed, to be told so."""
LOOK_SECONDS = 2.0
"""How often the certificate files are looked at, and how far apart links are made anew with new ones."""


class Receiver(Protocol):
    def link_up(self, member: str) -> None: ...

    def link_down(self, member: str) -> None: ...

    def received(self, member: str, message: Message) -> None: ...

    def links_failed(self, error: BaseException) -> None:
        """A task that keeps the links ended with an error: we were wrong."""
        ...


@runtime_checkable
class KnowsStrangers(Protocol):
    """A receiver that has something to say to those who are not among its peers."""

    def stranger(self, member: str) -> Message | None:
        """What to tell this one before its connection is closed. Its certificate and cluster id are good."""
        ...


def wall_us() -> int:
    return time.time_ns() // 1000


class Links:
    """All links of one member. Of each pair, the member whose name sorts later dials.

    dial: the first peers and where each is dialed; `set_peers` changes both. Counts what it refuses in `counters`,
    under the words of REFUSALS. Raises OSError from `start` when the address is taken.
    """

    def __init__(
        self,
        *,
        member: str,
        cluster_id: str,
        listen: tuple[str, int],
        dial: Mapping[str, tuple[str, int]],
        server_tls: MemberContext,
        client_tls: MemberContext,
        timing: Timing,
        limits: Limits,
        delay_ms: dict[str, float],
        receiver: Receiver,
        clock_us: Callable[[], int] = wall_us,
    ) -> None:
        self.member = member
        self.receiver = receiver
        self.clock_us = clock_us
        self.peers = {name: Peer(name, address) for name, address in dial.items() if name != member}
        self.counters: Counter[str] = Counter()
        self.delay_seconds = {name: ms / 1000 for name, ms in delay_ms.items() if ms > 0}
        self._cluster_id = cluster_id
        self._identity = Identity(member, server_tls, client_tls, self.counters)
        self._renewed: Peer | None = None
        self._timing = timing
        self.limits = limits
        self._incarnation = random.SystemRandom().getrandbits(63)
        self._open: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._dialing: dict[str, asyncio.Task[None]] = {}
        self._sought: dict[str, asyncio.Task[None]] = {}
        self._listener = Listener(
            listen,
            welcome=lambda: (self._identity.server, Connection(self, None, self._identity.generation)),
            room=self._room_for_strangers,
            rate=Handshakes(limits.handshakes_per_s),
            counters=self.counters,
        )
        self._started = False
        self._stopping = False

    async def start(self) -> None:
        self._listener.start()
        self._started = True
        self._spawn(self._watch())
        self._spawn(self._keep_certificates())
        for name in self.peers:
            self._keep_dialed(name)

    async def stop(self) -> None:
        self._stopping = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await self._listener.stop()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in list(self._open):
            connection.abort()
        # Aborted transports, and handshakes that were cut short, close their sockets in the loop's next rounds.
        await asyncio.sleep(STOP_SECONDS)

    # -- peers -----------------------------------------------------------------------------------

    def set_peers(self, addresses: Mapping[str, tuple[str, int]]) -> None:
        """Whom this member has links with from now on, and where each is dialed. Before or after `start`.

        A link to one who is no longer named is closed when what was sent on it has left. `link_down` is called before
        this returns, and what still comes from there is not delivered. A later hello of that name is refused and
        counted as `refused_stranger`. The new ones are dialed at once, or waited for. All other links stay as they
        are: a changed address is for the next dial. This member's own name is passed over.

        Proxies are no matter of ours: whoever has a map of them puts it over the members' own addresses before.
        """
        for name in [name for name in self.peers if name not in addresses]:
            self._part_with(name)
        for name, address in addresses.items():
            if name == self.member:
                continue
            if name in self.peers:
                self.peers[name].address = address
                continue
            log.info("%s is a peer now, at %s:%d", name, *address)
            if name in self._sought:
                self._sought.pop(name).cancel()
            self.peers[name] = Peer(name, address)
            if self._started and not self._stopping:
                self._keep_dialed(name)

    def _part_with(self, name: str) -> None:
        peer = self.peers.pop(name)
        log.info("%s is no peer any more", name)
        if name in self._dialing:
            self._dialing.pop(name).cancel()
            if peer.connection is None and isinstance(self.receiver, KnowsStrangers):
                self._sought[name] = self._spawn(self._seek(peer))
        self._let_go(peer)
        for other in list(self._open):
            # What was dialed and has not been greeted belongs to nobody any more.
            if other.dialed == name and other.peer is None:
                other.abort()

    def _let_go(self, peer: Peer) -> None:
        """Close its link after what was sent has left."""
        connection, peer.connection = peer.connection, None
        if connection is not None:
            connection.close()
            self.receiver.link_down(peer.name)

    # -- sending ---------------------------------------------------------------------------------

    def send(self, member: str, message: Message) -> bool:
        """False: no such peer, no link, or so much is waiting that the link is given up; not sent."""
        connection = self._connection(member)
        if connection is None:
            return False
        if connection.buffered_bytes > self.limits.write_buffer_bytes_max:
            connection.refuse("overfull", f"{connection.buffered_bytes} bytes wait to be sent")
            self.closed(connection)
            return False
        connection.write(message)
        return True

    def send_application(self, member: str, kind: str, body: bytes) -> bool:
        """As send, but gives way much earlier: consensus shares the link."""
        connection = self._connection(member)
        if connection is None:
            return False
        if connection.buffered_bytes > self.limits.application_buffer_bytes_max:
            self.counters["application_held_back"] += 1
            return False
        connection.write(Application(kind, body))
        return True

    def buffered_bytes(self, member: str) -> int:
        connection = self._connection(member)
        return connection.buffered_bytes if connection is not None else 0

    def _connection(self, member: str) -> Connection | None:
        peer = self.peers.get(member)
        return peer.connection if peer is not None else None

    def heard_ms_ago(self, member: str) -> int:
        """-1: never, or no such peer."""
        peer = self.peers.get(member)
        return round((time.monotonic() - peer.heard_at) * 1000) if peer is not None and peer.heard_at else -1

    def clock_offset_ms(self, member: str) -> int | None:
        """Its wall clock minus ours, now; None before the first answer, or when there is no such peer."""
        peer = self.peers.get(member)
        return peer.clock.offset_ms(wall_us=self.clock_us(), steady_us=steady_us()) if peer is not None else None

    # -- what connections call -------------------------------------------------------------------

    def hello(self) -> Hello:
        return Hello(PROTOCOL_VERSION, self._cluster_id, self.member, self._incarnation)

    def opened(self, connection: Connection) -> bool:
        name = connection.named or ""
        if name == self.member:
            connection.refuse("refused_name", f"its certificate names {name!r}")
            return False
        if name.startswith(GATEWAY_PREFIX):
            # Closed and not cut: so whoever rotates certificates can see that this one is trusted here.
            log.info("closed: %s came with a good certificate, but is no member", name)
            self.counters["refused_name"] += 1
            self._open.add(connection)
            connection.close()
            return False
        if self._stopping or (connection.dialed is not None and name not in self.peers and name not in self._sought):
            # Whom we dialed is no peer any more.
            connection.abort()
            return False
        self._open.add(connection)
        return True

    def greeted(self, connection: Connection, hello: Hello) -> None:
        if hello.protocol != PROTOCOL_VERSION:
            connection.refuse("refused_protocol", f"it speaks version {hello.protocol}, this is {PROTOCOL_VERSION}")
            return
        if hello.cluster_id != self._cluster_id:
            connection.refuse("refused_cluster", f"its cluster is {hello.cluster_id!r}, ours {self._cluster_id!r}")
            return
        if hello.member != connection.named:
            connection.refuse("refused_name", f"it says {hello.member!r}, its certificate {connection.named!r}")
            return
        peer = self.peers.get(hello.member)
        if peer is None:
            self._turn_away(connection, hello.member)
            return
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
        if connection.dialed is None:
            connection.write(self.hello())
        self.receiver.link_up(peer.name)
        connection.write(Ping(steady_us()))
        connection.settled.set()

    def _turn_away(self, connection: Connection, name: str) -> None:
        """Say why, if there is something to say, and close. Its certificate is good, so it was a member, or will be."""
        answer = self.receiver.stranger(name) if isinstance(self.receiver, KnowsStrangers) else None
        if connection.dialed is None:
            self.counters["refused_stranger"] += 1
            log.warning("link to %s refused: it is no peer of ours (refused_stranger)", name)
        if answer is None:
            connection.abort()
            return
        self.counters["strangers_told"] += 1
        if connection.dialed is None:
            connection.write(self.hello())
        connection.write(answer)
        connection.close()
        if name in self._sought:
            self._sought.pop(name).cancel()

    def received(self, member: str, message: Message) -> None:
        self.receiver.received(member, message)

    def closed(self, connection: Connection) -> None:
        self._open.discard(connection)
        peer = connection.peer
        if peer is not None and peer.connection is connection:
            peer.connection = None
            if not self._stopping:
                self.receiver.link_down(peer.name)

    # -- what goes on by itself ------------------------------------------------------------------

    def _room_for_strangers(self) -> int:
        """In handshakes; who has shown a certificate and not been greeted, or is being turned away, takes room too."""
        waiting = sum(connection.peer is None and connection.dialed is None for connection in self._open)
        return self.limits.strangers_max - waiting

    def _keep_dialed(self, name: str) -> None:
        if self.member > name:
            self._dialing[name] = self._spawn(self._dial_always(self.peers[name]))

    async def _dial_always(self, peer: Peer) -> None:
        timing = self._timing
        pause_ms = float(timing.redial_ms_min)
        while True:
            if peer.connection is not None:
                pause_ms = float(timing.redial_ms_min)
            else:
                # Also when it was greeted: who is told that it is no peer would else be back at once, for ever.
                await self._dial_once(peer)
                pause_ms = min(pause_ms * 2, timing.redial_ms_max)
            await asyncio.sleep(random.uniform(0.5, 1.0) * pause_ms / 1000)

    async def _seek(self, peer: Peer) -> None:
        """Who was away when it was removed, and dials nobody because of its name, is dialed until it has been told."""
        while True:
            await asyncio.sleep(SEEK_SECONDS * random.uniform(0.5, 1.0))
            await self._dial_once(peer)

    async def _dial_once(self, peer: Peer) -> None:
        """Dial and wait for the other's hello, or for the end."""
        name, (host, port) = peer.name, peer.address
        identity, generation = self._identity, self._identity.generation
        try:
            async with asyncio.timeout(min(HANDSHAKE_SECONDS, self._timing.link_silent_ms_max / 1000)):
                transport, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(self, name, generation), host, port, ssl=identity.client, server_hostname=name
                )
        except (OSError, TimeoutError) as error:
            if isinstance(error, ssl.SSLError):
                counter = of_handshake(error)
                self.counters[counter] += 1
                log.warning("%s at %s:%d refused: %s (%s)", name, host, port, error, counter)
            return
        dialed = transport.get_extra_info("socket")
        if dialed is not None:
            with contextlib.suppress(OSError):
                no_delay(dialed)
        await connection.settled.wait()

    async def _watch(self) -> None:
        """Ping, and give up links that are silent: after a cut, TCP itself would wait for minutes."""
        timing = self._timing
        while True:
            await asyncio.sleep(timing.ping_ms / 1000)
            now = time.monotonic()
            for connection in list(self._open):
                peer = connection.peer
                heard_at = connection.opened_at if peer is None or connection.closing else peer.heard_at
                if now - heard_at > timing.link_silent_ms_max / 1000:
                    if connection.closing:
                        connection.abort()
                    else:
                        connection.refuse("silent", f"silent for {(now - heard_at) * 1000:.0f} ms")
                elif peer is not None:
                    connection.write(Ping(steady_us()))

    async def _keep_certificates(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS * random.uniform(0.8, 1.2))
            await self._identity.look()
            await self._renew_a_link()

    async def _renew_a_link(self) -> None:
        """Make one link anew that was made with older certificates, once the one before is back.

        So an old certificate does not live on in a link, and certificates that others refuse cost one link and no more.
        """
        before = self._renewed
        if before is not None and before.connection is None and self.peers.get(before.name) is before:
            self.counters["renewals_waiting"] += 1
            return
        for peer in self.peers.values():
            if peer.connection is None or peer.connection.generation == self._identity.generation:
                continue
            self.counters["link_renewals"] += 1
            self._renewed = peer
            if self.member > peer.name:
                # The old link stays until the new one is greeted.
                await self._dial_once(peer)
            else:
                self._let_go(peer)
            return

    def _spawn(self, work: "asyncio._CoroutineLike[None]") -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Dialing or pinging that ended would leave this member alone without a word.
            self.receiver.links_failed(error)
