"""From messages to intents: each type, adoption of what the recording does not show, and agreement with its book."""

from itertools import islice
from pathlib import Path

import pytest

from bench import lobster
from bench.flow import Act, Flow, Intent
from bench.generator import Market
from bench.lobster import ASK, BID, EMPTY_PRICE, Kind, Level, Message
from statemachine.types import Mode, Side
from tests.bench import files

P = 5_850_000


def ask(flow: Flow, kind: int, ref: int, lots: int, *, at: int = P, on: int = BID) -> list[tuple[int, int, int]]:
    intents = flow.step(Message(0, kind, ref, lots, at, on))
    return [(intent.act, intent.ref, intent.quantity) for intent in intents]


def test_each_type_of_message() -> None:
    flow = Flow(makers=4, takers=2)
    assert ask(flow, Kind.submit, 7, 100) == [(Act.place, 7, 100)]
    assert ask(flow, Kind.reduce, 7, 30) == [(Act.reduce, 7, 70)]
    assert ask(flow, Kind.execute, 7, 20) == [(Act.take, 7, 20)]
    # The new total counts what has filled: 100 - 30 - 10.
    assert ask(flow, Kind.reduce, 7, 10) == [(Act.reduce, 7, 60)]
    assert flow.resting() == {(BID, P): 40}
    assert ask(flow, Kind.execute_hidden, 0, 10) == []
    assert ask(flow, Kind.cross, 0, 10) == []
    assert ask(flow, Kind.delete, 7, 40) == [(Act.cancel, 7, 0)]
    assert flow.resting() == {}
    assert ask(flow, Kind.halt, 0, 0, at=lobster.HALTED) == [(Act.mode, 0, Mode.halted)]
    assert ask(flow, Kind.halt, 0, 0, at=lobster.QUOTING) == [(Act.mode, 0, Mode.post_only)]
    assert ask(flow, Kind.halt, 0, 0, at=lobster.TRADING) == [(Act.mode, 0, Mode.trading)]


def test_a_take_comes_from_the_other_side_and_from_another_account() -> None:
    flow = Flow(makers=3, takers=2)
    flow.step(Message(0, Kind.submit, 5, 10, P, ASK))
    (take,) = flow.step(Message(0, Kind.execute, 5, 10, P, ASK))
    assert take == Intent(Act.take, 5, take.account, Side.buy, P, 10, certain=True)


def test_an_order_taken_whole_is_gone() -> None:
    flow = Flow(1, 1)
    ask(flow, Kind.submit, 7, 100)
    ask(flow, Kind.execute, 7, 100)
    assert flow.resting() == {}
    assert ask(flow, Kind.delete, 7, 100) == []


def test_orders_never_submitted_take_from_what_was_adopted() -> None:
    flow = Flow(1, 1)
    row = (Level(P + 100, 30, P, 80),)
    seeds = flow.step(Message(0, Kind.submit, 7, 50, P, BID), row)
    assert [(i.act, i.ref, i.side, i.price, i.quantity) for i in seeds] == [
        (Act.place, -1, Side.sell, P + 100, 30),
        (Act.place, -2, Side.buy, P, 30),  # what stood there before the first message
        (Act.place, 7, Side.buy, P, 50),
    ]
    assert ask(flow, Kind.delete, 1_000, 10) == [(Act.reduce, -2, 20)]
    assert ask(flow, Kind.reduce, 1_001, 5) == [(Act.reduce, -2, 15)]
    (take,) = flow.step(Message(0, Kind.execute, 1_002, 15, P, BID))
    assert (take.act, take.quantity, take.certain) == (Act.take, 15, False)
    (take,) = flow.step(Message(0, Kind.execute, 7, 20, P, BID))
    assert take.certain
    assert ask(flow, Kind.delete, 1_003, 99, at=P + 100, on=ASK) == [(Act.cancel, -1, 0)]


def test_an_execution_proves_volume_that_nothing_else_showed() -> None:
    flow = Flow(1, 1)
    assert ask(flow, Kind.execute, 9, 40) == [(Act.place, -1, 40), (Act.take, 9, 40)]
    assert ask(flow, Kind.delete, 10, 40) == []


def test_what_a_row_disproves_is_dropped() -> None:
    flow = Flow(1, 1)
    empty = (EMPTY_PRICE, 0)
    flow.step(Message(0, Kind.submit, 1, 10, P - 100, BID), (Level(*empty, P - 100, 10),))
    flow.step(Message(0, Kind.submit, 2, 10, P, BID), (Level(*empty, P, 10),))  # 1 is out of view now
    gone = flow.step(Message(0, Kind.delete, 2, 10, P, BID), (Level(*empty, P - 300, 5),))
    assert [(i.act, i.ref) for i in gone] == [(Act.cancel, 1), (Act.place, -1), (Act.cancel, 2)]
    assert flow.resting() == {(BID, P - 300): 5}


@pytest.mark.parametrize("levels", [1, 3, 10])
@pytest.mark.parametrize("trusted_absence_ns", [0, lobster.NS_PER_S, lobster.DAY_NS])
def test_it_follows_the_book_of_a_file_that_hides_what_is_deep(
    levels: int, trusted_absence_ns: int, tmp_path: Path
) -> None:
    found = lobster.find(files.write_market(tmp_path, islice(Market(11).messages(), 6_000), levels))
    assert found.book is not None
    flow = Flow(8, 4, trusted_absence_ns=trusted_absence_ns)
    checked = 0
    for message, row in zip(lobster.read_messages(found.messages), lobster.read_rows(found.book), strict=True):
        flow.step(message, row)
        resting = flow.resting()
        for level in row:
            if level.bid_size:
                assert resting.get((BID, level.bid_price)) == level.bid_size, message
            if level.ask_size:
                assert resting.get((ASK, level.ask_price)) == level.ask_size, message
        bids = [price for direction, price in resting if direction == BID]
        asks = [price for direction, price in resting if direction == ASK]
        assert max(bids, default=-EMPTY_PRICE) == row[0].bid_price
        assert min(asks, default=EMPTY_PRICE) == row[0].ask_price
        checked += 1
    assert checked > 1_500
