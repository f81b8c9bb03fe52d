"""The best prices are those of a naive model, whatever comes in whatever order; what can't be trusted is not in."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.feeds.ticks import CROSSED, HALTED, LATE, SUSPECT, BookDiff, Quote, Status, StatusKind, Tick, Trade
from gateway.market.nbbo import TTL_US, NbboBook

T0 = 1_000_000_000


def quote(
    venue: str,
    bid: int,
    ask: int,
    at_us: int = T0,
    *,
    sizes: tuple[int, int] = (1, 1),
    symbol: str = "A",
    marks: int = 0,
) -> Quote:
    bid_size, ask_size = sizes
    return Quote(symbol, venue, bid, bid_size if bid else 0, ask, ask_size if ask else 0, at_us, at_us, marks)


def best(book: NbboBook, at_us: int = T0, symbol: str = "A") -> tuple[int, int, str, int, int, str] | None:
    seen = book.at(symbol, at_us)
    return None if seen is None else (
        seen.bid_e9, seen.bid_size_e9, seen.bid_venue, seen.ask_e9, seen.ask_size_e9, seen.ask_venue,
    )  # fmt: skip


NONE = (0, 0, "", 0, 0, "")
ROWS: list[tuple[list[Quote], tuple[int, int, str, int, int, str]]] = [
    ([quote("x", 10, 12)], (10, 1, "x", 12, 1, "x")),
    ([quote("x", 10, 13), quote("y", 11, 14)], (11, 1, "y", 13, 1, "x")),
    # Sizes at the same price add up; the venue named is the one with the most, then the first by name.
    ([quote("x", 10, 12, sizes=(3, 1)), quote("y", 10, 12, sizes=(4, 1))], (10, 7, "y", 12, 2, "x")),
    ([quote("y", 10, 12), quote("x", 10, 12)], (10, 2, "x", 12, 2, "x")),
    # A venue's newer quote replaces its older one.
    ([quote("x", 11, 12), quote("x", 10, 12)], (10, 1, "x", 12, 1, "x")),
    # A side that is not there.
    ([quote("x", 0, 12), quote("y", 10, 0)], (10, 1, "y", 12, 1, "x")),
    ([quote("x", 10, 0)], (10, 1, "x", 0, 0, "")),
    ([quote("x", 10, 12), quote("x", 0, 0)], NONE),
    # Marked quotes take the venue out; a late one is still the newest.
    ([quote("x", 10, 12), quote("x", 16, 17, marks=SUSPECT)], NONE),
    ([quote("x", 10, 12), quote("y", 14, 13, marks=CROSSED)], (10, 1, "x", 12, 1, "x")),
    ([quote("x", 10, 12), quote("x", 10, 12, marks=HALTED)], NONE),
    ([quote("x", 10, 12), quote("x", 11, 12, marks=LATE)], (11, 1, "x", 12, 1, "x")),
]


@pytest.mark.parametrize(("quotes", "expected"), ROWS)
def test_the_best_across_venues(quotes: list[Quote], expected: tuple[int, int, str, int, int, str]) -> None:
    book = NbboBook()
    book.apply(quotes, T0)
    assert best(book) == expected


@pytest.mark.parametrize(
    ("ask", "crossed", "locked"), [(9, True, False), (10, False, True), (11, False, False), (0, False, False)]
)
def test_venues_may_cross_and_lock_one_another(ask: int, crossed: bool, locked: bool) -> None:
    book = NbboBook()
    book.apply([quote("x", 10, 0), quote("y", 0, ask)], T0)
    seen = book.at("A", T0)
    assert seen is not None
    assert (seen.crossed, seen.locked) == (crossed, locked)


def test_a_venue_that_falls_silent_drops_out_within_its_time_to_live() -> None:
    book = NbboBook()
    book.apply([quote("x", 10, 12), quote("y", 9, 13)], T0)
    book.apply([Status("y", StatusKind.ALIVE, T0 + TTL_US - 1)], T0 + TTL_US - 1)
    assert best(book, T0 + TTL_US - 1) == (10, 1, "x", 12, 1, "x")
    assert best(book, T0 + TTL_US) == (9, 1, "y", 13, 1, "y")
    assert best(book, T0 + 2 * TTL_US - 2) == (9, 1, "y", 13, 1, "y")
    assert best(book, T0 + 2 * TTL_US - 1) == NONE
    assert book.fell_silent == 2


def test_a_venue_that_is_heard_again_without_a_gap_is_as_good_as_before() -> None:
    """Heartbeats that come a little late must not cost every quote that does not change."""
    book = NbboBook()
    book.apply([quote("x", 10, 12)], T0)
    assert best(book, T0 + TTL_US) == NONE
    at_us = T0 + TTL_US + 5
    book.apply([Status("x", StatusKind.ALIVE, at_us)], at_us)
    assert best(book, at_us) == (10, 1, "x", 12, 1, "x")
    assert [one.symbol for one in book.changed(at_us)] == ["A"]
    assert best(book, at_us + TTL_US) == NONE
    book.apply(
        [Status("x", StatusKind.GAP, at_us + TTL_US), Status("x", StatusKind.ALIVE, at_us + TTL_US)], at_us + TTL_US
    )
    assert best(book, at_us + TTL_US) == NONE, "a gap is not forgiven"


def test_each_venue_has_its_own_time_to_live() -> None:
    book = NbboBook(ttls_us={"y": 3 * TTL_US})
    book.apply([quote("x", 10, 12), quote("y", 9, 13)], T0)
    assert best(book, T0 + TTL_US) == (9, 1, "y", 13, 1, "y")
    assert best(book, T0 + 3 * TTL_US - 1) == (9, 1, "y", 13, 1, "y")
    assert best(book, T0 + 3 * TTL_US) == NONE


def test_any_tick_is_a_sign_of_life() -> None:
    book = NbboBook()
    at_us = T0 + TTL_US - 1
    book.apply([quote("x", 10, 12), quote("y", 10, 12)], T0)
    book.apply([Trade("B", "x", 1, 1, at_us, at_us, "1"), BookDiff("B", "y", 1, (), (), at_us, at_us)], at_us)
    assert best(book, T0 + TTL_US) == (10, 2, "x", 12, 2, "x")


def test_where_symbols_fall_silent_one_by_one_each_has_its_own_time() -> None:
    book = NbboBook(silent_symbols=["x"])
    book.apply([quote("x", 10, 12), quote("x", 20, 22, symbol="B")], T0)
    book.apply([quote("x", 11, 12, T0 + 600_000), Status("x", StatusKind.ALIVE, T0 + 600_000)], T0 + 600_000)
    assert best(book, T0 + TTL_US - 1, "B") == (20, 1, "x", 22, 1, "x")
    assert best(book, T0 + TTL_US, "B") == NONE
    assert best(book, T0 + TTL_US, "A") == (11, 1, "x", 12, 1, "x")
    assert best(book, T0 + 600_000 + TTL_US, "A") == NONE


def test_what_waited_too_long_is_no_sign_of_life() -> None:
    """A quote that lay in a queue for a second must not bring its venue back."""
    book = NbboBook()
    book.apply([quote("x", 10, 12)], T0)
    at_us = T0 + 200_000 + TTL_US
    book.apply([quote("x", 11, 12, T0 + 200_000)], at_us)
    assert best(book, at_us) == NONE
    book.apply([quote("x", 20, 22, at_us, symbol="B")], at_us)
    assert best(book, at_us) == (11, 1, "x", 12, 1, "x"), "it was the newest when the venue is heard again"
    alone = NbboBook(silent_symbols=["x"])
    alone.apply([quote("x", 10, 12), quote("x", 11, 12, T0 + 200_000)], at_us)
    alone.apply([quote("x", 20, 22, at_us, symbol="B")], at_us)
    assert best(alone, at_us) == NONE


DROPS = [
    (Status("x", StatusKind.GAP, T0), {"A": False, "B": False}),
    (Status("x", StatusKind.GAP, T0, "A"), {"A": False, "B": True}),
    (Status("x", StatusKind.HALTED, T0, "B"), {"A": True, "B": False}),
    (Status("x", StatusKind.DOWN, T0), {"A": False, "B": False}),
    (Status("x", StatusKind.BOOK_GAP, T0), {"A": True, "B": True}),
    (Status("x", StatusKind.TRADE_GAP, T0), {"A": True, "B": True}),
    (Status("y", StatusKind.DOWN, T0), {"A": True, "B": True}),
    (Status("nobody", StatusKind.GAP, T0, "nothing"), {"A": True, "B": True}),
]


@pytest.mark.parametrize(("status", "left"), DROPS)
def test_what_a_status_takes_out_at_once(status: Status, left: dict[str, bool]) -> None:
    book = NbboBook()
    book.apply([quote("x", 10, 12), quote("x", 10, 12, symbol="B")], T0)
    book.apply([status], T0)
    assert {symbol: best(book, T0, symbol) != NONE for symbol in "AB"} == left
    book.apply([quote("x", 10, 12), quote("x", 10, 12, symbol="B")], T0)
    assert best(book, T0, "A") == best(book, T0, "B") == (10, 1, "x", 12, 1, "x"), "a new quote brings it back"


def test_a_status_that_comes_late_still_takes_out() -> None:
    book = NbboBook()
    book.apply([quote("x", 10, 12)], T0)
    book.apply([Status("x", StatusKind.ALIVE, T0 + 900_000)], T0 + 900_000)
    assert best(book, T0 + TTL_US + 5) != NONE
    book.apply([Status("x", StatusKind.GAP, T0)], T0 + TTL_US + 5)
    assert best(book, T0 + TTL_US + 5) == NONE


def test_a_clock_that_steps_back_makes_nothing_younger() -> None:
    book = NbboBook()
    book.apply([quote("x", 10, 12)], T0)
    assert best(book, T0 + TTL_US) == NONE
    book.apply([quote("x", 10, 12)], T0)
    assert best(book, T0) == NONE
    assert book.quotes("A", T0) == []


def test_who_only_asks_for_quotes_or_changes_sees_silence_too() -> None:
    book = NbboBook()
    book.apply([quote("x", 10, 12)], T0)
    assert [one.venue for one in book.quotes("A", T0 + TTL_US - 1)] == ["x"]
    assert book.quotes("A", T0 + TTL_US) == []
    assert book.venues() == {"x": T0}
    assert list(book.symbols()) == ["A"]


def test_changes_are_told_once_and_only_where_the_best_changed() -> None:
    book = NbboBook()
    book.apply([quote("x", 10, 12), quote("x", 20, 22, symbol="B")], T0)
    assert [one.symbol for one in book.changed(T0)] == ["A", "B"]
    assert book.changed(T0) == []
    book.apply([quote("x", 10, 12), quote("y", 9, 13), quote("x", 21, 22, symbol="B")], T0)
    assert [one.symbol for one in book.changed(T0)] == ["B"]
    assert sorted(one.symbol for one in book.changed(T0 + TTL_US)) == ["A", "B"], "dropping out is a change"


def test_as_of_is_the_older_of_the_two_sides_signs_of_life() -> None:
    book = NbboBook()
    book.apply([quote("x", 10, 13, T0), quote("y", 9, 12, T0)], T0)
    book.apply([Status("x", StatusKind.ALIVE, T0 + 500_000)], T0 + 500_000)
    seen = book.at("A", T0 + 500_000)
    assert seen is not None
    assert seen.as_of_us == T0
    book.apply([Status("y", StatusKind.ALIVE, T0 + 600_000)], T0 + 600_000)
    seen = book.at("A", T0 + 600_000)
    assert seen is not None
    assert seen.as_of_us == T0 + 500_000


def test_a_symbol_that_was_never_quoted() -> None:
    assert NbboBook().at("A", T0) is None
    assert NbboBook().quotes("A", T0) == []


# ---- side by side with a model that keeps everything and thinks of nothing ----

VENUES, SYMBOLS = ["x", "y", "z"], ["A", "B"]
STEP = st.one_of(
    st.tuples(st.just("quote"), st.sampled_from(SYMBOLS), st.sampled_from(VENUES), st.integers(0, 4), st.integers(0, 4),
              st.integers(1, 3), st.integers(1, 3), st.sampled_from([0, 0, 0, 0, SUSPECT, LATE, CROSSED])),
    st.tuples(st.just("status"), st.sampled_from(["", *SYMBOLS]), st.sampled_from(VENUES),
              st.sampled_from([StatusKind.ALIVE, StatusKind.GAP, StatusKind.DOWN, StatusKind.HALTED, StatusKind.UP])),
    st.tuples(st.just("wait"), st.sampled_from([1, 100_000, 400_000, 999_999, 1_000_000])),
)  # fmt: skip


DROPS_OUT = (StatusKind.GAP, StatusKind.DOWN, StatusKind.HALTED)


class Model:
    """Lists, and everything worked out from the beginning each time it is asked."""

    def __init__(self, silent: Sequence[str], ttls_us: dict[str, int]) -> None:
        self.silent = silent
        self.ttls_us = ttls_us
        self.past: list[Tick] = []

    def at(self, symbol: str, now_us: int) -> tuple[int, int, str, int, int, str]:
        live = []
        for venue in VENUES:
            newest: Quote | None = None
            heard_us = -100 * TTL_US
            for tick in (tick for tick in self.past if tick.venue == venue):
                if isinstance(tick, Quote) and tick.symbol == symbol:
                    newest = None if tick.marks & (SUSPECT | CROSSED) else tick
                if isinstance(tick, Status) and tick.kind in DROPS_OUT and tick.symbol in ("", symbol):
                    newest = None
                if not (isinstance(tick, Status) and tick.kind is StatusKind.DOWN):
                    heard_us = tick.receive_us
            if newest is None:
                continue
            sign_us = newest.receive_us if venue in self.silent else heard_us
            if now_us - sign_us < self.ttls_us.get(venue, TTL_US):
                live.append(newest)
        bids = sorted((-one.bid_e9, -one.bid_size_e9, one.venue) for one in live if one.bid_e9)
        asks = sorted((one.ask_e9, -one.ask_size_e9, one.venue) for one in live if one.ask_e9)
        bid, bid_venue = (-bids[0][0], bids[0][2]) if bids else (0, "")
        ask, ask_venue = (asks[0][0], asks[0][2]) if asks else (0, "")
        return (
            bid, sum(one.bid_size_e9 for one in live if one.bid_e9 == bid and bid), bid_venue,
            ask, sum(one.ask_size_e9 for one in live if one.ask_e9 == ask and ask), ask_venue,
        )  # fmt: skip


@given(
    st.lists(STEP, max_size=40),
    st.sampled_from([(), ("y",)]),
    st.integers(1, 5),
    st.sampled_from([{}, {"z": 3 * TTL_US}, {"x": 400_000, "y": 2 * TTL_US}]),
)
@settings(max_examples=400)
def test_it_is_the_naive_models(
    steps: list[tuple[Any, ...]], silent: tuple[str, ...], every: int, ttls_us: dict[str, int]
) -> None:
    book, model, now_us = NbboBook(silent_symbols=silent, ttls_us=ttls_us), Model(silent, ttls_us), T0
    told: dict[str, tuple[int, int, str, int, int, str]] = {}
    for number, (what, *rest) in enumerate(steps):
        if what == "wait":
            now_us += rest[0]
        else:
            tick: Tick
            if what == "quote":
                symbol, venue, bid, ask, bid_size, ask_size, marks = rest
                tick = quote(venue, bid, ask, now_us, sizes=(bid_size, ask_size), symbol=symbol, marks=marks)
            else:
                symbol, venue, kind = rest
                tick = Status(venue, kind, now_us, symbol)
            model.past.append(tick)
            book.apply([tick], now_us)
        if number % every == 0:
            for one in book.changed(now_us):
                told[one.symbol] = msgspec.structs.astuple(one)[1:7]
            for symbol in SYMBOLS:
                expected = model.at(symbol, now_us)
                assert (best(book, now_us, symbol) or NONE) == expected
                assert told.get(symbol, NONE) == expected, "who listens to changes only knows the same"


def test_when_nobody_quotes_any_more_the_last_known_is_marked_stale() -> None:
    """A feed that is gone: the last price is shown for what it is."""
    book = NbboBook()
    assert book.last("A", T0) is None
    book.apply([quote("x", 10, 12), quote("y", 11, 13, T0)], T0)
    now = book.last("A", T0 + 5)
    assert now is not None
    assert (now.bid_e9, now.stale) == (11, False)
    book.apply([Status("y", StatusKind.DOWN, T0 + 10)], T0 + 10)
    now = book.last("A", T0 + 20)
    assert now is not None
    assert (now.bid_e9, now.stale) == (10, False)
    gone = book.last("A", T0 + 5 * TTL_US)
    assert gone is not None
    assert (gone.bid_e9, gone.ask_e9, gone.bid_venue, gone.as_of_us, gone.stale) == (10, 12, "x", T0, True)
    assert best(book, T0 + 5 * TTL_US) == NONE, "it is in no best price"
    at_us = T0 + 6 * TTL_US
    book.apply([quote("x", 9, 12, at_us)], at_us)
    back = book.last("A", at_us)
    assert back is not None
    assert (back.bid_e9, back.stale) == (9, False)


def test_what_a_gap_took_is_still_the_last_known() -> None:
    book = NbboBook()
    book.apply([quote("x", 10, 12)], T0)
    book.apply([Status("x", StatusKind.GAP, T0)], T0)
    last = book.last("A", T0)
    assert last is not None
    assert (last.bid_e9, last.stale) == (10, True)
    silent = NbboBook(silent_symbols=["x"])
    silent.apply([quote("x", 10, 12)], T0)
    last = silent.last("A", T0 + TTL_US)
    assert last is not None
    assert (last.bid_e9, last.as_of_us, last.stale) == (10, T0, True)


def test_an_empty_quote_is_not_what_was_last_known() -> None:
    book = NbboBook()
    book.apply([quote("x", 10, 12), quote("x", 0, 0)], T0)
    last = book.last("A", T0 + 2 * TTL_US)
    assert last is not None
    assert (last.bid_e9, last.stale) == (0, False)
