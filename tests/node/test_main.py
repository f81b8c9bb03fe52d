"""`python -m node`: a bad config is refused with both values before anything starts; SIGTERM ends with 0."""

import http.client
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cluster.folder import ClusterFolder, create
from cluster.topology import Member
from node.config import (
    LIMIT_BOUNDS,
    RETENTION_BOUNDS,
    TIMING_BOUNDS,
    InvalidConfig,
    NodeLimits,
    NodeTiming,
    Retention,
    read_config,
)
from tests.node.test_cluster import base_port

BAD = [
    # edit of the member file: what, by what; words that the message must hold
    (
        "[limits]",
        "[limits]\nqueue_max = 1000\ncancels_reserved = 2000",
        ["2000", "1000", "cancels_reserved"],
    ),
    ("[limits]", "[limits]\npipeline = 0", ["limits.pipeline = 0", "between 1 and 64"]),
    ("[limits]", "[limits]\npipeline = 1.5", ["pipeline"]),
    ("[limits]", "[limits]\nfrobnicate = 1", ["frobnicate"]),
    ("[limits]", "[limits]\ndisk_free_bytes_min = 10\ndisk_free_bytes_ok = 5", ["10", "5", "disk_free_bytes_min"]),
    ("[timing]", "[timing]\ncommand_timeout_ms = 9000\ncommand_timeout_ms_max = 800", ["9000", "800"]),
    ("[timing]", "[timing]\nflush_ms = -1", ["flush_ms = -1"]),
    ("[timing]", "[timing]\nresend_ms = 9000\ncommand_timeout_ms_max = 8000", ["resend_ms = 9000", "8000"]),
    ("[timing]", "[timing]\nread_timeout_ms = 50", ["heartbeat_ms = 50", "read_timeout_ms = 50"]),
    (
        "[timing]",
        "[timing]\ncommand_timeout_ms = 500\nresend_ms = 500\ncommand_timeout_ms_max = 600",
        ["election_ms_max = 600", "command_timeout_ms_max = 600"],
    ),
    ("[retention]", "[retention]\nevents_days = -1", ["retention.events_days = -1"]),
    ('name = "dc-a"', 'name = "dc-z"', ["dc-z"]),
    ("../topology.toml", "../nowhere.toml", ["nowhere.toml", "No such file"]),
    ("../certs/dc-a.key", "../certs/gone.key", ["tls.key", "gone.key"]),
    ("../keys/session.key", "../keys/token.pub", ["session_key", "32 bytes"]),
    ("../keys/token.pub", "../keys/session.key", ["auth.token_public_key", "0 public keys in PEM"]),
    (
        "# [api_tls]",
        '[api_tls]\ncert = "../certs/dc-a.crt"\nkey = "../certs/dc-b.key"\n#',
        ["dc-a.crt", "dc-b.key", "together"],
    ),
    (
        "# [api_tls]",
        '[api_tls]\ncert = "../certs/dc-a.crt"\nkey = "../certs/dc-a.key"\nrequire_client_certificate = true\n#',
        ["api_tls.require_client_certificate = true", "api_tls.client_ca"],
    ),
    (
        "# [api_tls]",
        '[api_tls]\ncert = "../certs/dc-a.crt"\nkey = "../certs/dc-a.key"\nclient_ca = "../certs/ca.key"\n#',
        ["dc-a.crt", "ca.key", "together"],
    ),
    ("../keys/token.pub", "../certs/elliptic.pub", ["auth.token_public_key", "ECPublicKey", "Ed25519"]),
    ("../certs/dc-a.crt", "../certs/dc-b.crt", ["tls", "dc-b.crt names ['dc-b']", "the member is 'dc-a'"]),
    ("../certs/dc-a.key", "../certs/dc-b.key", ["tls", "dc-b.key is not the key of", "dc-a.crt"]),
    ("../certs/ca.crt", "../certs/dc-b.crt", ["tls", "issued by 'CN=tiebreak", "dc-b.crt is 'CN=dc-b'"]),
    ("../certs/dc-a.crt", "../keys/token.pub", ["tls"]),
    ("[auth]", "[auth", ["dc-a.toml"]),
    ("# [dial]", '[dial]\ndc-z = "127.0.0.1:9000"\n#', ["dial.dc-z", "dc-b, tiebreaker"]),
    ("# [dial]", '[dial]\ndc-a = "127.0.0.1:9000"\n#', ["dial.dc-a", "dc-b, tiebreaker"]),
    ("# [dial]", '[dial]\ndc-b = "127.0.0.1"\n#', ["dial.dc-b = '127.0.0.1'", "host:port"]),
    ("# [dial]", '[dial]\ndc-b = ":9000"\n#', ["dial.dc-b = ':9000'", "host:port"]),
    ("# [dial]", '[dial]\ndc-b = "127.0.0.1:70000"\n#', ["70000", "between 1 and 65535"]),
    ("# [dial]", '[dial]\ndc-b = "127.0.0.1:٣"\n#', ["dial.dc-b", "host:port"]),
    ("# [dial]", "[dial]\ndc-b = 9000\n#", ["dial", "str"]),
]


@pytest.fixture
def folder(tmp_path: Path) -> ClusterFolder:
    create(tmp_path / "cluster", base_port=base_port())
    folder = ClusterFolder(tmp_path / "cluster")
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder.certs / "elliptic.pub").write_bytes(pem)
    return folder


@pytest.mark.parametrize(("what", "by", "words"), BAD)
def test_a_bad_config_is_told_with_its_values(folder: ClusterFolder, what: str, by: str, words: list[str]) -> None:
    path = folder.config("dc-a")
    text = path.read_text("utf-8")
    assert what in text
    path.write_text(text.replace(what, by, 1), "utf-8")
    with pytest.raises(InvalidConfig) as caught:
        read_config(path)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_the_written_config_is_taken(folder: ClusterFolder) -> None:
    for name in ("dc-a", "dc-b", "tiebreaker"):
        config = read_config(folder.config(name))
        assert config.name == name
        assert config.is_witness == (name == "tiebreaker")
        assert config.dial == {}


def test_where_a_removed_member_was_dialed_may_stay(folder: ClusterFolder) -> None:
    path, topology = folder.config("dc-b"), folder.topology()
    path.write_text(path.read_text("utf-8") + '[dial]\ndc-a = "127.0.0.1:9000"\n', "utf-8")
    folder.save(msgspec.structs.replace(topology, members=topology.others("dc-a"), configuration_index=7))
    assert read_config(path).dial == {"dc-a": ("127.0.0.1", 9000)}
    path.write_text(path.read_text("utf-8").replace("dc-a =", "dc-b ="), "utf-8")
    with pytest.raises(InvalidConfig, match=r"dial\.dc-b"):
        read_config(path)


def test_a_member_is_told_where_to_dial_others(folder: ClusterFolder) -> None:
    path = folder.config("dc-b")
    path.write_text(path.read_text("utf-8") + '[dial]\ndc-a = "127.0.0.1:9000"\ntiebreaker = "[::1]:9001"\n', "utf-8")
    assert read_config(path).dial == {"dc-a": ("127.0.0.1", 9000), "tiebreaker": ("::1", 9001)}


@pytest.mark.parametrize(
    ("kind", "bounds"), [(NodeTiming, TIMING_BOUNDS), (NodeLimits, LIMIT_BOUNDS), (Retention, RETENTION_BOUNDS)]
)
def test_every_setting_has_a_bound_and_its_default_is_inside(
    kind: type[NodeTiming | NodeLimits | Retention], bounds: dict[str, tuple[int, int]]
) -> None:
    assert set(kind.__struct_fields__) == set(bounds)
    for name, (low, high) in bounds.items():
        assert low <= getattr(kind(), name) <= high


@contextmanager
def run(path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "node", str(path)]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    try:
        yield child
    finally:
        child.kill()
        child.communicate(timeout=10)


def ask(member: Member, path: str) -> int:
    connection = http.client.HTTPConnection(member.api_host, member.api_port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except ConnectionError:
        return 0
    finally:
        connection.close()


def test_a_topology_that_contradicts_itself_is_refused_at_start(folder: ClusterFolder) -> None:
    text = folder.topology_path.read_text("utf-8")
    ports = [line for line in text.splitlines() if line.startswith("peer_port")]
    folder.topology_path.write_text(text.replace(ports[1], ports[0]), "utf-8")
    with run(folder.config("dc-a")) as child:
        _, said = child.communicate(timeout=20)
    assert child.returncode == 2
    assert ports[0].split()[-1] in said
    assert "dc-a.peer_port and dc-b.peer_port" in said
    assert "Traceback" not in said


def test_sigterm_ends_a_member_with_0_even_without_a_quorum(folder: ClusterFolder) -> None:
    path = folder.config("dc-a")
    path.write_text(path.read_text("utf-8").replace("[timing]", "[timing]\ndrain_ms = 500"), "utf-8")
    member = folder.topology().member("dc-a")
    with run(path) as child:
        deadline = time.monotonic() + 20
        while ask(member, "/healthz") != 200:
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert ask(member, "/readyz") == 503
        child.send_signal(signal.SIGTERM)
        _, said = child.communicate(timeout=20)
    assert child.returncode == 0, said
    assert "Traceback" not in said


@pytest.mark.parametrize("what", ["api_port", "peer_port"])
def test_a_member_that_can_not_start_says_why_in_one_line(folder: ClusterFolder, what: str) -> None:
    port = getattr(folder.topology().member("dc-a"), what)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with run(folder.config("dc-a")) as child:
            _, said = child.communicate(timeout=20)
    assert child.returncode == 1
    assert str(port) in said
    assert "could not start" in said
    assert "Traceback" not in said
