"""Which member a client asks: replicas that came later are found through those that are known, and forgotten again."""

import asyncio
from collections.abc import Awaitable, Callable

from cluster.client import Client, Done
from tests.cluster.fake_node import TOKEN, FakeNode, Ledger

Scenario = Callable[[FakeNode, FakeNode, Client], Awaitable[None]]


def run(scenario: Scenario, *, both: bool = False) -> None:
    """Of two nodes the client is given the first, or both; the second, which leads, is told of by the first."""

    async def main() -> None:
        ledger = Ledger()
        known = await FakeNode("known", ledger, leader="late").start()
        late = await FakeNode("late", ledger).start()
        known.apis = late.apis = {node.name: f"127.0.0.1:{node.port}" for node in (known, late)}
        try:
            async with Client([known.url, late.url][: 1 + both], token=TOKEN, timeout_ms=2_000) as client:
                await scenario(known, late, client)
        finally:
            await known.stop()
            await late.stop()

    asyncio.run(main())


async def buy(client: Client) -> bool:
    outcome = await client.place_order(symbol="AAPL", side="buy", qty="1", limit_price="1", timeout_ms=1_500)
    return isinstance(outcome, Done)


def test_a_member_that_came_later_is_found_and_enough() -> None:
    async def scenario(known: FakeNode, late: FakeNode, client: Client) -> None:
        known.faults.append("no_leader")  # a client looks around when something failed
        assert await buy(client)
        await known.stop()
        assert await buy(client)
        assert len(late.requests) == 1

    run(scenario)


def test_one_that_is_no_member_any_more_is_forgotten() -> None:
    async def scenario(known: FakeNode, late: FakeNode, client: Client) -> None:
        known.leader = late.leader = "known"
        for gone in ("nobody", "late"):
            known.apis = {name: where for name, where in known.apis.items() if name != gone}
            known.faults.append("no_leader")
            assert await buy(client)
            await asyncio.sleep(0.35)  # it looks around three times a second at most
        known.faults.extend(["no_leader"] * 3)
        assert await buy(client)
        assert not late.requests

    run(scenario)


def test_one_that_was_given_is_never_forgotten() -> None:
    async def scenario(known: FakeNode, late: FakeNode, client: Client) -> None:
        known.leader = late.leader = "known"
        known.apis = {"known": known.apis["known"]}
        known.faults.append("no_leader")
        assert await buy(client)
        await known.stop()
        assert await buy(client)
        assert late.requests

    run(scenario, both=True)


def test_addresses_behind_a_port_map_are_not_taken() -> None:
    async def scenario(known: FakeNode, late: FakeNode, client: Client) -> None:
        known.apis = known.apis | {"known": "10.0.0.1:7710"}
        known.faults.extend(["no_leader"] * 2)
        assert await buy(client)
        assert not late.requests

    run(scenario)
