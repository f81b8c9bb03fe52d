"""A server that echoes, and clients of it, with what each received and when: what faults are measured with."""

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import AsyncIterator

from chaos.net.links import Link, Network

HOST = "127.0.0.1"
WITHIN_S = 8.0
"""Generous: the machine may be busy. No test waits so long when all is well."""
AWHILE_S = 0.3
NAME = "dc-b->dc-a"


def free_port() -> int:
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise OSError("no port is free")


class Echo:
    """What one connection carried is told apart by its number, in the order of accepting."""

    def __init__(self, *, echoes: bool = True) -> None:
        self.port = free_port()
        self.got: list[bytearray] = []
        self.ended: list[bool] = []
        self.echoes = echoes
        self.reads = asyncio.Event()
        self.reads.set()
        self.arrivals: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        # A small window: what reads nothing is soon full.
        listener = socket.create_server((HOST, self.port))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        self._server = await asyncio.start_server(self._serve, sock=listener)

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    async def end(self) -> None:
        self.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
        number = len(self.got)
        self.got.append(bytearray())
        self.ended.append(False)
        self.writers.append(writer)
        try:
            while True:
                await self.reads.wait()
                data = await reader.read(65_536)
                if not data:
                    break
                self.got[number] += data
                self.arrivals.append(data)
                if self.echoes:
                    writer.write(data)
                    await writer.drain()
        except (OSError, asyncio.CancelledError):
            pass  # the library logs a handler that was cancelled
        finally:
            self.ended[number] = True
            writer.transport.abort()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def dial(cls, link: Link) -> "Client":
        async with asyncio.timeout(WITHIN_S):
            return cls(*await asyncio.open_connection(*link.listen))

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    async def hear(self, size: int) -> bytes:
        async with asyncio.timeout(WITHIN_S):
            return await self.reader.readexactly(size)

    async def talk(self, data: bytes) -> float:
        """Say it, hear it; how long it took, in seconds."""
        began = time.monotonic()
        self.say(data)
        assert await self.hear(len(data)) == data
        return time.monotonic() - began

    async def silent(self) -> bool:
        """Nothing comes for a while, not even an end."""
        try:
            async with asyncio.timeout(AWHILE_S):
                await self.reader.read(1)
        except TimeoutError:
            return True
        return False

    async def end(self) -> str:
        """How the connection ends: eof or reset. What still comes is passed over."""
        try:
            async with asyncio.timeout(WITHIN_S):
                while await self.reader.read(65_536):
                    pass
        except ConnectionResetError:
            return "reset"
        return "eof"

    def close(self) -> None:
        self.writer.transport.abort()


async def until(holds: object, what: str) -> None:
    """holds: called until it is true."""
    assert callable(holds)
    deadline = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


class Place:
    """A network with one link to an echo server."""

    def __init__(self, network: Network, echo: Echo, link: Link) -> None:
        self.network, self.echo, self.link = network, echo, link
        self.clients: list[Client] = []

    async def dial(self) -> Client:
        client = await Client.dial(self.link)
        self.clients.append(client)
        return client


@contextlib.asynccontextmanager
async def place(network: Network, *, echoes: bool = True) -> AsyncIterator[Place]:
    echo = Echo(echoes=echoes)
    await echo.start()
    link = Link(NAME, "peer", "dc-b", "dc-a", (HOST, free_port()), (HOST, echo.port))
    found = Place(network, echo, link)
    try:
        await network.open([link])
        yield found
    finally:
        for client in found.clients:
            client.close()
        await network.close()
        await echo.end()


@contextlib.asynccontextmanager
async def chatter(at: Place) -> AsyncIterator[None]:
    """Something passes both ways all the time."""
    client = await at.dial()

    async def talk() -> None:
        while True:
            await client.talk(b"chatter")

    talking = asyncio.create_task(talk())
    try:
        yield
    finally:
        talking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await talking
