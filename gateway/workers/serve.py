"""HTTP or HTTPS on a port that several processes share, with the connection guard in front."""

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from node.api_tls import ApiListener, ApiTlsFiles
from node.guard import ConnectionGuard

BACKLOG = 4_096


class Listening:
    """An aiohttp application behind a guard. hosts: one address or several; each is listened on.

    tls: serve HTTPS with these files, read anew when they are replaced.
    """

    def __init__(
        self,
        app: web.Application,
        guard: ConnectionGuard,
        hosts: str | Sequence[str],
        port: int,
        *,
        shared: bool = False,
        tls: ApiTlsFiles | None = None,
    ) -> None:
        """shared: other processes may listen on the same port (SO_REUSEPORT); the kernel spreads connections."""
        self.guard = guard
        self.port = port
        self._hosts = [hosts] if isinstance(hosts, str) else list(hosts)
        self._shared = shared
        self._tls = tls
        options: dict[str, Any] = guard.limits.runner_options()
        self._runner = web.AppRunner(app, shutdown_timeout=1.0, **options)
        self._listeners: list[ApiListener] = []

    async def start(self) -> None:
        """Raises OSError: the port is taken, or the files of the certificate can't be used."""
        await self._runner.setup()
        server = self._runner.server
        if server is None:
            raise RuntimeError("the runner made no server")
        factory = self.guard.factory(server)
        for host in self._hosts:
            listener = ApiListener(self._tls)
            await listener.start(factory, host, self.port, shared=self._shared, backlog=BACKLOG)
            self._listeners.append(listener)
            self.port = listener.port
        self.guard.start()

    async def close_door(self) -> None:
        """Take no new connections; those that are open go on. Others who share the port get them."""
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            await listener.close()

    async def stop(self) -> None:
        await self.close_door()
        await self.guard.stop()
        await self._runner.cleanup()
