"""The tables of what must be noticed name what there is: programs, scenarios, checks, mutants, tests, commands."""

import re
import subprocess
import sys
from pathlib import Path

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
    found = get_command(app)
    while isinstance(found, typer.core.TyperGroup):
        found = found.get_command(typer.Context(found), words.pop(0))
    assert found is not None
    options = {option for parameter in found.params for option in parameter.opts}
    assert {word for word in command.split() if word.startswith("--")} <= options


def test_tests_of_the_record_are_there() -> None:
    """Collected all in one go; each must select something."""
    for command in [one for one in COMMANDS if one.startswith("pytest ")]:
        arguments = [sys.executable, "-m", *command.split(), "--collect-only", "-q", "-p", "no:cacheprovider"]
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-500:]}"
