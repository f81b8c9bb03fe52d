"""Pipelined order entry over one WebSocket: many frames under way, resent with their keys after a lost connection."""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NamedTuple, Self

import aiohttp
import msgspec

from cluster import wire
from cluster.client_answers import Outcome, Refused, Verdict, given_up, judge, outcome
from cluster.client_http import Backoff, Caller
from cluster.client_members import describe
from cluster.wire import COMMANDS_PER_FRAME_MAX, Answer, Answers, AnyRequest, GuardOrders, Listen, OrderUpdates, Submit

COMMANDS_UNDER_WAY_MAX = 16_000
"""Sent and not answered; a node takes 20,000 of a stream. What comes beyond waits here."""
SILENCE_MS_MAX = 3_000
"""With frames under way and nothing heard for this long, the member is taken for lost and another is tried."""
FRAME_BYTES_MAX = 16 * 1024 * 1024
UPDATES_WAITING_MAX = 10_000
PATH = "/v1/orders/stream"
"""At nodes and at gateways; `/v1/stream` of a gateway is another stream, of prices."""
QUERY = "?on_node_lost=close"
"""A gateway that took later frames to another node would let them overtake those that must be sent again. Nodes, of
which a stream can't outlive any, do not look at it."""
PROTOCOL = "tiebreak.{}"

Message = (
    Answers
    | wire.Authorized
    | wire.Listening
    | OrderUpdates
    | wire.Guarding
    | wire.Pong
    | wire.Heartbeat
    | wire.StreamError
    | wire.Closing
)


class _Lost(Exception):
    """The connection went. sent: the frame may have reached the node."""

    def __init__(self, cause: str, *, sent: bool) -> None:
        super().__init__(cause)
        self.sent = sent


class _Frame(NamedTuple):
    size: int
    answers: asyncio.Future[list[Answer]]


class StreamRefused(Exception):
    """The node said no to the stream itself: a bad token, no such path, an account out of reach."""


class Stream:
    """Made by `Client.stream()`; use it as `async with`. It reconnects by itself and goes to the leader's side.

    Commands of one `submit` are taken in order, and so are frames in the order of the calls, as long as
    none has to be tried again on its own (a full queue, an election): that one then comes later.
    """

    def __init__(
        self,
        caller: Caller,
        prepare: Callable[[AnyRequest], AnyRequest],
        settle: Callable[[AnyRequest, Outcome], Outcome],
        *,
        timeout_ms: int,
        json: bool = False,
    ) -> None:
        """prepare: makes a request ready to be sent. settle: is told each outcome, and may add to it."""
        self._caller = caller
        self._prepare = prepare
        self._settle = settle
        self._timeout_ms = timeout_ms
        self._json = json
        self._encode = msgspec.json.Encoder().encode if json else msgspec.msgpack.Encoder().encode
        self._ids = itertools.count(1)
        self._frames: dict[int, _Frame] = {}
        self._under_way = 0
        self._entry = asyncio.Lock()
        self._freed = asyncio.Event()
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._connected = asyncio.Event()
        self._cause = "not connected yet"
        self._heard_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._refused: StreamRefused | None = None
        self._listening: Listen | None = None
        self._updates: asyncio.Queue[OrderUpdates | StreamRefused] = asyncio.Queue(UPDATES_WAITING_MAX + 1)
        self._guards: dict[tuple[str, str], asyncio.Future[None]] = {}
        self.resent = 0
        """Commands that were sent again, since a try ended without a clear answer."""

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        self._watch = asyncio.create_task(self._watch_silence())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in (self._watch, self._task):
            if task is not None:
                task.cancel()
        await asyncio.gather(*(t for t in (self._watch, self._task) if t is not None), return_exceptions=True)
        if self._socket is not None:
            await self._socket.close()
        self._lose("the stream was closed")

    async def submit(self, requests: Sequence[AnyRequest], *, timeout_ms: int | None = None) -> list[Outcome]:
        """Send commands, in order, and wait for all of their outcomes, in the same order.

        Many calls may be under way at once; that is how one connection carries tens of thousands a second.
        requests: any number; beyond 500 they go out as several frames. A key and sent_at are added where missing.
        timeout_ms: until then a command without a clear answer is tried again with its key.

        Raises:
            StreamRefused: the node refuses this principal a stream; nothing was sent.
        """
        timeout_ms = self._timeout_ms if timeout_ms is None else timeout_ms
        deadline = time.monotonic() + timeout_ms / 1000
        ready = [self._prepare(request) for request in requests]
        if len(ready) <= COMMANDS_PER_FRAME_MAX:
            return await self._submit_frame(ready, deadline) if ready else []
        frames = [ready[at : at + COMMANDS_PER_FRAME_MAX] for at in range(0, len(ready), COMMANDS_PER_FRAME_MAX)]
        answers = await asyncio.gather(*(self._submit_frame(f, deadline) for f in frames), return_exceptions=True)
        outcomes: list[Outcome] = []
        for frame, found in zip(frames, answers, strict=True):
            if isinstance(found, StreamRefused) and any(isinstance(other, list) for other in answers):
                # Nothing of this frame was sent, but what became of the others must be said.
                outcomes += [Refused(request.key, "unreachable", str(found)) for request in frame]
            elif isinstance(found, BaseException):
                raise found
            else:
                outcomes += found
        return outcomes

    async def listen(self, accounts: Sequence[str] = (), *, after: str = "") -> None:
        """Ask for private order and fill events; `next_update` gives them.

        accounts: none is all that the token may read. after: resume behind this position; else from now on. After
        a lost connection it is asked again behind the last position seen, so nothing is missed or told twice.
        """
        self._listening = Listen(accounts=list(accounts), after=after)
        socket = self._socket
        if socket is not None and self._connected.is_set():
            await self._send(socket, self._encode(self._listening))

    async def next_update(self) -> OrderUpdates:
        """Private events of the next log entry that has any. Waits for one.

        Raises StreamRefused: the listening was refused (`snapshot_required`, say), or these updates were read too
        slowly and what waited was dropped; the message says from where to listen again.
        """
        found = await self._updates.get()
        if isinstance(found, StreamRefused):
            raise found
        return found

    async def guard(self, account: str, *, timeout_ms: int, key: str) -> None:
        """Cancel on disconnect: orders that name the session `key` die timeout_ms after this stream is gone.

        timeout_ms: at least wire.GUARD_TIMEOUT_MS_MIN, a second.
        It is not opened again after a lost connection: its orders are being canceled then; guard a new key.
        Raises StreamRefused: not opened, or no answer in time.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._guards[account, key] = future
        try:
            async with asyncio.timeout(self._timeout_ms / 1000):
                await self._wait_connected(time.monotonic() + self._timeout_ms / 1000)
                if self._socket is None:
                    raise StreamRefused(self._cause)
                action = GuardOrders(account=account, timeout_ms=timeout_ms, key=key)
                await self._send(self._socket, self._encode(action))
                await future
        except (TimeoutError, _Lost) as error:
            raise StreamRefused(f"no answer to cancel on disconnect: {describe(error)}") from error
        finally:
            self._guards.pop((account, key), None)

    # ---- one frame, until each of its commands has an outcome ----

    async def _submit_frame(self, requests: list[AnyRequest], deadline: float) -> list[Outcome]:
        done: list[Outcome | None] = [None] * len(requests)
        unsure = [False] * len(requests)
        last = Answer(error="unreachable", message=self._cause)
        waiting = list(range(len(requests)))
        backoff = Backoff()
        tried = False
        await self._enter(len(requests))
        try:
            while waiting:
                self.resent += len(waiting) if tried else 0
                tried = True
                again: list[int] = []
                try:
                    answers = await self._exchange([requests[i] for i in waiting], deadline)
                except _Lost as lost:
                    last = Answer(error="unreachable", message=str(lost))
                    for i in waiting:
                        unsure[i] = unsure[i] or lost.sent
                    if time.monotonic() >= deadline:
                        break
                    continue  # _exchange waits for the next connection, so frames go out again in their order
                except StreamRefused as refused:
                    if len(waiting) == len(requests) and not any(unsure):
                        raise  # nothing was sent
                    last = Answer(error="unreachable", message=str(refused))
                    break
                for i, answer in zip(waiting, answers, strict=True):
                    verdict = judge(error=answer.error, code=answer.code)
                    if verdict is Verdict.final:
                        done[i] = outcome(requests[i].key, answer, unsure=unsure[i])
                        continue
                    unsure[i] = unsure[i] or verdict is Verdict.unsure
                    last = answer
                    again.append(i)
                waiting = again
                if waiting and not await backoff.wait(deadline=deadline):
                    break
        finally:
            self._under_way -= len(requests)
            self._freed.set()
        for i in waiting:
            done[i] = given_up(
                requests[i].key, unsure=unsure[i], error=last.error, message=last.message, code=last.code
            )
        return [self._settle(request, one) for request, one in zip(requests, done, strict=True) if one is not None]

    async def _enter(self, commands: int) -> None:
        """Wait for room, first come first served."""
        async with self._entry:
            while self._under_way and self._under_way + commands > COMMANDS_UNDER_WAY_MAX:
                self._freed.clear()
                await self._freed.wait()
            self._under_way += commands

    async def _exchange(self, requests: list[AnyRequest], deadline: float) -> list[Answer]:
        """Send one frame and wait for its answers. Raises _Lost when the connection or the time is gone first."""
        connected = await self._wait_connected(deadline)
        socket = self._socket
        if not connected or socket is None:
            raise _Lost(self._cause, sent=False)
        left_ms = max(10, min(60_000, int((deadline - time.monotonic()) * 1000)))
        number = next(self._ids)
        future: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()
        if not self._frames:
            self._heard_at = time.monotonic()  # silence counts from the first frame that waits
        self._frames[number] = _Frame(len(requests), future)
        try:
            await self._send(socket, self._encode(Submit(id=number, commands=requests, timeout_ms=left_ms)))
            # The node answers by the deadline that it was given; the rest is for the way back.
            async with asyncio.timeout(left_ms / 1000 + 0.25):
                answers = await future
        except TimeoutError:
            raise _Lost("no answer before the deadline", sent=True) from None
        finally:
            self._frames.pop(number, None)
            if future.done() and not future.cancelled():
                future.exception()  # seen, even where sending failed first
        if len(answers) != len(requests):
            raise _Lost(f"{len(answers)} answers to {len(requests)} commands", sent=True)
        return answers

    async def _wait_connected(self, deadline: float) -> bool:
        if not self._connected.is_set():
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    await self._connected.wait()
            except TimeoutError:
                return False
        if self._refused is not None:
            raise self._refused
        return True

    async def _send(self, socket: aiohttp.ClientWebSocketResponse, frame: bytes) -> None:
        try:
            if self._json:
                await socket.send_str(frame.decode())
            else:
                await socket.send_bytes(frame)
        except (aiohttp.ClientError, ConnectionError, RuntimeError) as error:
            self._connected.clear()  # who tries again waits for the next connection
            raise _Lost(describe(error), sent=True) from error

    # ---- the connection ----

    async def _run(self) -> None:
        """Connect, read until the connection is gone, find another member, for as long as the stream is open."""
        backoff = Backoff()
        while True:
            await self._caller.members.look_for_leader(self._caller.session(), self._caller.auth)
            member = self._caller.members.pick()
            try:
                socket = await self._caller.session().ws_connect(
                    member.url + PATH + QUERY,
                    headers=self._caller.auth,
                    protocols=(PROTOCOL.format("json" if self._json else "msgpack"),),
                    timeout=aiohttp.ClientWSTimeout(ws_close=1.0),
                    max_msg_size=FRAME_BYTES_MAX,
                    compress=0,
                )
            except aiohttp.WSServerHandshakeError as error:
                self._cause = f"{member.url} refused the stream: HTTP {error.status}"
                if error.status in (401, 403):
                    self._refused = StreamRefused(self._cause)
                    self._connected.set()
                    return
                self._caller.members.failed(member)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self._cause = f"{member.url}: {describe(error)}"
                self._caller.members.failed(member)
            else:
                backoff = Backoff()
                await self._read(socket)
                self._caller.members.failed(member)
            await backoff.wait(deadline=float("inf"))

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Give out answers and events until the connection is gone, then tell whoever waits."""
        self._socket = socket
        self._heard_at = time.monotonic()
        try:
            if self._listening is not None:
                await self._send(socket, self._encode(self._listening))
            self._connected.set()
            async for message in socket:
                self._heard_at = time.monotonic()
                if message.type in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT):
                    self._take(message.data)
            self._cause = f"the node closed the stream (code {socket.close_code})"
        except (aiohttp.ClientError, _Lost, msgspec.MsgspecError, OSError) as error:
            self._cause = describe(error)
        finally:
            self._connected.clear()
            self._lose(self._cause)
            await socket.close()

    def _take(self, data: bytes | str) -> None:
        try:
            message = _decode_json(data) if isinstance(data, str) else _decode_msgpack(data)
        except msgspec.ValidationError:
            return  # a kind of message that came after this client
        match message:
            case Answers():
                self._resolve(message.id, message.results)
                if message.session_token:
                    self._caller.saw(max((a.index for a in message.results), default=0), message.session_token)
            case OrderUpdates(position=position):
                self._resume_behind(position)
                self._give(message)
            case wire.Heartbeat(position=position) | wire.Listening(position=position):
                self._resume_behind(position)
            case wire.Guarding(open=True):
                self._guarded(message)
            case wire.StreamError():
                self._failed(message)
            case _:
                pass

    def _resume_behind(self, position: str) -> None:
        if self._listening is not None and position:
            self._listening = Listen(accounts=self._listening.accounts, after=position)

    def _give(self, update: OrderUpdates) -> None:
        if self._updates.qsize() < UPDATES_WAITING_MAX:
            self._updates.put_nowait(update)
            return
        first = self._updates.get_nowait()
        while not self._updates.empty():
            self._updates.get_nowait()
        self._listening = None
        position = first.position if isinstance(first, OrderUpdates) else update.position
        self._updates.put_nowait(StreamRefused(f"{UPDATES_WAITING_MAX} updates waited; listen again near {position}"))

    def _guarded(self, message: wire.Guarding) -> None:
        future = self._guards.get((message.account, message.session))
        if future is not None and not future.done():
            future.set_result(None)

    def _failed(self, message: wire.StreamError) -> None:
        """About one frame, when it names it; else about a guard or the listening that was asked for."""
        if isinstance(message.id, int):
            frame = self._frames.get(message.id)
            if frame is not None:
                refusal = Answer(error=message.error, code=message.code, message=message.message, field=message.field)
                self._resolve(message.id, [refusal] * frame.size)
            return
        self._cause = f"{message.error}: {message.message}"
        if message.error == "unauthenticated":
            return  # the node closes next; a fresh token may open the next connection
        refused = StreamRefused(self._cause)
        guards = [future for future in self._guards.values() if not future.done()]
        for future in guards:
            future.set_exception(refused)
        if not guards and self._listening is not None and not self._updates.full():
            self._listening = None
            self._updates.put_nowait(refused)

    def _resolve(self, frame: int, answers: list[Answer]) -> None:
        waiting = self._frames.get(frame)
        if waiting is not None and not waiting.answers.done():
            waiting.answers.set_result(answers)

    def _lose(self, cause: str) -> None:
        for frame in self._frames.values():
            if not frame.answers.done():
                frame.answers.set_exception(_Lost(cause, sent=True))

    async def _watch_silence(self) -> None:
        """A partition closes no connection: leave a member that owes answers and says nothing."""
        while True:
            await asyncio.sleep(SILENCE_MS_MAX / 4000)
            silent_ms = (time.monotonic() - self._heard_at) * 1000
            if self._frames and self._socket is not None and not self._socket.closed and silent_ms > SILENCE_MS_MAX:
                self._cause = f"nothing heard for {SILENCE_MS_MAX} ms"
                self._lose(self._cause)
                await self._socket.close()


_decode_json = msgspec.json.Decoder(Message).decode
_decode_msgpack = msgspec.msgpack.Decoder(Message).decode
