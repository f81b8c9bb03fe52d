"""The compiled rules give what their sources give: digests of the same logs, golden bytes, conversations, the model.

The build is made into a folder of its own, which takes about 20 s of CPU, unless `make fast` made one of these sources.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from statemachine import compiled

ROOT = Path(__file__).parents[2]
SUITES = (
    "test_golden.py", "test_conversations.py", "test_edges.py", "test_machine.py", "test_replay.py", "test_fees.py",
    "test_calendar.py", "model/test_side_by_side.py::test_the_machine_does_what_the_model_does",
)  # fmt: skip
pytestmark = pytest.mark.timeout(900)
"""A build takes 20 s of CPU, whatever else the machine does."""
SAY = "from statemachine import compiled, machine; print(compiled.running(), machine.__file__)"


def run(build: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, compiled.ENGINE_ENV: build, compiled.FOLDER_ENV: str(folder)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not compiled.unusable():
        return compiled.folder()
    if not (shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("engine") / "built"
    done = run(compiled.PURE, folder, "-m", "statemachine.compiled_build")
    assert done.returncode == 0, done.stderr
    return folder


def test_the_build_runs_where_it_is_asked_for_and_nowhere_else(built: Path) -> None:
    assert run(compiled.COMPILED, built, "-c", SAY).stdout.startswith(f"compiled {built}/statemachine/machine.")
    assert run(compiled.PURE, built, "-c", SAY).stdout == f"pure {ROOT}/statemachine/machine.py\n"
    assert run("", built, "-c", SAY).stdout.startswith("pure ")


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_one_log_has_one_digest_under_both(built: Path, seed: str) -> None:
    said = [run(build, built, "-m", "tests.statemachine.flow", seed) for build in (compiled.PURE, compiled.COMPILED)]
    assert [one.returncode for one in said] == [0, 0], said
    assert said[0].stdout == said[1].stdout
    assert len(said[0].stdout.split()) == 2


def test_what_is_promised_of_the_rules_holds_of_the_build(built: Path) -> None:
    suites = [f"tests/statemachine/{name}" for name in SUITES]
    done = run(compiled.COMPILED, built, "-m", "pytest", "-x", "-p", "no:cacheprovider", *suites)
    assert done.returncode == 0, done.stdout[-4_000:]


def test_what_is_asked_for_and_can_not_be_had_is_refused(built: Path, tmp_path: Path) -> None:
    nowhere = run(compiled.COMPILED, tmp_path / "nowhere", "-c", SAY)
    assert nowhere.returncode == 1
    assert "no build of the engine is in" in nowhere.stderr
    shutil.copytree(built, tmp_path / "old")
    manifest = json.loads((built / compiled.MANIFEST).read_text())
    (tmp_path / "old" / compiled.MANIFEST).write_text(json.dumps({**manifest, "fingerprint": "0"}))
    assert "of other sources or another Python" in run(compiled.COMPILED, tmp_path / "old", "-c", SAY).stderr
    (tmp_path / "old" / compiled.MANIFEST).write_text("{")
    assert "no build of the engine is in" in run(compiled.COMPILED, tmp_path / "old", "-c", SAY).stderr
    assert "neither pure nor compiled" in run("fast", built, "-c", SAY).stderr
