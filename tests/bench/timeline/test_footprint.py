"""What members take is what the system says that they take."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.timeline.footprint import disk_bytes, memory, slope

MIB = 2**20


def test_memory_is_that_of_the_process() -> None:
    code = f"held = bytearray({64 * MIB}); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        rss, pss, anonymous = memory(process.pid)
        process.kill()
    assert 64 * MIB < anonymous <= pss <= rss < 200 * MIB


def test_a_process_that_is_gone_takes_nothing() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert memory(process.pid) == (0, 0, 0)


def test_disk_is_what_is_there_and_not_what_a_file_could_be(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_bytes(os.urandom(MIB))
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(64 * MIB)
    assert MIB <= disk_bytes(tmp_path) < 2 * MIB


def test_growth_is_a_slope() -> None:
    assert slope([0, 1, 2, 3], [5, 7, 9, 11]) == pytest.approx(2.0)
    assert slope([0, 1, 2, 3], [5, 5, 5, 5]) == 0.0
    assert slope([1], [5]) == 0.0
