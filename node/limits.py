"""What stands before every handler: bounds on headers, bodies and time, request ids, errors as JSON.

Everything that is refused here was neither logged nor forwarded.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from node import errors
from node.context import PRINCIPAL, REQUEST_ID, Node
from node.doorway import bug, check_headers, of_http, read_body, refusal_of, request_id_of, route_of
from node.errors import NodeError
from node.guard import Connection, HttpLimits
from node.tracing import TraceContext, enter, record

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.http")

TRACE: web.RequestKey[TraceContext] = web.RequestKey("trace", TraceContext)
"""The request's trace context; hand `.traceparent` on to the submitter."""
STREAM_PATHS = frozenset({"/v1/stream", "/v1/orders/stream", "/v1/feed"})
"""Here a WebSocket may bring its token in its first message, and does its own counting."""

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
            connection.request_began(is_stream=_is_stream(request))
        request_id = request_id_of(request)
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
                f"{request.method} {route_of(request)}", trace, began_ns, status=response.status, request_id=request_id
            )
        return response

    @web.middleware
    async def bound(request: web.Request, handler: Handler) -> web.StreamResponse:
        check_headers(request, bounds)
        if request.can_read_body:
            await read_body(request, bounds)
        return await handler(request)

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        path = request.path
        if not path.startswith("/v1/"):
            return await handler(request)
        header = request.headers.get("Authorization")
        if header is None and _is_stream(request):
            return await handler(request)
        principal = node.authenticator.verify_header(header)
        request[PRINCIPAL] = principal
        if _is_stream(request):
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


def _is_stream(request: web.Request) -> bool:
    """Any other method of these paths is a request like all others: DELETE /v1/orders/stream names an order."""
    return request.method == "GET" and request.path in STREAM_PATHS and "Upgrade" in request.headers


async def _answered(request: web.Request, handler: Handler, request_id: str) -> web.StreamResponse:
    try:
        return await handler(request)
    except NodeError as error:
        return _refusal(request, error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _refusal(request, *of_http(error))
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
        return _refusal(request, bug(request_id))


def _refusal(request: web.Request, error: NodeError, headers: dict[str, str] | None = None) -> web.Response:
    request_id = request[REQUEST_ID]
    response = refusal_of(error, request_id, headers)
    response.headers["X-Request-ID"] = request_id
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
