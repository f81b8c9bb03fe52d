"""The client library on three real members: what it promises holds while the leader is killed under it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.client import Client, Done, Outcome, ReadRefused, StreamRefused, members_of
from cluster.folder import ClusterFolder, create
from cluster.launcher import Launcher, run_down
from cluster.wire import AnyRequest, PlaceOrder
from node.cli.session import mint
from tests.cluster.test_launcher import free_ports


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    create(tmp_path / "c", base_port=free_ports())
    launcher = Launcher(ClusterFolder(tmp_path / "c"))
    try:
        for name in launcher.members:
            launcher.start(name, die_with_us=True)
        launcher.wait_ready()
        yield launcher
    finally:
        run_down(launcher)


def client(launcher: Launcher, role: str, *accounts: str) -> Client:
    folder = launcher.folder
    token = mint(folder, role=role, accounts=list(accounts) or ["*"])
    return Client(members_of(folder.topology_path), token=token, timeout_ms=15_000)


async def a_market(launcher: Launcher) -> None:
    async with client(launcher, "operator") as operator, client(launcher, "custodian") as custodian:
        for outcome in (
            await operator.add_asset("USD", scale=2),
            await operator.add_asset("XYZ", scale=0),
            await operator.add_instrument("XYZ", base="XYZ", quote="USD", tick_size="0.01", lot_size=1),
            await custodian.open_account("alice"),
            await custodian.open_account("bob"),
            await custodian.deposit("alice", "USD", 1_000_000),
            await custodian.deposit("bob", "XYZ", 1_000_000),
        ):
            assert isinstance(outcome, Done), outcome


def buys(count: int) -> list[AnyRequest]:
    return [PlaceOrder(symbol="XYZ", side="buy", type="limit", qty=1, limit_price="1.00") for _ in range(count)]


async def leader_of(launcher: Launcher) -> str:
    async with client(launcher, "auditor") as auditor:
        views = [health.view for health in await auditor.members()]
    return next(view.name for view in views if view is not None and view.state == "leader" and view.has_quorum)


def test_every_order_is_placed_once_while_the_leader_is_killed(launcher: Launcher) -> None:
    async def main() -> None:
        await a_market(launcher)
        async with client(launcher, "trader", "alice") as trader, trader.stream() as stream:
            outcomes: list[Outcome] = []

            async def place(number: int) -> None:
                await asyncio.sleep(number * 0.01)
                outcomes.extend(await stream.submit(buys(10)))

            frames = [asyncio.create_task(place(number)) for number in range(100)]
            await asyncio.sleep(0.3)
            killed = await leader_of(launcher)
            await asyncio.to_thread(launcher.kill, killed)
            acknowledged = len(outcomes)
            await asyncio.gather(*frames)
            assert 0 < acknowledged < 1_000
            assert await leader_of(launcher) != killed
            ids = [outcome.id for outcome in outcomes if isinstance(outcome, Done)]
            assert len(ids) == 1_000, [o for o in outcomes if not isinstance(o, Done)][:3]
            assert len(set(ids)) == 1_000
            account = await trader.account("alice")
            assert account.open_orders == 1_000
            assert {b.asset: b.held for b in account.balances} == {"USD": "1000"}

    asyncio.run(main())


def test_private_events_guards_and_reads_of_ones_own_writes(launcher: Launcher) -> None:
    async def main() -> None:
        await a_market(launcher)
        async with client(launcher, "trader", "alice") as trader, trader.stream() as stream:
            await stream.listen()
            await stream.guard("alice", timeout_ms=1_000, key="guard-1")
            guarded = PlaceOrder(symbol="XYZ", side="buy", type="limit", qty=1, limit_price="2.00", session="guard-1")
            (done,) = await stream.submit([guarded])
            assert isinstance(done, Done)
            assert done.answer.status == "new"
            seen = [event for _ in range(2) for event in (await stream.next_update()).events]
            assert any(event.get("order_id", event.get("id")) == done.id for event in seen), seen
            view = await trader.order(done.id, consistency="session")
            assert view.status == "new"
            with pytest.raises(StreamRefused, match="account_not_found"):
                await stream.guard("bob", timeout_ms=1_000, key="guard-2")
            with pytest.raises(ReadRefused, match="account_not_found"):
                await trader.account("bob")
        async with client(launcher, "trader", "alice") as trader:
            for _ in range(100):
                view = await trader.order(done.id)
                if view.status != "new":
                    break
                await asyncio.sleep(0.1)
            assert (view.status, view.reason) in (("canceled", "session_expired"), ("canceled", "session_closed"))
            found = await trader.command(done.key)
            assert isinstance(found, Done)
            assert found.id == done.id

    asyncio.run(main())
