"""Recordings through the real rules: the machine's book is the published one, and it hits whom the market hit."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from bench import datasets, lobster
from bench.flow import Flow, intents
from bench.generator import Market as MadeUp
from bench.lobster import Kind, Message, Row
from bench.market import Market
from bench.replay import Engine, ExactReplay, record
from tests.bench import files


@pytest.fixture
def data() -> Path:
    folder = datasets.data_folder()
    if folder is None:
        pytest.skip(f"no real data: set {datasets.DATA_ENV} to a folder that holds lobster/")
    return folder


def rows_that_agree(replay: ExactReplay, steps: Iterator[tuple[Message, Row | None, Row | None]]) -> tuple[int, int]:
    """(rows compared, rows whose best bid and ask are the machine's). A step: message, book for adoption, published."""
    rows = same = 0
    for message, shown, published in steps:
        replay.step(message, shown)
        if published is None:
            continue
        replay.flush()
        level = published[0]
        want = tuple(
            (price, size) if size else (0, 0)
            for price, size in ((level.ask_price, level.ask_size), (level.bid_price, level.bid_size))
        )
        rows += 1
        same += replay.touch() == (*want[0], *want[1])
    replay.flush()
    return rows, same


@pytest.mark.parametrize("levels", [1, 5, 50])
def test_a_made_up_recording_gives_its_own_book(levels: int, tmp_path: Path) -> None:
    found = lobster.find(files.write_market(tmp_path, islice(MadeUp(5).messages(), 4_000), levels))
    assert found.book is not None
    replay = ExactReplay(Market("MADE"), Flow(8, 4))
    messages = list(lobster.read_messages(found.messages))
    rows = list(lobster.read_rows(found.book))
    # All rows adopt what they show; without that only the levels that the file covers from its start are known.
    compared, same = rows_that_agree(replay, zip(messages, rows, rows, strict=True))
    assert compared == same == len(messages) > 900
    executions = sum(message.kind == Kind.execute for message in messages)
    assert replay.hit == replay.named > executions * 0.4
    assert replay.counts.fills == executions
    assert replay.repaired == 0
    assert not replay.counts.refused


def test_all_levels_need_no_rows_at_all() -> None:
    """A flow that hides nothing: each execution names the order that the machine hits."""
    replay = ExactReplay(Market("MADE"), Flow(8, 4))
    messages = list(islice(MadeUp(6).messages(), 4_000))
    for message in messages:
        replay.step(message)
    replay.flush()
    executions = sum(message.kind == Kind.execute for message in messages)
    assert replay.named == replay.hit == executions > 100


def test_it_puts_the_book_right_when_the_recording_breaks_time_priority() -> None:
    replay = ExactReplay(Market("MADE"), Flow(4, 2))
    for ref, size in ((1, 100), (2, 100), (3, 40)):
        replay.step(Message(ref, Kind.submit, ref, size, 5_000_000, lobster.BID))
    replay.step(Message(4, Kind.execute, 2, 100, 5_000_000, lobster.BID))  # not the oldest
    assert (replay.named, replay.hit, replay.repaired) == (1, 0, 1)
    replay.step(Message(5, Kind.execute, 1, 100, 5_000_000, lobster.BID))
    assert (replay.named, replay.hit, replay.repaired) == (2, 1, 1)
    replay.step(Message(6, Kind.submit, 4, 10, 5_000_000, lobster.BID))
    replay.step(Message(7, Kind.execute, 4, 10, 5_000_000, lobster.BID))  # sizes differ: no swap can do
    assert replay.repaired == 2
    replay.step(Message(8, Kind.delete, 3, 40, 5_000_000, lobster.BID))
    replay.flush()
    assert replay.touch() == (0, 0, 0, 0)
    assert not replay.counts.refused


def test_recorded_payloads_give_the_same_digest_on_a_fresh_machine() -> None:
    market = Market("MADE")
    asked = intents(islice(MadeUp(9).messages(), 3_000), (), Flow(8, 4))
    payloads, counts = record(asked, market, commands=2_000, batch=50)
    assert counts.commands == 2_000
    assert counts.placed > 800
    assert counts.canceled > 600
    assert counts.fills > 30
    assert not counts.refused
    digests = set()
    for _ in range(2):
        engine = Engine(market)
        engine.open()
        for payload in payloads:
            applied = engine.apply(payload)
        digests.add(applied.digest)
    assert len(digests) == 1


def test_halts_reach_the_machine() -> None:
    replay = ExactReplay(Market("MADE"), Flow(2, 1))
    replay.step(Message(1, Kind.halt, 0, 0, lobster.HALTED, -1))
    replay.step(Message(2, Kind.submit, 1, 5, 100, lobster.BID))
    replay.step(Message(3, Kind.halt, 0, 0, lobster.TRADING, -1))
    replay.step(Message(4, Kind.submit, 2, 5, 100, lobster.BID))
    replay.flush()
    assert replay.counts.refused == {"instrument_halted": 1}
    assert replay.touch() == (0, 0, 100, 5)


@pytest.mark.real_data
def test_aapl_gives_the_published_best_bid_and_ask(data: Path) -> None:
    """The first hour of 50 levels, seeded with its first published row; 25,623 of 25,641 is level arithmetic's
    ceiling: what rests deeper than 50 levels at the start is unknown."""
    deep = datasets.recording(data / datasets.AAPL_50)
    best = lobster.find(data / datasets.AAPL_1)
    assert deep.book is not None
    assert best.book is not None
    seed = next(lobster.read_rows(deep.book))
    published = zip(lobster.read_messages(best.messages), lobster.read_rows(best.book), strict=True)

    def steps() -> Iterator[tuple[Message, Row | None, Row | None]]:
        expected, row = next(published)
        for number, message in enumerate(lobster.read_messages(deep.messages)):
            touches = message == expected
            yield message, None if number else seed, row if touches else None
            if touches:
                expected, row = next(published)

    replay = ExactReplay(Market("AAPL"), Flow(8, 4))
    rows, same = rows_that_agree(replay, steps())
    print(f"AAPL: best bid and ask as published on {same:,} of {rows:,} rows")
    assert rows == 25_641
    assert same >= 25_600
    assert not replay.counts.refused


@pytest.mark.real_data
def test_goog_executions_hit_the_order_that_the_market_hit(data: Path) -> None:
    """Where all that rests at a level is known: it was in view since it began, but for a second at a time. The
    exceptions are the market's own: five executions of the day break time priority."""
    found = lobster.find(data / datasets.GOOG_10)
    assert found.book is not None
    replay = ExactReplay(Market("GOOG"), Flow(8, 4))
    for message, row in zip(lobster.read_messages(found.messages), lobster.read_rows(found.book), strict=True):
        replay.step(message, row)
    replay.flush()
    print(f"GOOG: the order named was hit in {replay.hit:,} of {replay.named:,} executions")
    assert replay.hit >= 6_980
    assert replay.hit * 6_989 >= replay.named * 6_980
    assert not replay.counts.refused
