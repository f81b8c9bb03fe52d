"""A small node for the client's tests: real HTTP and WebSocket on a real port, faults on request.

It keeps the contract of cluster.wire that a client leans on: a key is executed once, a repeat with the same body
gets the first answer, with another body it is refused.
"""

import asyncio
import random
import socket
from collections import deque
from contextlib import suppress

import msgspec
from aiohttp import WSMsgType, web

from cluster import wire
from cluster.wire import Answer, ErrorBody

TOKEN = "let-me-in"  # noqa: S105


def free_port() -> int:
    """A port of loopback that was free a moment ago, drawn at random: other test runs draw too."""
    while True:
        port = random.randint(20_000, 32_700)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Ledger:
    """What the nodes of one fake cluster share: the commands executed, by key."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[wire.AnyRequest, Answer]] = {}
        self.executed: list[wire.AnyRequest] = []
        self.seen_tries = 0

    def take(self, request: wire.AnyRequest) -> Answer:
        self.seen_tries += 1
        known = self.answers.get(request.key)
        if known is not None:
            if known[0] != request:
                return Answer(key=request.key, error="key_reused", code=422_00011, message="another body")
            return msgspec.structs.replace(known[1], replay=True)
        self.executed.append(request)
        index = len(self.executed)
        if isinstance(request, wire.PlaceOrder) and request.qty == "999":
            answer = Answer(
                key=request.key, index=index, error="insufficient_funds", code=403_00041, message="too much"
            )
        else:
            answer = Answer(key=request.key, index=index, id=str(index), status="new", filled_qty="0")
        self.answers[request.key] = (request, answer)
        return answer


class FakeNode:
    """One member. faults: what the next command tries meet, one each; then all goes well.

    no_leader, outcome_unknown (executed all the same), overloaded, drop_before, drop_after (executed),
    expired (401), proxy_502 (executed), hang.
    """

    def __init__(self, name: str, ledger: Ledger, *, leader: str = "") -> None:
        self.name = name
        self.ledger = ledger
        self.leader = leader or name
        self.faults: deque[str] = deque()
        self.port = free_port()
        self.apis: dict[str, str] = {}
        self.requests: list[str] = []
        self.reads: list[web.Request] = []
        self.frames = 0
        self._runner: web.AppRunner | None = None
        self.sockets: set[web.WebSocketResponse] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> "FakeNode":
        app = web.Application()
        app.router.add_get("/v1/status", self._status)
        app.router.add_get("/v1/orders/stream", self._stream)
        app.router.add_get("/v1/accounts/{id}", self._account)
        app.router.add_post("/v1/{tail:.*}", self._command)
        app.router.add_delete("/v1/{tail:.*}", self._command)
        app.router.add_patch("/v1/{tail:.*}", self._command)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        return self

    async def stop(self) -> None:
        for one in list(self.sockets):
            await one.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _status(self, request: web.Request) -> web.Response:
        leads = self.leader == self.name
        view = wire.MemberView(
            name=self.name,
            site="dc-a",
            role="replica",
            state="leader" if leads else "follower",
            leader=self.leader,
            term=1,
            epoch=1,
            has_quorum=True,
            ready=True,
            first_index=1,
            last_index=1,
            durable_index=1,
            commit_index=1,
            applied_index=1,
            stored_index=1,
            time_us=1,
            digest="00",
            digest_index=1,
            writes_stopped=False,
            uptime_s=1.0,
            pid=1,
            version="0",
            apis=self.apis,
        )
        return _json(view)

    async def _account(self, request: web.Request) -> web.Response:
        self.reads.append(request)
        fault = self.faults.popleft() if self.faults else ""
        if fault == "no_quorum":
            return _error(503, 1021, "no_quorum")
        if fault == "hang":
            await asyncio.sleep(60)
        if fault == "epoch_changed":
            return _error(409, 1031, fault)
        if request.match_info["id"] == "nobody":
            return _error(404, 20, "account_not_found")
        return _json(wire.AccountView(request.match_info["id"], "ACTIVE", [], 0))

    async def _command(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path}")
        fault = self.faults.popleft() if self.faults else ""
        body = await request.read()
        key = request.headers["Idempotency-Key"]
        command: wire.AnyRequest
        if request.method == "DELETE":
            named = request.query.get("client_order_id", "")
            command = wire.CancelOrder(
                order_id="" if named else request.path.rsplit("/", 1)[1],
                original_client_order_id=named,
                key=key,
                account=request.query.get("account", ""),
                sent_at=request.query.get("sent_at", ""),
            )
        else:
            command = msgspec.structs.replace(msgspec.json.decode(body, type=wire.AnyRequest), key=key)
        if fault in ("no_leader", "overloaded"):
            self.ledger.seen_tries += 1
            return (
                _error(503, 1020, fault) if fault == "no_leader" else _error(429, 1011, fault, {"Retry-After": "0.05"})
            )
        if fault == "expired":
            return _error(401, 1006, "unauthenticated")
        if fault == "drop_before":
            _abort(request)
        answer = self.ledger.take(command)
        if fault == "drop_after":
            _abort(request)
        if fault == "proxy_502":
            return web.Response(status=502, text="Bad Gateway")
        if fault == "outcome_unknown":
            return _error(503, 1022, "outcome_unknown", definite=False)
        if answer.error:
            return _error(answer.code // 100_000, answer.code % 100_000, answer.error)
        headers = {"X-Log-Index": str(answer.index), "X-Session-Token": f"token-{answer.index}"}
        if answer.replay:
            headers["Idempotency-Replayed"] = "true"
        return _json(answer, headers)

    async def _stream(self, request: web.Request) -> web.WebSocketResponse:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise web.HTTPUnauthorized
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        self.sockets.add(ws)
        async for message in ws:
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                break
            text = message.type is WSMsgType.TEXT
            decode = msgspec.json.decode if text else msgspec.msgpack.decode
            action = decode(message.data, type=wire.AnyAction)
            if not isinstance(action, wire.Submit):
                continue
            self.frames += 1
            fault = self.faults.popleft() if self.faults else ""
            if fault == "drop_before":
                _abort(request)
                break
            if fault == "hang":
                continue
            if fault == "no_leader":
                results = [Answer(key=c.key, error=fault, code=503_01020) for c in action.commands]
            elif fault == "half_unknown":
                results = [self.ledger.take(c) for c in action.commands]
                lost = Answer(error="outcome_unknown", code=503_01022)
                results = [lost if i % 2 else r for i, r in enumerate(results)]
            else:
                results = [self.ledger.take(c) for c in action.commands]
            if fault == "drop_after":
                _abort(request)
                break
            answers = wire.Answers(id=action.id, results=results, session_token=f"token-{self.frames}")
            if text:
                await ws.send_str(msgspec.json.encode(answers).decode())
            else:
                await ws.send_bytes(msgspec.msgpack.encode(answers))
        self.sockets.discard(ws)
        return ws


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _json(value: object, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json", headers=headers)


def _error(
    status: int, number: int, error: str, headers: dict[str, str] | None = None, *, definite: bool = True
) -> web.Response:
    body = ErrorBody(code=status * 100_000 + number, error=error, message=f"it is {error}", definite=definite)
    return web.Response(status=status, body=msgspec.json.encode(body), content_type="application/json", headers=headers)
