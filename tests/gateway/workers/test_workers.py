"""Worker processes: what clients of theirs get, and what happens when a worker or the core goes away."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from gateway.fanout.hub import Hub
from gateway.fanout.source import LocalSource
from gateway.stream.admission import Admission, StreamLimits
from gateway.stream.places import Caps, Places
from gateway.tasks import end
from gateway.workers import core as core_module
from gateway.workers.core import Core
from gateway.workers.link import CoreLink, QuestionFailed
from gateway.workers.supervisor import Supervisor
from gateway.workers.worker import WorkerOptions
from node.errors import NotReady
from node.guard import HttpLimits
from tests.gateway.feeding import until
from tests.gateway.stream.serving import PUBLIC, Client, Serving, free_socket


class Cored(Serving):
    """The core of a gateway, with a socket for its workers. Nothing listens in this process."""

    def __init__(
        self, folder: Path, *, run: str = "", limits: StreamLimits | None = None, http: HttpLimits | None = None
    ) -> None:
        super().__init__()
        limits = limits or StreamLimits()
        source = self.server.source
        assert isinstance(source, LocalSource)
        self.core = Core(
            folder / "core.sock",
            self.hub,
            source,
            run=run,
            places=Places(Caps(limits, http)),
            admission=Admission(limits),
        )

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
    folder: Path,
    count: int,
    *,
    run: str = "",
    drain_ms: int = 200,
    limits: StreamLimits | None = None,
    http: HttpLimits | None = None,
) -> AsyncIterator[tuple[Supervisor, int]]:
    """Worker processes on a port of their own."""
    with free_socket() as sock:
        port = sock.getsockname()[1]

    def command(number: int) -> list[str]:
        options = WorkerOptions(
            number=number, core=str(folder / "core.sock"), run=run, hosts=["127.0.0.1"], port=port,
            public_keys=[PUBLIC.decode()], drain_ms=drain_ms,
            limits=limits or StreamLimits(), http=http or HttpLimits(), share=count,
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


async def test_a_killed_worker_is_replaced_and_its_clients_miss_nothing(tmp_path: Path) -> None:
    async with Cored(tmp_path).fanning() as core, working(tmp_path, 1) as (supervisor, port):
        client = await connected(port)
        await client.subscribe("trades", "AAPL")
        core.append("trades", "AAPL", 0)
        data = await client.until("data")
        assert data["updates"][0]["value"] == 0
        pid = supervisor.pids[0]
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ConnectionError):
            while True:
                await client.message()
        client.close()
        for number in range(1, 20):
            core.append("trades", "AAPL", number)
        again = await connected(port)
        answer = await again.subscribe("trades", "AAPL", after=f"{core.rings.epoch}.{data['seq']}")
        assert answer["recovered"], "the past is the core's, not the worker's"
        found: list[Any] = []
        while len(found) < 19:
            found += await again.updates()
        assert [one["value"] for one in found] == list(range(1, 20))
        assert supervisor.pids[0] != pid
        assert supervisor.restarts == 1
        again.close()


async def test_a_worker_that_hangs_is_dropped_and_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_module, "STUCK_S", 0.5)
    monkeypatch.setattr(core_module, "WATERMARK_BYTES", 100_000)
    async with Cored(tmp_path).fanning() as core, working(tmp_path, 1) as (supervisor, port):
        core.core._on_drop = supervisor.kill
        client = await connected(port)
        await client.subscribe("trades", "AAPL")
        pid = supervisor.pids[0]
        os.kill(pid, signal.SIGSTOP)
        async with asyncio.timeout(20):
            while not core.core.counters["dropped"]:
                core.append("trades", "AAPL", "x" * 50_000)
                await asyncio.sleep(0.01)
        await until(lambda: supervisor.pids.get(0, pid) != pid and len(core.core.workers) == 1, within_s=15)
        client.close()


async def test_sigterm_drains_a_worker(tmp_path: Path) -> None:
    async with Cored(tmp_path).fanning(), working(tmp_path, 1, drain_ms=300) as (supervisor, port):
        client = await connected(port)
        await client.subscribe("trades", "AAPL")
        stopping = asyncio.create_task(supervisor.stop(timeout_s=5.0))
        assert (await client.until("closing"))["reason"] == "draining"
        with pytest.raises(ConnectionError, match="1012"):
            await client.message()
        await stopping
        assert not supervisor.pids
        client.close()


async def test_a_worker_whose_core_does_not_come_back_sends_its_clients_away_and_ends(tmp_path: Path) -> None:
    async with working(tmp_path, 1, drain_ms=100) as (supervisor, port):
        async with Cored(tmp_path).fanning() as core:
            client = await connected(port)
            await client.subscribe("trades", "AAPL")
            pid = supervisor.pids[0]
            core.append("trades", "AAPL", 0)
            assert (await client.updates())[0]["value"] == 0
        assert (await client.until("closing"))["reason"] == "draining"
        await until(lambda: supervisor.restarts == 1, within_s=15)
        assert supervisor.pids.get(0) != pid
        client.close()


async def test_a_worker_without_its_core_serves_what_it_has_and_says_how_old_it_is(tmp_path: Path) -> None:
    hub = Hub(0)
    core = Cored(tmp_path)
    link = CoreLink(hub, tmp_path / "core.sock")
    serving = Serving(source=link, hub=hub, limits=StreamLimits(heartbeat_s=0.5))
    link.on_lost_past = serving.server.lost_past
    running = asyncio.create_task(link.run())
    try:
        async with serving.running():
            async with core.fanning():
                await until(lambda: link.is_live)
                core.publish("nbbo", "AAPL", 1)
                client = await serving.client()
                await client.subscribe("nbbo", "AAPL")
                await client.subscribe("trades", "AAPL")
                assert client.kept[-1]["updates"][0]["value"] == 1
            await until(lambda: not link.is_live)
            late = await serving.client()
            assert (await late.subscribe("nbbo", "AAPL"))["stream"] == "subscribed"
            assert (await late.updates())[0]["value"] == 1
            found = await late.subscribe("nbbo", "MSFT")
            assert (found["error"], "away" in found["message"]) == ("not_ready", True)
            ages: list[int] = []
            source = ""
            while not source or len(ages) < 2:
                _, payload = await late.frame()
                if b'"stream":"status"' in payload:
                    source = payload.decode().split('"source":"')[1].split('"')[0]
                if b'"heartbeat"' in payload:
                    ages.append(int(payload.decode().split('"age_ms":')[1].split("}")[0]))
            assert source == "lost" and ages[-1] > ages[0] > 0
            # The same core again (its socket was gone for a while): what was missed comes, in order.
            for number in range(5):
                core.append("trades", "AAPL", number)
            core.publish("nbbo", "AAPL", 2)
            async with core.fanning():
                await until(lambda: link.is_live)
                core.append("trades", "AAPL", 5)
                found = [one for data in client.kept for one in data.get("updates", []) if one["channel"] == "trades"]
                values: list[Any] = []
                while len(values) < 6:
                    values += [one["value"] for one in await client.updates() if one["channel"] == "trades"]
                assert values == list(range(6))
            # Another core: a history of its own.
            other = Cored(tmp_path)
            async with other.fanning():
                gap = await client.until("gap")
                assert gap["channels"] == ["trades"] and gap["position"] == f"{other.rings.epoch}.0"
                other.append("trades", "AAPL", 77)
                assert [one["value"] for one in await client.updates()] == [77]
    finally:
        await end(running)


async def test_questions_are_answered_by_the_core_or_say_why_not(tmp_path: Path) -> None:
    core = Cored(tmp_path)

    async def double(body: bytes) -> bytes:
        return body * 2

    async def refuse(body: bytes) -> bytes:
        raise LookupError("there is no such account")

    async def fail(body: bytes) -> bytes:
        raise RuntimeError("secret detail")

    async def hang(body: bytes) -> bytes:
        await asyncio.sleep(60)
        return b""

    core.core.handlers |= {"double": double, "refuse": refuse, "fail": fail, "hang": hang}
    link = CoreLink(Hub(0), tmp_path / "core.sock")
    running = asyncio.create_task(link.run())
    try:
        with pytest.raises(NotReady):
            await link.ask("double", b"x")
        async with core.fanning():
            await until(lambda: link.is_live)
            answers = await asyncio.gather(*(link.ask("double", str(number).encode()) for number in range(100)))
            assert answers == [str(number).encode() * 2 for number in range(100)]
            with pytest.raises(QuestionFailed, match="no such account"):
                await link.ask("refuse", b"")
            with pytest.raises(QuestionFailed, match="internal"):
                await link.ask("fail", b"")
            with pytest.raises(QuestionFailed, match="no question"):
                await link.ask("unknown", b"")
            with pytest.raises(NotReady, match="within"):
                await link.ask("hang", b"", timeout_s=0.1)
            asking = asyncio.create_task(link.ask("hang", b"", timeout_s=10.0))
            await asyncio.sleep(0.05)
        with pytest.raises(NotReady, match="went away"):
            await asking
    finally:
        await end(running)


async def test_a_worker_of_another_run_is_told_to_leave(tmp_path: Path) -> None:
    link = CoreLink(Hub(0), tmp_path / "core.sock", run="old")
    told = asyncio.Event()
    link.on_leave = told.set
    running = asyncio.create_task(link.run())
    try:
        async with Cored(tmp_path, run="new").fanning() as core:
            await asyncio.wait_for(told.wait(), 5)
            assert not core.core.workers
            assert not link.is_live
    finally:
        await end(running)


async def test_garbage_on_the_socket_of_the_workers_drops_who_sends_it(tmp_path: Path) -> None:
    async with Cored(tmp_path).fanning() as core:
        for garbage in (b"\xff\xff\xff\xff", b"\x00\x00\x00\x03abc", b"\x00\x00\x00\x02\x92\x04\x90"):
            reader, writer = await asyncio.open_unix_connection(str(core.core.path))
            writer.write(garbage)
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
        assert (core.core.path.stat().st_mode & 0o777) == 0o600
