"""One worker process: serves clients on the shared port from what the core sends it."""

import asyncio
import contextlib
import gc
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import structlog
import uvloop
from aiohttp import web
from msgspec import Struct, structs

from gateway.fanout.hub import Hub
from gateway.stream.admission import StreamLimits
from gateway.stream.metrics import process_counts
from gateway.stream.places import Caps
from gateway.stream.server import StreamServer
from gateway.tasks import end
from gateway.workers.door import CoreDoor
from gateway.workers.link import CoreLink
from gateway.workers.serve import Listening
from node.api_tls import ApiTlsFiles
from node.auth import Authenticator
from node.errors import NodeError, error_body
from node.guard import ConnectionGuard, HttpLimits

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.workers")

GC_YOUNG, GC_MIDDLE, GC_WHOLE = 50_000, 20, 100
CORE_AWAY_S = 5.0
"""A core that crashed is back by then; behind it clients do better at the other site, and the port is wanted."""
DESCRIPTORS_KEPT = 200
"""For what is no client: the core, the log, files that are read anew."""
GRACE_S = 0.5
"""Between the last goodbye and the end of the process."""


class WorkerOptions(Struct, frozen=True, kw_only=True):
    """All that a worker is told when it is started, as JSON in its one argument. port: shared by all workers."""

    number: int
    core: str
    run: str
    hosts: list[str]
    port: int
    public_keys: list[str]
    limits: StreamLimits = StreamLimits()
    http: HttpLimits = HttpLimits()
    """Both of the whole gateway."""
    share: int = 1
    """So many workers there are: while the core is away, each has its part of the limits."""
    drain_ms: int = 5_000
    cert: str = ""
    key: str = ""
    """Both: serve HTTPS."""
    more: dict[str, str] = {}
    """For the routes that are added by others."""

    @classmethod
    def parse(cls, text: str) -> "WorkerOptions":
        """Raises ValueError."""
        return msgspec.json.decode(text, type=cls)

    def text(self) -> str:
        return msgspec.json.encode(self).decode()


class Worker:
    """add_routes: puts the routes besides /v1/stream into the application, with middlewares of its own."""

    def __init__(
        self, options: WorkerOptions, *, add_routes: Callable[[web.Application, "Worker"], None] | None = None
    ) -> None:
        self.options = options
        self.hub = Hub(0)
        self.link = CoreLink(self.hub, Path(options.core), number=options.number, run=options.run)
        self.door = CoreDoor(self.link, Caps(options.limits, options.http), options.limits, share=options.share)
        self.guard = ConnectionGuard(_own(options.http))
        self.door.guard_by(self.guard)
        self.authenticator = Authenticator(options.public_keys)
        self.stream = StreamServer(
            self.hub,
            self.link,
            self.authenticator,
            limits=options.limits,
            is_ready=lambda: self.link.counters["connected"] > 0,
            door=self.door,
        )
        self.link.on_lost_past = self.stream.lost_past
        self.link.on_leave = self.leave
        app = web.Application(middlewares=[refusals] if add_routes is None else [])
        app.router.add_get("/v1/stream", self.stream.handle)
        if add_routes is not None:
            add_routes(app, self)
        tls = ApiTlsFiles(Path(options.cert), Path(options.key)) if options.cert else None
        self.listening = Listening(app, self.guard, options.hosts, options.port, shared=True, tls=tls)
        self._leaving = asyncio.Event()

    def leave(self) -> None:
        """Begin to drain."""
        self._leaving.set()

    async def run(self) -> None:
        """Until SIGTERM, or until the core says so; then clients are sent away in steps."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.leave)
        link = loop.create_task(self.link.run(), name="core link")
        telling = loop.create_task(self._tell(), name="tally")
        watching = loop.create_task(self._watch_core(), name="core watch")
        self.stream.start()
        await self.listening.start()
        gc.collect()
        gc.freeze()
        # Connections are many objects and few cycles: a whole collection of 20,000 of them holds all for 100 ms.
        gc.set_threshold(GC_YOUNG, GC_MIDDLE, GC_WHOLE)
        try:
            await self._leaving.wait()
            await self.listening.close_door()
            await self.stream.drain(timeout_ms=self.options.drain_ms)
            await asyncio.sleep(GRACE_S)
        finally:
            await self.stream.stop()
            await end(link, telling, watching)
            await self.listening.stop()

    async def _watch_core(self) -> None:
        """Leave when the core is gone for good: nobody else would end a worker whose core was killed."""
        heard_s = time.monotonic()
        while time.monotonic() - heard_s < CORE_AWAY_S:
            await asyncio.sleep(0.5)
            if self.link.is_live:
                heard_s = time.monotonic()
        log.error("the core is away for too long", number=self.options.number, seconds=CORE_AWAY_S)
        self.leave()

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self.link.tell(self.stream.counts() | process_counts(self.guard))


def _own(limits: HttpLimits) -> HttpLimits:
    """As many connections as all workers may have, but no more than this process has descriptors for."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(limits.connections_max, max(1, descriptors - DESCRIPTORS_KEPT))
    return structs.replace(
        limits, connections_max=most, connections_per_address_max=min(most, limits.connections_per_address_max)
    )


@web.middleware
async def refusals(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """For workers that serve nothing but the stream: errors in the shape of all others."""
    try:
        return await handler(request)
    except NodeError as error:
        headers = dict(error.headers)
        if error.retry_after_s:
            headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
        body = msgspec.json.encode(error_body(error))
        return web.Response(body=body, status=error.status, headers=headers, content_type="application/json")


def main() -> None:
    """Exit 0: drained. Exit 2: the options can't be read."""
    try:
        options = WorkerOptions.parse(sys.argv[1] if len(sys.argv) == 2 else "")
    except (msgspec.MsgspecError, ValueError) as error:
        sys.stderr.write(f"a worker is started by its gateway: {error}\n")
        sys.exit(2)
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(Worker(options).run())


if __name__ == "__main__":
    main()
