"""WebSocket frames as bytes: headers as servers send them, and data frames joined from fragments.

A data frame in JSON is {"stream":"data","at_us":..,"seq":..,"updates":[..]}, in msgpack the array [at_us, seq, [..]];
whatever else goes to a client is a map in both. at_us: when the round of sending began. seq: the frame and those
before it hold every update up to here that was subscribed to.
"""

import struct
from collections.abc import Sequence

TEXT = 0x1
BINARY = 0x2
CLOSE = 0x8
PING = 0x9
PONG = 0xA
FINAL = 0x80

REASON_BYTES_MAX = 123
"""A control frame holds 125 bytes, two of them a close frame's code."""

_HEADER_16 = struct.Struct(">BBH").pack
_HEADER_64 = struct.Struct(">BBQ").pack
_MSGPACK_HEAD = struct.Struct(">BBQBQ").pack
_ARRAY_16 = struct.Struct(">BH").pack
_ARRAY_32 = struct.Struct(">BI").pack


def header(size: int, opcode: int) -> bytes:
    """Of an unfragmented, unmasked frame (RFC 6455, 5.2)."""
    if size < 126:
        return bytes((FINAL | opcode, size))
    if size < 65_536:
        return _HEADER_16(FINAL | opcode, 126, size)
    return _HEADER_64(FINAL | opcode, 127, size)


def frame(payload: bytes, opcode: int) -> bytes:
    return header(len(payload), opcode) + payload


def close_frame(code: int, reason: str) -> bytes:
    """reason is cut to what a close frame holds, between two characters."""
    text = reason.encode()[:REASON_BYTES_MAX].decode(errors="ignore").encode()
    return frame(code.to_bytes(2, "big") + text, CLOSE)


def json_head(at_us: int, seq: int) -> bytes:
    return b'{"stream":"data","at_us":%d,"seq":%d,"updates":[' % (at_us, seq)


def msgpack_head(at_us: int, seq: int) -> bytes:
    return _MSGPACK_HEAD(0x93, 0xCF, at_us, 0xCF, seq)


def json_frame(head: bytes, fragments: Sequence[bytes]) -> bytes:
    """head: see json_head. One update at least."""
    body = b",".join(fragments)
    return b"".join((header(len(head) + len(body) + 2, TEXT), head, body, b"]}"))


def msgpack_frame(head: bytes, fragments: Sequence[bytes]) -> bytes:
    """head: see msgpack_head."""
    count = len(fragments)
    if count < 16:
        array = bytes((0x90 | count,))
    elif count < 65_536:
        array = _ARRAY_16(0xDC, count)
    else:
        array = _ARRAY_32(0xDD, count)
    body = b"".join(fragments)
    return b"".join((header(len(head) + len(array) + len(body), BINARY), head, array, body))
