"""The client's stream: many frames under way, one execution per key, whatever happens to the connection."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from cluster import client_stream
from cluster.client import Client, Done, Refused, Stream, StreamRefused, Unknown
from cluster.wire import COMMANDS_PER_FRAME_MAX, AnyRequest, PlaceOrder
from tests.cluster.fake_node import TOKEN, FakeNode, Ledger

Scenario = Callable[[FakeNode, FakeNode, Stream], Awaitable[None]]


def run(
    scenario: Scenario, *, timeout_ms: int = 2_000, token: str | Callable[[], str] = TOKEN, json: bool = False
) -> None:
    async def main() -> None:
        ledger = Ledger()
        first = await FakeNode("first", ledger).start()
        second = await FakeNode("second", ledger, leader="first").start()
        try:
            async with (
                Client([first.url, second.url], token=token, timeout_ms=timeout_ms) as client,
                client.stream(json=json) as stream,
            ):
                await scenario(first, second, stream)
        finally:
            await first.stop()
            await second.stop()

    asyncio.run(main())


def orders(count: int, *, qty: str = "1") -> list[AnyRequest]:
    return [
        PlaceOrder(symbol="AAPL", side="buy", type="limit", qty=qty, limit_price=str(price + 1))
        for price in range(count)
    ]


@pytest.mark.parametrize("json", [False, True], ids=["msgpack", "json"])
def test_answers_come_in_order_and_long_lists_in_several_frames(json: bool) -> None:
    async def scenario(first: FakeNode, second: FakeNode, stream: Stream) -> None:
        answers = await stream.submit(orders(1_200))
        assert [one.id for one in answers if isinstance(one, Done)] == [str(n + 1) for n in range(1_200)]
        assert first.frames == 3

    run(scenario, json=json)


def test_many_frames_are_under_way_at_once() -> None:
    async def scenario(first: FakeNode, second: FakeNode, stream: Stream) -> None:
        answers = await asyncio.gather(*(stream.submit(orders(2)) for _ in range(300)))
        assert all(isinstance(one, Done) for pair in answers for one in pair)
        assert len(first.ledger.executed) == 600

    run(scenario)


def test_refusals_stand_beside_what_was_done() -> None:
    async def scenario(first: FakeNode, second: FakeNode, stream: Stream) -> None:
        done, refused = await stream.submit([*orders(1), *orders(1, qty="999")])
        assert isinstance(done, Done)
        assert isinstance(refused, Refused)
        assert refused.error == "insufficient_funds"

    run(scenario)


@pytest.mark.parametrize("fault", ["drop_before", "drop_after", "no_leader", "half_unknown"])
def test_each_command_is_executed_once_whatever_the_fault(fault: str) -> None:
    async def scenario(first: FakeNode, second: FakeNode, stream: Stream) -> None:
        await stream.submit(orders(1))
        first.faults.append(fault)
        answers = await asyncio.gather(*(stream.submit(orders(3)) for _ in range(5)))
        assert all(isinstance(one, Done) for frame in answers for one in frame)
        assert len(first.ledger.executed) == 16

    run(scenario)


def test_frames_keep_their_order_over_a_lost_connection() -> None:
    async def scenario(first: FakeNode, second: FakeNode, stream: Stream) -> None:
        await stream.submit(orders(1))
        first.faults.append("drop_before")
        await asyncio.gather(*(stream.submit([place]) for place in orders(20)))
        prices = [one.limit_price for one in first.ledger.executed if isinstance(one, PlaceOrder)][1:]
        assert prices == [str(n + 1) for n in range(20)]

    run(scenario)


def test_a_silent_member_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_stream, "SILENCE_MS_MAX", 200)

    async def scenario(first: FakeNode, second: FakeNode, stream: Stream) -> None:
        first.faults.append("hang")
        assert isinstance((await stream.submit(orders(1)))[0], Done)

    run(scenario)


def test_no_answer_is_unknown_and_nobody_there_is_refused() -> None:
    async def scenario(first: FakeNode, second: FakeNode, stream: Stream) -> None:
        first.faults.append("hang")
        lost = (await stream.submit(orders(1), timeout_ms=150))[0]
        assert isinstance(lost, Unknown)
        assert lost.key
        await first.stop()
        await second.stop()
        await asyncio.sleep(0.05)
        nobody = (await stream.submit(orders(1), timeout_ms=150))[0]
        assert isinstance(nobody, Refused)
        assert nobody.error == "unreachable"

    run(scenario)


def test_a_stream_that_is_not_allowed_says_so() -> None:
    async def scenario(first: FakeNode, second: FakeNode, stream: Stream) -> None:
        with pytest.raises(StreamRefused, match="401"):
            await stream.submit(orders(1))

    run(scenario, token=TOKEN[::-1])


def test_a_stream_that_is_refused_after_a_lost_answer_leaves_it_unknown() -> None:
    """The token ran out while commands were under way: what was sent may have happened."""
    tokens = [TOKEN]

    async def scenario(first: FakeNode, second: FakeNode, stream: Stream) -> None:
        await stream.submit(orders(1))
        first.faults.append("drop_after")
        tokens[0] = "expired"
        (lost,) = await stream.submit(orders(1))
        assert isinstance(lost, Unknown), lost
        assert len(first.ledger.executed) == 2
        with pytest.raises(StreamRefused, match="401"):
            await stream.submit(orders(1))

    run(scenario, token=lambda: tokens[0])


def test_frames_that_were_not_sent_do_not_hide_those_that_were() -> None:
    tokens = [TOKEN]

    async def scenario(first: FakeNode, second: FakeNode, stream: Stream) -> None:
        await stream.submit(orders(1))
        first.faults.extend(["", "drop_before"])
        tokens[0] = "expired"
        many = await stream.submit(orders(2 * COMMANDS_PER_FRAME_MAX))
        assert all(isinstance(one, Done | Unknown) for one in many[:COMMANDS_PER_FRAME_MAX])
        assert {type(one) for one in many[COMMANDS_PER_FRAME_MAX:]} <= {Refused, Unknown}

    run(scenario, token=lambda: tokens[0])


def test_the_same_frame_again_after_an_unknown_outcome_is_the_same_request() -> None:
    async def scenario(first: FakeNode, second: FakeNode, stream: Stream) -> None:
        named = [PlaceOrder(key="k1", symbol="AAPL", side="buy", type="limit", qty="1", limit_price="2")]
        first.faults.append("hang")
        assert isinstance((await stream.submit(named, timeout_ms=100))[0], Unknown)
        first.ledger.take(stream._prepare(named[0]))  # it arrives after all
        (found,) = await stream.submit(named)
        assert isinstance(found, Done), found
        assert found.answer.replay

    run(scenario)
