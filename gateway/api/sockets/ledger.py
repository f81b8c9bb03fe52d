"""What a stream of orders has under way at its node, read along as frames pass: who breaks must say what is unknown."""

from collections.abc import Iterator
from typing import Annotated

import msgspec
from aiohttp import WSMsgType
from msgspec import Meta, Struct

from cluster import wire
from node.errors import NodeError, OutcomeUnknown

Frame = tuple[bytes, WSMsgType]
"""What is in one WebSocket message, and whether it is text."""


_MOST = Meta(max_length=wire.COMMANDS_PER_FRAME_MAX)
"""A node takes no longer frame, and closes the stream: nothing of it is under way."""


class _Named(Struct, frozen=True, gc=False):
    key: str = ""
    client_order_id: str = ""

    @property
    def known_by(self) -> str:
        return (self.key or self.client_order_id)[:64]


class _Submit(Struct, frozen=True, tag="submit", tag_field="action"):
    id: int
    commands: Annotated[list[_Named], _MOST]


class _RawSubmit(Struct, frozen=True, tag="submit", tag_field="action"):
    """Commands of which some can't be read: a node answers these one by one, too."""

    id: int
    commands: Annotated[list[msgspec.Raw], _MOST]


class _Listen(Struct, frozen=True, tag="listen", tag_field="action"):
    accounts: list[str] = []
    after: str = ""


class _Guard(Struct, frozen=True, tag="cancel_on_disconnect", tag_field="action"):
    pass


class _Token(Struct, frozen=True, tag="authenticate", tag_field="action"):
    token: str = ""


class _Ping(Struct, frozen=True, tag="ping", tag_field="action"):
    pass


class _Results(Struct, frozen=True, tag="results", tag_field="stream"):
    id: int
    results: list[_Named]


class _Placed(Struct, frozen=True):
    position: str = ""


class _Updates(_Placed, frozen=True, tag="order_updates", tag_field="stream"):
    pass


class _Listening(_Placed, frozen=True, tag="listening", tag_field="stream"):
    pass


class _Heartbeat(_Placed, frozen=True, tag="heartbeat", tag_field="stream"):
    pass


class _Authorized(Struct, frozen=True, tag="authorization", tag_field="stream"):
    pass


class _Closing(Struct, frozen=True, tag="closing", tag_field="stream"):
    pass


_Asked = _Submit | _Listen | _Guard | _Token | _Ping
_Heard = _Results | _Updates | _Listening | _Heartbeat | _Authorized | _Closing


class _Format:
    def __init__(self, opcode: WSMsgType) -> None:
        codec = msgspec.json if opcode is WSMsgType.TEXT else msgspec.msgpack
        self.opcode = opcode
        self.asked = codec.Decoder(_Asked).decode
        self.raw = codec.Decoder(_RawSubmit).decode
        self.named = codec.Decoder(_Named).decode
        self.heard = codec.Decoder(_Heard).decode
        self.encode = codec.Encoder().encode


_FORMATS = {opcode: _Format(opcode) for opcode in (WSMsgType.TEXT, WSMsgType.BINARY)}
_UNREADABLE = (msgspec.MsgspecError, RecursionError, ValueError, MemoryError, OverflowError)


class _UnderWay(Struct, frozen=True):
    keys: list[str]
    opcode: WSMsgType


class Ledger:
    """Of one stream. commands: sent to a node and not answered. guards: it holds a cancel-on-disconnect session, or
    may. position: everything up to here was told to the client. token: the newest that it authenticated with."""

    def __init__(self) -> None:
        self.commands = 0
        self.guards = False
        self.position = ""
        self.token = ""
        self._frames: dict[int, list[_UnderWay]] = {}
        self._listen: tuple[_Listen, WSMsgType] | None = None

    # ---- from the client ----

    def sent(self, data: bytes, opcode: WSMsgType) -> None:
        """A message of the client goes to its node. What can't be read is the node's to refuse."""
        how = _FORMATS[opcode]
        try:
            asked = how.asked(data)
        except _UNREADABLE:
            found = _salvaged(how, data)
            if found is not None:
                self._add(*found, opcode)
            return
        match asked:
            case _Submit():
                self._add(asked.id, [one.known_by for one in asked.commands], opcode)
            case _Listen():
                self._listen, self.position = (asked, opcode), asked.after
            case _Guard():
                self.guards = True
            case _Token():
                self.token = asked.token

    def refusals(self, data: bytes, opcode: WSMsgType, error: NodeError) -> Iterator[Frame]:
        """What the client is told of a message that was not sent."""
        how = _FORMATS[opcode]
        try:
            asked = how.asked(data)
            found = (asked.id, [one.known_by for one in asked.commands]) if isinstance(asked, _Submit) else None
        except _UNREADABLE:
            found = _salvaged(how, data)
        if found is None:
            yield how.encode(stream_error(error)), opcode
        else:
            yield _answer(found[0], found[1], opcode, error)

    def _add(self, number: int, keys: list[str], opcode: WSMsgType) -> None:
        self._frames.setdefault(number, []).append(_UnderWay(keys, opcode))
        self.commands += len(keys)

    # ---- from the node ----

    def heard(self, data: bytes, opcode: WSMsgType) -> type:
        """What kind of message the node sent; `object` for those that mean nothing here."""
        try:
            heard = _FORMATS[opcode].heard(data)
        except _UNREADABLE:
            return object
        match heard:
            case _Results():
                self._answered(heard.id, [one.known_by for one in heard.results])
            case _Placed(position=position):
                if position:
                    self.position = position
        return type(heard)

    def _answered(self, number: int, keys: list[str]) -> None:
        waiting = self._frames.get(number)
        if not waiting:
            return
        # Who uses a number twice at once is answered in any order: the keys tell which.
        place = next((at for at, one in enumerate(waiting) if one.keys == keys), 0)
        self.commands -= len(waiting.pop(place).keys)
        if not waiting:
            del self._frames[number]

    # ---- when the node is gone ----

    def unknown(self) -> list[Frame]:
        """An answer to each frame that a node has and did not answer; then nothing is under way."""
        error = OutcomeUnknown(
            "the node went away before it answered; the command may still take effect: ask "
            "GET /v1/commands/{key}, or send it again with the same key"
        )
        told = [
            _answer(number, one.keys, one.opcode, error) for number, frames in self._frames.items() for one in frames
        ]
        self._frames.clear()
        self.commands = 0
        return told

    def listen_again(self) -> Frame | None:
        """What the next node is asked, so that private events go on where they stopped."""
        if self._listen is None:
            return None
        listen, opcode = self._listen
        return _FORMATS[opcode].encode(wire.Listen(accounts=listen.accounts, after=self.position)), opcode

    def goodbye(self, opcode: WSMsgType) -> Frame:
        return _FORMATS[opcode].encode(wire.Closing("draining", self.position)), opcode


def is_authorized(kind: type) -> bool:
    return kind is _Authorized


def is_closing(kind: type) -> bool:
    return kind is _Closing


def token_of(data: bytes, opcode: WSMsgType) -> str:
    """The token of a first message. Empty: it is no such message."""
    try:
        asked = _FORMATS[opcode].asked(data)
    except _UNREADABLE:
        return ""
    return asked.token if isinstance(asked, _Token) else ""


def refusal(error: NodeError, opcode: WSMsgType) -> Frame:
    """A stream's error message."""
    return _FORMATS[opcode].encode(stream_error(error)), opcode


def stream_error(error: NodeError) -> wire.StreamError:
    return wire.StreamError(code=error.code, error=error.error, message=error.message, field=error.field)


def _salvaged(how: _Format, data: bytes) -> tuple[int, list[str]] | None:
    try:
        raw = how.raw(data)
    except _UNREADABLE:
        return None
    keys = []
    for command in raw.commands:
        try:
            keys.append(how.named(command).known_by)
        except _UNREADABLE:
            keys.append("")
    return raw.id, keys


def _answer(number: int, keys: list[str], opcode: WSMsgType, error: NodeError) -> Frame:
    results = [wire.Answer(key=key, error=error.error, code=error.code, message=error.message) for key in keys]
    return _FORMATS[opcode].encode(wire.Answers(number, results)), opcode
