"""Trace context: what is taken over from a caller, what is ignored, and logs that a machine can read."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from node.tracing import configure_logging, enter, parse_traceparent, span
from tests.node.solo import Solo, bearer, list_market, order, run
from tests.node.test_submit import Bench, account

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("header", "sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-ff", True),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", True),
    ],
)
def test_a_callers_context_is_continued(header: str, sampled: bool) -> None:
    context = enter(header)
    assert (context.trace_id, context.parent_id, context.sampled) == (TRACE, SPAN, sampled)
    assert context.span_id != SPAN
    child = parse_traceparent(context.child().traceparent)
    assert child is not None
    assert (child.trace_id, child.sampled) == (TRACE, sampled)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "x",
        f"00-{TRACE}-{SPAN}",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        "cc-" + "-" * 1_000,
    ],
)
def test_what_the_standard_says_to_ignore_starts_a_new_trace(header: str) -> None:
    assert parse_traceparent(header) is None
    context = enter(header)
    assert parse_traceparent(context.traceparent) is not None
    assert context.parent_id == ""


@given(st.text(max_size=80))
def test_no_header_breaks_it(header: str) -> None:
    assert len(enter(header).trace_id) == 32


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure_logging("info", member="dc-a", stream=stream)
    # A logger keeps the stream that it was first used with.
    monkeypatch.setattr("node.tracing.log", structlog.get_logger("tiebreak.trace"))
    yield stream
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level


def test_logs_are_one_json_object_a_line(logs: io.StringIO) -> None:
    structlog.get_logger("x").info("hello", name="a\nb", size=3)
    structlog.get_logger("x").debug("not said")
    logging.getLogger("library").warning("careful %s", "now")
    ours, theirs = map(json.loads, logs.getvalue().splitlines())
    assert (ours["event"], ours["member"], ours["level"], ours["name"], ours["size"]) == (
        "hello", "dc-a", "info", "a\nb", 3,
    )  # fmt: skip
    assert (theirs["event"], theirs["member"], theirs["level"], theirs["logger"]) == (
        "careful now", "dc-a", "warning", "library",
    )  # fmt: skip


def test_sampled_spans_are_logged_with_their_parents(logs: io.StringIO) -> None:
    with span("outer", enter(f"00-{TRACE}-{SPAN}-01"), commands=2) as outer:
        with pytest.raises(OSError, match="gone"), span("inner", outer):
            raise OSError("gone")
        with span("unsampled", enter("")):
            pass
    inner, last = map(json.loads, logs.getvalue().splitlines())
    assert (inner["name"], inner["error"], last["name"], last["commands"]) == ("inner", "OSError", "outer", 2)
    assert inner["parent_id"] == last["span_id"]
    assert {inner["trace_id"], last["trace_id"]} == {TRACE}


def test_a_request_and_a_frame_are_spans_of_their_callers_trace(tmp_path: Path, logs: io.StringIO) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice")
            headers = {**bearer("trader", "alice"), "traceparent": f"00-{TRACE}-{SPAN}-01"}
            client = await solo.stream(headers=headers)
            await client.submit(order("sell", 1, "9.00"), order("sell", 1, "9.00"))
            async with solo.client.get("/v1/orders", headers=headers) as response:
                assert response.status == 200

    run(talk())
    spans = [one for one in map(json.loads, logs.getvalue().splitlines()) if one["event"] == "span"]
    assert {one["trace_id"] for one in spans} == {TRACE}
    named = {one["name"]: one for one in spans}
    assert (named["stream submit"]["commands"], named["GET /v1/orders"]["status"]) == (2, 200)
    assert named["GET /v1/orders"]["parent_id"] == SPAN


def test_a_forwarded_command_and_its_batch_are_spans_of_the_same_trace(logs: io.StringIO) -> None:
    async def talk() -> None:
        follower, leader = Bench(), Bench()
        follower.follow("dc-b")
        waits = follower.submitter.start([account(1)], timeout_ms=1_000, traceparent=f"00-{TRACE}-{SPAN}-01")
        unsampled = follower.submitter.start([account(2)], timeout_ms=1_000, traceparent=f"00-{TRACE}-{SPAN}-00")
        for _, kind, body in follower.engine.sent:
            leader.submitter.received("dc-a", kind, body)
        await asyncio.sleep(0.01)
        for payload in leader.engine.log:
            # The trace went beside the commands; it is in no log, so no state depends on it.
            assert TRACE.encode() not in payload
            follower.engine.commit(payload)
        assert [one.index for one in [*await waits, *await unsampled]] == [1, 1]

    asyncio.run(talk())
    spans = {one["name"]: one for one in map(json.loads, logs.getvalue().splitlines())}
    assert set(spans) == {"submit", "take in", "batch"}
    assert spans["submit"]["parent_id"] == SPAN
    assert spans["take in"]["parent_id"] == spans["submit"]["span_id"]
    assert spans["batch"]["parent_id"] == spans["take in"]["span_id"]
    assert (spans["batch"]["index"], spans["batch"]["commands"]) == (1, 2)
    assert {one["trace_id"] for one in spans.values()} == {TRACE}


def test_a_refusal_in_the_log_names_its_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: io.StringIO
) -> None:
    monkeypatch.setattr("node.limits.log", structlog.get_logger("tiebreak.http"))

    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            headers = {**bearer("trader", "alice"), "traceparent": f"00-{TRACE}-{SPAN}-00"}
            async with solo.client.get("/v1/accounts/bob", headers=headers) as response:
                assert response.status == 404
                request_id = response.headers["X-Request-ID"]
            lines = [json.loads(line) for line in logs.getvalue().splitlines()]
            (refused,) = [one for one in lines if one["event"] == "refused"]
            assert (refused["trace_id"], refused["request_id"]) == (TRACE, request_id)

    run(talk())
