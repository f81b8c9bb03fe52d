"""Order entry over a WebSocket through a gateway: frames unchanged, a lost node told as unknown and replaced."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from cluster.client import Client as Library
from cluster.client import Done, Unknown
from cluster.consensus.engine import Role
from cluster.wire import PlaceOrder
from gateway.api.sockets import passage, streams
from node.auth import Authenticator, issue_token
from tests.gateway.api.sites import Site, market, sites, until, url
from tests.node.fakes import PRIVATE_PEM
from tests.node.solo import Client, SharedLog, Solo, bearer, command, list_market, order, token

PATH = "/v1/orders/stream"
KEY = "x" * 22 + "=="
UPGRADE: dict[str, Any] = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec_WebSocket_Key": KEY,
    "Sec_WebSocket_Version": "13",
}


async def stream(site: Site, role: str = "trader", *accounts: str, **options: Any) -> Client:
    options.setdefault("headers", bearer(role, *(accounts or ("anna",))))
    return Client(await site.session.ws_connect(site.url + PATH, **options))


async def ends(client: Client, within_s: float = 5.0) -> tuple[int | None, str]:
    """Read to the end; the code that the client sees, and the reason."""
    async with asyncio.timeout(within_s):
        while (message := await client.ws.receive()).type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
            client.told.append(json.loads(message.data))
    return client.ws.close_code, str(message.extra or "")


def cut(solo: Solo) -> None:
    """Drop all connections to a node's streams, without a word."""
    for one in list(solo.streams.connections):
        one.channel.abort()


@asynccontextmanager
async def pair(root: Path) -> AsyncIterator[tuple[Solo, Solo, Site]]:
    """Two nodes with one log and a gateway before them; the first leads, and is the nearer."""
    log = SharedLog()
    async with Solo(root / "a", log=log) as one, Solo(root / "b", follows=log) as other:
        await list_market(one, "anna", "bert")
        async with sites(url(one), url(other)) as (site,):
            await site.reaches(one.log.index)
            yield one, other, site


async def fall(one: Solo, other: Solo) -> None:
    """The first node is gone, the other leads."""
    other.log.changed(role=Role.leader, leader=other.log.member, term=2)
    await one.app._listener.close()
    cut(one)


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
async def test_frames_pass_unchanged_both_ways(encoding: str, tmp_path: Path) -> None:
    async with market(tmp_path) as (solo, (site,)):
        gateway = await stream(site, protocols=(f"tiebreak.{encoding}",))
        node = await solo.stream("trader", "anna", protocols=(f"tiebreak.{encoding}",))
        assert gateway.ws.protocol == f"tiebreak.{encoding}"
        placed = order("buy", 1, "90.00")
        for number, commands in enumerate(
            ([placed], [placed], [placed | {"qty": "7"}], [{"do": "cancel", "key": "c-1"}], [{"do": "nonsense"}]), 1
        ):
            frame = {"action": "submit", "id": number, "commands": commands}
            heard = []
            for client in (gateway, node):
                if encoding == "json":
                    await client.ws.send_str(json.dumps(frame))
                else:
                    await client.ws.send_bytes(msgspec.msgpack.encode(frame))
                heard.append((await client.hear("results"))["results"])
            if number == 1:
                assert heard[0][0]["status"] == "new" and "replay" not in heard[0][0]
                heard[0][0]["replay"] = True
            for (answer,) in heard:
                answer.pop("index", None)  # a refusal of a rule is an entry of its own
            assert heard[0] == heard[1]
        assert (await gateway.hear("heartbeat")) == (await node.hear("heartbeat"))
        await gateway.ws.send_str("{")
        assert await ends(gateway) == (1007, "malformed")
        await node.close()
        await until(lambda: not solo.streams.connections)  # the node's side ended with it


async def test_private_events_and_sessions_are_the_nodes(tmp_path: Path) -> None:
    async with market(tmp_path) as (solo, (site,)):
        anna = await stream(site)
        await anna.say({"action": "listen"})
        assert (await anna.hear("listening"))["accounts"] == ["anna"]
        await anna.say({"action": "cancel_on_disconnect", "account": "anna", "timeout_ms": 60_000, "key": "s-1"})
        assert (await anna.hear("cancel_on_disconnect"))["open"]
        ((placed),) = await anna.submit(order("buy", 1, "90.00") | {"session": "s-1"})
        while (await anna.hear("order_updates"))["events"][0].get("order_id") != placed["id"]:
            pass  # that the session opened is an event too
        await anna.close()  # a client that leaves takes its orders along, at once
        await until(lambda: not solo.streams.connections)
        order_path = f"/v1/orders/{placed['id']}"
        async with asyncio.timeout(5):
            while (await site.ask(order_path)).body["status"] != "canceled":
                pass


async def test_a_node_lost_with_frames_under_way_is_told_as_unknown_and_replaced(tmp_path: Path) -> None:
    async with pair(tmp_path) as (one, other, site):
        anna = await stream(site)
        await anna.say({"action": "listen"})
        await anna.hear("listening")
        (first,) = await anna.submit(order("buy", 1, "90.00"))
        seen = (await anna.hear("order_updates"))["position"]
        one.log.hold = True
        lost = order("buy", 2, "91.00")
        lost["client_order_id"] = lost.pop("key")
        await anna.say({"action": "submit", "id": 8, "commands": [lost, {"do": "cancel", "client_order_id": 5}]})
        await anna.say({"action": "submit", "id": 9, "commands": [command("cancel", order_id=first["id"])]})
        await until(lambda: bool(one.log.held))
        await fall(one, other)
        told = {answer["id"]: answer for answer in [await anna.hear("results"), await anna.hear("results")]}
        assert [(said.get("key", ""), said["error"], said["code"]) for said in told[8]["results"]] == [
            (lost["client_order_id"], "outcome_unknown", 50301022),
            ("", "outcome_unknown", 50301022),
        ]
        assert "ask" in told[9]["results"][0]["message"]
        # The same stream goes on elsewhere: the same key, an answer; private events behind the last one told.
        (again,) = await anna.submit(lost, number=10)
        assert again["status"] == "new" and "replay" not in again
        assert (await anna.hear("listening"))["position"] >= seen
        (event,) = (await anna.hear("order_updates"))["events"]
        assert event["order_id"] == again["id"]
        assert not [one for one in anna.told if one["stream"] in ("authorization", "closing")][1:]
        assert site.app.api.streams.counters["lost"] == 1 and site.app.api.streams.counters["unknown"] == 3
        await anna.close()
        one.log.hold = False


async def test_a_node_that_leaves_in_order_is_replaced_and_nothing_is_unknown(tmp_path: Path) -> None:
    async with pair(tmp_path) as (one, other, site):
        anna = await stream(site)
        await anna.submit(order("buy", 1, "90.00"))
        other.log.changed(role=Role.leader, leader=other.log.member, term=2)
        one.node.draining = True
        await one.streams.drain(timeout_ms=200)
        (answer,) = await anna.submit(order("buy", 1, "91.00"))
        assert answer["status"] == "new"
        assert [each["stream"] for each in anna.told if each["stream"] != "heartbeat"] == ["authorization"]
        assert site.app.api.streams.counters["left"] == 1
        await anna.close()


async def test_a_stream_with_a_session_ends_with_its_node(tmp_path: Path) -> None:
    async with pair(tmp_path) as (one, other, site):
        anna = await stream(site)
        await anna.say({"action": "cancel_on_disconnect", "account": "anna", "timeout_ms": 60_000, "key": "s-1"})
        await anna.hear("cancel_on_disconnect")
        await fall(one, other)
        code, reason = await ends(anna)
        assert code == 1012 and reason.startswith("node_lost")


async def test_without_a_node_new_frames_are_told_that_they_were_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passage, "LOOK_FOR_S", 0.3)
    async with market(tmp_path) as (solo, (site,)):
        anna = await stream(site)
        await anna.hear("authorization")
        await solo.app._listener.close()
        cut(solo)
        await until(lambda: site.app.api.streams.counters["lost"] == 1)
        with solo.unchanged():
            await anna.say({"action": "submit", "id": 3, "commands": [order("buy", 1, "90.00") | {"key": "k-3"}]})
            (answer,) = (await anna.hear("results"))["results"]
            assert (answer["key"], answer["error"], answer["code"]) == ("k-3", "no_node", 50301051)
            code, reason = await ends(anna)
        assert (code, reason) == (1013, "no_node")
        refused = await site.ask(PATH, **UPGRADE)
        assert (refused.status, refused.body["error"]) == (503, "no_node")


async def test_a_node_that_falls_silent_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passage, "SILENT_S", 0.3)
    async with pair(tmp_path) as (one, other, site):
        anna = await stream(site)
        other.log.changed(role=Role.leader, leader=other.log.member, term=2)
        one.node.draining = True  # takes no new streams, and says nothing
        for connection in one.streams.connections:
            connection.channel._queue = []
            connection.channel.send = lambda data, opcode: None  # type: ignore[method-assign]
        await anna.say({"action": "submit", "id": 1, "commands": [order("buy", 1, "90.00") | {"key": "k-1"}]})
        (answer,) = (await anna.hear("results"))["results"]
        assert (answer["key"], answer["error"]) == ("k-1", "outcome_unknown")
        await anna.close()


async def test_refusals_before_the_upgrade_are_the_nodes_own(tmp_path: Path) -> None:
    async with market(tmp_path) as (solo, (site,)):
        solo.node.ready = False
        relayed = await site.ask(PATH, **UPGRADE)
        sent = {name.replace("_", "-"): value for name, value in UPGRADE.items()} | bearer("trader", "anna")
        async with solo.client.get("/v1/stream", headers=sent) as response:
            said = await response.json()
        assert (relayed.status, relayed.headers["X-Relayed-From"]) == (response.status, url(solo)) == (503, url(solo))
        del said["request_id"], relayed.body["request_id"]
        assert relayed.body == said and relayed.headers["Retry-After"] == response.headers["Retry-After"]
        solo.node.ready = True
        plain = await site.ask(PATH)
        assert (plain.status, plain.body["error"]) == (400, "malformed")
        bad = await site.ask(PATH, bearer="nonsense", **UPGRADE)
        assert (bad.status, bad.body["error"]) == (401, "unauthenticated")
        old = await site.ask(PATH, **UPGRADE | {"Sec_WebSocket_Version": "12"})
        assert (old.status, old.body["error"]) == (400, "malformed")
        await until(lambda: not solo.streams.connections and not site.app.api.streams._of_user)


async def test_a_first_message_may_say_who_it_is_and_nodes_hear_of_no_stranger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "AUTHENTICATE_S", 0.3)
    monkeypatch.setattr(streams, "STRANGERS_MAX", 2)
    async with market(tmp_path) as (solo, (site,)):
        anna = await stream(site, headers={})
        await anna.say({"action": "authenticate", "token": token("trader", "anna")})
        assert (await anna.submit(order("buy", 1, "90.00")))[0]["status"] == "new"
        await anna.close()
        await until(lambda: not solo.streams.connections)
        for first in ('{"action": "ping"}', '{"action": "authenticate", "token": "x"}', "{", b"\xc1", None):
            stranger = await stream(site, headers={})
            if isinstance(first, bytes):
                await stranger.ws.send_bytes(first)
            elif first is not None:
                await stranger.ws.send_str(first)
            message = await stranger.ws.receive(5)
            said = json.loads(message.data) if isinstance(first, str | None) else msgspec.msgpack.decode(message.data)
            assert said["error"] == "unauthenticated" and not solo.streams.connections
            assert (await ends(stranger))[0] == 4401
        held = [await stream(site, headers={}) for _ in range(2)]
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await stream(site, headers={})
        assert refused.value.status == 429
        for one in held:
            await one.close()


async def test_streams_and_frames_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with market(tmp_path, limits="streams_per_user_max = 2") as (_, (site,)):
        held = [await stream(site) for _ in range(2)]
        refused = await site.ask(PATH, **UPGRADE)
        assert (refused.status, refused.body["error"]) == (429, "overloaded")
        monkeypatch.setattr(streams, "STREAMS_MAX", 2)
        with pytest.raises(aiohttp.WSServerHandshakeError) as full:
            await stream(site, headers=bearer("auditor"))
        assert full.value.status == 429
        await held[0].ws.send_str("x" * (1 << 20) + "x")
        assert (await ends(held[0]))[0] == 1009
        await until(lambda: len(site.app.api.streams.open) == 1)
        held[0] = await stream(site)  # there is room again
        for one in held:
            await one.close()


async def test_who_reads_nothing_slows_itself_and_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passage, "STALL_S", 0.5)
    async with market(tmp_path) as (_, (site,)):
        reader, writer = await asyncio.open_connection("127.0.0.1", site.config.listen.port, limit=1024)
        head = (
            f"GET {PATH} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13"
        )
        key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
        writer.write(f"{head}\r\n{key}\r\nAuthorization: Bearer {token('trader', 'anna')}\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        frame = json.dumps({"action": "submit", "id": 1, "commands": [{"do": "x"}] * 400}).encode()
        masked = b"\x81\xfe" + len(frame).to_bytes(2, "big") + bytes(4) + frame
        for _ in range(400):  # each answer is several times its question
            writer.write(masked)
        await until(lambda: site.app.api.streams.counters["slow"] == 1, within_s=20)
        await until(lambda: not site.app.api.streams.open, within_s=10)
        writer.close()
        assert (await site.ask("/v1/accounts/anna")).status == 200


async def test_no_more_are_under_way_than_a_node_would_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passage, "COMMANDS_UNDER_WAY_MAX", 1)
    async with market(tmp_path) as (solo, (site,)):
        anna = await stream(site)
        await anna.hear("authorization")
        solo.log.hold = True
        for number in (1, 2, 3):
            await anna.say({"action": "submit", "id": number, "commands": [order("buy", 1, "90.00")]})
        (taken,) = site.app.api.streams.open
        await until(lambda: taken.under_way == 2)
        await asyncio.sleep(0.1)
        assert taken.under_way == 2  # the third waits at the client's socket
        solo.log.release()
        assert sorted([(await anna.hear("results"))["id"] for _ in range(3)]) == [1, 2, 3]
        await anna.close()


async def test_a_token_that_no_node_takes_any_more_ends_the_stream(tmp_path: Path) -> None:
    async with pair(tmp_path) as (one, other, site):
        short = issue_token(PRIVATE_PEM, subject="anna", role="trader", accounts=("anna",), lifetime_s=2)
        late, anna = [await stream(site, headers={"Authorization": f"Bearer {short}"}) for _ in range(2)]
        await anna.say({"action": "authenticate", "token": token("trader", "anna", subject="anna")})
        await anna.submit(order("buy", 1, "90.00"))
        assert await ends(late) == (4401, "unauthenticated")  # the node's own goodbye, where the token ran out
        await fall(one, other)
        await until(lambda: site.app.api.streams.counters["lost"] == 1)
        (answer,) = await anna.submit(order("buy", 1, "91.00"))  # the newer token is good at the next node
        assert answer["status"] == "new"
        other.node.authenticator = Authenticator([])
        cut(other)
        assert (await ends(anna))[0] == 4401


async def test_a_gateway_that_leaves_answers_what_is_under_way_and_says_goodbye(tmp_path: Path) -> None:
    async with market(tmp_path) as (solo, (site,)):
        anna, idle = await stream(site), await stream(site)
        solo.log.hold = True
        placed = order("buy", 1, "90.00")
        await anna.say({"action": "submit", "id": 1, "commands": [placed]})
        await until(lambda: bool(solo.log.held))
        draining = asyncio.create_task(site.app.api.streams.drain(timeout_ms=2_000))
        assert (await ends(idle))[0] == 1012
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await stream(site)
        solo.log.release()
        (answer,) = (await anna.hear("results"))["results"]
        assert answer["status"] == "new"
        assert (await anna.hear("closing"))["reason"] == "draining"
        assert (await ends(anna))[0] == 1012
        await draining


async def test_what_a_gateway_that_leaves_can_not_wait_for_is_unknown(tmp_path: Path) -> None:
    async with market(tmp_path) as (solo, (site,)):
        anna = await stream(site)
        solo.log.hold = True
        await anna.say({"action": "submit", "id": 1, "commands": [order("buy", 1, "90.00") | {"key": "k-1"}]})
        await until(lambda: bool(solo.log.held))
        await site.app.api.streams.drain(timeout_ms=3_000)
        (answer,) = (await anna.hear("results"))["results"]
        assert (answer["key"], answer["error"]) == ("k-1", "outcome_unknown")
        assert (await ends(anna))[0] == 1012
        solo.log.release()


async def test_the_client_library_needs_no_other_address(tmp_path: Path) -> None:
    async with pair(tmp_path) as (one, other, site):
        async with Library([site.url], token=token("trader", "anna"), timeout_ms=8_000) as client:
            placed = await client.place_order(symbol="AAPL-USD", side="buy", qty=1, limit_price="90.00")
            assert isinstance(placed, Done)
            async with client.stream() as entry:
                await entry.listen()
                requests = [msgspec.convert(order("buy", 1, "91.00"), PlaceOrder) for _ in range(3)]
                assert all(isinstance(done, Done) for done in await entry.submit(requests[:2]))
                one.log.hold = True
                waiting = asyncio.create_task(entry.submit(requests[2:]))
                await until(lambda: bool(one.log.held))
                await fall(one, other)
                (done,) = await waiting  # unknown at first, then sent again with its key, through the same gateway
                assert isinstance(done, Done) and entry.resent == 1
                told = [await asyncio.wait_for(entry.next_update(), 5) for _ in range(2)]  # one of each log entry
                assert [len(update.events) for update in told] == [2, 1] and told[0].position < told[1].position
            assert (await client.account("anna")).open_orders == 4
            assert [health.view is not None for health in await client.members()] == [True]
            assert not isinstance(await client.command(placed.key, account="anna"), Unknown)
        one.log.hold = False


async def serves(site: Site) -> None:
    """Wait for worker processes."""
    async with asyncio.timeout(20):
        while True:
            try:
                if (await site.ask("/readyz", bearer="")).status == 200:
                    return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)


async def test_workers_hand_streams_to_the_core_and_drain_with_it(tmp_path: Path) -> None:
    async with market(tmp_path, workers=1, limits="streams_per_user_max = 2") as (solo, (site,)):
        assert site.app._guard.limits.connections_per_address_max == site.app._guard.limits.connections_max
        await serves(site)
        anna = await stream(site, protocols=("tiebreak.msgpack",))
        assert anna.ws.protocol == "tiebreak.msgpack" and "Via" not in anna.ws._response.headers
        commands = [order("buy", 1, "90.00") for _ in range(500)]  # more than one read of a socket, both ways
        assert [answer["status"] for answer in await anna.submit(*commands)] == ["new"] * 500
        stranger = await stream(site, headers={})
        await stranger.say({"action": "authenticate", "token": token("trader", "anna")})
        assert (await stranger.hear("authorization"))["accounts"] == ["anna"]
        for version, status, word in (("13", 429, "overloaded"), ("12", 400, "malformed")):
            refused = await site.ask(PATH, **UPGRADE | {"Sec_WebSocket_Version": version})
            assert (refused.status, refused.body["error"]) == (status, word)
            assert refused.headers["Connection"] == "close"
        with_body = await site.ask(PATH, body={}, **UPGRADE)
        assert (with_body.status, with_body.body["error"]) == (400, "malformed")
        await stranger.ws.send_str("{")
        assert (await ends(stranger))[0] == 1007
        solo.log.hold = True
        await anna.say({"action": "submit", "id": 7, "commands": [order("buy", 1, "90.00")]})
        await until(lambda: bool(solo.log.held))
        leaving = asyncio.create_task(site.app.drain())
        await until(lambda: site.app.api.streams.draining)
        solo.log.release()
        assert (await anna.hear("results"))["id"] == 7
        assert (await anna.hear("closing"))["reason"] == "draining"
        assert (await anna.ws.receive(5)).type is aiohttp.WSMsgType.CLOSE and anna.ws.close_code == 1012
        await leaving


async def test_streams_that_are_being_opened_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "STREAMS_MAX", 1)
    async with market(tmp_path) as (_, (site,)):
        mine, go = site.app.api.streams, asyncio.Event()
        dial = mine._dialer.dial

        async def slowly(*words: Any) -> Any:
            await go.wait()
            return await dial(*words)

        monkeypatch.setattr(mine._dialer, "dial", slowly)
        first = asyncio.create_task(stream(site))
        await until(lambda: bool(mine._of_user))
        with pytest.raises(aiohttp.WSServerHandshakeError) as full:
            async with asyncio.timeout(1):
                await stream(site, headers=bearer("auditor"))
        assert full.value.status == 429
        go.set()
        await (await first).close()


async def test_a_stream_that_is_opened_while_the_gateway_leaves_is_sent_away(tmp_path: Path) -> None:
    async with market(tmp_path) as (solo, (site,)):
        late = await stream(site, headers={})
        await site.app.api.streams.drain(timeout_ms=100)
        await late.say({"action": "authenticate", "token": token("trader", "anna")})
        assert await ends(late) == (1012, "draining")
        await until(lambda: not solo.streams.connections)


@pytest.mark.parametrize("in_order", [False, True])
async def test_who_asks_for_it_is_sent_away_with_its_node_and_nothing_overtakes(in_order: bool, tmp_path: Path) -> None:
    async with pair(tmp_path) as (one, other, site):
        headers = bearer("trader", "anna")
        anna = Client(await site.session.ws_connect(f"{site.url}{PATH}?on_node_lost=close", headers=headers))
        await anna.say({"action": "listen"})
        await anna.hear("listening")
        await anna.say({"action": "listen"})
        await anna.hear("listening")
        one.log.hold = True
        await anna.say({"action": "submit", "id": 1, "commands": [order("buy", 1, "90.00")]})
        await until(lambda: bool(one.log.held))
        if in_order:
            other.log.changed(role=Role.leader, leader=other.log.member, term=2)
            one.node.draining = True
            await one.streams.drain(timeout_ms=200)
        else:
            await fall(one, other)
        with other.unchanged():
            await anna.say({"action": "submit", "id": 2, "commands": [order("buy", 1, "91.00")]})
            code, reason = await ends(anna)
        assert code == 1012 and reason.startswith("draining" if in_order else "node_lost") and "resume=" in reason
        assert [said["stream"] for said in anna.told if said["stream"] not in ("heartbeat", "authorization")] == (
            ["closing"] if in_order else []
        )
        one.log.hold = False
        bad = await site.ask(f"{PATH}?on_node_lost=other", **UPGRADE)
        assert (bad.status, bad.body["error"], bad.body["field"]) == (422, "invalid_field", "on_node_lost")
