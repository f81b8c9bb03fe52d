"""Distance between the sites of a local cluster: a process that holds back what members of different sites say.

Each link between two sites goes through it (`[dial]` in the file of the member that dials), and every byte waits for
half of a round trip, in order, however many are on their way: a longer line, not a narrower one. For tests and
benchmarks on one machine. Clients' connections to members are not delayed.

It is a process of its own, so that its timers do not wait for anybody's garbage: `python -m cluster.distance` reads
Routes on stdin, says on stdout where it listens, and ends when its stdin does.
"""

import asyncio
import os
import random
import selectors
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import msgspec
from msgspec import Struct

from cluster.folder import ClusterFolder

PORTS = range(10_000, 32_000)
"""Below the range from which the system takes ports for outgoing connections."""
TRIES = 200
WAITING_BYTES_MAX = 4 * 1024 * 1024
"""Written and not taken by the other side; beyond it this side is not read."""
EARLY_S = 0.000_05


class Route(Struct, frozen=True):
    """One dialed link. dialer and target: members; the target's peer address."""

    dialer: str
    target: str
    host: str
    port: int


class Routes(Struct, frozen=True):
    """one_way_ms: how long each byte is held back."""

    one_way_ms: float
    routes: list[Route]


class DistanceError(Exception):
    """The process that holds back did not start. The message says why."""


@contextmanager
def distance(folder: ClusterFolder, round_trip_ms: float) -> Iterator[int]:
    """Put the sites so far apart, and yield the pid of what does it. To be entered before members start.

    The members' files are changed for good: without this, links between sites are down. Raises DistanceError.
    """
    routes = routes_of(folder)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "cluster.distance"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        to, answers = process.stdin, process.stdout
        if to is None or answers is None:
            raise DistanceError("no pipes to the process that holds back")
        to.write(msgspec.json.encode(Routes(round_trip_ms / 2, routes)) + b"\n")
        to.flush()
        said = answers.readline()
        if not said:
            raise DistanceError(f"the process that holds back ended with exit code {process.wait()}")
        _write_dials(folder, routes, msgspec.json.decode(said, type=list[int]))
        yield process.pid
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def routes_of(folder: ClusterFolder) -> list[Route]:
    """Links between members of different sites, each from the member that dials: the one whose name sorts later."""
    members = sorted(folder.topology().members, key=lambda member: member.name)
    return [
        Route(dialer.name, target.name, target.peer_host, target.peer_port)
        for at, dialer in enumerate(members)
        for target in members[:at]
        if dialer.site != target.site
    ]


def _write_dials(folder: ClusterFolder, routes: list[Route], ports: list[int]) -> None:
    for dialer in dict.fromkeys(route.dialer for route in routes):
        dials = [
            f'{route.target} = "127.0.0.1:{port}"'
            for route, port in zip(routes, ports, strict=True)
            if route.dialer == dialer
        ]
        path = folder.config(dialer)
        path.write_text(path.read_text("utf-8") + "\n".join(("\n[dial]", *dials)) + "\n", "utf-8")


# ---- the process ----


class End(asyncio.Protocol):
    """One end of a link: what comes in here leaves at the other end, later."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._transport: asyncio.Transport | None = None
        self._line: deque[tuple[float, bytes | None]] = deque()
        """What is on its way to the other end, with when it arrives; None: the end."""
        self._timer: asyncio.TimerHandle | None = None
        self.other: End | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WAITING_BYTES_MAX)
        if self.other is None:
            self._transport.pause_reading()

    def join(self, other: "End") -> None:
        """Both ends are connected: let it flow."""
        self.other, other.other = other, self
        if self._transport is not None:
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        self._send(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._send(None)

    def pause_writing(self) -> None:
        if self.other is not None and self.other._transport is not None:
            self.other._transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other._transport is not None:
            self.other._transport.resume_reading()

    def _send(self, data: bytes | None) -> None:
        loop = asyncio.get_running_loop()
        self._line.append((loop.time() + self._delay_s, data))
        if self._timer is None:
            self._timer = loop.call_at(self._line[0][0], self._arrive)

    def _arrive(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time() + EARLY_S
        while self._line and self._line[0][0] <= now:
            _, data = self._line.popleft()
            if self.other is not None:
                self.other.take(data)
        self._timer = loop.call_at(self._line[0][0], self._arrive) if self._line else None

    def take(self, data: bytes | None) -> None:
        """Hand it to who is connected here. None: the other side is gone."""
        if self._transport is None:
            return
        if data is None:
            self._transport.close()
        else:
            self._transport.write(data)


class Line:
    """Takes connections for one route and joins each with one to its target."""

    def __init__(self, route: Route, delay_s: float) -> None:
        self._route = route
        self._delay_s = delay_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def close(self) -> None:
        """Take no more connections."""
        if self._server is not None:
            self._server.close()

    async def listen(self) -> int:
        """Raises OSError: no port is free."""
        draws = random.Random(f"{os.getpid()} {self._route.dialer} {self._route.target}")
        for _ in range(TRIES):
            port = draws.choice(PORTS)
            # The protocol must be named: asyncio asks for no delay by Nagle only where it reads TCP.
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                listener.close()
                continue
            self._server = await asyncio.get_running_loop().create_server(self._taken, sock=listener)
            return port
        raise OSError("no free port on 127.0.0.1")

    def _taken(self) -> End:
        end = End(self._delay_s)
        task = asyncio.get_running_loop().create_task(self._dial(end))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return end

    async def _dial(self, end: End) -> None:
        try:
            _, other = await asyncio.get_running_loop().create_connection(
                lambda: End(self._delay_s), self._route.host, self._route.port
            )
        except OSError:
            end.take(None)
            return
        end.join(other)
        other.join(end)


async def hold_back(routes: Routes) -> None:
    """Listen for each route, say where, and go on until stdin ends."""
    ports = [await Line(route, routes.one_way_ms / 1e3).listen() for route in routes.routes]
    sys.stdout.buffer.write(msgspec.json.encode(ports) + b"\n")
    sys.stdout.buffer.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)


def main() -> None:
    routes = msgspec.json.decode(sys.stdin.buffer.readline(), type=Routes)
    # epoll counts in whole milliseconds, select in microseconds; there are few sockets here.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(hold_back(routes))


if __name__ == "__main__":
    main()
