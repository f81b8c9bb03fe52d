"""Three real members as processes: orders survive the death of the leader, and all replicas agree."""

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cluster.folder import ClusterFolder, create
from cluster.launcher import Launcher, run_down
from node.auth import issue_token
from tests.node.fakes import free_ports

BUY = {"symbol": "ACME-USD", "side": "buy", "type": "limit", "qty": "1", "limit_price": "99.50"}
SELL = {"symbol": "ACME-USD", "side": "sell", "type": "limit", "qty": "1", "limit_price": "99.50"}
REPLICAS = ("dc-a", "dc-b")


def base_port() -> int:
    """Six ports in two runs of three, as `create` lays them out."""
    for port in free_ports(200):
        if set(range(port, port + 13)) <= set(free_ports_from(port)):
            return port
    raise RuntimeError("no run of free ports")


def free_ports_from(port: int) -> list[int]:
    return free_ports(13, first=port)


class Group:
    """A cluster of processes, and a client that goes to whichever replica answers."""

    def __init__(self, root: Path) -> None:
        create(root, base_port=base_port())
        self.folder = ClusterFolder(root)
        self.launcher = Launcher(self.folder)
        self.members = self.launcher.members
        self._tokens: dict[tuple[str, tuple[str, ...]], str] = {}
        self._session: aiohttp.ClientSession | None = None

    def token(self, role: str, *accounts: str) -> str:
        if (role, accounts) not in self._tokens:
            pem = self.folder.token_key.read_text("ascii")
            self._tokens[role, accounts] = issue_token(pem, subject=f"t-{role}", role=role, accounts=list(accounts))
        return self._tokens[role, accounts]

    async def session(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=15))
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def once(self, member: str, method: str, path: str, **options: Any) -> tuple[int, Any]:
        role, accounts = options.get("role", "trader"), options.get("accounts", ("alice",))
        headers = {"Authorization": f"Bearer {self.token(role, *accounts)}", "Content-Type": "application/json"}
        if options.get("key"):
            headers["Idempotency-Key"] = options["key"]
        where = self.members[member]
        url = f"http://{where.api_host}:{where.api_port}{path}"
        body = options.get("body")
        data = None if body is None else json.dumps(body)
        async with (await self.session()).request(method, url, data=data, headers=headers) as response:
            return response.status, await response.json()

    async def do(self, method: str, path: str, *, members: tuple[str, ...] = REPLICAS, **options: Any) -> Any:
        """Call until a member gives a definite answer, with one key throughout."""
        deadline = time.monotonic() + 20
        last: Any = None
        while time.monotonic() < deadline:
            for member in members:
                try:
                    status, answer = await self.once(member, method, path, **options)
                except (aiohttp.ClientError, TimeoutError) as error:
                    last = error
                    continue
                if status == 200:
                    return answer
                last = (member, status, answer)
                if status not in (429, 503):
                    raise AssertionError(last)
            await asyncio.sleep(0.05)
        raise AssertionError(f"no answer in time: {last}")

    async def status(self, member: str) -> Any:
        status, view = await self.once(member, "GET", "/v1/status", role="operator", accounts=("*",))
        assert status == 200
        return view

    async def leader(self) -> str:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for name in self.members:
                try:
                    view = await self.status(name)
                except (aiohttp.ClientError, AssertionError):
                    continue
                if view["state"] == "leader" and view["has_quorum"] and view["role"] == "replica":
                    return name
            await asyncio.sleep(0.05)
        raise AssertionError("no leader")

    async def list_market(self) -> None:
        operator: dict[str, Any] = {"role": "operator", "accounts": ("*",)}
        custodian: dict[str, Any] = {"role": "custodian", "accounts": ("*",)}
        for asset, scale in (("USD", 2), ("ACME", 0)):
            await self.do("POST", "/v1/assets", body={"asset": asset, "scale": scale}, key=f"a-{asset}", **operator)
        listing = {"symbol": "ACME-USD", "base": "ACME", "quote": "USD", "tick_size": "0.01", "lot_size": "1"}
        await self.do("POST", "/v1/instruments", body=listing, key="i", **operator)
        for account in ("alice", "bob"):
            await self.do("POST", "/v1/accounts", body={"account": account}, key=f"o-{account}", **custodian)
            for asset in ("USD", "ACME"):
                body = {"kind": "deposit", "account": account, "asset": asset, "amount": "1000000"}
                await self.do("POST", "/v1/transfers", body=body, key=f"d-{account}-{asset}", **custodian)

    async def start_again(self, name: str, *, load_goes_on: bool = False) -> None:
        """Start a member that ended, wait until it is ready and, while nothing else happens, has caught up."""
        self.launcher.start(name, die_with_us=True)
        await asyncio.to_thread(self.launcher.wait_ready, timeout_ms=30_000)
        if not load_goes_on:
            await self.agreed()

    async def agreed(self) -> tuple[int, str]:
        """Wait until the replicas stand at one index; returns it and the digest that both have there."""
        deadline = time.monotonic() + 20
        views: list[Any] = []
        while time.monotonic() < deadline:
            views = [await self.status(name) for name in REPLICAS]
            if len({view["applied_index"] for view in views}) == 1:
                assert len({view["digest"] for view in views}) == 1, views
                return views[0]["applied_index"], views[0]["digest"]
            await asyncio.sleep(0.05)
        raise AssertionError(f"replicas do not come together: {views}")


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    group = Group(tmp_path / "cluster")
    try:
        for name in group.members:
            group.launcher.start(name, die_with_us=True)
        group.launcher.wait_ready(timeout_ms=30_000)
        yield group
    finally:
        run_down(group.launcher)


def test_orders_survive_the_death_of_the_leader(group: Group) -> None:
    async def talk() -> None:
        await group.list_market()
        placed: dict[str, str] = {}

        async def place(number: int) -> None:
            body, account = (BUY, "alice") if number % 2 else (SELL, "bob")
            key = f"k-{number}"
            members = REPLICAS if number % 3 else REPLICAS[::-1]
            answer = await group.do("POST", "/v1/orders", body=body, key=key, accounts=(account,), members=members)
            placed[key] = answer["id"]

        await asyncio.gather(*(place(number) for number in range(50)))
        leader = await group.leader()
        running = [asyncio.create_task(place(number)) for number in range(50, 150)]
        await asyncio.sleep(0.05)
        group.launcher.kill(leader)
        began = time.monotonic()
        await asyncio.gather(*running)
        assert time.monotonic() - began < 10
        assert len(placed) == 150

        await group.start_again(leader)
        # Every acknowledged order is there once, under its key, on both replicas.
        assert len(set(placed.values())) == 150
        for number in (0, 1, 49, 50, 75, 100, 149):
            account = "alice" if number % 2 else "bob"
            for member in REPLICAS:
                status, told = await group.once(member, "GET", f"/v1/commands/k-{number}", accounts=(account,))
                assert (status, told["id"]) == (200, placed[f"k-{number}"])
        for member in REPLICAS:
            alice = await group.do("GET", "/v1/accounts/alice", members=(member,))
            acme = next(one for one in alice["balances"] if one["asset"] == "ACME")
            assert acme == {"asset": "ACME", "available": "1000075", "held": "0"}
        await group.close()

    asyncio.run(talk())


def test_a_member_that_is_told_to_go_leaves_in_order(group: Group) -> None:
    async def talk() -> None:
        await group.list_market()
        leader = await group.leader()
        other = next(name for name in REPLICAS if name != leader)
        await group.do("POST", "/v1/orders", body=BUY, key="one")
        group.launcher.signal(leader, signal.SIGTERM)
        await group.do("POST", "/v1/orders", body=BUY, key="two", members=(other,))
        assert group.launcher.stop([leader], timeout_ms=15_000) in ({leader: "stopped"}, {leader: "not running"})
        said = [json.loads(line) for line in group.folder.log(leader).read_text("utf-8").splitlines()]
        assert said[-1]["event"] == "stopped", said
        # No election had to be waited for.
        assert [one["handed_over"] for one in said if one["event"] == "leadership"] == [True]
        await group.start_again(leader)
        witness = next(name for name in group.members if name not in REPLICAS)
        status, error = await group.once(witness, "GET", "/v1/accounts/alice")
        assert (status, error["error"]) == (404, "not_found")
        await group.close()

    asyncio.run(talk())
