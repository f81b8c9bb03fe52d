"""A real Redis Cluster on loopback: several servers, each with its share of the slots, that can be moved and killed."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError

from gateway.cache.client import CacheClient, connect
from gateway.cache.server import find_server
from tests.node.fakes import free_ports

SLOTS = 16_384
SERVES_THE_REST = ("--cluster-require-full-coverage", "no")


class Server:
    """One node. options: of valkey-server, as pairs."""

    def __init__(self, folder: Path, port: int, bus_port: int, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port, self.bus_port, self.options = folder, port, bus_port, options
        self.name = f"127.0.0.1:{port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.client: Any = Redis(host="127.0.0.1", port=port, socket_timeout=2.0)
        self.node_id = ""

    def start(self) -> None:
        words = (
            "--bind", "127.0.0.1", "--port", str(self.port), "--cluster-enabled", "yes",
            "--cluster-port", str(self.bus_port), "--cluster-node-timeout", "1000", "--dir", str(self.folder),
            "--save", "", "--appendonly", "no", *self.options,
        )  # fmt: skip
        output = (self.folder / "server.log").open("wb")
        with output:
            self.process = subprocess.Popen([str(find_server()), *words], stdout=output, stderr=output)

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    async def ask(self, *words: str | int) -> Any:
        return await self.client.execute_command(*words)


class Cluster:
    """servers: each has an equal share of the slots, in order, but those past `shared`, which have none."""

    def __init__(self, servers: list[Server], shared: int) -> None:
        self.servers = servers
        self.shared = shared

    @property
    def url(self) -> str:
        return f"redis://{self.servers[0].name}"

    @property
    def urls(self) -> str:
        return "redis://" + ",".join(server.name for server in self.servers)

    async def start(self) -> None:
        """Start all of them blank: none knows another, or has a slot, before `join`."""
        for server in self.servers:
            (server.folder / "nodes.conf").unlink(missing_ok=True)
            server.start()
        for server in self.servers:
            await answers(server)
            server.node_id = (await server.ask("CLUSTER", "MYID")).decode()

    async def join(self) -> None:
        """Make one cluster of them."""
        for number, server in enumerate(self.servers[: self.shared]):
            begin, end = SLOTS * number // self.shared, SLOTS * (number + 1) // self.shared
            await server.ask("CLUSTER", "ADDSLOTSRANGE", begin, end - 1)
            await server.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for server in self.servers[1:]:
            await self.servers[0].ask("CLUSTER", "MEET", "127.0.0.1", server.port, server.bus_port)
        await self.is_whole()

    async def is_whole(self) -> None:
        """Wait until all nodes say that they know all nodes and that every slot is served."""
        async with asyncio.timeout(20):
            for server in self.servers:
                while True:
                    with suppress(RedisError, OSError):
                        info = (await server.ask("CLUSTER", "INFO")).decode().split()
                        if {"cluster_state:ok", f"cluster_known_nodes:{len(self.servers)}"} <= set(info):
                            break
                    await asyncio.sleep(0.05)

    def owner_of(self, key: str) -> Server:
        return self.servers[key_slot(key.encode()) * self.shared // SLOTS]

    async def begin_to_move(self, key: str, target: Server) -> Server:
        """The slot of this key is on its way from now on; gives who had it."""
        slot, source = key_slot(key.encode()), self.owner_of(key)
        await target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.node_id)
        await source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.node_id)
        return source

    async def move_keys(self, key: str, source: Server, target: Server, most: int = 1_000) -> int:
        """Move up to so many keys of the slot; says how many went."""
        keys = await source.ask("CLUSTER", "GETKEYSINSLOT", key_slot(key.encode()), most)
        if keys:
            await source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5_000, "KEYS", *keys)
        return len(keys)

    async def finish_move(self, key: str, target: Server) -> None:
        for server in [target, *(one for one in self.servers if one is not target)]:
            with suppress(RedisError, OSError):
                await server.ask("CLUSTER", "SETSLOT", key_slot(key.encode()), "NODE", target.node_id)


async def answers(server: Server) -> None:
    async with asyncio.timeout(10):
        while True:
            with suppress(RedisError, OSError):
                await server.ask("PING")
                return
            assert server.process is not None
            assert server.process.poll() is None, (server.folder / "server.log").read_text()
            await asyncio.sleep(0.02)


def named(servers: list[Server], prefix: str) -> Iterator[tuple[Server, str]]:
    """For each server a key that a cluster of these, each with an equal share, has there."""
    for number, server in enumerate(servers):
        place = 0
        while key_slot(f"{prefix}{place}".encode()) * len(servers) // SLOTS != number:
            place += 1
        yield server, f"{prefix}{place}"


@asynccontextmanager
async def cluster_of_servers(
    folder: Path,
    count: int = 3,
    *options: str,
    without_slots: int = 0,
    behind: Sequence[int] = (),
    joined: bool = True,
) -> AsyncIterator[Cluster]:
    """behind: ports under which the nodes name each other to clients: something there leads to them.

    joined: False: nobody made a cluster of them yet.
    """
    ports = free_ports(2 * (count + without_slots))
    servers = [
        Server(folder / f"node-{number}", ports[2 * number], ports[2 * number + 1], *options)
        for number in range(count + without_slots)
    ]
    for server, port in zip(servers, behind, strict=False):
        server.options += ("--cluster-announce-port", str(port))
    try:
        cluster = Cluster(servers, count)
        await cluster.start()
        if joined:
            await cluster.join()
        yield cluster
    finally:
        for server in servers:
            with suppress(ProcessLookupError):
                server.signal(signal.SIGCONT)
            server.kill()
            await server.client.aclose()


@asynccontextmanager
async def client_of(address: str) -> AsyncIterator[CacheClient]:
    client = connect(address)
    try:
        yield client
    finally:
        await client.aclose()


def users_of(cluster: Cluster) -> list[tuple[str, Server]]:
    return [(key[len("{tb:test:rate:") : -1], server) for server, key in _tags(cluster)]


def _tags(cluster: Cluster) -> list[tuple[Server, str]]:
    found: dict[Server, str] = {}
    number = 0
    while len(found) < cluster.shared:
        tag = f"{{tb:test:rate:user-{number}}}"
        found.setdefault(cluster.owner_of(tag), tag)
        number += 1
    return list(found.items())
