"""Orders and account reads through a gateway: unchanged both ways, to the nearest node, sent at most once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.gateway.api.sites import Site, market, sites, trades, url
from tests.node.fakes import free_ports
from tests.node.solo import Solo, bearer, list_market

BODY = {"symbol": "AAPL-USD", "side": "buy", "type": "limit", "qty": "10", "limit_price": "100.00"}
NOWHERE = "http://127.0.0.1:9"


async def test_an_order_and_its_answer_are_the_nodes_own(tmp_path: Path) -> None:
    async with market(tmp_path) as (solo, (site,)):
        placed = await site.ask("/v1/orders", method="POST", body=BODY, Idempotency_Key="k-1")
        assert (placed.status, placed.body["status"], placed.body["client_order_id"]) == (200, "new", "k-1")
        assert placed.headers["X-Session-Token"] and placed.headers["X-RateLimit-Limit"] and placed.headers["X-As-Of"]
        again = await site.ask("/v1/orders", method="POST", body=BODY, Idempotency_Key="k-1")
        assert again.headers["Idempotency-Replayed"] == "true" and again.body == placed.body | {"replay": True}
        other = await site.ask("/v1/orders", method="POST", body=BODY | {"qty": "11"}, Idempotency_Key="k-1")
        assert (other.status, other.body["error"]) == (409, "key_reused")
        shown = await site.ask("/v1/orders?status=open")
        async with solo.client.get("/v1/orders?status=open", headers=bearer("trader", "anna")) as response:
            assert shown.raw == await response.read()
        gone = await site.ask("/v1/orders?client_order_id=k-1", method="DELETE", Idempotency_Key="k-2")
        assert (gone.status, gone.body["status"]) == (200, "canceled")


async def test_a_read_that_may_be_of_any_age_is_not_called_fresh(tmp_path: Path) -> None:
    async with market(tmp_path) as (solo, (site,)):
        token = await trades(solo)
        found: tuple[tuple[str, dict[str, Any], int], ...] = (
            ("/v1/accounts/anna", {}, 0),
            ("/v1/accounts/anna?consistency=linearizable", {}, 0),
            ("/v1/accounts/anna?consistency=local", {}, -1),
            ("/v1/accounts/anna", {"X_Session_Token": token}, -1),
            ("/v1/history/trades?consistency=local", {}, -1),
        )
        for path, headers, staleness_ms in found:
            answer = await site.ask(path, **headers)
            assert (answer.status, answer.staleness_ms) == (200, staleness_ms), (path, answer.body)
            assert (answer.headers["X-As-Of"] == "never") is (staleness_ms < 0)


async def test_refusals_are_the_nodes_own(tmp_path: Path) -> None:
    async with market(tmp_path) as (solo, (site,)):
        for path, method, role, body in (
            ("/v1/orders", "POST", "auditor", BODY),
            ("/v1/orders", "POST", "trader", {"symbol": "AAPL-USD"}),
            ("/v1/orders", "POST", "trader", BODY),  # no key
            ("/v1/accounts/bert", "GET", "trader", None),
            ("/v1/ledger?account=anna&limit=0", "GET", "trader", None),
            ("/v1/commands/never", "GET", "trader", None),
        ):
            relayed = await site.ask(path, method=method, role=role, body=body)
            headers = bearer(role, "anna")
            async with solo.client.request(method, path, json=body, headers=headers) as response:
                said = await response.json()
            del said["request_id"], relayed.body["request_id"]
            assert (relayed.status, relayed.body) == (response.status, said), path


async def test_a_node_that_is_not_there_is_passed_over(tmp_path: Path) -> None:
    async with Solo(tmp_path) as solo:
        await list_market(solo, "anna")
        async with sites(NOWHERE, url(solo)) as (site,):
            placed = await site.ask("/v1/orders", method="POST", body=BODY, Idempotency_Key="k-1")
            assert placed.status == 200 and placed.headers["X-Relayed-From"] == url(solo)
            assert site.app.api.relay.order()[0] == url(solo)  # not asked first again in a moment


async def test_without_any_node_nothing_is_sent_and_it_is_said() -> None:
    async with sites(NOWHERE) as (site,):
        refused = await site.ask("/v1/orders", method="POST", body=BODY, Idempotency_Key="k-1")
        assert (refused.status, refused.body["error"], refused.body.get("definite", True)) == (503, "no_node", True)


@asynccontextmanager
async def deaf() -> AsyncIterator[tuple[str, list[bytes]]]:
    """A node that takes a request and says nothing, then hangs up."""
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        await asyncio.sleep(0.05)
        writer.close()

    (port,) = free_ports(1)
    server = await asyncio.start_server(listen, "127.0.0.1", port)
    try:
        yield f"http://127.0.0.1:{port}", heard
    finally:
        server.close()


async def test_a_command_that_may_have_been_sent_is_not_sent_again(tmp_path: Path) -> None:
    async with Solo(tmp_path) as solo:
        await list_market(solo, "anna")
        async with deaf() as (node, heard), sites(node, url(solo)) as (site,):
            await _followed_away(site, node)
            heard.clear()
            site.app.api.relay._away.clear()
            with solo.unchanged():
                unknown = await site.ask("/v1/orders", method="POST", body=BODY | {"client_order_id": "k-7"})
            assert (unknown.status, unknown.body["error"]) == (503, "outcome_unknown")
            assert (unknown.body["definite"], unknown.body["key"]) == (False, "k-7")
            assert len([one for one in heard if one.startswith(b"POST")]) == 1
            # A read may be asked again, and is.
            site.app.api.relay._away.clear()
            assert (await site.ask("/v1/accounts/anna")).status == 200


async def _followed_away(site: Site, node: str) -> None:
    async with asyncio.timeout(10):
        while site.core.follower.node in ("", node):  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.02)


async def test_no_more_are_under_way_than_may_be(tmp_path: Path) -> None:
    async with market(tmp_path) as (_, (site,)):
        site.app.api.relay.under_way = 1_000
        refused = await site.ask("/v1/accounts/anna")
        assert (refused.status, refused.body["error"]) == (429, "overloaded") and refused.headers["Retry-After"]
        site.app.api.relay.under_way = 0


async def test_history_is_a_nodes_and_without_one_the_newest_that_was_seen(tmp_path: Path) -> None:
    async with market(tmp_path) as (solo, (site,)):
        await trades(solo, qty=3)
        await site.reaches(solo.log.index)
        found = await site.ask("/v1/history/trades")
        assert "source" not in found.body and found.body["items"][0]["qty"] == "3"
        site.app.api.relay._nodes = lambda: [NOWHERE]
        seen = await site.ask("/v1/history/trades")
        assert (seen.body["source"], seen.body["past_gone"]) == ("gateway", True)
        row, of_node = seen.body["items"][0], found.body["items"][0]
        assert {name: row[name] for name in of_node} == of_node
        paged = await site.ask("/v1/history/trades?page_token=1")
        assert (paged.status, paged.body["error"]) == (503, "read_timeout")
