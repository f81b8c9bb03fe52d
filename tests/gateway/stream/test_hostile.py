"""What no good client sends: garbage, half frames, too much, and silence. It costs little and ends clearly."""

import asyncio
import os
import random
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.fanout.frames import BINARY, TEXT
from gateway.stream.admission import StreamLimits
from gateway.stream.parser import BadFrames, Message, Parser
from tests.gateway.feeding import until
from tests.gateway.stream.serving import Client, Serving, masked


async def ended(client: Client) -> int:
    """Read to the end; the code of the close frame."""
    with pytest.raises(ConnectionError):
        while True:
            await client.message()
    return client.close_code


FRAMES: list[tuple[bytes, int]] = [
    (masked(0x82, b"\xc1\xff\x00garbage"), 1007),
    (masked(0x81, b"\xff\xfe not utf-8"), 1007),
    (masked(0x81, b'{"action":"subscribe",' + b"[" * 5_000), 1007),
    (b"\x81\x05hello", 1002),  # not masked
    (masked(0xC1, b"{}"), 1002),  # a reserved bit
    (masked(0x83, b"{}"), 1002),  # an opcode that is none
    (masked(0x80, b"{}"), 1002),  # a continuation of nothing
    (masked(0x09, b"ping"), 1002),  # a control frame in fragments
    (masked(0x89, b"p" * 126), 1002),
    (masked(0x01, b"a") + masked(0x81, b"b"), 1002),
    (b"\x82\xff" + (1 << 40).to_bytes(8, "big") + b"mask", 1009),
    (masked(0x82, bytes(70_000)), 1009),
    (masked(0x02, bytes(40_000)) + masked(0x80, bytes(40_000)), 1009),
    (os.urandom(4_000), 0),
]


@pytest.mark.parametrize(("data", "code"), FRAMES)
async def test_garbage_ends_the_stream_with_a_code(data: bytes, code: int) -> None:
    async with Serving().running() as serving:
        client, good = await serving.client(), await serving.client()
        client.send_raw(data)
        found = await ended(client)
        assert found == code or not code
        assert (await good.subscribe("nbbo", "AAPL"))["stream"] == "subscribed", "others notice nothing"
        await until(lambda: len(serving.server.connections) == 1)


@pytest.mark.parametrize(
    "claim", [b"\xdd\xff\xff\xff\xff", b"\x82\xa6action\xa9subscribe\xa7symbols\xdd\xff\xff\xff\xff"]
)
async def test_an_array_of_four_billion_is_refused_for_nothing(claim: bytes) -> None:
    async with Serving().running() as serving:
        client = await serving.client(protocol="tiebreak.msgpack")
        client.send_frame(0x2, claim)
        assert (await client.until("error"))["error"] == "malformed"
        assert (await client.subscribe("nbbo", "AAPL"))["stream"] == "subscribed"


async def test_a_thousand_subscriptions_at_once_and_no_more() -> None:
    async with Serving(limits=StreamLimits(subscriptions_per_connection_max=1_000)).running() as serving:
        client = await serving.client()
        answer = await client.subscribe("nbbo", *(f"S{number}" for number in range(1_000)))
        assert len(answer["refused"]) == 1_000
        assert not serving.hub.topics
        answer = await client.subscribe("nbbo", *(f"S{number}" for number in range(1_001)))
        assert answer["error"] == "malformed"


async def test_who_asks_too_often_is_cut() -> None:
    async with Serving(limits=StreamLimits(messages_per_s=1.0, messages_burst=20)).running() as serving:
        client = await serving.client()
        for number in range(50):
            client.send("ping", id=number)
        assert await ended(client) == 4429


async def test_pings_are_answered_and_goodbyes_returned() -> None:
    async with Serving().running() as serving:
        client = await serving.client()
        client.send("ping", id=3)
        assert await client.until("pong") == {"stream": "pong", "id": 3}
        client.send_raw(masked(0x89, b"still there?"))
        while (await client.frame()) != (0xA, b"still there?"):
            pass
        client.send_raw(masked(0x88, (1000).to_bytes(2, "big") + b"bye"))
        assert await ended(client) == 1000


async def test_a_half_open_connection_is_let_go() -> None:
    limits = StreamLimits(ping_s=0.5, silent_s=2.6)
    async with Serving(limits=limits).running() as serving:
        dead = await serving.client()
        alive = await serving.client()
        assert (await alive.subscribe("nbbo", "AAPL"))["stream"] == "subscribed"

        async def answering() -> None:
            while True:
                opcode, payload = await alive.frame()
                if opcode == 0x9:
                    alive.send_raw(masked(0x8A, payload))

        answers = asyncio.create_task(answering())
        await until(lambda: len(serving.server.connections) == 1, within_s=6)
        await asyncio.sleep(2.8)
        assert len(serving.server.connections) == 1, "who answers pings stays"
        answers.cancel()
        dead.close()


async def test_a_stream_without_a_token_is_ended() -> None:
    async with Serving(limits=StreamLimits(authenticate_s=0.3)).running() as serving:
        client = await serving.client(bearer=None)
        assert await ended(client) == 4401
        for first in (b"{}", b'{"action":"ping"}', b'{"action":"authenticate","token":"x"}'):
            client = await serving.client(bearer=None)
            client.send_frame(0x1, first)
            assert await ended(client) == 4401


async def test_what_is_no_upgrade_is_told_so() -> None:
    async with Serving().running() as serving:
        for request in (
            b"GET /v1/stream HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: short\r\n\r\n",
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", serving.port)
            writer.write(request)
            assert b" 400 " in await reader.readline()
            writer.close()
        assert not serving.server.connections


async def test_who_vanishes_in_the_middle_of_a_frame_leaves_nothing() -> None:
    async with Serving().running() as serving:
        for cut in range(1, 40, 7):
            client = await serving.client()
            await client.subscribe("nbbo", "AAPL")
            client.send_raw(masked(0x81, b'{"action":"ping"}' * 3)[:cut])
            sock = client.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            client.close()
        await until(lambda: not serving.server.connections and not serving.hub.topics and not serving.hub.readers)
        assert not serving.guard.connections


MESSAGES = st.lists(st.tuples(st.sampled_from((TEXT, BINARY)), st.binary(max_size=300)), max_size=8)


@given(messages=MESSAGES, seed=st.integers(0, 10_000))
def test_messages_are_read_however_they_are_cut(messages: list[tuple[int, bytes]], seed: int) -> None:
    """Into fragments, with pings between them, and into pieces of any size on the way."""
    chance = random.Random(seed)
    wire = b""
    for opcode, payload in messages:
        cuts = sorted(chance.randrange(len(payload) + 1) for _ in range(chance.randrange(3)))
        parts = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
        for number, part in enumerate(parts):
            first = (opcode if number == 0 else 0) | (0x80 if number == len(parts) - 1 else 0)
            wire += masked(first, part, os.urandom(4))
            if chance.random() < 0.3:
                wire += masked(0x89, b"ping", os.urandom(4))
    parser, found = Parser(65_536), []
    while wire:
        size = chance.randrange(1, 50)
        found += list(parser.feed(wire[:size]))
        wire = wire[size:]
    assert [Message(*one) for one in messages] == [one for one in found if one.opcode in (TEXT, BINARY)]


@given(data=st.binary(max_size=400))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_any_bytes_are_messages_or_an_error(data: bytes) -> None:
    found: list[Any] = []
    try:
        found += Parser(1_000).feed(data)
    except BadFrames as error:
        assert error.code in (1002, 1009)
    assert all(len(one.payload) <= 1_000 for one in found)


async def test_subscriptions_that_are_under_way_take_room(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = StreamLimits(subscriptions_per_connection_max=3)
    async with Serving(limits=limits).running() as serving:
        waiting: list[Callable[[], None]] = []
        source = serving.server.source
        opens = source.open
        monkeypatch.setattr(source, "open", lambda *words: waiting.append(partial(opens, *words)))
        client = await serving.client()
        for number, symbols in enumerate((["AAPL", "MSFT"], ["BTCUSDT", "NOPE"], ["BTCUSDT"]), 1):
            client.send("subscribe", channel="nbbo", symbols=symbols, id=number)
        refused = await client.until("error")
        assert (refused["error"], refused["id"]) == ("overloaded", 2)
        await until(lambda: len(waiting) == 2)
        monkeypatch.setattr(source, "open", opens)
        for go in waiting:
            go()
        assert [(await client.until("subscribed"))["id"] for _ in waiting] == [1, 3]
        assert (await client.subscribe("quotes", "AAPL"))["error"] == "overloaded"
        client.send("unsubscribe", channel="nbbo", symbols=["AAPL"])
        await client.until("unsubscribed")
        assert (await client.subscribe("quotes", "AAPL"))["stream"] == "subscribed"
