"""What a machine lacks is said, and the other rows still run: a port that is taken, a second core."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench import cli, compare_cli, host, running
from bench.compare_cli import Compared
from bench.report import Report

ENGINE = ["engine", "--commands", "1000"]


def test_a_port_in_use_is_named_and_the_next_benchmark_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    base = running.free_base_port(3)
    monkeypatch.setattr(running, "free_base_port", lambda members: base)
    with socket.create_server(("127.0.0.1", base)):
        done = CliRunner().invoke(cli.app, ["run", "cluster-one", *ENGINE, "--json"])
    assert "cluster-one failed" in done.stderr
    assert str(base) in done.stderr
    assert [report["benchmark"] for report in json.loads(done.stdout)] == ["engine"]
    assert done.exit_code == 1


@pytest.mark.parametrize("cores", [1, 2])
def test_a_machine_with_one_core_says_so_and_runs(cores: int) -> None:
    there = sorted(os.sched_getaffinity(0))
    if len(there) < cores:
        pytest.skip(f"this machine gives {len(there)} core")
    code = (
        f"import os, sys; os.sched_setaffinity(0, {there[:cores]}); "
        f"from bench.cli import app; app(['run', *{ENGINE}], standalone_mode=False)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "order commands" in done.stdout, done.stderr
    assert ("1 core:" in " ".join(done.stdout.split())) is (cores == 1)


def test_a_comparison_says_it_as_well(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    compare_cli.print_table(Compared(Report("compare", [], {}, host.describe(tmp_path), 1.0), []))
    assert "1 core:" in capsys.readouterr().out
