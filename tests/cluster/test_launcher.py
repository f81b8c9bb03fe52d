"""The launcher on real processes: ready, dead at start, port taken, recycled pid, end with the parent."""

import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from cluster.certificates import make_certificate, read_certificates
from cluster.folder import (
    ClusterFolder,
    FolderError,
    add_member,
    create,
    next_ports,
    renew_gateway_token,
    token_life_s,
    wants_renewal,
)
from cluster.launcher import DiedAtStart, Launcher, NotReady, PortInUse, Process, run_down
from cluster.topology import InvalidTopology
from tests.cluster.fake_node import free_port

PROGRAM = (sys.executable, str(Path(__file__).with_name("fake_member.py")))


def free_ports() -> int:
    """A base port with nothing on it and the thirty behind it."""
    while True:
        base = free_port()
        try:
            for port in range(base, base + 30):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return base
        except OSError:
            continue


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    create(tmp_path / "c", base_port=free_ports())
    launcher = Launcher(ClusterFolder(tmp_path / "c"), program=PROGRAM)
    yield launcher
    run_down(launcher)


def mood(launcher: Launcher, name: str, word: str) -> None:
    launcher.folder.config(name).with_suffix(".mood").write_text(word)


def test_start_wait_stop(launcher: Launcher) -> None:
    ready: list[str] = []
    for name in launcher.members:
        launcher.start(name, die_with_us=True)
    launcher.wait_ready(timeout_ms=10_000, on_ready=lambda name, ms: ready.append(name))
    assert sorted(ready) == ["dc-a", "dc-b", "tiebreaker"]
    assert launcher.start("dc-a") == launcher.running("dc-a")  # runs already
    # Another launcher, as the next command line would make, finds them by their pid files.
    other = Launcher(launcher.folder, program=PROGRAM)
    assert other.running("dc-b") == launcher.running("dc-b")
    assert other.stop(timeout_ms=5_000) == dict.fromkeys(launcher.members, "stopped")
    assert other.stop(["dc-a"]) == {"dc-a": "not running"}


def test_what_a_killed_process_had_started_ends_with_it_and_nobody_else_does(launcher: Launcher) -> None:
    mood(launcher, "dc-a", "works")
    mood(launcher, "dc-b", "works")
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)

    def child(name: str) -> Path:
        return Path("/proc") / launcher.folder.config(name).with_suffix(".child").read_text() / "cwd"

    try:
        for name in ("dc-a", "dc-b"):
            launcher.start(name)
        launcher.wait_ready(("dc-a", "dc-b"), timeout_ms=20_000)
        first, other = child("dc-a"), child("dc-b")
        assert first.exists()
        assert launcher.kill("dc-a")
        wait(lambda: not first.exists())
        assert other.exists() and stranger.poll() is None
        # A crash: it is found out when it is started again.
        launcher.start("dc-a")
        launcher.wait_ready(("dc-a",), timeout_ms=20_000)
        second = child("dc-a")
        os.kill(launcher.running("dc-a") or 0, signal.SIGKILL)
        wait(lambda: launcher.running("dc-a") is None)
        assert second.exists()
        launcher.start("dc-a")
        wait(lambda: not second.exists())
        assert other.exists() and stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def wait(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 15
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_stop_kills_who_does_not_leave(launcher: Launcher) -> None:
    mood(launcher, "dc-a", "stubborn")
    launcher.start("dc-a", die_with_us=True)
    launcher.wait_ready(["dc-a"], timeout_ms=10_000)
    assert launcher.stop(["dc-a"], timeout_ms=200) == {"dc-a": "killed"}
    assert launcher.running("dc-a") is None


@pytest.mark.parametrize("by", ["stop", "kill", "strangers"])
def test_a_member_is_gone_when_its_last_thread_is(launcher: Launcher, by: str) -> None:
    """One that is inside a disk sync keeps the ports, though the process already counts as a zombie."""
    mood(launcher, "dc-a", "lingers")
    pid = launcher.start("dc-a", die_with_us=True)
    launcher.wait_ready(["dc-a"], timeout_ms=10_000)
    if by == "stop":
        assert launcher.stop(["dc-a"]) == {"dc-a": "stopped"}
    elif by == "kill":
        assert launcher.kill("dc-a")
    else:
        os.kill(pid, signal.SIGTERM)
        while launcher.running("dc-a") is not None:
            time.sleep(0.01)
    assert launcher.start("dc-a", die_with_us=True) != pid
    launcher.wait_ready(["dc-a"], timeout_ms=10_000)


def test_death_at_start_is_told_with_the_log(launcher: Launcher) -> None:
    mood(launcher, "dc-a", "dies")
    launcher.start("dc-a")
    with pytest.raises(DiedAtStart, match=r"exit code 3(.|\n)*the disk is on fire"):
        launcher.wait_ready(["dc-a"], timeout_ms=10_000)


def test_not_ready_in_time_names_the_member(launcher: Launcher) -> None:
    mood(launcher, "dc-a", "sleeps")
    launcher.start("dc-a", die_with_us=True)
    with pytest.raises(NotReady, match="dc-a not ready"):
        launcher.wait_ready(["dc-a"], timeout_ms=200)


def test_another_clusters_member_on_the_port_is_not_ours(launcher: Launcher) -> None:
    mood(launcher, "dc-a", "another")
    launcher.start("dc-a", die_with_us=True)
    with pytest.raises(NotReady, match="dc-a not ready"):
        launcher.wait_ready(["dc-a"], timeout_ms=1_500)


def test_a_port_in_use_is_told_before_anything_starts(launcher: Launcher) -> None:
    member = launcher.members["dc-a"]
    with socket.socket() as other:
        other.bind((member.api_host, member.api_port))
        other.listen()
        with pytest.raises(PortInUse, match=f"{member.api_port}.*api_port of dc-a"):
            launcher.start("dc-a")
    assert not launcher.folder.pid("dc-a").exists()


def test_a_recycled_pid_is_never_signalled(launcher: Launcher) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as stranger:
        path = launcher.folder.pid("dc-a")
        path.write_bytes(msgspec.json.encode(Process(stranger.pid, started=1, boot="another")))
        assert launcher.running("dc-a") is None
        assert not launcher.kill("dc-a")
        assert launcher.stop(["dc-a"]) == {"dc-a": "not running"}
        assert stranger.poll() is None
        stranger.kill()


def test_die_with_us(launcher: Launcher) -> None:
    code = (
        "import sys, pathlib; from cluster.folder import ClusterFolder; from cluster.launcher import Launcher\n"
        f"print(Launcher(ClusterFolder(pathlib.Path({str(launcher.folder.root)!r})), program={PROGRAM!r})"
        ".start('dc-a', die_with_us=True), flush=True)\n"
        "input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.send_signal(signal.SIGKILL)
    for _ in range(200):
        if launcher.running("dc-a") is None:
            return
        time.sleep(0.01)
    pytest.fail("the member outlived its parent")


def test_a_new_folder_holds_private_keys_privately(tmp_path: Path) -> None:
    root = tmp_path / "new"
    topology = create(root, shape="2+2+1", base_port=9_000)
    assert [m.name for m in topology.members] == ["dc-a-1", "dc-a-2", "dc-b-1", "dc-b-2", "tiebreaker"]
    assert [m.api_port for m in topology.members] == [9_010, 9_011, 9_012, 9_013, 9_014]
    for path in root.rglob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert ClusterFolder(root).topology() == topology


def test_a_new_folder_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(FolderError, match="not empty"):
        create(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    for shape, port in (("1+1", 7700), ("1+1+1", 65_530)):
        with pytest.raises(InvalidTopology):
            create(tmp_path / "none", shape=shape, base_port=port)
    assert not (tmp_path / "none").exists()


def test_no_cluster_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="tiebreak cluster init"):
        Launcher(ClusterFolder(tmp_path))


def test_who_is_no_member_any_more_is_found_and_stopped(launcher: Launcher) -> None:
    launcher.start("dc-b", die_with_us=True)
    launcher.wait_ready(["dc-b"], timeout_ms=10_000)
    topology = launcher.folder.topology()
    left = [member for member in topology.members if member.name != "dc-b"]
    launcher.folder.save(msgspec.structs.replace(topology, members=left, configuration_index=7))
    assert launcher.left_over == []
    launcher.look_again()
    assert (sorted(launcher.members), launcher.left_over) == (["dc-a", "tiebreaker"], ["dc-b"])
    assert Launcher(launcher.folder, program=PROGRAM).stop(["dc-b"]) == {"dc-b": "stopped"}
    assert launcher.left_over == []


def test_a_cluster_that_serves_https_has_certificates_that_name_its_hosts(tmp_path: Path) -> None:
    create(tmp_path / "c", base_port=9_000, api_tls=True)
    folder = ClusterFolder(tmp_path / "c")
    names = ["dc-a", "dc-b", "tiebreaker", "gateway-dc-a", "gateway-dc-b"]
    for name in names:
        check_server(folder, f"api-{name}")
    assert {folder.scheme(name) for name in names[:3]} == {"https"}
    assert {folder.gateway_listen(name)[3] for name in names[3:]} == {"https"}
    text = folder.config("gateway-dc-b").read_text()
    assert '"https://127.0.0.1:9011", "https://127.0.0.1:9010"' in text and '\nca = "../certs/ca.crt"' in text
    # Made anew, it names the same hosts; a member that joins has one too.
    before = serial_of(folder, "api-dc-a")
    make_certificate(folder.certs, "api-dc-a")
    assert serial_of(folder, "api-dc-a") != before
    check_server(folder, "api-dc-a")
    made = add_member(folder, "dc-c", host="127.0.0.7")
    assert "api-dc-c.key" in [path.name for path in made]
    check_server(folder, "api-dc-c", "127.0.0.7")
    assert folder.scheme("dc-c") == "https"


def serial_of(folder: ClusterFolder, name: str) -> int:
    return read_certificates(folder.certs / f"{name}.crt")[0].serial_number


def check_server(folder: ClusterFolder, name: str, host: str = "127.0.0.1") -> None:
    """A client that trusts the authority takes this certificate for this host, and for no other."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder.certs / f"{name}.crt", folder.certs / f"{name}.key")
    client = ssl.create_default_context(cafile=folder.certs / "ca.crt")
    for wanted, fits in ((host, True), ("localhost", True), ("10.1.2.3", False)):
        ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
        dialing = client.wrap_bio(theirs, ours, server_hostname=wanted)
        serving = server.wrap_bio(ours, theirs, server_side=True)
        taken = True
        for _ in range(3):
            for side in (dialing, serving):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
                except ssl.SSLError:  # the certificate is refused, or the other side says so
                    taken = False
            if not taken:
                break
        assert taken is fits, (name, wanted)


def test_the_gateways_token_has_a_life_and_is_renewed_in_its_second_half(tmp_path: Path) -> None:
    create(tmp_path / "c", base_port=9_000)
    folder = ClusterFolder(tmp_path / "c")
    began_s, ends_s = token_life_s(folder.gateway_token) or (0.0, 0.0)
    assert abs(ends_s - began_s - 90 * 86_400) < 1 and abs(time.time() - began_s) < 60
    assert not wants_renewal(folder)
    first = folder.gateway_token.read_bytes()
    assert renew_gateway_token(folder, days=1) - time.time() < 86_401
    assert folder.gateway_token.read_bytes() != first and stat.S_IMODE(folder.gateway_token.stat().st_mode) == 0o600
    assert not wants_renewal(folder)
    renew_gateway_token(folder, days=0)
    assert wants_renewal(folder)
    folder.gateway_token.write_text("not a token")
    assert token_life_s(folder.gateway_token) is None and wants_renewal(folder)
    folder.token_key.unlink()
    assert not wants_renewal(folder), "nothing to renew it with"
    with pytest.raises(FolderError, match=r"token\.key"):
        renew_gateway_token(folder)


def test_one_more_member_has_files_of_its_own_and_ports_that_nobody_has(launcher: Launcher) -> None:
    folder = launcher.folder
    made = add_member(folder, "dc-c")
    assert sorted(path.name for path in made) == ["dc-c.crt", "dc-c.key", "dc-c.toml"]
    assert stat.S_IMODE((folder.certs / "dc-c.key").stat().st_mode) == 0o600
    assert add_member(folder, "dc-c") == []
    topology = folder.topology()
    first = topology.members[0].peer_port
    assert next_ports(topology)[0] == (first + 3, first + 13)
    # The row of peers has come to where the row of APIs begins.
    more = [
        msgspec.structs.replace(
            topology.members[0], name=f"m{place}", peer_port=first + place, api_port=first + 10 + place
        )
        for place in range(3, 10)
    ]
    assert next_ports(msgspec.structs.replace(topology, members=[*topology.members, *more]))[0] == (
        first + 20,
        first + 30,
    )
    (folder.certs / "ca.key").unlink()
    with pytest.raises(FolderError, match=r"ca\.key"):
        add_member(folder, "dc-d")
    assert not folder.config("dc-d").exists()
