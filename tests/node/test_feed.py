"""The feed: no gap and no repeat over reconnects between replicas, snapshot and tail, and who is cut off or refused."""

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from node.channel import CLOSE_EPOCH_CHANGED, CLOSE_SHUTDOWN, CLOSE_SNAPSHOT_REQUIRED, CLOSE_UNAUTHENTICATED
from node.feed_snapshot import SNAPSHOTS_MAX
from statemachine.codec import decode_events
from tests.node.solo import Client, SharedLog, Solo, bearer, list_market, order, run, token

AUDITOR = bearer("auditor")


async def page(solo: Solo, after: str = "0.1.0.0", status: int = 200, **query: Any) -> dict[str, Any]:
    params = {"after": after, **{name: str(value) for name, value in query.items()}}
    async with solo.client.get("/v1/feed", params=params, headers=AUDITOR) as response:
        assert response.status == status, await response.text()
        return json.loads(await response.read())  # type: ignore[no-any-return]


async def follow(solo: Solo, after: str = "", **options: Any) -> Client:
    options.setdefault("headers", AUDITOR)
    path = f"/v1/feed?after={after}" if after else "/v1/feed"
    return Client(await solo.client.ws_connect(path, **options))


def whole(solo: Solo) -> list[str]:
    """The position of every event that the store holds, in order."""
    return [
        f"0.1.{batch.index}.{seq}"
        for batch in solo.node.history.events_after(0, bytes_max=1 << 30)
        for seq, _ in enumerate(decode_events(batch.events))
    ]


async def trade(solo: Solo, rounds: int) -> None:
    alice, bob = await solo.stream("trader", "alice"), await solo.stream("trader", "bob")
    for _ in range(rounds):
        await alice.submit(order("sell", 3, "5.00"), order("sell", 1, "7.00"))
        await bob.submit(order("buy", 3, "5.00"), order("buy", 1, "1.00"))
    await alice.close()
    await bob.close()


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 500])
def test_pages_of_any_size_hold_every_event_once(tmp_path: Path, limit: int) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice", "bob")
            await trade(solo, 3)
            solo.flush()
            await trade(solo, 2)
            seen: list[str] = []
            after = "0.1.0.0"
            while (got := await page(solo, after, limit=limit))["events"]:
                assert len(got["events"]) <= limit
                seen += [event["position"] for event in got["events"]]
                after = got["next"]
            assert seen == whole(solo)
            # A position in the middle, as an event names it, goes on right behind that event.
            middle = len(seen) // 2
            assert (await page(solo, seen[middle], limit=1))["events"][0]["position"] == seen[middle + 1]

    run(talk())


def test_a_page_as_lines(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice")
            headers = AUDITOR | {"Accept": "application/x-ndjson"}
            async with solo.client.get("/v1/feed?after=0.1.0.0", headers=headers) as response:
                assert response.content_type == "application/x-ndjson"
                events = [json.loads(line) for line in (await response.text()).splitlines()]
                assert [event["type"] for event in events][:3] == ["asset_added", "asset_added", "instrument_changed"]
                assert (await page(solo, response.headers["X-Next-Position"]))["events"] == []

    run(talk())


def test_waiting_for_news(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice")
            now = (await page(solo, ""))["next"]
            assert (await page(solo, now, wait_ms=50))["events"] == []
            asking = asyncio.create_task(page(solo, now, wait_ms=5_000))
            await asyncio.sleep(0.05)
            client = await solo.stream("trader", "alice")
            await client.submit(order("sell", 1, "9.00"))
            assert [event["type"] for event in (await asking)["events"]] == ["order_opened"]

    run(talk())


def test_a_follower_that_moves_between_replicas_sees_every_event_once(tmp_path: Path) -> None:
    async def talk() -> None:
        log = SharedLog()
        async with Solo(tmp_path / "a", log=log) as one, Solo(tmp_path / "b", follows=log) as two:
            await list_market(one, "alice", "bob")
            seen: list[str] = []
            after = "0.1.0.0"
            trading = asyncio.create_task(trade(one, 40))
            for turn in range(12):
                replica = (one, two)[turn % 2]
                follower = await follow(replica, after)
                for _ in range(3):
                    try:
                        message = await follower.hear("feed", timeout_s=0.3)
                    except TimeoutError:
                        break  # the trading is over
                    seen += [event["position"] for event in message["events"]]
                    after = message["position"] if turn % 3 else seen[-1]
                if turn % 2:
                    await follower.close()
                else:
                    follower.ws._response.connection.transport.abort()  # type: ignore[union-attr]
                (one if turn % 3 else two).flush()
                if trading.done():
                    break
            await trading
            follower = await follow(two, after)
            while seen[-1:] != whole(one)[-1:]:
                seen += [event["position"] for event in (await follower.hear("feed"))["events"]]
            assert seen == whole(one) == whole(two)
            assert one.node.machine.digest == two.node.machine.digest

    run(talk())


async def read_snapshot(solo: Solo, limit: int = 2) -> tuple[str, dict[str, list[dict[str, Any]]]]:
    tables: dict[str, list[dict[str, Any]]] = {}
    token, position = "", ""
    while True:
        params = {"limit": str(limit)} | ({"page_token": token} if token else {})
        async with solo.client.get("/v1/feed/snapshot", params=params, headers=AUDITOR) as response:
            assert response.status == 200, await response.text()
            body = json.loads(await response.read())
        assert position in ("", body["position"]), "a snapshot moved between its pages"
        position = body["position"]
        tables.setdefault(body["table"], []).extend(body["rows"])
        if body["next_page_token"] is None:
            return position, tables
        token = body["next_page_token"]


class Follower:
    """Keeps cash, shares and open orders by events alone, from a snapshot on."""

    def __init__(self, tables: dict[str, list[dict[str, Any]]]) -> None:
        self.owned = {
            (row["account"], one["asset"]): round(float(one["available"]) + float(one["held"]), 2)
            for row in tables.get("accounts", ())
            for one in row["balances"]
            if not row["account"].startswith("@")
        }
        self.orders = {row["order_id"]: row["leaves_qty"] for row in tables.get("orders", ())}

    def move(self, account: str, asset: str, amount: float) -> None:
        if not account.startswith("@"):
            self.owned[account, asset] = round(self.owned.get((account, asset), 0.0) + amount, 2)

    def take(self, event: dict[str, Any]) -> None:
        if event["type"] == "transferred":
            self.move(event["source"], event["asset"], -float(event["amount"]))
            self.move(event["target"], event["asset"], float(event["amount"]))
        elif event["type"] == "order_opened":
            self.orders[event["order_id"]] = event["qty"]
        elif event["type"] == "traded":
            buyer, seller = event["taker_account"], event["maker_account"]
            if event["taker_side"] == "sell":
                buyer, seller = seller, buyer
            self.move(buyer, "AAPL", float(event["qty"]))
            self.move(seller, "AAPL", -float(event["qty"]))
            self.move(buyer, "USD", -float(event["notional"]))
            self.move(seller, "USD", float(event["notional"]))
            self.orders[event["taker_order_id"]] = event["taker_leaves_qty"]
            self.orders[event["maker_order_id"]] = event["maker_leaves_qty"]
        elif event["type"] == "order_closed":
            self.orders.pop(event["order_id"], None)


def test_a_snapshot_at_one_index_and_the_tail_are_the_whole_state(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice", "bob", "carol")
            await trade(solo, 5)
            solo.flush()
            trading = asyncio.create_task(trade(solo, 10))
            position, tables = await read_snapshot(solo)
            solo.flush()
            await trading
            assert [row["symbol"] for row in tables["instruments"]] == ["AAPL-USD"]
            follower = Follower(tables)
            while (got := await page(solo, position))["events"]:
                for event in got["events"]:
                    follower.take(event)
                position = got["next"]
            machine = solo.node.machine
            scales = {"USD": 100, "AAPL": 1}
            for account in ("alice", "bob", "carol"):
                record = machine.account(account)
                assert record is not None
                for asset, available, held in record.balances:
                    assert follower.owned[account, asset] * scales[asset] == pytest.approx(available + held)
            open_orders = [one for account in ("alice", "bob") for one in machine.open_orders(account)]
            assert follower.orders == {str(one.order_id): str(one.leaves_lots) for one in open_orders}
            assert open_orders

    run(talk())


def test_the_number_of_open_snapshots_is_bounded_and_forgotten_ones_close(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice")
            solo.flush()
            first = ""
            for turn in range(SNAPSHOTS_MAX + 1):
                async with solo.client.get("/v1/feed/snapshot?limit=1", headers=AUDITOR) as response:
                    body = await response.json()
                    assert response.status == (200 if turn < SNAPSHOTS_MAX else 429), body
                    first = first or body["next_page_token"]
            snapshots = solo.feed.snapshots
            now_s = snapshots._clock() + 3_600
            snapshots._clock = lambda: now_s
            params = {"page_token": first}
            async with solo.client.get("/v1/feed/snapshot", params=params, headers=AUDITOR) as response:
                assert (response.status, (await response.json())["error"]) == (410, "snapshot_required")
            assert len(snapshots) == 0
            for bad in ("x", "a.9.", "a.0.\u00e9", "a" * 300, "a.0.!!!"):
                async with solo.client.get(
                    "/v1/feed/snapshot", params={"page_token": bad}, headers=AUDITOR
                ) as response:
                    assert response.status in (410, 422), bad

    run(talk())


def test_a_past_that_is_gone_is_said_to_be_gone(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice")
            solo.node.history.first_event_index = 4  # as pruning leaves it
            error = await page(solo, "0.1.1.0", status=410)
            assert (error["error"], error["field"]) == ("snapshot_required", "after")
            error = await page(solo, "0.2.1.0", status=409)
            assert error["error"] == "epoch_changed"
            for after, code in (("0.1.1.0", CLOSE_SNAPSHOT_REQUIRED), ("0.2.1.0", CLOSE_EPOCH_CHANGED)):
                follower = await follow(solo, after)
                assert (await follower.hear("error"))["error"] in ("snapshot_required", "epoch_changed")
                with pytest.raises(ConnectionError):
                    await follower.hear("nothing")
                assert follower.ws.close_code == code
            for bad in ("x", "0.1.1", "0.1.1.-1", "0.1.1.1.1", "7.1.1.1", "0.1.\u0661.0", "9" * 100):
                assert (await page(solo, bad, status=409 if bad == "0.1.1" else 422))["field"] == "after"

    run(talk())


def test_only_an_auditor_may_follow(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            for path in ("/v1/feed", "/v1/feed/snapshot"):
                for role in ("trader", "custodian", "operator", "feed"):
                    async with solo.client.get(path, headers=bearer(role)) as response:
                        assert (response.status, (await response.json())["error"]) == (403, "forbidden")
                async with solo.client.get(path) as response:
                    assert response.status == 401
            for first in (token("trader", "alice"), "x"):
                follower = await follow(solo, headers={})
                await follower.say({"action": "authenticate", "token": first})
                assert (await follower.hear("error"))["error"] in ("forbidden", "unauthenticated")
                with pytest.raises(ConnectionError):
                    await follower.hear("nothing")
                assert follower.ws.close_code == CLOSE_UNAUTHENTICATED
            follower = await follow(solo, headers={})
            await follower.say({"action": "authenticate", "token": token("auditor")})
            assert (await follower.hear("heartbeat"))["position"].startswith("0.1.0.")

    run(talk())


def test_a_slow_follower_is_cut_off_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.feed.STALL_S", 0.3)

    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice", "bob", shares="1000000", cash="1000000")
            start = (await page(solo, ""))["next"]
            slow = await follow(solo, start)
            await slow.hear("heartbeat")
            (server_side,) = solo.feed.followers
            # The kernel would take megabytes first.
            server_side._req.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
            transport = slow.ws._response.connection.transport  # type: ignore[union-attr]
            transport.pause_reading()
            trader = await solo.stream("trader", "alice")
            async with asyncio.timeout(20):
                while solo.feed.followers:
                    await trader.submit(*[order("sell", 1, "9.00") for _ in range(250)])
            seen: list[str] = []
            transport.resume_reading()
            try:
                while True:
                    seen += [event["position"] for event in (await slow.hear("feed"))["events"]]
            except (ConnectionError, TimeoutError):
                pass
            again = await follow(solo, seen[-1] if seen else start)
            everything = whole(solo)
            while seen[-1:] != everything[-1:]:
                seen += [event["position"] for event in (await again.hear("feed"))["events"]]
            assert seen == everything[-len(seen) :]

    run(talk())


def test_draining_says_where_to_go_on(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice")
            follower = await follow(solo, "0.1.0.0")
            position = (await follower.hear("feed"))["position"]
            await solo.feed.drain(timeout_ms=500)
            assert await follower.hear("closing") == {"stream": "closing", "reason": "draining", "resume": position}
            with pytest.raises(ConnectionError, match="resume="):
                await follower.hear("nothing")
            assert follower.ws.close_code == CLOSE_SHUTDOWN

    run(talk())


def test_a_follower_that_talks_too_much_is_let_go(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            follower = await follow(solo)
            await follower.ws.send_bytes(b"x" * 9_000)
            with pytest.raises((ConnectionError, aiohttp.ClientError)):
                await follower.hear("nothing")

    run(talk())
