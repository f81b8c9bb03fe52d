"""Cancel-on-disconnect: keeps replicated sessions alive while their socket lives, and ends them with it.

The session is replicated state with a time-out, so orders die too when this node does: then the beats stop.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Protocol

from node.beats import Beats
from node.submit import Outcome, Prepared

CLOSE_TIMEOUT_MS = 5_000


class Submits(Protocol):
    def start(
        self, prepared: Sequence[Prepared], *, timeout_ms: int, traceparent: str = ""
    ) -> asyncio.Future[list[Outcome]]: ...


class OrderGuard:
    """The sessions of one stream.

    make_close(account, session, key): the command that closes a session.
    """

    def __init__(self, submitter: Submits, beats: Beats, make_close: Callable[[str, str, str], Prepared]) -> None:
        self.sessions: dict[tuple[str, str], int] = {}
        """(account, session) to its time-out in milliseconds."""
        self._submitter = submitter
        self._make_close = make_close
        self._beats = beats

    def opened(self, account: str, session: str, timeout_ms: int) -> None:
        """The session stands in the replicated state: keep it alive from now on."""
        self.ended(account, session)
        self.sessions[account, session] = timeout_ms
        self._beats.keep((account, session), timeout_ms)

    def ended(self, account: str, session: str) -> bool:
        """The session is gone from the replicated state. False: it was none of this stream's."""
        timeout_ms = self.sessions.pop((account, session), None)
        if timeout_ms is None:
            return False
        self._beats.drop((account, session), timeout_ms)
        return True

    def leave(self) -> None:
        """The node leaves, not the client: stop the beats, so that the client has the time-out to come back
        on another node, where opening the same session with the same key takes it up again."""
        for account, session in list(self.sessions):
            self.ended(account, session)

    def disconnected(self) -> None:
        """The client is gone: cancel its guarded orders now. Should that fail, the time-out does it."""
        closes = [
            self._make_close(account, session, f"close-{secrets.token_hex(12)}") for account, session in self.sessions
        ]
        self.leave()
        if closes:
            self._submitter.start(closes, timeout_ms=CLOSE_TIMEOUT_MS)
