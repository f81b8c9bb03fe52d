"""What stands before every handler: bounds on headers, bodies and time, request ids, errors as JSON.

Everything that is refused here was neither logged nor forwarded.
"""

import asyncio
import math
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from node import errors
from node.context import PRINCIPAL, REQUEST_ID, Node
from node.errors import NodeError, error_body
from node.guard import Connection, HttpLimits
from node.tracing import TraceContext, enter, record

if TYPE_CHECKING:
    pass

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.http")

TRACE: web.RequestKey[TraceContext] = web.RequestKey("trace", TraceContext)
"""The request's trace context; hand `.traceparent` on to the submitter."""
BODY_TYPES = frozenset({"application/json", "application/msgpack"})
STREAM_PATHS = frozenset({"/v1/stream", "/v1/feed"})
"""Here a WebSocket may bring its token in its first message, and does its own counting."""

_REQUEST_ID = re.compile(r"\A[A-Za-z0-9._:-]{1,64}\Z")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def middlewares(node: Node, limits: HttpLimits | None = None) -> list[Middleware]:
    """All that a request passes before its handler, outermost first.

    1. request id, trace, errors as JSON, metrics; 2. bounds on headers and body, content types;
    3. the principal of /v1 (PRINCIPAL); 4. its token bucket and the X-RateLimit headers.
    """
    bounds = limits or HttpLimits.of(node.config.limits)

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        connection = request.transport.get_protocol() if request.transport is not None else None
        if isinstance(connection, Connection):
            connection.request_began(is_stream="Upgrade" in request.headers and request.path in STREAM_PATHS)
        given = request.headers.get("X-Request-ID", "")
        request_id = given if _REQUEST_ID.match(given) else secrets.token_hex(8)
        request[REQUEST_ID] = request_id
        request[TRACE] = trace = enter(request.headers.get("traceparent", ""))
        began_ns = time.perf_counter_ns()
        try:
            response = await _answered(request, handler, request_id)
        finally:
            if isinstance(connection, Connection):
                connection.request_ended()
        if not response.prepared:
            response.headers["X-Request-ID"] = request_id
            response.headers["traceparent"] = trace.traceparent
        node.metrics.requests.labels(request.method, str(response.status)).inc()
        if not isinstance(response, web.WebSocketResponse):
            node.metrics.request_seconds.labels(request.method).observe((time.perf_counter_ns() - began_ns) / 1e9)
            record(
                f"{request.method} {_route(request)}", trace, began_ns, status=response.status, request_id=request_id
            )
        return response

    @web.middleware
    async def bound(request: web.Request, handler: Handler) -> web.StreamResponse:
        if sum(len(name) + len(value) for name, value in request.raw_headers) > bounds.header_bytes_max:
            raise errors.HeadersTooLarge(f"the headers are larger than {bounds.header_bytes_max} bytes")
        if request.can_read_body:
            await _read_body(request, bounds)
        return await handler(request)

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        path = request.path
        if not path.startswith("/v1/"):
            return await handler(request)
        header = request.headers.get("Authorization")
        if header is None and path in STREAM_PATHS and "Upgrade" in request.headers:
            return await handler(request)
        principal = node.authenticator.verify_header(header)
        request[PRINCIPAL] = principal
        if path in STREAM_PATHS and "Upgrade" in request.headers:
            return await handler(request)
        cancel = request.method == "DELETE" and path.startswith("/v1/orders")
        grant = node.limiter.take(principal.subject, commands=not cancel, cancels=cancel)
        rate_headers = grant.headers(time.time())
        if not (grant.commands or grant.cancels):
            node.metrics.shed.labels("rate_limited").inc()
            refused = errors.RateLimited(
                f"the bucket of {grant.limit} requests is empty", retry_after_s=grant.retry_after_s
            )
            return _refusal(request, refused, rate_headers)
        try:
            response = await handler(request)
        except NodeError as error:
            return _refusal(request, error, rate_headers)
        if not response.prepared:
            response.headers.update(rate_headers)
        return response

    return [answer, bound, authenticate]


def _route(request: web.Request) -> str:
    """The route's pattern: spans of one kind have one name."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unknown"


async def _answered(request: web.Request, handler: Handler, request_id: str) -> web.StreamResponse:
    try:
        return await handler(request)
    except NodeError as error:
        return _refusal(request, error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return _refusal(request, _of_http(error), headers)
    except (asyncio.CancelledError, ConnectionError):
        raise  # the client went away
    except Exception:
        log.exception(
            "request failed",
            request_id=request_id,
            trace_id=request[TRACE].trace_id,
            method=request.method,
            path=request.path,
        )
        message = f"we were wrong; the log has it under request_id {request_id}"
        return _refusal(request, errors.InternalError(message))


async def _read_body(request: web.Request, limits: HttpLimits) -> None:
    """Read the whole body, so that handlers find it at once. Raises the NodeError that says what is wrong with it."""
    length = request.content_length
    if length is not None and length > limits.body_bytes_max:
        raise errors.TooLarge(f"the body is {length} bytes; at most {limits.body_bytes_max} are taken")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise errors.UnsupportedMediaType("compressed bodies are not taken", field="Content-Encoding")
    if request.method not in ("GET", "HEAD", "DELETE"):
        if request.content_type not in BODY_TYPES:
            raise errors.UnsupportedMediaType(
                f"Content-Type must be one of {', '.join(sorted(BODY_TYPES))}", field="Content-Type"
            )
        if (request.charset or "utf-8").lower().replace("_", "-") not in ("utf-8", "utf8"):
            raise errors.UnsupportedMediaType("the charset must be utf-8", field="Content-Type")
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            body = await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise errors.TooLarge(f"the body is larger than {limits.body_bytes_max} bytes") from error
    except TimeoutError as error:
        raise errors.RequestTimeout(f"the body did not arrive within {limits.body_timeout_s:g} s") from error
    except web.RequestPayloadError as error:
        raise errors.Malformed("the body does not have the form that its headers announce") from error
    if len(body) > limits.body_bytes_max:
        raise errors.TooLarge(f"the body is larger than {limits.body_bytes_max} bytes")


def _refusal(request: web.Request, error: NodeError, headers: dict[str, str] | None = None) -> web.Response:
    request_id = request[REQUEST_ID]
    response = web.Response(
        body=msgspec.json.encode(error_body(error, request_id)),
        status=error.status,
        content_type="application/json",
        headers=headers,
    )
    response.headers["X-Request-ID"] = request_id
    response.headers.update(error.headers)
    if error.retry_after_s or error.status in (429, 503):
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if error.status in (408, 413):
        response.force_close()  # what is still on its way belongs to no request
    say = log.warning if error.status >= 500 else log.info
    say(
        "refused",
        request_id=request_id,
        trace_id=request[TRACE].trace_id,
        method=request.method,
        path=request.path,
        status=error.status,
        error=error.error,
    )
    return response


_BY_STATUS: dict[int, type[NodeError]] = {
    404: errors.NotFound,
    405: errors.MethodNotAllowed,
    413: errors.TooLarge,
    415: errors.UnsupportedMediaType,
    431: errors.HeadersTooLarge,
}


def _of_http(error: web.HTTPException) -> NodeError:
    """aiohttp's own refusals in our words."""
    kind = _BY_STATUS.get(error.status, errors.Malformed)
    message = {404: "no such path", 405: f"use one of {error.headers.get('Allow', '')}"}.get(error.status)
    return kind(message or error.reason or kind.error)
