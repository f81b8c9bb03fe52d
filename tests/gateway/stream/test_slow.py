"""Readers that are too slow: the newest is never lost, what may not be lost never is, and nobody is waited for."""

import asyncio
from typing import Any

import pytest

from gateway.fanout.fragment import JSON
from gateway.fanout.hub import Hub, Round
from gateway.stream import outlet
from gateway.stream.admission import StreamLimits
from tests.gateway.feeding import until
from tests.gateway.stream.serving import Client, Serving, update

SMALL = StreamLimits(send_buffer_bytes=4_096, stuck_s=1.0)
BULK = "x" * 20_000


async def slow_client(serving: Serving) -> Client:
    return await serving.client(receive_bytes=4_096)


async def stuck(serving: Serving, client: Client, channel: str = "nbbo") -> None:
    """Fill the client's connection, which nobody reads, until it is left out."""
    await client.subscribe(channel, "AAPL", **({"venue": "x"} if channel == "book_top" else {}))
    (connection,) = [one for one in serving.server.connections if one.topics]
    for number in range(500):
        if connection.full_since_s:
            return
        serving.publish(channel, "AAPL", f"{number} {BULK}")
        await serving.hub.flush()
        await asyncio.sleep(0)
    raise AssertionError("it takes everything")


async def test_a_slow_reader_gets_the_newest_and_not_what_it_missed() -> None:
    async with Serving(limits=SMALL).running() as serving:
        client, quick = await slow_client(serving), await serving.client()
        await stuck(serving, client)
        await quick.subscribe("nbbo", "AAPL")
        for number in range(50):
            serving.publish("nbbo", "AAPL", 1_000 + number)
            await serving.hub.flush()
        values: list[Any] = []
        while not values or values[-1] != 1_049:
            values += [one["value"] for one in await client.updates()]
        assert not [value for value in values if isinstance(value, int) and value != 1_049], "conflated"
        fast: list[Any] = []
        while not fast or fast[-1] != 1_049:
            fast += [one["value"] for one in await quick.updates()]
        assert fast[-50:] == list(range(1_000, 1_050)), "the slow one held nobody up"


async def test_trades_are_never_conflated() -> None:
    async with Serving(limits=SMALL).running() as serving:
        client = await slow_client(serving)
        await stuck(serving, client)
        await_answer = asyncio.create_task(client.subscribe("trades", "AAPL", "MSFT"))
        await await_answer
        (connection,) = serving.server.connections
        for number in range(200):
            serving.append("trades", ("AAPL", "MSFT")[number % 2], number)
            await serving.hub.flush()
        found: list[Any] = [one for data in client.kept for one in data.get("updates", [])]
        while sum(one["channel"] == "trades" for one in found) < 200:
            found += await client.updates()
        assert [one["value"] for one in found if one["channel"] == "trades"] == list(range(200))
        assert not connection.is_ended


async def test_a_full_queue_cuts_with_a_place_from_which_nothing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlet, "QUEUE_BYTES_MAX", 200_000)
    limits = StreamLimits(send_buffer_bytes=4_096, stuck_s=60.0)
    async with Serving(limits=limits).running() as serving:
        client = await slow_client(serving)
        await client.subscribe("trades", "AAPL")
        (connection,) = serving.server.connections
        sent = 0
        while not connection.is_ended:
            serving.append("trades", "AAPL", f"{sent} {BULK}")
            sent += 1
            await serving.hub.flush()
        got: list[int] = []
        with pytest.raises(ConnectionError, match=r"4008 slow_consumer resume="):
            while True:
                got += [int(one["value"].split()[0]) for one in await client.updates()]
        assert got == list(range(len(got)))
        again = await serving.client()
        answer = await again.subscribe("trades", "AAPL", after=client.close_reason.split("resume=")[1])
        assert answer["recovered"]
        while len(got) < sent:
            got += [int(one["value"].split()[0]) for one in await again.updates()]
        assert got == list(range(sent)), "each of them once"


async def test_a_recovery_in_parts_can_be_left_midway() -> None:
    """Who comes back for more than a frame may hold, and is gone again in the middle, goes on from there."""
    async with Serving().running() as serving:
        for number in range(60):
            serving.append("trades", "AAPL", f"{number} {BULK}")
        got: list[int] = []
        place, frames = f"{serving.rings.epoch}.0", 0
        while len(got) < 60:
            client = await serving.client()
            assert (await client.subscribe("trades", "AAPL", after=place))["recovered"]
            data = await client.until("data")
            frames += 1
            got += [int(one["value"].split()[0]) for one in data["updates"]]
            place = f"{serving.rings.epoch}.{data['seq']}"
            client.close()
        assert got == list(range(60)) and frames > 3


async def test_what_waits_for_room_is_not_said_to_be_sent() -> None:
    async with Serving(limits=SMALL).running() as serving:
        for number in range(5):
            serving.append("trades", "AAPL", number)
        client = await slow_client(serving)
        await stuck(serving, client)
        (connection,) = serving.server.connections
        answer = asyncio.create_task(client.subscribe("trades", "AAPL", after=f"{serving.rings.epoch}.2"))
        await until(lambda: len(connection.queue) == 3)
        assert connection.position.endswith(".2")
        connection.cut("slow_consumer", 4008)
        assert (await answer)["position"].endswith(".2")
        with pytest.raises(ConnectionError, match=r"resume=\d+\.2"):
            while True:
                await client.message()


class Pipe(asyncio.Transport):
    """As full as the test says. Keeps what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.unsent, self.written = 0, b""

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def write(self, data: Any) -> None:
        self.written += data


class Bare(outlet.Outlet):
    def full(self) -> None:
        raise AssertionError("it is not full")


@pytest.mark.parametrize("first", ["diff", "full"])
def test_a_diff_that_waits_while_there_is_no_room_is_a_broken_book(first: str) -> None:
    hub, pipe, now = Hub(1), Pipe(), Round()
    reader = Bare(pipe, JSON)
    book = hub.subscribe(reader, ("book", "AAPL@x"), formats=JSON)
    now.begin(1, 1.0, 0)
    pipe.unsent = 1 << 20
    if first == "full":
        hub.publish(hub.subscribe(reader, ("nbbo", "AAPL"), formats=JSON), update("nbbo", "AAPL", 0))
        hub._mark()
        assert not reader.write(now) and reader.full_since_s
    hub.diff(("book", "AAPL@x"), update("book", "AAPL@x", "lost"))
    assert not reader.write(now) and list(reader.broken) == [book]
    hub.diff(("book", "AAPL@x"), update("book", "AAPL@x", "useless"))
    pipe.unsent = 0
    assert reader.write(now)
    assert b"broken" in pipe.written and b"lost" not in pipe.written and b"useless" not in pipe.written
    hub.diff(("book", "AAPL@x"), update("book", "AAPL@x", "next"))
    assert reader.write(now) == 1 and b"next" in pipe.written


async def test_a_reader_that_takes_nothing_is_cut_in_time() -> None:
    async with Serving(limits=SMALL).running() as serving:
        client = await slow_client(serving)
        await stuck(serving, client)
        (connection,) = serving.server.connections
        serving.publish("nbbo", "AAPL", 1)
        await until(lambda: connection.is_ended, within_s=5)
        assert serving.server.counters["cut"] == 1
        assert not serving.hub.readers


async def test_a_broken_row_of_diffs_says_take_a_snapshot() -> None:
    async with Serving(limits=SMALL).running() as serving:
        client = await slow_client(serving)
        serving.states[("book", "AAPL@x")] = update("book", "AAPL@x", "snapshot")
        answer = await client.subscribe("book", "AAPL", venue="x")
        assert (answer["symbols"], answer["venue"]) == (["AAPL"], "x")
        assert (await client.updates())[0]["value"] == "snapshot"
        key = ("book", "AAPL@x")
        serving.hub.diff(key, update("book", "AAPL@x", 1))
        assert (await client.updates())[0]["value"] == 1
        await stuck(serving, client)
        for number in range(2, 10):
            serving.hub.diff(key, update("book", "AAPL@x", number))
        book: list[Any] = []
        while not book:
            book += [one for one in await client.updates() if one["channel"] == "book"]
        assert book == [{"type": "broken", "channel": "book", "symbol": "AAPL", "venue": "x"}]
        await client.subscribe("book", "AAPL", venue="x")
        kept = [one for data in client.kept for one in data.get("updates", []) if one["channel"] == "book"]
        kept += [one for one in await client.updates() if one["channel"] == "book"] if not kept else []
        assert kept[0]["value"] == "snapshot"
        serving.hub.diff(key, update("book", "AAPL@x", 11))
        assert (await client.updates())[0]["value"] == 11
