"""What all handlers share: who asks, parameters in, answers with their age out."""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import blake2b
from typing import Any, TypeVar

import msgspec
from aiohttp import web
from msgspec import Struct

from gateway.api.errors import AccountNotFound
from gateway.api.metrics import Metrics
from gateway.api.relay import Relay
from gateway.core import Core
from gateway.stream.metrics import Counts
from node.auth import Principal
from node.errors import Forbidden, InvalidField, Malformed

CORE: web.AppKey[Core] = web.AppKey("core", Core)
METRICS: web.AppKey[Metrics] = web.AppKey("metrics", Metrics)
RELAY: web.AppKey[Relay] = web.AppKey("relay", Relay)
COUNTS: web.AppKey[Callable[[], Counts]] = web.AppKey("counts", Callable)  # type: ignore[arg-type]
"""What the processes that serve clients count; see gateway/stream/metrics.py."""
PRINCIPAL: web.RequestKey[Principal] = web.RequestKey("principal", Principal)
REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)

SYMBOL_CHARS_MAX = 80
PRIVATE = "private, no-cache"
TRADER_READS = ("trader", "auditor")
ACCOUNT_READS = ("trader", "custodian", "auditor")

Body = TypeVar("Body")
_encode_json = msgspec.json.Encoder().encode
_encode_msgpack = msgspec.msgpack.Encoder().encode


class Age(Struct, frozen=True):
    """When an answer was the newest that there is, in microseconds since 1970; 0: nobody knows."""

    as_of_us: int

    @property
    def staleness_ms(self) -> int:
        return max(0, (now_us() - self.as_of_us) // 1000) if self.as_of_us else -1


def now_us() -> int:
    return time.time_ns() // 1000


def now() -> Age:
    return Age(now_us())


def plain(value: Any) -> Any:
    """Decimals as plain text, without exponents and trailing zeros; structs and lists of them as JSON has them."""
    if isinstance(value, Decimal):
        text = format(value, "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    return value


def rfc3339(at_us: int) -> str:
    """Microseconds since 1970 as nodes write times."""
    return datetime.fromtimestamp(at_us / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def respond(
    request: web.Request,
    body: Any,
    age: Age,
    *,
    status: int = 200,
    cache: str = PRIVATE,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """An answer in JSON or msgpack, with its age. What may be kept by others (`cache`) has an ETag and may be a 304."""
    is_msgpack = "application/msgpack" in request.headers.get("Accept", "")
    raw = (_encode_msgpack if is_msgpack else _encode_json)(body)
    response = web.Response(
        body=raw, content_type="application/msgpack" if is_msgpack else "application/json", status=status
    )
    if headers:
        response.headers.update(headers)
    aged(response, age)
    response.headers["Cache-Control"] = cache
    response.headers["Vary"] = "Accept"
    if request.method in ("GET", "HEAD") and status == 200:
        etag = f'"{blake2b(raw, digest_size=12).hexdigest()}"'
        response.headers["ETag"] = etag
        if etag in [one.strip() for one in request.headers.get("If-None-Match", "").split(",")]:
            unchanged = web.Response(status=304, headers=response.headers)
            del unchanged.headers["Content-Type"]
            return unchanged
    return response


def aged(response: web.StreamResponse, age: Age) -> None:
    """X-As-Of and X-Staleness-Ms; -1: nobody has said anything yet."""
    response.headers["X-As-Of"] = rfc3339(age.as_of_us) if age.as_of_us else "never"
    response.headers["X-Staleness-Ms"] = str(age.staleness_ms)


# ---- parameters ----


def only(request: web.Request, *names: str) -> None:
    """Refuse parameters that nobody reads: a misspelled filter would otherwise filter nothing."""
    for name in request.query:
        if name not in names:
            known = ", ".join(sorted(names)) or "none"
            raise InvalidField(f"unknown parameter {name[:64]}; known: {known}", field=name[:64])
        if len(request.query.getall(name)) > 1:
            raise InvalidField(f"{name} is there more than once", field=name)


def whole(request: web.Request, name: str, default: int, low: int, high: int) -> int:
    given = request.query.get(name)
    if given is None:
        return default
    if not (given.isascii() and given.isdigit() and len(given) <= 19) or not low <= int(given) <= high:
        raise InvalidField(f"{name} must be a whole number between {low} and {high}", field=name)
    return int(given)


def moment_us(request: web.Request, name: str, default: int) -> int:
    """A time, RFC 3339, as microseconds since 1970."""
    given = request.query.get(name)
    if given is None:
        return default
    try:
        # In a query `+` is a blank, and whoever writes +02:00 there means it.
        moment = datetime.fromisoformat(given.replace(" ", "+"))
        if moment.tzinfo is None:
            raise ValueError("no time zone")
        return int(moment.timestamp()) * 1_000_000 + moment.microsecond
    except (ValueError, OverflowError, OSError) as error:
        raise InvalidField(f"{name} must be a time like 2026-11-20T09:30:00Z", field=name) from error


def word(request: web.Request, name: str, known: Mapping[str, Any] | tuple[str, ...], default: str) -> str:
    given = request.query.get(name, default)
    if given not in known:
        raise InvalidField(f"{name} is one of {', '.join(known)}", field=name)
    return given


def symbol_of(request: web.Request) -> str:
    symbol = request.query.get("symbol", "")
    if not symbol or len(symbol) > SYMBOL_CHARS_MAX:
        raise InvalidField(f"name a symbol: symbol=AAPL, of at most {SYMBOL_CHARS_MAX} characters", field="symbol")
    return symbol


# ---- who asks ----


def allow(request: web.Request, *roles: str) -> Principal:
    principal = request[PRINCIPAL]
    if principal.role not in roles:
        raise Forbidden(f"this needs a token of role {' or '.join(roles)}; this one is of role {principal.role}")
    return principal


def account_of(request: web.Request, *roles: str) -> str:
    """The account that a request is about, within reach of a principal of one of these roles."""
    principal = allow(request, *roles)
    named = request.query.get("account") or principal.only_account
    if not named:
        raise InvalidField("name an account: this token is good for several", field="account")
    if not principal.may_touch(named) or named.startswith("@"):
        raise AccountNotFound("no such account, or it is not yours", field="account")
    return named


async def read_body(request: web.Request, decode: Callable[[bytes], Body]) -> Body:
    """The body by a JSON decoder (its msgpack twin is made from it). Raises Malformed."""
    try:
        raw = await request.read()
        if request.content_type == "application/msgpack":
            raw = _encode_json(msgspec.msgpack.decode(raw))
        return decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError, TypeError) as error:
        raise Malformed(f"the body is not what this path takes: {error}"[:300]) from error
