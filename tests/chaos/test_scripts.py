"""Each scripted schedule ends well with our engine; and a schedule can fail."""

import pytest

from chaos.sim.engines import Hardened
from chaos.sim.mutants import MUTANTS, mutated
from chaos.sim.scripts import SCRIPTS, play
from chaos.sim.stage import staged


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_script_holds(name: str) -> None:
    assert play(name, Hardened()) == ""


def test_a_script_fails_when_what_it_waits_for_does_not_come() -> None:
    (mutant,) = (m for m in MUTANTS if m.name == "a witness never campaigns")
    assert "not within" in play("witness_alone_holds_the_newest", mutated(mutant))


def test_figure_8_reaches_its_point() -> None:
    """The old entry is on a majority, uncommitted: else the script would prove nothing."""
    seen: list[str] = []
    assert play("figure_8", tell=seen.append) == ""
    text = "\n".join(seen)
    assert text.count("crashes script") == 4
    with staged(Hardened(), "2+2+1") as stage:
        assert [member.name for member in stage.members] == ["a1", "a2", "b1", "b2", "t1"]
