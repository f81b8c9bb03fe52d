"""The API's listener: TLS as configured, client certificates of gateways, both read anew while connections stay up."""

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import structlog
from msgspec import Struct

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.node")

LOOK_S = 2.0
BACKLOG = 1024


class ApiTlsFiles(Struct, frozen=True):
    """client_ca: who signs clients' certificates; one that is offered is verified. required: one must be offered."""

    certificate: Path
    key: Path
    client_ca: Path | None = None
    required: bool = False


def make_context(files: ApiTlsFiles) -> ssl.SSLContext:
    """Raises OSError, ssl.SSLError among them. Where clients must show a certificate, nothing older than TLS 1.3."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if files.required else ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(files.certificate, files.key)
    if files.client_ca is not None:
        context.load_verify_locations(files.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED if files.required else ssl.CERT_OPTIONAL
    return context


class ApiListener:
    """Listens for the API, in plain HTTP when there are no files.

    New files are for connections that come after; those that are open stay as they are. Files that can't be used are
    named in the log, and what was in use stays in use.
    """

    def __init__(self, files: ApiTlsFiles | None) -> None:
        self.files = files
        self.taken = 0
        """How often new files were taken into use."""
        self._servers: list[asyncio.Server] = []
        self._factory: Callable[[], asyncio.Protocol]
        self._backlog = BACKLOG
        self._watching: asyncio.Task[None] | None = None

    async def start(
        self,
        factory: Callable[[], asyncio.Protocol],
        host: str,
        port: int,
        *,
        shared: bool = False,
        backlog: int = BACKLOG,
    ) -> None:
        """shared: other processes may listen on the same port; the kernel spreads connections.

        Raises OSError: the address is taken, or the files can't be used.
        """
        loop = asyncio.get_running_loop()
        self._factory, self._backlog = factory, backlog
        context = make_context(self.files) if self.files is not None else None
        self._servers = [
            await loop.create_server(factory, host, port, ssl=context, backlog=backlog, reuse_port=shared or None)
        ]
        if self.files is not None:
            self._watching = loop.create_task(self._watch(self.files), name="API certificates")

    @property
    def port(self) -> int:
        """Where it listens; after `start`."""
        return int(self._servers[0].sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Take no new connections; those that are open are their owner's to close."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        for server in self._servers:
            server.close()

    async def _watch(self, files: ApiTlsFiles) -> None:
        used = settling = _stamp(files)
        while True:
            await asyncio.sleep(LOOK_S)
            found = _stamp(files)
            # Taken once two looks in a row found the same: certificate and key are two files.
            if found != used and found == settling:
                used = found
                await self._renew(files)
            settling = found

    async def _renew(self, files: ApiTlsFiles) -> None:
        try:
            context = make_context(files)
        except OSError as error:
            log.error("new API certificate files are not used, the old ones stay in use", error=str(error))
            return
        # Trust can't be taken out of a context that is in use: the same sockets are listened on with another.
        loop = asyncio.get_running_loop()
        before, self._servers = self._servers, []
        for listening in [one for server in before for one in server.sockets]:
            again = socket.socket(fileno=os.dup(listening.fileno()))
            self._servers.append(
                await loop.create_server(self._factory, sock=again, ssl=context, backlog=self._backlog)
            )
        for server in before:
            server.close()
        self.taken += 1
        log.info("new API certificates are in use", certificate=str(files.certificate))


def _stamp(files: ApiTlsFiles) -> list[tuple[int, int, int] | None]:
    found: list[tuple[int, int, int] | None] = []
    for path in (files.certificate, files.key, files.client_ca):
        try:
            status = path.stat() if path is not None else None
        except FileNotFoundError:
            status = None
        found.append((status.st_mtime_ns, status.st_ino, status.st_size) if status is not None else None)
    return found
