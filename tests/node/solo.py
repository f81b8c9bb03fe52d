"""A whole node over real sockets with a log of one member, and clients for its streams."""

import asyncio
import json
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp
import msgspec
import uvloop

from cluster.consensus.engine import Role
from node.app import App
from node.auth import issue_token
from node.config import NodeLimits, NodeTiming
from node.feed import Feed
from node.stream import StreamHub
from tests.node.fakes import PRIVATE_PEM, SoloEngine, make_config

QUIET = NodeTiming(flush_ms=10_000, digest_ms=3_600_000, digest_indexes=10**9, drain_ms=500, command_timeout_ms=2_000)
"""No flush and no entry of the node's own while a test looks."""


def run(work: Coroutine[Any, Any, None], *, timeout_s: float = 30.0) -> None:
    """Run a test on the loop that production uses."""

    async def bounded() -> None:
        async with asyncio.timeout(timeout_s):
            await work

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())


def token(role: str, *accounts: str, subject: str = "", lifetime_s: int = 3600) -> str:
    return issue_token(PRIVATE_PEM, subject=subject or f"a-{role}", role=role, accounts=accounts, lifetime_s=lifetime_s)


def bearer(role: str, *accounts: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(role, *accounts)}"}


class SharedLog(SoloEngine):
    """What this member commits, those who follow commit too."""

    def __init__(self) -> None:
        super().__init__()
        self.followers: list[SoloEngine] = []

    def commit(self, payload: bytes) -> None:
        super().commit(payload)
        for follower in self.followers:
            follower.commit(payload)


class Solo:
    """`async with Solo(folder) as solo`: solo.client answers HTTP, solo.node holds the parts.

    follows: the log of another Solo that this one replicates. bounds: changes of NodeLimits.
    """

    def __init__(self, folder: Path, *, log: SharedLog | None = None, follows: SharedLog | None = None, **bounds: int):
        self.log: SoloEngine = log or SoloEngine()
        if follows is not None:
            self.log = SoloEngine("dc-b", ("dc-a", "tiebreaker"))
            self.log.role, self.log.leader = Role.follower, "dc-a"
            follows.followers.append(self.log)
        limits = NodeLimits(store_bytes_max=256 << 20, disk_free_bytes_min=0, disk_free_bytes_ok=0)
        limits = msgspec.structs.replace(limits, **bounds)
        self.failures: list[str] = []
        config = make_config(folder, name=self.log.member, limits=limits, timing=QUIET)
        self.app = App(config, self.log, on_fatal=lambda code, reason: self.failures.append(f"{code}: {reason}"))
        self.node = self.app.node

    @property
    def streams(self) -> StreamHub:
        return next(part for part in self.node.on_drain if isinstance(part, StreamHub))

    @property
    def feed(self) -> Feed:
        return next(part for part in self.node.on_drain if isinstance(part, Feed))

    def flush(self) -> None:
        self.node.store.flush(self.node.machine.collect())

    async def __aenter__(self) -> Self:
        await self.app.start()
        member = self.app.config.member
        self.port = member.api_port
        self.client = aiohttp.ClientSession(f"http://{member.api_host}:{member.api_port}")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()
        await self.app.drain()
        assert not self.failures, self.failures

    async def stream(self, role: str = "trader", *accounts: str, **options: Any) -> "Client":
        options.setdefault("headers", bearer(role, *accounts))
        return Client(await self.client.ws_connect("/v1/stream", **options))

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Nothing is logged inside: same index, same digest."""
        before = self.log.index, self.node.machine.digest
        yield
        assert (self.log.index, self.node.machine.digest) == before, "something was logged"


class Client:
    """A client of the stream that keeps what it was told, by kind."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self.told: list[dict[str, Any]] = []

    async def say(self, message: dict[str, Any]) -> None:
        await self.ws.send_str(json.dumps(message))

    async def hear(self, kind: str, timeout_s: float = 5.0) -> dict[str, Any]:
        """The next message of a kind; others are kept in `told`."""
        for place, message in enumerate(self.told):
            if message["stream"] == kind:
                return self.told.pop(place)
        async with asyncio.timeout(timeout_s):
            while True:
                got = await self.ws.receive()
                if got.type is aiohttp.WSMsgType.TEXT:
                    message = json.loads(got.data)
                elif got.type is aiohttp.WSMsgType.BINARY:
                    message = msgspec.msgpack.decode(got.data)
                else:
                    raise ConnectionError(f"closed with {self.ws.close_code}: {got.extra!r}")
                if message["stream"] == kind:
                    return message  # type: ignore[no-any-return]
                self.told.append(message)

    async def submit(self, *commands: dict[str, Any], number: int = 1) -> list[dict[str, Any]]:
        await self.say({"action": "submit", "id": number, "commands": list(commands)})
        answers = await self.hear("results")
        assert answers["id"] == number
        return answers["results"]  # type: ignore[no-any-return]

    async def close(self) -> None:
        await self.ws.close()


KEYS = iter(range(1, 10**9))


def command(do: str, **fields: Any) -> dict[str, Any]:
    return {"do": do, "key": f"k{next(KEYS)}", **fields}


async def list_market(solo: Solo, *accounts: str, cash: str = "100000", shares: str = "1000") -> None:
    """AAPL quoted in USD, and accounts that hold both."""
    operator = await solo.stream("operator")
    for one in (
        command("add_asset", asset="USD", scale=2),
        command("add_asset", asset="AAPL", scale=0),
        command("add_instrument", symbol="AAPL-USD", base="AAPL", quote="USD", tick_size="0.01", lot_size="1"),
    ):
        answers = await operator.submit(one)
        assert "error" not in answers[0], answers
    custodian = await solo.stream("custodian", "*")
    for account in accounts:
        answers = await custodian.submit(
            command("open_account", account=account),
            command("transfer", kind="deposit", account=account, asset="USD", amount=cash),
            command("transfer", kind="deposit", account=account, asset="AAPL", amount=shares),
        )
        assert not [one for one in answers if "error" in one], answers
    await operator.close()
    await custodian.close()


def order(side: str, qty: int, price: str, **fields: Any) -> dict[str, Any]:
    return command("place", symbol="AAPL-USD", side=side, type="limit", qty=qty, limit_price=price, **fields)
