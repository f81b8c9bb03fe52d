"""HTTP/1.1 for one client, without second tries: it knows whether a request may have left, which decides what is true.

A client library sends some requests again by itself when a kept connection was closed. Then nobody knows how often a
command was sent, and no history can say so.
"""

import asyncio
from collections.abc import Mapping
from urllib.parse import quote, urlencode, urlsplit

from msgspec import Struct

BODY_BYTES_MAX = 64 << 20


class NotSent(Exception):
    """Not one byte of the request left: whatever it asks for was not done."""


class Lost(Exception):
    """It may have left, in part or whole, and no whole answer came."""


class Answer(Struct, frozen=True):
    """headers: names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Connections:
    """Kept connections of one client, which makes one call at a time: at most one to each address."""

    def __init__(self) -> None:
        self._kept: dict[str, Pair] = {}

    async def exchange(
        self, base: str, method: str, path: str, *, headers: Mapping[str, str], body: bytes = b"", timeout_s: float
    ) -> Answer:
        """Send one request, once. base: `http://host:port`. path: with its query, encoded. Raises NotSent, Lost."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        reader, writer = await self._connection(base, deadline)
        whole = False
        try:
            async with asyncio.timeout_at(deadline):
                writer.write(_request(base, method, path, headers, body))
                await writer.drain()
                answer = await _answer(reader)
            whole = answer.headers.get("connection", "").lower() != "close"
        except TimeoutError as error:
            raise Lost("timeout") from error
        except asyncio.IncompleteReadError as error:
            raise Lost("closed") from error
        except (OSError, ValueError, asyncio.LimitOverrunError) as error:
            raise Lost(f"{type(error).__name__}: {error}") from error
        finally:
            if whole:
                self._kept[base] = reader, writer
            else:
                writer.transport.abort()
        return answer

    async def close(self) -> None:
        kept, self._kept = self._kept, {}
        for _, writer in kept.values():
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _connection(self, base: str, deadline: float) -> Pair:
        kept = self._kept.pop(base, None)
        if kept is not None:
            if not kept[0].at_eof() and not kept[1].is_closing():
                return kept
            kept[1].transport.abort()
        place = urlsplit(base)
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.open_connection(place.hostname, place.port)
        except (TimeoutError, OSError) as error:
            raise NotSent(str(error) or type(error).__name__) from error


def path_of(*segments: str, params: Mapping[str, str] | None = None) -> str:
    """`/v1/...`, each segment and each parameter encoded."""
    path = "/v1/" + "/".join(quote(segment, safe=":") for segment in segments)
    return f"{path}?{urlencode(params)}" if params else path


def _request(base: str, method: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {urlsplit(base).netloc}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body or method not in ("GET", "DELETE"):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


async def _answer(reader: asyncio.StreamReader) -> Answer:
    """Raises ValueError for what is not an answer of ours, as asyncio's readers raise for what is cut short."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    version, _, rest = head[0].partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
        raise ValueError("not an HTTP answer")
    headers: dict[str, str] = {}
    for line in head[1:-2]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdigit()) or int(length) > BODY_BYTES_MAX:
        raise ValueError("an answer without a length")
    return Answer(int(rest[:3]), headers, await reader.readexactly(int(length)))
