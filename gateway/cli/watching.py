"""What `tiebreak watch` shows: one stream of a gateway, opened anew at the next one whenever it ends."""

import asyncio
import itertools
import random
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp
import msgspec

CONNECT_S = 3.0
SILENT_S = 12.0
"""A gateway says something every 5 s; one that is silent for so long is left for another."""
PAUSE_S_MIN = 0.1
PAUSE_S_MAX = 5.0
RENEW_S = 120.0
"""Tokens that we make ourselves are good for 300 s."""
MESSAGE_BYTES_MAX = 16 << 20
CLOSE_UNAUTHENTICATED = 4401


class WatchRefused(Exception):
    """No gateway would give us this stream: the token, or every symbol. error: the word."""

    def __init__(self, error: str, message: str) -> None:
        super().__init__(message)
        self.error = error


class NoGateway(Exception):
    """All were tried, and none could be reached."""


class _Ended(Exception):
    """The stream ended; wait_s: when we may come back."""

    def __init__(self, why: str, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.wait_s = wait_s


class Shown:
    """One symbol: what the stream said of it last, and when by our clock."""

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        self.quote: dict[str, Any] = {}
        self.last: dict[str, Any] = {}
        self.changed_s = 0.0

    def changed_ms(self) -> int:
        """Since anything of it changed; -1: nothing came yet."""
        return int((time.monotonic() - self.changed_s) * 1000) if self.changed_s else -1


class Watching:
    """Follows symbols for ever. on_update: called behind every update of a symbol; on_talk: with news for people.

    token: makes a bearer token; renewed: whether it makes another one each time.
    """

    def __init__(
        self,
        urls: Sequence[str],
        symbols: Sequence[str],
        *,
        token: Callable[[], str],
        renewed: bool,
        tls: Callable[[str], ssl.SSLContext | None],
        rate: str = "live",
        on_update: Callable[[Shown, int], None] = lambda _shown, _at_us: None,
        on_talk: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.rows = {symbol: Shown(symbol) for symbol in symbols}
        self.gateway = ""
        """Whom we are connected to; empty while we are not."""
        self.source = ""
        self.shed: list[str] = []
        self._urls = list(urls)
        self._token = token
        self._renewed = renewed
        self._tls = tls
        self._rate = rate
        self._on_update = on_update
        self._on_talk = on_talk
        self._is_there = False
        """Some gateway answered, if only that it has no room."""
        self._heard_s = 0.0
        self._source_age_ms = 0
        self._unknown: dict[str, str] = {}

    def age_ms(self) -> int:
        """How old what is shown may be: since the stream said something, and what its source was behind then."""
        if not self._heard_s:
            return -1
        return int((time.monotonic() - self._heard_s) * 1000) + max(0, self._source_age_ms)

    async def run(self) -> None:
        """Until cancelled. Raises WatchRefused, and NoGateway when none was ever reached."""
        tried, pause_s = 0, PAUSE_S_MIN
        async with aiohttp.ClientSession() as session:
            for url in itertools.cycle(self._urls):
                before_s = self._heard_s
                try:
                    await self._follow(session, url)
                except (_Ended, aiohttp.ClientError, OSError, TimeoutError, msgspec.MsgspecError) as error:
                    why = str(error) or type(error).__name__
                    wait_s = error.wait_s if isinstance(error, _Ended) else 0.0
                finally:
                    self.gateway, self.source = "", ""
                heard = self._heard_s != before_s
                tried += 1
                if not self._is_there and tried >= len(self._urls):
                    raise NoGateway(f"{url}: {why}")
                self._on_talk(f"{url} is lost: {why}" if heard else f"{url}: {why}")
                pause_s = PAUSE_S_MIN if heard else min(PAUSE_S_MAX, pause_s * 2)
                # With another gateway to ask, nobody needs to wait for this one.
                longest_s = wait_s if len(self._urls) == 1 else 0.0
                await asyncio.sleep(max(longest_s, random.uniform(0.5, 1.0) * pause_s))

    async def _follow(self, session: aiohttp.ClientSession, url: str) -> None:
        tls = self._tls(url)
        try:
            async with asyncio.timeout(CONNECT_S):
                socket = await session.ws_connect(
                    f"{url}/v1/stream",
                    headers={"Authorization": f"Bearer {self._token()}"},
                    ssl=tls if tls is not None else True,
                    max_msg_size=MESSAGE_BYTES_MAX,
                )
        except aiohttp.WSServerHandshakeError as error:
            wait_s = float(error.headers.get("X-Retry-After-Ms", "0")) / 1000 if error.headers is not None else 0.0
            if error.status in (401, 403):
                raise WatchRefused("unauthenticated", "the gateway does not take this token") from error
            self._is_there = True
            raise _Ended(f"HTTP {error.status}: it takes no streams now", wait_s) from error
        try:
            for channel in ("nbbo", "trades"):
                asked = {"action": "subscribe", "channel": channel, "symbols": list(self.rows), "id": 1}
                await socket.send_json(asked | ({"rate": self._rate} if channel == "nbbo" else {}))
            self.gateway, self._is_there = url, True
            renewed_s = time.monotonic()
            while True:
                received = await socket.receive(timeout=SILENT_S)
                if received.type is not aiohttp.WSMsgType.TEXT:
                    if socket.close_code == CLOSE_UNAUTHENTICATED and not self._renewed:
                        raise WatchRefused("unauthenticated", "the token has expired")
                    raise _Ended(f"closed with {socket.close_code} {received.extra or ''}".strip())
                self._heard_s = time.monotonic()
                self._take(msgspec.json.decode(received.data))
                if self._renewed and time.monotonic() - renewed_s > RENEW_S:
                    renewed_s = time.monotonic()
                    await socket.send_json({"action": "authenticate", "token": self._token()})
        finally:
            await socket.close()

    def _take(self, message: dict[str, Any]) -> None:
        kind = message.get("stream")
        if kind == "data":
            self._source_age_ms = 0
            for update in message["updates"]:
                self._update(update, message["at_us"])
        elif kind == "heartbeat":
            self._source_age_ms = message["age_ms"]
        elif kind == "status":
            self.source, self.shed, self._source_age_ms = message["source"], message["shed"], message["age_ms"]
        elif kind == "subscribed":
            self._subscribed(message)
        elif kind == "closing":
            raise _Ended(f"the gateway leaves ({message['reason']})", message["retry_after_ms"] / 1000)
        elif kind == "error":
            raise WatchRefused(message["error"], message["message"])

    def _subscribed(self, message: dict[str, Any]) -> None:
        if message["channel"] != "nbbo":
            return
        refused = {one["symbol"]: one["message"] for one in message.get("refused", ())}
        for symbol, why in refused.items():
            if symbol not in self._unknown:
                self._on_talk(why)
        self._unknown = refused
        if len(refused) == len(self.rows):
            raise WatchRefused("symbol_not_found", "; ".join(refused.values()))

    def _update(self, update: dict[str, Any], at_us: int) -> None:
        shown = self.rows.get(update["symbol"])
        if shown is None:
            return
        if update["channel"] == "nbbo":
            shown.quote = update
        else:
            shown.last = update["trades"][-1]
        shown.changed_s = time.monotonic()
        self._on_update(shown, at_us)
