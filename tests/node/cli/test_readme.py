"""The README's tour is run as it is printed, on three real members: what it shows is what comes out."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.folder import ClusterFolder
from cluster.launcher import Launcher, run_down
from tests.cluster.test_launcher import free_ports

README = Path(__file__).parents[3] / "README.md"
PORT = 7700
"""The base port that the README shows."""

MARK = "@@@"
ELSEWHERE = "tiebreak chaos run "
"""A cluster of its own for minutes, and figures that no two runs share: tests/chaos/live/test_run.py runs it."""
# What differs from run to run, and what it is compared as. Each number counts as a number.
DIFFERS = [
    (re.compile(r'"request_id":"\w+"'), '"request_id":ID'),
    (re.compile(r"\b[0-9a-f]{8}\b"), "DIGEST"),
    (re.compile(r"\b(leader|follower)\b"), "STATE"),
    (re.compile(r"\d[\d.:,TZ-]*"), "N"),
    (re.compile(r"─+"), "─"),
    (re.compile(r"\s+"), " "),
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def steps() -> list[tuple[str, str]]:
    """(command, what it prints), in order."""
    found: list[tuple[str, str]] = []
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, printed = re.split(r"(?<!\\)\n", part, maxsplit=1)
            if not command.startswith(ELSEWHERE):
                found.append((command, printed))
    return found


def plain(text: str) -> list[str]:
    """Lines as they are compared: without what differs from run to run."""
    lines: list[str] = []
    for line in text.splitlines():
        shown = line.strip()
        for pattern, word in DIFFERS:
            shown = pattern.sub(word, shown)
        if shown:
            lines.append(shown)
    # Members get ready in any order.
    return sorted(lines) if lines and lines[0].startswith("✓") else lines


@pytest.mark.skipif(shutil.which("curl") is None, reason="the README's API examples need curl")
def test_the_tour_is_true(tmp_path: Path) -> None:
    base = free_ports()
    script = "".join(f"echo {MARK}\n{command}\n" for command, _ in steps())
    script = script.replace("tiebreak cluster init", f"tiebreak cluster init --base-port {base}")
    script = re.sub(rf"127\.0\.0\.1:{PORT // 100}(\d\d)", lambda port: f"127.0.0.1:{base + int(port[1])}", script)
    # What `make install` puts into the environment; the library example runs in the same shell.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tiebreak").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m node.cli.main "$@"\n')
    (tmp_path / "bin" / "tiebreak").chmod(0o755)
    example = re.sub(rf":{PORT // 100}(\d\d)", lambda port: f":{base + int(port[1])}", blocks("python")[0])
    (tmp_path / "example.py").write_text(example)
    script += f"echo {MARK}\n{sys.executable} example.py\n"
    expected = [*steps(), ("python example.py", blocks("text")[0])]
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "COLUMNS": "100"}
    environment.pop("TIEBREAK_CLUSTER", None)
    environment["PYTHONPATH"] = str(README.parent)
    try:
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=240,  # a machine that runs the rest of the tests beside it is slow
        )
    finally:
        if (tmp_path / "tiebreak-cluster").exists():
            run_down(Launcher(ClusterFolder(tmp_path / "tiebreak-cluster")))
    printed = done.stdout.split(f"{MARK}\n")[1:]
    assert len(printed) == len(expected), done.stdout
    for (command, says), came in zip(expected, printed, strict=True):
        assert plain(came) == plain(says), f"$ {command}\n{came}"


def test_the_settings_that_it_names_exist() -> None:
    text = README.read_text("utf-8")
    for name in re.findall(r"`(TIEBREAK_[A-Z]+)`", text):
        used = subprocess.run(
            ["grep", "-rqE", f"{name}", "node", "bench", "cluster", "gateway", "--include=*.py"],
            cwd=README.parent,
            check=False,
        )
        assert used.returncode == 0, name
    for path in re.findall(r"^(\w+/) ", blocks("")[0], re.MULTILINE):
        assert (README.parent / path).is_dir(), path
