"""Three real members: what a client held at one node goes on at another when that one is killed or told to go."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cluster.launcher import run_down
from tests.node.solo import Client
from tests.node.test_cluster import BUY, REPLICAS, Group

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def run(tmp_path: Path, talk: Callable[[Group], Awaitable[None]]) -> None:
    """A fresh cluster with a market in it, for one conversation."""

    async def main() -> None:
        async with asyncio.timeout(90):
            await group.list_market()
            try:
                await talk(group)
            finally:
                await group.close()

    group = Group(tmp_path / "cluster")
    try:
        for name in group.members:
            group.launcher.start(name, die_with_us=True)
        group.launcher.wait_ready(timeout_ms=30_000)
        asyncio.run(main())
    finally:
        run_down(group.launcher)


async def sides(group: Group) -> tuple[str, str]:
    """(leader, the other replica)."""
    leader = await group.leader()
    return leader, next(name for name in REPLICAS if name != leader)


def url(group: Group, member: str, path: str) -> str:
    where = group.members[member]
    return f"http://{where.api_host}:{where.api_port}{path}"


@asynccontextmanager
async def stream(group: Group, member: str, path: str = "/v1/stream", role: str = "trader") -> AsyncIterator[Client]:
    accounts = ("alice",) if role == "trader" else ("*",)
    headers = {"Authorization": f"Bearer {group.token(role, *accounts)}"}
    session = await group.session()
    async with session.ws_connect(url(group, member, path), headers=headers) as socket:
        yield Client(socket)


def event_ids(pages: list[dict[str, Any]]) -> list[str]:
    return [event["position"] for page in pages for event in page["events"]]


def index_of(position: str) -> int:
    return int(position.split(".")[2])


async def feed(group: Group, member: str, after: str) -> list[dict[str, Any]]:
    """All pages behind a position, small ones."""
    pages: list[dict[str, Any]] = []
    while not pages or pages[-1]["events"]:
        status, page = await group.once(
            member, "GET", f"/v1/feed?after={after}&limit=3", role="auditor", accounts=("*",)
        )
        assert status == 200, page
        pages.append(page)
        after = page["next"]
    return pages


@pytest.mark.parametrize("at_the_leader", [True, False])
def test_guarded_orders_die_when_the_node_that_held_the_socket_is_killed(tmp_path: Path, at_the_leader: bool) -> None:
    async def talk(group: Group) -> None:
        leader, other = await sides(group)
        held, left = (leader, other) if at_the_leader else (other, leader)
        async with stream(group, held) as client:
            await client.hear("authorization")
            guard = {"action": "cancel_on_disconnect", "account": "alice", "timeout_ms": 1_000, "key": "guard"}
            await client.say(guard)
            await client.hear("cancel_on_disconnect")
            order = {"do": "place", "key": "guarded", "session": "guard", **BUY}
            (answer,) = await client.submit(order)
            assert answer["status"] == "new", answer
            free = await group.do("POST", "/v1/orders", body=BUY, key="free", members=(left,))
            # Longer than the time-out: while the socket lives the session is kept alive.
            await asyncio.sleep(1.5)
            assert (await group.do("GET", f"/v1/orders/{answer['id']}", members=(left,)))["status"] == "new"
            group.launcher.kill(held)
            view: dict[str, Any] = {}
            for _ in range(100):
                view = await group.do("GET", f"/v1/orders/{answer['id']}", members=(left,))
                if view["status"] != "new":
                    break
                await asyncio.sleep(0.1)
            assert (view["status"], view["reason"]) == ("canceled", "session_expired")
            assert (await group.do("GET", f"/v1/orders/{free['id']}", members=(left,)))["status"] == "new"

    run(tmp_path, talk)


def test_a_session_token_is_good_at_the_other_node_however_far_that_is_behind(tmp_path: Path) -> None:
    async def talk(group: Group) -> None:
        leader, other = await sides(group)
        session = await group.session()
        bearer = {"Authorization": f"Bearer {group.token('trader', 'alice')}"}
        for number in range(5):
            group.launcher.signal(other, signal.SIGSTOP)
            try:
                headers = {**bearer, "Idempotency-Key": f"k{number}"}
                async with session.post(url(group, leader, "/v1/orders"), json=BUY, headers=headers) as response:
                    assert response.status == 200
                    told, index = response.headers["X-Session-Token"], int(response.headers["X-Log-Index"])
                    order = await response.json()
            finally:
                group.launcher.signal(other, signal.SIGCONT)
            headers = {**bearer, "X-Session-Token": told}
            async with session.get(url(group, other, f"/v1/orders/{order['id']}"), headers=headers) as response:
                answer = await response.json()
                assert response.status == 200, answer
                assert int(response.headers["X-Log-Index"]) >= index
                assert answer["status"] == "new"

    run(tmp_path, talk)


def test_the_feed_goes_on_at_the_other_node_without_gap_or_repeat(tmp_path: Path) -> None:
    async def talk(group: Group) -> None:
        leader, other = await sides(group)
        seen: list[str] = []
        position = "0.1.0.0"
        async with stream(group, leader, f"/v1/feed?after={position}", role="auditor") as follower:

            async def follow() -> None:
                nonlocal position
                while True:
                    message = await follower.ws.receive()
                    if message.type is not aiohttp.WSMsgType.TEXT:
                        return
                    page = json.loads(message.data)
                    position = page["position"]
                    seen.extend(event_ids([page] if page["stream"] == "feed" else []))

            following = asyncio.create_task(follow())
            keys = [f"k{number}" for number in range(60)]
            placing = [asyncio.create_task(group.do("POST", "/v1/orders", body=BUY, key=key)) for key in keys]
            await asyncio.sleep(0.05)
            group.launcher.kill(leader)
            await asyncio.gather(*placing)
            await following
        rest = event_ids(await feed(group, other, position))
        whole = event_ids(await feed(group, other, "0.1.0.0"))
        assert seen, "the follower should have had something before the kill"
        assert seen + rest == whole

    run(tmp_path, talk)


def test_a_drained_stream_says_where_to_go_on_and_the_other_node_does(tmp_path: Path) -> None:
    async def talk(group: Group) -> None:
        leader, other = await sides(group)
        async with stream(group, leader) as client:
            await client.hear("authorization")
            await client.say({"action": "listen"})
            await client.hear("listening")
            await client.submit({"do": "place", "key": "one", **BUY})
            heard = await client.hear("order_updates")
            group.launcher.signal(leader, signal.SIGTERM)
            closing = await client.hear("closing", timeout_s=10)
            assert closing["reason"] == "draining"
            message = await client.ws.receive(timeout=10)
            assert (message.type, client.ws.close_code) == (aiohttp.WSMsgType.CLOSE, 1012)
            assert f"resume={closing['resume']}" in str(message.extra)
        two = await group.do("POST", "/v1/orders", body=BUY, key="two", members=(other,))
        async with stream(group, other) as client:
            await client.say({"action": "listen", "after": closing["resume"]})
            missed = await client.hear("order_updates")
            assert [event["client_order_id"] for event in missed["events"] if "client_order_id" in event] == ["two"]
            assert index_of(missed["position"]) > index_of(heard["position"])
        assert two["status"] == "new"

    run(tmp_path, talk)


def test_a_trace_goes_through_the_follower_to_the_leaders_batch(tmp_path: Path) -> None:
    async def talk(group: Group) -> None:
        leader, other = await sides(group)
        session = await group.session()
        headers = {
            "Authorization": f"Bearer {group.token('trader', 'alice')}",
            "Idempotency-Key": "traced",
            "traceparent": f"00-{TRACE}-{SPAN}-01",
        }
        async with session.post(url(group, other, "/v1/orders"), json=BUY, headers=headers) as response:
            assert response.status == 200
            assert response.headers["traceparent"].split("-")[1] == TRACE
        spans: dict[str, dict[str, Any]] = {}
        for _ in range(50):
            lines = [line for name in REPLICAS for line in group.folder.log(name).read_text("utf-8").splitlines()]
            spans = {one["name"]: one for one in map(json.loads, lines) if one["event"] == "span"}
            if len(spans) == 4:
                break
            await asyncio.sleep(0.05)
        assert {one["trace_id"] for one in spans.values()} == {TRACE}
        chain = ["POST /v1/orders", "submit", "take in", "batch"]
        assert [spans[name]["member"] for name in chain] == [other, other, leader, leader]
        parents = [SPAN] + [spans[name]["span_id"] for name in chain]
        assert [spans[name]["parent_id"] for name in chain] == parents[:-1]

    run(tmp_path, talk)
