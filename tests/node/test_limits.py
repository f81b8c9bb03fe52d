"""Bounds on strangers, over real sockets: connections, headers, idle time, slow senders, bodies; and errors as JSON."""

import asyncio
import io
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from node.guard import HttpLimits
from node.limits import STREAM_PATHS
from tests.node.solo import Solo, bearer, run


async def raw(solo: Solo, request: bytes, *, close: bool = False) -> tuple[int, dict[str, str], bytes]:
    """Send bytes, read one answer: (status, headers, body). Status 0: closed without one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", solo.port)
    try:
        writer.write(request)
        await writer.drain()
        if close:
            writer.write_eof()
        return await answer(reader)
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    async with asyncio.timeout(5):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        status, *lines = head.split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        return int(status.split()[1]), headers, body


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def test_one_address_may_hold_only_so_many_connections(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path, connections_per_address_max=3, connections_max=3) as solo:
            held = [await asyncio.open_connection("127.0.0.1", solo.port) for _ in range(3)]
            await asyncio.sleep(0.05)
            status, headers, body = await raw(solo, b"")
            assert (status, json.loads(body)["error"]) == (429, "too_many_connections")
            assert headers["retry-after"] == "5"
            held.pop()[1].close()
            await asyncio.sleep(0.05)
            assert (await raw(solo, get("/healthz")))[0] == 200
            await asyncio.sleep(0.05)
            guard = solo.app._guard
            assert guard.by_address == {"127.0.0.1": 2}
            assert guard.refused == 1
            for _, writer in held:
                writer.close()
            await asyncio.sleep(0.05)
            assert (guard.by_address, len(guard.connections)) == ({}, 0)

    run(talk())


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="says nothing"),
        pytest.param(b"GET /healthz HTTP/1.1\r\nHost: x\r\n", id="never ends its headers"),
        pytest.param(get("/healthz"), id="idles after an answer"),
    ],
)
def test_idle_and_slow_connections_are_closed(tmp_path: Path, sent: bytes) -> None:
    async def talk() -> None:
        async with Solo(tmp_path, idle_ms=300, header_ms=300) as solo:
            reader, writer = await asyncio.open_connection("127.0.0.1", solo.port)
            writer.write(sent)
            if sent.endswith(b"\r\n\r\n"):
                assert (await answer(reader))[0] == 200
            try:
                async with asyncio.timeout(4):
                    assert await reader.read() == b""
            except ConnectionResetError:
                pass
            assert not solo.app._guard.connections
            writer.close()

    run(talk())


def test_a_trickle_of_header_bytes_does_not_keep_a_connection(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path, header_ms=300) as solo:
            _, writer = await asyncio.open_connection("127.0.0.1", solo.port)
            writer.write(b"GET /healthz HTTP/1.1\r\n")
            async with asyncio.timeout(4):
                with pytest.raises((ConnectionError, RuntimeError)):
                    while True:
                        writer.write(b"X: 1\r\n")
                        await writer.drain()
                        await asyncio.sleep(0.02)
            assert solo.app._guard.cut == 1

    run(talk())


def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path, header_ms=300) as solo:
            authorization = f"Authorization: {bearer('trader', 'alice')['Authorization']}"
            head = get(
                "/v1/orders", authorization, "Content-Type: application/json", "Content-Length: 100"
            ).replace(b"GET", b"POST")  # fmt: skip
            with solo.unchanged():
                status, headers, body = await raw(solo, head + b"{")
                assert (status, json.loads(body)["error"], headers["connection"]) == (408, "request_timeout", "close")

    run(talk())


@pytest.mark.parametrize(
    ("headers", "statuses"),
    [
        (["X: " + "a" * 20_000], (431,)),
        (["X" * 20_000 + ": a"], (431,)),
        ([f"X-{i}: {'a' * 200}" for i in range(60)], (431,)),
        ([f"X-{i}: a" for i in range(400)], (400, 431)),
        (["no colon"], (400,)),
        (["Content-Length: -1"], (400,)),
        (["Content-Length: 1", "Transfer-Encoding: chunked"], (400,)),
        (["Authorization: Bearer " + "a" * 5_000], (401,)),
        (["Authorization: Bearer a.b.c"], (401,)),
        (["Authorization: Basic eDp4"], (401,)),
        ([], (401,)),
    ],
)
def test_headers_that_are_too_many_or_no_good(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, headers: list[str], statuses: tuple[int, ...]
) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            with solo.unchanged():
                status, said, body = await raw(solo, get("/v1/orders", *headers))
                assert status in statuses
                error = json.loads(body)
                assert (error["code"] // 100_000, error["request_id"]) == (status, said["x-request-id"])
                assert not caplog.records, "what strangers send is no error of ours"
                if status == 401:
                    assert said["www-authenticate"] == "Bearer"

    run(talk())


BODIES: list[tuple[int, str, dict[str, str], bytes]] = [
    # status, error, headers, body
    (413, "too_large", {"Content-Type": "application/json"}, b" " * 10_000_000),
    (415, "unsupported_media_type", {"Content-Type": "text/plain"}, b"{}"),
    (415, "unsupported_media_type", {"Content-Type": "application/x-www-form-urlencoded"}, b"qty=1"),
    (415, "unsupported_media_type", {"Content-Type": "application/json; charset=utf-16"}, "{}".encode("utf-16")),
    (415, "unsupported_media_type", {"Content-Type": "application/json", "Content-Encoding": "gzip"}, b"\x1f\x8b"),
    (400, "malformed", {"Content-Type": "application/json"}, b"{"),
    (400, "malformed", {"Content-Type": "application/json"}, b"[" * 200_000),
    (400, "malformed", {"Content-Type": "application/json"}, b"\xff\xfe{}"),
    (400, "malformed", {"Content-Type": "application/json"}, b"NaN"),
    (400, "malformed", {"Content-Type": "application/msgpack"}, b"\xdf\xff\xff\xff\xff"),
    (400, "malformed", {"Content-Type": "application/msgpack"}, b"\x81" * 200_000),
    (400, "malformed", {"Content-Type": "application/json"}, b""),
]


@pytest.mark.parametrize(("status", "error", "headers", "body"), BODIES)
def test_bodies_that_are_refused(tmp_path: Path, status: int, error: str, headers: dict[str, str], body: bytes) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            sent = {**bearer("trader", "alice"), "Idempotency-Key": "k", **headers}
            with solo.unchanged():
                async with solo.client.post("/v1/orders", data=io.BytesIO(body), headers=sent) as response:
                    said = json.loads(await response.text())
                    assert (response.status, said["error"]) == (status, error), said
                    assert said["code"] // 100_000 == status
                    assert response.headers["X-Request-ID"] == said["request_id"]

    run(talk())


def test_a_chunked_body_is_bounded_too(tmp_path: Path) -> None:
    async def talk() -> None:
        async def much() -> Any:
            for _ in range(100):
                yield b" " * 65_536

        async with Solo(tmp_path) as solo:
            sent = {**bearer("trader", "alice"), "Content-Type": "application/json"}
            with solo.unchanged():
                async with solo.client.post("/v1/orders", data=much(), headers=sent) as response:
                    assert response.status == 413
                    assert "262144 bytes" in (await response.json())["message"]

    run(talk())


def test_every_answer_carries_its_request_id_trace_and_rate(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path, rate_per_s=1, rate_burst=3) as solo:
            trace = f"00-{'a' * 32}-{'b' * 16}-01"
            sent = {**bearer("trader", "alice"), "X-Request-ID": "mine-1", "traceparent": trace}
            left = []
            for _ in range(4):
                async with solo.client.get("/v1/orders?consistency=local", headers=sent) as response:
                    assert response.headers["X-Request-ID"] == "mine-1"
                    assert response.headers["traceparent"].split("-")[1] == "a" * 32
                    assert response.headers["traceparent"] != trace
                    left.append(response.headers["X-RateLimit-Remaining"])
            assert (response.status, response.headers["Retry-After"]) == (429, "1")
            assert left == ["2", "1", "0", "0"]
            for bad in ("a" * 65, "a b", "<x>"):
                async with solo.client.get("/healthz", headers={"X-Request-ID": bad}) as response:
                    assert response.headers["X-Request-ID"] != bad

    run(talk())


def test_unknown_paths_and_methods_are_said_in_the_same_shape(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            for method, path, status in (
                ("GET", "/nowhere", 404), ("GET", "/v1/nowhere", 404), ("PUT", "/v1/orders", 405),
                ("GET", "/v1/stream", 400), ("TRACE", "/healthz", 405), ("GET", "/v1/orders/..%2f..%2fetc", 422),
            ):  # fmt: skip
                async with solo.client.request(method, path, headers=bearer("trader", "alice")) as response:
                    said = json.loads(await response.text())
                    assert (response.status, said["code"] // 100_000) == (status, status), (method, path, said)

    run(talk())


def test_bytes_that_are_no_http_do_not_hurt(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            for junk in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"\0" * 1_000, b"GET / HTTP/9.9\r\n\r\n"):
                try:
                    status, _, body = await raw(solo, junk, close=True)
                    assert (status, json.loads(body)["error"]) == (400, "malformed")
                except (asyncio.IncompleteReadError, ConnectionError):
                    pass
            with socket.create_connection(("127.0.0.1", solo.port)) as half:
                half.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            assert (await raw(solo, get("/healthz")))[0] == 200

    run(talk())


def test_a_bound_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="body_bytes_max 0"):
        HttpLimits(body_bytes_max=0)
    with pytest.raises(ValueError, match="connections_per_address_max 5 is above connections_max 4"):
        HttpLimits(connections_per_address_max=5, connections_max=4)


@pytest.mark.parametrize("method", ["POST", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", sorted(STREAM_PATHS))
def test_only_a_stream_may_come_without_a_token(method: str, path: str, tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            head = get(path, "Upgrade: websocket", "Connection: close").replace(b"GET", method.encode())
            status, _, body = await raw(solo, head)
            assert (status, json.loads(body)["error"]) == (401, "unauthenticated")

    run(talk())
