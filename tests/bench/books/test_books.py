"""Order books beside ours: what they play is what our machine did, and who trades otherwise has no figure."""

import sys
from array import array
from collections import Counter
from pathlib import Path

import pytest

from bench import load
from bench.books import case, harness, steps
from bench.books.case import CONTENDERS, OUR_BOOK, OUR_MACHINE, Contender
from bench.books.harness import CANCEL, PLACE, TAKE, Fill, Step
from bench.flow import Act, Intent
from bench.peers.peer import PeerFailed
from bench.replay import Engine, ReplayError
from bench.running import RunError
from statemachine import compiled
from statemachine.types import Side

OURS = tuple(one for one in CONTENDERS if not one.kind and one.build == compiled.PURE)
BUY, SELL = int(Side.buy), int(Side.sell)


@pytest.fixture(scope="module")
def flow() -> steps.Recorder:
    return steps.recorded(load.intents_of("", 1), 3_000)


def test_a_reduction_is_a_cancel_and_an_order_of_what_is_left() -> None:
    recorder = steps.Recorder()
    for intent in (
        Intent(Act.place, 7, 0, SELL, 100, 10),
        Intent(Act.take, 7, 0, BUY, 100, 4),
        Intent(Act.reduce, 7, 0, SELL, 100, 9),
        Intent(Act.place, 8, 1, SELL, 100, 5),
        Intent(Act.cancel, 7, 0, SELL, 100, 0),
        Intent(Act.cancel, 7, 0, SELL, 100, 0),
        Intent(Act.take, 8, 0, BUY, 100, 9),
        Intent(Act.cancel, 8, 0, SELL, 100, 0),
    ):
        recorder.follow(intent)
    assert recorder.steps == [
        Step(PLACE, 1, 0, 100, 10),
        Step(TAKE, 2, 1, 100, 4),
        Step(CANCEL, 1, 0, 0, 0),
        Step(PLACE, 3, 0, 100, 5),
        Step(PLACE, 4, 0, 100, 5),
        Step(CANCEL, 3, 0, 0, 0),
        Step(TAKE, 5, 1, 100, 9),
    ]
    assert recorder.fills == [Fill(1, 100, 4), Fill(4, 100, 5)]


def test_what_was_recorded_one_by_one_trades_the_same_in_batches(flow: steps.Recorder) -> None:
    engine = Engine(steps.Asker().market)
    engine.open()
    applied = [engine.apply(payload) for payload in steps.payloads(flow.steps, 50)]
    assert list(steps.fills_of(applied)) == flow.fills
    assert len(flow.fills) > 50
    assert set(Counter(step.act for step in flow.steps)) == {PLACE, TAKE, CANCEL}


def test_a_flow_that_cancels_what_is_not_there_is_refused() -> None:
    recorder = steps.Recorder()
    with pytest.raises(ReplayError):
        recorder._ask(Step(CANCEL, 1, 0, 0, 0))


@pytest.mark.parametrize("one", CONTENDERS, ids=lambda one: one.name)
def test_each_trades_what_our_machine_traded(one: Contender, flow: steps.Recorder, tmp_path: Path) -> None:
    if one.kind and not case.PEERS_PYTHON.exists():
        pytest.skip(case.HOW_TO_GET)
    if one.build == compiled.COMPILED and compiled.unusable():
        pytest.skip("no build of the engine; `make fast` makes one")
    harness.write(tmp_path / "steps", flow.steps)
    played = case.play(one, tmp_path, flow)
    assert played.steps == len(flow.steps)
    assert len(played.slices_s) == -(-len(flow.steps) // harness.SLICE)
    assert played.cpu_s > 0


@pytest.mark.parametrize(
    ("spoiled", "words"),
    [
        ([Fill(1, 100, 4), Fill(4, 100, 5)], ""),
        ([Fill(1, 100, 4), Fill(3, 100, 5)], "fill 2 is Fill(maker=4, price=100, lots=5) with us, Fill(maker=3"),
        ([Fill(1, 100, 4), Fill(4, 101, 5)], "fill 2"),
        ([Fill(1, 100, 4)], "lots=5) with us, nothing there"),
        ([Fill(1, 100, 4), Fill(4, 100, 5), Fill(4, 100, 1)], "fill 3 is nothing with us"),
        ([Fill(4, 100, 5), Fill(1, 100, 4)], "fill 1"),
    ],
)
def test_who_trades_otherwise_is_told_where(spoiled: list[Fill], words: str) -> None:
    recorder = steps.Recorder()
    recorder.fills = [Fill(1, 100, 4), Fill(4, 100, 5)]
    told = array("q", [number for fill in spoiled for number in fill])
    if not words:
        case.check_same("it", told, recorder)
        return
    with pytest.raises(PeerFailed) as error:
        case.check_same("it", told, recorder)
    assert words in str(error.value)


def test_who_is_missing_fails_or_trades_otherwise_is_named_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(case, "PEERS_PYTHON", tmp_path / "no" / "python")
    monkeypatch.setattr(case, "CONTENDERS", (*OURS, Contender("absent", "bench.books.with_pyorderbook", case.PURE)))
    report = case.books(tmp_path / "absent", commands=1_000, rounds=2)
    assert [note for note in report.notes if "make peers" in note] == [case.HOW_TO_GET]
    assert {curve.series for curve in report.curves} == {"median turn", OUR_BOOK, OUR_MACHINE}

    monkeypatch.setattr(case, "PEERS_PYTHON", Path(sys.executable))
    others = (
        Contender("impatient", "tests.bench.books.impatient", case.PURE),
        Contender("not there", "bench.books.with_pyorderbook", case.PURE),
        Contender("broken", "bench.books.steps_", case.NATIVE),
    )
    monkeypatch.setattr(case, "CONTENDERS", (*others, *OURS))
    report = case.books(tmp_path / "broken", commands=3_000, rounds=2)
    assert [note.split(":")[0] for note in report.notes[:3]] == [
        "impatient traded otherwise than our machine",
        "not there is not installed; `make peers` gets it",
        "broken failed",
    ]
    assert not [figure for figure in report.figures if "impatient" in figure.name or "broken" in figure.name]
    assert report.figures


def test_a_build_that_is_not_there_is_named_and_ours_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.FOLDER_ENV, str(tmp_path / "nowhere"))
    monkeypatch.setattr(case, "CONTENDERS", tuple(one for one in CONTENDERS if not one.kind))
    report = case.books(tmp_path / "run", commands=1_000, rounds=1)
    assert [note for note in report.notes if "make fast` makes one" in note]
    assert {curve.series for curve in report.curves} == {"median turn", OUR_BOOK, OUR_MACHINE}


def test_goals_are_told_of_the_best_pure_one() -> None:
    def ran(per_s: float) -> list[case.Played]:
        return [case.Played("1", 1_000, 1_000 / per_s, 1.0, [1.0])]

    found = case.figures(
        {OUR_BOOK: ran(1e6), OUR_MACHINE: ran(1e5), "pyorderbook": ran(1e5), "akhil4n-orderbook": ran(2e5)}
    )
    goals = {figure.name: (figure.value, figure.passed) for figure in found if figure.passed is not None}
    assert goals == {
        "our book to the best pure Python book (akhil4n-orderbook)": (5.0, True),
        "our machine to the best pure Python book (akhil4n-orderbook)": (0.5, False),
    }


def test_our_own_failure_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case, "CONTENDERS", (Contender(OUR_BOOK, "tests.bench.books.impatient"),))
    with pytest.raises(RunError, match="traded otherwise"):
        case.books(tmp_path, commands=3_000, rounds=1)
