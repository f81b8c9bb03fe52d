"""The command line without a cluster, and against a fake node: output, exit codes, errors that help."""

import json
import os
import resource
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import jwt
import pytest
from typer.main import get_command as to_command

from cluster.folder import ClusterFolder
from cluster.topology import LAN, WAN, Timing
from node.cli import main as cli_main
from node.config import read_config
from tests.cluster.fake_node import TOKEN, free_port
from tests.node.cli.support import fake_node, tiebreak

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cluster's folder where nothing runs, named by the environment."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TIEBREAK_CLUSTER", str(tmp_path / "c"))
    assert tiebreak(capfd, "cluster", "init", "--base-port", str(free_port())).code == 0
    return tmp_path / "c"


def test_help_comes_at_once() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", "from node.cli.main import main; main(['--help'])"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "100"},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert all(name in done.stdout for name in cli_main.COMMANDS)
    # 0.13 s where this was written. Of the CPU: how long it takes hangs on what else the machine does.
    assert cpu_s < 1.0
    loaded = "import node.cli.main, sys; print([m for m in ('aiohttp', 'cryptography', 'msgspec') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout == "[]\n"


def leaves() -> list[tuple[str, ...]]:
    """Every command that runs something, with the groups that it stands in."""
    found: list[tuple[str, ...]] = []
    for name, entry in cli_main.COMMANDS.items():
        command = to_command(cli_main._load(entry.where))
        inside = getattr(command, "commands", None)
        found += [(name, child) for child in inside] if inside else [(name,)]
    return found


@pytest.mark.parametrize("leaf", leaves(), ids=" ".join)
def test_every_command_has_help_with_an_example_and_json(leaf: tuple[str, ...], capfd: Capture) -> None:
    ran = tiebreak(capfd, *leaf, "--help")
    assert ran.code == 0
    assert f"Example: tiebreak {' '.join(leaf)}" in ran.out
    assert "--json" in ran.out or leaf == ("node",)  # `node` becomes the member, whose output is its log


def test_options_of_all_commands_may_stand_before_the_command(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CLUSTER", "URL", "TOKEN", "JSON"):
        monkeypatch.setenv(f"TIEBREAK_{name}", "")  # so that it is put back
    made = tiebreak(capfd, "--cluster", str(tmp_path / "a"), "--json", "cluster", "init", "--base-port", "21000")
    assert json.loads(made.out)["folder"] == str(tmp_path / "a")
    with fake_node() as node:
        shown = tiebreak(capfd, "--url", node.url, "--token", TOKEN, "--json", "account", "show", "alice")
        assert json.loads(shown.out)["id"] == "alice", shown.err
    # What stands behind the command wins.
    for name in ("URL", "TOKEN", "JSON"):
        monkeypatch.setenv(f"TIEBREAK_{name}", "")
    other = tiebreak(capfd, "--cluster", str(tmp_path / "a"), "status", "--cluster", str(tmp_path / "b"))
    assert other.code == 1
    assert str(tmp_path / "b") in "".join(other.err.split())


def test_an_unknown_command_is_wrong_usage(capfd: Capture) -> None:
    ran = tiebreak(capfd, "oder", "place")
    assert ran.code == 2
    assert "order" in ran.err


# line, exit code, what the error says
MISTAKES = [
    ("book AAPL --url 127.0.0.1:1", 1, "http://host:port"),
    ("book AAPL --url http://no-such-host.invalid:1 --timeout-ms 500", 4, "can't connect to no-such-host.invalid"),
    ("cluster init /proc/nothing/here", 1, "No such file or directory"),
    ("cluster init --shape 3+3", 2, "1+1+1"),
    ("up nobody", 1, "there are dc-a, dc-b, tiebreaker"),
    ("order place hold AAPL 1 --price 1", 2, "buy"),
    ("order cancel-all", 2, "--account"),
    ("instrument calendar AAPL --weekdays nine-to-five", 1, "09:30-16:00"),
    ("instrument limits AAPL", 1, "nothing to change"),
    ("node nobody", 1, "neither a file nor a member"),
    ("cluster transfer --timeout-ms 100", 4, "connection refused"),
    ("cluster members --timeout-ms 100", 4, "connection refused"),
    ("cluster add dc-c --site dc-a --witness --read-replica", 1, "no state"),
    ("cluster add dc-c --site dc-a --peer 127.0.0.1:19998", 1, "go together"),
    ("cluster add dc-c --site dc-a --peer here --api there", 1, "HOST:PORT"),
    ("cluster add dc-c --timeout-ms 100", 2, "--site"),
]


@pytest.mark.parametrize(("line", "code", "says"), MISTAKES)
def test_mistakes_are_told_with_the_way_out(folder: Path, capfd: Capture, line: str, code: int, says: str) -> None:
    ran = tiebreak(capfd, *line.split())
    assert ran.code == code, ran.err
    assert says in " ".join(ran.err.split())
    assert "Traceback" not in ran.err


def test_init_refuses_to_overwrite(folder: Path, capfd: Capture) -> None:
    before = (folder / "topology.toml").read_bytes()
    ran = tiebreak(capfd, "cluster", "init")
    assert ran.code == 1
    assert "not empty" in ran.err
    assert (folder / "topology.toml").read_bytes() == before


def test_init_as_json(tmp_path: Path, capfd: Capture) -> None:
    ran = tiebreak(capfd, "cluster", "init", str(tmp_path / "five"), "--shape", "2+2+1", "--json")
    assert len(json.loads(ran.out)["topology"]["members"]) == 5


@pytest.mark.parametrize(("given", "timing"), [("", LAN), ("--timing lan", LAN), ("--timing wan", WAN)])
def test_init_takes_the_network_between_sites(tmp_path: Path, capfd: Capture, given: str, timing: Timing) -> None:
    assert tiebreak(capfd, "cluster", "init", str(tmp_path / "made"), *given.split()).code == 0
    # As a member reads it at its start, with all that the two files of settings ask of each other.
    assert read_config(tmp_path / "made" / "members" / "dc-a.toml").topology.timing == timing


def test_without_a_cluster_the_error_says_what_to_do(tmp_path: Path, capfd: Capture) -> None:
    ran = tiebreak(capfd, "book", "AAPL", "--cluster", str(tmp_path / "none"))
    assert ran.code == 1
    assert "tiebreak cluster init" in " ".join(ran.err.split())
    assert "Traceback" not in ran.err


def test_a_cluster_that_is_down(folder: Path, capfd: Capture) -> None:
    status = tiebreak(capfd, "status", "--json")
    assert status.code == 1
    report = json.loads(status.out)
    assert not report["healthy"]
    assert [row["health"] for row in report["members"]] == ["unreachable"] * 3
    read = tiebreak(capfd, "book", "AAPL", "--timeout-ms", "100")
    assert read.code == 4
    assert "connection refused" in " ".join(read.err.split())
    write = tiebreak(capfd, "deposit", "alice", "USD", "1", "--timeout-ms", "100", "--json")
    assert write.code == 4
    assert json.loads(write.out)["error"] == "unreachable"


def test_token_says_who_may_what(folder: Path, capfd: Capture) -> None:
    text = tiebreak(capfd, "token", "trader", "-a", "alice", "-a", "bob", "--lifetime", "2h").out.strip()
    key = ClusterFolder(folder).token_public_key.read_text()
    claims = jwt.decode(text, key, algorithms=["EdDSA"], issuer="tiebreak")
    assert (claims["role"], claims["accounts"]) == ("trader", ["alice", "bob"])
    assert claims["exp"] - claims["iat"] == 7200
    for wrong in (["trader"], ["trader", "-a", "alice", "--lifetime", "2"], ["king"]):
        assert tiebreak(capfd, "token", *wrong).code in (1, 2), wrong


def test_outcomes_and_exit_codes(folder: Path, capfd: Capture) -> None:
    with fake_node() as node:
        order = ("order", "place", "buy", "AAPL", "--price", "1", "--account", "alice", "--url", node.url)
        done = tiebreak(capfd, *order, "5")
        assert (done.code, done.out) == (0, "order 1 new\n")
        refused = tiebreak(capfd, *order, "999")
        assert refused.code == 1
        assert refused.out == ""
        assert "insufficient_funds" in refused.err
        node.faults.extend(["outcome_unknown"] * 50)
        unknown = tiebreak(capfd, *order, "6", "--timeout-ms", "200", "--key", "k6")
        assert unknown.code == 3
        assert "commands show k6 --account alice" in " ".join(unknown.err.split())
        node.faults.clear()
        again = tiebreak(capfd, *order, "6", "--key", "k6", "--json")
        assert (again.code, json.loads(again.out)["replay"]) == (0, True)
        other = tiebreak(capfd, *order, "5", "--key", "k6", "--json")
        assert (other.code, json.loads(other.out)["error"]) == (1, "key_reused")


def test_a_change_of_the_cluster_that_may_have_been_made_is_not_told_as_failed(folder: Path, capfd: Capture) -> None:
    with fake_node() as node:
        # What stands before it answers 500: it may have passed the change on.
        line = ("cluster", "transfer", "--to", "dc-b", "--url", node.url, "--timeout-ms", "300")
        ran = tiebreak(capfd, *line)
        assert (ran.code, ran.out) == (3, "")
        assert "not known" in ran.err


def test_an_order_needs_price_and_account(folder: Path, capfd: Capture) -> None:
    assert tiebreak(capfd, "order", "place", "buy", "AAPL", "5", "-a", "alice").code == 2
    ran = tiebreak(capfd, "order", "place", "buy", "AAPL", "5", "--price", "1")
    assert ran.code == 1
    assert "--account" in ran.err


def test_a_broken_plugin_breaks_only_itself(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {"broken": EntryPoint("broken", "no_such_module:app", cli_main.PLUGINS)}
    monkeypatch.setattr(cli_main, "_plugins", lambda: points)
    assert "broken" in tiebreak(capfd, "--help").out
    ran = tiebreak(capfd, "broken", "some", "--option")
    assert ran.code == cli_main.EXIT_BUG
    assert "no_such_module" in ran.err
    assert tiebreak(capfd, "token", "--help").code == 0


def test_a_plugin_runs(capfd: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "good_plugin.py").write_text(
        '"""Greets. And more."""\n'
        "import typer\n"
        "app = typer.Typer()\n"
        "@app.command()\n"
        'def greet() -> None:\n    print("hi")\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(
        cli_main, "_plugins", lambda: {"greet": EntryPoint("greet", "good_plugin:app", cli_main.PLUGINS)}
    )
    assert "Greets." in tiebreak(capfd, "--help").out
    assert tiebreak(capfd, "greet").out == "hi\n"
    assert "completion" in tiebreak(capfd, "--help").out
    assert "completion" not in tiebreak(capfd, "greet", "--help").out


def test_a_bug_is_told_without_a_traceback(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIEBREAK_DEBUG", raising=False)
    monkeypatch.setattr(cli_main, "_load", lambda where: 1 // 0)
    ran = tiebreak(capfd, "status")
    assert ran.code == 70
    assert "a bug in tiebreak: ZeroDivisionError" in ran.err
    assert "Traceback" not in ran.err


def test_inspect_says_what_it_needs(folder: Path, capfd: Capture) -> None:
    for name, says in (("dc-a", "no store"), ("tiebreaker", "witness"), ("nobody", "neither")):
        ran = tiebreak(capfd, "inspect", name)
        assert ran.code == 1
        assert says in " ".join(ran.err.split())
