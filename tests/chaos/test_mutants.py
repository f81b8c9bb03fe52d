"""Every fault put into the engine is noticed: most by a script, the others by a few seeds."""

from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from chaos import sim
from chaos.sim import real_mutants
from chaos.sim.cli import app
from chaos.sim.mutants import MUTANTS, Mutant, MutantStale, hunt, mutated
from chaos.sim.real_mutants import RealMutant, hunt_real

GATE_SEEDS = 60


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_mutant_is_noticed(mutant: Mutant) -> None:
    killed = hunt(mutant, seeds=GATE_SEEDS)
    assert killed is not None, f"{mutant.name!r} survived all scripts and {GATE_SEEDS} seeds"


def test_the_recorded_table_has_each_mutant() -> None:
    """After a new one: `tiebreak sim mutants --table`, and `--real`."""
    recorded = (Path(sim.__file__).parent / "MUTANTS.md").read_text("utf-8")
    names = [*(mutant.name for mutant in MUTANTS), *(mutant.name for mutant in real_mutants.MUTANTS)]
    assert [name for name in names if f"| {name} |" not in recorded] == []


def test_there_are_enough_of_them() -> None:
    assert len({mutant.name for mutant in MUTANTS}) >= 20


def test_the_engine_without_a_fault_survives() -> None:
    assert hunt(Mutant("nothing is wrong", "raft", "", ""), seeds=3) is None


def test_a_mutant_whose_text_is_gone_is_an_error() -> None:
    with pytest.raises(MutantStale, match="not in cluster"):
        mutated(Mutant("gone", "raft", "no such text", ""))


@pytest.mark.parametrize("mutant", real_mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_what_a_real_mutant_changes_is_there(mutant: RealMutant) -> None:
    """The hunt itself is the long run's, but for one: each copies the tree and starts pytest."""
    assert not real_mutants.stale(mutant)


def test_a_real_mutant_is_noticed_by_the_test_that_is_named() -> None:
    (mutant,) = (m for m in real_mutants.MUTANTS if m.name.startswith("two processes share"))
    killed = hunt_real(mutant)
    assert killed is not None
    assert killed.by == mutant.tests[0]
    assert hunt_real(msgspec.structs.replace(mutant, instead=mutant.text)) is None
    with pytest.raises(MutantStale):
        hunt_real(msgspec.structs.replace(mutant, text="no such text"))


def test_a_table_has_a_row_for_each_and_a_survivor_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = CliRunner().invoke(app, ["mutants", "acknowledges before", "--table", "--seeds", "1"])
    assert ran.exit_code == 0, ran.output
    assert ran.stdout.splitlines()[2].startswith("| acknowledges before the sync | raft | figure_8 |")
    assert "1 of 1 noticed" in ran.stderr
    harmless = msgspec.structs.replace(real_mutants.MUTANTS[4], instead=real_mutants.MUTANTS[4].text)
    monkeypatch.setattr(real_mutants, "MUTANTS", [harmless])
    ran = CliRunner().invoke(app, ["mutants", "--real"])
    assert ran.exit_code == 1
    assert "**survived**" in ran.stdout
