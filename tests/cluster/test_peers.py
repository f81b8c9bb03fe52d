"""Peers come, go and move while a member runs: the other links do not notice."""

import asyncio
from pathlib import Path

import pytest

from cluster.consensus.messages import Application
from tests.cluster.engines import Cut, run, until
from tests.cluster.link_ends import Ends


def said(body: bytes) -> Application:
    return Application("k", body)


def test_a_new_peer_is_dialed_or_waited_for_and_other_links_stay(tmp_path: Path) -> None:
    async def main() -> None:
        async with Ends(tmp_path, "a", "b", "c") as ends:
            a, b = await ends.start("a", "b"), await ends.start("b", "a")
            await until(lambda: a.linked("b") and b.linked("a"))
            link = b.links.peers["a"].connection
            # b dials a and is dialed by c.
            c = await ends.start("c", "a", "b")
            for end in (a, b):
                end.links.set_peers(ends.of("a", "b", "c"))
            await until(lambda: a.linked("b", "c") and b.linked("a", "c") and c.linked("a", "b"))
            assert c.links.send("b", said(b"1"))
            assert b.links.send("c", said(b"2"))
            await until(lambda: ("got", "c", b"1") in b.news and ("got", "b", b"2") in c.news)
            assert b.links.peers["a"].connection is link
            assert "b" not in b.links.peers
            assert a.news.count(("up", "b")) == b.news.count(("up", "a")) == 1
            assert ("down", "b") not in a.news

    run(main())


def test_a_removed_peer_gets_what_was_sent_and_then_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with Ends(tmp_path, "a", "b", "c") as ends:
            everyone = ("a", "b", "c")
            a, b, c = [await ends.start(name, *everyone) for name in everyone]
            await until(lambda: a.linked("b", "c") and b.linked("a", "c") and c.linked("a", "b"))
            large = b"x" * 4_000_000
            assert a.links.send("c", said(large))
            a.links.set_peers(ends.of("a", "b"))
            assert a.news[-1] == ("down", "c")
            assert not a.links.send("c", said(b"y"))
            assert not a.links.send_application("c", "k", b"y")
            assert (a.links.buffered_bytes("c"), a.links.heard_ms_ago("c"), a.links.clock_offset_ms("c")) == (
                0,
                -1,
                None,
            )
            await until(lambda: ("got", "a", large) in c.news and ("down", "a") in c.news)
            # c dials on, and is told no each time.
            await until(lambda: a.links.counters["refused_stranger"] >= 2)
            assert not c.links.send("a", said(b"z"))
            assert [one for one in a.news if one[1] == "c"] == [("up", "c"), ("down", "c")]
            assert a.linked("b")
            assert c.linked("b")
            # Back again: c's next dial is taken.
            a.links.set_peers(ends.of("a", "b", "c"))
            await until(lambda: a.linked("b", "c") and c.linked("a", "b"))
            assert c.links.send("a", said(b"again"))
            await until(lambda: ("got", "c", b"again") in a.news)

    run(main())


def test_a_removed_peer_is_not_dialed_any_more(tmp_path: Path) -> None:
    async def main() -> None:
        async with Ends(tmp_path, "a", "b") as ends:
            b = await ends.start("b", "a")
            b.links.set_peers({})
            a = await ends.start("a", "b")
            await asyncio.sleep(1.2)
            assert a.news == []
            assert sum(a.links.counters.values()) == 0
            assert set(b.links._sought) == {"a"}
            b.links.set_peers(ends.of("a"))
            assert not b.links._sought
            await until(lambda: a.linked("b") and b.linked("a"))
            # In the middle of a handshake, too: nothing is left of it.
            b.links.set_peers({})
            for _ in range(20):
                b.links.set_peers(ends.of("a"))
                await asyncio.sleep(0.001)
                b.links.set_peers({})
            await until(a.linked)
            assert a.news.count(("up", "b")) == a.news.count(("down", "b"))
            assert b.news.count(("up", "a")) == b.news.count(("down", "a"))

    run(main())


def test_a_stranger_with_a_good_certificate_is_told_and_counted(tmp_path: Path) -> None:
    async def main() -> None:
        async with Ends(tmp_path, "a", "b") as ends:
            a, b = await ends.start("a"), await ends.start("b", "a")
            await until(lambda: a.links.counters["refused_stranger"] > 0)
            assert a.links.counters["strangers_told"] == 0
            a.farewell = said(b"you were removed")
            await until(lambda: ("got", "a", b"you were removed") in b.news)
            assert a.links.counters["strangers_told"] > 0
            await until(lambda: b.news[-1] == ("down", "a"))
            assert a.news == []

    run(main())


def test_who_was_away_when_it_was_removed_is_told_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.consensus.transport.SEEK_SECONDS", 0.1)

    async def main() -> None:
        async with Ends(tmp_path, "a", "b", "c") as ends:
            b, c = await ends.start("b", "a", "c"), await ends.start("c", "a", "b")
            await until(lambda: b.linked("c") and c.linked("b"))
            # a would dial nobody: its name is before all others.
            b.farewell = c.farewell = said(b"you were removed")
            b.links.set_peers(ends.of("c"))
            c.links.set_peers(ends.of("b"))
            a = await ends.start("a", "b", "c")
            await until(lambda: ("got", "b", b"you were removed") in a.news)
            await until(lambda: ("got", "c", b"you were removed") in a.news)
            await until(a.linked)
            # Once is enough.
            told = len(a.news)
            await asyncio.sleep(0.5)
            assert len(a.news) == told
            assert [one for one in b.news + c.news if one[1] == "a"] == []
            assert b.links.counters["strangers_told"] == c.links.counters["strangers_told"] == 1
            assert not (b.links._sought or c.links._sought)
            # And it may be a peer again.
            for end, others in ((b, "ac"), (c, "ab")):
                end.links.set_peers(ends.of(*others))
            await until(lambda: a.linked("b", "c") and b.linked("a", "c") and c.linked("a", "b"))

    run(main())


def test_a_changed_address_is_for_the_next_dial(tmp_path: Path) -> None:
    async def main() -> None:
        async with Ends(tmp_path, "a", "b") as ends:
            a, b = await ends.start("a", "b"), await ends.start("b", "a")
            await until(lambda: a.linked("b") and b.linked("a"))
            proxy = Cut(ends.addresses["a"])
            await proxy.start()
            try:
                b.links.set_peers({"a": ("127.0.0.1", proxy.port)})
                assert b.linked("a")
                link = b.links.peers["a"].connection
                assert link is not None
                link.abort()
                await until(lambda: len(proxy._writers) == 2 and a.linked("b") and b.linked("a"))
                assert a.links.send("b", said(b"through the proxy"))
                await until(lambda: ("got", "a", b"through the proxy") in b.news)
            finally:
                await proxy.stop()

    run(main())


def test_peers_may_be_set_before_the_start(tmp_path: Path) -> None:
    async def main() -> None:
        async with Ends(tmp_path, "a", "b", "c") as ends:
            a, b = await ends.start("a", "b"), ends.make("b", "c")
            b.links.set_peers(ends.of("a"))
            await b.links.start()
            await until(lambda: a.linked("b") and b.linked("a"))

    run(main())
