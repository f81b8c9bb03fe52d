"""Runs one gateway: its core, its API, its streams or the workers that serve them; and takes them down in steps."""

import asyncio
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import structlog
import uvloop
from aiohttp import web
from msgspec.structs import replace

from gateway.api.relay import settled
from gateway.api.server import Api, authenticator, http_limits
from gateway.cache.server import NoServer, make_private, socket_path
from gateway.config import GatewayConfig
from gateway.core import Core
from gateway.market.ticklog import TickLogError
from gateway.prefs.errors import StoreRefused
from gateway.prefs.seal import KeyFileRefused
from gateway.stream.admission import Admission, StreamLimits
from gateway.stream.metrics import Counts, process_counts
from gateway.stream.places import Caps, Places
from gateway.stream.server import StreamServer
from gateway.streams import Streams
from gateway.tasks import end
from gateway.workers.core import Core as WorkerCore
from gateway.workers.supervisor import Supervisor
from gateway.workers.worker import WorkerOptions
from node.api_tls import ApiListener, ApiTlsFiles, make_context
from node.auth import public_keys
from node.guard import ConnectionGuard
from node.tracing import configure_logging

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.gateway")

EXIT_COULD_NOT_START = 1
LOOK_AWAY_S = 0.3
"""Between `not ready` and the closed door, so that balancers look away first; a third of drain_ms at most."""
REFUSED = (OSError, NoServer, TickLogError, StoreRefused, KeyFileRefused, ValueError)
"""What keeps a gateway from starting and whoever starts it can put right."""


class App:
    """One gateway, from its config to its end."""

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        self.core = Core(config)
        self.api: Api
        self.streams: Streams
        self.server: StreamServer | None = None
        self.supervisor: Supervisor | None = None
        self._workers: WorkerCore | None = None
        bounds = http_limits(self.core)
        if config.workers:  # all come over one socket, which has no address; workers count by address
            bounds = replace(bounds, connections_per_address_max=bounds.connections_max)
        self._guard = ConnectionGuard(bounds)
        self._listener = ApiListener(ApiTlsFiles(*config.api_tls) if config.api_tls is not None else None)
        self._unix: asyncio.Server | None = None
        self._runner: web.AppRunner | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._draining = self._stopped = False

    @property
    def stream_limits(self) -> StreamLimits:
        limits = self.config.limits
        return StreamLimits(
            admitted_per_s=limits.admitted_per_s,
            admitted_burst=limits.admitted_per_s,
            connections_per_user_max=limits.streams_per_user_max,
            subscriptions_per_connection_max=limits.subscriptions_max,
            subscriptions_per_user_max=limits.subscriptions_max * limits.streams_per_user_max,
        )

    def counts(self) -> Counts:
        """Of the processes that serve clients: this one, or the workers that are fed, as they said last."""
        if self.server is not None:
            return {"core": self.server.counts() | process_counts(self._guard)}
        tallies = self._workers.tallies if self._workers is not None else {}
        return {str(number): counts for number, counts in sorted(tallies.items())}

    # ---- start ----

    async def start(self) -> None:
        """Raises one of REFUSED; then nothing of it runs."""
        await self.core.start()
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        config, core = self.config, self.core
        self.streams = streams = Streams(core)
        if not config.workers:
            self.server = StreamServer(
                streams.hub,
                streams.source,
                authenticator(core),
                limits=self.stream_limits,
                is_ready=lambda: not core.why_not_ready(),
            )
        self.api = Api(core, counts=self.counts, stream=self.server.handle if self.server is not None else None)
        self.api.watch_streams(streams.hub)
        bounds = http_limits(core)
        self._runner = web.AppRunner(self.api.app, shutdown_timeout=2.0, **bounds.runner_options())  # type: ignore[arg-type]
        await self._runner.setup()
        if self._runner.server is None:
            raise RuntimeError("the runner made no server")
        factory = self._guard.factory(self._runner.server)
        listen = config.listen
        if config.workers:
            await self._start_workers(factory)
        else:
            await self._listener.start(factory, listen.host, listen.port)
        self._guard.start()
        if self.server is not None:
            self.server.start()
        self._tasks.append(asyncio.create_task(streams.run(), name="publishing"))
        log.info("started", site=config.site, api=f"{listen.host}:{listen.port}", workers=config.workers)

    async def _start_workers(self, factory: Callable[[], asyncio.Protocol]) -> None:
        config, streams = self.config, self.streams
        if self._listener.files is not None:
            make_context(self._listener.files)  # a worker would fail again and again
        rest, core_socket = self._socket("rest.sock"), self._socket("workers.sock")
        rest.unlink(missing_ok=True)
        self._unix = await asyncio.get_running_loop().create_unix_server(factory, str(rest))
        os.chmod(rest, 0o600)
        run = secrets.token_hex(8)
        supervisor = self.supervisor = Supervisor(
            lambda number: self._command(number, run, core_socket, rest), config.workers
        )
        self._workers = WorkerCore(
            core_socket,
            streams.hub,
            streams.source,
            run=run,
            on_drop=supervisor.kill,
            places=Places(Caps(self.stream_limits, http_limits(self.core))),
            admission=Admission(self.stream_limits),
        )
        self.api.watch_workers(supervisor, self._workers)
        await self._workers.start()
        self._tasks.append(asyncio.create_task(streams.hub.run(), name="fan-out to workers"))
        supervisor.start()

    def _socket(self, name: str) -> Path:
        """Raises NoServer."""
        path = socket_path(self.config.data_dir, name)
        if path.parent != self.config.data_dir:
            make_private(path.parent)
        return path

    def _command(self, number: int, run: str, core_socket: Path, rest: Path) -> list[str]:
        config = self.config
        options = WorkerOptions(
            number=number,
            core=str(core_socket),
            run=run,
            hosts=[config.listen.host],
            port=config.listen.port,
            public_keys=[key.decode() for key in public_keys(config.token_public_key)],
            limits=self.stream_limits,
            http=http_limits(self.core),
            share=max(1, config.workers),
            drain_ms=config.limits.drain_ms,
            cert=str(config.api_tls[0]) if config.api_tls is not None else "",
            key=str(config.api_tls[1]) if config.api_tls is not None else "",
            more={"rest": str(rest)},
        )
        return [sys.executable, "-P", "-m", "gateway.worker", options.text()]

    # ---- leave ----

    async def drain(self) -> None:
        """Not ready; no new connections; streams told where to resume and closed in steps; then what is under way."""
        if self._draining:
            return
        self._draining = True
        drain_ms = self.config.limits.drain_ms
        self.core.draining = True
        log.info("draining", drain_ms=drain_ms)
        began_s = time.monotonic()
        await asyncio.sleep(min(LOOK_AWAY_S, drain_ms / 3000))
        await self._listener.close()
        left_ms = max(0, drain_ms - int((time.monotonic() - began_s) * 1000))
        # Before workers leave: through them their clients are told.
        await self.api.streams.drain(timeout_ms=left_ms // 2)
        if self.server is not None:
            await self.server.drain(timeout_ms=left_ms // 2)
        if self.supervisor is not None:
            await self.supervisor.stop(timeout_s=left_ms / 1000 + 2.0)
        await settled(self.api.relay, timeout_ms=left_ms // 2)
        await self.stop()

    async def stop(self) -> None:
        """End everything, whatever of it was begun; once."""
        if self._stopped:
            return
        self._stopped = True
        await end(*self._tasks)
        await self._listener.close()
        if self._unix is not None:
            self._unix.close()
        if self.supervisor is not None:
            await self.supervisor.stop(timeout_s=1.0)
        if self._workers is not None:
            await self._workers.stop()
        if self.server is not None:
            await self.server.stop()
        await self._guard.stop()
        if hasattr(self, "api"):
            await self.api.streams.close()  # else the runner waits for their handlers
        if self._runner is not None:
            await self._runner.cleanup()
        if hasattr(self, "api"):
            await self.api.close()
        await self.core.stop()
        log.info("stopped")


async def serve(config: GatewayConfig) -> int:
    """Run one gateway until SIGTERM or SIGINT; returns its exit code."""
    leave = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave.set)
    app: App | None = None
    try:
        app = App(config)
        await app.start()
    except REFUSED as error:
        log.critical("could not start", error=f"{type(error).__name__}: {error}")
        print(f"could not start: {error}", file=sys.stderr)
        return EXIT_COULD_NOT_START
    await leave.wait()
    await app.drain()
    return 0


def run_gateway(config: GatewayConfig) -> int:
    """Run one gateway in this process, logs on stderr; returns its exit code."""
    configure_logging(config.log_level, member=config.name)
    return uvloop.run(serve(config))
