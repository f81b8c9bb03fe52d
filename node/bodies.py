"""Bytes from strangers into requests: JSON or msgpack, and errors that name the field and its bound."""

import re
from collections.abc import Iterable
from functools import cache
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import inspect

from cluster import wire
from node.errors import InvalidField, Malformed, NodeError

Body_co = TypeVar("Body_co", covariant=True)

_at = re.compile(r" - at (?:`key` in )?`\$\.?([^`]*)`\Z")
_named = re.compile(r"(?:unknown|required) field `([^`]{1,64})`")
_bound = re.compile(r"of length|matching regex|>=|<=|Invalid enum value| > | < ")
_last_name = re.compile(r"([a-z_]+)(\[\d+\])?\Z")


class Reader(Generic[Body_co]):
    """Decodes one kind of body. Unknown fields, wrong types and values out of bounds are refused."""

    def __init__(self, kind: Any) -> None:
        self._json = msgspec.json.Decoder(kind)
        self._msgpack = msgspec.msgpack.Decoder(kind)

    def read(self, body: bytes, *, is_msgpack: bool = False) -> Body_co:
        """Raises Malformed (400) for bytes or types that don't fit, InvalidField (422) for values out of bounds."""
        try:
            decoded: Body_co = self._msgpack.decode(body) if is_msgpack else self._json.decode(body)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise refused_body(error) from error
        return decoded


def refused_body(error: Exception) -> NodeError:
    """What is wrong with a body, in words for whoever wrote it."""
    if not isinstance(error, msgspec.ValidationError):
        return Malformed("the body is not readable as what Content-Type says")
    message = str(error)
    found = _at.search(message)
    field = found.group(1) if found else ""
    if named := _named.search(message):
        field = f"{field}.{named.group(1)}" if field else named.group(1)
    said = _at.sub("", message)[:300]
    if message.startswith(("Invalid enum value", "Invalid value")) and (last := _last_name.search(field)):
        allowed = words().get(last.group(1), ())
        said += f", not one of {', '.join(allowed)}" if allowed else ""
    kind = InvalidField if _bound.search(said) else Malformed
    return kind(f"{field}: {said}" if field else said, field=field[:64])


@cache
def words() -> dict[str, tuple[str, ...]]:
    """What each field of requests that takes one of a few words may say."""
    found: dict[str, tuple[str, ...]] = {}
    for kind in inspect.multi_type_info([*wire.AnyRequest.__args__, wire.CalendarBody]):
        if isinstance(kind, inspect.StructType):
            tags = (str(kind.tag),) if kind.tag is not None else ()
            found["do"] = (*found.get("do", ()), *tags)
            found |= {field.encode_name: said for field in kind.fields if (said := tuple(_words(field.type)))}
    return found


def _words(kind: inspect.Type) -> Iterable[str]:
    match kind:
        case inspect.LiteralType():
            yield from map(str, kind.values)
        case inspect.UnionType():
            for one in kind.types:
                yield from _words(one)
        case inspect.DictType():
            yield from _words(kind.key_type)
