"""Kills, pauses, storms and cuts of clients, on real processes and sockets."""

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

import pytest

from chaos.faults import dying, processes
from chaos.faults.dying import FAILPOINTS, POINTS, RARE
from chaos.faults.membership import next_name
from chaos.faults.mixed import plan
from chaos.faults.nemeses import NEMESES
from chaos.live.programs import failpoints
from chaos.net.links import NotCut
from tests.chaos.faults.paper import PaperTarget


@pytest.fixture
def target(tmp_path: Path) -> Iterator[PaperTarget]:
    made = PaperTarget("1+1+1", tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("who", ["one", "leader", "minority", "majority", "site", "all"])
def test_the_killed_are_dead_until_the_end(who: str, target: PaperTarget) -> None:
    async def run() -> None:
        await target.start_all()
        before = {name: target.pid(name) for name in target.addresses}
        nemesis = NEMESES["kill"]()
        struck = await nemesis.begin(target, Random(2), {"who": who})
        assert "no answer" in await nemesis.bite(target, struck)
        assert {name for name in before if target.pid(name) is None} == set(struck.targets)
        await nemesis.end(target)
        changed = {name for name, pid in before.items() if target.pid(name) != pid}
        assert changed == set(struck.targets) and None not in {target.pid(name) for name in before}

    asyncio.run(run())


def test_a_kill_of_one_that_lives_on_is_none(target: PaperTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(name: str) -> None: ...

    async def run() -> None:
        await target.start_all()
        monkeypatch.setattr(target, "kill", nothing)
        monkeypatch.setattr("chaos.faults.nemesis.BITE_S", 0.2)
        nemesis = NEMESES["kill"]()
        struck = await nemesis.begin(target, Random(2), {"who": "leader"})
        with pytest.raises(NotCut, match="death of dc-a"):
            await asyncio.wait_for(nemesis.bite(target, struck), 20)

    asyncio.run(run())


def test_links_are_healed_before_a_pause_and_left_alone_until_it_ends(target: PaperTarget) -> None:
    async def run() -> None:
        await target.start_all()
        nemesis = NEMESES["pause"]()
        struck = await nemesis.begin(target, Random(2), {"who": "dc-b"})
        assert {name for verb, name in target.network.told if verb == "heal"} == {
            link.name for link in target.links if "dc-b" in (link.dialer, link.target)
        }
        assert target.network.paused == {"dc-b"}
        assert "state T" in await nemesis.bite(target, struck)
        await nemesis.end(target)
        assert processes.state(target.pid("dc-b")) in ("S", "R")
        assert not target.network.paused

    asyncio.run(run())


def test_a_storm_kills_again_and_again_and_ends_with_one_that_runs(target: PaperTarget) -> None:
    async def run() -> None:
        await target.start_all()
        nemesis = NEMESES["restart-storm"]()
        struck = await nemesis.begin(target, Random(3), {"who": "dc-a"})
        assert "times" in await nemesis.bite(target, struck)
        await nemesis.end(target)
        assert target.events.count(("kill", "dc-a")) >= 3
        assert target.pid("dc-a") is not None

    asyncio.run(run())


def test_a_rolling_restart_takes_one_after_the_other(target: PaperTarget) -> None:
    async def run() -> None:
        await target.start_all()
        nemesis = NEMESES["rolling-restart"]()
        struck = await nemesis.begin(target, Random(3), {"kill": True})
        await nemesis.bite(target, struck)
        for _ in range(200):
            if len(target.events) == 2 * len(target.members):
                break
            await asyncio.sleep(0.05)
        await nemesis.end(target)
        assert target.events == [(what, name) for name in struck.targets for what in ("kill", "start")]

    asyncio.run(run())


def test_a_failpoint_is_given_to_the_member_and_gone_at_the_end(target: PaperTarget) -> None:
    async def run() -> None:
        await target.start_all()
        nemesis = NEMESES["kill-inside"]()
        struck = await nemesis.begin(target, Random(3), {"who": "dc-b", "point": "after-sync", "nth": 5})
        assert target.given["dc-b"] == {FAILPOINTS: "after_sync:kill:5"}
        await target.kill("dc-b")
        assert await nemesis.bite(target, struck) == "dc-b died at after-sync, arrival 5"
        await nemesis.end(target)
        assert target.given["dc-b"] == {} and target.pid("dc-b") is not None

    asyncio.run(run())


def test_who_is_to_die_while_it_receives_is_away_first(target: PaperTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dying, "AWAY_S", 0.3)

    async def run() -> None:
        await target.start_all()
        began = time.monotonic()
        detail = {"who": "dc-b", "point": "mid-receive", "nth": 1}
        await NEMESES["kill-inside"]().begin(target, Random(3), detail)
        assert time.monotonic() - began >= 0.3
        assert target.events == [("kill", "dc-b"), ("start", "dc-b")]

    asyncio.run(run())


def test_who_is_to_die_while_it_sends_leads_while_the_other_is_away(
    target: PaperTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dying, "AWAY_S", 0.1)

    async def run() -> None:
        await target.start_all()
        target.says = {name: {"applied_index": 9} for name in target.members}
        target.leads = "dc-b"
        nemesis = NEMESES["kill-inside"]()
        await nemesis.begin(target, Random(3), {"who": "dc-b", "point": "mid-send", "nth": 1})
        assert target.events == [("kill", "dc-b"), ("start", "dc-b"), ("kill", "dc-a"), ("start", "dc-a")]
        assert target.given["dc-b"] == {FAILPOINTS: "mid_send:kill:1"}
        await target.kill("dc-a")
        await nemesis.end(target)
        assert target.pid("dc-a") is not None and target.given["dc-b"] == {}

    asyncio.run(run())


def test_every_point_is_a_step_of_the_test_build() -> None:
    assert {point.replace("-", "_") for point in (*POINTS, *RARE)} == set(failpoints.STEPS)
    assert failpoints.parse("after_sync:kill:5")[0].at == 5


def test_clients_connections_end_at_both_ends(target: PaperTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as other:
            port = server.getsockname()[1]
            monkeypatch.setattr(PaperTarget, "addresses", {"dc-a": f"http://127.0.0.1:{port}"})
            with (
                socket.create_connection(server.getsockname()) as ours,
                server.accept()[0] as theirs,
                socket.create_connection(other.getsockname()) as stranger,
                other.accept()[0] as strangers,
            ):
                assert urlsplit(target.addresses["dc-a"]).port == port
                nemesis = NEMESES["client-cut"]()
                struck = await nemesis.begin(target, Random(1), {"share": 1.0})
                assert struck.targets == ["dc-a"]
                assert await nemesis.bite(target, struck) == "1 connections ended"
                assert theirs.recv(1) == b"" and ours.recv(1) == b""
                stranger.sendall(b"x")
                assert strangers.recv(1) == b"x"

    asyncio.run(run())


def test_a_cut_of_clients_that_are_not_there_is_none(target: PaperTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        monkeypatch.setattr(PaperTarget, "addresses", {"dc-a": "http://127.0.0.1:1"})
        nemesis = NEMESES["client-cut"]()
        struck = await nemesis.begin(target, Random(1), {})
        with pytest.raises(NotCut, match="no client"):
            await nemesis.bite(target, struck)

    asyncio.run(run())


def test_a_dead_process_is_not_struck(target: PaperTarget) -> None:
    with pytest.raises(NotCut, match="dc-a does not run"):
        asyncio.run(NEMESES["pause"]().begin(target, Random(1), {"who": "dc-a"}))


def test_mixed_strikes_share_no_part_and_leave_a_quarter_of_the_time_quiet() -> None:
    names = [name for name, nemesis in NEMESES.items() if nemesis.promised]
    strikes = plan(Random(11), 6_000, [NEMESES[name] for name in names])
    assert strikes == plan(Random(11), 6_000, [NEMESES[name] for name in names])
    assert {strike.nemesis for strike in strikes} == set(names)
    for at, strike in enumerate(strikes):
        for other in strikes[at + 1 :]:
            if other.at_s < strike.at_s + strike.for_s:
                assert not NEMESES[strike.nemesis].parts & NEMESES[other.nemesis].parts, (strike, other)
    busy = sum(any(s.at_s <= at < s.at_s + s.for_s for s in strikes) for at in range(6_000))
    assert 0.35 < busy / 6_000 < 0.75
    assert max(strike.at_s + strike.for_s for strike in strikes) < 6_000


def test_every_nemesis_says_what_it_does() -> None:
    for name, nemesis in NEMESES.items():
        assert nemesis.name == name and nemesis.line[0].islower() | nemesis.line.startswith("SIG")
        assert nemesis.parts and "\n" not in nemesis.line


def test_a_new_member_sorts_after_all_and_takes_no_name_of_before(
    target: PaperTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(target.members)
    monkeypatch.setattr(PaperTarget, "members", names)
    for seed in range(30):
        name = next_name(target, Random(seed))
        assert name > max(names) and name not in names
        names.append(name)
