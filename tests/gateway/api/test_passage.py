"""One stream between a client and nodes that hang, leave or refuse: every frame is answered, none waits for ever."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.api.relay import Said
from gateway.api.sockets import passage
from gateway.api.sockets.dial import Dialed, Refused
from gateway.api.sockets.ledger import Ledger
from gateway.api.sockets.passage import Passage
from tests.gateway.api.sites import until

Handler = Callable[[web.Request, web.WebSocketResponse[bool]], Awaitable[None]]
LARGE: list[dict[str, str]] = [{"do": "place", "key": "k" * 40, "symbol": "AAPL-USD", "note": "y" * 150}] * 400


class Between:
    """A client's stream through a passage; each node is a handler, and the next one is dialed when one is lost."""

    def __init__(self, session: aiohttp.ClientSession, ports: list[int]) -> None:
        self.passage: Passage
        self.client: aiohttp.ClientWebSocketResponse[bool]
        self.refused: Refused | None = None
        self.dials = 0
        self.ledger = Ledger()
        self._session = session
        self._ports = ports

    async def dial(self) -> Dialed:
        if self.refused is not None:
            await asyncio.sleep(0.1)
            raise self.refused
        port = self._ports[min(self.dials, len(self._ports) - 1)]
        self.dials += 1
        socket = await self._session.ws_connect(
            f"http://127.0.0.1:{port}/", compress=0, decode_text=False, autoclose=False,
            timeout=aiohttp.ClientWSTimeout(ws_close=0.5),
        )  # fmt: skip
        await asyncio.sleep(0.05)  # what a node says at once is here when the stream goes on
        return Dialed(socket, str(port))

    async def serve(self, request: web.Request) -> web.WebSocketResponse[bool]:
        client = web.WebSocketResponse(decode_text=False, max_msg_size=1 << 20)
        await client.prepare(request)
        self.passage = Passage(client, await self.dial(), redial=self.dial, ledger=self.ledger, counters=Counter())
        await self.passage.run()
        return client

    async def say(self, number: int, commands: list[dict[str, str]]) -> None:
        await self.client.send_str(json.dumps({"action": "submit", "id": number, "commands": commands}))

    async def hear(self) -> Any:
        return json.loads((await self.client.receive(5)).data)


@asynccontextmanager
async def between(*nodes: Handler) -> AsyncIterator[Between]:
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        made = Between(session, [await _served(stack, _socket(node)) for node in nodes])
        port = await _served(stack, made.serve)
        made.client = await session.ws_connect(f"http://127.0.0.1:{port}/")
        await until(lambda: hasattr(made, "passage"))
        try:
            yield made
        finally:
            await made.client.close()


def _socket(node: Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(decode_text=False, max_msg_size=1 << 20)
        await socket.prepare(request)
        await node(request, socket)
        return socket

    return handle


async def _served(stack: AsyncExitStack, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> int:
    app = web.Application()
    app.router.add_get("/", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return int(runner.addresses[0][1])


async def _hangs(request: web.Request, _socket: web.WebSocketResponse[bool]) -> None:
    assert request.transport is not None
    request.transport.pause_reading()
    await asyncio.sleep(60)


async def _leaves(_request: web.Request, socket: web.WebSocketResponse[bool]) -> None:
    await socket.close(code=1012)


async def _answers(_request: web.Request, socket: web.WebSocketResponse[bool]) -> None:
    async for message in socket:
        asked = json.loads(message.data)
        if asked["action"] == "submit":
            results = [{"key": one["key"], "status": "new"} for one in asked["commands"]]
            await socket.send_str(json.dumps({"stream": "results", "id": asked["id"], "results": results}))


async def _leaves_when_asked(_request: web.Request, socket: web.WebSocketResponse[bool]) -> None:
    await socket.receive()
    await socket.close(code=1012)


async def test_a_node_that_hangs_holds_no_frame_up_that_goes_to_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passage, "SILENT_S", 0.5)
    async with between(_hangs, _answers) as stream:
        for number in range(60):  # more than the kernel and the transport take for a node that reads nothing
            await asyncio.wait_for(stream.say(number, LARGE), 5)
        told = [await stream.hear() for _ in range(60)]
        assert sorted(said["id"] for said in told) == list(range(60))
        unknown = [said["id"] for said in told if said["results"][0].get("error") == "outcome_unknown"]
        assert 0 in unknown and stream.dials == 2
        await stream.say(99, LARGE[:1])
        assert (await stream.hear())["results"] == [{"key": "k" * 40, "status": "new"}]


async def test_a_client_that_leaves_is_not_kept_by_a_node_that_hangs() -> None:
    async with between(_hangs) as stream:
        for number in range(60):
            await asyncio.wait_for(stream.say(number, LARGE), 5)
        await until(lambda: stream.passage.under_way > 4_000)
        dialed = stream.passage._dialed
        assert dialed is not None
        await stream.client.close()
        await until(lambda: dialed.socket._writer.transport.get_write_buffer_size() == 0)


async def test_a_frame_that_waits_while_nodes_come_and_go_at_once_is_sent_to_the_one_that_stays() -> None:
    async with between(_leaves_when_asked, _leaves, _leaves, _answers) as stream:
        await stream.client.send_str('{"action": "ping"}')
        await until(lambda: stream.passage._dialed is None)
        await stream.say(7, LARGE[:1])
        assert (await stream.hear())["results"] == [{"key": "k" * 40, "status": "new"}]
        assert stream.dials == 4


async def test_frames_that_wait_when_the_token_is_refused_are_told_that_they_were_not_sent() -> None:
    async with between(_leaves_when_asked) as stream:
        stream.refused = Refused(Said(401, CIMultiDictProxy(CIMultiDict()), b"{}", "n"))
        await stream.client.send_str('{"action": "ping"}')
        await until(lambda: stream.passage._dialed is None)
        await stream.say(7, LARGE[:1])
        (said,) = (await stream.hear())["results"]
        assert said["error"] == "unauthenticated" and "nothing was sent" in said["message"]
        assert (await stream.client.receive(5)).data == 4401


async def test_the_connection_to_a_node_that_hangs_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passage, "SILENT_S", 0.5)
    async with between(_hangs, _answers) as stream:
        hung = stream.passage._dialed
        await until(lambda: stream.dials == 2)
        await stream.say(7, LARGE[:1])
        assert (await stream.hear())["id"] == 7
        assert hung is not None and hung.socket.closed and hung.socket._writer.transport.is_closing()
