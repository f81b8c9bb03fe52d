"""`tiebreak cluster rotate-certificates` on real members: they go on, and each step waits for who is not ready."""

import json
import re
import ssl
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.certificates import issued_by, make_certificate, read_certificates
from cluster.folder import ClusterFolder
from cluster.launcher import Launcher, run_down
from cluster.rotation import look
from tests.cluster.test_launcher import free_ports
from tests.node.cli.test_end_to_end import User

MEMBERS = ("dc-a", "dc-b", "tiebreaker")
GATEWAYS = ("gateway-dc-a", "gateway-dc-b")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "c"


@pytest.fixture
def user(folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[User]:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TIEBREAK_CLUSTER", str(folder))
    user = User(capfd)
    user.does(f"cluster init --base-port {free_ports()}")
    try:
        yield user
    finally:
        run_down(Launcher(ClusterFolder(folder)))


def serials(folder: Path) -> dict[str, int]:
    return {name: read_certificates(folder / "certs" / f"{name}.crt")[0].serial_number for name in MEMBERS + GATEWAYS}


def leading(user: User) -> Any:
    report = user.waits_for_health()
    return report["leader"], report["members"][0]["view"]["term"]


def test_running_members_take_new_certificates_and_a_new_authority(user: User, folder: Path) -> None:
    first = serials(folder)
    user.does("up")
    before = leading(user)
    ran = user.gets("cluster rotate-certificates --member dc-b --days 90")
    assert ran == {
        "steps": [],
        "files": [str(folder / "certs" / f"dc-b.{kind}") for kind in ("crt", "key")],
        "late": {},
    }
    second = serials(folder)
    assert {name for name in first if first[name] != second[name]} == {"dc-b"}
    user.does("asset add USD --scale 2")

    make_certificate(folder / "certs", "api")
    old = (folder / "certs" / "ca.crt").read_bytes()
    ran = user.gets("cluster rotate-certificates --authority")
    assert (ran["steps"], ran["late"]) == (["trust", "sign", "drop"], {})
    assert not set(serials(folder).values()) & set(second.values())
    authority = read_certificates(folder / "certs" / "ca.crt")[0]
    assert issued_by(read_certificates(folder / "certs" / "api.crt")[0], authority)
    assert len(read_certificates(folder / "certs" / "ca.crt")) == 1
    assert (folder / "certs" / "ca.crt").read_bytes() != old
    assert sorted(path.name for path in (folder / "certs").glob("ca*")) == ["ca.crt", "ca.key"]
    user.does("asset add EUR --scale 2")
    assert leading(user) == before
    for name, place in Launcher(ClusterFolder(folder)).gateways.items():
        seen = look(folder / "certs", name, (place.peer_host, place.peer_port))
        assert (seen.answered, seen.current, seen.trusts) == (True, True, True), name
    for key in (folder / "certs").glob("*.key"):
        assert key.stat().st_mode & 0o777 == 0o600


def test_members_elsewhere_are_brought_their_files_step_by_step(
    user: User, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.cli.certificates._is_loopback", lambda host: not host)
    ran = user.does("cluster rotate-certificates --authority")
    assert ran.out.split() == [str(folder / "certs" / "ca.crt")]
    both = (folder / "certs" / "ca.crt").read_bytes()
    unready = user.does("cluster rotate-certificates --authority", code=1)
    assert "dc-a does not answer at 127.0.0.1" in " ".join(unready.err.split())
    assert (folder / "certs" / "ca.crt").read_bytes() == both
    away = "--without dc-a --without dc-b --without tiebreaker"
    ran = user.does(f"cluster rotate-certificates --authority {away}")
    assert len(ran.out.split()) == 2 * len(MEMBERS + GATEWAYS)
    user.does("cluster rotate-certificates --authority --without dc-a", code=1)
    assert json.loads(user.does(f"cluster rotate-certificates --authority {away} --json").out)["steps"] == ["drop"]
    assert len(read_certificates(folder / "certs" / "ca.crt")) == 1


def test_what_can_not_be_is_said(user: User, folder: Path) -> None:
    before = serials(folder)
    for line, said in (
        ("--member mallory", "no certificate of mallory here; there are dc-a, dc-b, tiebreaker, gateway-dc-a"),
        ("--authority --member dc-a", "leave --member out"),
        ("--without mallory", "the members are dc-a, dc-b, tiebreaker"),
    ):
        ran = user.does(f"cluster rotate-certificates {line}", code=1)
        assert said in " ".join(ran.err.split())
    (folder / "certs" / "ca.key").unlink()
    ran = user.does("cluster rotate-certificates", code=1)
    assert "run this where it is kept" in " ".join(ran.err.split())
    assert serials(folder) == before


API_TLS = """
[api_tls]
cert = "../certs/localhost.crt"
key = "../certs/localhost.key"
client_ca = "../certs/ca.crt"
require_client_certificate = true
"""


def test_a_node_that_takes_gateways_alone_is_asked_with_a_gateways_certificate(user: User, folder: Path) -> None:
    certs = folder / "certs"
    make_certificate(certs, "localhost")
    for name in MEMBERS:
        path = folder / "members" / f"{name}.toml"
        path.write_text(path.read_text("utf-8").replace("[timing]", API_TLS + "[timing]"), "utf-8")
    user.does("up dc-a dc-b tiebreaker")  # its gateways were told http
    port = ClusterFolder(folder).topology().member("dc-a").api_port
    asked = f"asset list --url https://localhost:{port} --ca {certs / 'ca.crt'}"
    assert user.does(f"{asked} --timeout-ms 500", code=4)
    assert user.gets(f"{asked} --cert {certs / 'gateway-dc-a.crt'}")["assets"] == []
    missing = user.does(f"{asked} --cert {certs / 'gateway-dc-z.crt'}", code=1)
    assert "No such file" in " ".join(missing.err.split())
    page = _metrics(certs, port)
    assert 'tiebreak_consensus_events_total{event="refused_certificate"} 0.0' in page
    found = dict(re.findall(r'tiebreak_certificate_expiry_seconds{certificate="(\w+)"} (\S+)', page))
    assert set(found) == {"member", "authority", "api"}
    assert all(3649 * 86_400 < float(left) < 3650 * 86_400 for left in found.values())


def _metrics(certs: Path, port: int) -> str:
    context = ssl.create_default_context(cafile=certs / "ca.crt")
    context.load_cert_chain(certs / "gateway-dc-a.crt", certs / "gateway-dc-a.key")
    with urllib.request.urlopen(f"https://localhost:{port}/metrics", context=context) as page:
        return page.read().decode()
