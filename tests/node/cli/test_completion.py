"""What the shell is told when a user presses TAB."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.folder import create


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("tiebreak or", ["order"]),
        ("tiebreak instrument ca", ["calendar"]),
        ("tiebreak order place --pr", ["--price"]),
        ("tiebreak up dc", ["dc-a", "dc-b"]),
        ("tiebreak node ti", ["tiebreaker"]),
        ("tiebreak inspect dc-b", ["dc-b"]),
        ("tiebreak down --cluster nowhere dc", []),
    ],
)
def test_commands_options_and_members_are_offered(tmp_path: Path, words: str, offered: list[str]) -> None:
    create(tmp_path / "c")
    asked = {
        "_TIEBREAK_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
        "TIEBREAK_CLUSTER": str(tmp_path / "c"),
    }
    done = subprocess.run(
        [sys.executable, "-c", "from node.cli.main import main; main()"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **asked},
    )
    assert done.stdout.split() == offered
    assert done.stderr == ""
