"""A whole node in one process without consensus: real door, rules, store, stream and feed; a log of one member."""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Self

import aiohttp
import msgspec
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cluster.consensus.engine import EngineStatus, Role
from cluster.topology import Member, MemberRole, Topology
from node import feed, limits, openapi, stream
from node.answers import Answers
from node.api import accounts, commands, markets, orders, status
from node.auth import Authenticator, issue_token
from node.catalogue import Catalogue
from node.config import NodeConfig, NodeLimits, NodeTiming, Retention
from node.context import NODE, Node
from node.door import Door
from node.event_views import EventViews
from node.intake import Intake
from node.metrics import Metrics
from node.ratelimit import RateLimiter, Rates
from node.reads import Reads
from node.session_token import SessionTokens
from node.submit import Submitter
from statemachine.machine import Machine
from statemachine.store import Store


@cache
def key_pair() -> tuple[str, str]:
    """(private, public) PEM, made for this run."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private.decode(), public.decode()


def token(role: str, *accounts: str, subject: str = "", lifetime_s: int = 3600) -> str:
    return issue_token(
        key_pair()[0], subject=subject or f"a-{role}", role=role, accounts=accounts, lifetime_s=lifetime_s
    )


def bearer(role: str, *accounts: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(role, *accounts)}"}


def free_port() -> int:
    """A port below the kernel's own range, so that no outgoing connection takes it first."""
    for port in range(20_000 + time.time_ns() % 10_000, 32_700):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")


class SoloLog:
    """An engine of one member: what is proposed is committed in the next turn of the loop, to all who follow."""

    def __init__(self, name: str = "solo") -> None:
        self.name = name
        self.on_committed: Callable[[int, bytes], None] = lambda index, payload: None
        self.on_role: Callable[[], None] = lambda: None
        self.on_message: Callable[[str, str, bytes], None] = lambda member, kind, body: None
        self.followers: list[Callable[[int, bytes], None]] = []
        self.index = 0
        self.payloads: list[bytes] = []
        self.reads = 0

    async def start(self, *, applied_index: int) -> None:
        self.index = applied_index
        self.on_role()

    async def stop(self) -> None:
        pass

    def propose(self, payload: bytes) -> None:
        asyncio.get_running_loop().call_soon(self._commit, payload)

    def _commit(self, payload: bytes) -> None:
        self.index += 1
        self.payloads.append(payload)
        for take in (self.on_committed, *self.followers):
            take(self.index, payload)

    async def read_index(self, *, timeout_ms: int) -> int:
        self.reads += 1
        return self.index

    async def transfer_leadership(self, target: str | None, *, timeout_ms: int) -> bool:
        return False

    def set_stored_index(self, index: int) -> None:
        pass

    def send(self, member: str, kind: str, body: bytes) -> bool:
        return False

    def status(self) -> EngineStatus:
        i = self.index
        return EngineStatus(self.name, Role.leader, self.name, 1, True, 1, i, i, i, i, 0, [])


def config(data_dir: Path, **bounds: int) -> NodeConfig:
    member = Member("solo", "dc-a", MemberRole.replica, "127.0.0.1", 1, "127.0.0.1", 2)
    values: dict[str, Any] = {
        "name": "solo",
        "topology": Topology("test", [member]),
        "data_dir": data_dir,
        "token_public_key": key_pair()[1].encode(),
        "session_key": bytes(32),
        "api_tls": None,
        "timing": NodeTiming(),
        "limits": msgspec.structs.replace(NodeLimits(), **bounds),
        "retention": Retention(),
        "log_level": "info",
    }
    # What is left are files of certificates, which nothing here opens.
    return NodeConfig(**{name: values.get(name, data_dir) for name in NodeConfig.__struct_fields__})


class Solo:
    """`async with Solo(tmp_path) as solo`: solo.url answers HTTP, solo.node holds the parts."""

    def __init__(
        self,
        data_dir: Path,
        *,
        log: SoloLog | None = None,
        follows: SoloLog | None = None,
        http: limits.HttpLimits | None = None,
        **bounds: int,
    ) -> None:
        self.node = node = Node()
        self.log = log or SoloLog()
        self.follows = follows
        node.config = config(data_dir, **bounds)
        node.engine = self.log
        node.store = Store(data_dir, cluster_id="test", member="solo", map_size_bytes=256 << 20)
        node.history = node.store.history
        node.machine = machine = Machine(node.store, node.store.load())
        node.catalogue = Catalogue(machine, node.history)
        node.door = Door(node.catalogue, account_secret=bytes(32))
        node.reads = Reads(self.log, lambda: machine.applied_index, node.config.timing)
        node.intake = Intake(node.door, node.reads)
        node.submitter = Submitter(self.log, node.history, node.config.limits, node.config.timing)
        node.answers = Answers(node.store, node.history, machine, node.catalogue)
        node.authenticator = Authenticator([key_pair()[1]])
        node.session_tokens = SessionTokens(bytes(32), epoch=node.epoch)
        rates = Rates(commands_per_s=node.config.limits.rate_per_s, burst=node.config.limits.rate_burst)
        node.limiter = RateLimiter(rates)
        node.metrics = Metrics("solo", "replica")
        self.log.on_committed = self._apply
        self.log.on_role = node.submitter.role_changed
        self.http = http or limits.HttpLimits.of(node.config.limits)
        self.guard = limits.ConnectionGuard(self.http)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def _apply(self, index: int, payload: bytes) -> None:
        node = self.node
        applied = node.machine.apply(index, payload)
        node.store.add(applied)
        node.submitter.applied(applied, payload)
        node.reads.applied(index)
        for hook in node.on_applied:
            hook(applied)

    def flush(self) -> None:
        self.node.store.flush(self.node.machine.collect())

    async def __aenter__(self) -> Self:
        node = self.node
        views = EventViews(node.catalogue)
        app = web.Application(middlewares=limits.middlewares(node, self.http), client_max_size=self.http.body_bytes_max)
        app[NODE] = node
        self.streams = stream.add_routes(app, node, views)
        self.feed = feed.add_routes(app, node, views, node.catalogue)
        openapi.add_routes(app, node)
        for routes in (*(module.ROUTES for module in (orders, accounts, markets, commands)), status.routes(node)):
            app.router.add_routes(routes)
        if self.follows is not None:
            self.follows.followers.append(self._apply)
        await self.log.start(applied_index=node.machine.applied_index)
        node.submitter.refusal = None
        node.ready = True
        self._runner = web.AppRunner(app, shutdown_timeout=0.5, **self.http.runner_options())  # type: ignore[arg-type]
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self.guard.factory(server), "127.0.0.1", self.port)
        self.guard.start(every_s=0.05)
        self.client = aiohttp.ClientSession(self.url, json_serialize=json.dumps)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()
        self._server.close()
        await self.guard.stop()
        for part in self.node.on_drain:
            await part.drain(timeout_ms=200)
        await self._runner.cleanup()
        self.node.store.close()

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
