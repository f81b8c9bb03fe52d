"""A group of one for tests of the node: an engine that commits at once in the process, and members made around it."""

import asyncio
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from cluster.certificates import TlsFiles
from cluster.consensus.engine import ChangeRefused, ConsensusError, EngineStatus, GroupStatus, PeerStatus, Role
from cluster.consensus.messages import SnapshotOffer
from cluster.consensus.snapshots import SnapshotHome
from cluster.membership import Change, Configuration, InvalidChange, changed
from cluster.topology import Member, MemberRole, Topology
from node.app import App
from node.auth import issue_token
from node.config import NodeConfig, NodeLimits, NodeTiming, Retention

_SIGNING = Ed25519PrivateKey.generate()
PRIVATE_PEM = _SIGNING.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
PUBLIC_PEM = _SIGNING.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
SESSION_KEY = bytes(range(32))


class SoloEngine:
    """Implements Engine for one member: each entry commits in the next round of the loop, unless it is held.

    hold: keep entries back until `release`. refuse: raised by every proposal and read. sent: messages that
    were sent; `refuse_sends` makes send() say no. Set role, leader and term, then call `changed`.
    """

    def __init__(self, member: str = "dc-a", others: tuple[str, ...] = ("dc-b", "tiebreaker")) -> None:
        self.on_committed: Callable[[int, bytes], None] = lambda index, payload: None
        self.on_role: Callable[[], None] = lambda: None
        self.on_message: Callable[[str, str, bytes], None] = lambda member, kind, body: None
        self.on_configuration: Callable[[], None] = lambda: None
        self.snapshots: SnapshotHome | None = None
        self.counters: Counter[str] = Counter()
        self.member = member
        self.others = others
        self.role = Role.leader
        self.leader: str | None = member
        self.term = 1
        self.has_quorum = True
        self.connected = True
        self.offset_ms: int | None = None
        self.hold = False
        self.refuse: ConsensusError | None = None
        self.refuse_sends = False
        self.sent: list[tuple[str, str, bytes]] = []
        self.held: list[bytes] = []
        self.proposed = 0
        self.index = 0
        self.stored_index = 0
        self.log: list[bytes] = []
        self.configuration = Configuration(0, [named(name, place) for place, name in enumerate((member, *others))])
        self.configuration_index = 0

    async def start(self, *, applied_index: int) -> None:
        self.index = applied_index

    async def stop(self) -> None:
        pass

    def propose(self, payload: bytes) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.proposed += 1
        if self.hold:
            self.held.append(payload)
        else:
            asyncio.get_running_loop().call_soon(self.commit, payload)

    def commit(self, payload: bytes) -> None:
        self.index += 1
        self.log.append(payload)
        self.on_committed(self.index, payload)

    def release(self) -> None:
        self.hold = False
        held, self.held = self.held, []
        for payload in held:
            self.commit(payload)

    def changed(self, *, role: Role, leader: str | None, term: int, has_quorum: bool = True) -> None:
        self.role, self.leader, self.term, self.has_quorum = role, leader, term, has_quorum
        self.on_role()

    async def read_index(self, *, timeout_ms: int) -> int:
        await asyncio.sleep(0)
        if self.refuse is not None:
            raise self.refuse
        return self.index

    async def transfer_leadership(self, target: str | None, *, timeout_ms: int) -> bool:
        return False

    def group(self) -> GroupStatus:
        return GroupStatus(self.configuration_index, True, self.configuration)

    async def change_membership(self, change: Change, *, timeout_ms: int) -> GroupStatus:
        await asyncio.sleep(0)
        if self.refuse is not None:
            raise self.refuse
        try:
            after = changed(self.configuration, change)
        except InvalidChange as error:
            raise ChangeRefused(str(error)) from error
        if after is not self.configuration:
            self.index += 1
            self.configuration, self.configuration_index = after, self.index
            self.on_configuration()
        return self.group()

    def needs_snapshot(self, offer: SnapshotOffer) -> bool:
        return False

    def set_stored_index(self, index: int) -> None:
        self.stored_index = index

    def send(self, member: str, kind: str, body: bytes) -> bool:
        if self.refuse_sends:
            return False
        self.sent.append((member, kind, body))
        return True

    def status(self) -> EngineStatus:
        peers = [
            PeerStatus(name, self.connected, self.index, self.stored_index, 1, self.offset_ms) for name in self.others
        ]
        return EngineStatus(
            self.member,
            self.role,
            self.leader,
            self.term,
            self.has_quorum,
            1,
            self.index,
            self.index,
            self.index,
            self.index,
            self.stored_index,
            peers,
        )


def named(name: str, place: int) -> Member:
    """A member of a group that exists in a test's mind only."""
    role = MemberRole.witness if name == "tiebreaker" else MemberRole.replica
    return Member(name, name, role, "127.0.0.1", 10_001 + 2 * place, "127.0.0.1", 10_002 + 2 * place)


def free_ports(count: int, *, first: int | None = None) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now, below those that outgoing connections take."""
    found: list[int] = []
    port = first - 1 if first is not None else random.SystemRandom().randrange(20_000, 30_000)
    while len(found) < count:
        port = port + 1 if port < 32_000 else 20_000
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
    return found


def make_config(
    folder: Path,
    *,
    name: str = "dc-a",
    limits: NodeLimits | None = None,
    timing: NodeTiming | None = None,
) -> NodeConfig:
    ports = free_ports(6)
    plan = (
        ("dc-a", "dc-a", MemberRole.replica),
        ("dc-b", "dc-b", MemberRole.replica),
        ("tiebreaker", "tiebreaker", MemberRole.witness),
    )
    members = [
        Member(member, site, role, "127.0.0.1", ports[2 * i], "127.0.0.1", ports[2 * i + 1])
        for i, (member, site, role) in enumerate(plan)
    ]
    nowhere = folder / "none"
    return NodeConfig(
        name=name,
        topology=Topology("test-cluster", members),
        data_dir=folder / name,
        token_public_key=PUBLIC_PEM,
        session_key=SESSION_KEY,
        tls=TlsFiles(nowhere, nowhere, nowhere),
        api_tls=None,
        timing=timing or NodeTiming(flush_ms=50, drain_ms=500, command_timeout_ms=2_000),
        limits=limits or NodeLimits(store_bytes_max=64 * 1024**2, disk_free_bytes_min=0, disk_free_bytes_ok=0),
        retention=Retention(),
        log_level="error",
    )


class Caller:
    """Calls one node over HTTP as different principals."""

    def __init__(self, app: App, session: aiohttp.ClientSession) -> None:
        self.app = app
        self.node = app.node
        member = app.config.member
        self.url = f"http://{member.api_host}:{member.api_port}"
        self.session = session
        self._keys = 0
        self._tokens: dict[tuple[str, tuple[str, ...]], str] = {}

    def token(self, role: str, *accounts: str) -> str:
        token = self._tokens.get((role, accounts))
        if token is None:
            token = issue_token(PRIVATE_PEM, subject=f"test-{role}", role=role, accounts=list(accounts))
            self._tokens[role, accounts] = token
        return token

    def key(self) -> str:
        self._keys += 1
        return f"k-{self._keys}"

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        role: str = "trader",
        accounts: tuple[str, ...] = ("alice",),
        key: str | None = None,
        headers: dict[str, str] | None = None,
        raw: bytes | None = None,
    ) -> tuple[int, Any, dict[str, str]]:
        """(status, body, headers). key: None draws one for what is not a GET; "" sends none."""
        sent = {"Authorization": f"Bearer {self.token(role, *accounts)}", **(headers or {})}
        if method != "GET" and key != "":
            sent["Idempotency-Key"] = key or self.key()
        data = raw
        if body is not None:
            data = msgspec.json.encode(body)
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        async with self.session.request(method, self.url + path, data=data, headers=sent) as response:
            content = await response.read()
            decoded = msgspec.json.decode(content) if content else None
            return response.status, decoded, {name.title(): value for name, value in response.headers.items()}

    async def ok(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        status, answer, _ = await self.call(method, path, body, **options)
        assert status == 200, (status, answer)
        return answer

    async def list_market(self) -> None:
        """USD and ACME, the instrument ACME-USD (tick 0.01, lot 1), alice and bob with 10,000 USD and 100 ACME each."""
        operator: dict[str, Any] = {"role": "operator", "accounts": ("*",)}
        custodian: dict[str, Any] = {"role": "custodian", "accounts": ("*",)}
        await self.ok("POST", "/v1/assets", {"asset": "USD", "scale": 2}, **operator)
        await self.ok("POST", "/v1/assets", {"asset": "ACME", "scale": 0}, **operator)
        await self.ok(
            "POST",
            "/v1/instruments",
            {"symbol": "ACME-USD", "base": "ACME", "quote": "USD", "tick_size": "0.01", "lot_size": "1"},
            **operator,
        )
        for account in ("alice", "bob"):
            await self.ok("POST", "/v1/accounts", {"account": account}, **custodian)
            for asset, amount in (("USD", "10000"), ("ACME", "100")):
                body = {"kind": "deposit", "account": account, "asset": asset, "amount": amount}
                await self.ok("POST", "/v1/transfers", body, **custodian)


@asynccontextmanager
async def running(config: NodeConfig, engine: Any = None) -> AsyncIterator[Caller]:
    """One member with its API on loopback."""
    failures: list[str] = []
    app = App(config, engine or SoloEngine(), on_fatal=lambda code, reason: failures.append(f"{code}: {reason}"))
    await app.start()
    try:
        async with aiohttp.ClientSession() as session:
            yield Caller(app, session)
    finally:
        await app.stop()
    assert not failures, failures
