"""One update, encoded at most once per format however many read it; not at all where nobody does."""

from collections.abc import Callable
from typing import Any

import msgspec

JSON = 1
MSGPACK = 2
BOTH = JSON | MSGPACK

_json = msgspec.json.Encoder().encode
_msgpack = msgspec.msgpack.Encoder().encode


class Fragment:
    """An object in JSON, an array in msgpack. make: gives (what JSON encodes, what msgpack encodes), when asked first.

    It is asked for in the turn of the loop that sends it, so a late asker gets what is newest then.
    """

    __slots__ = ("_json", "_make", "_msgpack", "born_us")

    def __init__(self, make: Callable[[int], Any], born_us: int = 0) -> None:
        """make(JSON) gives what JSON encodes, make(MSGPACK) what msgpack does. born_us: when it became true."""
        self._make: Callable[[int], Any] | None = make
        self._json = b""
        self._msgpack = b""
        self.born_us = born_us

    @classmethod
    def of_bytes(cls, json: bytes, msgpack: bytes, born_us: int = 0) -> "Fragment":
        """Encoded elsewhere; a format that was not encoded is empty."""
        fragment = cls.__new__(cls)
        fragment._make = None
        fragment._json, fragment._msgpack, fragment.born_us = json, msgpack, born_us
        return fragment

    def json(self) -> bytes:
        """Empty: it is not known in this format."""
        if not self._json and self._make is not None:
            self._json = _json(self._make(JSON))
        return self._json

    def msgpack(self) -> bytes:
        """Empty: it is not known in this format."""
        if not self._msgpack and self._make is not None:
            self._msgpack = _msgpack(self._make(MSGPACK))
        return self._msgpack

    def bytes_of(self, formats: int) -> bytes:
        """In one format, JSON or MSGPACK."""
        return self.json() if formats == JSON else self.msgpack()
