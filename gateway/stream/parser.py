"""Reads the WebSocket frames of one client: masked, possibly in fragments, never trusted.

Written for what clients send here: few and small messages. One object per connection, and no buffer while nothing is
half read, since there are a hundred thousand of them.
"""

from collections.abc import Iterator
from typing import NamedTuple

from gateway.fanout.frames import BINARY, CLOSE, FINAL, PING, PONG, TEXT

CONTINUATION = 0x0
MASKED = 0x80
CLOSE_PROTOCOL = 1002
CLOSE_MALFORMED = 1007
CLOSE_TOO_BIG = 1009


class BadFrames(Exception):
    """What came breaks the protocol. code: of the close frame that answers it."""

    def __init__(self, message: str, code: int = CLOSE_PROTOCOL) -> None:
        super().__init__(message)
        self.code = code


class Message(NamedTuple):
    """opcode: TEXT, BINARY, CLOSE, PING or PONG."""

    opcode: int
    payload: bytes


class Parser:
    """feed(data) gives the messages that are whole. Bounded by bytes_max, in all fragments of a message together."""

    __slots__ = ("_buffer", "_bytes_max", "_opcode", "_parts")

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._buffer = b""
        self._opcode = 0
        """Of the message whose first fragments are in _parts; 0: none is under way."""
        self._parts = b""

    def feed(self, data: bytes) -> Iterator[Message]:
        """Raises BadFrames, from the iterator: nothing more can be read then."""
        data = self._buffer + data if self._buffer else data
        self._buffer = b""
        at, end = 0, len(data)
        while at < end:
            read = self._frame(data, at, end)
            if read is None:
                self._buffer = data[at:]
                return
            first, payload, at = read
            message = self._message(first, payload)
            if message is not None:
                yield message

    def _frame(self, data: bytes, at: int, end: int) -> tuple[int, bytes, int] | None:
        """(first byte, payload, where the next begins), or None: more must come."""
        if end - at < 2:
            return None
        first, second = data[at], data[at + 1]
        opcode = first & 0x0F
        if first & 0x70:
            raise BadFrames("reserved bits are set; extensions were not agreed")
        if opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
            raise BadFrames(f"there is no opcode {opcode}")
        if not second & MASKED:
            raise BadFrames("a client's frames must be masked")
        size = second & 0x7F
        if opcode >= CLOSE and (size > 125 or not first & FINAL):
            raise BadFrames("a control frame is whole and holds at most 125 bytes")
        place = at + 2
        if size >= 126:
            wide = 2 if size == 126 else 8
            if end - place < wide:
                return None
            size = int.from_bytes(data[place : place + wide], "big")
            place += wide
        if size + len(self._parts) > self._bytes_max:
            raise BadFrames(f"a message may hold {self._bytes_max} bytes", CLOSE_TOO_BIG)
        if end - place < 4 + size:
            return None
        return first, _unmask(data[place : place + 4], data[place + 4 : place + 4 + size]), place + 4 + size

    def _message(self, first: int, payload: bytes) -> Message | None:
        opcode = first & 0x0F
        if opcode >= CLOSE:
            return Message(opcode, payload)
        if opcode == CONTINUATION:
            if not self._opcode:
                raise BadFrames("a continuation of nothing")
        elif self._opcode:
            raise BadFrames("a new message within the fragments of another")
        else:
            self._opcode = opcode
        if not first & FINAL:
            self._parts += payload
            return None
        whole, opcode = self._parts + payload, self._opcode
        self._parts, self._opcode = b"", 0
        return Message(opcode, whole)


def _unmask(mask: bytes, payload: bytes) -> bytes:
    size = len(payload)
    if not size:
        return payload
    key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
    return (int.from_bytes(payload, "big") ^ key).to_bytes(size, "big")
