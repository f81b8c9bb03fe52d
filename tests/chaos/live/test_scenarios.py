"""Plans are drawn from seeds: the same again, in time, of every kind, and with faults that exist."""

from itertools import pairwise

import pytest

from chaos.faults.nemeses import NEMESES
from chaos.live.scenarios import SCENARIOS, SHAPES, UnknownScenario, draw_plan, scenario_named
from chaos.workloads.workloads import WORKLOADS

ALL = sorted(SCENARIOS)


@pytest.mark.parametrize("name", ALL)
def test_a_scenario_names_what_there_is(name: str) -> None:
    scenario = SCENARIOS[name]
    assert {strike.nemesis for strike in scenario.strikes} <= set(NEMESES)
    assert all(NEMESES[strike.nemesis].promised for strike in scenario.strikes)
    assert set(scenario.workloads) <= set(WORKLOADS)
    assert set(scenario.expect) <= {strike.nemesis for strike in scenario.strikes}
    assert scenario.shapes
    assert set(scenario.shapes) <= set(SHAPES)
    assert len(scenario.line) < 90
    assert scenario.story.endswith(".")


@pytest.mark.parametrize("name", ALL)
def test_a_seed_is_one_plan(name: str) -> None:
    scenario = SCENARIOS[name]
    assert draw_plan(scenario, 7, 60) == draw_plan(scenario, 7, 60)
    assert len({str(draw_plan(scenario, seed, 60)) for seed in range(8)}) > 1


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("seconds", [5, 60])
def test_faults_follow_each_other_within_the_time(name: str, seconds: float) -> None:
    scenario = SCENARIOS[name]
    for seed in range(20):
        plan = draw_plan(scenario, seed, seconds)
        assert [fault.number for fault in plan] == list(range(1, len(plan) + 1))
        assert scenario.required(plan)
        if not scenario.mixed:
            longest = max(strike.for_s[0] for strike in scenario.strikes)
            assert all(fault.at_s + fault.for_s <= max(seconds, 1.5 + longest) + 0.1 for fault in plan)
            for before, after in pairwise(plan):
                assert after.at_s >= before.at_s + before.for_s


@pytest.mark.parametrize("name", [name for name in ALL if not SCENARIOS[name].mixed])
def test_every_kind_comes_before_any_comes_again(name: str) -> None:
    scenario = SCENARIOS[name]
    kinds = [fault.nemesis for fault in draw_plan(scenario, 3, 300)]
    assert set(kinds[: len(scenario.strikes)]) == {strike.nemesis for strike in scenario.strikes}


def test_faults_of_a_mix_that_strike_at_once_share_no_part() -> None:
    overlapping = 0
    for seed in range(20):
        plan = draw_plan(SCENARIOS["mixed"], seed, 120)
        for one in plan:
            for other in plan:
                if (
                    one.number < other.number
                    and other.at_s < one.at_s + one.for_s
                    and one.at_s < other.at_s + other.for_s
                ):
                    overlapping += 1
                    assert not NEMESES[one.nemesis].parts & NEMESES[other.nemesis].parts, (seed, one, other)
    assert overlapping > 20


def test_a_misspelled_scenario_gets_a_suggestion() -> None:
    with pytest.raises(UnknownScenario, match="did you mean dc-cut"):
        scenario_named("dccut")
    with pytest.raises(UnknownScenario, match="there are dc-cut, "):
        scenario_named("earthquake")
