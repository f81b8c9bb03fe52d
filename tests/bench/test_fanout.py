"""The fan-out's benchmarks, small: each figure is there, and every socket is counted."""

import json
from array import array

import pytest
from typer.testing import CliRunner

from bench import cli
from bench.fanout_load import Loader, LoadOptions, hundredths

run = CliRunner().invoke
SMALL = ["--sockets", "60", "--workers", "1", "--seconds", "1", "--json"]


@pytest.mark.parametrize(
    ("name", "open_"),
    [("gateway-fanout", "sockets open and receiving"), ("gateway-sockets", "sockets open at the end")],
)
def test_every_socket_is_served(name: str, open_: str) -> None:
    result = run(cli.app, ["run", name, *SMALL])
    (report,) = json.loads(result.stdout)
    figures = {figure["name"]: figure["value"] for figure in report["figures"]}
    assert figures[open_] == 60
    assert figures["delivered symbol updates a second"] > 60
    assert 0 < figures["from flush to client, p50"] <= figures["from flush to client, p99"]
    assert 0 <= figures["age added by conflation, p99"] < 5_000
    assert result.exit_code == (0 if report["passed"] else 1)


def test_frames_are_counted_however_they_are_cut() -> None:
    options = LoadOptions(hosts=[], port=0, sockets=0, symbols=1, catalogue=1, token="", seed=1)
    at, seq = (1).to_bytes(8, "big"), (2).to_bytes(8, "big")
    updates = b"".join(b"\x92\x02\x90" for _ in range(40))
    short = b"\x93\xcf" + at + b"\xcf" + seq + b"\x93" + updates[:9]
    long = b"\x93\xcf" + at + b"\xcf" + seq + b"\xdc\x00\x28" + updates
    heartbeat = b"\x81\xa6stream\xa9heartbeat"
    wire = b""
    for one in (short, heartbeat, long):
        wire += (bytes((0x82, len(one))) if len(one) < 126 else b"\x82\x7e" + len(one).to_bytes(2, "big")) + one
    for size in (1, 7, 50, 1_000):
        loader = Loader(options)
        loader.measuring = True
        for at_ in range(0, len(wire), size):
            loader._frames(3, loader.rest.pop(3, b"") + wire[at_ : at_ + size])
        assert (loader.frames, loader.updates, loader.heard) == (2, 43, {3}), size


def test_hundredths_are_percentiles() -> None:
    found = hundredths(array("q", range(1_000)))
    assert (found[0], found[50], found[99], found[100]) == (0, 500, 990, 999)
    assert hundredths(array("q")) == []
