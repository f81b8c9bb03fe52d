"""The tables of what must be noticed name what there is: programs, scenarios, checks, mutants, tests, commands."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from chaos.check import run as judging
from chaos.live.programs import MUTANTS, STOCK
from chaos.live.scenarios import SCENARIOS
from chaos.live.teeth import TEETH
from chaos.sim import mutants
from node.cli.main import app

ROOT = Path(__file__).parents[3]
RECORD = (ROOT / "chaos" / "TRACK_RECORD.md").read_text("utf-8")
COMMANDS = sorted(set(re.findall(r"`((?:tiebreak|pytest) [^`]+)`", RECORD)))


def test_every_program_that_must_fail_does_so_somewhere() -> None:
    assert {tooth.program for tooth in TEETH} == {STOCK, *MUTANTS}
    assert {tooth.scenario for tooth in TEETH} <= set(SCENARIOS)


def test_teeth_name_checks_that_there_are() -> None:
    named = set()
    for path in Path(str(judging.__file__)).parent.glob("*.py"):
        named |= set(re.findall(r'(?:judge|invalid|Check)\(\s*"([a-z_ -]+)"', path.read_text("utf-8")))
    assert {name for tooth in TEETH for name in tooth.red} <= named


@pytest.mark.parametrize("command", [one for one in COMMANDS if one.startswith("tiebreak sim mutants ")])
def test_mutants_of_the_record_are_there(command: str) -> None:
    wanted = command.removeprefix("tiebreak sim mutants ").strip('"')
    if not wanted.startswith("--"):
        assert [mutant for mutant in mutants.MUTANTS if wanted in mutant.name]


@pytest.mark.parametrize("command", [one for one in COMMANDS if one.startswith("tiebreak ")])
def test_commands_of_the_record_are_there(command: str) -> None:
    words = [word for word in command.split()[1:] if not word.startswith("-")]
    found: Any = get_command(app)
    while isinstance(found, typer.core.TyperGroup):
        found = found.get_command(typer.Context(found), words.pop(0))
    assert found is not None
    options = {option for parameter in found.params for option in parameter.opts}
    assert {word for word in command.split() if word.startswith("--")} <= options


@pytest.mark.parametrize("command", [one for one in COMMANDS if one.startswith("pytest ")])
def test_tests_of_the_record_are_there(command: str) -> None:
    words = command.split()[1:]
    only = words[words.index("-k") + 1] if "-k" in words else "test_"
    paths = [ROOT / word for word in words if word.startswith("tests/")]
    assert paths
    for path in paths:
        files = sorted(path.rglob("test_*.py")) if path.is_dir() else [path]
        names = [*(file.name for file in files), *re.findall(r"def (test_\w+)", "".join(map(Path.read_text, files)))]
        assert any(only in name for name in names), f"{path} has no {only}"
