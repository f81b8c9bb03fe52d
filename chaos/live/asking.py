"""One GET of a process that may be dead, paused or cut off: an answer in time, or an exception."""

import asyncio
from urllib.parse import urlsplit

from msgspec import Struct

ANSWER_BYTES_MAX = 64 << 20


class Answer(Struct, frozen=True):
    """headers: by their names in small letters."""

    status: int
    headers: dict[str, str]
    body: bytes


async def get(url: str, *, token: str = "", timeout_s: float = 1.0) -> Answer:
    """Over a connection of its own, which no earlier answer can have left half read.

    Raises OSError (nobody listens, it was cut), TimeoutError, ValueError (this is no HTTP).
    """
    where = urlsplit(url)
    path = where.path + (f"?{where.query}" if where.query else "")
    lines = [f"GET {path} HTTP/1.1", f"Host: {where.netloc}", "Connection: close"]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        try:
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
                raise ConnectionResetError(f"{url}: no whole answer") from error
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            size_bytes = int(headers.get("content-length", "0"))
            if size_bytes > ANSWER_BYTES_MAX:
                raise ValueError(f"{url}: an answer of {size_bytes} bytes")
            try:
                body = await reader.readexactly(size_bytes)
            except asyncio.IncompleteReadError as error:
                raise ConnectionResetError(f"{url}: half an answer") from error
            return Answer(int(head[0].split()[1]), headers, body)
        except IndexError as error:
            raise ValueError(f"{url}: {head[0]!r} is no answer") from error
        finally:
            writer.transport.abort()
