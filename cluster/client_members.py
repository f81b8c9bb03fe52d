"""Which member a client talks to: it prefers the leader, and leaves one that fails for another."""

import asyncio
import os
import time
from collections.abc import Sequence

import aiohttp
import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cluster.wire import MemberView

PROBE_TIMEOUT_MS = 700
"""Longest wait for a member's status while looking for the leader's side."""
AVOID_MS = 1_000
"""How long a member that failed is taken only when there is no other."""
LOOK_AGAIN_MS = 300
"""Shortest time between two searches."""


class Member(Struct, frozen=True):
    """name may be empty where only an address is known. A witness answers status and nothing else."""

    url: str
    name: str = ""
    witness: bool = False


class Health(Struct, frozen=True):
    """What a member said of itself, or why it did not. answers: its read path works now (/readyz)."""

    member: Member
    view: MemberView | None = None
    error: str = ""
    answers: bool = False


class Members:
    """The members of one cluster, and which of them to ask next. One event loop, no locks.

    all: those that were given. Replicas that were added to the cluster since are learned of from those that answer.
    """

    def __init__(self, members: Sequence[Member | str]) -> None:
        """members: at least one; a bare string is the address of a replica. The first is tried first."""
        self.all = tuple(Member(m.rstrip("/")) if isinstance(m, str) else m for m in members)
        self._replicas = [m for m in self.all if not m.witness]
        if not self._replicas:
            raise ValueError("a client needs the address of at least one full replica")
        for member in self.all:
            if not member.url.startswith(("http://", "https://")):
                raise ValueError(f"{member.url!r} is no address; one is http://host:port or https://host:port")
        self._given = frozenset(member.url for member in self._replicas)
        self._preferred = self._replicas[0]
        self._avoid_until: dict[str, float] = {}
        self._looked_at = -1e9

    def pick(self) -> Member:
        """The member to ask now. Never waits; may be one that failed lately when all did."""
        now = time.monotonic()
        if self._avoid_until.get(self._preferred.url, 0.0) <= now:
            return self._preferred
        self._preferred = min(self._replicas, key=lambda m: self._avoid_until.get(m.url, 0.0))
        return self._preferred

    def failed(self, member: Member) -> None:
        """Leave this one alone for a while."""
        self._avoid_until[member.url] = time.monotonic() + AVOID_MS / 1000

    async def look_for_leader(self, session: aiohttp.ClientSession, headers: dict[str, str]) -> None:
        """Ask all replicas at once; prefer the leader with a quorum, else whoever is ready. Raises nothing."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_AGAIN_MS / 1000:
            return
        self._looked_at = now
        best, best_score = None, 0
        probes = [asyncio.ensure_future(_probe(session, member, headers)) for member in self._replicas]
        try:
            for finished in asyncio.as_completed(probes, timeout=PROBE_TIMEOUT_MS / 1000 + 0.1):
                member, score, view = await finished
                if view is not None:
                    self.learn(member, view)
                if score > best_score:
                    best, best_score = member, score
                if score == LEADS:
                    break
        except TimeoutError:
            pass  # what answered so far is what there is
        finally:
            for probe in probes:
                probe.cancel()
        if best in self._replicas:
            self._preferred = best
            self._avoid_until.pop(best.url, None)

    def learn(self, member: Member, view: MemberView) -> None:
        """Take in which replicas there are by now, as a member says. Those that were given are never forgotten.

        Only of one that says of itself the address at which it was asked: between others stands a proxy or a port map,
        and the addresses that they know are not ours.
        """
        scheme, _, address = member.url.partition("://")
        if view.apis.get(view.name) != address:
            return
        there = {f"{scheme}://{where}": name for name, where in view.apis.items()}
        known = {one.url for one in self._replicas}
        self._replicas = [one for one in self._replicas if one.url in self._given or one.url in there]
        self._replicas += [Member(url, name) for url, name in there.items() if url not in known]

    async def health(
        self, session: aiohttp.ClientSession, headers: dict[str, str], params: dict[str, str]
    ) -> list[Health]:
        """The status of every member, witnesses too, in the order given. Raises nothing."""
        found = asyncio.gather(*(_health(session, member, headers, params) for member in self.all))
        answering = asyncio.gather(*(_answers(session, member) for member in self.all))
        return [replace(health, answers=yes) for health, yes in zip(await found, await answering, strict=True)]


LEADS = 3


async def _probe(
    session: aiohttp.ClientSession, member: Member, headers: dict[str, str]
) -> tuple[Member, int, MemberView | None]:
    """Score a member: leads with a quorum 3, ready 2, answers at all 1, silent 0; and what it says of itself."""
    found = await _health(session, member, headers, {})
    view = found.view
    if view is not None:
        if view.role == "witness":
            return member, 0, None
        if view.state == "leader" and view.has_quorum:
            return member, LEADS, view
        return member, 2 if view.ready else 1, view
    if found.error not in _STRANGERS.values():
        return member, 0, None
    # This principal may not read the status; whether the member is ready it may.
    return member, 2 if await _answers(session, member) else 1, None


async def _answers(session: aiohttp.ClientSession, member: Member) -> bool:
    try:
        timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_MS / 1000)
        async with session.get(f"{member.url}/readyz", timeout=timeout) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False


_STRANGERS = {
    401: "HTTP 401: it does not know this token; it may be of another cluster",
    403: "HTTP 403: this token may not read the status",
}
_decode_member = msgspec.json.Decoder(MemberView).decode


async def _health(
    session: aiohttp.ClientSession, member: Member, headers: dict[str, str], params: dict[str, str]
) -> Health:
    try:
        timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_MS / 1000)
        async with session.get(f"{member.url}/v1/status", headers=headers, params=params, timeout=timeout) as response:
            body = await response.read()
            if response.status != 200:
                return Health(member, error=_STRANGERS.get(response.status, f"HTTP {response.status}"))
            return Health(member, view=_decode_member(body))
    except TimeoutError:
        return Health(member, error=f"no answer within {PROBE_TIMEOUT_MS} ms")
    except (aiohttp.ClientError, OSError, msgspec.MsgspecError) as error:
        return Health(member, error=describe(error))


def describe(error: BaseException) -> str:
    """One line for people: what went wrong, without the library's wrapping."""
    if isinstance(error, aiohttp.ClientConnectorSSLError | aiohttp.ClientConnectorCertificateError):
        cause = (
            error.certificate_error if isinstance(error, aiohttp.ClientConnectorCertificateError) else error.os_error
        )
        why = getattr(cause, "verify_message", "") or getattr(cause, "reason", "") or str(cause)
        return f"no trusted TLS with {error.host}:{error.port}: {why}"
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno
        # A name that can't be resolved has a negative number, which is not the system's.
        why = os.strerror(number).lower() if number and number > 0 else error.os_error.strerror or str(error.os_error)
        return f"can't connect to {error.host}:{error.port}: {why}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
