"""What stands before every handler: request ids, errors as JSON, bounds on bodies, who asks, how often."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from gateway.api import context
from gateway.api.context import METRICS, PRINCIPAL, REQUEST_ID
from gateway.api.errors import of_prefs
from gateway.api.rates import Rates
from gateway.api.relayed import COUNTED_THERE, SOCKETS
from gateway.prefs.errors import PrefsError
from node import errors
from node.auth import Authenticator
from node.doorway import bug, check_headers, of_http, read_body, refusal_of, request_id_of, route_of
from node.errors import NodeError
from node.guard import Connection, HttpLimits

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.http")

STREAM_PATH = "/v1/stream"
"""Here a WebSocket may bring its token in its first message, and does its own counting."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def middlewares(authenticator: Authenticator, rates: Rates, limits: HttpLimits) -> list[Middleware]:
    """All that a request passes, outermost first."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        connection = request.transport.get_protocol() if request.transport is not None else None
        if isinstance(connection, Connection):
            connection.request_began(is_stream=is_socket(request))
        request[REQUEST_ID] = request_id_of(request)
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
            if is_socket(request):
                response.force_close()  # a worker has passed this connection on, and gets it back for nothing else
        metrics, route = request.app[METRICS], route_of(request)
        metrics.requests.labels(route, request.method, str(response.status)).inc()
        if route != STREAM_PATH and not isinstance(response, web.WebSocketResponse):
            metrics.request_seconds.labels(route).observe(time.perf_counter() - began_s)
        return response

    @web.middleware
    async def bound(request: web.Request, handler: Handler) -> web.StreamResponse:
        check_headers(request, limits)
        if request.can_read_body:
            await read_body(request, limits)
        return await handler(request)

    @web.middleware
    async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
        path = request.path
        if not path.startswith("/v1/") or path == STREAM_PATH:
            return await handler(request)
        if is_socket(request) and "Authorization" not in request.headers:
            return await handler(request)  # its first message says who it is
        principal = authenticator.verify_header(request.headers.get("Authorization"))
        request[PRINCIPAL] = principal
        if COUNTED_THERE.match(path):
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


def is_socket(request: web.Request) -> bool:
    """Whether this is a WebSocket that ends at a node."""
    return request.method == "GET" and request.path in SOCKETS and "Upgrade" in request.headers


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
        return refusal(request, *of_http(error))
    except asyncio.CancelledError:
        raise
    except ConnectionError:
        return web.Response(status=400)  # to nobody: the client went away, which is no error of ours to log
    except Exception:
        request_id = request[REQUEST_ID]
        log.exception("request failed", request_id=request_id, method=request.method, path=request.path)
        return refusal(request, bug(request_id))


def refusal(request: web.Request, error: NodeError, headers: dict[str, str] | None = None) -> web.Response:
    request_id = request[REQUEST_ID]
    response = refusal_of(error, request_id, headers)
    response.headers["Cache-Control"] = "no-store"
    say = log.warning if error.status >= 500 else log.debug
    say("refused", request_id=request_id, method=request.method, path=request.path, error=error.error)
    return response
