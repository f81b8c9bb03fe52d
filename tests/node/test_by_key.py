"""Orders named by their client order id: over HTTP, in one frame with their placing, and told apart from mistakes."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.node.fakes import Caller, make_config, running
from tests.node.solo import Solo, command, list_market, order
from tests.node.solo import run as run_solo

BUY = {"symbol": "ACME-USD", "side": "buy", "type": "limit", "qty": "10", "limit_price": "99.50"}
LONG_AGO = "2020-01-01T00:00:00Z"


def run(tmp_path: Path, talk: Callable[[Caller], Awaitable[None]]) -> None:
    async def main() -> None:
        async with running(make_config(tmp_path)) as caller:
            await caller.list_market()
            await talk(caller)

    asyncio.run(main())


def test_an_order_is_replaced_and_canceled_by_its_key(tmp_path: Path) -> None:
    async def talk(caller: Caller) -> None:
        placed = await caller.ok("POST", "/v1/orders", BUY, key="first")
        path = "/v1/orders?client_order_id=first"
        smaller = await caller.ok("PATCH", path, {"qty": "5", "client_order_id": "second"}, key="")
        assert (smaller["qty"], smaller["replaces"], smaller["client_order_id"]) == ("5", placed["id"], "second")
        # The order is closed as replaced; the same request again is answered as before all the same.
        _, again, headers = await caller.call("PATCH", path, {"qty": "5", "client_order_id": "second"}, key="")
        assert (again["id"], headers.get("Idempotency-Replayed")) == (smaller["id"], "true")
        for path, found in (("first", placed["id"]), ("second", smaller["id"])):
            shown = await caller.ok("GET", f"/v1/orders:by_client_order_id?client_order_id={path}")
            assert shown["id"] == found
        moved = {"original_client_order_id": "second", "limit_price": "98"}
        moved = await caller.ok("PATCH", "/v1/orders", moved, key="third")
        assert (moved["limit_price"], moved["replaces"]) == ("98", smaller["id"])
        for gone in ("first", "second", "never"):
            status, error, _ = await caller.call("DELETE", f"/v1/orders?client_order_id={gone}")
            assert (status, error["error"]) == (404, "order_not_found")
        canceled = await caller.ok("DELETE", "/v1/orders?client_order_id=third", key="fourth")
        assert (canceled["id"], canceled["leaves_qty"]) == (moved["id"], "5")
        _, again, headers = await caller.call("DELETE", "/v1/orders?client_order_id=third", key="fourth")
        assert (again["id"], again["leaves_qty"], headers["Idempotency-Replayed"]) == (moved["id"], "5", "true")

    run(tmp_path, talk)


def test_a_key_is_the_accounts_own(tmp_path: Path) -> None:
    async def talk(caller: Caller) -> None:
        await caller.ok("POST", "/v1/orders", BUY, key="mine")
        for method, body in (("DELETE", None), ("PATCH", {"qty": "5"})):
            path = "/v1/orders?client_order_id=mine"
            status, error, _ = await caller.call(method, path, body, accounts=("bob",))
            assert (status, error["error"]) == (404, "order_not_found")
        assert len((await caller.ok("GET", "/v1/orders"))["items"]) == 1

    run(tmp_path, talk)


REFUSED: list[tuple[str, str, Any, str]] = [
    # An empty name must not be taken for none: that would cancel everything.
    ("DELETE", "/v1/orders?client_order_id=", None, "client_order_id"),
    ("DELETE", "/v1/orders?client_order_id=a&symbol=ACME-USD", None, "symbol"),
    ("DELETE", "/v1/orders?client_order_id=a&client_order_id=b", None, "client_order_id"),
    ("DELETE", "/v1/orders/1?client_order_id=a", None, "original_client_order_id"),
    ("DELETE", "/v1/orders?client_order_id=a%20b", None, "original_client_order_id"),
    ("PATCH", "/v1/orders", {"qty": "5"}, "order_id"),
    ("PATCH", "/v1/orders?client_order_id=", {"qty": "5"}, "client_order_id"),
    ("PATCH", "/v1/orders?client_order_id=a", {"qty": "5", "order_id": "1"}, "original_client_order_id"),
    ("PATCH", "/v1/orders/1", {"qty": "5", "original_client_order_id": "a"}, "original_client_order_id"),
    ("PATCH", "/v1/orders?client_order_id=a", {"qty": "5", "original_client_order_id": "b"}, "client_order_id"),
    ("PATCH", "/v1/orders?cleint_order_id=a", {"qty": "5"}, "cleint_order_id"),
    ("DELETE", f"/v1/orders?sent_at={LONG_AGO}", None, "sent_at"),
    ("DELETE", f"/v1/orders/1?sent_at={LONG_AGO}", None, "sent_at"),
    ("DELETE", "/v1/orders/1?sent_at=yesterday", None, "sent_at"),
]


@pytest.mark.parametrize(("method", "path", "body", "field"), REFUSED)
def test_what_does_not_name_one_order_is_refused(tmp_path: Path, method: str, path: str, body: Any, field: str) -> None:
    async def talk(caller: Caller) -> None:
        placed = await caller.ok("POST", "/v1/orders", BUY, key="a")
        assert placed["id"] == "1"
        status, error, _ = await caller.call(method, path, body)
        assert (status, error["field"]) == (422, field), error
        (left,) = (await caller.ok("GET", "/v1/orders"))["items"]
        assert left["id"] == "1"

    run(tmp_path, talk)


def test_a_frame_places_replaces_and_cancels_before_any_id_is_known(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice")
            alice = await solo.stream("trader", "alice")
            placed, smaller, canceled, again = await alice.submit(
                {**order("sell", 10, "5.01"), "key": "one"},
                command("replace", original_client_order_id="one", symbol="AAPL-USD", qty=6, client_order_id="two"),
                command("cancel", original_client_order_id="two"),
                command("cancel", original_client_order_id="two"),
            )
            assert (placed["status"], smaller.get("error")) == ("new", "invalid_field")  # its key says two things
            assert [one["error"] for one in (canceled, again)] == ["order_not_found"] * 2
            smaller, canceled, again = await alice.submit(
                {**command("replace", original_client_order_id="one", symbol="AAPL-USD", qty=6), "key": "two"},
                command("cancel", original_client_order_id="two"),
                command("cancel", original_client_order_id="two"),
            )
            assert (smaller["replaces"], smaller["leaves_qty"]) == (placed["id"], "6")
            assert (canceled["id"], canceled["leaves_qty"], canceled["filled_qty"]) == (smaller["id"], "6", "0")
            assert again["error"] == "order_not_found"

    run_solo(talk())


def test_what_is_on_its_way_needs_a_symbol_and_it_must_be_the_orders(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice")
            operator = await solo.stream("operator")
            (listed,) = await operator.submit(
                command("add_instrument", symbol="ODD", base="AAPL", quote="USD", tick_size="0.01", lot_size="2")
            )
            assert "error" not in listed
            alice = await solo.stream("trader", "alice")
            _, unnamed = await alice.submit(
                {**order("sell", 10, "5.01"), "key": "one"},
                command("replace", original_client_order_id="one", qty=6),
            )
            assert unnamed["error"] == "order_not_found"
            assert "symbol" in unnamed["message"]
            _, wrong = await alice.submit(
                {**order("sell", 10, "5.01"), "key": "two"},
                command("replace", original_client_order_id="two", symbol="ODD", qty=6),
            )
            assert wrong["error"] == "order_not_found"
            (known,) = await alice.submit(command("replace", original_client_order_id="two", qty=6))
            assert known["leaves_qty"] == "6"

    run_solo(talk())
