"""Delivery by HTTP: users' webhooks, guarded and signed, and the operator's providers of SMS and push."""

import time
from typing import Protocol
from urllib.parse import urlsplit

import aiohttp
import msgspec

from gateway.notify.addresses import Guard, connector_options
from gateway.notify.notice import Later, Never, Notice
from gateway.notify.signing import ID_HEADER, SIGNATURE_HEADER, sign
from gateway.prefs.fields import Channel, Preferences

TIMEOUT_S = 10.0
RETRY_AFTER_S_MAX = 3_600.0
TRY_AGAIN = frozenset({408, 425, 429})


class Sender(Protocol):
    async def send(self, notice: Notice, preferences: Preferences) -> None:
        """Raises Later, Never."""
        ...

    async def close(self) -> None: ...


def body_of(notice: Notice) -> bytes:
    """The notice as JSON; the user's name here is the account's id that the user knows."""
    return msgspec.json.encode(
        {
            "id": notice.notice_id,
            "user": notice.user,
            "kind": notice.kind,
            "at_us": notice.at_us,
            "subject": notice.subject,
            "details": notice.details,
        }
    )


class _Http:
    """One session, made in the loop that uses it."""

    def __init__(self, guard: Guard | None) -> None:
        self._guard = guard
        self._session: aiohttp.ClientSession | None = None

    async def post(self, url: str, body: bytes, headers: dict[str, str], *, private: bool) -> None:
        """private: what went wrong is said without the URL, which is the user's secret."""
        if self._session is None:
            options = connector_options(self._guard) if self._guard else {"force_close": True}
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(**options),
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        try:
            # A redirect could lead where the guard would not let us.
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                _judge(response.status, response.headers.get("Retry-After", ""))
        except (aiohttp.InvalidURL, ValueError) as error:
            raise Never("the URL can't be called") from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            why = type(error).__name__ if private else f"{type(error).__name__}: {error}"
            raise Later(why) from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


def _judge(status: int, retry_after: str) -> None:
    if 200 <= status < 300:
        return
    if status in TRY_AGAIN or status >= 500:
        seconds = (
            float(retry_after) if retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 7 else 0.0
        )
        raise Later(f"HTTP {status}", retry_after_s=min(seconds, RETRY_AFTER_S_MAX))
    raise Never(f"HTTP {status}")


class WebhookSender:
    """Users' own webhooks. plain_http: take http:// too. The address is looked at when it is resolved, each time."""

    def __init__(self, guard: Guard, *, plain_http: bool = False) -> None:
        self._guard = guard
        self._plain_http = plain_http
        self._http = _Http(guard)

    async def send(self, notice: Notice, preferences: Preferences) -> None:
        url, secret = preferences.webhook_url, preferences.webhook_secret
        if url is None or secret is None:
            raise Never("no webhook_url, or no webhook_secret to sign with")
        parts = urlsplit(url)
        if parts.scheme != "https" and not self._plain_http:
            raise Never("only https:// is called")
        self._guard.check_host(parts.hostname or "")
        body = body_of(notice)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "tiebreak",
            ID_HEADER: notice.notice_id,
            SIGNATURE_HEADER: sign(secret, body, int(time.time())),
        }
        await self._http.post(url, body, headers, private=True)

    async def close(self) -> None:
        await self._http.close()


class ProviderSender:
    """SMS or push by the operator's provider: one URL for all users, which gets {id, to, text}, signed with the
    operator's secret. It may be on a private network: the operator has chosen it, not a user."""

    def __init__(self, channel: Channel, url: str, secret: str) -> None:
        self._channel = channel
        self._url = url
        self._secret = secret
        self._http = _Http(None)

    async def send(self, notice: Notice, preferences: Preferences) -> None:
        to = preferences.phone if self._channel is Channel.sms else preferences.push_token
        if to is None:
            raise Never(f"no address for {self._channel.value}")
        body = msgspec.json.encode({"id": notice.notice_id, "to": to, "text": notice.subject})
        headers = {
            "Content-Type": "application/json",
            ID_HEADER: notice.notice_id,
            SIGNATURE_HEADER: sign(self._secret, body, int(time.time())),
        }
        await self._http.post(self._url, body, headers, private=False)

    async def close(self) -> None:
        await self._http.close()
