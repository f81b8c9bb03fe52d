"""Links that are cut pass nothing and end nothing; healed, what waited arrives, and who left is told."""

import socket
import socketserver
import threading
import time
from pathlib import Path

import pytest

from bench.running import RunError, free_base_port
from bench.timeline.links import HOST, Link, Links
from cluster import folder as cluster_folder
from cluster.folder import ClusterFolder

WAIT_S = 5.0
CUT_S = 0.3


@pytest.fixture
def folder(tmp_path: Path) -> ClusterFolder:
    cluster_folder.create(tmp_path / "cluster", shape="1+1+1", base_port=free_base_port(3))
    return ClusterFolder(tmp_path / "cluster")


class Echo:
    """Where a member would listen: says back what it hears."""

    def __init__(self, port: int) -> None:
        self.taken = self.lost = 0
        echo = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                echo.taken += 1
                while data := self.request.recv(1_024):
                    self.request.sendall(data)
                echo.lost += 1

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True  # a test that fails while a link is cut would wait for them for ever
            block_on_close = False

        self._server = Server((HOST, port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> "Echo":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def said_back(sock: socket.socket, wait_s: float) -> bytes:
    sock.settimeout(wait_s)
    try:
        return sock.recv(1_024)
    except TimeoutError:
        return b"nothing"


def through(links: Links, one: str, other: str) -> Link:
    return next(link for link in links.links if {link.dialer, link.target} == {one, other})


def test_every_link_leads_through_a_relay(folder: ClusterFolder) -> None:
    with Links() as links:
        links.prepare(folder)
        names = sorted(member.name for member in folder.topology().members)
        assert [(link.dialer, link.target) for link in links.links] == [
            (dialer, target) for dialer in names for target in names if target < dialer
        ]
        for link in links.links:
            assert f'{link.target} = "{HOST}:{link.port}"' in folder.config(link.dialer).read_text("utf-8")


def test_a_cut_link_passes_nothing_until_it_is_healed(folder: ClusterFolder) -> None:
    with Links() as links:
        links.prepare(folder)
        link = through(links, "dc-a", "dc-b")
        with Echo(link.target_port) as echo, socket.create_connection((HOST, link.port)) as early:
            early.sendall(b"whole")
            assert said_back(early, WAIT_S) == b"whole"
            links.cut(["dc-a"])
            early.sendall(b"cut")
            assert said_back(early, CUT_S) == b"nothing"
            with socket.create_connection((HOST, link.port)) as late:
                late.sendall(b"late")
                assert said_back(late, CUT_S) == b"nothing"
                assert echo.taken == 1
                links.heal()
                assert said_back(early, WAIT_S) == b"cut"
                assert said_back(late, WAIT_S) == b"late"


def test_other_links_go_on(folder: ClusterFolder) -> None:
    with Links() as links:
        links.prepare(folder)
        link = through(links, "dc-b", "tiebreaker")
        with Echo(link.target_port), socket.create_connection((HOST, link.port)) as sock:
            links.cut(["dc-a"])
            sock.sendall(b"whole")
            assert said_back(sock, WAIT_S) == b"whole"


def test_who_left_during_a_cut_is_missed_after_it(folder: ClusterFolder) -> None:
    with Links() as links:
        links.prepare(folder)
        link = through(links, "dc-a", "dc-b")
        with Echo(link.target_port) as echo:
            with socket.create_connection((HOST, link.port)) as sock:
                sock.sendall(b"whole")
                assert said_back(sock, WAIT_S) == b"whole"
                links.cut(["dc-a"])
            time.sleep(CUT_S)
            assert echo.lost == 0
            links.heal()
            deadline = time.monotonic() + WAIT_S
            while not echo.lost:
                assert time.monotonic() < deadline, "the other end never heard of it"
                time.sleep(0.02)


def test_relays_that_can_not_listen_are_no_run(folder: ClusterFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    port = folder.topology().members[0].peer_port
    monkeypatch.setattr("bench.timeline.links.free_ports", lambda count: [port] * count)
    with Links() as links, pytest.raises(RunError, match="relays"):
        links.prepare(folder)
