"""The stream: order entry in frames, private events with resume, cancel on disconnect, and what it refuses."""

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from node import stream
from node.channel import CLOSE_MALFORMED, CLOSE_SHUTDOWN, CLOSE_UNAUTHENTICATED
from tests.node.solo import Client, Solo, command, list_market, order, run, token


def test_a_frame_of_orders_is_answered_in_its_order(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice", "bob")
            alice = await solo.stream("trader", "alice")
            authorized = await alice.hear("authorization")
            assert authorized == {
                "stream": "authorization", "status": "authorized", "role": "trader", "accounts": ["alice"],
            }  # fmt: skip
            answers = await alice.submit(
                order("sell", 10, "5.01"), order("sell", 5, "5.02"), order("sell", 1, "5.005"), number=7
            )
            assert [one.get("status", one.get("error")) for one in answers] == ["new", "new", "invalid_field"]
            assert answers[2]["field"] == "limit_price"
            bob = await solo.stream("trader", "bob")
            (bought,) = await bob.submit(order("buy", 12, "5.02"))
            assert (bought["status"], bought["filled_qty"]) == ("filled", "12")
            repeat = order("buy", 1, "1.00")
            first, again = await bob.submit(repeat, repeat)
            assert (first["id"], "replay" in first, again["id"], again["replay"]) == (
                again["id"], False, first["id"], True,
            )  # fmt: skip

    run(talk())


def test_msgpack_by_subprotocol_or_by_binary_frames(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice")
            for options in ({"protocols": ("tiebreak.msgpack",)}, {}):
                client = await solo.stream("trader", "alice", **options)
                frame = {"action": "submit", "id": 3, "commands": [order("sell", 1, "9.00")]}
                await client.ws.send_bytes(msgspec.msgpack.encode(frame))
                answers = await client.hear("results")
                assert answers["results"][0]["status"] == "new"
                assert solo.node.session_tokens.read(answers["session_token"]) == solo.log.index

    run(talk())


def test_one_bad_command_does_not_end_the_others(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice")
            client = await solo.stream("trader", "alice")
            good = order("sell", 1, "9.00")
            bad = {**order("sell", 1, "9.00"), "colour": "red"}
            answers = await client.submit(good, bad, {"do": "fly"}, {**good, "qty": [1]})
            assert [one.get("error", "") for one in answers] == ["", "malformed", "malformed", "malformed"]
            assert answers[1]["field"] == "colour"
            assert answers[1]["key"] == bad["key"]

    run(talk())


HOSTILE = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'{"action":"submit"}',
    b'{"action":"jump"}',
    b'{"action":"submit","id":1,"commands":[]}',
    b'{"action":"submit","id":-1,"commands":[{}]}',
    b'{"action":"submit","id":1,"commands":[{}],"extra":1}',
    b'{"action":"submit","id":1e400,"commands":[{}]}',
    b'{"action":"listen","accounts":["' + b"a" * 65 + b'"]}',
    b'{"action":"ping","id":' + b"9" * 4_000 + b"}",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    '{"action":"ping","id":\u0661}'.encode(),
    b'{"action":"\xff\xfe"}',
]
BOMBS = [
    b"\xdd\xff\xff\xff\xff",  # an array of 2**32 - 1
    b"\xdf\xff\xff\xff\xff",  # a map of as many
    b"\xdb\xff\xff\xff\xff",  # a text of 4 GiB
    b"\xc6\xff\xff\xff\xff",  # bytes of 4 GiB
    b"\x91" * 100_000,
    b"\x81" * 100_000,
    b"\x83\xa6action\xa6submit\xa2id\x01\xa8commands\xdd\xff\xff\xff\xff",
    b"\x83\xa6action\xa6submit\xa2id\x01\xa8commands\x91\xdf\xff\xff\xff\xff",
    b"\x83\xa6action\xa6submit\xa2id\x01\xa8commands\x91\x81\xa2do\xdb\xff\xff\xff\xff",
    b"\xc1",
    b"\xd4\x00\x00",
]


def test_malformed_frames_are_told_so_and_the_stream_ends(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            with solo.unchanged():
                frames = [(data, aiohttp.WSMsgType.TEXT) for data in HOSTILE]
                frames += [(data, aiohttp.WSMsgType.BINARY) for data in (*HOSTILE[:6], *BOMBS)]
                for data, kind in frames:
                    client = await solo.stream("trader", "alice")
                    await client.ws.send_frame(data, kind)
                    if b"\xff\xfe" not in data:
                        error = await client.hear("error")
                        assert error["error"] in ("malformed", "invalid_field"), (data[:60], error)
                        assert error["code"] // 100_000 in (400, 422)
                    with pytest.raises(ConnectionError):
                        await client.hear("nothing")
                    assert client.ws.close_code == CLOSE_MALFORMED

    run(talk())


def test_a_frame_that_is_too_large_ends_the_stream(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            with solo.unchanged():
                client = await solo.stream("trader", "alice")
                await client.ws.send_bytes(bytes(2 * 1024 * 1024))
                with pytest.raises(ConnectionError):
                    await client.hear("nothing")
                assert client.ws.close_code == 1009

    run(talk())


def test_a_stream_may_authenticate_in_its_first_message(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice")
            client = await solo.stream(headers={})
            await client.say({"action": "authenticate", "token": token("trader", "alice")})
            await client.hear("authorization")
            assert (await client.submit(order("sell", 1, "9.00")))[0]["status"] == "new"
            await client.say({"action": "authenticate", "token": token("trader", "alice", subject="other")})
            assert (await client.hear("error"))["error"] == "unauthenticated"
            for first in ({"action": "ping"}, {"action": "authenticate", "token": "x"}):
                stranger = await solo.stream(headers={})
                await stranger.say(first)
                assert (await stranger.hear("error"))["error"] == "unauthenticated"
                with pytest.raises(ConnectionError):
                    await stranger.hear("nothing")
                assert stranger.ws.close_code == CLOSE_UNAUTHENTICATED
            with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
                await solo.stream(headers={"Authorization": "Bearer x"})

    run(talk())


def test_foreign_accounts_are_like_none(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice", "bob")
            bob = await solo.stream("trader", "bob")
            (sold,) = await bob.submit(order("sell", 1, "9.00"))
            alice = await solo.stream("trader", "alice")
            with solo.unchanged():
                theirs = await alice.submit(order("sell", 1, "9.00", account="bob"))
                none = await alice.submit(order("sell", 1, "9.00", account="no-one"))
                assert [{**one[0], "key": ""} for one in (theirs,)] == [{**one[0], "key": ""} for one in (none,)]
                assert theirs[0]["error"] == "account_not_found"
                for account in ("bob", "no-one"):
                    await alice.say({"action": "listen", "accounts": [account]})
                    assert (await alice.hear("error"))["error"] == "account_not_found"
            canceled, missing = await alice.submit(
                command("cancel", order_id=sold["id"]), command("cancel", order_id="987654")
            )
            assert canceled["error"] == missing["error"] == "order_not_found"
            assert (await bob.submit(command("cancel", order_id=sold["id"])))[0]["status"] == "canceled"

    run(talk())


def test_a_flood_of_frames_lets_others_have_their_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = 0
    seen: list[int] = []
    take = stream.Connection._take

    def slow(connection: stream.Connection, data: bytes) -> bool:
        seen.append(turns)
        time.sleep(stream.TURN_S)
        return take(connection, data)

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            client = await solo.stream("trader", "alice")
            await client.hear("authorization")
            monkeypatch.setattr(stream.Connection, "_take", slow)
            beside = asyncio.create_task(others())
            for number in range(30):
                await client.ws.send_bytes(msgspec.msgpack.encode({"action": "ping", "id": number}))
            while len(seen) < 30:
                await client.ws.receive()
            beside.cancel()
        assert len(set(seen)) == 30, "frames that had come together were taken without a pause"

    run(talk())


def test_a_burst_after_a_pause_is_taken_as_one(tmp_path: Path) -> None:
    """The pause is no time in which others were kept waiting."""

    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice")
            client = await solo.stream("trader", "alice")
            await client.hear("authorization")
            batches = solo.node.submitter.batcher.batches
            for _ in range(5):
                await asyncio.sleep(2 * stream.TURN_S)
                connection = next(iter(solo.streams.connections))
                frames = [
                    msgspec.json.encode({"action": "submit", "id": number, "commands": [order("sell", 1, "9.00")]})
                    for number in range(4)
                ]
                reader = connection.socket._reader
                assert reader is not None
                for frame in frames:
                    reader.feed_data(aiohttp.WSMessage(aiohttp.WSMsgType.TEXT, frame, None), len(frame))
                for _ in frames:
                    await client.hear("results")
            assert solo.node.submitter.batcher.batches == batches + 5

    run(talk())


def test_private_events_show_one_side_only(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice", "bob")
            alice, bob = await solo.stream("trader", "alice"), await solo.stream("trader", "bob")
            for client in (alice, bob):
                await client.say({"action": "listen"})
                await client.hear("listening")
            await alice.submit(order("sell", 10, "5.00"))
            opened = (await alice.hear("order_updates"))["events"]
            assert [(one["event"], one["qty"], one["limit_price"]) for one in opened] == [("new", "10", "5")]
            await bob.submit(order("buy", 4, "6.00"))
            mine = (await alice.hear("order_updates"))["events"]
            theirs = (await bob.hear("order_updates"))["events"]
            fill = next(one for one in mine if "fill" in one["event"])
            assert (fill["event"], fill["side"], fill["liquidity"], fill["price"], fill["qty"], fill["leaves_qty"]) == (
                "partial_fill", "sell", "maker", "5", "4", "6",
            )  # fmt: skip
            assert [one["event"] for one in theirs if one["event"] in ("new", "fill", "filled")] == [
                "new", "fill", "filled",
            ]  # fmt: skip
            assert "bob" not in json.dumps(mine)
            assert "alice" not in json.dumps(theirs)

    run(talk())


def test_a_renewed_token_does_not_lose_accounts_that_are_listened_to(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice", "bob")
            client = await solo.stream("trader", "alice", "bob")
            await client.say({"action": "listen"})
            await client.hear("listening")
            await client.say({"action": "authenticate", "token": token("trader", "bob", "alice", "carol")})
            assert (await client.hear("authorization"))["accounts"] == ["alice", "bob"]
            assert (await client.hear("authorization"))["accounts"] == ["alice", "bob", "carol"]
            await client.say({"action": "authenticate", "token": token("trader", "alice")})
            assert (await client.hear("error"))["error"] == "unauthenticated"
            with pytest.raises(ConnectionError, match="4401"):
                await client.hear("authorization")

    run(talk())


def test_listening_resumes_without_gap_or_repeat(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice", "bob")
            trader = await solo.stream("trader", "alice")
            seen: list[str] = []
            after = "0.1.0.0"
            for _ in range(6):
                await trader.submit(order("sell", 1, "9.00"), order("sell", 2, "9.00"))
                solo.flush()
                listener = await solo.stream("trader", "alice")
                await listener.say({"action": "listen", "after": after})
                await listener.hear("listening")
                await trader.submit(order("sell", 1, "9.00"))
                while solo.log.index > int(after.split(".")[2]):
                    updates = await listener.hear("order_updates")
                    seen += [one["position"] for one in updates["events"]]
                    after = updates["position"]
                await listener.close()
            everything = await solo.stream("trader", "alice")
            await everything.say({"action": "listen", "after": "0.1.0.0"})
            whole: list[str] = []
            while len(whole) < len(seen):
                whole += [one["position"] for one in (await everything.hear("order_updates"))["events"]]
            assert seen == whole
            assert len(set(seen)) == len(seen)

    run(talk())


def test_positions_of_other_epochs_and_nonsense_are_refused(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            client = await solo.stream("trader", "alice")
            for after, word in (("0.2.5.0", "epoch_changed"), ("x", "invalid_field"), ("1.1.5.0", "invalid_field")):
                await client.say({"action": "listen", "after": after})
                assert (await client.hear("error"))["error"] == word

    run(talk())


def test_guarded_orders_die_with_the_connection(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice")
            watcher = await solo.stream("trader", "alice")
            await watcher.say({"action": "listen"})
            await watcher.hear("listening")
            client = await solo.stream("trader", "alice")
            guard = {"action": "cancel_on_disconnect", "account": "alice", "timeout_ms": 60_000, "key": "desk"}
            await client.say(guard)
            assert (await client.hear("cancel_on_disconnect"))["open"]
            guarded, other = await client.submit(order("sell", 1, "9.00", session="desk"), order("sell", 1, "9.00"))
            client.ws._response.connection.transport.abort()  # type: ignore[union-attr]
            events: list[dict[str, Any]] = []
            while not any(one["event"] == "canceled" for one in events):
                events += (await watcher.hear("order_updates"))["events"]
            canceled = [one for one in events if one["event"] == "canceled"]
            assert [(one["order_id"], one["reason"]) for one in canceled] == [(guarded["id"], "session_closed")]
            assert solo.node.machine.order(int(other["id"])) is not None

    run(talk())


def test_a_session_that_would_beat_too_often_is_refused_and_the_stream_goes_on(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice")
            client = await solo.stream("trader", "alice")
            guard = {"action": "cancel_on_disconnect", "account": "alice", "timeout_ms": 100, "key": "desk"}
            for timeout_ms in (1, 100, 999):
                await client.say({**guard, "timeout_ms": timeout_ms})
                error = await client.hear("error")
                assert (error["error"], error["field"]) == ("invalid_field", "timeout_ms")
                assert f"timeout_ms is {timeout_ms}; it must be at least 1000" in error["message"]
            await client.say({**guard, "timeout_ms": 1_000})
            assert (await client.hear("cancel_on_disconnect"))["open"]

    run(talk())


def test_a_drained_stream_keeps_its_guarded_orders(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice")
            clients = [await solo.stream("trader", "alice") for _ in range(5)]
            guard = {"action": "cancel_on_disconnect", "account": "alice", "timeout_ms": 60_000, "key": "desk"}
            await clients[0].say(guard)
            await clients[0].hear("cancel_on_disconnect")
            (guarded,) = await clients[0].submit(order("sell", 1, "9.00", session="desk"))
            draining = asyncio.create_task(solo.streams.drain(timeout_ms=1_000))
            for client in clients:
                assert (await client.hear("closing"))["reason"] == "draining"
                with pytest.raises(ConnectionError, match="resume="):
                    await client.hear("nothing")
                assert client.ws.close_code == CLOSE_SHUTDOWN
            await draining
            assert solo.node.machine.order(int(guarded["id"])) is not None

    run(talk())


def test_a_taken_up_session_goes_on(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice")
            guard = {"action": "cancel_on_disconnect", "account": "alice", "timeout_ms": 60_000, "key": "desk"}
            for _ in range(2):
                client = await solo.stream("trader", "alice")
                await client.say(guard)
                assert (await client.hear("cancel_on_disconnect"))["session"] == "desk"
            foreign = await solo.stream("trader", "bob")
            await foreign.say(guard)
            assert (await foreign.hear("error"))["error"] == "account_not_found"

    run(talk())


def test_a_slow_consumer_is_cut_off_with_a_place_to_resume(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path, stream_buffer_bytes_max=100_000) as solo:
            await list_market(solo, "alice", shares="1000000")
            slow = await solo.stream("trader", "alice")
            await slow.say({"action": "listen"})
            await slow.hear("listening")
            (connection,) = [one for one in solo.streams.connections if one.position]
            transport = slow.ws._response.connection.transport  # type: ignore[union-attr]
            transport.pause_reading()
            # The kernel would take megabytes first.
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            server_side = connection.channel._transport
            server_side.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
            trader = await solo.stream("trader", "alice")
            async with asyncio.timeout(20):
                while not connection.channel.is_cut:
                    await trader.submit(*[order("sell", 1, "9.00") for _ in range(200)])
            assert connection.position.startswith("0.1.")
            assert solo.node.metrics.registry.get_sample_value(
                "tiebreak_slow_consumers_total", {"channel": "stream"}
            ) == 1.0  # fmt: skip
            # The others go on.
            assert (await trader.submit(order("sell", 1, "9.00")))[0]["status"] == "new"

    run(talk())


def test_the_rate_limit_leaves_room_for_cancels(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path, rate_per_s=1, rate_burst=20) as solo:
            await list_market(solo, "alice")
            client = await solo.stream("trader", "alice")
            (first,) = await client.submit(order("sell", 1, "9.00"))
            answers = await client.submit(*[order("sell", 1, "9.00") for _ in range(30)])
            words = [one.get("error", "") for one in answers]
            assert words == [""] * words.count("") + ["rate_limited"] * words.count("rate_limited")
            assert 0 < words.count("") < 21
            (canceled,) = await client.submit(command("cancel", order_id=first["id"]))
            assert canceled["status"] == "canceled"

    run(talk())


def test_pings_heartbeats_and_numbers_that_are_no_numbers(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice")
            client = await solo.stream("trader", "alice")
            await client.say({"action": "ping", "id": 5})
            assert await client.hear("pong") == {"stream": "pong", "id": 5}
            assert "stream" in await client.hear("heartbeat")
            with solo.unchanged():
                wrong = [float("nan"), float("inf"), -1.5, 1e30, "1e30", "NaN", "\u0661", "1,5", "", "0x10", "-0"]
                for number, qty in enumerate(wrong):
                    commands = [order("sell", 1, "9.00") | {"qty": qty}]
                    frame = {"action": "submit", "id": number, "commands": commands}
                    await client.ws.send_bytes(msgspec.msgpack.encode(frame))
                    (answer,) = (await client.hear("results"))["results"]
                    assert answer["error"] in ("invalid_field", "malformed"), qty
                    assert answer["field"] == "qty"
                (answer,) = await client.submit(order("sell", 10**50, "9.00"))
                assert (answer["error"], answer["field"]) == ("invalid_field", "qty")

    run(talk())


def test_two_hundred_frames_under_way_come_back_whole(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice", shares="100000")
            client: Client = await solo.stream("trader", "alice")
            for number in range(200):
                await client.say({"action": "submit", "id": number, "commands": [order("sell", 1, "9.00")] * 2})
            seen = {(await client.hear("results"))["id"] for _ in range(200)}
            assert seen == set(range(200))
            assert not solo.streams.connections or all(one.in_flight == 0 for one in solo.streams.connections)

    run(talk())
