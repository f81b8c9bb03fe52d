"""Whole runs against real processes: one that must pass, one that must fail, and none that leaves anything behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

import chaos.live.bed
from chaos.check.verdict import Verdict
from chaos.history.file import read_history
from chaos.history.run import read_run
from chaos.live.cli import app
from chaos.live.programs import program
from chaos.net.server import unavailable

WAIT_S = 180.0
BEGUN = b'"name":"warmup"'
toxiproxy = pytest.mark.skipif(bool(unavailable()), reason=f"needs toxiproxy: {unavailable()}")


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "node.cli.main", "chaos", "run", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def identity(pid: int) -> tuple[int, str]:
    """A pid and when its process began; a pid alone is given out again. Empty: it is gone, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("latin-1").rpartition(")")[2].split()
    except OSError:
        return pid, ""
    return pid, "" if fields[0] in "ZX" else fields[19]


def below(pid: int) -> Iterator[tuple[int, str]]:
    """All processes that this one started, and theirs."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int(entry.joinpath("stat").read_text("latin-1").rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == pid:
                yield identity(int(entry.name))
                yield from below(int(entry.name))


def until(holds: Callable[[], bool], what: str, *, within_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def running(process: subprocess.Popen[str], folder: Path) -> list[tuple[int, str]]:
    """Wait until its clients ask; what it has started by then."""
    history = folder / "history.jsonl"
    until(lambda: process.poll() is not None or (history.exists() and BEGUN in history.read_bytes()), "it never began")
    assert process.poll() is None, process.communicate()[1]
    return list(below(process.pid))


def gone(processes: list[tuple[int, str]]) -> bool:
    return not any(identity(pid)[1] == began for pid, began in processes)


def judged(process: subprocess.Popen[str]) -> Verdict:
    out, talk = process.communicate(timeout=WAIT_S)
    assert out, talk
    return msgspec.json.decode(out, type=Verdict)


@toxiproxy
def test_the_datacenters_are_cut_apart_and_every_promise_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start("dc-cut", "--seconds", "16", "--seed", "7", "--out", str(folder), "--json")
    started = running(process, folder)
    # What the tool lost of its own is put back, and told.
    proxy = next(pid for pid, _ in started if b"toxiproxy" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(proxy, signal.SIGKILL)
    verdict = judged(process)
    assert process.returncode == 0, verdict
    assert verdict.verdict == "pass"
    assert len(started) >= 12  # members, gateways, caches, a venue, a proxy for each that dials
    assert gone(started)
    run, history = read_run(folder), read_history(folder / "history.jsonl")
    assert {fault.nemesis for fault in history.faults if fault.did == "bite"} == {"dc-cut"} == set(run.expect)
    (told,) = run.restarts
    assert "had died and was started again" in told and told in (folder / "report.html").read_text("utf-8")
    assert verdict.figures["proxies_restarted"] == 1
    asked = {op.target for op in history.ops}
    assert asked == {"dc-a", "dc-b", "gateway-dc-a", "gateway-dc-b"}
    assert {op.outcome for op in history.ops} >= {"ok", "fail"}
    assert "tiebreak chaos run dc-cut --seconds 16 --seed 7" in (folder / "report.html").read_text("utf-8")
    assert {path.name for path in (folder / "members").iterdir()} >= {"dc-a.log", "tiebreaker.log", "gateway-dc-b.log"}
    assert not (folder / "cluster").exists()
    again = CliRunner().invoke(app, ["check", str(folder), "--json"])
    assert json.loads(again.stdout)["checks"] == msgspec.to_builtins(verdict)["checks"]


@toxiproxy
def test_a_deposit_that_is_made_twice_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ["--seconds", "6", "--seed", "1", "--engine", "double-credit", "--out", str(folder), "--json"]
    process = start("leader-kill", *words)
    verdict = judged(process)
    assert process.returncode == 1, verdict
    red = {check.name: check for check in verdict.checks if check.verdict == "fail"}
    assert red.keys() & {"answers", "reads", "money", "registers"}, verdict
    assert all(check.examples for check in red.values())
    assert (folder / "cluster" / "data" / "dc-a").is_dir(), "what a failed run had on disk is evidence"


@toxiproxy
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_run_that_is_ended_leaves_nothing_running(tmp_path: Path, number: signal.Signals, code: int) -> None:
    folder = tmp_path / "run"
    process = start("pauses", "--seconds", "60", "--seed", "1", "--out", str(folder))
    started = running(process, folder)
    process.send_signal(number)
    _, talk = process.communicate(timeout=60)
    assert process.returncode == code, talk
    until(lambda: gone(started), "something still runs", within_s=20)
    shown = CliRunner().invoke(app, ["report", str(folder)])
    assert shown.exit_code == 0, shown.output
    if number == signal.SIGINT:
        assert "nothing is left running" in talk


@toxiproxy
def test_a_cluster_that_does_not_start_is_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Members alone are started with an environment.
    monkeypatch.setattr(chaos.live.bed, "program", lambda name, **given: ["/bin/false"] if given else program(name))
    before = set(below(os.getpid()))
    refused = CliRunner().invoke(app, ["run", "dc-cut", "--out", str(tmp_path / "run")])
    assert refused.exit_code == 3
    assert "ended before it was ready" in refused.stderr
    assert gone([one for one in below(os.getpid()) if one not in before])


def test_a_missing_proxy_is_said_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOXIPROXY_SERVER", str(tmp_path / "nowhere"))
    refused = CliRunner().invoke(app, ["run", "dc-cut", "--out", str(tmp_path / "run")])
    assert refused.exit_code == 3
    assert "TOXIPROXY_SERVER" in refused.stderr
    assert "--network own" in refused.stderr
