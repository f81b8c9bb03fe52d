"""Impossible numbers are refused and improbable ones are marked, never shown as if they were good."""

import pytest

from gateway.feeds.guard import CONFIRMATIONS, REFERENCE_US_MAX, BadFrame, Counts, Guard
from gateway.feeds.ticks import CROSSED, E9, E9_MAX, LATE, RECEIVE_TIME, SUSPECT, Quote
from tests.gateway.feeds.frames import NOW_US


def quoted(guard: Guard, bid: float, ask: float, at_us: int = NOW_US, receive_us: int | None = None) -> Quote:
    numbers = round(bid * E9), E9, round(ask * E9), E9
    return guard.quote("S", "v", *numbers, at_us, at_us if receive_us is None else receive_us)


@pytest.fixture
def guard() -> Guard:
    return Guard(Counts())


ROWS = [
    # what came before, bid, ask, marks
    ([(100, 101)], 149, 150, 0),
    ([(100, 101)], 152, 153, SUSPECT),
    ([(100, 101)], 51, 52, 0),
    ([(100, 101)], 49, 50, SUSPECT),
    # A stub is not the best price of anything.
    ([(100, 101)], 0.01, 2_000, 0),
    ([(100, 101)], 0.01, 49, SUSPECT),
    ([(100, 101)], 160, 0, SUSPECT),
    ([(100, 101)], 0, 49, SUSPECT),
    ([(100, 101)], 100, 0, 0),
    ([(100, 101)], 0, 0, 0),
    ([(100, 101)], 102, 101, CROSSED),
    ([(100, 101)], 101, 101, 0),
    # A wide quote says nothing of where the price is.
    ([(0.01, 2_000)], 50, 50.2, 0),
    ([(50, 0)], 99, 100, 0),
    ([], 1, 2, 0),
]


@pytest.mark.parametrize(("before", "bid", "ask", "marks"), ROWS)
def test_what_is_marked(guard: Guard, before: list[tuple[float, float]], bid: float, ask: float, marks: int) -> None:
    for one in before:
        assert quoted(guard, *one).marks == 0
    assert quoted(guard, bid, ask).marks == marks


def test_a_jump_that_goes_on_is_confirmed_and_one_that_ends_is_forgotten(guard: Guard) -> None:
    quoted(guard, 100, 101)
    marks = [quoted(guard, 200 + step, 201 + step).marks for step in range(CONFIRMATIONS + 1)]
    assert marks == [SUSPECT] * (CONFIRMATIONS - 1) + [0, 0]
    assert quoted(guard, 100, 101).marks == SUSPECT, "the new price is the known one now"
    assert guard.counts.suspect == CONFIRMATIONS

    fresh = Guard(Counts())
    quoted(fresh, 100, 101)
    # Garbage that never agrees with itself is never confirmed.
    prices = [1_000, 5_000, 200, 90_000, 3_000, 700]
    assert [quoted(fresh, price, price + 1).marks for price in prices] == [SUSPECT] * len(prices)
    assert quoted(fresh, 100, 101).marks == 0


def test_a_good_price_between_two_bad_ones_starts_the_count_anew(guard: Guard) -> None:
    quoted(guard, 100, 101)
    for _ in range(CONFIRMATIONS * 2):
        assert quoted(guard, 300, 301).marks == SUSPECT
        assert quoted(guard, 100, 101).marks == 0


def test_after_a_long_silence_any_price_may_be_true(guard: Guard) -> None:
    quoted(guard, 700, 701)
    assert quoted(guard, 100, 101, NOW_US + REFERENCE_US_MAX).marks == SUSPECT
    assert quoted(guard, 100, 101, NOW_US + REFERENCE_US_MAX + 1).marks == 0


def test_trades_and_quotes_judge_each_other(guard: Guard) -> None:
    quoted(guard, 100, 101)
    trade = guard.trade("S", "v", 151 * E9, E9, NOW_US, NOW_US, "1")
    assert trade.marks == SUSPECT
    assert guard.trade("S", "v", 150 * E9, E9, NOW_US, NOW_US, "2").marks == 0
    assert quoted(guard, 220, 221).marks == 0, "150 is what is known now"


def test_a_trade_that_is_not_eligible_changes_nothing_that_is_known(guard: Guard) -> None:
    quoted(guard, 100, 101)
    for _ in range(CONFIRMATIONS + 1):
        assert guard.trade("S", "v", 300 * E9, E9, NOW_US, NOW_US, "1", False).marks == SUSPECT
    assert guard.trade("S", "v", 140 * E9, E9, NOW_US, NOW_US, "1", False).marks == 0
    assert quoted(guard, 200, 201).marks == SUSPECT


def test_symbols_and_venues_are_judged_apart(guard: Guard) -> None:
    quoted(guard, 100, 101)
    assert guard.quote("T", "v", 900 * E9, E9, 901 * E9, E9, NOW_US, NOW_US).marks == 0
    assert guard.quote("S", "w", 900 * E9, E9, 901 * E9, E9, NOW_US, NOW_US).marks == 0


TIMES = [
    # venue time, seconds from now; mark; what it becomes
    (0, 0, 0),
    (-3_600, 0, -3_600),
    (5, 0, 5),
    (6, RECEIVE_TIME, 0),
    (10_000_000, RECEIVE_TIME, 0),
]


@pytest.mark.parametrize(("ahead_s", "mark", "becomes_s"), TIMES)
def test_a_time_that_can_not_be_is_replaced(guard: Guard, ahead_s: int, mark: int, becomes_s: int) -> None:
    quote = quoted(guard, 1, 2, NOW_US + ahead_s * 1_000_000, NOW_US)
    assert (quote.marks, quote.venue_us) == (mark, NOW_US + becomes_s * 1_000_000)
    assert guard.counts.ahead == (mark == RECEIVE_TIME)


@pytest.mark.parametrize("venue_us", [0, -5])
def test_no_time_is_the_receive_time(guard: Guard, venue_us: int) -> None:
    quote = guard.quote("S", "v", E9, E9, 2 * E9, E9, venue_us, NOW_US)
    assert (quote.venue_us, quote.marks) == (NOW_US, RECEIVE_TIME)


def test_a_quote_whose_time_goes_back_is_the_newer_one_with_a_wrong_time(guard: Guard) -> None:
    quoted(guard, 1, 2, NOW_US)
    late = quoted(guard, 1.1, 2, NOW_US - 1)
    assert (late.marks, late.venue_us, guard.counts.late) == (LATE, NOW_US, 1)


def test_a_late_trade_keeps_its_time(guard: Guard) -> None:
    guard.trade("S", "v", E9, E9, NOW_US, NOW_US, "1")
    late = guard.trade("S", "v", E9, E9, NOW_US - 1, NOW_US, "2")
    assert (late.marks, late.venue_us, guard.counts.late) == (LATE, NOW_US - 1, 1)
    assert guard.trade("S", "v", E9, E9, NOW_US, NOW_US, "3").marks == 0


@pytest.mark.parametrize("number", [-1, E9_MAX + 1, 10**40])
def test_numbers_that_no_market_has_are_refused(guard: Guard, number: int) -> None:
    with pytest.raises(BadFrame, match="bad_price"):
        guard.quote("S", "v", number, E9, 0, 0, NOW_US, NOW_US)
    with pytest.raises(BadFrame, match="bad_size"):
        guard.quote("S", "v", 0, 0, E9, number, NOW_US, NOW_US)
    with pytest.raises(BadFrame, match="bad_price"):
        guard.trade("S", "v", number, E9, NOW_US, NOW_US, "1")
    with pytest.raises(BadFrame, match="bad_size"):
        guard.trade("S", "v", E9, number, NOW_US, NOW_US, "1")


def test_nothing_is_sold_for_nothing(guard: Guard) -> None:
    with pytest.raises(BadFrame, match="bad_price"):
        guard.trade("S", "v", 0, E9, NOW_US, NOW_US, "1")
    with pytest.raises(BadFrame, match="bad_size"):
        guard.trade("S", "v", E9, 0, NOW_US, NOW_US, "1")


@pytest.mark.parametrize(("price_e9", "marks"), [
    (150 * E9, 0), (150 * E9 + 1, SUSPECT), (50 * E9, 0), (50 * E9 - 1, SUSPECT),
])  # fmt: skip
def test_fifty_percent_exactly_is_no_jump_and_a_trade_alone_is_enough_to_know(
    guard: Guard, price_e9: int, marks: int
) -> None:
    assert guard.trade("S", "v", 100 * E9, E9, NOW_US, NOW_US, "1").marks == 0
    assert guard.trade("S", "v", price_e9, E9, NOW_US, NOW_US, "2").marks == marks
    assert (guard.counts.ticks, guard.counts.suspect) == (2, marks)


def test_a_trade_of_an_impossible_time_and_a_far_one_that_is_not_eligible_are_counted(guard: Guard) -> None:
    ahead = guard.trade("S", "v", 100 * E9, E9, NOW_US + 60_000_000, NOW_US, "1")
    assert (ahead.marks, ahead.venue_us, guard.counts.ahead) == (RECEIVE_TIME, NOW_US, 1)
    guard.trade("S", "v", 300 * E9, E9, NOW_US, NOW_US, "2", False)
    assert guard.counts.suspect == 1


@pytest.mark.parametrize(("venue_us", "becomes", "ahead"), [
    (NOW_US + 5_000_000, NOW_US + 5_000_000, 0), (NOW_US + 5_000_001, NOW_US, 1), (NOW_US - 1, NOW_US - 1, 0),
    (1, 1, 0), (0, NOW_US, 0), (-1, NOW_US, 1),
])  # fmt: skip
def test_the_time_of_a_book(guard: Guard, venue_us: int, becomes: int, ahead: int) -> None:
    assert guard.time(venue_us, NOW_US) == becomes
    assert guard.counts.ahead == ahead
