"""The HTTP API of one node, over a real connection: orders, accounts, markets, reads and refusals."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.node.fakes import Caller, make_config, running

BUY = {"symbol": "ACME-USD", "side": "buy", "type": "limit", "qty": "10", "limit_price": "99.50"}
SELL = {"symbol": "ACME-USD", "side": "sell", "type": "limit", "qty": "4", "limit_price": "99.50"}


def run(tmp_path: Path, talk: Any) -> None:
    async def main() -> None:
        async with running(make_config(tmp_path)) as caller:
            await caller.list_market()
            await talk(caller)

    asyncio.run(main())


def test_an_order_lives_from_placing_to_its_fill(tmp_path: Path) -> None:
    async def talk(caller: Caller) -> None:
        status, order, headers = await caller.call("POST", "/v1/orders", BUY, key="o-1")
        assert status == 200, order
        assert (order["status"], order["qty"], order["limit_price"]) == ("new", "10", "99.5")
        assert (order["client_order_id"], order["account"], order["leaves_qty"]) == ("o-1", "alice", "10")
        assert int(headers["X-Log-Index"]) > 0
        assert headers["X-Session-Token"]
        alice = await caller.ok("GET", "/v1/accounts/alice")
        assert alice["balances"] == [
            {"asset": "ACME", "available": "100", "held": "0"},
            {"asset": "USD", "available": "9005", "held": "995"},
        ]
        assert alice["open_orders"] == 1
        book = await caller.ok("GET", "/v1/book/ACME-USD")
        assert book["bids"] == [{"price": "99.5", "qty": "10", "orders": 1}]
        sold = await caller.ok("POST", "/v1/orders", SELL, accounts=("bob",))
        assert (sold["status"], sold["filled_qty"], sold["filled_avg_price"]) == ("filled", "4", "99.5")
        assert sold["filled_at"]
        now = await caller.ok("GET", f"/v1/orders/{order['id']}")
        assert (now["status"], now["filled_qty"], now["leaves_qty"]) == ("partially_filled", "4", "6")
        trades = await caller.ok("GET", "/v1/trades?symbol=ACME-USD")
        assert [(one["price"], one["qty"], one["taker_side"]) for one in trades["items"]] == [("99.5", "4", "sell")]
        assert "account" not in trades["items"][0]
        mine = await caller.ok("GET", "/v1/trades")
        assert (mine["items"][0]["side"], mine["items"][0]["liquidity"]) == ("buy", "maker")
        ledger = await caller.ok("GET", "/v1/ledger?limit=1")
        assert ledger["items"][0]["reason"] == "trade"
        assert ledger["next_page_token"]
        more = await caller.ok("GET", f"/v1/ledger?limit=500&page_token={ledger['next_page_token']}")
        assert len(more["items"]) == 3
        assert more["next_page_token"] is None

    run(tmp_path, talk)


def test_replace_and_cancel(tmp_path: Path) -> None:
    async def talk(caller: Caller) -> None:
        order = await caller.ok("POST", "/v1/orders", BUY)
        smaller = await caller.ok("PATCH", f"/v1/orders/{order['id']}", {"qty": "5"}, key="r-1")
        assert (smaller["qty"], smaller["replaces"], smaller["limit_price"]) == ("5", order["id"], "99.5")
        old = await caller.ok("GET", f"/v1/orders/{order['id']}")
        assert (old["status"], old["replaced_by"]) == ("replaced", smaller["id"])
        gone = await caller.ok("DELETE", f"/v1/orders/{smaller['id']}")
        assert (gone["status"], gone["leaves_qty"]) == ("canceled", "5")
        status, error, _ = await caller.call("DELETE", f"/v1/orders/{smaller['id']}")
        assert (status, error["error"], error["code"]) == (404, "order_not_found", 40400026)
        for price in ("98", "97", "96"):
            await caller.ok("POST", "/v1/orders", {**BUY, "limit_price": price})
        newest_first = await caller.ok("GET", "/v1/orders?limit=2")
        assert [one["limit_price"] for one in newest_first["items"]] == ["96", "97"]
        rest = await caller.ok("GET", f"/v1/orders?page_token={newest_first['next_page_token']}")
        assert [one["limit_price"] for one in rest["items"]] == ["98"]
        many = await caller.ok("DELETE", "/v1/orders?symbol=ACME-USD")
        assert (many["count"], many["status"]) == (3, "done")
        everything = await caller.ok("GET", "/v1/orders?status=all")
        assert [one["status"] for one in everything["items"]] == ["canceled"] * 4 + ["replaced"]

    run(tmp_path, talk)


def test_a_guessed_page_token_opens_nobody_elses_list(tmp_path: Path) -> None:
    async def talk(caller: Caller) -> None:
        theirs = await caller.ok("POST", "/v1/orders", {**SELL, "limit_price": "101"}, accounts=("bob",))
        await caller.ok("DELETE", f"/v1/orders/{theirs['id']}", accounts=("bob",))
        mine = await caller.ok("POST", "/v1/orders", BUY)
        await caller.ok("DELETE", f"/v1/orders/{mine['id']}")
        for status in ("closed", "all"):
            token = f"c{mine['id']}"
            page = await caller.ok("GET", f"/v1/orders?status={status}&page_token={token}")
            assert [one["id"] for one in page["items"]] == [mine["id"]]
            code, error, _ = await caller.call("GET", f"/v1/orders?status={status}&page_token=c{theirs['id']}")
            assert (code, error.get("error"), error.get("field")) == (422, "invalid_field", "page_token"), error

    run(tmp_path, talk)


def test_a_key_is_good_for_one_request(tmp_path: Path) -> None:
    async def talk(caller: Caller) -> None:
        order = await caller.ok("POST", "/v1/orders", BUY, key="same")
        status, again, headers = await caller.call("POST", "/v1/orders", BUY, key="same")
        assert (status, again["id"], again["replay"]) == (200, order["id"], True)
        assert headers["Idempotency-Replayed"] == "true"
        status, error, _ = await caller.call("POST", "/v1/orders", {**BUY, "qty": "11"}, key="same")
        assert (status, error["error"], error["key"]) == (409, "key_reused", "same")
        status, error, _ = await caller.call("POST", "/v1/orders", BUY, key="")
        assert (status, error["error"]) == (400, "key_required")
        status, error, _ = await caller.call("POST", "/v1/orders", {**BUY, "client_order_id": "a"}, key="b")
        assert (status, error["error"], error["field"]) == (422, "invalid_field", "client_order_id")
        status, error, _ = await caller.call("POST", "/v1/orders", {**BUY, "key": "a"}, key="b")
        assert (status, error["error"], error["field"]) == (422, "invalid_field", "key")
        named = await caller.ok("POST", "/v1/orders", {**BUY, "client_order_id": "mine"}, key="")
        found = await caller.ok("GET", "/v1/orders:by_client_order_id?client_order_id=mine")
        assert found["id"] == named["id"]
        told = await caller.ok("GET", "/v1/commands/mine")
        assert (told["id"], told["status"], told["replay"]) == (named["id"], "new", True)
        status, error, _ = await caller.call("GET", "/v1/commands/never")
        assert (status, error["error"]) == (404, "command_not_found")
        # A refusal is kept under its key as well.
        poor = {**BUY, "qty": "1000"}
        status, error, headers = await caller.call("POST", "/v1/orders", poor, key="poor")
        assert (status, error["error"]) == (403, "insufficient_funds")
        assert "Idempotency-Replayed" not in headers
        status, error, headers = await caller.call("POST", "/v1/orders", poor, key="poor")
        assert (status, headers["Idempotency-Replayed"]) == (403, "true")
        told = await caller.ok("GET", "/v1/commands/poor")
        assert told["error"] == "insufficient_funds"

    run(tmp_path, talk)


@pytest.mark.parametrize("post", [True, False])
def test_closing_a_withdrawal_again_gets_the_first_answer(tmp_path: Path, post: bool) -> None:
    """Also for a custodian of some accounts only, though the withdrawal is not pending any more."""

    async def talk(caller: Caller) -> None:
        custodian: dict[str, Any] = {"role": "custodian", "accounts": ("alice", "carol")}
        out = {"kind": "withdrawal", "account": "alice", "asset": "USD", "amount": "100"}
        pending = await caller.ok("POST", "/v1/transfers", out, **custodian)
        path = f"/v1/transfers/{pending['id']}"
        first = await caller.ok("POST", path, {"post": post}, key="close", **custodian)
        again = await caller.ok("POST", path, {"post": post}, key="close", **custodian)
        assert (again["index"], again["status"], again["replay"]) == (first["index"], "done", True)
        status, error, _ = await caller.call("POST", path, {"post": post}, **custodian)
        assert (status, error["error"]) == (404, "withdrawal_not_found")
        if post:  # the answer names the account
            status, error, _ = await caller.call(
                "POST", path, {"post": post}, key="close", role="custodian", accounts=("bob",)
            )
            assert (status, error["error"]) == (404, "withdrawal_not_found")

    run(tmp_path, talk)


def test_a_custodian_of_some_accounts_reads_no_other_custodians_answers(tmp_path: Path) -> None:
    """Custodians share one scope of keys, which may be guessed; an answer names accounts."""

    async def talk(caller: Caller) -> None:
        every: dict[str, Any] = {"role": "custodian", "accounts": ("*",)}
        some: dict[str, Any] = {"role": "custodian", "accounts": ("bob", "carol")}
        move = {"kind": "transfer", "account": "alice", "target": "bob", "asset": "USD", "amount": "1"}
        bring = {"kind": "deposit", "account": "bob", "asset": "USD", "amount": "1"}
        hold = {"kind": "withdrawal", "account": "alice", "asset": "USD", "amount": "1"}
        for key, body in (("move", move), ("bring", bring), ("hold", hold)):
            await caller.ok("POST", "/v1/transfers", body, key=key, **every)
            await caller.ok("GET", f"/v1/commands/{key}", **every)
        assert (await caller.ok("GET", "/v1/commands/bring", **some))["status"] == "done"
        for key in ("move", "hold", "never"):
            status, error, _ = await caller.call("GET", f"/v1/commands/{key}", **some)
            assert (status, error["error"]) == (404, "command_not_found"), key

    run(tmp_path, talk)


def test_pending_withdrawals_are_listed(tmp_path: Path) -> None:
    async def talk(caller: Caller) -> None:
        custodian: dict[str, Any] = {"role": "custodian", "accounts": ("*",)}
        for amount in ("1", "2.5", "3"):
            out = {"kind": "withdrawal", "account": "alice", "asset": "USD", "amount": amount}
            await caller.ok("POST", "/v1/transfers", out, **custodian)
        first = await caller.ok("GET", "/v1/transfers?account=alice&limit=2", **custodian)
        assert [(one["id"], one["amount"], one["status"]) for one in first["items"]] == [
            ("1", "1", "pending"), ("2", "2.5", "pending"),
        ]  # fmt: skip
        assert {one["account"] for one in first["items"]} == {"alice"}
        rest = await caller.ok("GET", f"/v1/transfers?limit=2&page_token={first['next_page_token']}")
        assert ([one["id"] for one in rest["items"]], rest["next_page_token"]) == (["3"], None)
        for number, post in ((1, True), (2, False)):
            await caller.ok("POST", f"/v1/transfers/{number}", {"post": post}, **custodian)
        assert [one["id"] for one in (await caller.ok("GET", "/v1/transfers"))["items"]] == ["3"]
        assert (await caller.ok("GET", "/v1/transfers", accounts=("bob",)))["items"] == []
        for options in ({"accounts": ("bob",)}, {"role": "custodian", "accounts": ("bob",)}):
            status, error, _ = await caller.call("GET", "/v1/transfers?account=alice", **options)
            assert (status, error["error"]) == (404, "account_not_found")
        status, error, _ = await caller.call("GET", "/v1/transfers?account=nobody", **custodian)
        assert (status, error["error"]) == (404, "account_not_found")

    run(tmp_path, talk)


def test_money_comes_and_goes(tmp_path: Path) -> None:
    async def talk(caller: Caller) -> None:
        custodian: dict[str, Any] = {"role": "custodian", "accounts": ("*",)}
        out = {"kind": "withdrawal", "account": "alice", "asset": "USD", "amount": "100.25"}
        first = await caller.ok("POST", "/v1/transfers", out, **custodian)
        assert first["status"] == "pending"
        alice = await caller.ok("GET", "/v1/accounts/alice", **custodian)
        assert alice["balances"][1] == {"asset": "USD", "available": "9899.75", "held": "100.25"}
        await caller.ok("POST", f"/v1/transfers/{first['id']}", {"post": True}, **custodian)
        second = await caller.ok("POST", "/v1/transfers", out, **custodian)
        await caller.ok("POST", f"/v1/transfers/{second['id']}", {"post": False}, **custodian)
        move = {"kind": "transfer", "account": "alice", "target": "bob", "asset": "USD", "amount": "0.75"}
        await caller.ok("POST", "/v1/transfers", move, **custodian)
        alice = await caller.ok("GET", "/v1/accounts/alice")
        assert alice["balances"][1] == {"asset": "USD", "available": "9899", "held": "0"}
        drawn = await caller.ok("POST", "/v1/accounts", {}, key="draw", **custodian)
        again = await caller.ok("POST", "/v1/accounts", {}, key="draw", **custodian)
        assert drawn["account"] == again["account"]
        assert again["replay"]
        assert len(drawn["account"]) > 20

    run(tmp_path, talk)


def test_nobody_touches_another_account(tmp_path: Path) -> None:
    async def talk(caller: Caller) -> None:
        order = await caller.ok("POST", "/v1/orders", BUY, accounts=("bob",))
        for method, path, body in (
            ("POST", "/v1/orders", {**BUY, "account": "bob"}),
            ("DELETE", f"/v1/orders/{order['id']}?account=bob", None),
            ("DELETE", "/v1/orders?account=bob", None),
            ("GET", "/v1/orders?account=bob", None),
            ("GET", "/v1/accounts/bob", None),
            ("GET", "/v1/ledger?account=bob", None),
            ("GET", "/v1/trades?account=bob", None),
            ("GET", "/v1/commands/x?account=bob", None),
        ):
            foreign = await caller.call(method, path, body, accounts=("alice",))
            nobody = path.replace("bob", "zzz"), None if body is None else {**body, "account": "zzz"}
            unknown = await caller.call(method, nobody[0], nobody[1], accounts=("alice",))
            assert foreign[0] == 404, (method, path, foreign)
            assert foreign[1]["error"] == "account_not_found"
            for answer in (foreign[1], unknown[1]):
                answer.pop("request_id")
                answer.pop("key", None)
            assert foreign[:2] == unknown[:2]
        for path in (f"/v1/orders/{order['id']}", "/v1/orders/999999"):
            status, error, _ = await caller.call("GET", path)
            assert (status, error["error"]) == (404, "order_not_found")
        status, error, _ = await caller.call("DELETE", f"/v1/orders/{order['id']}")
        assert (status, error["error"]) == (404, "order_not_found")
        # Ids are consecutive: a page token must not open a foreign chain.
        for number in range(1, 9):
            status, page, _ = await caller.call("GET", f"/v1/ledger?page_token={number}")
            assert status == 422 or all(row["account"] == "alice" for row in page["items"])

    run(tmp_path, talk)


ROLES = [
    ("POST", "/v1/orders", BUY, "trader"),
    ("POST", "/v1/assets", {"asset": "EUR", "scale": 2}, "operator"),
    ("PATCH", "/v1/instruments", {"mode": "trading"}, "operator"),
    ("POST", "/v1/accounts", {"account": "carol"}, "custodian"),
    (
        "POST",
        "/v1/references",
        {"symbol": "ACME-USD", "price": "99.5", "observed_at": "2026-01-01T00:00:00Z"},
        "feed",
    ),
]


@pytest.mark.parametrize(("method", "path", "body", "role"), ROLES)
def test_each_role_does_its_own(tmp_path: Path, method: str, path: str, body: dict[str, Any], role: str) -> None:
    async def talk(caller: Caller) -> None:
        for other in ("trader", "operator", "custodian", "feed", "auditor"):
            accounts = ("alice",) if other == "trader" else ("*",)
            status, answer, _ = await caller.call(method, path, body, role=other, accounts=accounts)
            assert status == (200 if other == role else 403), (other, answer)

    run(tmp_path, talk)


NUMBERS = [
    # field, value, status, error
    ("qty", "1", 200, ""),
    ("qty", 1, 200, ""),
    ("qty", 2.0, 200, ""),
    ("qty", "1.5", 422, "invalid_field"),
    ("qty", "0", 422, "invalid_field"),
    ("qty", "-1", 422, "invalid_field"),
    ("qty", "1e3", 422, "invalid_field"),
    ("qty", "\u0661", 422, "invalid_field"),
    ("qty", "NaN", 422, "invalid_field"),
    ("qty", 1e30, 422, "invalid_field"),
    ("qty", 10**30, 422, "invalid_field"),
    ("qty", True, 400, "malformed"),
    ("qty", None, 422, "quantity_required"),
    ("limit_price", "99.51", 200, ""),
    ("limit_price", 99.51, 200, ""),
    ("limit_price", "99.510", 200, ""),
    ("limit_price", "99.511", 422, "invalid_field"),
    ("limit_price", "1e30", 422, "invalid_field"),
    ("limit_price", 1e-7, 422, "invalid_field"),
    ("limit_price", None, 422, "price_required"),
    ("symbol", "ACME-USD\u0000", 404, "instrument_not_found"),
    ("symbol", "\u0410CME-USD", 404, "instrument_not_found"),
    ("symbol", "acme-usd", 404, "instrument_not_found"),
    ("symbol", "A" * 65, 422, "invalid_field"),
    ("symbol", 5, 400, "malformed"),
    ("side", "up", 422, "invalid_field"),
    ("side", "BUY", 422, "invalid_field"),
    ("session", "none-open", 404, "session_not_found"),
    ("expires_at", "2030-01-01T00:00:00Z", 422, "time_in_force_not_allowed"),
    ("expires_at", "tomorrow", 422, "invalid_field"),
    ("expires_at", "2030-13-01T00:00:00Z", 422, "invalid_field"),
    ("sent_at", "2020-01-01T00:00:00Z", 422, "key_too_old"),
    ("sent_at", "2099-01-01T00:00:00Z", 422, "sent_in_future"),
    ("frobnicate", 1, 400, "malformed"),
    ("account", "bob", 404, "account_not_found"),
]


def test_fields_are_bounded(tmp_path: Path) -> None:
    async def talk(caller: Caller) -> None:
        for field, value, status, error in NUMBERS:
            body = {**BUY, "qty": "1", field: value}
            got, answer, _ = await caller.call("POST", "/v1/orders", body)
            assert (got, answer.get("error", "")) == (status, error), (field, value, answer)
            if 400 <= got < 500 and error in ("invalid_field", "malformed"):
                assert answer["field"] == field
                assert answer.get("definite", True)

    run(tmp_path, talk)


def test_a_refused_request_logs_nothing(tmp_path: Path) -> None:
    async def talk(caller: Caller) -> None:
        index = caller.node.machine.applied_index
        digest = caller.node.machine.digest
        bodies: list[tuple[bytes, dict[str, str], int]] = [
            (b"{", {}, 400),
            (b"[]", {}, 400),
            (b"null", {}, 400),
            (b"\xff\xfe", {}, 400),
            (b"[" * 200_000, {}, 400),
            (b'{"a":' * 40_000, {}, 400),
            (b'{"qty":NaN}', {}, 400),
            (b"\xdd\xff\xff\xff\xff", {"Content-Type": "application/msgpack"}, 400),
            (b"\x91" * 100_000, {"Content-Type": "application/msgpack"}, 400),
            (b"{}", {"Content-Type": "text/plain"}, 415),
            (b"x" * 300_000, {}, 413),
        ]
        for raw, headers, status in bodies:
            got, answer, _ = await caller.call("POST", "/v1/orders", raw=raw, headers=headers)
            assert got == status, (raw[:20], answer)
            assert answer["code"] // 100_000 == got
        for path, status in (
            ("/v1/orders?frob=1", 422),
            ("/v1/orders?limit=0", 422),
            ("/v1/orders?limit=1001", 422),
            ("/v1/orders?page_token=x", 422),
            ("/v1/orders?consistency=maybe", 422),
            ("/v1/orders/0", 422),
            ("/v1/orders/99999999999999999999", 422),
            ("/v1/nothing", 404),
        ):
            got, answer, _ = await caller.call("GET", path)
            assert (got, answer["code"] // 100_000) == (status, status), path
        got, answer, _ = await caller.call("PUT", "/v1/orders")
        assert (got, answer["error"]) == (405, "method_not_allowed")
        async with caller.session.get(caller.url + "/v1/orders") as response:
            assert response.status == 401
        assert (caller.node.machine.applied_index, caller.node.machine.digest) == (index, digest)

    run(tmp_path, talk)


def test_msgpack_goes_both_ways(tmp_path: Path) -> None:
    async def talk(caller: Caller) -> None:
        headers = {
            "Authorization": f"Bearer {caller.token('trader', 'alice')}",
            "Content-Type": "application/msgpack",
            "Accept": "application/msgpack",
            "Idempotency-Key": "packed",
        }
        async with caller.session.post(
            caller.url + "/v1/orders", data=msgspec.msgpack.encode(BUY), headers=headers
        ) as response:
            assert response.status == 200
            assert msgspec.msgpack.decode(await response.read())["client_order_id"] == "packed"

    run(tmp_path, talk)


def test_instruments_are_listed_and_changed(tmp_path: Path) -> None:
    async def talk(caller: Caller) -> None:
        operator: dict[str, Any] = {"role": "operator", "accounts": ("*",)}
        path = "/v1/instruments/ACME-USD"
        await caller.ok("PATCH", path, {"maker_bps": 1, "taker_bps": 2}, **operator)
        await caller.ok("PATCH", path, {"limits": {"qty_max": "50", "band_bps": 100}}, **operator)
        await caller.ok("PATCH", path, {"limits": {"qty_min": "2"}}, **operator)
        week = {"weekly": {"mon": {"open": "09:30", "close": "16:00"}}, "holidays": ["2026-12-25"]}
        await caller.ok("PATCH", path, {"calendar": week}, **operator)
        await caller.ok("PATCH", path, {"mode": "cancel_only"}, **operator)
        view = await caller.ok("GET", path)
        assert (view["maker_bps"], view["taker_bps"], view["mode"]) == (1, 2, "cancel_only")
        assert (view["limits"]["qty_max"], view["limits"]["qty_min"], view["limits"]["band_bps"]) == ("50", "2", 100)
        assert view["calendar"]["weekly"] == {"mon": {"open": "09:30", "close": "16:00"}}
        assert view["calendar"]["holidays"] == ["2026-12-25"]
        status, error, _ = await caller.call("PATCH", path, {"mode": "trading", "maker_bps": 1}, **operator)
        assert (status, error["error"]) == (422, "invalid_field")
        status, error, _ = await caller.call("POST", "/v1/orders", {**BUY, "qty": "1"})
        assert (status, error["error"]) == (422, "instrument_cancel_only")
        assets = await caller.ok("GET", "/v1/assets")
        assert [one["asset"] for one in assets["items"]] == ["ACME", "USD"]

    run(tmp_path, talk)


def test_a_restart_goes_on_where_it_was(tmp_path: Path) -> None:
    async def main() -> None:
        config = make_config(tmp_path)
        async with running(config) as caller:
            await caller.list_market()
            order = await caller.ok("POST", "/v1/orders", BUY, key="before")
            digest, index = caller.node.machine.digest, caller.node.machine.applied_index
        async with running(config) as caller:
            assert (caller.node.machine.digest, caller.node.machine.applied_index) == (digest, index)
            same = await caller.ok("POST", "/v1/orders", BUY, key="before")
            assert (same["id"], same["replay"]) == (order["id"], True)
            status, body, _ = await caller.call("GET", "/readyz", key="")
            assert (status, body) == (
                200,
                {"status": "ready", "member": config.name, "cluster_id": config.topology.cluster_id},
            )

    asyncio.run(main())
