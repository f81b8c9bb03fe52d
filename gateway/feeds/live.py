"""A venue's WebSocket, kept up: back-off with jitter, silence noticed, gaps resubscribed, a breaker in charge.

A connection is given up when the venue closes it, when nothing came for `idle_ms` (a socket whose other end
is gone says nothing, and neither does a stalled venue), when a ping is not answered, or when its breaker
opens. What it carried is then down until it is up again: the sink is told at once.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterable

import aiohttp
import structlog
from msgspec import Struct

from gateway.feeds import binance, coinbase, kraken
from gateway.feeds.breaker import Breaker
from gateway.feeds.clock import monotonic_us, now_us
from gateway.feeds.handler import FRAME_BYTES_MAX, Fetch, Handler, Request, Send
from gateway.feeds.ticks import Sink, Status, StatusKind

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.feeds")


Tap = Callable[[bytes, str, int], None]
"""(frame, what was fetched or nothing, receive time in microseconds)"""


class LiveSettings(Struct, frozen=True, kw_only=True):
    """Times in milliseconds."""

    connect_ms: int = 10_000
    idle_ms: int = 15_000
    """The venues that we read send something at least each second, save those whose handler says otherwise."""
    ping_ms: int = 10_000
    back_off_ms_min: int = 500
    back_off_ms_max: int = 30_000
    healthy_ms: int = 10_000
    """A connection that lasted as long as this begins the back-off anew."""
    fetch_ms: int = 10_000
    fetch_every_ms: int = 600
    """Between two fetches of a feed. Binance bans those who take more than 120 snapshots a minute."""
    fetch_patience_ms: int = 60_000
    """The longest wait after fetches that failed."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} {getattr(self, name)}: must be above 0")
        if self.back_off_ms_min > self.back_off_ms_max:
            raise ValueError(f"back_off_ms_min {self.back_off_ms_min} is above back_off_ms_max {self.back_off_ms_max}")


class LiveCounts(Struct):
    """For metrics."""

    connects: int = 0
    failures: int = 0
    idle: int = 0
    fetches: int = 0
    fetch_failures: int = 0
    last_frame_us: int = 0
    is_up: bool = False


class LiveFeed:
    """One connection to one venue, for as long as `run` runs."""

    def __init__(
        self,
        handler: Handler,
        url: str,
        sink: Sink,
        *,
        settings: LiveSettings | None = None,
        breaker: Breaker | None = None,
        clock: Callable[[], int] = now_us,
        chance: random.Random | None = None,
        tap: Tap | None = None,
    ) -> None:
        """tap: is given each frame as it came, before anything else looks at it."""
        self.handler = handler
        self.url = url
        self.sink = sink
        self.settings = settings or LiveSettings()
        self.breaker = breaker or Breaker()
        self.clock = clock
        self.counts = LiveCounts()
        self.tap = tap
        self._chance = chance or random.Random()
        self._attempt = 0
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._fetch_at = 0.0
        self._fetch_failures = 0
        self._fetch_turn = asyncio.Lock()

    async def run(self) -> None:
        """Connect and stay connected, until cancelled. Nothing that a venue does ends it."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self.settings.connect_ms / 1000)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                if not self.breaker.allows(monotonic_us()):
                    await asyncio.sleep(max(self.breaker.retry_us - monotonic_us(), 1_000) / 1e6)
                    continue
                began = time.monotonic()
                try:
                    await self._connection(session)
                    reason = "closed by the venue"
                except (aiohttp.ClientError, OSError, TimeoutError, ConnectionError) as error:
                    reason = f"{type(error).__name__}: {error}"
                finally:
                    self._down()
                self.counts.failures += 1
                self.breaker.failed(monotonic_us(), "connection")
                if (time.monotonic() - began) * 1000 >= self.settings.healthy_ms:
                    self._attempt = 0
                wait_ms = self.back_off_ms()
                log.info("feed down", venue=self.handler.venue, reason=reason[:200], wait_ms=round(wait_ms))
                await asyncio.sleep(wait_ms / 1000)

    def back_off_ms(self) -> float:
        """The next wait: doubling, and anywhere in its upper half, so that gateways don't return in step."""
        settings = self.settings
        most = min(settings.back_off_ms_min << self._attempt, settings.back_off_ms_max)
        self._attempt = min(self._attempt + 1, 20)
        return most * self._chance.uniform(0.5, 1.0)

    async def _connection(self, session: aiohttp.ClientSession) -> None:
        settings = self.settings
        idle_s = max(settings.idle_ms, self.handler.idle_ms) / 1000
        async with asyncio.timeout(settings.connect_ms / 1000):
            socket = await session.ws_connect(
                self.url,
                heartbeat=settings.ping_ms / 1000,
                max_msg_size=FRAME_BYTES_MAX,
                compress=0,
                timeout=aiohttp.ClientWSTimeout(ws_close=1.0),
            )
        try:
            self.counts.connects += 1
            await self._request(session, socket, self.handler.opening())
            while self.breaker.allows(monotonic_us()):
                try:
                    message = await socket.receive(timeout=idle_s)
                except TimeoutError:
                    self.counts.idle += 1
                    raise
                if message.type is aiohttp.WSMsgType.TEXT:
                    self._take(message.data.encode(), "")
                elif message.type is aiohttp.WSMsgType.BINARY:
                    self._take(message.data, "")
                else:
                    if message.type is aiohttp.WSMsgType.ERROR:
                        raise aiohttp.ClientError(f"{message.data}")
                    return  # closing: by the venue, or because a ping was not answered
                await self._request(session, socket, self.handler.wants())
        finally:
            for task in self._fetching.values():
                task.cancel()
            self._fetching.clear()
            await socket.close()

    def _take(self, frame: bytes, key: str) -> None:
        """One frame through the handler, judged by what its counts say."""
        counts, at_us, tried_us = self.handler.counts, self.clock(), monotonic_us()
        if self.tap is not None:
            self.tap(frame, key, at_us)
        bad, gaps = sum(counts.bad.values()), counts.gaps
        ticks = self.handler.fetched(key, frame, at_us) if key else self.handler.feed(frame, at_us)
        if sum(counts.bad.values()) > bad:
            self.breaker.failed(tried_us, "bad_frame")
        elif counts.gaps > gaps:
            self.breaker.failed(tried_us, "gap")
        else:
            self.counts.last_frame_us = at_us
            self.breaker.worked(tried_us)
            if not self.counts.is_up:
                self.counts.is_up = True
                ticks = [Status(self.handler.venue, StatusKind.UP, at_us), *ticks]
        if ticks:
            self.sink(ticks)

    def _down(self) -> None:
        if self.counts.is_up:
            self.counts.is_up = False
            self.sink([Status(self.handler.venue, StatusKind.DOWN, self.clock())])

    async def _request(
        self, session: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse, requests: Iterable[Request]
    ) -> None:
        for request in requests:
            if isinstance(request, Send):
                async with asyncio.timeout(self.settings.connect_ms / 1000):
                    await socket.send_str(request.text)
            elif request.key not in self._fetching:
                task = asyncio.create_task(self._fetch(session, socket, request))
                self._fetching[request.key] = task

    async def _fetch(
        self, session: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse, request: Fetch
    ) -> None:
        """Get a body, with patience, and hand it to the handler. Ends with the connection."""
        body = None
        while body is None:
            # One at a time, and further apart while they fail.
            async with self._fetch_turn:
                await asyncio.sleep(self._fetch_at - time.monotonic())
                body = await self._get(session, request.url)
        # From here the key may be asked for again.
        self._fetching.pop(request.key, None)
        self._take(body, request.key)
        try:
            await self._request(session, socket, self.handler.wants())
        except (aiohttp.ClientError, OSError, TimeoutError):
            await socket.close()  # the reader then ends this connection

    async def _get(self, session: aiohttp.ClientSession, url: str) -> bytes | None:
        """A body, or None; either way it is then known when the next may be fetched."""
        settings, told_ms = self.settings, 0
        self.counts.fetches += 1
        try:
            async with asyncio.timeout(settings.fetch_ms / 1000), session.get(url) as response:
                response.raise_for_status()
                body = await response.content.read(FRAME_BYTES_MAX + 1)
                while len(body) <= FRAME_BYTES_MAX and (more := await response.content.read(FRAME_BYTES_MAX)):
                    body += more
            self._fetch_failures = 0
            return body
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self.counts.fetch_failures += 1
            self._fetch_failures += 1
            if isinstance(error, aiohttp.ClientResponseError) and error.headers is not None:
                after = error.headers.get("Retry-After", "")
                told_ms = min(int(after), 3_600) * 1000 if after.isascii() and after.isdigit() and len(after) < 9 else 0
            log.info("fetch failed", venue=self.handler.venue, error=f"{type(error).__name__}: {error}"[:200])
            return None
        finally:
            apart_ms = min(settings.fetch_every_ms << min(self._fetch_failures, 16), settings.fetch_patience_ms)
            self._fetch_at = time.monotonic() + max(apart_ms, told_ms) / 1000


LIVE: dict[str, tuple[Callable[[Iterable[tuple[str, str]]], Handler], str]] = {
    "binance": (binance.Binance, binance.WEBSOCKET_URL),
    "coinbase": (coinbase.Coinbase, coinbase.WEBSOCKET_URL),
    "kraken": (kraken.Kraken, kraken.WEBSOCKET_URL),
}
"""The venues that can be followed live, by name: their handler and address."""
