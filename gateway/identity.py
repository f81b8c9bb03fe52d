"""The certificate that a gateway shows, and whom it trusts: read anew when the files change, while it goes on."""

import asyncio
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from cluster.certificates import MemberContext, TlsFiles, check_identity, client_context, server_context, stamp

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.gateway")

LOOK_S = 2.0
Seen = tuple[object, ...]


class Identity:
    """TLS contexts of connections that are made from now on.

    server, client: between gateways. nodes: towards nodes that serve https, None where none is needed: by nodes_ca, and
    with our certificate where it is to be shown (present).

    Files that can't be used (another's certificate, a key that does not belong to it, no authority that signed it) are
    named in the log and counted; what was in use stays in use.
    """

    def __init__(self, name: str, files: TlsFiles, *, nodes_ca: Path | None = None, present: bool = False) -> None:
        """Raises OSError, ssl.SSLError among them."""
        self.counters: Counter[str] = Counter()
        self.on_taken: list[Callable[[], Awaitable[None]]] = []
        """Called when new files are in use from now on."""
        self._name = name
        self._files = files
        self._nodes_ca = nodes_ca
        self._present = present
        self._used = self._settling = self._stamp()
        self.server, self.client, self.nodes = self._contexts()

    def _stamp(self) -> Seen:
        try:
            status = self._nodes_ca.stat() if self._nodes_ca is not None else None
        except FileNotFoundError:
            status = None
        found = (status.st_mtime_ns, status.st_ino, status.st_size) if status is not None else None
        return (*stamp(self._files), found)

    def _contexts(self) -> tuple[MemberContext, MemberContext, ssl.SSLContext | None]:
        nodes: ssl.SSLContext | None = None
        if self._present:
            nodes = client_context(self._files)
            if self._nodes_ca is not None:
                nodes.load_verify_locations(self._nodes_ca)
        elif self._nodes_ca is not None:
            nodes = ssl.create_default_context(cafile=self._nodes_ca)
        return server_context(self._files), client_context(self._files), nodes

    async def run(self) -> None:
        """Look for new files, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> bool:
        """True: new files are in use from now on. They are taken once two looks in a row found the same ones."""
        found = self._stamp()
        settled, self._settling = found == self._settling, found
        if found == self._used or not settled:
            # Certificate and key are two files; whoever replaces them may be between the two.
            return False
        try:
            await asyncio.to_thread(check_identity, self._files, self._name)
            made = await asyncio.to_thread(self._contexts)
        except (OSError, ValueError) as error:
            self._used = found
            self.counters["certificates_refused"] += 1
            log.error("new certificate files are not used, the old ones stay in use", error=str(error))
            return False
        if self._stamp() != found:
            return False
        self._used = found
        self.server, self.client, self.nodes = made
        self.counters["certificates_taken"] += 1
        log.info("new certificates are in use", certificate=str(self._files.certificate))
        for taken in self.on_taken:
            await taken()
        return True
