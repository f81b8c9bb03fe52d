"""The folder of a bed: what `cluster init` writes, with every link led through a place of its own."""

from pathlib import Path

import pytest

from chaos.live import profile
from chaos.live.programs import ARCHIVE, FAILPOINTS, MUTANTS, SHIPPED, STOCK, UnknownProgram, program
from chaos.live.wiring import NoPorts, Settings, make, widen
from cluster.topology import InvalidTopology, MemberRole, Standing
from gateway.config import read_gateway
from node.config import read_config


def test_every_path_of_a_member_leads_over_its_link(tmp_path: Path) -> None:
    wiring = make(tmp_path / "cluster", Settings(shape="2+2+1"))
    links = {link.name: link for link in wiring.links}
    peers = [link for link in wiring.links if link.kind == "peer"]
    assert len(links) == len(wiring.links) == 10 + 8 + 1 + 2 + 2
    members = wiring.topology.members
    assert {frozenset((link.dialer, link.target)) for link in peers} == {
        frozenset((one.name, other.name)) for one in members for other in members if one is not other
    }
    for member in members:
        config = read_config(wiring.folder.config(member.name))
        assert config.topology.timing == profile.CHAOS
        assert config.limits.log_reserve > profile.TRIM_OFTEN["log_reserve"]
        mine = {link.target: link.listen for link in peers if link.dialer == member.name}
        assert config.dial == mine
        assert all(other < member.name for other in mine), "who sorts later dials"
        for target in mine:
            place = wiring.topology.member(target)
            assert links[f"{member.name}->{target}"].target_at == (place.peer_host, place.peer_port)


def test_every_path_of_a_gateway_leads_over_its_link(tmp_path: Path) -> None:
    wiring = make(tmp_path / "cluster", Settings(symbols={"AAPL": 187.5}))
    links = {link.name: link for link in wiring.links}
    for site, other in (("dc-a", "dc-b"), ("dc-b", "dc-a")):
        name = f"gateway-{site}"
        config = read_gateway(wiring.folder.config(name))
        nodes = [links[f"{name}->{node}"].listen for node in (site, other)]
        assert config.nodes.addresses == [f"http://{host}:{port}" for host, port in nodes], "the nearest first"
        host, port = links[f"{name}->cache"].listen
        assert config.cache.redis_url == f"redis://{host}:{port}/0"
        assert links[f"{name}->cache"].target_at[1] == wiring.caches[name]
        feed = config.feeds[0]
        host, port = links[f"{name}->feed"].listen
        assert (feed.kind, feed.url, feed.symbols) == ("live", f"ws://{host}:{port}/", ["AAPL"])
        assert links[f"{name}->feed"].target_at[1] == wiring.venue_port
    # The site whose name sorts later dials, so that is the one link that both sites have.
    a, b = (read_gateway(wiring.folder.config(f"gateway-{site}")) for site in ("dc-a", "dc-b"))
    assert b.peers["dc-a"] == links["gateway-dc-b->gateway-dc-a"].listen
    assert links["gateway-dc-b->gateway-dc-a"].target_at == (a.listen.host, a.listen.link_port)
    assert a.peers["dc-b"] == (b.listen.host, b.listen.link_port)


def test_no_two_listen_at_one_port_and_none_where_the_system_picks(tmp_path: Path) -> None:
    wiring = make(tmp_path / "cluster", Settings(shape="2+2+1"))
    members = [port for one in wiring.topology.members for port in (one.peer_port, one.api_port)]
    gateways = [port for name in wiring.caches for port in wiring.folder.gateway_listen(name)[1:3]]
    ports = [*members, *gateways, *(link.listen[1] for link in wiring.links), *wiring.caches.values()]
    assert len({*ports, wiring.venue_port}) == len(ports) + 1
    assert all(10_000 <= port < 32_768 for port in ports)


def test_a_member_that_is_added_dials_all_others(tmp_path: Path) -> None:
    settings = Settings(shape="2+2+1", trim_often=True)
    wiring = make(tmp_path / "cluster", settings)
    added, taken = [], {link.listen for link in wiring.links}
    for number in range(2):
        asked, links = widen(wiring, settings, f"zz-{number}", like="dc-b-1", number=number)
        topology = wiring.folder.topology()
        there = topology.member(asked.name)
        assert (there.site, there.role, there.standing) == ("dc-b", MemberRole.replica, Standing.learner)
        assert (asked.peer_port, asked.api_port) == (there.peer_port, there.api_port)
        config = read_config(wiring.folder.config(asked.name))
        assert config.dial == {link.target: link.listen for link in links}
        assert set(config.dial) == {member.name for member in topology.others(asked.name)}
        assert config.limits.log_reserve == profile.TRIM_OFTEN["log_reserve"]
        assert taken.isdisjoint(link.listen for link in links)
        taken |= {link.listen for link in links}
        added.append(asked)
    assert added[0].peer_port != added[1].peer_port
    with pytest.raises(ValueError, match="zz-1"):
        widen(wiring, settings, "aa", like="dc-b-1", number=2)
    with pytest.raises(NoPorts):
        widen(wiring, settings, "zz-9", like="dc-b-1", number=9)


def test_settings_are_in_the_files(tmp_path: Path) -> None:
    disks = {"dc-a": tmp_path / 'a "disk"'}
    wiring = make(tmp_path / "cluster", Settings(gateways=False, trim_often=True, disks=disks))
    assert (wiring.caches, wiring.venue_port, wiring.folder.gateway_names()) == ({}, 0, [])
    assert {link.kind for link in wiring.links} == {"peer"}
    config = read_config(wiring.folder.config("dc-a"))
    assert config.data_dir == disks["dc-a"]
    assert config.limits.log_reserve == profile.TRIM_OFTEN["log_reserve"]
    assert config.timing.digest_ms == profile.MEMBER_TIMING["digest_ms"]


def test_a_shape_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidTopology, match=r"3\+3"):
        make(tmp_path / "cluster", Settings(shape="3+3"))
    assert not (tmp_path / "cluster").exists()


def test_programs_are_known_by_name() -> None:
    assert program(SHIPPED)[-1] == "node"
    assert program(SHIPPED, environment={FAILPOINTS: "x"})[-1] == "chaos.live.programs.member"
    assert program(SHIPPED, environment={ARCHIVE: "x"})[-1] == "chaos.live.programs.member"
    assert program(STOCK)[-2:] == ("bench.stock_member", "--forward")
    for name in MUTANTS:
        assert program(name)[-2:] == ("chaos.live.programs.mutant", name)
        with pytest.raises(UnknownProgram, match=name):
            program(name, environment={FAILPOINTS: "x"})
    with pytest.raises(UnknownProgram, match="'etcd': one of shipped, stock"):
        program("etcd")
