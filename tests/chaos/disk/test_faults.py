"""Disks that lose power, fail, wait, fill up or kill; a small share of what `tiebreak disk` runs by command."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from chaos.disk.inject import FAULTS, inject
from chaos.disk.judge import Question, judge
from chaos.disk.mounts import MKFS, unavailable
from chaos.disk.powercut import LYING
from chaos.disk.tracing import strace_missing

ROOT = Path(__file__).parents[3]
traced = pytest.mark.skipif(bool(strace_missing()), reason="strace is not installed: no faults can be injected")


def tiebreak_disk(*arguments: str) -> tuple[int, Any, str]:
    """One run of `tiebreak disk ARGUMENTS --json`, in a process of its own: it takes its mounts with it."""
    done = subprocess.run(
        [sys.executable, "-m", "chaos.disk.cli", *arguments, "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


# -- power cuts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fs", "cuts"), [("ext4", 6), ("xfs", 4)])
def test_a_power_cut_loses_nothing_that_was_acknowledged(fs: str, cuts: int) -> None:
    if unavailable(fs):
        pytest.skip(f"NO POWER CUTS WERE MADE on {fs}: {unavailable(fs)}")
    code, found, said = tiebreak_disk("powercut", "--fs", fs, "--cuts", str(cuts), "--seed", "3")
    assert code == 0, said
    assert (found["cuts"], found["lost"], found["unopenable"]) == (cuts, 0, 0)
    assert found["acked_steps"] > 100


@pytest.mark.parametrize(("fs", "mutant"), [("ext4", "nosync"), ("xfs", "write-behind"), ("ext4", LYING)])
def test_a_power_cut_finds_a_journal_that_does_not_sync(fs: str, mutant: str) -> None:
    if unavailable(fs):
        pytest.skip(f"NO POWER CUTS WERE MADE on {fs}: {unavailable(fs)}")
    code, found, said = tiebreak_disk("powercut", "--fs", fs, "--cuts", "2", "--mutant", mutant, "--seed", "3")
    assert code == 1, said
    assert found["lost"] + found["unopenable"] > 0


def test_where_power_can_not_be_cut_it_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MKFS, "ext4", ("mkfs.nowhere",))
    assert unavailable("ext4")
    monkeypatch.undo()
    done = subprocess.run(
        [sys.executable, "-m", "chaos.disk.cli", "powercut"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"PATH": "/nowhere"},
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "NOT AVAILABLE HERE" in done.stderr


MOUNTED = """
import os, signal
from pathlib import Path
from chaos.disk.mounts import loop_disk, own_mounts, small_memory_disk
own_mounts()
with loop_disk("ext4") as disk, small_memory_disk(1 << 20) as small:
    (disk.path / "file").write_bytes(b"x")
    print(disk.device, Path(f"/sys/block/{Path(disk.device).name}/loop/backing_file").read_text().strip(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(bool(unavailable("ext4")), reason=f"NO FILE SYSTEM WAS MOUNTED: {unavailable('ext4')}")
def test_mounts_and_loop_devices_go_with_the_process_even_if_it_is_killed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MOUNTED],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        check=False,
    )
    assert done.returncode == -9, done.stderr
    device, _, image = done.stdout.strip().partition(" ")
    assert device not in Path("/proc/mounts").read_text("utf-8")
    backing = Path(f"/sys/block/{Path(device).name}/loop/backing_file")
    for _ in range(100):  # the kernel does it soon, not at once
        if not backing.exists() or backing.read_text("utf-8").strip() != image:
            break
        time.sleep(0.05)
    else:
        pytest.fail(f"{device} still shows {image}")


# -- injected faults -------------------------------------------------------------------------------


@traced
@pytest.mark.parametrize(
    ("kind", "fault", "nth", "exit_code"),
    [
        ("journal", "eio-at-sync", 2, 1),  # while it is opened
        ("journal", "eio-at-sync", 9, 71),
        ("journal", "eio-at-write", 9, 71),  # a data page
        ("journal", "eio-at-write", 11, 71),  # a meta page
        ("journal", "full-at-write", 9, 71),
        ("journal", "kill-at-write", 12, -9),
        ("journal", "kill-at-sync", 7, -9),
        ("store", "eio-at-sync", 1, 73),  # while it is made
        ("store", "eio-at-sync", 9, 73),
        ("store", "eio-at-write", 12, 73),
        ("store", "kill-at-write", 9, -9),
        ("journal", "slow-sync", 1, 0),
    ],
)
def test_who_hits_a_disk_error_leaves_and_acknowledges_nothing_more(
    kind: str, fault: str, nth: int, exit_code: int
) -> None:
    found = inject(kind, FAULTS[fault], nth, steps=30)
    assert found.wrong == ""
    assert found.exit_code == exit_code
    if fault == "slow-sync":
        assert found.sync_ms >= 50
    else:
        assert found.acked < 30


@traced
@pytest.mark.parametrize("fault", ["eio-at-sync", "eio-at-write", "full-at-write"])
def test_a_journal_that_swallows_errors_is_found(fault: str) -> None:
    found = inject("journal", FAULTS[fault], 9, steps=30, mutant="swallow-errors")
    assert found.wrong


@traced
def test_members_bear_slow_and_full_disks_and_leave_failing_ones() -> None:
    if unavailable("ext4"):
        pytest.skip(f"NO MEMBER MET A BAD DISK: {unavailable('ext4')}")
    code, found, said = tiebreak_disk("inject", "--places", "1", "--fault", "kill-at-sync", "--seconds", "1.5")
    assert code == 0, said
    assert len(found["members"]) == 5
    assert not [one for one in found["members"] if one["wrong"]]


# -- the judge -------------------------------------------------------------------------------------


@traced
def test_the_judge_refuses_what_was_never_written_and_what_is_missing(tmp_path: Path) -> None:
    writer = [sys.executable, "-m", "chaos.disk.writer", "journal", str(tmp_path / "j"), "7", "0", "--steps", "20"]
    subprocess.run([*writer, "--inline"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=60)

    def outcome(acked: int, begun: int, *, seed: int = 7) -> str:
        return judge(Question("journal", str(tmp_path / "j"), seed, [0], acked, begun)).outcome

    assert outcome(20, 20) == "holds"
    assert outcome(15, 25) == "holds"
    assert outcome(21, 25) == "lost", "an acknowledged group is missing"
    assert outcome(10, 19) == "lost", "a group is there that nobody wrote"
    assert outcome(20, 20, seed=8) == "lost", "another life's entries"
