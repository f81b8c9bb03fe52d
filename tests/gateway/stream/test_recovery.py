"""Coming back: what was missed comes, exactly, or the answer says that it does not."""

import random
from typing import Any

import pytest

from gateway.events import Position
from gateway.fanout.ring import Place, Ring, Rings, parse_after
from gateway.fanout.topics import CHANNELS
from gateway.stream.admission import StreamLimits
from tests.gateway.stream.serving import Serving, update


def numbers(found: list[Any]) -> list[Any]:
    return [one["value"] for one in found]


async def test_who_comes_back_misses_nothing_and_gets_nothing_twice() -> None:
    """Connections end at random places, and each begins where the one before it ended."""
    chance = random.Random(7)
    async with Serving().running() as serving:
        got: list[Any] = []
        sent = 0
        place = f"{serving.rings.epoch}.0"
        for _ in range(12):
            client = await serving.client()
            answer = await client.subscribe("trades", "AAPL", after=place)
            assert answer["recovered"], answer
            missing = sent - len(got)
            for _ in range(chance.randrange(30)):
                serving.append("trades", "AAPL", sent)
                serving.append("trades", "MSFT", -sent)
                sent += 1
            wanted = missing + chance.randrange(sent - len(got) - missing + 1)
            read = 0
            while read < wanted:
                data = await client.until("data")
                got += numbers(data["updates"])
                read += len(data["updates"])
                place = f"{serving.rings.epoch}.{data['seq']}"
            client.close()
        client = await serving.client()
        await client.subscribe("trades", "AAPL", after=place)
        while len(got) < sent:
            got += numbers(await client.updates())
        assert got == list(range(sent))


async def test_a_heartbeat_moves_the_place_on() -> None:
    async with Serving(limits=StreamLimits(heartbeat_s=0.5)).running() as serving:
        client = await serving.client()
        await client.subscribe("trades", "AAPL")
        for number in range(5):
            serving.append("trades", "MSFT", number)
        place = ""
        while not place.endswith(".5"):
            opcode, payload = await client.frame()
            assert opcode == 1
            if b"heartbeat" in payload:
                place = payload.decode().split('"position":"')[1].split('"')[0]
        again = await serving.client()
        assert (await again.subscribe("trades", "AAPL", "MSFT", after=place))["recovered"]


@pytest.mark.parametrize(
    ("after", "recovered"),
    [
        ("{epoch}.60", True),
        ("{epoch}.40", True),
        ("{epoch}.39", False),  # behind what is kept
        ("{epoch}.61", False),  # a place that was never given out
        ("1.60", False),  # another run's
    ],
)
async def test_what_is_not_held_is_not_recovered(after: str, recovered: bool) -> None:
    async with Serving().running() as serving:
        serving.rings.rings["trades"] = Ring(20)
        for number in range(1, 61):
            serving.append("trades", "AAPL", number)
        client = await serving.client()
        after = after.format(epoch=serving.rings.epoch)
        answer = await client.subscribe("trades", "AAPL", after=after)
        assert answer["recovered"] is recovered
        serving.append("trades", "AAPL", 61)
        found = numbers(await client.updates())
        while found[-1] != 61:
            found += numbers(await client.updates())
        first = int(after.split(".")[1]) + 1 if recovered else 61
        assert found == list(range(first, 62))


async def test_orders_are_recovered_by_the_position_of_the_feed() -> None:
    """So a client may come from the other site's gateway, or from a node."""
    async with Serving().running() as serving:
        serving.rings.begin("orders", Position(0, 3, 10, 0))
        for index in range(11, 15):
            kept = serving.rings.append(("orders", "anna"), update("orders", "anna", index), Position(0, 3, index, 2))
            serving.hub.append(kept.key, kept.fragment, kept.seq)
        client = await serving.client()
        assert (await client.subscribe("orders", after="0.3.12.2"))["recovered"]
        assert numbers(await client.updates()) == [13, 14]
        for after, recovered in (("0.3.10.0", True), ("0.3.9.7", False), ("0.2.12.2", False), ("1.3.12.2", False)):
            other = await serving.client()
            assert (await other.subscribe("orders", after=after))["recovered"] is recovered, after


def test_rings_are_bounded_and_each_has_room_of_its_own() -> None:
    rings = Rings(1)
    rings.append(("alerts", "anna"), update("alerts", "anna", 0))
    for number in range(CHANNELS["trades"].kept + 5):
        rings.append(("trades", "AAPL"), update("trades", "AAPL", number))
    assert len(rings.rings["trades"].updates) == CHANNELS["trades"].kept
    assert rings.since("alerts", Place(1, 0), {("alerts", "anna")}) is not None, "trades push no alerts out"
    assert rings.since("trades", Place(1, 5), {("trades", "AAPL")}) is None
    assert rings.since("trades", Place(1, 6), {("trades", "AAPL")}) is not None
    rings.forget("orders")
    assert rings.since("orders", Position(0, 1, 5, 0), {("orders", "anna")}) is None


@pytest.mark.parametrize("text", ["", "1", "1.2.3", "1.2.3.4.5", "-1.2", "1.x", "1. 2", "²1.2", "9" * 65 + ".1"])
def test_a_place_is_two_numbers_or_four(text: str) -> None:
    with pytest.raises(ValueError, match="position"):
        parse_after(text)
