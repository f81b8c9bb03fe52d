"""Whatever strangers send is answered with a clear 4xx, changes nothing and breaks nothing."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster import wire
from node.bodies import Reader
from node.channel import CLOSE_MALFORMED, CLOSE_UNAUTHENTICATED
from node.errors import InvalidField, Malformed
from tests.node.solo import Solo, bearer, list_market, order, run

TRADER = bearer("trader", "alice")
PLACE: dict[str, Any] = {
    "symbol": "AAPL-USD", "side": "buy", "type": "limit", "qty": "1", "limit_price": "1.00", "client_order_id": "c-1",
}  # fmt: skip

# field, value, the field that the answer names
FIELDS: list[tuple[str, Any, str]] = [
    ("limit_price", "1e30", "limit_price"),
    ("limit_price", 1e30, "limit_price"),
    ("limit_price", 10**40, "limit_price"),
    ("limit_price", 10**60, "limit_price"),
    ("limit_price", "-1", "limit_price"),
    ("limit_price", -1, "limit_price"),
    ("limit_price", "0", "limit_price"),
    ("limit_price", "1.001", "limit_price"),
    ("limit_price", "NaN", "limit_price"),
    ("limit_price", "Infinity", "limit_price"),
    ("limit_price", "1_0", "limit_price"),
    ("limit_price", " 1", "limit_price"),
    ("limit_price", "\u0661", "limit_price"),
    ("limit_price", "\uff11", "limit_price"),
    ("limit_price", "1\u200b", "limit_price"),
    ("limit_price", "9" * 41, "limit_price"),
    ("limit_price", True, "limit_price"),
    ("limit_price", {}, "limit_price"),
    ("qty", "0.5", "qty"),
    ("qty", 0.5, "qty"),
    ("qty", -1, "qty"),
    ("qty", 0, "qty"),
    ("qty", "10000000000000", "qty"),
    ("qty", [1], "qty"),
    ("side", "BUY", "side"),
    ("side", 1, "side"),
    ("type", "stop", "type"),
    ("time_in_force", "forever", "time_in_force"),
    ("symbol", "A" * 65, "symbol"),
    ("symbol", "\u0410APL-USD", "symbol"),  # a Cyrillic A
    ("symbol", "aapl-usd", "symbol"),
    ("symbol", "AAPL\u200b-USD", "symbol"),
    ("symbol", "AAPL-USD\x00", "symbol"),
    ("symbol", "../AAPL-USD", "symbol"),
    ("symbol", "", "symbol"),
    ("symbol", None, "symbol"),
    ("client_order_id", "a" * 65, "client_order_id"),
    ("client_order_id", "a b", "key"),
    ("client_order_id", "caf\u00e9", "key"),
    ("client_order_id", "", "key"),
    ("expires_at", "yesterday", "expires_at"),
    ("expires_at", "9999-12-31T23:59:59Z", "expires_at"),
    ("expires_at", "2026-02-30T00:00:00Z", "expires_at"),
    ("sent_at", "2026-01-01", "sent_at"),
    ("post_only", "yes", "post_only"),
    ("self_trade", "fight", "self_trade"),
    ("colour", "red", "colour"),
    ("account", "a" * 65, "account"),
    ("do", "cancel", "do"),
]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"side": "hold"}, "side: Invalid enum value 'hold', not one of buy, sell"),
        ({"type": "stop"}, "type: Invalid enum value 'stop', not one of limit, market"),
        ({"time_in_force": "gty"}, "time_in_force: Invalid enum value 'gty', not one of day, fok, gtc, gtd, ioc"),
        ({"symbol": "A" * 65}, "symbol: Expected `str` of length <= 64"),
    ],
)
def test_the_bound_is_said(body: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidField) as refused:
        Reader[Any](wire.PlaceOrder).read(msgspec.json.encode({**PLACE, **body}))
    assert (refused.value.message, refused.value.field) == (message, next(iter(body)))


def test_the_words_of_a_frame_and_of_keys_are_said_too() -> None:
    unknown = {"action": "submit", "id": 1, "commands": [{"do": "nope"}]}
    with pytest.raises(Malformed, match="not one of place, replace, cancel, cancel_all, open_account, "):
        Reader[Any](wire.AnyAction).read(msgspec.json.encode(unknown))
    weekly = {"weekly": {"mno": {"open": "09:00", "close": "10:00"}}}
    with pytest.raises(InvalidField, match="not one of fri, mon, sat, sun, thu, tue, wed"):
        Reader[Any](wire.CalendarBody).read(msgspec.json.encode(weekly))


def test_every_bad_field_is_named_and_changes_nothing(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice")
            with solo.unchanged():
                for field, value, named in FIELDS:
                    for encode, kind in ((msgspec.json.encode, "json"), (msgspec.msgpack.encode, "msgpack")):
                        if kind == "msgpack" and isinstance(value, int) and value >= 2**64:
                            continue
                        headers = {**TRADER, "Content-Type": f"application/{kind}"}
                        async with solo.client.post(
                            "/v1/orders", data=encode({**PLACE, field: value}), headers=headers
                        ) as response:  # fmt: skip
                            said = json.loads(await response.text())
                        assert response.status in (400, 404, 422), (field, value, said)
                        assert said["code"] // 100_000 == response.status
                        assert said["field"] == named, (field, value, said)
                        assert said["message"]
            async with solo.client.post("/v1/orders", json=PLACE, headers=TRADER) as response:
                assert response.status == 200, await response.text()

    run(talk())


def test_floats_that_json_can_not_say(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice")
            with solo.unchanged():
                for value in (float("nan"), float("inf"), float("-inf"), -0.0, 5e-324):
                    headers = {**TRADER, "Content-Type": "application/msgpack"}
                    body = msgspec.msgpack.encode({**PLACE, "limit_price": value})
                    async with solo.client.post("/v1/orders", data=body, headers=headers) as response:
                        assert (response.status, (await response.json())["field"]) == (422, "limit_price"), value

    run(talk())


def test_foreign_accounts_can_be_neither_read_nor_told_from_none(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice", "bob")
            bob = await solo.stream("trader", "bob")
            (sold,) = await bob.submit(order("sell", 1, "9.00"))
            paths = [
                ("GET", "/v1/accounts/{}"), ("GET", "/v1/orders?account={}"), ("GET", "/v1/ledger?account={}"),
                ("GET", "/v1/trades?account={}"), ("GET", "/v1/commands/k1?account={}"),
                ("DELETE", "/v1/orders?account={}"),
            ]  # fmt: skip
            for method, path in paths:
                said = []
                for account in ("bob", "nobody", "@world", "@fees"):
                    headers = {**TRADER, "Idempotency-Key": "foreign"}
                    async with solo.client.request(method, path.format(account), headers=headers) as response:
                        body = json.loads(await response.text())
                        said.append((response.status, body["error"], body["message"], body["code"]))
                assert said[0][:2] == (404, "account_not_found"), (path, said)
                assert len(set(said)) == 1, (path, said)
            answers = []
            for order_id in (sold["id"], "987654321"):
                async with solo.client.get(f"/v1/orders/{order_id}", headers=TRADER) as response:
                    answers.append((response.status, (await response.json())["message"]))
            assert answers[0] == answers[1]

    run(talk())


# ---- anything at all ----

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=70),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
WORDS = st.sampled_from(
    ["", "AAPL-USD", "USD", "AAPL", "alice", "buy", "sell", "limit", "market", "gtd", "fok", "0.01", "1", "-1", "1e9",
     "NaN", "\u0661", "\ud7ff", "0", "99999999999999999999", "2026-01-01T00:00:00Z", "trading", "deposit", "09:30"]
)  # fmt: skip
HOURS = {"open": "09:30", "close": "16:00"}
# do -> role, door, a body that is taken
VALID: dict[str, tuple[str, tuple[str, str], dict[str, Any]]] = {
    "place": ("trader", ("POST", "/v1/orders"), {
        "symbol": "AAPL-USD", "side": "sell", "type": "limit", "qty": "1", "limit_price": "9.00",
        "time_in_force": "gtc", "post_only": False, "self_trade": "decrement", "session": "", "expires_at": "",
    }),
    "replace": ("trader", ("PATCH", "/v1/orders/1"), {"order_id": "1", "qty": 3, "limit_price": 8.5}),
    "cancel": ("trader", ("DELETE", "/v1/orders/1"), {"order_id": "1"}),
    "cancel_all": ("trader", ("DELETE", "/v1/orders"), {"symbol": "AAPL-USD"}),
    "open_account": ("custodian", ("POST", "/v1/accounts"), {"keys_max": 10}),
    "transfer": ("custodian", ("POST", "/v1/transfers"), {
        "kind": "deposit", "account": "alice", "asset": "USD", "amount": "1.5", "target": "",
    }),
    "close_withdrawal": ("custodian", ("POST", "/v1/transfers/1"), {"withdrawal_id": "1", "post": True}),
    "add_asset": ("operator", ("POST", "/v1/assets"), {"asset": "EUR", "scale": 2, "supply_max": "1000000"}),
    "add_instrument": ("operator", ("POST", "/v1/instruments"), {
        "symbol": "AAPL-EUR", "base": "AAPL", "quote": "EUR", "tick_size": "0.01", "lot_size": 1, "maker_bps": 1,
        "limits": {"qty_min": "1", "qty_max": 100, "band_bps": 50}, "calendar": {"weekly": {"mon": HOURS}},
    }),
    "change_instrument": ("operator", ("PATCH", "/v1/instruments/AAPL-USD"), {"mode": "trading"}),
    "reference": ("feed", ("POST", "/v1/references"), {
        "symbol": "AAPL-USD", "price": "9.01", "observed_at": "2026-01-01T00:00:00Z",
    }),
}  # fmt: skip


@st.composite
def nearly(draw: st.DrawFn) -> dict[str, Any]:
    """A request that would be taken, with up to two fields changed, dropped or added."""
    do = draw(st.sampled_from(sorted(VALID)))
    body = {"do": do, "key": f"f{draw(st.integers(1, 10**12))}", **VALID[do][2]}
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(sorted(body)) | st.sampled_from(["account", "sent_at", "notional", "limits", "x"]))
        if draw(st.integers(0, 4)):
            body[name] = draw(WORDS | st.integers(-(2**70), 2**70) | st.floats() | JSON)
        else:
            body.pop(name, None)
    return body


def encoded(body: Any, kind: str) -> bytes:
    if kind == "json":
        return json.dumps(body).encode("utf-8", "surrogatepass")
    try:
        return msgspec.msgpack.encode(body)
    except (OverflowError, UnicodeEncodeError, msgspec.MsgspecError):
        return b"\xc1"


ROLES = {"trader": ("alice",), "custodian": ("*",), "operator": (), "feed": (), "auditor": ()}


class Loop:
    """One node for all examples of a test."""

    def __init__(self, folder: Path) -> None:
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.solo = Solo(folder, rate_per_s=10**8, rate_burst=10**8)
        self.do(self.solo.__aenter__())
        self.do(list_market(self.solo, "alice"))

    def do(self, work: Any) -> Any:
        return self.runner.run(work)

    def close(self) -> None:
        self.do(self.solo.__aexit__())
        self.runner.close()


@pytest.fixture
def loop(tmp_path: Path) -> Any:
    loop = Loop(tmp_path)
    yield loop
    loop.close()


FUZZ = settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))


def test_no_body_breaks_a_door(loop: Loop) -> None:
    statuses: dict[int, int] = {}

    async def knock(door: tuple[str, str], role: str, body: bytes, kind: str, key: str) -> None:
        headers = {**bearer(role, *ROLES[role]), "Content-Type": f"application/{kind}"}
        if door[0] == "DELETE":
            headers["Idempotency-Key"] = key
        async with loop.solo.client.request(*door, data=body, headers=headers) as response:
            said = msgspec.json.decode(await response.read())
        statuses[response.status] = statuses.get(response.status, 0) + 1
        assert response.status < 500, said
        if response.status >= 400:
            assert said["code"] // 100_000 == response.status
            assert said["error"]
            assert said["message"]

    @FUZZ
    @given(
        nearly() | nearly() | JSON | st.binary(max_size=200), st.sampled_from(["json", "msgpack"]), st.integers(0, 9)
    )
    def body(content: Any, kind: str, other: int) -> None:
        do = content.get("do") if isinstance(content, dict) else None
        role, door, _ = VALID[do if isinstance(do, str) and do in VALID and other else "place"]
        raw = content if isinstance(content, bytes) else encoded(content, kind)
        loop.do(knock(door, role if other > 1 else "trader", raw, kind, f"d{len(raw)}.{other}"))

    body()
    assert not loop.solo.failures
    assert statuses[200] > FUZZ.max_examples / 50, f"hardly any request got past the door: {statuses}"


def test_no_frame_breaks_the_stream(loop: Loop) -> None:
    ids = iter(range(10**9))

    async def say(role: str, frame: bytes, opcode: aiohttp.WSMsgType) -> None:
        client = await loop.solo.stream(role, *ROLES[role])
        await client.ws.send_frame(frame, opcode)
        await client.ws.send_str('{"action":"ping","id":77}')
        try:
            while (await client.hear("pong"))["id"] != 77:
                pass
            for message in client.told:
                assert "InternalError" not in str(message)
                for one in message.get("results", ()):
                    assert one.get("error") != "internal_error", one
        except ConnectionError:
            assert client.ws.close_code in (CLOSE_MALFORMED, CLOSE_UNAUTHENTICATED), client.ws.close_code
            assert any(message["stream"] == "error" for message in client.told)
        finally:
            await client.close()

    fields_of_actions = st.sampled_from(["accounts", "after", "account", "timeout_ms", "key", "token", "id"])
    actions = st.sampled_from(["submit", "listen", "cancel_on_disconnect", "ping", "authenticate", "x"])

    @FUZZ
    @given(
        st.sampled_from(sorted(ROLES)), actions, st.lists(nearly() | JSON, max_size=4),
        st.dictionaries(fields_of_actions, JSON | WORDS),
        st.booleans(), st.none() | st.binary(max_size=100),
    )  # fmt: skip
    def frame(
        role: str, action: str, commands: list[Any], fields: dict[str, Any], text: bool, junk: bytes | None
    ) -> None:
        body: dict[str, Any] = {"action": action, **fields}
        if action == "submit":
            body = {
                "action": action,
                "id": next(ids),
                "commands": commands,
                **{k: v for k, v in fields.items() if k == "timeout_ms"},
            }
        raw = junk if junk is not None else encoded(body, "json" if text else "msgpack")
        loop.do(say(role, raw, aiohttp.WSMsgType.TEXT if text else aiohttp.WSMsgType.BINARY))

    frame()
    assert not loop.solo.failures


def test_no_query_breaks_a_read(loop: Loop) -> None:
    paths = [
        "/v1/orders", "/v1/orders/1", "/v1/orders:by_client_order_id", "/v1/accounts", "/v1/accounts/alice",
        "/v1/ledger", "/v1/instruments", "/v1/instruments/AAPL-USD", "/v1/book/AAPL-USD", "/v1/trades",
        "/v1/commands/k1", "/v1/feed", "/v1/feed/snapshot", "/v1/status", "/v1/assets",
    ]  # fmt: skip
    names = st.sampled_from(
        ["account", "symbol", "status", "limit", "page_token", "depth", "consistency", "client_order_id", "after", "x"]
    )

    async def ask(path: str, role: str, params: dict[str, str], token: str) -> None:
        headers = bearer(role, *ROLES[role])
        if token:
            headers["X-Session-Token"] = token
        async with loop.solo.client.get(path, params=params, headers=headers) as response:
            body = await response.read()
        assert response.status < 500, (path, params, body)

    @FUZZ
    @given(
        st.sampled_from(paths), st.sampled_from(sorted(ROLES)),
        st.dictionaries(names, WORDS | st.text(max_size=30) | st.integers().map(str), max_size=4),
        st.sampled_from(["", "", "x", "A" * 42]),
    )  # fmt: skip
    def query(path: str, role: str, params: dict[str, str], token: str) -> None:
        safe = {name: value.encode("utf-8", "replace").decode() for name, value in params.items()}
        with loop.solo.unchanged():
            loop.do(ask(path, role, safe, token))

    query()
    assert not loop.solo.failures
