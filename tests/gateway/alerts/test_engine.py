"""When an alert fires, and when not: by hand, and beside a model that scans every alert at every tick."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from gateway.alerts.engine import STALE_MS, TAKEOVER_MS, Engine, Firing, Stage
from gateway.alerts.ladder import Ladder
from gateway.alerts.ownership import owner
from gateway.alerts.window import Window
from gateway.prefs.alert import Condition, Terms
from gateway.prefs.crdt import Dot, Version
from gateway.prefs.hlc import Stamp

NOW = 1_700_000_000_000_000
S = 1_000_000
STAMP = Stamp(1, 0, "dc-a.1")


def version(terms: Terms, number: int = 1, **more: int) -> Version:
    return Version(Dot("dc-a.1", number), STAMP, terms, **more)


def above(price: int, **more: Any) -> Terms:
    return Terms("AAPL", Condition.above, price_e9=price, **more)


def below(price: int, **more: Any) -> Terms:
    return Terms("AAPL", Condition.below, price_e9=price, **more)


def moves(bps: int, condition: Condition = Condition.moves, window_s: int = 300, **more: Any) -> Terms:
    return Terms("AAPL", condition, move_bps=bps, window_s=window_s, **more)


class Site:
    """An engine, its clock, and the document: what fires is counted at once, as a store would."""

    def __init__(self, terms: Terms, name: str = "dc-a", *, counts: bool = True) -> None:
        self.engine = Engine(name)
        self.now_us = NOW
        self.version = version(terms)
        self.counts = counts
        self.put()

    def put(self) -> None:
        self.engine.put("ann", [("x", self.version)])

    def count(self, firing: Firing) -> None:
        self.version = structs.replace(self.version, fired=firing.arming + 1, fired_at_us=firing.at_us)
        self.put()

    def at(self, price: int, after_s: float = 0.1) -> list[int]:
        """The armings that fire at this price, so long after the last."""
        self.now_us += round(after_s * S)
        found = self.engine.due(self.now_us)
        found += self.engine.tick("AAPL", price, self.now_us, self.now_us)
        for firing in found if self.counts else ():
            self.count(firing)
        return [firing.arming for firing in found]


# -- one alert -------------------------------------------------------------------------------------

CONDITIONS = [
    (above(200), [199, 200], [0, 1]),
    (above(200), [201], [1]),
    (below(200), [201, 200], [0, 1]),
    (below(200), [199], [1]),
    (moves(200), [10_000, 10_199, 10_200], [0, 0, 1]),
    (moves(200), [10_000, 9_801, 9_800], [0, 0, 1]),
    (moves(200, Condition.rises), [10_000, 9_800, 9_995, 9_996], [0, 0, 0, 1]),
    (moves(200, Condition.falls), [10_000, 10_200, 9_997, 9_996], [0, 0, 0, 1]),
]


@pytest.mark.parametrize(("terms", "prices", "fires"), CONDITIONS)
def test_it_fires_at_its_level_and_not_before(terms: Terms, prices: list[int], fires: list[int]) -> None:
    site = Site(terms)
    assert [len(site.at(price)) for price in prices] == fires
    assert site.at(prices[-1]) == []
    assert site.engine.stage("ann", "x") is Stage.done


def test_what_is_told() -> None:
    site = Site(above(200))
    (firing,) = site.engine.tick("AAPL", 203, NOW - 5, NOW)
    assert firing == Firing("ann", "x", Dot("dc-a.1", 1), 0, above(200), NOW - 5, 203, 203)
    assert firing.firing_id == "x/dc-a.1/1/0"
    site = Site(moves(200))
    site.at(10_000)
    assert [each.value for each in site.engine.tick("AAPL", 10_350, NOW + S, NOW + S)] == [350]


def test_a_move_is_measured_over_its_window_and_no_longer() -> None:
    late = Site(moves(200, window_s=60))
    late.at(10_000)
    assert late.at(10_201, 62) == []
    soon = Site(moves(200, window_s=60))
    soon.at(10_000)
    assert soon.at(10_201, 59) == [0]


# -- stale and strange prices ----------------------------------------------------------------------


def test_a_stale_price_never_fires() -> None:
    engine = Site(above(200)).engine
    stale_us = STALE_MS * 1_000
    assert engine.tick("AAPL", 300, NOW - stale_us - 1, NOW) == []
    assert engine.tick("AAPL", 300, NOW + stale_us + 1, NOW) == []
    assert engine.counters["ticks_passed_over"] == 2
    assert len(engine.tick("AAPL", 300, NOW - stale_us, NOW)) == 1


def test_trades_of_two_venues_come_a_little_out_of_order() -> None:
    engine = Site(above(200)).engine
    assert engine.tick("AAPL", 100, NOW, NOW) == []
    assert len(engine.tick("AAPL", 300, NOW - 1_000, NOW)) == 1
    moving = Site(moves(200, window_s=60)).engine
    second = NOW // S * S
    for price, at_us, now_us in ((10_100, second + S, second + S), (10_050, second + S - 1, second + S)):
        assert moving.tick("AAPL", price, at_us, now_us) == []
    assert len(moving.tick("AAPL", 10_252, second + 61 * S, second + 61 * S)) == 1


def test_no_prices_are_passed_over() -> None:
    engine = Site(above(200)).engine
    assert engine.tick("AAPL", 0, NOW, NOW) == []
    assert engine.tick("AAPL", -300, NOW, NOW) == []
    assert engine.tick("MSFT", 300, NOW, NOW) == []
    assert len(engine.tick("AAPL", 300, NOW, NOW)) == 1
    down = Site(below(200)).engine
    assert down.tick("AAPL", -300, NOW, NOW) == []


# -- repeating -------------------------------------------------------------------------------------


def test_a_repeating_alert_waits_for_the_price_to_go_back_and_for_its_cool_down() -> None:
    site = Site(above(10_000, repeat=True, hysteresis_bps=50, cooldown_s=60))
    assert site.at(10_000) == [0]
    assert site.at(9_951, 100) == []  # not back by 50 bps yet
    assert site.at(10_001) == []
    assert site.at(9_950) == []
    assert site.at(10_001) == [1]
    assert site.at(9_950, 10) == []  # back, but the cool-down has not passed
    assert site.at(10_001, 10) == []
    assert site.engine.stage("ann", "x") is Stage.cooling
    assert site.at(10_001, 41) == [2]


def test_below_goes_back_upwards() -> None:
    site = Site(below(10_000, repeat=True, hysteresis_bps=50, cooldown_s=60))
    assert site.at(10_000) == [0]
    assert site.at(10_049, 100) == []
    assert site.at(10_000) == []
    assert site.at(10_050) == []
    assert site.at(10_000) == [1]


def test_it_fires_once_a_cool_down_however_the_price_jumps() -> None:
    site = Site(below(10_000, repeat=True, cooldown_s=60))
    fired = sum(len(site.at(price, 0.5)) for _ in range(600) for price in (9_000, 11_000))
    assert fired == 10


def test_one_that_fires_elsewhere_while_it_cools_cools_from_then() -> None:
    site = Site(above(10_000, repeat=True, cooldown_s=60))
    site.at(10_000)
    site.at(9_000, 50)
    assert site.engine.stage("ann", "x") is Stage.cooling
    site.version = structs.replace(site.version, fired=2, fired_at_us=site.now_us)
    site.put()
    assert site.at(9_000) == []
    assert site.at(10_001, 20) == []  # the first cool-down has passed, the second not
    assert site.at(10_001, 40) == [2]
    again = Site(above(10_000, repeat=True, cooldown_s=60))
    again.at(10_000)
    again.at(9_000)
    again.version = structs.replace(again.version, fired=2)
    again.put()
    assert again.at(10_001, 100) == []  # it has not gone back since the second firing


def test_the_way_back_is_never_nothing_and_never_too_far() -> None:
    still = Site(above(10_000, repeat=True, hysteresis_bps=0, cooldown_s=60))
    assert still.at(10_000) == [0]
    assert still.at(10_000, 100) == []
    assert still.at(9_999) == []
    assert still.at(10_000) == [1]
    # A move of 40 bps can't fall back by 50: half of it is enough.
    move = Site(moves(40, repeat=True, hysteresis_bps=50, cooldown_s=60, window_s=3_600))
    move.at(10_000)
    assert move.at(10_040) == [0]
    assert move.at(10_021, 100) == []
    assert move.at(10_040) == []
    assert move.at(10_020) == []
    assert move.at(10_040) == [1]


def test_after_a_start_one_that_fired_rests() -> None:
    site = Site(above(200, repeat=True, hysteresis_bps=100))
    site.version = version(above(200, repeat=True, hysteresis_bps=100), fired=3, fired_at_us=NOW - 600 * S)
    site.engine = Engine("dc-a")
    site.put()
    assert site.at(300) == []
    assert site.at(198) == []
    assert site.at(300) == [3]


def test_written_anew_it_is_armed_anew() -> None:
    site = Site(above(200))
    assert site.at(201) == [0]
    site.version = version(above(200), 2)
    site.put()
    assert site.at(201) == [0]


def test_a_removed_alert_is_forgotten() -> None:
    site = Site(above(200))
    site.engine.put("ann", [])
    assert site.at(300) == []
    assert len(site.engine) == 0
    assert site.engine._books == {}


def test_an_alert_that_cools_or_waits_can_be_removed() -> None:
    site = Site(above(10_000, repeat=True, cooldown_s=60))
    site.at(10_000)
    site.at(9_000)
    assert site.engine.stage("ann", "x") is Stage.cooling
    site.engine.put("ann", [])
    assert site.at(10_001, 100) == []
    held = Site(above(10), name=not_owner())
    held.engine.set_live(["dc-a", "dc-b"])
    held.at(20)
    held.engine.put("ann", [])
    assert held.at(20, 100) == []


# -- two sites -------------------------------------------------------------------------------------


def not_owner() -> str:
    return "dc-b" if owner("ann/x", ["dc-a", "dc-b"]) == "dc-a" else "dc-a"


def pair(terms: Terms) -> tuple[Site, Site]:
    """The owner's site and the other."""
    other = not_owner()
    sites = Site(terms, "dc-a" if other == "dc-b" else "dc-b"), Site(terms, other)
    for site in sites:
        site.engine.set_live(["dc-a", "dc-b"])
    return sites


def test_the_owner_fires_and_the_other_waits() -> None:
    ours, theirs = pair(above(200))
    assert theirs.at(201) == []
    assert ours.at(201) == [0]
    theirs.version = ours.version  # the merge
    theirs.put()
    assert theirs.at(202, 100) == []
    assert theirs.engine.counters["takeovers"] == 0


def test_an_owner_that_says_nothing_is_stood_in_for() -> None:
    _, theirs = pair(above(200))
    assert theirs.at(201) == []
    assert theirs.at(100, TAKEOVER_MS / 1_000 - 0.01) == []
    assert theirs.at(100, 0.01) == [0]
    assert theirs.engine.counters["takeovers"] == 1


def test_what_an_owner_had_seen_and_not_fired_is_fired_when_it_goes_away() -> None:
    _, theirs = pair(above(200))
    assert theirs.at(201) == []
    (firing,) = theirs.engine.set_live([theirs.engine._site])
    assert firing.firing_id == "x/dc-a.1/1/0"
    assert theirs.engine.set_live([theirs.engine._site]) == []


def test_fired_on_both_sides_of_a_partition_it_has_one_id() -> None:
    ours, theirs = pair(above(200))
    ids = []
    for site in (ours, theirs):
        assert site.engine.set_live([site.engine._site]) == []
        (firing,) = site.engine.tick("AAPL", 201, NOW, NOW)
        ids.append(firing.firing_id)
    assert ids[0] == ids[1]


def test_a_firing_that_could_not_be_counted_is_given_again() -> None:
    site = Site(above(200), counts=False)
    site.now_us = NOW
    (firing,) = site.engine.tick("AAPL", 201, NOW, NOW)
    site.engine.hold(firing, NOW)
    assert site.engine.due(NOW) == []
    assert site.engine.due(NOW + S) == [firing]
    site.engine.hold(firing, NOW)
    site.version = version(above(500), 2)
    site.put()
    assert site.engine.due(NOW + 9 * S) == []
    site.engine.hold(firing, NOW)
    assert site.engine.due(NOW + 9 * S) == []


def test_owners_share_the_work_and_only_the_absent_ones_changes_hands() -> None:
    names = [f"user-{n}/x" for n in range(2_000)]
    three = {name: owner(name, ["dc-a", "dc-b", "dc-c"]) for name in names}
    assert all(500 < list(three.values()).count(site) < 850 for site in ("dc-a", "dc-b", "dc-c"))
    for name in names:
        if three[name] != "dc-c":
            assert owner(name, ["dc-b", "dc-a"]) == three[name]


# -- against a model -------------------------------------------------------------------------------


class Scan:
    """Every alert at every tick, from the whole past."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.past: list[tuple[int, int]] = []
        self.stage = "armed"
        self.fired_at_us = 0

    def tick(self, price: int, now_us: int) -> bool:
        self.past.append((now_us, price))
        if self.stage == "done":
            return False
        value, at = self._value(price, now_us), self._level()
        if self.stage == "cooling" and now_us >= self.fired_at_us + self.terms.cooldown_s * S:
            self.stage = "armed"
        if self.stage == "resting" and value <= self._back(at):
            cooled = now_us >= self.fired_at_us + self.terms.cooldown_s * S
            self.stage = "armed" if cooled else "cooling"
        if self.stage == "armed" and value >= at:
            self.stage = "resting" if self.terms.repeat else "done"
            self.fired_at_us = now_us
            return True
        return False

    def _value(self, price: int, now_us: int) -> int:
        match self.terms.condition:
            case Condition.above:
                return price
            case Condition.below:
                return -price
        recent = [p for at, p in self.past if at // S >= now_us // S - self.terms.window_s]
        risen = (price - min(recent)) * 10_000 // min(recent)
        fallen = (max(recent) - price) * 10_000 // max(recent)
        return {Condition.rises: risen, Condition.falls: fallen}.get(self.terms.condition, max(risen, fallen))

    def _level(self) -> int:
        match self.terms.condition:
            case Condition.above:
                return self.terms.price_e9
            case Condition.below:
                return -self.terms.price_e9
        return self.terms.move_bps

    def _back(self, at: int) -> int:
        if self.terms.move_bps:
            return max(at // 2, at - self.terms.hysteresis_bps)
        return at - max(1, self.terms.price_e9 * self.terms.hysteresis_bps // 10_000)


any_terms = st.one_of(
    st.builds(
        lambda side, price, repeat, hysteresis: Terms(
            "AAPL", side, price_e9=price, repeat=repeat, hysteresis_bps=hysteresis, cooldown_s=60
        ),
        st.sampled_from([Condition.above, Condition.below]),
        st.integers(9_900, 10_100),
        st.booleans(),
        st.integers(0, 100),
    ),
    st.builds(
        lambda side, bps, window, repeat: Terms(
            "AAPL", side, move_bps=bps, window_s=window, repeat=repeat, cooldown_s=60
        ),
        st.sampled_from([Condition.moves, Condition.rises, Condition.falls]),
        st.integers(1, 150),
        st.sampled_from([60, 300]),
        st.booleans(),
    ),
)
ticks = st.lists(st.tuples(st.integers(9_850, 10_150), st.sampled_from([0.01, 0.3, 1, 7, 31, 61])), max_size=60)


@given(st.lists(any_terms, min_size=1, max_size=8), ticks)
def test_it_fires_as_a_scan_of_everything_does(all_terms: list[Terms], taken: list[tuple[int, float]]) -> None:
    engine = Engine("dc-a")
    versions = {f"alert-{n}": version(terms, n + 1) for n, terms in enumerate(all_terms)}
    # A moves alert knows prices since it was set; one of each window is there from the start.
    engine.put("ann", versions.items())
    scans = {name: Scan(each.terms) for name, each in versions.items()}
    now_us = NOW
    for price, after_s in taken:
        now_us += round(after_s * S)
        assert engine.due(now_us) == []
        fired = {firing.alert_id: firing for firing in engine.tick("AAPL", price, now_us, now_us)}
        assert set(fired) == {name for name, scan in scans.items() if scan.tick(price, now_us)}
        for name, firing in fired.items():
            versions[name] = structs.replace(versions[name], fired=firing.arming + 1, fired_at_us=firing.at_us)
        if fired:
            engine.put("ann", versions.items())


@given(st.lists(st.tuples(st.sampled_from(["arm", "rest", "remove", "up", "down"]), st.integers(0, 9)), max_size=60))
def test_a_ladder_is_a_sorted_scan(taken: list[tuple[str, int]]) -> None:
    ladder = Ladder()
    armed: dict[tuple[str, str], int] = {}
    resting: dict[tuple[str, str], int] = {}
    for number, (what, level) in enumerate(taken):
        key = ("ann", str(number % 7))
        if what == "arm" and key not in armed and key not in resting:
            ladder.arm(key, level)
            armed[key] = level
        elif what == "rest" and key not in armed and key not in resting:
            ladder.rest(key, level)
            resting[key] = level
        elif what == "remove":
            ladder.remove(key)
            armed.pop(key, None)
            resting.pop(key, None)
        elif what == "up":
            found = ladder.reached(level)
            assert set(found) == {k for k, at in armed.items() if at <= level}
            armed = {k: at for k, at in armed.items() if at > level}
        elif what == "down":
            assert set(ladder.fallen(level)) == {k for k, at in resting.items() if at >= level}
            resting = {k: at for k, at in resting.items() if at < level}
        assert len(ladder) == len(armed) + len(resting)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 30)), min_size=1, max_size=80))
def test_a_window_is_the_least_and_most_of_its_seconds(taken: list[tuple[int, int]]) -> None:
    window, past, second = Window(60), [], 0
    for price, after in taken:
        second += after
        past.append((second, price))
        window.add(price, second * S)
        recent = [p for at, p in past if at >= second - 60]
        assert window.risen_bps(price) == (price - min(recent)) * 10_000 // min(recent)
        assert window.fallen_bps(price) == (max(recent) - price) * 10_000 // max(recent)


def test_a_tick_that_fires_nothing_does_not_look_at_every_alert() -> None:
    few, many = work_of(10), work_of(20_000)
    assert many < 3 * few + 20


def work_of(count: int) -> int:
    """Comparisons of one tick on so many alerts."""
    engine = Engine("dc-a")
    for n in range(count // 10):
        engine.put(f"user-{n}", [(f"x{i}", version(above(1_000 + n + i), i + 1)) for i in range(10)])
    return counted(lambda: engine.tick("AAPL", 500, NOW, NOW))


def counted(work: Callable[[], object]) -> int:
    """Lines of Python that it runs."""
    lines = 0

    def trace(_frame: object, event: str, _argument: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return lines
