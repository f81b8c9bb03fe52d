"""Worker processes: what clients of theirs get, and what happens when a worker or the core goes away."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gateway.fanout.source import LocalSource
from gateway.stream.admission import StreamLimits
from gateway.tasks import end
from gateway.workers.core import Core
from gateway.workers.supervisor import Supervisor
from gateway.workers.worker import WorkerOptions
from tests.gateway.feeding import until
from tests.gateway.stream.serving import PUBLIC, Client, Serving, free_socket


class Cored(Serving):
    """The core of a gateway, with a socket for its workers. Nothing listens in this process."""

    def __init__(self, folder: Path, *, run: str = "") -> None:
        super().__init__()
        source = self.server.source
        assert isinstance(source, LocalSource)
        self.core = Core(folder / "core.sock", self.hub, source, run=run)

    @asynccontextmanager
    async def fanning(self) -> AsyncIterator["Cored"]:
        sending = asyncio.create_task(self.hub.run())
        await self.core.start()
        try:
            yield self
        finally:
            await self.core.stop()
            await end(sending)


@asynccontextmanager
async def working(
    folder: Path, count: int, *, run: str = "", drain_ms: int = 200
) -> AsyncIterator[tuple[Supervisor, int]]:
    """Worker processes on a port of their own."""
    with free_socket() as sock:
        port = sock.getsockname()[1]

    def command(number: int) -> list[str]:
        options = WorkerOptions(
            number=number, core=str(folder / "core.sock"), run=run, hosts=["127.0.0.1"], port=port,
            public_keys=[PUBLIC.decode()], drain_ms=drain_ms, limits=StreamLimits(),
        )  # fmt: skip
        return [sys.executable, "-m", "gateway.workers.worker", options.text()]

    supervisor = Supervisor(command, count)
    supervisor.start()
    try:
        yield supervisor, port
    finally:
        await supervisor.stop(timeout_s=5.0)


async def connected(port: int, **options: Any) -> Client:
    """When the workers are up."""
    async with asyncio.timeout(15):
        while True:
            try:
                return await Client.connect(port, **options)
            except (ConnectionError, asyncio.IncompleteReadError, OSError):
                await asyncio.sleep(0.1)


async def test_clients_of_workers_get_what_the_core_publishes(tmp_path: Path) -> None:
    async with Cored(tmp_path).fanning() as core, working(tmp_path, 2) as (supervisor, port):
        core.publish("nbbo", "AAPL", 0)
        await until(lambda: len(core.core.workers) == 2, within_s=15)
        clients = [await connected(port) for _ in range(8)]
        packed = await connected(port, protocol="tiebreak.msgpack")
        for client in clients:
            assert (await client.subscribe("nbbo", "AAPL", "NOPE"))["refused"][0]["symbol"] == "NOPE"
            assert (await client.updates())[0]["value"] == 0
            assert (await client.subscribe("trades", "AAPL"))["stream"] == "subscribed"
        packed.send("subscribe", channel="nbbo", symbols=["AAPL"])
        await packed.until("subscribed")
        assert await packed.updates() == [[2, "AAPL", 0]]
        core.publish("nbbo", "AAPL", 1)
        for number in range(50):
            core.append("trades", "AAPL", number)
        for client in clients:
            found: list[Any] = []
            while len(found) < 51:
                found += await client.updates()
            assert [one["value"] for one in found if one["channel"] == "trades"] == list(range(50))
            assert [one["value"] for one in found if one["channel"] == "nbbo"] == [1]
        assert await packed.updates() == [[2, "AAPL", 1]]
        for client in (*clients, packed):
            client.close()
        await until(lambda: not core.hub.topics)
        assert len(supervisor.pids) == 2
