"""One address for clients: every line of a node's document is answered by a node behind it, or says why not."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.test_utils import make_mocked_request

from gateway.api.relay import timeout_s_of
from gateway.api.relayed import CHANGES, NOT_RELAYED, SOCKETS
from node import openapi
from tests.gateway.api.sites import market, sites, url
from tests.node.solo import Solo, bearer, list_market

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
