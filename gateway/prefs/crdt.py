"""What one user wrote, as a lattice: two sites that have seen the same writes hold the same document, in any order.

Fields are last-writer-wins registers. Alerts are an add-wins set: each write of an alert is a version with a dot of
its own, and replaces the versions that its site had seen; a removal removes only what its site had seen. The context
says which dots a site has seen, so that a dot that is seen and not there was removed: removals leave nothing behind.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec
from msgspec import Struct, structs

from gateway.prefs.alert import Terms
from gateway.prefs.errors import TooManyAlerts
from gateway.prefs.hlc import WRITER_CHARS_MAX, Stamp

ALERTS_MAX = 100
"""Alerts that a user may have. Two sites that were apart may each have added so many: a merge is never refused."""
FIELDS_MAX = 64
"""More than there are preferences today, so that a newer program's are carried by an older one."""
FIELD_CHARS_MAX = 32
VALUE_BYTES_MAX = 2_048
WRITERS_MAX = 64
VERSIONS_MAX = 4 * ALERTS_MAX
DOCUMENT_BYTES_MAX = 512 * 1024
VERSION_BYTES_MAX = 512

if FIELDS_MAX * (VALUE_BYTES_MAX + 128) + VERSIONS_MAX * VERSION_BYTES_MAX > DOCUMENT_BYTES_MAX:
    raise ImportError(f"{FIELDS_MAX=} {VALUE_BYTES_MAX=} {VERSIONS_MAX=}: a document can outgrow {DOCUMENT_BYTES_MAX=}")


class Dot(NamedTuple):
    """One write of one alert: the number-th of this writer's for this user."""

    writer: str
    number: int


class Register(Struct, frozen=True, array_like=True):
    """A field's last write. value: msgpack; None where the field was unset. Such a tombstone is kept for as long as
    the document is: there are at most FIELDS_MAX of them, and one that was dropped would let an older write return.
    """

    stamp: Stamp
    value: bytes | None


class Version(Struct, frozen=True, array_like=True):
    """One write of an alert. fired: how often it has fired under this dot; it only grows, so that a merge disarms
    what either side fired. fired_at_us, fired_value: when last, and at which price (or move, in bps)."""

    dot: Dot
    stamp: Stamp
    terms: Terms
    fired: int = 0
    fired_at_us: int = 0
    fired_value: int = 0

    @property
    def armed(self) -> bool:
        return self.terms.repeat or self.fired == 0


class Document(Struct, frozen=True, array_like=True):
    """Everything that one user wrote. Never changed in place."""

    fields: dict[str, Register] = {}
    context: dict[str, int] = {}
    alerts: dict[str, list[Version]] = {}

    def alert(self, alert_id: str) -> Version | None:
        """Of versions that were written apart, the latest is what holds, on both sides."""
        versions = self.alerts.get(alert_id)
        return max(versions, key=lambda version: (version.stamp, version.dot)) if versions else None

    def standing(self) -> Iterator[tuple[str, Version]]:
        for alert_id in self.alerts:
            version = self.alert(alert_id)
            if version is not None:
                yield alert_id, version

    def stamps(self) -> Iterator[Stamp]:
        yield from (register.stamp for register in self.fields.values())
        yield from (version.stamp for versions in self.alerts.values() for version in versions)


EMPTY = Document()

_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder(Document)


class Malformed(ValueError):
    """Bytes that are no document, or one beyond its bounds."""


def encode(document: Document) -> bytes:
    """The same bytes for the same document at both sites."""
    return _encoder.encode(document)


def decode(raw: bytes | memoryview) -> Document:
    """Raises Malformed."""
    try:
        return _decoder.decode(raw)
    except (msgspec.DecodeError, TypeError) as error:
        raise Malformed(str(error)) from error


def check(document: Document) -> Document:
    """A document from elsewhere, when it is within its bounds and could have been written. Raises Malformed."""
    versions = [version for group in document.alerts.values() for version in group]
    dots = [version.dot for version in versions]
    writers = {*document.context, *(stamp.writer for stamp in document.stamps())}
    for broken, what in (
        (len(document.fields) > FIELDS_MAX, f"{len(document.fields)} fields; at most {FIELDS_MAX}"),
        (len(versions) > VERSIONS_MAX, f"{len(versions)} versions of alerts; at most {VERSIONS_MAX}"),
        (len(document.context) > WRITERS_MAX, f"{len(document.context)} writers; at most {WRITERS_MAX}"),
        (any(len(name) > FIELD_CHARS_MAX for name in document.fields), "a field's name is too long"),
        (any(len(alert_id) > FIELD_CHARS_MAX for alert_id in document.alerts), "an alert's id is too long"),
        (any(len(writer) > WRITER_CHARS_MAX for writer in writers), "a writer's name is too long"),
        (any(len(register.value or b"") > VALUE_BYTES_MAX for register in document.fields.values()), "a long value"),
        (any(stamp.ms < 0 or stamp.step < 0 for stamp in document.stamps()), "a stamp before 1970"),
        (any(number < 1 for number in document.context.values()), "a context that has seen nothing"),
        (any(not group for group in document.alerts.values()), "an alert without a version"),
        (any(not 0 < dot.number <= document.context.get(dot.writer, 0) for dot in dots), "an unseen dot"),
        (len(set(dots)) != len(dots), "one dot for two versions"),
        (any(version.fired < 0 for version in versions), "an alert that fired less than never"),
    ):
        if broken:
            raise Malformed(what)
    return document


# -- merging ---------------------------------------------------------------------------------------


def merge(mine: Document, theirs: Document) -> Document:
    """What both have seen. Commutative, associative, idempotent; neither is changed."""
    if mine == theirs:
        return mine
    fields = dict(mine.fields)
    for name, register in theirs.fields.items():
        fields[name] = _later(fields[name], register) if name in fields else register
    context = dict(mine.context)
    for writer, number in theirs.context.items():
        context[writer] = max(number, context.get(writer, 0))
    alerts = {}
    for alert_id in mine.alerts.keys() | theirs.alerts.keys():
        if versions := _surviving(alert_id, mine, theirs):
            alerts[alert_id] = versions
    return Document(fields, context, alerts)


def _later(one: Register, other: Register) -> Register:
    # Equal stamps are one write, which may have been sealed anew: the greater bytes bear the newer key's number.
    return max(one, other, key=lambda register: (register.stamp, register.value is None, register.value or b""))


def _surviving(alert_id: str, mine: Document, theirs: Document) -> list[Version]:
    ours = {version.dot: version for version in mine.alerts.get(alert_id, ())}
    others = {version.dot: version for version in theirs.alerts.get(alert_id, ())}
    found = []
    for dot in sorted(ours.keys() | others.keys()):
        one, other = ours.get(dot), others.get(dot)
        if one is not None and other is not None:
            found.append(_joined(one, other))
        elif one is not None and not _saw(theirs, dot):
            found.append(one)
        elif other is not None and not _saw(mine, dot):
            found.append(other)
    return found


def _saw(document: Document, dot: Dot) -> bool:
    return document.context.get(dot.writer, 0) >= dot.number


def _joined(one: Version, other: Version) -> Version:
    return max(
        one, other, key=lambda version: (version.fired, version.fired_at_us, version.fired_value, _spelled(version))
    )


def _spelled(version: Version) -> tuple[Stamp, bytes]:
    # Never decides between versions of honest sites: one dot has one stamp and one wording.
    return version.stamp, msgspec.msgpack.encode(version.terms)


def admissible(document: Document, limit_ms: int) -> tuple[Document, int]:
    """The part whose stamps are not beyond limit_ms, and how many fields and alerts are held back.

    The alerts come whole or not at all: a context without its versions would remove them.
    """
    fields = {name: register for name, register in document.fields.items() if register.stamp.ms <= limit_ms}
    held_back = len(document.fields) - len(fields)
    ahead = sum(any(version.stamp.ms > limit_ms for version in group) for group in document.alerts.values())
    if ahead:
        return Document(fields), held_back + ahead
    return (structs.replace(document, fields=fields), held_back) if held_back else (document, 0)


# -- writing ---------------------------------------------------------------------------------------


def with_fields(document: Document, values: Mapping[str, bytes | None], stamp: Stamp) -> Document:
    """Set fields, or unset them with None. The stamp must be new."""
    changed = {name: Register(stamp, value) for name, value in values.items()}
    return structs.replace(document, fields={**document.fields, **changed})


def with_alert(document: Document, alert_id: str, terms: Terms, stamp: Stamp) -> Document:
    """Add the alert, or replace it; either arms it anew, under a new dot. Raises TooManyAlerts."""
    if alert_id not in document.alerts and len(document.alerts) >= ALERTS_MAX:
        raise TooManyAlerts(f"there are {len(document.alerts)} alerts; at most {ALERTS_MAX} per user")
    dot = Dot(stamp.writer, document.context.get(stamp.writer, 0) + 1)
    return structs.replace(
        document,
        context={**document.context, dot.writer: dot.number},
        alerts={**document.alerts, alert_id: [Version(dot, stamp, terms)]},
    )


def without_alerts(document: Document, alert_ids: Iterable[str]) -> Document:
    """Remove what this side has seen of them; a concurrent write at the other side wins."""
    gone = set(alert_ids)
    return structs.replace(document, alerts={key: group for key, group in document.alerts.items() if key not in gone})


def with_fired(document: Document, alert_id: str, dot: Dot, arming: int, at_us: int, value: int) -> Document | None:
    """Count a firing. None: it is not armed so any more: removed, replaced, or fired by the other side."""
    version = document.alert(alert_id)
    if version is None or version.dot != dot or version.fired != arming or not version.armed:
        return None
    fired = structs.replace(version, fired=arming + 1, fired_at_us=at_us, fired_value=value)
    versions = [fired if known.dot == dot else known for known in document.alerts[alert_id]]
    return structs.replace(document, alerts={**document.alerts, alert_id: versions})


def erased(document: Document, stamp: Stamp) -> Document:
    """Nothing that the user wrote is left, at either side once they have met; what stays are stamps and counts."""
    fields = {name: Register(stamp, None) for name in document.fields}
    return Document(fields, document.context, {})
