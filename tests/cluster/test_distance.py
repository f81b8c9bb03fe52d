"""Distance between sites: measured from both sides, in order, whole, and gone with who asked for it."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from cluster import folder as cluster_folder
from cluster.distance import End, Line, Route, Routes, distance, routes_of
from cluster.folder import ClusterFolder


@contextmanager
def line(one_way_ms: float, target: int) -> Iterator[int]:
    """A process that holds back; yields the port that leads to `target`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster.distance"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        routes = Routes(one_way_ms, [Route("b", "a", "127.0.0.1", target)])
        process.stdin.write(msgspec.json.encode(routes) + b"\n")
        process.stdin.flush()
        (port,) = msgspec.json.decode(process.stdout.readline(), type=list[int])
        yield port
        process.stdin.close()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@contextmanager
def echo() -> Iterator[int]:
    """A server that says what it hears, to one client."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            taken, _ = server.accept()
            taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with taken:
                while data := taken.recv(65_536):
                    taken.sendall(data)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("round_trip_ms", [10, 40])
def test_a_round_trip_takes_what_was_asked_for(round_trip_ms: int) -> None:
    times_ms: list[float] = []
    with echo() as server, line(round_trip_ms / 2, server) as port, socket.create_connection(("127.0.0.1", port)) as it:
        it.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(30):
            began = time.monotonic()
            it.sendall(b"ping")
            assert it.recv(16) == b"ping"
            times_ms.append((time.monotonic() - began) * 1e3)
    times_ms.sort()
    assert times_ms[0] >= round_trip_ms - 0.2
    # On a busy machine any single one may be late; not all of them.
    assert times_ms[len(times_ms) // 4] <= round_trip_ms + 5


def test_small_messages_do_not_wait_for_each_others_acknowledgement(monkeypatch: pytest.MonkeyPatch) -> None:
    """With Nagle's algorithm on, a message waits until the one before was acknowledged, which takes up to 40 ms."""
    no_delay: list[int] = []
    made = End.connection_made

    def noted(end: End, transport: asyncio.BaseTransport) -> None:
        taken = transport.get_extra_info("socket")
        no_delay.append(taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        made(end, transport)

    monkeypatch.setattr(End, "connection_made", noted)

    async def main(target: int) -> None:
        line = Line(Route("b", "a", "127.0.0.1", target), 0.001)
        port = await line.listen()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        writer.close()
        await writer.wait_closed()
        line.close()
        await asyncio.sleep(0.05)

    with echo() as target:
        asyncio.run(main(target))
    assert no_delay == [1, 1]


def test_much_at_once_comes_in_order_and_waits_once() -> None:
    """Two seconds' worth of round trips, were they one after the other, arrive together."""
    sent = [os.urandom(1_000) for _ in range(50)]
    with echo() as server, line(20, server) as port, socket.create_connection(("127.0.0.1", port)) as it:
        it.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began = time.monotonic()
        for part in sent:
            it.sendall(part)
        heard = b""
        while len(heard) < 50_000:
            heard += it.recv(65_536)
        took_s = time.monotonic() - began
    assert heard == b"".join(sent)
    assert 0.04 <= took_s < 1.0


def test_who_is_gone_is_gone_on_the_other_side_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, line(5, server.getsockname()[1]) as port:
        it = socket.create_connection(("127.0.0.1", port))
        taken, _ = server.accept()
        taken.settimeout(10)
        with taken:
            it.sendall(b"last words")
            it.close()
            heard = b""
            while data := taken.recv(64):
                heard += data
        assert heard == b"last words"


def test_nobody_at_home_ends_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    with line(1, closed) as port, socket.create_connection(("127.0.0.1", port), timeout=10) as it:
        assert it.recv(1) == b""


def test_only_links_between_sites_are_longer(tmp_path: Path) -> None:
    cluster_folder.create(tmp_path / "cluster", shape="2+2+1", base_port=7_700)
    folder = ClusterFolder(tmp_path / "cluster")
    pairs = {(route.dialer, route.target) for route in routes_of(folder)}
    assert pairs == {
        ("dc-b-1", "dc-a-1"),
        ("dc-b-1", "dc-a-2"),
        ("dc-b-2", "dc-a-1"),
        ("dc-b-2", "dc-a-2"),
        ("tiebreaker", "dc-a-1"),
        ("tiebreaker", "dc-a-2"),
        ("tiebreaker", "dc-b-1"),
        ("tiebreaker", "dc-b-2"),
    }
    with distance(folder, 10):
        assert "[dial]\n" not in folder.config("dc-a-1").read_text().replace("# [dial]", "")
        dialed = folder.config("dc-b-1").read_text().partition("\n[dial]\n")[2].splitlines()
        assert [one.split(" = ")[0] for one in dialed] == ["dc-a-1", "dc-a-2"]
        for one in dialed:
            host, _, port = one.split('"')[1].partition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
