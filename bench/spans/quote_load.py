"""The two ends of a quote's way, in one process: a venue that sends quotes, and clients that note when they come.

The venue speaks as Kraken's WebSocket v1 does (channel `ticker`); clients speak msgpack with the gateway. Both are as
lean as they can be, since they share the machine with what is measured.
"""

import asyncio
import base64
import hashlib
import random
import struct
from time import monotonic_ns
from typing import Any, cast

import msgspec

from bench.spans.quote_kinds import KINDS, TRACED_HOST, number_of
from bench.spans.stamps import Stamps

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
HEAD_END = b"\r\n\r\n"
SLICE_S = 0.002
NBBO = 2
_NO_MASK = b"\x00\x00\x00\x00"
_frame = msgspec.msgpack.Decoder().decode


class Venue(asyncio.Protocol):
    """Sends each quote in a frame of its own, the count of all as the size of its bid."""

    def __init__(self, stamps: Stamps, symbols: list[str], seed: int) -> None:
        self.stamps = stamps
        self.symbols = symbols
        self.number = 0
        self.noted = False
        """Whether quotes are noted from now on."""
        self._chance = random.Random(seed)
        self._transport: asyncio.Transport | None = None
        self._head = b""
        self._is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self._head, self._is_open = cast(asyncio.Transport, transport), b"", False

    def data_received(self, data: bytes) -> None:
        """The upgrade; what the feed asks for afterwards it gets in any case."""
        if self._is_open or self._transport is None:
            return
        self._head += data
        if HEAD_END not in self._head:
            return
        lines = dict(line.split(b": ", 1) for line in self._head.split(b"\r\n")[1:] if b": " in line)
        key = next(value for name, value in lines.items() if name.lower() == b"sec-websocket-key")
        accept = base64.b64encode(hashlib.sha1(key + GUID, usedforsecurity=False).digest())
        self._transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + HEAD_END
        )
        self._is_open = True

    def send(self, symbol: str) -> None:
        if self._transport is None or not self._is_open:
            return
        self.number += 1
        began = monotonic_ns()
        cents = 10_000 + self._chance.randrange(10)
        payload = (
            f'[0,{{"a":["{cents + 1}.00",1,"5.00000000"],"b":["{cents}.00",1,"{self.number}.00000000"]}},'
            f'"ticker","{symbol}"]'
        ).encode("ascii")
        head = (
            struct.pack(">BB", 0x81, len(payload))
            if len(payload) < 126
            else struct.pack(">BBH", 0x81, 126, len(payload))
        )
        self._transport.write(head + payload)
        if self.noted:
            self.stamps.add("Asked", self.number, began, monotonic_ns())

    async def run(self, per_s: float) -> None:
        """So many quotes a second, of all symbols in turn, each when it is due."""
        loop = asyncio.get_running_loop()
        began, sent = loop.time(), 0
        while True:
            due = int((loop.time() - began) * per_s)
            for at in range(sent, due):
                self.send(self.symbols[at % len(self.symbols)])
            sent = due
            await asyncio.sleep(SLICE_S)


class Client(asyncio.Protocol):
    """One socket. traced: what it gets is noted, quote by quote; else it is read and forgotten."""

    def __init__(self, stamps: Stamps, token: str, place: str, symbols: list[str], *, traced: bool) -> None:
        self.stamps = stamps
        self.traced = traced
        self.port = 0
        self.frames = 0
        self._token = token
        self._place = place
        self._symbols = symbols
        self._rest = b""
        self.opened = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.port = transport.get_extra_info("sockname")[1]
        key = base64.b64encode(random.randbytes(16)).decode()
        self._transport.write(
            (
                f"GET /v1/stream HTTP/1.1\r\nHost: {self._place}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
                f"Sec-WebSocket-Protocol: tiebreak.msgpack\r\nAuthorization: Bearer {self._token}\r\n\r\n"
            ).encode("ascii")
        )

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(ConnectionError("the gateway turned a client away"))

    def data_received(self, data: bytes) -> None:
        now = monotonic_ns()
        if self.opened.done() and not self.traced:
            self.frames += 1
            return
        data = self._rest + data if self._rest else data
        at = 0
        if not self.opened.done():
            at = data.find(HEAD_END) + len(HEAD_END)
            if at < len(HEAD_END):
                self._rest = data
                return
            if b" 101 " not in data[:20] or self._transport is None:
                self.opened.set_exception(ConnectionError(f"refused: {data[:200]!r}"))
                return
            self.opened.set_result(None)
            body = {"action": "subscribe", "channel": "nbbo", "symbols": self._symbols, "rate": "live"}
            wanted = msgspec.msgpack.encode(body)
            self._transport.write(struct.pack(">BBH", 0x82, 0x80 | 126, len(wanted)) + _NO_MASK + wanted)
        self._rest = self._read(data, at, now)

    def _read(self, data: bytes, at: int, now: int) -> bytes:
        end = len(data)
        while end - at >= 2:
            size, begin = data[at + 1], at + 2
            if size >= 126:
                wide = 2 if size == 126 else 8
                if end - begin < wide:
                    break
                size, begin = int.from_bytes(data[begin : begin + wide], "big"), begin + wide
            if end - begin < size:
                break
            if size and data[begin] == 0x93:
                self._quotes(_frame(data[begin : begin + size]), now)
            at = begin + size
        return data[at:]

    def _quotes(self, frame: Any, now: int) -> None:
        self.frames += 1
        at_us, _, updates = frame
        for code, row in updates:
            if code == NBBO:
                self.stamps.add("Got", number_of(row[2]), self.port, at_us, now)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Ends:
    """A venue that listens, and clients once a gateway is there."""

    def __init__(self, symbols: list[str], seed: int = 1) -> None:
        self.stamps = Stamps(KINDS)
        self.symbols = symbols
        self.venue = Venue(self.stamps, symbols, seed)
        self.clients: list[Client] = []
        self._server: asyncio.Server | None = None
        self._chance = random.Random(seed)

    async def listen(self, port: int) -> str:
        """The venue's address."""
        self._server = await asyncio.get_running_loop().create_server(lambda: self.venue, "127.0.0.1", port)
        return f"ws://127.0.0.1:{port}/"

    async def connect(self, port: int, token: str, *, clients: int, symbols: list[str], each: int, traced: int) -> None:
        """traced: how many of them are noted. Raises ConnectionError, TimeoutError."""
        loop = asyncio.get_running_loop()
        for number in range(clients):
            names = self._chance.sample(symbols, min(each, len(symbols)))
            made = Client(self.stamps, token, f"127.0.0.1:{port}", names, traced=number < traced)
            host = TRACED_HOST if number < traced else "127.0.0.1"
            await loop.create_connection(lambda made=made: made, "127.0.0.1", port, local_addr=(host, 0))  # type: ignore[misc]
            self.clients.append(made)
        async with asyncio.timeout(30.0):
            await asyncio.gather(*(client.opened for client in self.clients))

    def leave(self) -> None:
        """All clients."""
        for client in self.clients:
            client.close()
        self.clients.clear()

    def close(self) -> None:
        self.leave()
        if self._server is not None:
            self._server.close()
