"""Members and timing: what is written comes back; what contradicts itself is refused with both values."""

import ssl
from pathlib import Path

import msgspec
import pytest

from cluster.certificates import client_context, make_all, server_context, tls_files
from cluster.topology import (
    LAN,
    WAN,
    InvalidTopology,
    Member,
    MemberRole,
    Timing,
    Topology,
    check,
    check_timing,
    from_toml,
    new_topology,
    read_topology,
    to_toml,
    write_topology,
)

replace = msgspec.structs.replace


@pytest.mark.parametrize("shape", ["1+1+1", "2+2+1"])
def test_a_new_topology_comes_back_as_written(tmp_path: Path, shape: str) -> None:
    topology = new_topology(shape, 20_000, timing=WAN)
    write_topology(tmp_path / "topology.toml", topology)
    assert read_topology(tmp_path / "topology.toml") == topology
    assert len(topology.members) == sum(int(part) for part in shape.split("+"))
    assert [m.role for m in topology.members][-1] is MemberRole.witness
    assert topology.quorum == len(topology.members) // 2 + 1


def test_two_new_clusters_are_not_the_same() -> None:
    assert new_topology("1+1+1", 20_000).cluster_id != new_topology("1+1+1", 20_000).cluster_id


def test_timing_may_be_left_out() -> None:
    text = to_toml(new_topology("1+1+1", 20_000))
    start, end = text.index("[timing]"), text.index("[[members]]")
    assert from_toml(text[:start] + text[end:]).timing == LAN


def changed(number: int, **changes: object) -> list[Member]:
    members = list(new_topology("1+1+1", 20_000).members)
    members[number] = replace(members[number], **changes)
    return members


FIVE = new_topology("2+2+1", 20_000).members
THREE = new_topology("1+1+1", 20_000).members

BAD_MEMBERS = [
    (changed(1, peer_port=20_000), "a1.peer_port and b1.peer_port are both 127.0.0.1:20000"),
    (changed(1, api_port=20_000), "a1.peer_port and b1.api_port are both 127.0.0.1:20000"),
    (changed(1, api_port=20_002), "b1.peer_port and b1.api_port are both 127.0.0.1:20002"),
    (changed(1, peer_port=65_536), "b1.peer_port = 65536"),
    (changed(1, peer_port=0), "b1.peer_port = 0"),
    (changed(1, name="a1"), "2 members are named 'a1', at dc-a and dc-b"),
    (changed(1, name="b 1"), "member name 'b 1'"),
    (changed(1, name=""), "member name ''"),
    (changed(1, role=MemberRole.witness), r"datacenter 'dc-b' has members \['b1'\] but 0 full replicas"),
    (changed(1, site="dc-a"), r"datacenters \['dc-a'\]: two are needed"),
    (FIVE[:4], "4 voters: an even number survives no more failures than 3"),
    (THREE[:2], "2 voters: an even number"),
    (THREE[:1], "1 voters: at least 3"),
    ([], "0 voters"),
    (
        [*THREE, *[replace(FIVE[1], name=f"a{i}", peer_port=i, api_port=9 + i) for i in (3, 4)]],
        "site 'dc-a' has 3 of 5",
    ),
]


@pytest.mark.parametrize(("members", "says"), BAD_MEMBERS)
def test_members_that_contradict_each_other(members: list[Member], says: str) -> None:
    with pytest.raises(InvalidTopology, match=says):
        check(Topology("c", members))


TIMINGS = [
    # each refusal beside the neighbour that passes
    (Timing(heartbeat_ms=100), "heartbeat_ms = 100 and timing.election_ms_min = 300: 3 \\* heartbeat_ms"),
    (Timing(heartbeat_ms=99), None),
    (Timing(election_ms_min=600), "election_ms_min = 600 and timing.election_ms_max = 600"),
    (Timing(election_ms_min=599), None),
    (Timing(link_silent_ms_max=600), "election_ms_max = 600 and timing.link_silent_ms_max = 600"),
    (Timing(link_silent_ms_max=601), None),
    (Timing(ping_ms=334), "ping_ms = 334 and timing.link_silent_ms_max = 1000"),
    (Timing(ping_ms=333), None),
    (Timing(redial_ms_min=500), "redial_ms_min = 500 and timing.redial_ms_max = 500"),
    (Timing(redial_ms_min=499), None),
    (Timing(heartbeat_ms=0), "heartbeat_ms = 0: must be positive"),
    (Timing(clock_offset_ms_max=-1), "clock_offset_ms_max = -1"),
    (LAN, None),
    (WAN, None),
]


@pytest.mark.parametrize(("timing", "says"), TIMINGS)
def test_timeouts_that_contradict_each_other(timing: Timing, says: str | None) -> None:
    if says is None:
        assert check_timing(timing) is timing
        return
    with pytest.raises(InvalidTopology, match=says):
        check_timing(timing)


BAD_TEXTS = [
    ("cluster_id = ", "Invalid value"),
    ('cluster_id = "c"', "missing required field `members`"),
    (to_toml(new_topology("1+1+1", 20_000)).replace("epoch = 1", "epoch = 0"), "epoch = 0: must be between 1 and"),
    (to_toml(new_topology("1+1+1", 20_000)) + "surprise = 1\n", "unknown field `surprise`"),
    (to_toml(new_topology("1+1+1", 20_000)).replace('"witness"', '"boss"'), "Invalid enum value 'boss'"),
    (to_toml(new_topology("1+1+1", 20_000)).replace("= 20000", "= '20000'"), "Expected `int`, got `str`"),
]


@pytest.mark.parametrize(("text", "says"), BAD_TEXTS)
def test_bad_text_is_refused(text: str, says: str) -> None:
    with pytest.raises(InvalidTopology, match=says):
        from_toml(text)


def test_an_unknown_shape_and_an_unknown_member() -> None:
    with pytest.raises(InvalidTopology, match=r"shape '3\+0'"):
        new_topology("3+0", 20_000)
    with pytest.raises(InvalidTopology, match="no member 'x'"):
        new_topology("1+1+1", 20_000).member("x")


# -- certificates ---------------------------------------------------------------------------------


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, dialed: str) -> tuple[str, str, str]:
    """In memory. Returns the TLS version and the names that client and server have seen. Raises ssl.SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_side = client.wrap_bio(to_client, to_server, server_hostname=dialed)
    server_side = server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [client_side, server_side]
    for _ in range(10):
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                continue
    assert not waiting

    def name(side: ssl.SSLObject) -> str:
        return str(dict((side.getpeercert() or {})["subjectAltName"])["DNS"])

    return str(client_side.version()), name(client_side), name(server_side)


def test_members_know_each_other_by_certificate(tmp_path: Path) -> None:
    make_all(tmp_path, "c", ["a1", "b1"])
    a1, b1 = tls_files(tmp_path, "a1"), tls_files(tmp_path, "b1")
    assert handshake(server_context(a1), client_context(b1), "a1") == ("TLSv1.3", "a1", "b1")
    for key in ("ca.key", "a1.key"):
        assert (tmp_path / key).stat().st_mode & 0o777 == 0o600


def test_whoever_answers_must_be_who_was_dialed(tmp_path: Path) -> None:
    make_all(tmp_path, "c", ["a1", "b1", "t1"])
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(server_context(tls_files(tmp_path, "b1")), client_context(tls_files(tmp_path, "t1")), "a1")


def test_another_authoritys_member_is_a_stranger(tmp_path: Path) -> None:
    make_all(tmp_path / "ours", "c", ["a1", "b1"])
    make_all(tmp_path / "theirs", "c", ["a1", "b1"])
    ours, theirs = tls_files(tmp_path / "ours", "a1"), tls_files(tmp_path / "theirs", "b1")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server_context(ours), client_context(theirs), "a1")


def test_nothing_older_than_tls_1_3(tmp_path: Path) -> None:
    make_all(tmp_path, "c", ["a1", "b1"])
    client = client_context(tls_files(tmp_path, "b1"))
    client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        handshake(server_context(tls_files(tmp_path, "a1")), client, "a1")
