"""The certificate that a member shows and whom it trusts: read anew when the files change, while links stay up."""

import asyncio
import datetime
import logging
import time
from collections import Counter

from cluster.certificates import (
    MemberContext,
    Stamp,
    check_identity,
    client_context,
    expiries,
    server_context,
    stamp,
)

log = logging.getLogger(__name__)

WARN_DAYS = 30
WARN_EVERY_SECONDS = 86_400.0


class Identity:
    """The TLS contexts of new connections. generation: how often they were replaced; older connections are to be too.

    Files that can't be used (another member's, a key that is not the certificate's, no authority that signed it, an
    end in the past) are named in the log and counted as `certificates_refused`; what was in use stays in use.
    """

    def __init__(self, member: str, server: MemberContext, client: MemberContext, counters: Counter[str]) -> None:
        self.server = server
        self.client = client
        self.generation = 0
        self._member = member
        self._counters = counters
        self._settling: Stamp | None = None
        self._refused: Stamp | None = None
        self._warned_at = float("-inf")

    async def look(self) -> bool:
        """True: new files are in use from now on. They are taken once two looks in a row found the same ones."""
        await self._warn()
        files, found = self.server.files, stamp(self.server.files)
        if found in (self.server.stamp, self._refused):
            self._settling = None
            return False
        if found != self._settling:
            # Certificate and key are two files; whoever replaces them may be between the two.
            self._settling = found
            return False
        try:
            await asyncio.to_thread(check_identity, files, self._member)
            server, client = server_context(files), client_context(files)
        except (OSError, ValueError) as error:
            self._refused = found
            self._counters["certificates_refused"] += 1
            log.error("new certificate files are not used, the old ones stay in use: %s", error)
            return False
        if not found == server.stamp == client.stamp:
            return False
        self.server, self.client = server, client
        self.generation += 1
        self._counters["certificates_taken"] += 1
        self._warned_at = float("-inf")
        log.warning("new certificates are in use, from %s and %s", files.certificate, files.ca)
        return True

    async def _warn(self) -> None:
        """Say once a day which certificate ends within WARN_DAYS."""
        if time.monotonic() - self._warned_at < WARN_EVERY_SECONDS:
            return
        self._warned_at = time.monotonic()
        try:
            ends = await asyncio.to_thread(expiries, self.server.files)
        except (OSError, ValueError) as error:
            log.error("certificates can't be read: %s", error)
            return
        now = datetime.datetime.now(datetime.UTC)
        for what, end in ends.items():
            if end - now < datetime.timedelta(days=WARN_DAYS):
                log.warning(
                    "the %s's certificate is good until %s: `tiebreak cluster rotate-certificates%s` makes a new one",
                    what,
                    f"{end:%Y-%m-%d %H:%M}",
                    " --authority" if what == "authority" else "",
                )
