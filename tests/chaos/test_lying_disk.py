"""A disk that says "synced" and is not is named, and filled again; where its word made a majority, checks notice."""

import pytest

from chaos.sim.checks import Violation
from chaos.sim.engines import Hardened
from chaos.sim.stage import Stage, staged


def committed_on_a_lie(stage: Stage, *, apart: str) -> None:
    """a1 leads; entries are committed with b1, whose power then fails. apart: who sees nothing of it."""
    stage.elect("a1")
    stage.wait(200)
    if apart:
        stage.cut("a1 b1", apart)
    stage.lie("b1")
    last = stage.propose("a1", 3)[-1]

    def acknowledged() -> bool:
        return stage.committed("a1", last) and stage.core("a1").progress("b1").matched_index >= last

    stage.until(acknowledged, "committed, by b1's word")
    stage.crash("b1")
    assert not stage.on_disk("b1", last)


def test_it_is_named_and_gets_back_what_it_lost() -> None:
    with staged(Hardened(), "1+1+1") as stage:
        committed_on_a_lie(stage, apart="")
        stage.converge()
        assert stage.core("a1").counters["disk_forgot"] == 1
        assert stage["b1"].disk.last_index >= stage["a1"].disk.last_index > 0


def test_what_was_committed_by_its_word_alone_is_missed() -> None:
    """Out of contract: no engine can keep this promise. The run says so, and does not call it a pass."""
    with staged(Hardened(), "1+1+1") as stage:
        committed_on_a_lie(stage, apart="t1")
        stage.crash("a1")
        stage.restart("b1")
        with pytest.raises(Violation):
            stage.until(lambda: stage.leads("b1"), "b1 leads without what was committed", within_ms=20_000)


def test_the_same_on_an_honest_disk_is_kept() -> None:
    with staged(Hardened(), "1+1+1") as stage:
        stage["b1"].disk.lie = lambda: None  # type: ignore[method-assign]
        stage.elect("a1")
        stage.wait(200)
        stage.cut("a1 b1", "t1")
        last = stage.propose("a1", 3)[-1]
        stage.until(lambda: stage.committed("a1", last), "committed")
        stage.crash("a1", "b1")
        stage.restart("b1")
        stage.heal()
        stage.until(lambda: stage.leads("b1"), "b1 leads", within_ms=20_000)
        assert stage.on_disk("b1", last)
