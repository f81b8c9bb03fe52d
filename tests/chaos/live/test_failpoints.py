"""Failpoints: what is named wrongly is refused at start, what is named strikes at the right time and nowhere else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.live.programs import FAILPOINTS
from chaos.live.programs.failpoints import STEPS, Armed, Failpoint, UnknownFailpoint, parse

READ = [
    ("", []),
    ("before_reply:kill", [Failpoint("before_reply", "kill", at=1)]),
    (
        "after_append:kill:3, before_sync:sleep=200,",
        [Failpoint("after_append", "kill", at=3), Failpoint("before_sync", "sleep", 200)],
    ),
    ("before_sync:fail:2", [Failpoint("before_sync", "fail", at=2)]),
    ("before_sync:sleep=5:7", [Failpoint("before_sync", "sleep", 5, 7)]),
]
REFUSED = [
    ("before_lunch:kill", "'before_lunch' is none of before_append, after_append"),
    ("kill", "'kill' is none of"),
    ("before_sync", "'' is none of kill, fail, sleep=MILLISECONDS"),
    ("before_sync:explode", "'explode' is none of"),
    ("before_sync:sleep", "'sleep' is none of"),
    ("before_sync:kill=3", "'kill=3' is none of"),
    ("before_sync:sleep=0", "'0' must be a whole number from 1 to 600000"),
    ("before_sync:sleep=600001", "'600001' must be a whole number"),
    ("before_sync:kill:0", "'0' must be a whole number from 1"),
    ("before_sync:kill:-1", "'-1' must be a whole number"),
    ("before_sync:kill:x", "'x' must be a whole number"),
]


@pytest.mark.parametrize(("text", "failpoints"), READ)
def test_failpoints_are_read(text: str, failpoints: list[Failpoint]) -> None:
    assert parse(text) == failpoints


@pytest.mark.parametrize(("text", "words"), REFUSED)
def test_what_is_no_failpoint_is_refused(text: str, words: str) -> None:
    with pytest.raises(UnknownFailpoint) as caught:
        parse(text)
    assert words in str(caught.value)


def test_a_member_with_an_unknown_failpoint_does_not_start(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "chaos.live.programs.member", str(tmp_path / "none.toml")]
    environment = {**os.environ, FAILPOINTS: "before_lunch:kill"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert found.returncode == 2
    assert "before_lunch" in found.stderr


def test_a_failpoint_strikes_at_its_time(capfd: pytest.CaptureFixture[str]) -> None:
    armed = Armed(parse("before_sync:fail:3"))
    for _ in range(2):
        armed.reached("before_sync")
        armed.reached("after_sync")
    with pytest.raises(OSError, match="failpoint before_sync"):
        armed.reached("before_sync")
    armed.reached("before_sync")
    assert capfd.readouterr().err == "failpoint before_sync strikes: fail, time 3\n"


SCRIPT = """
import asyncio, os, sys
from pathlib import Path
from chaos.live.programs.failpoints import arm, parse

arm(parse(sys.argv[1]))
from cluster.consensus.journal import Put, TrimTo
from cluster.consensus.storage import LmdbStorage
from statemachine.machine import Machine
from statemachine.memory import MemoryBacking
from statemachine.codec import encode_batch

storage = LmdbStorage(Path(sys.argv[2]), cluster_id="c", member="m", map_bytes=1 << 24)
storage.write([Put(index, 1, b"x") for index in range(1, 9)])
print("written", flush=True)
storage.write([TrimTo(5)])
print("trimmed", flush=True)
Machine(MemoryBacking()).apply(1, encode_batch(1, []))
print("applied", flush=True)
"""


@pytest.mark.parametrize(
    ("failpoints", "said", "left"),
    [
        ("before_sync:kill", [], 0),
        ("after_sync:kill", [], 8),
        ("mid_trim:kill", ["written"], 8),
        ("after_sync:kill:2", ["written"], 4),
        ("before_apply:kill", ["written", "trimmed"], 4),
        ("after_append:kill", ["written", "trimmed", "applied"], 4),
    ],
)
def test_a_process_dies_inside_the_step(tmp_path: Path, failpoints: str, said: list[str], left: int) -> None:
    from cluster.consensus.storage import LmdbStorage  # noqa: PLC0415

    command = [sys.executable, "-c", SCRIPT, failpoints, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (found.returncode == -9) == (len(said) < 3), found.stderr
    assert found.stdout.split() == said
    storage = LmdbStorage(tmp_path, cluster_id="c", member="m", map_bytes=1 << 24)
    loaded = storage.load(tail_bytes_max=1 << 20)
    storage.close()
    assert (loaded.last_index - loaded.first_index + 1 if loaded.last_index else 0) == left


def test_every_step_is_there_to_be_wrapped() -> None:
    script = "import sys; from chaos.live.programs.failpoints import arm, parse; arm(parse(sys.argv[1]))"
    every = ",".join(f"{step}:sleep=1" for step in STEPS)
    found = subprocess.run(
        [sys.executable, "-c", script, every], capture_output=True, text=True, timeout=60, check=False
    )
    assert (found.returncode, found.stderr) == (0, "")
