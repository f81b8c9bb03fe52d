"""HTTP on a port that several processes share, with the connection guard in front."""

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from node.guard import ConnectionGuard

BACKLOG = 4_096


class Listening:
    """An aiohttp application behind a guard. hosts: one address or several; each is listened on."""

    def __init__(
        self,
        app: web.Application,
        guard: ConnectionGuard,
        hosts: str | Sequence[str],
        port: int,
        *,
        shared: bool = False,
    ) -> None:
        """shared: other processes may listen on the same port (SO_REUSEPORT); the kernel spreads connections."""
        self.guard = guard
        self.port = port
        self._hosts = [hosts] if isinstance(hosts, str) else list(hosts)
        self._shared = shared
        options: dict[str, Any] = guard.limits.runner_options()
        self._runner = web.AppRunner(app, shutdown_timeout=1.0, **options)
        self._servers: list[asyncio.Server] = []

    async def start(self) -> None:
        """Raises OSError: the port is taken."""
        await self._runner.setup()
        server = self._runner.server
        if server is None:
            raise RuntimeError("the runner made no server")
        factory = self.guard.factory(server)
        for host in self._hosts:
            sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if self._shared:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                sock.bind((host, self.port))
            except OSError:
                sock.close()
                raise
            loop = asyncio.get_running_loop()
            self._servers.append(await loop.create_server(factory, sock=sock, backlog=BACKLOG))
            self.port = sock.getsockname()[1]
        self.guard.start()

    async def close_door(self) -> None:
        """Take no new connections; those that are open go on. Others who share the port get them."""
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        await asyncio.sleep(0)

    async def stop(self) -> None:
        await self.close_door()
        await self.guard.stop()
        await self._runner.cleanup()
