"""What every HTTP door of ours does alike, a node's and a gateway's: bodies within bounds, refusals in one form."""

import asyncio
import math
import re
import secrets

import msgspec
from aiohttp import web

from node import errors
from node.errors import NodeError, error_body
from node.guard import HttpLimits

BODY_TYPES = frozenset({"application/json", "application/msgpack"})
_REQUEST_ID = re.compile(r"\A[A-Za-z0-9._:-]{1,64}\Z")


def request_id_of(request: web.Request) -> str:
    """The caller's X-Request-ID, where it is a plain one; else a random one."""
    given = request.headers.get("X-Request-ID", "")
    return given if _REQUEST_ID.match(given) else secrets.token_hex(8)


def route_of(request: web.Request) -> str:
    """The route's pattern, so that metrics have few labels and spans of one kind one name."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unknown"


def check_headers(request: web.Request, limits: HttpLimits) -> None:
    """Raises HeadersTooLarge."""
    if sum(len(name) + len(value) for name, value in request.raw_headers) > limits.header_bytes_max:
        raise errors.HeadersTooLarge(f"the headers are larger than {limits.header_bytes_max} bytes")


async def read_body(request: web.Request, limits: HttpLimits) -> None:
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


def refusal_of(error: NodeError, request_id: str, headers: dict[str, str] | None = None) -> web.Response:
    """The answer that an error makes. headers: beside the error's own, which win."""
    response = web.Response(
        body=msgspec.json.encode(error_body(error, request_id)),
        status=error.status,
        content_type="application/json",
        headers=headers,
    )
    response.headers.update(error.headers)
    if error.retry_after_s or error.status in (429, 503):
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if error.status in (408, 413):
        response.force_close()  # what is still on its way belongs to no request
    return response


_BY_STATUS: dict[int, type[NodeError]] = {
    404: errors.NotFound,
    405: errors.MethodNotAllowed,
    413: errors.TooLarge,
    415: errors.UnsupportedMediaType,
    431: errors.HeadersTooLarge,
}


def of_http(error: web.HTTPException) -> tuple[NodeError, dict[str, str]]:
    """aiohttp's own refusal in our words, and the headers that go with it."""
    kind = _BY_STATUS.get(error.status, errors.Malformed)
    message = {404: "no such path", 405: f"use one of {error.headers.get('Allow', '')}"}.get(error.status)
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    return kind(message or error.reason or kind.error), headers


def bug(request_id: str) -> NodeError:
    """What a caller is told of an error that was ours."""
    return errors.InternalError(f"we were wrong; the log has it under request_id {request_id}")
