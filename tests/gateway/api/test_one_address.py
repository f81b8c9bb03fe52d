"""One address for clients: every line of a node's document is answered by a node behind it, or says why not."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import make_mocked_request

from gateway.api.relay import timeout_s_of
from gateway.api.relayed import CHANGES, NOT_RELAYED, SOCKETS
from node import openapi
from tests.gateway.api.sites import Site, market, sites, until, url
from tests.gateway.api.test_order_stream import serves
from tests.node.solo import Solo, bearer, list_market, token

NAMES = {"order_id": "1", "account": "anna", "withdrawal_id": "1", "symbol": "AAPL-USD", "key": "k-1", "name": "dc-b"}
ACCOUNTS = {"trader": ("anna",), "custodian": ("*",), "auditor": ("*",)}
LINES = [(one.method, one.path, one.roles[0] if one.roles else "trader") for one in openapi.TABLE]


async def test_every_line_of_the_nodes_document_is_relayed_or_says_why_not(tmp_path: Path) -> None:
    assert NOT_RELAYED.keys() <= {(method, path) for method, path, _ in LINES}
    async with market(tmp_path) as (solo, (site,)):
        for method, path, role in LINES:
            there = path.format(**NAMES)
            asked: dict[str, Any] = {"method": method.upper(), "role": role, "accounts": ACCOUNTS.get(role, ())}
            relayed = await site.ask(there, **asked, body={} if method in ("post", "patch") else None)
            if (method, path) in NOT_RELAYED:
                assert "X-Relayed-From" not in relayed.headers, path
                if NOT_RELAYED[method, path] == CHANGES:
                    with solo.unchanged():
                        assert (relayed.status, relayed.body["error"]) == (403, "only_at_nodes"), path
                continue
            assert relayed.headers["X-Relayed-From"] == url(solo), (method, path)
            if method == "get":
                headers = bearer(role, *ACCOUNTS.get(role, ()))
                async with solo.client.get(there, headers=headers) as response:
                    assert (relayed.status, sorted(relayed.body)) == (response.status, sorted(await response.json()))


async def test_the_nodes_decide_who_may(tmp_path: Path) -> None:
    async with market(tmp_path) as (_, (site,)):
        for path, role, word in (
            ("/v1/cluster/members", "trader", "forbidden"),
            ("/v1/feed", "trader", "forbidden"),
            ("/v1/feed/snapshot", "custodian", "forbidden"),
        ):
            refused = await site.ask(path, role=role)
            assert (refused.status, refused.body["error"]) == (403, word) and "X-Relayed-From" in refused.headers
        assert (await site.ask("/v1/status", bearer="")).status == 401


async def test_a_long_wait_for_events_is_waited_for(tmp_path: Path) -> None:
    async with market(tmp_path) as (_, (site,)):
        waiting = asyncio.create_task(site.ask("/v1/feed?wait_ms=15000", role="auditor", accounts=("*",)))
        await asyncio.sleep(0.2)
        assert site.app.api.relay.under_way == 1 and not waiting.done()
        await site.ask(
            "/v1/orders", method="POST", Idempotency_Key="k-1",
            body={"symbol": "AAPL-USD", "side": "buy", "type": "limit", "qty": "1", "limit_price": "90.00"},
        )  # fmt: skip
        page = await asyncio.wait_for(waiting, 5)
        assert page.status == 200 and page.body["events"]
        assert timeout_s_of(make_mocked_request("GET", "/v1/feed?wait_ms=20000")) == 22.0


async def test_the_feed_is_followed_through_a_gateway_and_ends_with_its_node(tmp_path: Path) -> None:
    async with Solo(tmp_path) as solo:
        await list_market(solo, "anna")
        async with sites(url(solo)) as (site,):
            await site.reaches(solo.log.index)
            headers = bearer("auditor", "*")
            for given in (headers, {}):
                feed = await site.session.ws_connect(f"{site.url}/v1/feed?after=0.1.0.0", headers=given)
                if not given:
                    await feed.send_json({"action": "authenticate", "token": headers["Authorization"].split()[1]})
                told = await feed.receive_json(timeout=5)
                assert told["stream"] == "feed" and told["events"]
                await feed.close()
            feed = await site.session.ws_connect(f"{site.url}/v1/feed", headers=headers)
            await feed.receive(5)
            for socket in list(solo.feed.followers):
                if socket._req is not None and socket._req.transport is not None:
                    socket._req.transport.abort()
            async with asyncio.timeout(5):
                while (message := await feed.receive()).type is aiohttp.WSMsgType.TEXT:
                    pass
            assert (feed.close_code, message.extra) == (1012, "node_lost")
            feed = await site.session.ws_connect(f"{site.url}/v1/feed", headers=bearer("trader", "anna"))
            assert (await feed.receive_json(timeout=5))["error"] == "forbidden"
            await feed.receive(5)
            assert feed.close_code == 4401


def test_the_sockets_of_the_table_are_those_of_nodes() -> None:
    assert set(SOCKETS.values()) == {"/v1/stream", "/v1/feed"}
    assert "/v1/orders/stream" in openapi.NOT_LISTED


async def sent(site: Site, head: str, body: bytes = b"") -> bytes:
    """Exactly these bytes, and what comes back within half a second of silence."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.config.listen.port)
    writer.write(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
    try:
        return await asyncio.wait_for(reader.readuntil(b"}"), 5)
    finally:
        writer.close()


@pytest.mark.parametrize("workers", [0, 1])
async def test_no_spelling_of_a_path_leads_elsewhere_than_where_it_was_looked_at(workers: int, tmp_path: Path) -> None:
    async with market(tmp_path, workers=workers) as (solo, (site,)):
        await serves(site)
        with solo.unchanged():
            for path in (
                "/v1/orders/%2e%2e/cluster/transfer",
                "/v1/orders/%2E./cluster/transfer",
                "/v1/orders/x/%2e%2e/%2e%2e/cluster/transfer",
                "/v1/orders/..%2fcluster/transfer",
                "/v1/orders/../cluster/transfer",
            ):
                head = f"POST {path} HTTP/1.1\nHost: x\nAuthorization: Bearer {token('operator')}"
                said = await sent(site, head + "\nContent-Type: application/json\nContent-Length: 2", b"{}")
                assert b"404" in said.split(b"\r\n")[0] or b"only_at_nodes" in said, (path, said)
        # What a node takes apart by itself comes as it was written.
        head = f"GET /v1/commands/a%2Fb%20c%2e%2e HTTP/1.1\nHost: x\nAuthorization: Bearer {token('trader', 'anna')}"
        assert b'"key":"a/b c.."' in await sent(site, head)


async def test_a_client_that_leaves_in_the_middle_of_a_body_is_no_error_of_ours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with market(tmp_path) as (_, (site,)):
        _, writer = await asyncio.open_connection("127.0.0.1", site.config.listen.port)
        head = f"PATCH /v1/preferences HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token('trader', 'anna')}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{{".encode())
        await until(lambda: len(site.app._guard.connections) == 1)
        await asyncio.sleep(0.05)
        writer.close()
        await until(lambda: not site.app._guard.connections)
        await asyncio.sleep(0.05)
        assert [one for one in caplog.records if one.name == "aiohttp.server"] == []


@pytest.mark.parametrize("method", ["POST", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", sorted(SOCKETS))
async def test_only_a_stream_may_come_without_a_token(method: str, path: str, tmp_path: Path) -> None:
    async with market(tmp_path) as (_, (site,)):
        refused = await site.ask(path, method=method, bearer="", Upgrade="websocket", Connection="Upgrade")
        assert (refused.status, refused.body["error"]) == (401, "unauthenticated")
        assert "X-Relayed-From" not in refused.headers
