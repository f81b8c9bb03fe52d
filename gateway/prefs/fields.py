"""The preferences that there are: the type of each, what holds when it is unset, which are sealed at rest."""

import re
import zoneinfo
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, tzinfo
from enum import StrEnum
from functools import cache
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct, UnsetType

from gateway.prefs.crdt import FIELD_CHARS_MAX, VALUE_BYTES_MAX, Document
from gateway.prefs.errors import InvalidPreference
from gateway.prefs.seal import OVERHEAD_BYTES, Keyring, NotOpened

PLAIN_BYTES_MAX = 1_024

if PLAIN_BYTES_MAX + OVERHEAD_BYTES > VALUE_BYTES_MAX:
    raise ImportError(f"{PLAIN_BYTES_MAX=} + {OVERHEAD_BYTES=} must fit in {VALUE_BYTES_MAX=}")


class Channel(StrEnum):
    websocket = "websocket"
    webhook = "webhook"
    email = "email"
    sms = "sms"
    push = "push"


class FillNotices(StrEnum):
    """Which of an order's fills are told: each, the one that completes it, or none."""

    each = "each"
    complete = "complete"
    none = "none"


class Weekday(StrEnum):
    mon = "mon"
    tue = "tue"
    wed = "wed"
    thu = "thu"
    fri = "fri"
    sat = "sat"
    sun = "sun"


HourMinute = Annotated[str, Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]\Z")]
Channels = Annotated[tuple[Channel, ...], Meta(max_length=len(Channel))]


class QuietHours(Struct, frozen=True, forbid_unknown_fields=True):
    """From `start` to `end` in the user's time zone, past midnight where `end` is the earlier. days: on which it
    starts; none named: every day."""

    start: HourMinute
    end: HourMinute
    days: Annotated[tuple[Weekday, ...], Meta(max_length=7)] = ()


class Preferences(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All preferences of a user, with what holds where one was never set. The names are those of the API."""

    language: Annotated[str, Meta(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]{2,8}){0,2}\Z")] = "en"
    time_zone: Annotated[str, Meta(max_length=64)] = "UTC"
    display_currency: Annotated[str, Meta(pattern=r"^[A-Z][A-Z0-9]{0,11}\Z")] = "USD"
    quiet_hours: QuietHours | None = None
    alert_channels: Channels = (Channel.websocket,)
    fill_channels: Channels = (Channel.websocket,)
    fill_notices: FillNotices = FillNotices.each
    leaderboard_hidden: bool = False
    leaderboard_name: Annotated[str, Meta(max_length=32)] | None = None
    email: Annotated[str, Meta(max_length=254)] | None = None
    phone: Annotated[str, Meta(pattern=r"^\+[1-9][0-9]{6,14}\Z")] | None = None
    push_token: Annotated[str, Meta(pattern=r"^[\x21-\x7e]{1,512}\Z")] | None = None
    webhook_url: Annotated[str, Meta(max_length=512)] | None = None
    webhook_secret: Annotated[str, Meta(pattern=r"^[\x21-\x7e]{16,128}\Z")] | None = None


SEALED = frozenset({"email", "phone", "push_token", "webhook_url", "webhook_secret"})
NEVER_SHOWN = frozenset({"webhook_secret"})
TYPES: dict[str, Any] = {field.name: field.type for field in msgspec.structs.fields(Preferences)}
DEFAULTS = Preferences()
HIDDEN = "********"

_EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@([A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,63}\Z")

if any(len(name) > FIELD_CHARS_MAX for name in TYPES):
    raise ImportError(f"a preference's name is longer than {FIELD_CHARS_MAX=}")


def checked(changes: Mapping[str, object]) -> dict[str, Any]:
    """Each value as its type; None unsets. Raises InvalidPreference at the first that can't be taken."""
    found: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in TYPES:
            raise InvalidPreference(f"no preference {name[:40]!r}; there are {', '.join(TYPES)}", field=name[:40])
        if value is None:
            found[name] = None
            continue
        try:
            typed = msgspec.convert(value, TYPES[name])
            _CHECKS.get(name, _nothing)(typed)
        except ValueError as error:  # msgspec's is one too
            # The value itself is not repeated: it may be a secret.
            raise InvalidPreference(f"{name}: {error}", field=name) from error
        if len(msgspec.msgpack.encode(typed)) > PLAIN_BYTES_MAX:
            raise InvalidPreference(f"{name}: longer than {PLAIN_BYTES_MAX} bytes", field=name)
        found[name] = typed
    return found


def _nothing(_value: Any) -> None: ...


def _check_time_zone(name: str) -> None:
    zone(name)


def _check_quiet_hours(hours: QuietHours) -> None:
    if hours.start == hours.end:
        raise ValueError(f"start and end are both {hours.start}; a whole day is no hours")


def _check_channels(channels: tuple[Channel, ...]) -> None:
    if len(set(channels)) != len(channels):
        raise ValueError("a channel stands twice")


def _check_name(name: str) -> None:
    if not name.isprintable() or name != name.strip() or not name:
        raise ValueError("printable characters, not blank at either end")


def _check_email(address: str) -> None:
    if not _EMAIL.match(address):
        raise ValueError("not an address like name@example.com")


def _check_url(url: str) -> None:
    if not url.isascii() or any(char <= " " or char == "\x7f" for char in url):
        raise ValueError("plain ASCII without blanks")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("a URL that begins with https://")
    if parts.username is not None or parts.password is not None:
        raise ValueError("no user and password in the URL; messages are signed instead")
    if parts.fragment:
        raise ValueError("no #fragment")
    _ = parts.port  # raises ValueError where it is none


_CHECKS: dict[str, Callable[[Any], None]] = {
    "time_zone": _check_time_zone,
    "quiet_hours": _check_quiet_hours,
    "alert_channels": _check_channels,
    "fill_channels": _check_channels,
    "leaderboard_name": _check_name,
    "email": _check_email,
    "webhook_url": _check_url,
}


@cache
def _zone(name: str) -> tzinfo:
    return zoneinfo.ZoneInfo(name)


def zone(name: str) -> tzinfo:
    """Raises ValueError: no such time zone."""
    if name == "UTC":
        return UTC
    try:
        return _zone(name)
    except (zoneinfo.ZoneInfoNotFoundError, OSError, ValueError) as error:
        raise ValueError(f"no time zone {name[:64]!r}") from error


# -- to and from the document ----------------------------------------------------------------------


def about(user: str, name: str) -> str:
    return f"{user}/{name}"


def stored(user: str, values: Mapping[str, Any], keyring: Keyring) -> dict[str, bytes | None]:
    """Checked values as the document holds them, sealed where they must be."""
    found: dict[str, bytes | None] = {}
    for name, value in values.items():
        raw = None if value is None else msgspec.msgpack.encode(value)
        found[name] = keyring.seal(raw, about(user, name)) if raw is not None and name in SEALED else raw
    return found


def read(user: str, document: Document, keyring: Keyring) -> Preferences:
    """What holds, secrets opened. Fields of a newer program are passed over; one that can't be opened or understood
    is as if it were unset: a message that can't be sent is better than a user who can't be served."""
    values: dict[str, Any] = {}
    for name, register in document.fields.items():
        if name in TYPES and register.value is not None:
            value = _opened(user, name, register.value, keyring)
            if value is not msgspec.UNSET:
                values[name] = value
    return Preferences(**values)


def _opened(user: str, name: str, raw: bytes, keyring: Keyring) -> Any | UnsetType:
    try:
        plain = keyring.open(raw, about(user, name)) if name in SEALED else raw
        return msgspec.msgpack.decode(plain, type=TYPES[name])
    except (NotOpened, msgspec.DecodeError):
        return msgspec.UNSET


def shown(preferences: Preferences) -> dict[str, Any]:
    """For the user's own eyes: what may be set but never read again is a row of stars."""
    found: dict[str, Any] = msgspec.to_builtins(preferences)
    return {name: HIDDEN if value and name in NEVER_SHOWN else value for name, value in found.items()}


def set_at(document: Document) -> dict[str, datetime]:
    """When each field that is set was last written."""
    return {
        name: datetime.fromtimestamp(register.stamp.ms / 1000, UTC)
        for name, register in document.fields.items()
        if name in TYPES and register.value is not None
    }
