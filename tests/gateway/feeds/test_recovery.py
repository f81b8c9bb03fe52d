"""Whatever is lost, repeated or damaged on the way: a book that is shown is the venue's, and in the end it is shown."""

import json
import random
from abc import ABC, abstractmethod
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.feeds.binance import Binance
from gateway.feeds.book_handler import BookHandler
from gateway.feeds.coinbase import Coinbase
from gateway.feeds.handler import Fetch, Send
from gateway.feeds.kraken import Kraken
from gateway.feeds.ticks import BookDiff, BookSnapshot, Tick, e9
from gateway.market.books import Books
from gateway.market.nbbo import NbboBook
from tests.gateway.feeds.frames import (
    NOW_US,
    binance_diff,
    binance_snapshot,
    coinbase_book,
    kraken_crc,
    kraken_snapshot,
    kraken_update,
)

Sides = tuple[dict[int, int], dict[int, int]]
LEVELS_MAX = 8


class VenueBook:
    """The venue's own book: at most eight levels a side, so that Kraken's checksum covers all of them."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.bids = {100 - at: 1 for at in range(1, 5)}
        self.asks = {100 + at: 1 for at in range(1, 5)}
        self.number = 10

    def change(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """One to three levels that change, without crossing."""
        self.number += 1
        changes: tuple[dict[int, int], dict[int, int]] = ({}, {})
        for _ in range(self.chance.randint(1, 3)):
            at = self.chance.randint(0, 1)
            side = (self.bids, self.asks)[at]
            price = self.chance.randint(90, 99) if at == 0 else self.chance.randint(101, 110)
            size = self.chance.choice([0, 1, 2, 3]) if price in side or len(side) < LEVELS_MAX else 0
            if size:
                side[price] = size
            else:
                side.pop(price, None)
            changes[at][price] = size
        return rows(changes[0]), rows(changes[1])

    def sides(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        return rows(dict(sorted(self.bids.items(), reverse=True))), rows(dict(sorted(self.asks.items())))

    def held(self) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
        bids, asks = self.sides()
        return tuple((e9(p), e9(s)) for p, s in bids), tuple((e9(p), e9(s)) for p, s in asks)


def rows(side: dict[int, int]) -> list[tuple[str, str]]:
    return [(f"{price}.0", f"{size}.00000000") for price, size in side.items()]


class Line(ABC):
    """One venue's side of the line: frames of changes, and what it sends when it is asked for the whole."""

    handler: BookHandler

    def __init__(self, seed: int) -> None:
        self.book = VenueBook(seed)
        self.first: list[Tick] = []
        """What the handler told of the first snapshot, where it comes unasked."""

    @abstractmethod
    def change(self) -> bytes:
        """The next change of the book, as a frame."""

    @abstractmethod
    def asked(self) -> list[Tick]:
        """Answer what the handler wants."""


class BinanceLine(Line):
    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.handler = Binance(None, quotes_from="book")

    def change(self) -> bytes:
        bids, asks = self.book.change()
        return binance_diff(self.book.number, self.book.number, bids, asks)

    def asked(self) -> list[Tick]:
        ticks: list[Tick] = []
        for wanted in self.handler.wants():
            assert isinstance(wanted, Fetch)
            ticks += self.handler.fetched(wanted.key, binance_snapshot(self.book.number, *self.book.sides()), NOW_US)
        return ticks


class CoinbaseLine(Line):
    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.handler = Coinbase([("BTC-USD", "BTCUSDT")])
        self.sequence = 0
        self.first = self.handler.feed(self.whole(), NOW_US)

    def whole(self) -> bytes:
        self.sequence += 1
        return coinbase_book(self.sequence, *self.book.sides(), snapshot=True)

    def change(self) -> bytes:
        self.sequence += 1
        return coinbase_book(self.sequence, *self.book.change())

    def asked(self) -> list[Tick]:
        sent = [json.loads(wanted.text)["type"] for wanted in self.handler.wants() if isinstance(wanted, Send)]
        return self.handler.feed(self.whole(), NOW_US) if "subscribe" in sent else []


class KrakenLine(Line):
    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.handler = Kraken([("XBT/USD", "BTCUSDT")])
        self.first = self.handler.feed(kraken_snapshot(*self.book.sides()), NOW_US)

    def change(self) -> bytes:
        bids, asks = self.book.change()
        all_bids, all_asks = self.book.sides()
        return kraken_update(kraken_crc(all_bids, all_asks), bids, asks)

    def asked(self) -> list[Tick]:
        sent = [json.loads(wanted.text)["event"] for wanted in self.handler.wants() if isinstance(wanted, Send)]
        return self.handler.feed(kraken_snapshot(*self.book.sides()), NOW_US) if "subscribe" in sent else []


LINES: dict[str, Callable[[int], Line]] = {"binance": BinanceLine, "coinbase": CoinbaseLine, "kraken": KrakenLine}
FATES = st.lists(st.sampled_from(["arrives"] * 6 + ["lost", "twice", "damaged", "unanswered"]), min_size=5, max_size=60)


@pytest.mark.parametrize("name", LINES)
@given(seed=st.integers(0, 10_000), fates=FATES)
@settings(max_examples=150)
def test_a_book_that_is_shown_is_the_venues(name: str, seed: int, fates: list[str]) -> None:
    line = LINES[name](seed)
    handler, books, nbbo = line.handler, Books(), NbboBook()
    shown = followed = quoted = 0

    def taken(ticks: list[Tick]) -> None:
        books.apply(ticks)
        nbbo.apply(ticks, NOW_US)

    taken([*line.first, *line.asked()])
    for fate in [*fates, "arrives", "arrives", "arrives"]:
        frame = line.change()
        if fate != "lost":
            # A damaged price is the venue's, with a digit that no price has.
            taken(handler.feed(frame.replace(b'.0"', b'x0"', 1) if fate == "damaged" else frame, NOW_US))
        if fate == "twice":
            taken(handler.feed(frame, NOW_US))
        if fate != "unanswered":
            taken(line.asked())
        held = handler.books.get("BTCUSDT")
        if held is not None and fate not in ("lost", "damaged"):
            shown += 1
            bids, asks = line.book.held()
            assert (held.best_bids(), held.best_asks()) == (bids, asks)
            # Whoever follows the diffs, and the NBBO, have the same.
            view = books.view("BTCUSDT", name)
            if view is not None:
                followed += 1
                assert (view.bids, view.asks) == (bids, asks)
            best = nbbo.at("BTCUSDT", NOW_US)
            if best is not None and (best.bid_e9 or best.ask_e9):
                quoted += 1
                assert (best.bid_e9, best.ask_e9) == (bids[0][0] if bids else 0, asks[0][0] if asks else 0)
    assert held is not None, "it comes back by itself"
    assert followed == shown > 0
    assert quoted > 0


def test_the_ticks_of_a_recovered_book_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines above do lose and recover: this is one that does."""
    line = BinanceLine(3)
    line.handler.feed(line.change(), NOW_US)
    assert next(type(tick) for tick in line.asked()) is BookSnapshot
    line.change()
    line.handler.feed(line.change(), NOW_US)
    assert line.handler.counts.gaps == 1
    assert isinstance(line.asked()[0], BookSnapshot)
    assert isinstance(line.handler.feed(line.change(), NOW_US)[0], BookDiff)
