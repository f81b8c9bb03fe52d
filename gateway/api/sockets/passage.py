"""One client's WebSocket and the node's behind it: frames pass unchanged both ways, and a node that goes is replaced.

Two tasks, one for each way, each waiting for whoever takes what it brings: nothing piles up here, a slow node slows
its client and a slow client is the node's to cut.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple

import aiohttp
import structlog
from aiohttp import WSMsgType, web

from gateway.api.errors import NoNode
from gateway.api.sockets.dial import Dialed, Refused
from gateway.api.sockets.ledger import Frame, Ledger, is_authorized, is_closing
from gateway.tasks import end
from node.errors import NodeError, Unauthenticated

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.relay")

CLOSE_NO_CODE = 1005
CLOSE_SHUTDOWN, CLOSE_TRY_LATER, CLOSE_UNAUTHENTICATED, CLOSE_SLOW = 1012, 1013, 4401, 4008
LEAVING = frozenset({1001, CLOSE_SHUTDOWN})
"""With these a node says that it goes and the stream may go on elsewhere; all other codes are the client's business."""
SILENT_S = 3.0
"""Nodes give a sign of life each second."""
STALL_S = 15.0
COMMANDS_UNDER_WAY_MAX = 25_000
"""A node takes 20,000 of a stream and refuses what is beyond."""
LOOK_FOR_S = 2.0
"""How long another node is looked for before the client is sent away."""
_LOOK_AGAIN_S = 0.2
_CLOSE_S = 2.0
_SAY_NO_S = 0.1
_TEXTS = (WSMsgType.TEXT, WSMsgType.BINARY)


class Goodbye(NamedTuple):
    code: int
    reason: str = ""


class _ClientIsGone(Exception):
    pass


class _ClientIsSlow(Exception):
    pass


class Passage:
    """redial: opens the stream at another node, with the token that the ledger has. ledger: none where the frames are
    nobody's orders; then the stream ends with its node. ends_with_node: the client wants the same for its orders, as at
    a node: what is not answered is unknown, and nothing that follows is taken elsewhere before it asked again."""

    def __init__(
        self,
        client: web.WebSocketResponse[bool],
        dialed: Dialed,
        *,
        redial: Callable[[], Awaitable[Dialed]],
        ledger: Ledger | None,
        counters: Counter[str],
        ends_with_node: bool = False,
    ) -> None:
        self.client = client
        self.node = dialed.node
        self._dialed: Dialed | None = dialed
        self._redial = redial
        self._ledger = ledger
        self._counters = counters
        self._ends_with_node = ends_with_node
        self._format = WSMsgType.BINARY if client.ws_protocol == "tiebreak.msgpack" else WSMsgType.TEXT
        self._refused: NodeError | None = None
        """Why no other node was found, when the search has ended."""
        self._connected = asyncio.Event()
        self._connected.set()
        self._answered = asyncio.Event()
        self._leaving = asyncio.Event()
        self._wait_s = 0.0
        self._is_first = False

    @property
    def under_way(self) -> int:
        return self._ledger.commands if self._ledger is not None else 0

    def leave(self, *, wait_s: float) -> None:
        """Take no more frames, wait so long for the answers to those that were taken, send the client away."""
        self._wait_s = wait_s
        self._leaving.set()

    async def run(self) -> None:
        """Until one side ends it."""
        reading = asyncio.create_task(self._from_client(), name="orders to node")
        writing = asyncio.create_task(self._from_nodes(), name="answers to client")
        leaving = asyncio.create_task(self._leaving.wait(), name="leave")
        goodbye = Goodbye(CLOSE_NO_CODE)
        try:
            await asyncio.wait((reading, writing, leaving), return_when=asyncio.FIRST_COMPLETED)
            if leaving.done() and not (reading.done() or writing.done()):
                # Beside a reader that waits, a close drops the connection before the client's answer to it.
                await end(reading)
                goodbye = await self._drained(writing)
            elif writing.done():
                goodbye = writing.result()
        except _ClientIsSlow:
            self._counters["slow"] += 1
            goodbye = Goodbye(CLOSE_SLOW, f"slow_consumer{self._resume()}")
        except _ClientIsGone:
            pass
        finally:
            await end(reading, writing, leaving)
            await self._close(goodbye)

    # ---- from the client ----

    async def _from_client(self) -> None:
        while (message := await self.client.receive()).type in _TEXTS:
            while self.under_way > COMMANDS_UNDER_WAY_MAX:
                self._answered.clear()
                await self._answered.wait()
            await self._pass_on(message.data, message.type)

    async def _pass_on(self, data: bytes, opcode: WSMsgType) -> None:
        while not self._connected.is_set():  # a node that was found may be gone before this task wakes
            await self._connected.wait()
        dialed, self._format = self._dialed, opcode
        if dialed is None:
            if self._ledger is not None and self._refused is not None:
                for frame in self._ledger.refusals(data, opcode, self._refused):
                    await self._tell(frame)
            return
        if self._ledger is not None:
            self._ledger.sent(data, opcode)  # from here on it may be at the node, whatever becomes of the write
        try:
            await dialed.socket.send_frame(data, opcode)
        except (ConnectionError, RuntimeError, aiohttp.ClientError):
            if dialed is self._dialed:
                self._connected.clear()  # the other task finds out as well, and looks for another node

    # ---- from nodes ----

    async def _from_nodes(self) -> Goodbye:
        ledger = self._ledger
        while True:
            dialed = self._dialed
            if dialed is None:
                return Goodbye(CLOSE_NO_CODE)
            goodbye = await self._from_node(dialed.socket)
            self._connected.clear()
            self._dialed = None
            if ledger is not None:
                self._counters["unknown"] += ledger.commands
                for frame in ledger.unknown():
                    if not self._ends_with_node:
                        await self._tell(frame)
                self._answered.set()
            if goodbye is None:
                await dialed.drop()  # a node that hangs takes nothing: the other task may wait for room there
            else:
                await dialed.close()
            if goodbye is not None and goodbye.code not in LEAVING:
                return goodbye
            self._counters["lost" if goodbye is None else "left"] += 1
            if ledger is None or ledger.guards or self._ends_with_node:
                # Orders that die with the stream are dying, or soon will: that can't be hidden.
                return goodbye or Goodbye(CLOSE_SHUTDOWN, f"node_lost{self._resume()}")
            found = await self._another()
            if isinstance(found, Goodbye):
                self._connected.set()
                await asyncio.sleep(_SAY_NO_S)  # what came meanwhile is told that it was not sent
                return found
            self.node, self._dialed, self._is_first = found.node, found, True
            listen = ledger.listen_again()
            if listen is not None:
                with suppress(ConnectionError, RuntimeError, aiohttp.ClientError):
                    await found.socket.send_frame(*listen)
            self._connected.set()

    async def _from_node(self, socket: aiohttp.ClientWebSocketResponse[bool]) -> Goodbye | None:
        """Pass on what a node says until it closes the stream. None: it broke, or fell silent."""
        ledger = self._ledger
        while True:
            try:
                message = await socket.receive(timeout=SILENT_S)
            except TimeoutError:
                log.info("a node fell silent", node=self.node, seconds=SILENT_S)
                return None
            if message.type is WSMsgType.CLOSE:
                return Goodbye(message.data or CLOSE_NO_CODE, message.extra or "")
            if message.type not in _TEXTS:
                return None
            if ledger is not None:
                kind = ledger.heard(message.data, message.type)
                self._answered.set()
                first, self._is_first = self._is_first, False
                is_told = ledger.guards or self._ends_with_node
                # The client knows who it is; and that this node leaves is only its business where it must leave too.
                if (first and is_authorized(kind)) or (is_closing(kind) and not is_told):
                    continue
            await self._tell((message.data, message.type))

    async def _another(self) -> Dialed | Goodbye:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + LOOK_FOR_S
        while True:
            try:
                return await self._redial()
            except Refused as refused:
                if refused.said.status == 401:
                    self._refused = Unauthenticated("no node takes this stream's token any more; nothing was sent")
                    return Goodbye(CLOSE_UNAUTHENTICATED, "unauthenticated")
                why = NoNode(f"no node takes this stream now: HTTP {refused.said.status}; nothing was sent")
            except NoNode as error:
                why = error
            if loop.time() > deadline_s:
                self._refused = why
                return Goodbye(CLOSE_TRY_LATER, f"no_node{self._resume()}")
            await asyncio.sleep(_LOOK_AGAIN_S)

    # ---- the end ----

    def _resume(self) -> str:
        return f" resume={self._ledger.position}" if self._ledger is not None and self._ledger.position else ""

    async def _drained(self, writing: asyncio.Task[Goodbye]) -> Goodbye:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._wait_s):
                while self.under_way and not writing.done():  # noqa: ASYNC110 - answers end it
                    await asyncio.sleep(0.01)
        await end(writing)
        if self._ledger is not None:
            for frame in (*self._ledger.unknown(), self._ledger.goodbye(self._format)):
                await self._tell(frame)
        return Goodbye(CLOSE_SHUTDOWN, f"draining{self._resume()}")

    async def _tell(self, frame: Frame) -> None:
        try:
            async with asyncio.timeout(STALL_S):
                await self.client.send_frame(*frame)
        except TimeoutError as error:
            raise _ClientIsSlow from error
        except (ConnectionError, RuntimeError) as error:
            raise _ClientIsGone from error

    async def _close(self, goodbye: Goodbye) -> None:
        """To the node first: a session that orders hang on ends with the client."""
        if self._dialed is not None:
            code = self.client.close_code or 1000
            await self._dialed.close(code if code < 5000 and code not in (1005, 1006) else 1000)
        code = 1000 if goodbye.code == CLOSE_NO_CODE else goodbye.code
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self.client.close(code=code, message=goodbye.reason.encode()[:120])
        except TimeoutError:
            log.info("a client did not close in time", code=code)
