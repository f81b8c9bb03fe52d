"""What one peer or stranger may send in a second is bounded, and nothing is lost by that."""

import asyncio
import socket
from pathlib import Path

import pytest

from cluster.consensus.messages import Application
from cluster.consensus.rates import ADDRESSES_MAX, Bucket, Handshakes
from cluster.consensus.settings import Limits
from tests.cluster.engines import run, until
from tests.cluster.link_ends import Ends


@pytest.mark.parametrize(
    ("limits", "count", "size"),
    [
        (Limits(link_bytes_per_s=2_000_000), 400, 10_000),
        (Limits(link_frames_per_s=2_000), 6_000, 100),
    ],
)
def test_a_peer_that_sends_too_much_is_read_later(limits: Limits, count: int, size: int, tmp_path: Path) -> None:
    async def main() -> None:
        async with Ends(tmp_path, "a", "b", limits=limits) as ends:
            a, b = await ends.start("a", "b"), await ends.start("b", "a")
            await until(lambda: a.linked("b") and b.linked("a"))
            link = a.links.peers["b"].connection
            assert link is not None
            began = asyncio.get_running_loop().time()
            for number in range(count):
                assert b.links.send("a", Application("k", number.to_bytes(4, "big") + b"x" * (size - 4)))
            # Of twice or thrice a second's worth one second's is taken at once, and at the end a chunk of TLS's is.
            most = 0
            while len(a.news) <= count:
                most = max(most, len(link._buffer))
                assert asyncio.get_running_loop().time() - began < 20
                await asyncio.sleep(0.01)
            # The upper bound is loose: a machine that is busy with other things is no fault of the links.
            assert 0.7 < asyncio.get_running_loop().time() - began < 10
            got = [news[2] for news in a.news if len(news) == 3]
            assert [int.from_bytes(body[:4], "big") for body in got] == list(range(count))
            assert most < size + 100
            assert a.links.counters["reading_paused"] > 0
            assert b.links.counters["reading_paused"] == 0
            # It was heard all the while.
            assert a.news.count(("up", "b")) == 1
            assert a.linked("b")
            assert sum(end.links.counters["silent"] for end in ends.ends.values()) == 0

    run(main())


def test_a_large_frame_on_a_slow_link_is_not_taken_for_silence(tmp_path: Path) -> None:
    async def main() -> None:
        # Two and a half seconds for one frame; a link may be silent for one.
        async with Ends(tmp_path, "a", "b", limits=Limits(link_bytes_per_s=4_000_000)) as ends:
            a, b = await ends.start("a", "b"), await ends.start("b", "a")
            await until(lambda: a.linked("b") and b.linked("a"))
            assert b.links.send("a", Application("k", b"x" * 14_000_000))
            await until(lambda: len(a.news) == 2, within=8)
            assert a.news == [("up", "b"), ("got", "b", b"x" * 14_000_000)]
            assert a.linked("b")

    run(main())


def test_handshakes_per_second_are_bounded(tmp_path: Path) -> None:
    async def main() -> None:
        async with Ends(tmp_path, "a", "b", limits=Limits(handshakes_per_s=5)) as ends:
            a = await ends.start("a", "b")
            began = asyncio.get_running_loop().time()
            for _ in range(20):
                socket.create_connection(ends.addresses["a"]).close()
                await asyncio.sleep(0.005)
            counters = a.links.counters
            await until(lambda: counters["refused_rate"] + counters["refused_handshake"] == 20)
            took_s = asyncio.get_running_loop().time() - began
            assert counters["refused_rate"] > 0
            assert counters["refused_handshake"] <= 6 + 5 * took_s
            # A member's turn comes, from the same address too.
            await ends.start("b", "a")
            await until(lambda: a.linked("b"))

    run(main())


def test_a_bucket_holds_a_second_and_tells_when_a_debt_is_paid() -> None:
    bucket = Bucket(100)
    now = bucket._at
    assert bucket.take(100, now) == 0
    assert bucket.take(50, now) == pytest.approx(0.5)
    assert bucket.take(0, now + 0.25) == pytest.approx(0.25)
    assert bucket.take(0, now + 0.5) == 0
    assert bucket.take(100, now + 100) == 0
    assert bucket.take(1, now + 100) > 0


def test_one_address_takes_nothing_from_another() -> None:
    handshakes = Handshakes(10)
    assert sum(handshakes.allow("10.0.0.1") for _ in range(1000)) <= 11
    assert sum(handshakes.allow("10.0.0.2") for _ in range(10)) == 10
    assert sum(handshakes.allow(f"10.1.0.{i}") for i in range(100)) <= 22
    for i in range(2 * ADDRESSES_MAX):
        handshakes.allow(f"10.2.{i}.1")
    assert len(handshakes._of) == ADDRESSES_MAX
