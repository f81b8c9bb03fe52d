"""A fault that stands and does not bite is no fault: each network sees bytes that pass."""

import asyncio
import sys
from pathlib import Path

import pytest

from chaos.net import server
from chaos.net.links import Link, NotCut
from chaos.net.proxy import OwnNetwork
from chaos.net.toxiproxy import ToxiproxyNetwork
from chaos.net.traffic import Sent, Traffic
from tests.chaos.net.echo import HOST, NAME, chatter, free_port, place

needed = pytest.mark.skipif(bool(server.unavailable()), reason=server.unavailable() or "there")


@needed
def test_a_toxic_that_lets_bytes_pass_is_no_stall(tmp_path: Path) -> None:
    async def run() -> None:
        network = ToxiproxyNetwork(tmp_path)
        async with place(network) as at, chatter(at):
            with pytest.raises(NotCut, match=r"bytes to the target and .* bytes to the dialer"):
                await network._hold_back(NAME, "latency", {"latency": 0, "jitter": 0}, "both")

    asyncio.run(run())


def test_an_order_that_does_nothing_is_no_stall() -> None:
    async def run() -> None:
        network = OwnNetwork()
        async with place(network) as at, chatter(at):
            with pytest.raises(NotCut, match="bytes pass"):
                await network._hold_back("look", NAME, "to_dialer")

    asyncio.run(run())


BEFORE = Traffic({1: Sent(10, 0)}, {2: Sent(10, 5)})
CHANGES = [
    # after, way, what passed, who is stuck
    (Traffic({1: Sent(10, 0)}, {2: Sent(10, 5)}), "both", "", "its dialer reads nothing, 5 bytes wait"),
    (Traffic({1: Sent(12, 0)}, {2: Sent(10, 4)}), "both", "2 bytes to the target", ""),
    (Traffic({1: Sent(12, 0)}, {2: Sent(10, 4)}), "to_dialer", "", ""),
    (Traffic({1: Sent(12, 0)}, {2: Sent(13, 5)}), "to_dialer", "3 bytes to the dialer", ""),
    (Traffic({3: Sent(7, 0)}, {}), "to_target", "7 bytes to the target", ""),
    (Traffic({}, {}), "both", "", ""),
]


@pytest.mark.parametrize(("after", "way", "passed", "stuck"), CHANGES)
def test_what_passed_is_told_by_way(after: Traffic, way: str, passed: str, stuck: str) -> None:
    assert after.passed_since(BEFORE, way) == passed  # type: ignore[arg-type]
    assert after.stuck_since(BEFORE) == stuck


def test_without_its_packages_it_is_said_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "chaos.net.library", raising=False)
    monkeypatch.setitem(sys.modules, "requests", None)
    one = Link("a", "peer", "dc-b", "dc-a", (HOST, free_port()), (HOST, 1))
    with pytest.raises(NotCut, match="requests is not installed: make toxiproxy"):
        asyncio.run(ToxiproxyNetwork(tmp_path).open([one]))
