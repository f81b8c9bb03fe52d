"""What the handlers share: bodies and parameters in, answers out, reads that begin when they may."""

import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from cluster import wire
from node.auth import Principal
from node.bodies import Reader
from node.context import NODE, PRINCIPAL, Node
from node.errors import Forbidden, InvalidField, NotReady
from node.limits import TRACE
from node.outcomes import RuleRefused, error_of
from node.submit import Outcome, Prepared
from statemachine.codes import Code

Body = TypeVar("Body")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_encode_json = msgspec.json.Encoder().encode
_encode_msgpack = msgspec.msgpack.Encoder().encode

TIMEOUT_MS_MIN = 10
PAGE_DEFAULT = 100
ID_MAX = 2**63 - 1


class Page(msgspec.Struct, frozen=True):
    """A list and where it goes on; next_page_token is null at its end.

    past_gone: the list goes on in the past beyond what this node keeps.
    """

    items: list[Any]
    next_page_token: str | None = None
    past_gone: bool = False


def wants_msgpack(request: web.Request) -> bool:
    return "application/msgpack" in request.headers.get("Accept", "")


def respond(
    request: web.Request, body: Any, *, index: int, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """An answer that reflects the log up to `index`."""
    if wants_msgpack(request):
        response = web.Response(body=_encode_msgpack(body), content_type="application/msgpack", status=status)
    else:
        response = web.Response(body=_encode_json(body), content_type="application/json", status=status)
    response.headers["X-Log-Index"] = str(index)
    if headers:
        response.headers.update(headers)
    return response


async def read_body(request: web.Request, reader: Reader[Body]) -> Body:
    return reader.read(await request.read(), is_msgpack=request.content_type == "application/msgpack")


# ---- commands ----


async def submit(request: web.Request, command: wire.AnyRequest) -> tuple[Prepared, Outcome]:
    """Take one command through door, log and apply. Raises the NodeError that it ends with, a refusal too."""
    node = request.app[NODE]
    principal = request[PRINCIPAL]
    prepared = await node.intake.one(command, principal, header_key=header_key(request))
    timeout_ms = timeout_of(request, node)
    trace = request[TRACE]
    outcomes = await node.submitter.submit([prepared], timeout_ms=timeout_ms, traceparent=trace.traceparent)
    outcome = outcomes[0]
    error = error_of(prepared, outcome)
    node.count("http", error)
    if error is not None:
        if outcome.index:
            error.headers = written_headers(node, outcome)
        raise error
    return prepared, outcome


def written_headers(node: Node, outcome: Outcome) -> dict[str, str]:
    """Where the answer stands in the log, and a token with which any node reads at least that."""
    headers = {
        "X-Log-Index": str(outcome.index),
        "X-Session-Token": node.session_tokens.issue(max(outcome.index, node.machine.applied_index)),
    }
    if outcome.replay:
        headers["Idempotency-Replayed"] = "true"
    return headers


def written(request: web.Request, outcome: Outcome, body: Any) -> web.Response:
    node = request.app[NODE]
    return respond(request, body, index=outcome.index, headers=written_headers(node, outcome))


def header_key(request: web.Request) -> str:
    keys = request.headers.getall("Idempotency-Key", [])
    if len(keys) > 1:
        raise InvalidField("the header Idempotency-Key is there more than once", field="Idempotency-Key")
    return keys[0] if keys else ""


def timeout_of(request: web.Request, node: Node) -> int:
    timing = node.config.timing
    given = request.query.get("timeout_ms")
    if given is None:
        return timing.command_timeout_ms
    return whole(given, "timeout_ms", TIMEOUT_MS_MIN, timing.command_timeout_ms_max)


# ---- reads ----


def reading(handler: Handler) -> Handler:
    """Let a read begin once it may: linearizable, or `?consistency=local`, or at the index of X-Session-Token."""

    @functools.wraps(handler)
    async def begun(request: web.Request) -> web.StreamResponse:
        node = request.app[NODE]
        if not node.ready:
            raise NotReady("this node is starting or leaving: ask another member")
        with node.metrics.stage("read"):
            await begin_read(request, node)
        return await handler(request)

    return begun


async def begin_read(request: web.Request, node: Node) -> None:
    local = is_local(request)
    token = request.headers.get("X-Session-Token")
    if token is not None:
        await node.reads.at_least(node.session_tokens.read(token))
    elif not local:
        await node.reads.linearizable()


def is_local(request: web.Request) -> bool:
    """Whether a read asks for what this member has, whatever others know by now."""
    consistency = request.query.get("consistency", "linearizable")
    if consistency not in ("linearizable", "local"):
        raise InvalidField("consistency is linearizable or local", field="consistency")
    return consistency == "local"


def read_answer(request: web.Request, body: Any) -> web.Response:
    """What was read, now, without waiting in between, with the index that it reflects."""
    return respond(request, body, index=request.app[NODE].machine.applied_index)


# ---- parameters ----


def only(request: web.Request, *names: str) -> None:
    """Refuse parameters that nobody reads: a misspelled filter would otherwise filter nothing."""
    for name in request.query:
        if name not in names and name not in ("consistency", "timeout_ms"):
            raise InvalidField(f"unknown parameter {name[:64]}; known: {', '.join(sorted(names))}", field=name[:64])
        if len(request.query.getall(name)) > 1:
            raise InvalidField(f"{name} is there more than once", field=name)


def whole(given: str, field: str, low: int, high: int) -> int:
    if not (given.isascii() and given.isdigit() and len(given) <= 19) or not low <= int(given) <= high:
        raise InvalidField(f"{field} must be a whole number between {low} and {high}", field=field)
    return int(given)


def page_limit(request: web.Request, node: Node) -> int:
    given = request.query.get("limit")
    page_max = node.config.limits.page_max
    return min(PAGE_DEFAULT, page_max) if given is None else whole(given, "limit", 1, page_max)


def page_token(request: web.Request) -> int | None:
    """The id that a page begins at."""
    given = request.query.get("page_token")
    return None if given is None else whole(given, "page_token", 1, ID_MAX)


def identifier(request: web.Request, name: str) -> int:
    return whole(request.match_info[name], name, 1, ID_MAX)


def account_of(request: web.Request, *roles: str) -> str:
    """The account that a private read is about, within reach of a principal of one of these roles."""
    principal = request[PRINCIPAL]
    allow(principal, *roles)
    named = request.query.get("account") or principal.only_account
    if not named:
        raise InvalidField("name an account: this token is good for several", field="account")
    if not principal.may_touch(named):
        raise RuleRefused(Code.account_not_found)
    return named


def allow(principal: Principal, *roles: str) -> None:
    if principal.role not in roles:
        raise Forbidden(f"this needs a token of role {' or '.join(roles)}; this one is of role {principal.role}")
