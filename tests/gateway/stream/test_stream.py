"""What a client is answered: who may come in, what may be subscribed, what comes, in both formats."""

import asyncio
from typing import Any

import aiohttp
import msgspec
import pytest

from gateway.stream.admission import StreamLimits
from node.guard import HttpLimits
from tests.gateway.stream.serving import Serving, token


async def test_a_subscriber_gets_the_newest_state_and_then_what_changes() -> None:
    async with Serving().running() as serving:
        serving.publish("nbbo", "AAPL", 1)
        client = await serving.client()
        assert (await client.message())["stream"] == "authorization"
        assert (await client.subscribe("nbbo", "AAPL", id=7)) == {
            "stream": "subscribed", "channel": "nbbo", "symbols": ["AAPL"], "position": f"{serving.rings.epoch}.0",
            "id": 7,
        }  # fmt: skip
        assert await client.updates() == [{"channel": "nbbo", "symbol": "AAPL", "value": 1}]
        serving.publish("nbbo", "AAPL", 2)
        serving.publish("nbbo", "MSFT", 3)
        assert await client.updates() == [{"channel": "nbbo", "symbol": "AAPL", "value": 2}]
        client.send("unsubscribe", channel="nbbo")
        assert (await client.until("unsubscribed"))["symbols"] == ["AAPL"]
        assert not serving.hub.topics


async def test_one_frame_a_tick_holds_all_symbols() -> None:
    async with Serving().running() as serving:
        client = await serving.client()
        await client.subscribe("nbbo", "AAPL", "MSFT", "BTCUSDT")
        for value in range(10):
            for symbol in ("AAPL", "MSFT", "BTCUSDT"):
                serving.publish("nbbo", symbol, value)
        found = await client.updates()
        assert sorted((one["symbol"], one["value"]) for one in found) == [("AAPL", 9), ("BTCUSDT", 9), ("MSFT", 9)]


async def test_msgpack_is_arrays_and_any_library_can_read_the_stream() -> None:
    async with Serving().running() as serving, aiohttp.ClientSession() as session:
        serving.publish("nbbo", "AAPL", 1)
        async with session.ws_connect(
            f"http://127.0.0.1:{serving.port}/v1/stream",
            headers={"Authorization": f"Bearer {token()}"},
            protocols=("tiebreak.msgpack",),
        ) as socket:
            assert socket.protocol == "tiebreak.msgpack"
            action = {"action": "subscribe", "channel": "nbbo", "symbols": ["AAPL"]}
            await socket.send_bytes(msgspec.msgpack.encode(action))
            found: list[Any] = []
            while not found or not isinstance(found[-1], list):
                found.append(msgspec.msgpack.decode((await socket.receive(timeout=5)).data))
            at_us, seq, updates = found[-1]
            assert updates == [[2, "AAPL", 1]]
            assert at_us > 0 and seq == 0
            await socket.close()
            assert socket.close_code == 1000


async def test_the_first_message_may_authenticate() -> None:
    async with Serving().running() as serving:
        client = await serving.client(bearer=None)
        client.send("authenticate", token=token())
        assert await client.message() == {
            "stream": "authorization", "role": "trader", "accounts": ["anna"], "status": "authorized",
        }  # fmt: skip
        client.send("authenticate", token=token("bert"))
        with pytest.raises(ConnectionError, match="4401"):
            while True:
                await client.message()


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    # what is asked, the word, what the message names
    ({"channel": "nbo", "symbols": ["AAPL"]}, "not_found", "'nbo'"),
    ({"channel": "nbbo", "symbols": []}, "invalid_field", "symbol"),
    ({"channel": "nbbo", "symbols": ["AAPL"], "venue": "kraken"}, "invalid_field", "venue"),
    ({"channel": "book", "symbols": ["AAPL"]}, "invalid_field", "venue"),
    ({"channel": "trades", "symbols": ["AAPL"], "rate": "1s"}, "invalid_field", "trades"),
    ({"channel": "trades", "symbols": ["AAPL"], "after": "x"}, "invalid_field", "'x'"),
    ({"channel": "nbbo", "symbols": ["AAPL"], "after": "1.1"}, "invalid_field", "after"),
    ({"channel": "orders", "symbols": ["bert"]}, "not_found", "'bert'"),
    ({"channel": "leaderboard", "symbols": ["AAPL"]}, "invalid_field", "leaderboard"),
    ({"channel": "nbbo", "symbols": ["A" * 81]}, "malformed", "symbols"),
    ({"channel": "nbbo", "symbols": [f"S{number}" for number in range(1001)]}, "malformed", "symbols"),
    ({"channel": "nbbo", "symbols": ["AAPL"], "speed": 1}, "malformed", "speed"),
]


async def test_what_is_refused_is_named_and_the_stream_goes_on() -> None:
    async with Serving().running() as serving:
        client = await serving.client()
        for asked, word, named in REFUSED:
            found = {}
            client.send("subscribe", **asked, id=5)
            found = await client.until("error")
            assert (found["error"], named in found["message"]) == (word, True), (asked, found)
        found = await client.subscribe("nbbo", "AAPL", "NOPE", "MSFT")
        assert found["symbols"] == ["AAPL", "MSFT"]
        assert [(one["symbol"], one["error"]) for one in found["refused"]] == [("NOPE", "not_found")]


async def test_accounts_are_those_of_the_token() -> None:
    async with Serving().running() as serving:
        client = await serving.client(bearer=token("anna", accounts=["anna", "anna-2"]))
        assert (await client.subscribe("orders"))["symbols"] == ["anna", "anna-2"]
        serving.append("orders", "bert", 1)
        serving.append("orders", "anna-2", 2)
        assert await client.updates() == [{"channel": "orders", "symbol": "anna-2", "value": 2}]
        assert (await client.subscribe("alerts"))["symbols"] == ["anna", "anna-2"]


async def test_subscriptions_and_streams_of_a_user_are_counted() -> None:
    limits = StreamLimits(subscriptions_per_connection_max=3, subscriptions_per_user_max=4, connections_per_user_max=2)
    async with Serving(limits=limits).running() as serving:
        first, second = await serving.client(), await serving.client()
        await first.subscribe("nbbo", "AAPL", "MSFT", "BTCUSDT")
        assert (await first.subscribe("quotes", "AAPL"))["error"] == "overloaded"
        assert (await first.subscribe("nbbo", "AAPL"))["stream"] == "subscribed", "it is counted already"
        assert (await second.subscribe("nbbo", "AAPL", "MSFT"))["error"] == "overloaded"
        assert (await second.subscribe("nbbo", "AAPL"))["stream"] == "subscribed"
        third = await serving.client()
        with pytest.raises(ConnectionError, match="1008"):
            while True:
                await third.message()
        first.close()
        await asyncio.sleep(0.05)
        assert (await second.subscribe("nbbo", "MSFT"))["stream"] == "subscribed", "what is closed counts no more"


async def test_a_rate_of_once_a_second_gets_the_newest() -> None:
    async with Serving().running() as serving:
        client = await serving.client()
        await client.subscribe("nbbo", "AAPL", rate="1s")
        values: list[int] = []
        for value in range(25):
            serving.publish("nbbo", "AAPL", value)
            await asyncio.sleep(0.1)
        while not values or values[-1] != 24:
            values += [one["value"] for one in await client.updates()]
        assert 2 <= len(values) <= 5, values


async def test_connections_of_one_address_are_bounded() -> None:
    async with Serving(http=HttpLimits(connections_max=10, connections_per_address_max=2)).running() as serving:
        clients = [await serving.client() for _ in range(2)]
        with pytest.raises(ConnectionError, match="429"):
            await serving.client()
        clients[0].close()
        await asyncio.sleep(0.05)
        await serving.client()
        assert serving.guard.refused == 1


async def test_a_gateway_that_is_not_warm_lets_nobody_in() -> None:
    async with Serving().running() as serving:
        serving.ready = False
        with pytest.raises(ConnectionError, match="503"):
            await serving.client()


async def test_clients_are_told_how_they_are_served_when_that_changes() -> None:
    async with Serving().running() as serving:
        client = await serving.client()
        client.send("ping", id=1)

        async def told() -> Any:
            while True:
                _, payload = await client.frame()
                if b'"stream":"status"' in payload:
                    return msgspec.json.decode(payload)

        first = await told()
        assert (first["tick_ms"], first["shed"], first["source"]) == (100, [], "live")
        assert first["epoch"] == serving.rings.epoch
        while serving.hub.pace.tick_ms < 200:
            serving.hub.pace.observe(1_000.0, 0.0)
        second = await told()
        assert (second["tick_ms"], second["shed"]) == (200, ["candles.1m", "candles.5m", "candles.1h", "leaderboard"])
