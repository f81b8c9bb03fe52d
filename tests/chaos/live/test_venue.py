"""The venue is believed by the gateway's own handler of the venue that it stands for, while it tells the truth."""

import random

import msgspec

from chaos.live.venue import Book
from gateway.feeds.kraken import Kraken
from gateway.feeds.ticks import Quote, Trade

AT_US = 1_795_000_000_000_000
STEPS = 3_000


def test_the_handler_follows_every_step() -> None:
    handler = Kraken([("BTC-USD", "BTC-USD")])
    book = Book("BTC-USD", 9_500_000, random.Random(7))
    ticks = handler.feed(book.snapshot(100, AT_US), AT_US)
    for step in range(STEPS):
        update = book.step()
        for frame in book.frames(update, 100, AT_US + step):
            ticks += handler.feed(frame, AT_US + step)
    assert (handler.counts.gaps, sum(handler.counts.bad.values())) == (0, 0)
    quotes = [tick for tick in ticks if isinstance(tick, Quote)]
    trades = [tick for tick in ticks if isinstance(tick, Trade)]
    assert len(quotes) > STEPS / 10
    assert len(trades) > STEPS / 20
    bid, ask = max(book.bids), min(book.asks)
    assert (quotes[-1].bid_e9, quotes[-1].ask_e9) == (bid * 10**7, ask * 10**7)
    assert bid < ask


def test_a_seed_is_one_market() -> None:
    ones, others = (Book("A", 1_000, random.Random(seed)) for seed in (1, 1))
    assert [ones.step() for _ in range(500)] == [others.step() for _ in range(500)]
    assert min(ones.bids) > 0, "prices near nothing stay above it"


def test_a_level_that_was_kept_back_is_noticed() -> None:
    handler = Kraken([("BTC-USD", "BTC-USD")])
    book = Book("BTC-USD", 9_500_000, random.Random(7))
    handler.feed(book.snapshot(100, AT_US), AT_US)
    best = min(book.asks)
    book.asks[best] += 1
    frame = book.frames(msgspec.structs.replace(book.step(), asks=[], bids=[(max(book.bids), 5)]), 100, AT_US)[0]
    handler.feed(frame, AT_US)
    assert handler.counts.gaps == 1
