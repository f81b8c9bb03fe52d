"""The client over HTTP: one key is executed once whatever the network does, and no answer claims too much."""

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal

import pytest

from cluster.client import Client, Done, Outcome, ReadRefused, Refused, Unavailable, Unknown
from cluster.client_answers import outcome
from cluster.wire import Answer, CancelOrder, PlaceOrder, ReplaceOrder
from tests.cluster.fake_node import TOKEN, FakeNode, Ledger, free_port

Scenario = Callable[[FakeNode, FakeNode, Client], Awaitable[None]]


def run(scenario: Scenario, *, timeout_ms: int = 2_000) -> None:
    """Run a scenario against two fake nodes, of which `first` leads."""

    async def main() -> None:
        ledger = Ledger()
        first = await FakeNode("first", ledger).start()
        second = await FakeNode("second", ledger, leader="first").start()
        try:
            async with Client([first.url, second.url], token=TOKEN, timeout_ms=timeout_ms) as client:
                await scenario(first, second, client)
        finally:
            await first.stop()
            await second.stop()

    asyncio.run(main())


async def buy(client: Client, *, qty: str = "10", key: str = "") -> Outcome:
    return await client.place_order(symbol="AAPL", side="buy", qty=qty, limit_price=Decimal("187.20"), key=key)


def test_done_says_id_and_index() -> None:
    async def scenario(first: FakeNode, second: FakeNode, client: Client) -> None:
        match await buy(client):
            case Done(key=key, answer=Answer(id="1", index=1, replay=False)):
                assert key
            case other:
                pytest.fail(str(other))
        sent = first.ledger.executed[0]
        assert isinstance(sent, PlaceOrder)
        assert sent.sent_at.endswith("Z")
        assert sent.limit_price == "187.20"
        assert client.session_token == "token-1"  # noqa: S105

    run(scenario)


def test_same_key_is_a_replay_and_another_body_is_refused() -> None:
    async def scenario(first: FakeNode, second: FakeNode, client: Client) -> None:
        request = PlaceOrder(
            key="k1", sent_at="2026-01-05T10:00:00Z", symbol="AAPL", side="buy", type="limit", qty="1", limit_price="2"
        )
        one, two = await client.submit(request), await client.submit(request)
        assert isinstance(one, Done)
        assert not one.answer.replay
        assert isinstance(two, Done)
        assert two.answer.replay
        assert two.id == one.id
        other = await buy(client, qty="2", key="k1")
        assert isinstance(other, Refused)
        assert other.error == "key_reused"

    run(scenario)


@pytest.mark.parametrize(
    "faults",
    [["no_leader"], ["outcome_unknown"], ["drop_before"], ["drop_after"], ["proxy_502"], ["overloaded"],
     ["drop_after", "no_leader", "outcome_unknown"]],
    ids="+".join,
)  # fmt: skip
def test_faults_pass_and_the_order_is_placed_once(faults: list[str]) -> None:
    async def scenario(first: FakeNode, second: FakeNode, client: Client) -> None:
        first.faults.extend(faults)
        answer = await buy(client)
        assert isinstance(answer, Done), answer
        assert len(first.ledger.executed) == 1

    run(scenario)


def test_a_definite_refusal_is_not_tried_again() -> None:
    async def scenario(first: FakeNode, second: FakeNode, client: Client) -> None:
        answer = await buy(client, qty="999")
        assert isinstance(answer, Refused)
        assert (answer.error, answer.code) == ("insufficient_funds", 403_00041)
        assert first.ledger.seen_tries == 1

    run(scenario)


def test_the_other_member_is_asked_when_one_is_gone() -> None:
    async def scenario(first: FakeNode, second: FakeNode, client: Client) -> None:
        assert isinstance(await buy(client), Done)
        await first.stop()
        second.leader = "second"
        assert isinstance(await buy(client), Done)
        assert second.requests == ["POST /v1/orders"]

    run(scenario)


def test_a_connection_that_was_never_made_is_refused_not_unknown() -> None:
    async def main() -> None:
        async with Client([f"http://127.0.0.1:{free_port()}"], timeout_ms=100) as client:
            answer = await buy(client)
        assert isinstance(answer, Refused)
        assert answer.error == "unreachable"
        assert "can't connect" in answer.message

    asyncio.run(main())


def test_no_leader_until_the_deadline_is_refused_but_after_a_lost_answer_unknown() -> None:
    async def scenario(first: FakeNode, second: FakeNode, client: Client) -> None:
        for node in (first, second):
            node.faults.extend(["no_leader"] * 50)
        plain = await buy(client)
        assert isinstance(plain, Refused)
        assert plain.error == "no_leader"
        first.faults.appendleft("drop_after")
        second.faults.appendleft("drop_after")
        lost = await buy(client, key="lost")
        assert isinstance(lost, Unknown)
        assert (lost.key, lost.cause) == ("lost", "it is no_leader")

    run(scenario, timeout_ms=300)


def test_a_door_that_closes_after_a_lost_answer_leaves_it_unknown() -> None:
    async def scenario(first: FakeNode, second: FakeNode, client: Client) -> None:
        for node in (first, second):
            node.faults.extend(["drop_after", "expired", "expired"])
        assert isinstance(await buy(client), Unknown)

    run(scenario)


def test_the_same_call_again_after_an_unknown_outcome_is_the_same_request() -> None:
    async def scenario(first: FakeNode, second: FakeNode, client: Client) -> None:
        for node in (first, second):
            node.faults.extend(["outcome_unknown"] * 50)
        lost = await buy(client, key="k1")
        assert isinstance(lost, Unknown)
        for node in (first, second):
            node.faults.clear()
        found = await buy(client, key="k1")
        assert isinstance(found, Done), found
        assert found.answer.replay
        assert len(first.ledger.executed) == 1
        # Whoever has the key and when it was sent repeats it from anywhere.
        sent = first.ledger.executed[0]
        assert lost == Unknown("k1", "it is outcome_unknown", sent.sent_at)

    run(scenario, timeout_ms=150)


# error, code, index, unsure before, what may be believed
ROWS = [
    ("insufficient_funds", 403_00041, 9, False, Refused),
    ("insufficient_funds", 403_00041, 9, True, Refused),  # the answer stored under the key
    ("key_reused", 422_00011, 9, False, Refused),
    ("key_reused", 422_00011, 9, True, Unknown),  # what was logged may be the first try, read by a node otherwise
    ("key_too_old", 422_00012, 9, False, Refused),
    ("key_too_old", 422_00012, 9, True, Unknown),  # says nothing about the first try
    ("instrument_not_found", 404_00024, 0, False, Refused),
    ("instrument_not_found", 404_00024, 0, True, Unknown),  # a door's: this node may be behind
    ("unauthenticated", 401_01006, 0, False, Refused),
    ("unauthenticated", 401_01006, 0, True, Unknown),
    ("", 0, 9, True, Done),
]


@pytest.mark.parametrize(("error", "code", "index", "unsure", "kind"), ROWS)
def test_what_may_be_believed(error: str, code: int, index: int, unsure: bool, kind: type) -> None:
    assert type(outcome("k", Answer(error=error, code=code, index=index), unsure=unsure)) is kind


def test_cancel_goes_with_its_key_and_the_time_it_was_first_sent() -> None:
    """A cancel of all that comes again after its key is forgotten would cancel what was placed since."""

    async def scenario(first: FakeNode, second: FakeNode, client: Client) -> None:
        assert isinstance(await client.cancel_order("7", key="c1"), Done)
        assert isinstance(await client.cancel_order(client_order_id="k&=7", account="alice", key="c2"), Done)
        assert isinstance(await client.cancel_orders(symbol="AAPL", key="c3"), Done)
        assert first.requests == ["DELETE /v1/orders/7", "DELETE /v1/orders", "DELETE /v1/orders"]
        by_id, by_key, _ = first.ledger.executed
        assert isinstance(by_id, CancelOrder)
        assert (by_id.key, by_id.order_id, by_id.original_client_order_id) == ("c1", "7", "")
        assert isinstance(by_key, CancelOrder)
        assert (by_key.order_id, by_key.original_client_order_id, by_key.account) == ("", "k&=7", "alice")
        assert all(one.sent_at for one in first.ledger.executed)

    run(scenario)


def test_a_replacement_names_its_order_either_way() -> None:
    async def scenario(first: FakeNode, second: FakeNode, client: Client) -> None:
        assert isinstance(await client.replace_order("7", qty=5), Done)
        assert isinstance(await client.replace_order(client_order_id="k7", symbol="AAPL", qty=5), Done)
        assert first.requests == ["PATCH /v1/orders/7", "PATCH /v1/orders"]
        by_id, by_key = first.ledger.executed
        assert isinstance(by_id, ReplaceOrder)
        assert (by_id.order_id, by_id.original_client_order_id) == ("7", "")
        assert isinstance(by_key, ReplaceOrder)
        assert (by_key.order_id, by_key.original_client_order_id, by_key.symbol) == ("", "k7", "AAPL")

    run(scenario)


def test_reads_retry_refuse_and_give_up() -> None:
    async def scenario(first: FakeNode, second: FakeNode, client: Client) -> None:
        first.faults.append("no_quorum")
        assert (await client.account("alice")).id == "alice"
        with pytest.raises(ReadRefused) as refused:
            await client.account("nobody")
        assert refused.value.error == "account_not_found"
        for node in (first, second):
            node.faults.extend(["no_quorum"] * 50)
        with pytest.raises(Unavailable, match="no_quorum"):
            await client.account("alice")
        for node in (first, second):
            node.faults.clear()
            node.faults.extend(["no_quorum", *["hang"] * 50])
        with pytest.raises(Unavailable, match="no_quorum"):  # and not that the last try was cut short
            await client.account("alice")

    run(scenario, timeout_ms=300)


def test_reads_say_their_consistency() -> None:
    async def scenario(first: FakeNode, second: FakeNode, client: Client) -> None:
        await buy(client)
        await client.account("alice")
        await client.account("alice", consistency="local")
        await client.account("alice", consistency="session")
        plain, local, session = first.reads
        assert (plain.query_string, local.query_string) == ("", "consistency=local")
        assert "X-Session-Token" not in plain.headers
        assert session.headers["X-Session-Token"] == "token-1"

    run(scenario)


def test_a_cluster_that_went_back_to_a_backup_is_told_once_and_then_read_anew() -> None:
    async def scenario(first: FakeNode, second: FakeNode, client: Client) -> None:
        await buy(client)
        first.faults.append("epoch_changed")
        with pytest.raises(ReadRefused) as refused:
            await client.account("alice", consistency="session")
        assert refused.value.error == "epoch_changed"
        await client.account("alice", consistency="session")
        assert [("X-Session-Token" in read.headers) for read in first.reads] == [True, False]

    run(scenario)


def test_members_say_who_leads_and_who_is_silent() -> None:
    async def scenario(first: FakeNode, second: FakeNode, client: Client) -> None:
        await second.stop()
        healthy, silent = await client.members()
        assert healthy.view is not None
        assert healthy.view.state == "leader"
        assert silent.view is None
        assert "can't connect" in silent.error

    run(scenario)
