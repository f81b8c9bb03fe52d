"""A stream server behind aiohttp and the connection guard, as a gateway has it, fed by the test; and a plain client."""

import asyncio
import base64
import os
import secrets
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from gateway.fanout.fragment import JSON, Fragment
from gateway.fanout.hub import Hub
from gateway.fanout.pace import Pace
from gateway.fanout.ring import Rings
from gateway.fanout.source import LocalSource, Provider, Source
from gateway.fanout.topics import CHANNELS
from gateway.stream.admission import StreamLimits
from gateway.stream.places import Door
from gateway.stream.server import StreamServer
from node.auth import Authenticator, issue_token
from node.errors import NodeError, error_body
from node.guard import ConnectionGuard, HttpLimits

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PRIVATE = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
PUBLIC = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

SYMBOLS = ("AAPL", "MSFT", "BTCUSDT")


def token(subject: str = "anna", role: str = "trader", accounts: Sequence[str] = ("anna",), **more: Any) -> str:
    return issue_token(PRIVATE, subject=subject, role=role, accounts=accounts, **more)


def update(channel: str, symbol: str, value: object) -> Fragment:
    code = CHANNELS[channel].code
    return Fragment(
        lambda formats: (
            {"channel": channel, "symbol": symbol, "value": value} if formats == JSON else (code, symbol, value)
        )
    )


@web.middleware
async def refusals(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        response: web.StreamResponse = await handler(request)
    except NodeError as error:
        body = msgspec.json.encode(error_body(error))
        return web.Response(body=body, status=error.status, headers={**error.headers, "Retry-After": "1"})
    return response


class Serving:
    """hub, rings, server: of one process. What the test publishes goes out with the next round."""

    def __init__(
        self,
        *,
        limits: StreamLimits | None = None,
        http: HttpLimits | None = None,
        pace: Pace | None = None,
        source: Source | None = None,
        hub: Hub | None = None,
        door: Door | None = None,
    ) -> None:
        self.rings = Rings(secrets.randbits(40))
        self.hub = hub or Hub(self.rings.epoch, pace=pace)
        self.states: dict[tuple[str, str], Fragment] = {}
        self.ready = True
        self.server = StreamServer(
            self.hub,
            source or LocalSource(self.hub, self.rings, {name: self._provider(name) for name in CHANNELS}),
            Authenticator([PUBLIC]),
            limits=limits,
            is_ready=lambda: self.ready,
            door=door,
        )
        self.guard = ConnectionGuard(http or HttpLimits())
        self.port = 0
        self.clients: list[Client] = []

    async def client(self, **options: Any) -> "Client":
        """See Client.connect; closed with the server."""
        client = await Client.connect(self.port, **options)
        self.clients.append(client)
        return client

    def _provider(self, channel: str) -> Provider:
        def now(symbol: str) -> Fragment | None:
            if not CHANNELS[channel].owned and symbol.partition("@")[0] not in (*SYMBOLS, ""):
                raise LookupError(f"nothing is known of a symbol {symbol!r}")
            return self.states.get((channel, symbol))

        return now

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Serving"]:
        app = web.Application(middlewares=[refusals])
        app.router.add_get("/v1/stream", self.server.handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        assert runner.server is not None
        sock = free_socket()
        listening = await asyncio.get_running_loop().create_server(self.guard.factory(runner.server), sock=sock)
        self.port = sock.getsockname()[1]
        self.server.start()
        try:
            yield self
        finally:
            for client in self.clients:
                client.close()
            await self.server.stop()
            listening.close()
            await runner.cleanup()
            await asyncio.sleep(0)

    # ---- what the data does ----

    def publish(self, channel: str, symbol: str, value: object) -> None:
        fragment = update(channel, symbol, value)
        self.states[(channel, symbol)] = fragment
        topic = self.hub.topics.get((channel, symbol))
        if topic is not None:
            self.hub.publish(topic, fragment)

    def append(self, channel: str, symbol: str, value: object) -> int:
        kept = self.rings.append((channel, symbol), update(channel, symbol, value))
        self.hub.append(kept.key, kept.fragment, kept.seq)
        return kept.seq


def free_socket() -> socket.socket:
    for port in range(20_000 + os.getpid() % 10_000, 32_768):
        sock = socket.socket()
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            sock.close()
            continue
        return sock
    raise OSError("no free port")


class Client:
    """A WebSocket client of the test's own: it can stop reading, and send what no library would."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.kept: list[dict[str, Any]] = []
        self.close_code = 0
        self.close_reason = ""
        self.pings = 0
        self.packed = False

    @classmethod
    async def connect(
        cls,
        port: int,
        *,
        bearer: str | None = "",
        protocol: str = "",
        receive_bytes: int = 0,
        host: str = "127.0.0.1",
    ) -> "Client":
        """bearer: a token; None: none is sent; empty: anna's. Raises ConnectionError with the answer."""
        sock = socket.socket()
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (host, port))
        except OSError:
            sock.close()
            raise
        reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 24 if not receive_bytes else 1024)
        lines = [
            "GET /v1/stream HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade",
            "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}",
        ]  # fmt: skip
        if bearer is not None:
            lines.append(f"Authorization: Bearer {bearer or token()}")
        if protocol:
            lines.append(f"Sec-WebSocket-Protocol: {protocol}")
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        except BaseException:
            writer.close()
            raise
        if " 101 " not in head:
            body = await reader.read(4_096)
            writer.close()
            raise ConnectionError(head + body.decode(errors="replace"))
        client = cls(reader, writer)
        client.packed = "tiebreak.msgpack" in head
        return client

    def send(self, action: str, **fields: Any) -> None:
        body = {"action": action, **fields}
        if self.packed:
            self.send_frame(0x2, msgspec.msgpack.encode(body))
        else:
            self.send_frame(0x1, msgspec.json.encode(body))

    def send_frame(self, opcode: int, payload: bytes) -> None:
        self.send_raw(masked(0x80 | opcode, payload))

    def send_raw(self, data: bytes) -> None:
        self.writer.write(data)

    async def frame(self, *, within_s: float = 5.0) -> tuple[int, bytes]:
        async with asyncio.timeout(within_s):
            first, second = await self.reader.readexactly(2)
            size = second
            if second == 126:
                size = int.from_bytes(await self.reader.readexactly(2), "big")
            elif second == 127:
                size = int.from_bytes(await self.reader.readexactly(8), "big")
            return first & 0x0F, await self.reader.readexactly(size)

    async def message(self, *, within_s: float = 5.0) -> Any:
        """The next message that is no heartbeat. Raises ConnectionError when the stream ends; see close_code."""
        while True:
            try:
                opcode, payload = await self.frame(within_s=within_s)
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                raise ConnectionError("the stream ended") from error
            if opcode == 0x8:
                self.close_code, self.close_reason = int.from_bytes(payload[:2], "big"), payload[2:].decode()
                raise ConnectionError(f"closed: {self.close_code} {self.close_reason}")
            if opcode == 0x9:
                self.pings += 1
                continue
            if opcode == 0xA:
                continue
            found = msgspec.json.decode(payload) if opcode == 0x1 else msgspec.msgpack.decode(payload)
            if isinstance(found, list):
                found = {"stream": "data", "at_us": found[0], "seq": found[1], "updates": found[2]}
            if not (isinstance(found, dict) and found["stream"] in ("heartbeat", "status")):
                return found

    async def until(self, stream: str, *, within_s: float = 5.0) -> Any:
        """The next message of this kind; others on the way are in `kept`."""
        while True:
            found = await self.message(within_s=within_s)
            if isinstance(found, dict) and found["stream"] == stream:
                return found
            self.kept.append(found)

    async def subscribe(self, channel: str, *symbols: str, **fields: Any) -> Any:
        self.send("subscribe", channel=channel, symbols=list(symbols), **fields)
        while True:
            found = await self.message()
            if isinstance(found, dict) and found["stream"] in ("subscribed", "error"):
                return found
            self.kept.append(found)

    async def updates(self, *, within_s: float = 5.0) -> list[Any]:
        """Of the next data frame."""
        return list((await self.until("data", within_s=within_s))["updates"])

    def close(self) -> None:
        self.writer.transport.abort()


def masked(first: int, payload: bytes, mask: bytes = b"\x01\x02\x03\x04") -> bytes:
    size = len(payload)
    head = bytes([first])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65_536:
        head += bytes([0x80 | 126]) + size.to_bytes(2, "big")
    else:
        head += bytes([0x80 | 127]) + size.to_bytes(8, "big")
    return head + mask + bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
