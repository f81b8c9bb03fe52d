"""What each answer means: every word of members and gateways, what is nobody's word, and connections that fail."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

import gateway.api.errors
import gateway.notify.outbox
import gateway.prefs.errors
import node.errors
from chaos.workloads import at_gateways, requests
from chaos.workloads.connection import Answer, Connections
from chaos.workloads.operation import MAY_BE_DONE, NOTHING_DONE, Reply, Request, judged, operate
from gateway.prefs.errors import PrefsError
from node.doorway import refusal_of
from node.errors import NodeError
from node.outcomes import RuleRefused
from statemachine.codes import Code
from tests.node.fakes import free_ports

BEARER = "t"
COMMAND = requests.deposit("alice", "USD", "1", key="k")
READ = requests.read_account("alice")
WRITE = at_gateways.add("alice", "a-1", symbol="AAPL", price=7)
DONE = {"key": "k", "index": 7, "status": "done", "account": "alice", "at": "2026-01-01T00:00:00.000000Z"}
ACCOUNT = {"id": "alice", "status": "active", "open_orders": 0, "balances": [
    {"asset": "USD", "available": "1.5", "held": "0.25"},
]}  # fmt: skip

# What a word of a node or gateway means to a command. To a read all of them mean that it got no answer.
WORDS = {
    "fail": {
        "malformed", "invalid_field", "unsupported_media_type", "too_large", "headers_too_large", "unauthenticated",
        "forbidden", "not_found", "method_not_allowed", "rate_limited", "overloaded", "too_many_connections",
        "no_leader", "no_quorum", "not_ready", "disk_low", "read_timeout", "command_not_found", "epoch_changed",
        "snapshot_required", "request_timeout", "member_not_found", "member_is_witness", "member_not_voter",
        "member_not_reached", "member_behind", "change_refused", "change_too_early", "account_not_found",
        "symbol_not_found", "no_node", "book_not_whole", "book_not_found", "past_gone", "too_many_rows", "no_parquet",
        "too_many_alerts", "clock_ahead", "store_full", "outbox_full",
        "key_not_in_use", "only_at_nodes", "answer_too_large",
    },
    "unknown": {"internal_error", "outcome_unknown", "change_unknown", "store_failed"},
}  # fmt: skip


def subclasses(kind: type[Any]) -> Iterator[type[Any]]:
    for one in kind.__subclasses__():
        yield one
        yield from subclasses(one)


def errors() -> list[NodeError]:
    """One of every kind that a member or gateway can answer with, the rules' refusals left out."""
    homes = (node.errors.__name__, gateway.api.errors.__name__, gateway.notify.outbox.__name__)
    found = [kind("why") for kind in subclasses(NodeError) if kind.__module__ in homes]
    found += [gateway.api.errors.of_prefs(kind("why")) for kind in subclasses(PrefsError)]
    return [*found, gateway.api.errors.of_prefs(PrefsError("why"))]


def answered(error: NodeError, *, index: int = 0) -> Answer:
    """As the product itself answers with it."""
    if index:
        error.headers["X-Log-Index"] = str(index)
    response = refusal_of(error, "r-1")
    assert isinstance(response.body, bytes)
    return Answer(response.status, {name.lower(): value for name, value in response.headers.items()}, response.body)


def test_every_word_of_members_and_gateways_is_known() -> None:
    """Whoever gives members or gateways a new word says here, and in operation.py, what it means."""
    assert {error.error for error in errors()} <= WORDS["fail"] | WORDS["unknown"]
    assert NOTHING_DONE | MAY_BE_DONE | {"account_not_found"} == WORDS["fail"] | WORDS["unknown"]
    assert not NOTHING_DONE & MAY_BE_DONE


@pytest.mark.parametrize("error", errors(), ids=lambda error: error.error)
def test_a_word_says_whether_it_may_be_done(error: NodeError) -> None:
    outcome = "unknown" if error.error in WORDS["unknown"] else "fail"
    for request in (COMMAND, WRITE):
        assert judged(request, answered(error)) == Reply(outcome, error=error.error)  # type: ignore[arg-type]
    assert judged(READ, answered(error)) == Reply("fail", error=error.error)
    # What is said to be open is open, whatever the word.
    error.definite = False
    assert judged(COMMAND, answered(error)).outcome == "unknown"


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.ok], ids=lambda code: code.name)
def test_what_the_rules_refuse_was_executed_where_it_has_an_index(code: Code) -> None:
    said = answered(RuleRefused(code), index=9)
    assert judged(COMMAND, said) == Reply("ok", 9, answer={"error": code.name})
    assert judged(READ, said) == Reply("fail", error=code.name)
    # Without an index it was the door that refused, and nothing was logged.
    assert judged(COMMAND, answered(RuleRefused(code))) == Reply("fail", error=code.name)


def test_a_repeat_of_a_refusal_is_one() -> None:
    error = RuleRefused(Code.insufficient_funds)
    error.headers["Idempotency-Replayed"] = "true"
    assert judged(COMMAND, answered(error, index=3)).replay


def test_a_key_that_is_not_there_is_an_answer() -> None:
    read = requests.read_outcome("k", "@custodian")
    assert judged(read, answered(node.errors.CommandNotFound("no"), index=5)) == Reply("ok", 5, answer={"none": True})
    assert judged(read, answered(node.errors.CommandNotFound("no"))).outcome == "fail"


def said(status: int = 200, body: Any = None, **headers: str) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, raw)


def test_what_was_done() -> None:
    reply = judged(COMMAND, said(body=DONE, x_log_index="7", x_session_token=BEARER, idempotency_replayed="true"))
    kept = {name: value for name, value in DONE.items() if name not in ("key", "index")}
    assert reply == Reply("ok", 7, True, kept, session=BEARER)
    reply = judged(READ, said(body=ACCOUNT, x_log_index="7", x_staleness_ms="12"))
    assert reply == Reply("ok", 7, answer={"balances": {"USD": ["1.75", "1.5"]}}, age_ms=12)
    assert judged(WRITE, said(201, {"alert_id": "a-1"})) == Reply("ok")


def test_another_keys_answer_is_seen_to_be_one() -> None:
    assert judged(COMMAND, said(body={**DONE, "key": "x"}, x_log_index="7")).answer["key"] == "x"


def test_what_nobody_of_ours_says_settles_nothing() -> None:
    refusal = msgspec.json.encode({"code": 40_301_007, "error": "forbidden", "message": "no"})
    strange = [
        said(body=DONE),  # done, it says, and not where
        said(body=DONE, x_log_index="-7"),
        said(body=b"<html>", x_log_index="7"),
        said(body=[1], x_log_index="7"),
        said(204, b"", x_log_index="7"),
        said(301, DONE, x_log_index="7"),
        said(304, DONE, x_log_index="7"),
        said(400, b"<html>bad request</html>"),
        said(404, {"error": "forbidden"}),
        said(502, refusal),  # another's status with our words
        said(503, b""),
        said(403, {"code": 40_301_007, "error": "", "message": "no"}),
        said(403, {"code": 40_301_007, "error": "no_such_word", "message": "no"}),
        said(199, DONE, x_log_index="7"),
    ]
    for answer in strange:
        assert judged(COMMAND, answer).outcome == "unknown", answer
        if answer.status != 200 or answer.body != json.dumps(DONE).encode():
            assert judged(READ, answer).outcome == "fail", answer
    assert judged(READ, said(body=ACCOUNT)).outcome == "fail"
    assert judged(COMMAND, said(403, refusal)).outcome == "fail"


# ---- connections ----

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        except asyncio.CancelledError:
            return  # the test is over; a cancelled handler is an error to asyncio's server
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", free_ports(1)[0])
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def request_from(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    found = re.search(rb"(?i)content-length: (\d+)", head)
    return head, await reader.readexactly(int(found[1]) if found else 0)


def answer_of(body: bytes, *lines: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *lines, "", ""]).encode() + body


async def asked(base: str, request: Request, connections: Connections, *, timeout_s: float = 5.0) -> Reply:
    return await operate(connections, base, request, token=BEARER, timeout_s=timeout_s)


WHOLE = answer_of(json.dumps(DONE).encode(), "X-Log-Index: 7")

# what the other end does with a request, and what is then known of a command
ENDS: list[tuple[str, bytes, bool, str]] = [
    # name, what is said, whether it then hangs up, outcome
    ("hangs up", b"", True, "unknown"),
    ("never answers", b"", False, "unknown"),
    ("half a head", WHOLE[:20], True, "unknown"),
    ("half a body", WHOLE[:-5], True, "unknown"),
    ("half a body, and waits", WHOLE[:-5], False, "unknown"),
    ("no HTTP", b"hello\r\n\r\n", False, "unknown"),
    ("no length", b"HTTP/1.1 200 OK\r\n\r\n", False, "unknown"),
    ("a head without end", b"HTTP/1.1 200 OK\r\nA: " + b"x" * 200_000, False, "unknown"),
    ("a whole answer", WHOLE, False, "ok"),
    ("a whole answer, and hangs up", WHOLE, True, "ok"),
]


@pytest.mark.parametrize(("name", "says", "hangs_up", "outcome"), ENDS, ids=[row[0] for row in ENDS])
def test_an_answer_that_breaks_off(name: str, says: bytes, hangs_up: bool, outcome: str) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(says)
        await writer.drain()
        if not hangs_up:
            await asyncio.sleep(60)

    async def talk() -> None:
        connections = Connections()
        async with serving(handler) as base:
            assert (await asked(base, COMMAND, connections, timeout_s=0.5)).outcome == outcome
            read = await asked(base, READ, connections, timeout_s=0.5)
            assert read.outcome == "fail"  # this answer is no account
            await connections.close()

    asyncio.run(talk())


def test_who_is_not_there_was_told_nothing() -> None:
    async def talk() -> None:
        connections = Connections()
        base = f"http://127.0.0.1:{free_ports(1)[0]}"
        for request in (COMMAND, READ, WRITE):
            reply = await asked(base, request, connections)
            assert (reply.outcome, reply.error[:9]) == ("fail", "not_sent:")
        # Nobody accepts, nobody refuses: nothing left before the time was over.
        reply = await asked("http://127.0.0.1:9", COMMAND, connections, timeout_s=0.000001)
        assert (reply.outcome, reply.error[:9]) == ("fail", "not_sent:")

    asyncio.run(talk())


@pytest.mark.parametrize("request_", [COMMAND, WRITE, requests.cancel_order("a", named="1", is_key=False, key="k")])
def test_nothing_is_sent_twice(request_: Request) -> None:
    """A kept connection that the other end closes just as it is used: libraries send PUT and DELETE again unasked."""
    seen: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answers in (True, False):
            head, _ = await request_from(reader)
            seen.append(head.split(b" ")[0])
            if answers:
                writer.write(WHOLE)
                await writer.drain()

    async def talk() -> None:
        connections = Connections()
        async with serving(handler) as base:
            assert (await asked(base, request_, connections)).outcome == "ok"
            assert (await asked(base, request_, connections)).outcome == "unknown"
            assert seen == [request_.method.encode()] * 2
            # The next call goes over a connection of its own.
            assert (await asked(base, request_, connections)).outcome == "ok"
            await connections.close()

    asyncio.run(talk())


def test_a_kept_connection_that_was_closed_is_not_used() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(WHOLE)
        await writer.drain()

    async def talk() -> None:
        connections = Connections()
        async with serving(handler) as base:
            for _ in range(5):
                assert (await asked(base, COMMAND, connections)).outcome == "ok"
                await asyncio.sleep(0.05)  # the end of the connection arrives
            await connections.close()

    asyncio.run(talk())


def test_what_leaves() -> None:
    """The key, who asks, and how long to wait: a little less than we do, so that the answer comes before we go."""
    seen: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.extend(await request_from(reader))
        writer.write(WHOLE)
        await writer.drain()

    async def talk() -> None:
        connections = Connections()
        async with serving(handler) as base:
            assert (await asked(base, COMMAND, connections, timeout_s=2.0)).outcome == "ok"
            await connections.close()
        lines = seen[0].decode().split("\r\n")
        assert lines[0] == "POST /v1/transfers?timeout_ms=1700 HTTP/1.1"
        assert {"Authorization: Bearer t", "Idempotency-Key: k", "Content-Type: application/json"} <= set(lines)
        assert json.loads(seen[1]) == {"kind": "deposit", "account": "alice", "asset": "USD", "amount": "1"}

    asyncio.run(talk())
