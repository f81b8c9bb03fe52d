"""Which links each partition cuts, in both shapes, and that it heals the same ones."""

import asyncio
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from chaos.faults import processes, seeing, sides
from chaos.faults.nemeses import NEMESES
from chaos.faults.nemesis import Nemesis, choose, drawn, felt
from chaos.net.links import Link, NotCut
from tests.chaos.faults.paper import PaperTarget

SMALL, LARGE = "1+1+1", "2+2+1"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[PaperTarget]:
    target = PaperTarget(SMALL, tmp_path)
    yield target
    target.close()


@pytest.fixture
def large(tmp_path: Path) -> Iterator[PaperTarget]:
    target = PaperTarget(LARGE, tmp_path)
    yield target
    target.close()


GATEWAYS = {"gateway-dc-b->gateway-dc-a"}
ROWS: list[tuple[str, str, set[str]]] = [
    (SMALL, "a", {"dc-b->dc-a", "tiebreaker->dc-b", "gateway-dc-a->dc-b", "gateway-dc-b->dc-a"}),
    (SMALL, "b", {"dc-b->dc-a", "tiebreaker->dc-a", "gateway-dc-a->dc-b", "gateway-dc-b->dc-a"}),
    (
        SMALL,
        "none",
        {"dc-b->dc-a", "tiebreaker->dc-a", "tiebreaker->dc-b", "gateway-dc-a->dc-b", "gateway-dc-b->dc-a"},
    ),
    (
        LARGE,
        "a",
        {f"dc-b-{b}->dc-a-{a}" for a in (1, 2) for b in (1, 2)}
        | {"tiebreaker->dc-b-1", "tiebreaker->dc-b-2"}
        | {f"gateway-dc-a->dc-b-{b}" for b in (1, 2)}
        | {f"gateway-dc-b->dc-a-{a}" for a in (1, 2)},
    ),
]


@pytest.mark.parametrize(("shape", "tiebreaker", "cut"), ROWS)
def test_a_cut_between_datacenters_takes_members_and_gateways(
    shape: str, tiebreaker: str, cut: set[str], tmp_path: Path
) -> None:
    target = PaperTarget(shape, tmp_path)
    assert {link.name for link in sides.cut_in_two(target, tiebreaker)} == cut | GATEWAYS


def test_a_ring_leaves_each_member_two_neighbours_and_no_two_the_same_majority(large: PaperTarget) -> None:
    cut = {link.name for link in sides.ring(large.members, large.links, Random(3))}
    assert len(cut) == 5
    seen = {
        frozenset(
            {name}
            | {
                other
                for link in large.links
                if link.kind == "peer" and link.name not in cut and name in (link.dialer, link.target)
                for other in (link.dialer, link.target)
            }
        )
        for name in large.members
    }
    assert len(seen) == 5 and all(len(majority) == 3 for majority in seen)


def test_a_ring_needs_five(small: PaperTarget, large: PaperTarget) -> None:
    assert "five" in NEMESES["majorities-ring"]().available(small)
    assert NEMESES["majorities-ring"]().available(large) == ""


def test_isolated_members_keep_their_gateways(large: PaperTarget) -> None:
    cut = sides.apart(large, ["dc-a-1", "dc-b-1"])
    assert len(cut) == 6 and {link.kind for link in cut} == {"peer"}


def strike(target: PaperTarget, nemesis: Nemesis, detail: dict[str, Any], *, seed: int = 1) -> Any:
    return asyncio.run(nemesis.begin(target, Random(seed), detail))


OF_LINKS = [
    name
    for name, nemesis in NEMESES.items()
    if nemesis.parts <= {"peer links", "gateway links", "feed links", "cache links"}
    and name not in ("flapping", "cache-kill")
]


@pytest.mark.parametrize("name", OF_LINKS)
def test_what_was_cut_is_healed_and_nothing_else(name: str, large: PaperTarget) -> None:
    async def run() -> None:
        large.network.faults["another"] = ["stall"]
        nemesis = NEMESES[name]()
        struck = await nemesis.begin(large, Random(5), {})
        assert struck.targets
        assert set(large.network.faults) - {"another"} == set(struck.targets)
        await nemesis.end(large)
        assert set(large.network.faults) == {"another"}

    asyncio.run(run())


@pytest.mark.parametrize("name", OF_LINKS)
def test_the_same_seed_strikes_the_same_and_so_does_its_detail(name: str, tmp_path: Path) -> None:
    told = []
    first = PaperTarget(LARGE, tmp_path)
    struck = strike(first, NEMESES[name](), {}, seed=7)
    told.append(first.network.told)
    for seed, detail in ((7, {}), (8, struck.detail)):
        target = PaperTarget(LARGE, tmp_path)
        again = strike(target, NEMESES[name](), detail, seed=seed)
        assert again.targets == struck.targets
        told.append(target.network.told)
    assert told[0] == told[1] == told[2]


def test_one_that_could_not_be_cut_leaves_nothing_behind(large: PaperTarget) -> None:
    async def run() -> None:
        nemesis = NEMESES["dc-cut"]()
        large.network.refuses = {"dc-b-2->dc-a-2"}
        with pytest.raises(NotCut, match="out of order"):
            await nemesis.begin(large, Random(1), {"tiebreaker": "a", "how": "stall"})
        assert large.network.faults
        await nemesis.end(large)
        assert not large.network.faults

    asyncio.run(run())


@pytest.mark.parametrize("deaf", [True, False])
def test_one_way_is_the_same_way_on_all_links_of_a_member(deaf: bool, large: PaperTarget) -> None:
    strike(large, NEMESES["one-way"](), {"who": "dc-b-1", "deaf": deaf, "how": "stall"})
    assert set(large.network.told) == {
        ("stall", "dc-b-1->dc-a-1", "to_dialer" if deaf else "to_target"),
        ("stall", "dc-b-1->dc-a-2", "to_dialer" if deaf else "to_target"),
        ("stall", "dc-b-2->dc-b-1", "to_target" if deaf else "to_dialer"),
        ("stall", "tiebreaker->dc-b-1", "to_target" if deaf else "to_dialer"),
    }


def test_flapping_goes_down_and_up_and_ends_up(small: PaperTarget) -> None:
    async def run() -> None:
        nemesis = NEMESES["flapping"]()
        struck = await nemesis.begin(small, Random(1), {"who": "dc-a", "every_s": 0.2, "how": "refuse"})
        assert "down" in await nemesis.bite(small, struck)
        await nemesis.end(small)
        verbs = [verb for verb, name, *_ in small.network.told if name == "dc-b->dc-a"]
        assert verbs[:3] == ["refuse", "heal", "refuse"] and verbs[-1] == "heal"
        assert not small.network.faults

    asyncio.run(run())


async def stopped(target: PaperTarget, name: str) -> str:
    return name if processes.state(target.pid(name)) == processes.STOPPED else ""


def test_links_of_a_stopped_process_are_left_alone(small: PaperTarget) -> None:
    async def run() -> None:
        await small.start_all()
        await small.signal("dc-a", signal.SIGSTOP)
        await felt(lambda: stopped(small, "dc-a"), "the stop")
        with pytest.raises(NotCut, match="dc-a is stopped"):
            await NEMESES["dc-cut"]().begin(small, Random(1), {})
        assert not small.network.told

    asyncio.run(run())


def says(name: str, **peers: dict[str, Any]) -> dict[str, Any]:
    return {"peers": [{"name": peer.replace("_", "-"), **said} for peer, said in peers.items()]}


LINKED, SILENT, LOST = (
    {"connected": True, "heard_ms_ago": 40},
    {"connected": True, "heard_ms_ago": 900},
    {"connected": False, "heard_ms_ago": 100},
)
HEARD = [
    # what dc-a says of dc-b, what dc-b says of dc-a, is it seen?
    (LINKED, LINKED, False),
    (SILENT, LINKED, False),
    (SILENT, LOST, True),
    (LOST, LOST, True),
]


@pytest.mark.parametrize(("a_says", "b_says", "seen"), HEARD)
def test_a_cut_is_seen_when_both_ends_hear_nothing(
    a_says: dict[str, Any], b_says: dict[str, Any], seen: bool, small: PaperTarget
) -> None:
    async def run() -> None:
        await small.start_all()
        small.says = {"dc-a": says("dc-a", dc_b=a_says), "dc-b": says("dc-b", dc_a=b_says)}
        link = next(link for link in small.links if link.name == "dc-b->dc-a")
        assert bool(await seeing.unheard(small, seeing.deaf_ends(link, "both"))) == seen

    asyncio.run(run())


def test_a_fault_that_nobody_feels_is_none(small: PaperTarget) -> None:
    async def run() -> None:
        async def look() -> str:
            return ""

        with pytest.raises(NotCut, match=r"the cut: not seen within 0\.1 s"):
            await felt(look, "the cut", within_s=0.1)

    asyncio.run(run())


def test_connections_are_known_by_the_dialers_port(small: PaperTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    import os  # noqa: PLC0415

    with socket.create_server(("127.0.0.1", 0)) as server:
        link = Link("a->b", "peer", "a", "b", server.getsockname(), ("127.0.0.1", 1))
        monkeypatch.setattr(small, "pid", lambda name: os.getpid())
        assert asyncio.run(seeing.connections(small, [link]))[link.name] == frozenset()
        with socket.create_connection(server.getsockname()) as one:
            assert asyncio.run(seeing.connections(small, [link]))[link.name] == {one.getsockname()[1]}


def test_a_draw_is_made_even_when_the_detail_says_it() -> None:
    free, fixed = Random(1), Random(1)
    drawn({}, "how", free.random)
    assert drawn({"how": "stall"}, "how", fixed.random) == "stall"
    assert free.random() == fixed.random()


WHO = [
    ("leader", ["dc-a-1"]),
    ("witness", ["tiebreaker"]),
    ("dc-b-2", ["dc-b-2"]),
    ("gateway-dc-a", ["gateway-dc-a"]),
    (["dc-a-1", "dc-b-1"], ["dc-a-1", "dc-b-1"]),
]


@pytest.mark.parametrize(("who", "names"), WHO)
def test_who_is_meant(who: str | list[str], names: list[str], large: PaperTarget) -> None:
    assert asyncio.run(choose(large, Random(1), who)) == names


def test_how_many_are_meant(large: PaperTarget) -> None:
    def count(who: str) -> int:
        return len(asyncio.run(choose(large, Random(4), who)))

    assert [count(who) for who in ("one", "minority", "majority", "all", "site")] == [1, 2, 3, 5, 3]
    with pytest.raises(NotCut, match="nobody is called 'dc-c'"):
        count("dc-c")
