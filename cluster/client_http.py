"""One HTTP call to a cluster: tried again with the same bytes, on whichever member answers, until its deadline."""

import asyncio
import random
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import msgspec

from cluster.client_answers import (
    ChangeUnknown,
    Outcome,
    ReadRefused,
    Unavailable,
    Verdict,
    given_up,
    judge,
    outcome,
)
from cluster.client_members import Member, Members, describe
from cluster.wire import Answer, ErrorBody

TRY_TIMEOUT_MS = 2_500
"""Longest wait for one member before the next is asked: longer than an election and than a node waits for a read."""
NODE_TIMEOUT_MS_MIN = 10
BACKOFF_MS_MIN = 10
BACKOFF_MS_MAX = 500


class Backoff:
    """Pauses that double up to a bound, each drawn from [half, whole] so that clients don't come back in step."""

    def __init__(self) -> None:
        self._next_ms = float(BACKOFF_MS_MIN)

    async def wait(self, *, deadline: float, at_least_ms: float = 0.0) -> bool:
        """Sleep for the next pause. False, at once: the deadline would come first."""
        pause_ms = max(self._next_ms * random.uniform(0.5, 1.0), at_least_ms)
        self._next_ms = min(self._next_ms * 2, BACKOFF_MS_MAX)
        if time.monotonic() + pause_ms / 1000 >= deadline:
            return False
        await asyncio.sleep(pause_ms / 1000)
        return True


class Said(msgspec.Struct):
    """One answer of one member, whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    error: ErrorBody | None
    """None with a status from 400 on: not a node of ours spoke (a proxy, a witness), so it settles nothing."""

    @property
    def index(self) -> int:
        """The log index that it reflects, or 0."""
        return _index(self.headers)

    @property
    def retry_after_ms(self) -> float:
        try:
            return float(self.headers.get("Retry-After", "0")) * 1000
        except ValueError:
            return 0.0


class _Loose(msgspec.Struct):
    """What answers to commands share, whether the node says them as Answer or as a view."""

    key: str | None = None
    index: int | None = None
    replay: bool | None = None
    id: str | None = None
    status: str | None = None
    reason: str | None = None
    filled_qty: str | None = None
    leaves_qty: str | None = None
    filled_avg_price: str | None = None
    fee: str | None = None
    at: str | None = None
    replaces: str | None = None
    kept_priority: bool | None = None
    count: int | None = None
    remaining: int | None = None
    account: str | None = None


_decode_loose = msgspec.json.Decoder(_Loose).decode
_decode_error = msgspec.json.Decoder(ErrorBody).decode


class Caller:
    """Calls of one client over HTTP. Keeps the connections, the principal's token and the session token."""

    def __init__(self, members: Members, *, token: str | Callable[[], str], tls: ssl.SSLContext | None) -> None:
        self.members = members
        self.tls = tls
        self._token = token
        self.session_token = ""
        self._session_index = -1
        self._session: aiohttp.ClientSession | None = None

    @property
    def auth(self) -> dict[str, str]:
        """The header that says who asks."""
        token = self._token if isinstance(self._token, str) else self._token()
        return {"Authorization": f"Bearer {token}"} if token else {}

    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=256, ssl=self.tls if self.tls is not None else True)
            self._session = aiohttp.ClientSession(connector=connector)
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def saw(self, index: int, session_token: str) -> None:
        """Remember the newest place in the log that an answer came from."""
        if session_token and index >= self._session_index:
            self.session_token, self._session_index = session_token, index

    def forget_session(self) -> None:
        self.session_token, self._session_index = "", -1

    async def command(
        self, method: str, path: str, *, key: str, body: bytes, params: Mapping[str, str], deadline: float
    ) -> Outcome:
        """Send a command until its outcome is known or the deadline (time.monotonic()) comes. Raises nothing."""
        headers = {**self.auth, "Idempotency-Key": key, "Content-Type": "application/json"}
        unsure = False
        error, message, code = "unreachable", "no member was reached", 0
        backoff = Backoff()
        while True:
            member = self.members.pick()
            pause_ms = 0.0
            try:
                said = await self._once(
                    member, method, path, headers=headers, params=params, body=body, deadline=deadline
                )
            except (aiohttp.ClientError, TimeoutError, OSError) as failure:
                # A connection that was never made carried nothing; any other may have carried the command.
                unsure = unsure or not isinstance(failure, aiohttp.ClientConnectorError)
                error, message, code = "unreachable", _failure(member, failure), 0
                self.members.failed(member)
            else:
                answer = _answer(key, said) if said.status < 400 else None
                if answer is not None:
                    return outcome(key, answer, unsure=unsure)
                if said.error is None:
                    # A proxy may have passed the command on before it said 5xx or something of its own; not before 4xx.
                    unsure = unsure or not 400 <= said.status < 500
                    error, message, code = "not_a_node", f"{member.url} answered HTTP {said.status}", 0
                    self.members.failed(member)
                else:
                    found = said.error
                    verdict = judge(error=found.error, code=found.code, definite=found.definite)
                    if verdict is Verdict.final:
                        refusal = Answer(
                            index=_index(said.headers),
                            replay=_replayed(said),
                            error=found.error,
                            code=found.code,
                            message=found.message,
                            field=found.field,
                        )
                        return outcome(key, refusal, unsure=unsure)
                    unsure = unsure or verdict is Verdict.unsure
                    error, message, code = found.error, found.message, found.code
                    pause_ms = said.retry_after_ms if said.status == 429 else 0.0
                    if said.status == 503:
                        self.members.failed(member)
            if not await backoff.wait(deadline=deadline, at_least_ms=pause_ms):
                return given_up(key, unsure=unsure, error=error, message=message, code=code)
            if not pause_ms:
                await self.members.look_for_leader(self.session(), self.auth)

    async def read(
        self, path: str, *, params: Mapping[str, str], headers: Mapping[str, str] | None = None, deadline: float
    ) -> Said:
        """Read until a member answers or the deadline comes.

        Raises:
            ReadRefused: understood and refused (4xx).
            Unavailable: no answer in time.
        """
        return await self._until(
            "GET", path, headers={**self.auth, **(headers or {})}, params=params, body=None, deadline=deadline
        )

    async def change(self, method: str, path: str, *, body: bytes, deadline: float) -> Said:
        """Change the cluster itself: one and the same change however often it is sent. As `read`, and raises

        ChangeUnknown: no answer that settles it in time, and a try may have reached a leader.
        """
        headers = {**self.auth, "Content-Type": "application/json"}
        return await self._until(method, path, headers=headers, params={}, body=body, deadline=deadline)

    async def _until(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        params: Mapping[str, str],
        body: bytes | None,
        deadline: float,
    ) -> Said:
        cause = said_cause = ""
        unsure = False
        backoff = Backoff()
        while True:
            member = self.members.pick()
            pause_ms = 0.0
            try:
                said = await self._once(
                    member, method, path, headers=headers, params=params, body=body, deadline=deadline
                )
            except (aiohttp.ClientError, TimeoutError, OSError) as failure:
                unsure = unsure or not isinstance(failure, aiohttp.ClientConnectorError)
                cause = _failure(member, failure)
                self.members.failed(member)
            else:
                if said.status < 400:
                    return said
                if said.error is not None and said.status not in (429, 503):
                    raise ReadRefused(said.status, said.error.error, said.error.message, said.error.field)
                unsure = unsure or said.status >= 500 if said.error is None else unsure or not said.error.definite
                if said.error is not None:
                    said_cause = f"{said.error.error}: {said.error.message}"
                cause = f"{member.url} answered HTTP {said.status}"
                pause_ms = said.retry_after_ms if said.status == 429 else 0.0
                if said.status != 429:
                    self.members.failed(member)
            if not await backoff.wait(deadline=deadline, at_least_ms=pause_ms):
                # The last try is often cut short by the deadline; what a member said before says more.
                raise (ChangeUnknown if unsure and method != "GET" else Unavailable)(said_cause or cause)
            if not pause_ms:
                await self.members.look_for_leader(self.session(), self.auth)

    async def _once(
        self,
        member: Member,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        params: Mapping[str, str],
        body: bytes | None,
        deadline: float,
    ) -> Said:
        left_s = min(TRY_TIMEOUT_MS / 1000, max(0.02, deadline - time.monotonic()))
        timeout = aiohttp.ClientTimeout(total=left_s)
        if method != "GET":
            # The node is to answer before we hang up: what it says is worth more than silence.
            params = {**params, "timeout_ms": str(max(NODE_TIMEOUT_MS_MIN, int(left_s * 900)))}
        async with self.session().request(
            method, member.url + path, headers=headers, params=params, data=body, timeout=timeout
        ) as response:
            content = await response.read()
        error = None
        if response.status >= 400:
            try:
                error = _decode_error(content)
            except msgspec.MsgspecError:
                error = None
        else:
            self.saw(_index(response.headers), response.headers.get("X-Session-Token", ""))
        return Said(response.status, response.headers, content, error)


def _failure(member: Member, failure: BaseException) -> str:
    text = describe(failure)
    return text if isinstance(failure, aiohttp.ClientConnectorError) else f"{member.url}: {text}"


def _index(headers: Mapping[str, Any]) -> int:
    text = headers.get("X-Log-Index", "")
    return int(text) if text.isascii() and text.isdigit() else 0


def _replayed(said: Said) -> bool:
    return bool(said.headers.get("Idempotency-Replayed", "") == "true")


def _answer(key: str, said: Said) -> Answer | None:
    """An Answer from a 2xx body: the fields that it has, and what the headers add. None: no node wrote this."""
    try:
        loose = _decode_loose(said.body) if said.body else _Loose()
    except msgspec.MsgspecError:
        return None
    given = {name: value for name in loose.__struct_fields__ if (value := getattr(loose, name)) is not None}
    given["key"] = key
    given.setdefault("index", _index(said.headers))
    given["replay"] = bool(given.get("replay")) or _replayed(said)
    return Answer(**given)
