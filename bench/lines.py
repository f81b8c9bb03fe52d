"""Single HTTP connections to single members, so that a request can wait where one wants it: in a socket."""

import asyncio
import time
from typing import Self
from urllib.parse import urlsplit

from msgspec import Struct

HEAD_BYTES_MAX = 65_536


class Answered(Struct, frozen=True):
    """called_ns: before the request was written; returned_ns: when its answer was here (`time.monotonic_ns`)."""

    status: int
    index: int
    body: bytes
    called_ns: int
    returned_ns: int


class Line:
    """One HTTP/1.1 connection. One request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, token: str) -> None:
        self._reader = reader
        self._writer = writer
        self._head = f"Host: {host}\r\nAuthorization: Bearer {token}\r\n\r\n"

    @classmethod
    async def open(cls, url: str, token: str) -> Self:
        """The system takes a connection for a process that is paused, too. Raises OSError."""
        place = urlsplit(url)
        reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=HEAD_BYTES_MAX)
        return cls(reader, writer, place.netloc, token)

    async def get(self, path: str) -> Answered:
        """Ask and wait for as long as it takes. Raises OSError or EOFError: the connection ended first."""
        called_ns = time.monotonic_ns()
        self._writer.write(f"GET {path} HTTP/1.1\r\n{self._head}".encode())
        await self._writer.drain()
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        returned_ns = time.monotonic_ns()
        return Answered(int(head[0].split()[1]), int(headers.get("x-log-index", "0")), body, called_ns, returned_ns)

    def close(self) -> None:
        self._writer.transport.abort()
