"""Conversations with the machine, kept in files. `REWRITE=1 pytest tests/statemachine` writes what it says now."""

import os
from pathlib import Path

import pytest

from tests.statemachine.talk import converse

FILES = sorted((Path(__file__).parent / "conversations").glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_conversation(path: Path) -> None:
    said = path.read_text(encoding="utf-8")
    says, findings = converse(said)
    assert findings == []
    if os.environ.get("REWRITE") == "1":
        path.write_text(says, encoding="utf-8")
        return
    assert says == said, f"{path.name} says something else now; REWRITE=1 keeps it, if it is right"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_restart_after_every_command_changes_nothing(path: Path) -> None:
    says, findings = converse(path.read_text(encoding="utf-8"), restarting=True)
    assert findings == []
    assert says == path.read_text(encoding="utf-8")


def test_there_are_conversations() -> None:
    assert len(FILES) >= 10
