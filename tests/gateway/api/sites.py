"""Whole gateways of two sites over real sockets and a real cache, in front of a real node; and who calls them."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from cluster.certificates import make_all
from gateway.app import App
from gateway.config import GatewayConfig, read_gateway
from gateway.feeds.clock import now_us
from gateway.feeds.ticks import Quote, Status, StatusKind, Trade
from gateway.prefs.seal import make_key_file
from tests.node.fakes import PUBLIC_PEM, SESSION_KEY, free_ports
from tests.node.solo import Solo, command, list_market, order, token

E9 = 10**9
SITES = ("dc-a", "dc-b")

TOML = """
site = "{site}"
cluster_id = "test-cluster"
data_dir = "{site}"
workers = {workers}
[listen]
port = {port}
link_port = {link_port}
[nodes]
addresses = [{nodes}]
token_file = "auditor.token"
[keys]
token_public_key = "token.pub"
session_key = "session.key"
seal_keys = "seal.keys"
[tls]
ca = "certs/ca.crt"
cert = "certs/gateway-{site}.crt"
key = "certs/gateway-{site}.key"
[[peers]]
site = "{other}"
host = "127.0.0.1"
port = {other_port}
[limits]
drain_ms = 300
{limits}
{more}
"""


class Answer:
    """What a gateway said."""

    def __init__(self, status: int, headers: Any, raw: bytes, body: Any) -> None:
        self.status, self.headers, self.raw, self.body = status, headers, raw, body

    @property
    def staleness_ms(self) -> int:
        return int(self.headers["X-Staleness-Ms"])


class Site:
    """One gateway, and a client of it."""

    def __init__(self, config: GatewayConfig, session: aiohttp.ClientSession) -> None:
        self.config = config
        self.app = App(config)
        self.session = session
        self.url = f"http://127.0.0.1:{config.listen.port}"

    @property
    def core(self) -> Any:
        return self.app.core

    async def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        role: str = "trader",
        accounts: tuple[str, ...] = ("anna",),
        body: Any = None,
        bearer: str | None = None,
        **headers: str,
    ) -> Answer:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if bearer != "":
            sent["Authorization"] = f"Bearer {bearer or token(role, *accounts)}"
        async with self.session.request(method, self.url + path, json=body, headers=sent) as response:
            raw = await response.read()
            parsed = await response.json() if "json" in response.headers.get("Content-Type", "") and raw else None
            return Answer(response.status, response.headers, raw, parsed)

    async def reaches(self, index: int) -> None:
        assert await self.core.projection.wait_for(index, timeout_ms=10_000), self.core.projection.standing

    def quote(self, symbol: str, bid: str, ask: str, *, venue: str = "sim-a", age_us: int = 0) -> None:
        at_us = now_us() - age_us
        self.core.take(
            [Quote(symbol, venue, round(float(bid) * E9), 100 * E9, round(float(ask) * E9), 200 * E9, at_us, at_us)]
        )

    def trade(self, symbol: str, price: str, *, venue: str = "sim-a", size: int = 1, at_us: int = 0) -> None:
        at_us = at_us or now_us()
        number = str(self.core.market.ticks)
        self.core.take([Trade(symbol, venue, round(float(price) * E9), size * E9, at_us, now_us(), number)])

    def silence(self, venue: str = "sim-a") -> None:
        self.core.take([Status(venue, StatusKind.DOWN, now_us())])


@asynccontextmanager
async def sites(
    *nodes: str, count: int = 1, limits: str = "", more: str = "", workers: int = 0, start: bool = True
) -> AsyncIterator[list[Site]]:
    """`count` gateways over these nodes. The folder has a short name, for the sake of unix sockets."""
    root = Path(tempfile.mkdtemp(prefix="tbgw"))
    try:
        write_keys(root)
        ports = free_ports(4)
        files = [
            write_file(root, number, ports, nodes=nodes, limits=limits, more=more, workers=workers)
            for number in range(count)
        ]
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(aiohttp.ClientSession())
            made = [Site(read_gateway(path), session) for path in files]
            for site in made if start else []:
                await site.app.start()
                stack.push_async_callback(site.app.stop)
            yield made
    finally:
        shutil.rmtree(root, ignore_errors=True)


def write_keys(root: Path) -> None:
    make_all(root / "certs", "test-cluster", [f"gateway-{site}" for site in SITES])
    make_key_file(root / "seal.keys")
    (root / "token.pub").write_bytes(PUBLIC_PEM)
    (root / "session.key").write_text(SESSION_KEY.hex())
    (root / "auditor.token").write_text(token("auditor", subject="gateway"))


def write_file(
    root: Path, number: int, ports: list[int], *, nodes: tuple[str, ...], limits: str, more: str, workers: int
) -> Path:
    path = root / f"{SITES[number]}.toml"
    path.write_text(
        TOML.format(
            site=SITES[number],
            other=SITES[1 - number],
            port=ports[number],
            link_port=ports[2 + number],
            other_port=ports[3 - number],
            nodes=", ".join(f'"{node}"' for node in nodes),
            limits=limits,
            more=more,
            workers=workers,
        )
    )
    return path


def url(solo: Solo) -> str:
    return f"http://127.0.0.1:{solo.port}"


@asynccontextmanager
async def market(folder: Path, *, count: int = 1, **options: Any) -> AsyncIterator[tuple[Solo, list[Site]]]:
    """A node where anna and bert hold USD and AAPL and AAPL-USD is listed, and gateways that follow it."""
    async with Solo(folder) as solo:
        await list_market(solo, "anna", "bert")
        async with sites(url(solo), count=count, **options) as made:
            for site in made:
                await site.reaches(solo.log.index)
            yield solo, made


async def trades(solo: Solo, qty: int = 10, price: str = "100.00") -> str:
    """bert sells to anna; gives the session token of her fill."""
    bert = await solo.stream("trader", "bert")
    await bert.submit(order("sell", qty, price))
    await bert.close()
    body = order("buy", qty, price)
    key = body.pop("key")
    body.pop("do")
    headers = {"Authorization": f"Bearer {token('trader', 'anna')}", "Idempotency-Key": key}
    async with solo.client.post("/v1/orders", json=body, headers=headers) as response:
        assert response.status == 200, await response.text()
        return response.headers["X-Session-Token"]


async def until(holds: Callable[[], bool], *, within_s: float = 5.0) -> None:
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


__all__ = ["Answer", "Site", "command", "market", "sites", "trades", "until", "url"]
