"""Fan-out beside NATS: what it sends is counted right, and the rows of who is there come without who is not."""

import socket
from pathlib import Path

import msgspec
import pytest

from bench import fanout_case
from bench.fanout_case import quote_of
from bench.fanout_load import LoadOptions
from bench.peers import fanout, fanout_nats, peer
from bench.peers.fanout import NATS, OURS, Turn
from bench.peers.fanout_nats_load import NatsLoader
from bench.peers.peer import PeerFailed, PeerMissing
from bench.report import Report

installed = pytest.mark.skipif(
    peer.find("nats-server", [fanout_nats.BUILT]) is None, reason="no nats-server: make peers builds it with Go"
)
LOOPBACK = "127.0.0.1"


def small(folder: Path) -> Report:
    return fanout.fanout_peers(folder, sockets=40, workers=1, seconds=1.0, rounds=1)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout_case, "WARM_UP_S", 1.0)


def values(report: Report, ending: str) -> list[float]:
    return [figure.value for figure in report.figures if figure.name.endswith(ending)]


@installed
def test_both_deliver_the_same_to_as_many(short: None, tmp_path: Path) -> None:
    report = small(tmp_path)
    assert values(report, "sockets open at the end") == [40, 40, 40, 40]
    assert all(share > 60 for share in values(report, "of all that changed")), report.figures
    assert all(0 < late < 5_000 for late in values(report, "to the client, p99")), report.figures
    assert {curve.series for curve in report.curves if curve.kind == "bars"} == {OURS, NATS}
    assert "nats-server" in str(report.settings[NATS])


def test_who_is_not_installed_is_named_and_we_are_measured(
    short: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fanout_nats, "BUILT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    report = small(tmp_path)
    assert any("make peers" in note for note in report.notes)
    assert values(report, "sockets open at the end") == [40, 40]
    assert report.passed


@installed
def test_a_port_in_use_is_named_and_we_are_measured(
    short: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    free, taken = peer.free_ports(2)
    with socket.create_server((LOOPBACK, taken)):
        monkeypatch.setattr(fanout_nats, "free_ports", lambda count: [free, taken][:count])
        report = small(tmp_path)
    assert any("in use" in note for note in report.notes), report.notes
    assert values(report, "sockets open at the end") == [40, 40]


def test_a_program_that_is_named_must_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(fanout_nats.NAMED, str(tmp_path / "nowhere"))
    with pytest.raises(PeerMissing, match="nowhere"):
        fanout_nats.Nats(tmp_path / "nats")


@installed
def test_a_server_that_ends_is_no_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fanout_nats, "CONNECTIONS_MAX", "many")
    with pytest.raises(PeerFailed, match="exit code"), fanout_nats.Nats(tmp_path / "nats"):
        pass


def loader() -> NatsLoader:
    found = NatsLoader(LoadOptions(hosts=[], port=0, sockets=0, symbols=1, catalogue=1, token="", seed=1))
    found.measuring = True
    return found


def test_messages_are_counted_however_they_are_cut() -> None:
    payloads = [quote_of(loader().chance, f"S{number}", 1_000_000 + number).msgpack() for number in range(3)]
    said = b"".join(
        b"MSG S%d %d %d\r\n%s\r\n" % (at, at + 1, len(payload), payload) for at, payload in enumerate(payloads)
    )
    wire = b"\x82\x7e" + len(said).to_bytes(2, "big") + said + b"\x82\x06PING\r\n"
    for size in (1, 7, 100, 1_000):
        one = loader()
        for at in range(0, len(wire), size):
            one._frames(3, one.rest.pop(3, b"") + wire[at : at + size])
        assert (one.frames, one.updates, one.bytes, one.heard) == (1, 3, len(said), {3}), size
        assert len(one.latency_us) == 1


def test_a_frame_is_timed_by_its_first_update() -> None:
    one = loader()
    payload = quote_of(one.chance, "S7", 1_000_000).msgpack()
    assert msgspec.msgpack.decode(payload)[1][7] == 1_000_000
    said = b"MSG S7 1 %d\r\n%s\r\n" % (len(payload), payload)
    one.count(3, said, 0, len(said), 1_004_000)
    assert list(one.latency_us) == [4_000]


def turn(who: str, share: float, per_core_s: float) -> Turn:
    return Turn(who, 10, 1, 100.0, share, per_core_s, 1, 1, 1, 1, 1, 1, 10, 0.0, [1.0] * 101)


@pytest.mark.parametrize(
    ("ours", "theirs", "share", "said"),
    [(200.0, 100.0, 95.0, [(2.0, True)]), (90.0, 100.0, 95.0, [(0.9, False)]), (200.0, 100.0, 80.0, [])],
)
def test_a_ratio_is_of_those_who_kept_up(
    ours: float, theirs: float, share: float, said: list[tuple[float, bool]]
) -> None:
    found = fanout.figures([turn(OURS, 99.0, ours), turn(NATS, share, theirs)])
    assert [(figure.value, figure.passed) for figure in found if figure.passed is not None] == said
