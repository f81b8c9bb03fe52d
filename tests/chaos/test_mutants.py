"""Every fault put into the engine is noticed: most by a script, the others by a few seeds."""

import pytest

from chaos.sim.mutants import MUTANTS, Mutant, MutantStale, hunt, mutated

GATE_SEEDS = 60


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_mutant_is_noticed(mutant: Mutant) -> None:
    killed = hunt(mutant, seeds=GATE_SEEDS)
    assert killed is not None, f"{mutant.name!r} survived all scripts and {GATE_SEEDS} seeds"


def test_there_are_enough_of_them() -> None:
    assert len({mutant.name for mutant in MUTANTS}) >= 20


def test_the_engine_without_a_fault_survives() -> None:
    assert hunt(Mutant("nothing is wrong", "raft", "", ""), seeds=3) is None


def test_a_mutant_whose_text_is_gone_is_an_error() -> None:
    with pytest.raises(MutantStale, match="not in cluster"):
        mutated(Mutant("gone", "raft", "no such text", ""))
