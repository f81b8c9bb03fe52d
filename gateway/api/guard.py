"""What stands before every handler: request ids, errors as JSON, bounds on bodies, who asks, how often."""

import asyncio
import math
import re
import secrets
import time
from collections.abc import Awaitable, Callable

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from gateway.api import context
from gateway.api.context import METRICS, PRINCIPAL, REQUEST_ID
from gateway.api.errors import of_prefs
from gateway.api.rates import Rates
from gateway.prefs.errors import PrefsError
from node import errors
from node.auth import Authenticator
from node.errors import NodeError, error_body
from node.guard import Connection, HttpLimits

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.http")

STREAM_PATH = "/v1/stream"
"""Here a WebSocket may bring its token in its first message, and does its own counting."""
BODY_TYPES = frozenset({"application/json", "application/msgpack"})
NODE_PATHS = re.compile(
    r"/v1/(orders|accounts|transfers|ledger|assets|instruments|references|book|trades|commands)(?![^/:])"
)
"""What is relayed: the node counts these itself, and its headers say so."""
_REQUEST_ID = re.compile(r"\A[A-Za-z0-9._:-]{1,64}\Z")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def middlewares(authenticator: Authenticator, rates: Rates, limits: HttpLimits) -> list[Middleware]:
    """All that a request passes, outermost first."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        connection = request.transport.get_protocol() if request.transport is not None else None
        if isinstance(connection, Connection):
            connection.request_began(is_stream=False)
        given = request.headers.get("X-Request-ID", "")
        request[REQUEST_ID] = given if _REQUEST_ID.match(given) else secrets.token_hex(8)
        began_s = time.perf_counter()
        try:
            response = await _answered(request, handler)
        finally:
            if isinstance(connection, Connection):
                connection.request_ended()
        if not response.prepared:
            response.headers["X-Request-ID"] = request[REQUEST_ID]
            if "X-As-Of" not in response.headers:
                context.aged(response, context.now())
        metrics, route = request.app[METRICS], _route(request)
        metrics.requests.labels(route, request.method, str(response.status)).inc()
        if route != STREAM_PATH:
            metrics.request_seconds.labels(route).observe(time.perf_counter() - began_s)
        return response

    @web.middleware
    async def bound(request: web.Request, handler: Handler) -> web.StreamResponse:
        if sum(len(name) + len(value) for name, value in request.raw_headers) > limits.header_bytes_max:
            raise errors.HeadersTooLarge(f"the headers are larger than {limits.header_bytes_max} bytes")
        if request.can_read_body:
            await _read_body(request, limits)
        return await handler(request)

    @web.middleware
    async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
        path = request.path
        if not path.startswith("/v1/") or path == STREAM_PATH:
            return await handler(request)
        principal = authenticator.verify_header(request.headers.get("Authorization"))
        request[PRINCIPAL] = principal
        if NODE_PATHS.match(path):
            return await handler(request)
        grant = await rates.take(principal.subject)
        if not grant.passed:
            request.app[METRICS].shed.labels("rate_limited").inc()
            refused = errors.RateLimited(
                f"more than {grant.limit} requests in {rates.window_s:g} s", retry_after_s=grant.retry_after_s
            )
            refused.headers = grant.headers(time.time())
            raise refused
        try:
            response = await handler(request)
        except (NodeError, PrefsError) as error:
            refused_for = of_prefs(error) if isinstance(error, PrefsError) else error
            refused_for.headers = grant.headers(time.time()) | refused_for.headers
            raise refused_for from error
        if not response.prepared:
            response.headers.update(grant.headers(time.time()))
        return response

    return [answer, bound, admit]


def _route(request: web.Request) -> str:
    """The route's pattern, so that metrics have few labels."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unknown"


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except NodeError as error:
        return refusal(request, error)
    except PrefsError as error:
        return refusal(request, of_prefs(error))
    except web.HTTPException as error:
        if error.status < 400:
            raise
        allowed = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return refusal(request, _of_http(error), allowed)
    except (asyncio.CancelledError, ConnectionError):
        raise  # the client went away
    except Exception:
        request_id = request[REQUEST_ID]
        log.exception("request failed", request_id=request_id, method=request.method, path=request.path)
        return refusal(request, errors.InternalError(f"we were wrong; the log has it under request_id {request_id}"))


async def _read_body(request: web.Request, limits: HttpLimits) -> None:
    """Read it whole, so that handlers find it at once. Raises the NodeError that says what is wrong with it."""
    if (request.content_length or 0) > limits.body_bytes_max:
        raise errors.TooLarge(f"the body is {request.content_length} bytes; at most {limits.body_bytes_max} are taken")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise errors.UnsupportedMediaType("compressed bodies are not taken", field="Content-Encoding")
    if request.method not in ("GET", "HEAD", "DELETE") and request.content_type not in BODY_TYPES:
        kinds = ", ".join(sorted(BODY_TYPES))
        raise errors.UnsupportedMediaType(f"Content-Type must be one of {kinds}", field="Content-Type")
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise errors.TooLarge(f"the body is larger than {limits.body_bytes_max} bytes") from error
    except TimeoutError as error:
        raise errors.RequestTimeout(f"the body did not arrive within {limits.body_timeout_s:g} s") from error
    except web.RequestPayloadError as error:
        raise errors.Malformed("the body does not have the form that its headers announce") from error


def refusal(request: web.Request, error: NodeError, headers: dict[str, str] | None = None) -> web.Response:
    request_id = request[REQUEST_ID]
    response = web.Response(
        body=msgspec.json.encode(error_body(error, request_id)),
        status=error.status,
        content_type="application/json",
        headers=headers,
    )
    response.headers.update(error.headers)
    response.headers["Cache-Control"] = "no-store"
    if error.retry_after_s or error.status in (429, 503):
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if error.status in (408, 413):
        response.force_close()  # what is still on its way belongs to no request
    say = log.warning if error.status >= 500 else log.debug
    say("refused", request_id=request_id, method=request.method, path=request.path, error=error.error)
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
