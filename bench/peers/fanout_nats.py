"""NATS beside our fan-out: one server with WebSockets, and who publishes to it what our core gives to our workers.

Centrifugo would be the closer peer. NATS sends each update to each subscriber and conflates nothing; it knows who may
connect, and no more of what is in a message.
"""

import asyncio
import os
import random
import secrets
import subprocess
import time
from pathlib import Path

import msgspec

from bench.fanout_case import TICK_S, quote_of
from bench.peers.peer import Peer, PeerFailed, PeerMissing, Server, find, free_ports, wait

BUILT = Path(__file__).parents[2] / ".venv" / "peers"
NAMED = "TIEBREAK_NATS_SERVER"
HOW_TO_GET = f"nats-server is not installed; `make peers` builds it with Go, or name one in {NAMED}"
READY = "Server is ready"
CONNECTIONS_MAX = 200_000


class Nats(Peer):
    """A server on loopback. stream_port: of its WebSockets; port: of who publishes. Use it with `with`."""

    def __init__(self, folder: Path) -> None:
        """Raises PeerMissing."""
        named = os.environ.get(NAMED)
        server = Path(named) if named else find("nats-server", [BUILT])
        if server is None or not os.access(server, os.X_OK):
            raise PeerMissing(HOW_TO_GET if not named else f"{NAMED} names {named}, which is no program")
        super().__init__(folder)
        self._program = str(server)
        self.port, self.stream_port = free_ports(2)
        self.token = secrets.token_hex(16)

    @property
    def version(self) -> str:
        run = subprocess.run([self._program, "--version"], capture_output=True, text=True, check=True)
        return run.stdout.strip()

    @property
    def pids(self) -> list[int]:
        return [server.pid for server in self._servers]

    def start(self) -> None:
        self._folder.mkdir(parents=True)
        settings = self._folder / "server.conf"
        settings.write_text(
            f'listen: "127.0.0.1:{self.port}"\n'
            f"max_connections: {CONNECTIONS_MAX}\n"
            f'ping_interval: "1h"\n'  # the load answers none, to cost little
            f'authorization {{ token: "{self.token}" }}\n'
            f'websocket {{ listen: "127.0.0.1:{self.stream_port}", no_tls: true, compression: false }}\n',
            "utf-8",
        )
        self._servers.append(Server("nats-server", [self._program, "-c", str(settings)], self._folder / "log"))
        # Its own word: whoever else listens on a port would answer there as well.
        for _ in wait(self._servers, READY):
            if READY in self._servers[0].log.read_text("utf-8", "replace"):
                break


class Publishing:
    """Quotes of all symbols, each changed `per_s` times a second, in rounds as our core makes them."""

    def __init__(self, nats: Nats, catalogue: int, per_s: float) -> None:
        self._nats = nats
        self._names = [f"S{number}" for number in range(catalogue)]
        self._share = per_s * TICK_S
        self._chance = random.Random(1)
        self.published = 0

    async def run(self) -> None:
        """Until cancelled. Raises PeerFailed: the server turned it away."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._nats.port)
        try:
            await reader.readline()  # who it is
            who = msgspec.json.encode({"verbose": False, "pedantic": False, "auth_token": self._nats.token})
            writer.write(b"CONNECT " + who + b"\r\nPING\r\n")
            said = await reader.readline()
            if said != b"PONG\r\n":
                raise PeerFailed(f"nats-server turned the publisher away: {said!r}")
            answering = asyncio.create_task(_answer_pings(reader, writer))
            try:
                await self._rounds(writer)
            finally:
                answering.cancel()
        finally:
            writer.close()

    async def _rounds(self, writer: asyncio.StreamWriter) -> None:
        due_s = time.monotonic()
        while True:
            now_us = time.time_ns() // 1_000
            said: list[bytes] = []
            for name in self._names:
                if self._share >= 1 or self._chance.random() < self._share:
                    payload = quote_of(self._chance, name, now_us).msgpack()
                    said += (f"PUB {name} {len(payload)}\r\n".encode(), payload, b"\r\n")
                    self.published += 1
            writer.write(b"".join(said))
            await writer.drain()
            due_s = max(due_s + TICK_S, time.monotonic())
            await asyncio.sleep(due_s - time.monotonic())


async def _answer_pings(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        if line == b"PING\r\n":
            writer.write(b"PONG\r\n")
