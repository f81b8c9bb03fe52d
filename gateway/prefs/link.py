"""The link between two gateways: mutual TLS 1.3, frames with a length, dialed anew until it stands; one per pair."""

import asyncio
import contextlib
import logging
import os
import random
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable
from typing import cast

from gateway.prefs.crdt import Malformed
from gateway.prefs.errors import PrefsError
from gateway.prefs.hlc import wall_ms
from gateway.prefs.merging import merge_documents, seen
from gateway.prefs.store import Change, Store
from gateway.prefs.sync import (
    FRAME_BYTES_MAX,
    Documents,
    Exchange,
    Hello,
    Message,
    Ping,
    Refused,
    decode,
    encode,
)
from gateway.tasks import end

log = logging.getLogger(__name__)

HEADER_BYTES = 4
COMPARE_MS = 2_000
PING_MS = 500
SILENT_MS_MAX = 2_000
DIAL_S = 1.0
REDIAL_MS_MIN = 50
REDIAL_MS_MAX = 200
FAILED_MS = 2_000
"""A pause after the disk refused what the peer sent: the same would come again."""
ACCEPTED_MAX = 16
"""Connections from other sites at a time: one, and those that it is about to replace."""
BUFFER_BYTES = 1 << 20


def certificate_name(site: str) -> str:
    """What a gateway's certificate must name."""
    return f"gateway-{site}"


def steady_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class Link:
    """One connection that stands: reads, merges, answers, until it ends."""

    def __init__(
        self, sites: "Sites", exchange: Exchange, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._sites = sites
        self.exchange = exchange
        self._reader = reader
        self._writer = writer
        self._wake = asyncio.Event()
        self._heard_ms = steady_ms()

    async def run(self, peer: str) -> None:
        """Until the connection ends. Raises Refused, Malformed, PrefsError, OSError, EOFError, TimeoutError."""
        store = self._sites.store
        known = await seen(store, peer)
        self._send(self.exchange.greeting(known.incarnation, known.commits))
        async with asyncio.timeout(SILENT_MS_MAX / 1000):
            hello = await self._next()
        if not isinstance(hello, Hello):
            raise Refused(f"{type(hello).__name__} before hello")
        if hello.seen_incarnation == store.incarnation and hello.seen_commits > store.commits:
            log.warning("%s has seen %d commits of ours, the disk has %d", peer, hello.seen_commits, store.commits)
            await store.renew_incarnation()
        self.exchange.greeted(hello)
        self._sites.linked(peer, self)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read(peer))
                tasks.create_task(self._write())
                tasks.create_task(self._watch())
        except ExceptionGroup as group:
            raise _why(group) from group
        finally:
            self._sites.unlinked(peer, self)

    def changed(self, user: str) -> None:
        self.exchange.changed([user])
        self._wake.set()

    def abort(self) -> None:
        self._writer.transport.abort()

    async def _next(self) -> Message:
        size = int.from_bytes(await self._reader.readexactly(HEADER_BYTES), "big")
        if size > FRAME_BYTES_MAX:
            raise Refused(f"a frame of {size} bytes; at most {FRAME_BYTES_MAX} are taken")
        message = decode(await self._reader.readexactly(size))
        self._heard_ms = steady_ms()
        return message

    def _send(self, message: Message) -> None:
        if self._writer.is_closing():
            return  # reading ends as well, and with it the link
        frame = encode(message)
        self._writer.write(len(frame).to_bytes(HEADER_BYTES, "big") + frame)

    async def _read(self, peer: str) -> None:
        async with asyncio.TaskGroup() as merges:
            while True:
                documents = self.exchange.received(await self._next(), now_ms=steady_ms(), wall_ms=wall_ms())
                if documents is not None:
                    # Beside reading, so that a slow disk does not look like a dead site. The peer's window bounds it.
                    merges.create_task(self._merge(peer, documents))
                self._wake.set()

    async def _merge(self, peer: str, documents: Documents) -> None:
        found = await merge_documents(self._sites.store, peer, documents)
        self._sites.counters["documents_merged"] += len(documents.documents)
        self._sites.counters["held_back"] += found.held_back
        self._sites.counters["refused_documents"] += found.refused
        self.exchange.merged(documents.seq, found.held_back)
        self._wake.set()

    async def _write(self) -> None:
        while True:
            for message in self.exchange.pump(steady_ms()):
                self._send(message)
            await self._writer.drain()
            if self.exchange.busy:
                await asyncio.sleep(0)
                continue
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._sites.compare_ms / 1000):
                    await self._wake.wait()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(PING_MS / 1000)
            silent_ms = steady_ms() - self._heard_ms
            if silent_ms > SILENT_MS_MAX:
                raise Refused(f"silent for {silent_ms} ms")
            self._send(Ping(steady_ms()))


class Sites:
    """This site's links to the others. Of each pair the site whose name sorts later dials.

    listen: where the others dial. peers: where each other site is heard; its identity is its certificate's name,
    gateway-<site>, wherever it was found. server_tls, client_tls: of `cluster.certificates`.
    Raises OSError from `start` when the address is taken.
    """

    def __init__(
        self,
        store: Store,
        *,
        listen: tuple[str, int],
        peers: dict[str, tuple[str, int]],
        server_tls: ssl.SSLContext,
        client_tls: ssl.SSLContext,
        compare_ms: int = COMPARE_MS,
    ) -> None:
        self.store = store
        self.compare_ms = compare_ms
        self.counters: Counter[str] = Counter()
        self._listen = listen
        self._peers = dict(peers)
        self._server_tls = server_tls
        self._client_tls = client_tls
        self._links: dict[str, Link] = {}
        self._on_link: list[Callable[[str, bool], None]] = []
        self._dialing: set[asyncio.Task[None]] = set()
        self._accepted_now: set[asyncio.Task[None]] = set()
        self._open: set[asyncio.StreamWriter] = set()
        self._servers: list[asyncio.Server] = []
        store.on_change(self._changed)

    async def start(self) -> None:
        host, port = self._listen
        self._servers = [
            await asyncio.start_server(
                self._accepted, host, port, ssl=self._server_tls, ssl_handshake_timeout=DIAL_S, limit=BUFFER_BYTES
            )
        ]
        for peer in self._peers:
            if self.store.site > peer:
                self._dialing.add(asyncio.create_task(self._keep_dialed(peer)))

    async def use(self, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
        """Connections from now on are made with these; links that stand are made anew, so none outlives its trust."""
        self._server_tls, self._client_tls = server_tls, client_tls
        before, self._servers = self._servers, []
        for listening in [one for server in before for one in server.sockets]:
            # Trust can't be taken out of a context that is in use: the same socket is listened on with another.
            again = socket.socket(fileno=os.dup(listening.fileno()))
            self._servers.append(
                await asyncio.start_server(
                    self._accepted, sock=again, ssl=server_tls, ssl_handshake_timeout=DIAL_S, limit=BUFFER_BYTES
                )
            )
        for server in before:
            server.close()
        for link in list(self._links.values()):
            self.counters["renewed"] += 1
            link.abort()

    async def stop(self) -> None:
        for server in self._servers:
            server.close()
        await end(*self._dialing)
        # Those that were accepted end with their connections: asyncio's streams do not take it well to be cancelled.
        for writer in list(self._open):
            writer.transport.abort()
        await asyncio.gather(*self._accepted_now, return_exceptions=True)
        # Aborted transports close their sockets in the loop's next rounds.
        await asyncio.sleep(0.02)

    def live_sites(self) -> list[str]:
        """Ours, and those heard within SILENT_MS_MAX."""
        return sorted([self.store.site, *self._links])

    def on_link(self, listener: Callable[[str, bool], None]) -> None:
        """Called with a site's name, and whether its link stands now."""
        self._on_link.append(listener)

    def status(self) -> dict[str, dict[str, object]]:
        """Per peer, for `/healthz` and metrics."""
        found: dict[str, dict[str, object]] = {}
        for peer in self._peers:
            link = self._links.get(peer)
            exchange = link.exchange if link else None
            found[peer] = {
                "linked": link is not None,
                "waiting": exchange.waiting if exchange else None,
                "compared": exchange.compared if exchange else 0,
                "clock_offset_ms": exchange.offset_ms if exchange else None,
                "held_back_there": exchange.held_back_there if exchange else 0,
            }
        return found

    # -- links ---------------------------------------------------------------------------------

    def linked(self, peer: str, link: Link) -> None:
        older = self._links.pop(peer, None)
        self._links[peer] = link
        if older is not None:
            self.counters["superseded"] += 1
            older.abort()
            return
        log.info("the link to %s stands", peer)
        for listener in self._on_link:
            listener(peer, True)

    def unlinked(self, peer: str, link: Link) -> None:
        if self._links.get(peer) is link:
            del self._links[peer]
            for listener in self._on_link:
                listener(peer, False)

    def _changed(self, change: Change) -> None:
        if not change.from_peer:
            for link in self._links.values():
                link.changed(change.user)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = self._named(writer)
        if peer is None or len(self._accepted_now) >= ACCEPTED_MAX:
            self.counters["refused_stranger"] += 1
            # In order: whoever looks which certificates we take is told by that (cluster/rotation.py).
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(DIAL_S):
                    await writer.wait_closed()
            writer.transport.abort()
            return
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._accepted_now.add(task)
        try:
            await self._talk(peer, reader, writer, dials=False)
        finally:
            self._accepted_now.discard(task)

    def _named(self, writer: asyncio.StreamWriter) -> str | None:
        """The site that the other's certificate names, if it is one that may dial."""
        shown = writer.get_extra_info("peercert") or {}
        names = [value for kind, value in shown.get("subjectAltName", ()) if kind == "DNS"]
        for peer in self._peers:
            if names == [certificate_name(peer)] and peer > self.store.site:
                return peer
        log.warning("a link refused: its certificate names %s", names)
        return None

    async def _keep_dialed(self, peer: str) -> None:
        pause_ms = REDIAL_MS_MIN
        while True:
            try:
                host, port = self._peers[peer]
                async with asyncio.timeout(DIAL_S):
                    reader, writer = await asyncio.open_connection(
                        host, port, ssl=self._client_tls, server_hostname=certificate_name(peer), limit=BUFFER_BYTES
                    )
            except (OSError, TimeoutError) as error:
                if isinstance(error, ssl.SSLError):
                    self.counters["refused_handshake"] += 1
                    log.warning("%s at %s:%d refused: %s", peer, *self._peers[peer], error)
                pause_ms = min(2 * pause_ms, REDIAL_MS_MAX)
            else:
                began_ms = steady_ms()
                pauses = await self._talk(peer, reader, writer, dials=True)
                lasted = steady_ms() - began_ms > SILENT_MS_MAX
                pause_ms = REDIAL_MS_MIN if lasted else min(2 * pause_ms, REDIAL_MS_MAX)
                pause_ms = FAILED_MS if pauses else pause_ms
            await asyncio.sleep(random.uniform(0.5, 1.0) * pause_ms / 1000)

    async def _talk(
        self, peer: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, dials: bool
    ) -> bool:
        """Until the link ends. True: not before a pause again; the disk refused what came, or we failed."""
        store = self.store
        exchange = Exchange(
            store, cluster_id=store.cluster_id, site=store.site, peer=peer, dials=dials, compare_ms=self.compare_ms
        )
        self._open.add(writer)
        try:
            await Link(self, exchange, reader, writer).run(peer)
        except (Refused, Malformed) as error:
            self.counters["refused_link"] += 1
            log.warning("the link to %s ends: %s", peer, error)
        except PrefsError as error:
            self.counters["refused_by_disk"] += 1
            log.error("what %s sent was not written: %s", peer, error)
            return True
        except (OSError, EOFError, TimeoutError) as error:
            log.info("the link to %s is gone: %s", peer, str(error) or type(error).__name__)
        except Exception:
            # Our mistake. Without a link the sites would drift apart for good, so it is dialed again all the same.
            self.counters["failed"] += 1
            log.error("the link to %s failed", peer, exc_info=True)
            return True
        finally:
            self._open.discard(writer)
            writer.transport.abort()
        return False


def _why(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first of the errors that end a link, or the group itself where it holds another, which is our mistake."""
    expected, others = group.split((Refused, Malformed, PrefsError, OSError, EOFError))
    if others is not None or expected is None:
        return group
    first: BaseException = expected
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
