"""Ways into a member, as lean as they can be: connections that write requests and say what came back.

Three doors: HTTP/1.1 (one request at a time on a connection that stays), WebSocket with JSON, WebSocket with msgpack.
No client library, no masking that does anything, and no look at fields that nobody counts.
"""

import asyncio
import base64
import os
import struct
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Literal, Protocol, cast
from urllib.parse import urlencode, urlsplit

import msgspec
from msgspec import Struct

from cluster.wire import AnyRequest, CancelOrder, PlaceOrder, Submit

DoorWord = Literal["http", "json", "msgpack"]
DOORS: tuple[DoorWord, ...] = ("http", "json", "msgpack")
_NO_MASK = b"\x00\x00\x00\x00"
"""A mask of zeros leaves the payload as it is; servers must take any."""
HEAD_END = b"\r\n\r\n"


class Said(Struct, gc=False):
    """What is read of an answer."""

    error: str = ""
    filled_qty: str = ""


class Heard(Struct, gc=False):
    """A message of a stream: the answers to a frame, an error (of a frame where it has an id), or a heartbeat."""

    stream: str = ""
    id: int = -1
    results: list[Said] = []
    error: str = ""


class Owner(Protocol):
    """Whom a door tells what happened."""

    def answered(self, numbers: Sequence[int], answers: Sequence[Said]) -> None:
        """Requests were answered. One answer for several is of all of them."""

    def open(self, door: "Door") -> None:
        """Requests can be sent now."""

    def lost(self, door: "Door", numbers: list[int]) -> None:
        """The connection ended; these were under way."""


class Door(asyncio.Protocol, ABC):
    """One connection. put() takes requests, flush() sends what was put."""

    def __init__(self, owner: Owner, url: str, token: str) -> None:
        self._owner = owner
        self._token = token
        self._place = urlsplit(url).netloc
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._out: list[bytes] = []
        self.is_open = False
        self.heard_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.heard_at = asyncio.get_running_loop().time()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._owner.lost(self, self.under_way())

    @abstractmethod
    def put(self, numbers: list[int], requests: list[AnyRequest]) -> None:
        """Take these requests; they leave at once or with the next flush."""

    @abstractmethod
    def under_way(self) -> list[int]:
        """Numbers of the requests that wait for their answers."""

    def flush(self) -> None:
        if self._out and self._transport is not None:
            self._transport.write(b"".join(self._out))
            self._out.clear()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Stream(Door):
    """A WebSocket. Frames go out as they are put; answers come in any order."""

    def __init__(self, owner: Owner, url: str, token: str, *, json: bool, timeout_ms: int) -> None:
        super().__init__(owner, url, token)
        codec = msgspec.json if json else msgspec.msgpack
        self._encode = codec.Encoder().encode
        self._decode = codec.Decoder(Heard).decode
        self._opcode = 0x81 if json else 0x82
        self._protocol = "tiebreak.json" if json else "tiebreak.msgpack"
        self._timeout_ms = timeout_ms
        self._greeted = False
        self._frames: dict[int, list[int]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        key = base64.b64encode(os.urandom(16)).decode()
        self._out.append(
            (
                f"GET /v1/stream HTTP/1.1\r\nHost: {self._place}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: {self._protocol}\r\n"
                f"Authorization: Bearer {self._token}\r\n\r\n"
            ).encode("ascii")
        )
        self.flush()

    def put(self, numbers: list[int], requests: list[AnyRequest]) -> None:
        payload = self._encode(Submit(numbers[0], requests, self._timeout_ms))
        size = len(payload)
        if size < 126:
            head = bytes((self._opcode, 0x80 | size))
        elif size < 65_536:
            head = struct.pack(">BBH", self._opcode, 0x80 | 126, size)
        else:
            head = struct.pack(">BBQ", self._opcode, 0x80 | 127, size)
        self._frames[numbers[0]] = numbers
        self._out.append(head + _NO_MASK + payload)

    def under_way(self) -> list[int]:
        return [number for numbers in self._frames.values() for number in numbers]

    def data_received(self, data: bytes) -> None:
        self.heard_at = asyncio.get_running_loop().time()
        if self._received:
            data = self._received + data
        at = 0
        if not self._greeted:
            at = data.find(HEAD_END) + len(HEAD_END)
            if at < len(HEAD_END):
                self._received = data
                return
            if b" 101 " not in data[:20]:
                self.close()  # refused; the owner tries again elsewhere
                return
            self._greeted = True
        end = len(data)
        while end - at >= 2:
            kind, size, begin = data[at] & 0x0F, data[at + 1] & 0x7F, at + 2
            if size >= 126:
                wide = 2 if size == 126 else 8
                if end - begin < wide:
                    break
                size, begin = int.from_bytes(data[begin : begin + wide], "big"), begin + wide
            if end - begin < size:
                break
            self._message(kind, data[begin : begin + size])
            at = begin + size
        self._received = data[at:]

    def _message(self, kind: int, payload: bytes) -> None:
        if kind == 0x9:
            self._out.append(bytes((0x8A, 0x80 | len(payload))) + _NO_MASK + payload)
            self.flush()
        elif kind == 0x8:
            self.close()
        elif kind == 0x1 and self._opcode != 0x81:
            self._words(msgspec.json.decode(payload, type=Heard))
        elif kind in (0x1, 0x2):
            self._words(self._decode(payload))

    def _words(self, heard: Heard) -> None:
        if heard.stream == "results":
            self._owner.answered(self._frames.pop(heard.id, ()), heard.results)
        elif heard.stream == "authorization":
            self.is_open = True
            self._owner.open(self)
        elif heard.stream == "error" and heard.id in self._frames:
            self._owner.answered(self._frames.pop(heard.id), [Said(error=heard.error)])


class Http(Door):
    """Keep-alive, one request under way; what is put meanwhile waits for its turn."""

    def __init__(self, owner: Owner, url: str, token: str, *, timeout_ms: int) -> None:
        super().__init__(owner, url, token)
        self._tail = f"Host: {self._place}\r\nAuthorization: Bearer {token}\r\n"
        self._query = f"timeout_ms={timeout_ms}"
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._asked = -1
        self._need = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.is_open = True
        self._owner.open(self)

    def put(self, numbers: list[int], requests: list[AnyRequest]) -> None:
        for number, request in zip(numbers, requests, strict=True):
            self._waiting.append((number, self._written(request)))
        self._next()

    def _written(self, request: AnyRequest) -> bytes:
        if isinstance(request, CancelOrder):
            named = urlencode({"client_order_id": request.original_client_order_id, "account": request.account})
            return (
                f"DELETE /v1/orders?{named}&{self._query} HTTP/1.1\r\n{self._tail}"
                f"Idempotency-Key: {request.key}\r\n\r\n"
            ).encode("ascii")
        if not isinstance(request, PlaceOrder):
            raise TypeError(f"no door for {type(request).__name__}")
        body = msgspec.json.encode(request)
        return (
            f"POST /v1/orders?{self._query} HTTP/1.1\r\n{self._tail}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode("ascii") + body

    def _next(self) -> None:
        if self._asked < 0 and self._waiting:
            self._asked, request = self._waiting.popleft()
            self._need = 0
            self._received = b""
            self._out.append(request)

    def under_way(self) -> list[int]:
        return ([self._asked] if self._asked >= 0 else []) + [number for number, _ in self._waiting]

    def data_received(self, data: bytes) -> None:
        self.heard_at = asyncio.get_running_loop().time()
        self._received += data
        if not self._need:
            head = self._received.find(HEAD_END)
            if head < 0:
                return
            self._need = head + len(HEAD_END) + _length(self._received[:head])
        if len(self._received) < self._need or self._asked < 0:
            return
        number, self._asked = self._asked, -1
        body = self._received[self._received.find(HEAD_END) + len(HEAD_END) : self._need]
        said = msgspec.json.decode(body, type=Said)
        if not self._received.startswith(b"HTTP/1.1 2") and not said.error:
            said.error = self._received[9:12].decode("ascii")
        self._owner.answered((number,), (said,))
        self._next()
        self.flush()


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def door_of(kind: DoorWord, owner: Owner, url: str, token: str, *, timeout_ms: int) -> Door:
    if kind == "http":
        return Http(owner, url, token, timeout_ms=timeout_ms)
    return Stream(owner, url, token, json=kind == "json", timeout_ms=timeout_ms)
