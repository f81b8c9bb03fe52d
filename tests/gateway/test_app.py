"""A gateway as a process: it says what keeps it from starting, drains when told to, and leaves nothing behind."""

import asyncio
import os
import re
import signal
import ssl
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from cluster.certificates import make_certificate
from cluster.folder import ClusterFolder, create
from gateway.api.relayed import NOT_RELAYED
from gateway.config import InvalidGateway, read_gateway
from gateway.prefs.seal import read_keyring
from node import openapi
from node.auth import Authenticator, public_keys
from tests.gateway.api.sites import market, sites, url, write_file, write_keys
from tests.node.fakes import free_ports
from tests.node.solo import Solo, bearer, list_market, token

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tbgw") as folder:
        write_keys(Path(folder))
        yield Path(folder)


def written(root: Path, *nodes: str, workers: int = 0, more: str = "") -> Path:
    return write_file(root, 0, free_ports(4), nodes=nodes or (NOWHERE,), limits="", more=more, workers=workers)


class Process:
    """`python -m gateway FILE`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def __aenter__(self) -> "Process":
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "gateway", str(self.path), stderr=asyncio.subprocess.PIPE
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()

    async def ends(self) -> tuple[int | None, str]:
        _, talk = await asyncio.wait_for(self.process.communicate(), 30)
        return self.process.returncode, talk.decode()


async def ready(session: aiohttp.ClientSession, port: int) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while True:
            try:
                async with session.get(f"http://127.0.0.1:{port}/readyz") as response:
                    if response.status == 200:
                        return dict(await response.json())
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)


async def test_a_bad_file_is_said_with_the_setting_before_anything_starts(root: Path) -> None:
    path = written(root)
    text = path.read_text()
    for broken, says in (
        (text.replace("workers = 0", "workers = 65"), "workers = 65"),
        (text.replace("drain_ms = 300", "drain_ms = -1"), "limits.drain_ms = -1"),
        (text.replace('"token.pub"', '"nowhere.pub"'), "keys.token_public_key = 'nowhere.pub': no such file"),
        (text.replace("[limits]", "[limit]"), "limit"),
        ("site = ", "Invalid value"),
    ):
        path.write_text(broken)
        async with Process(path) as gateway:
            code, talk = await gateway.ends()
        assert code == 2 and talk.startswith("invalid_gateway: ") and says in talk, talk
        assert "Traceback" not in talk
    assert not (root / "dc-a").exists()


async def test_a_taken_port_is_said_and_nothing_is_left(root: Path) -> None:
    path = written(root)
    config = read_gateway(path)
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", config.listen.port)
    async with Process(path) as gateway:
        code, talk = await gateway.ends()
    server.close()
    assert code == 1 and "could not start" in talk and str(config.listen.port) in talk
    assert "Traceback" not in talk and not list((root / "dc-a" / "cache").glob("*.sock"))


async def test_sigterm_drains_and_ends_with_0(root: Path, tmp_path: Path) -> None:
    async with Solo(tmp_path) as solo:
        await list_market(solo, "anna")
        path = written(root, url(solo))
        config = read_gateway(path)
        async with Process(path) as gateway, aiohttp.ClientSession() as session:
            said = await ready(session, config.listen.port)
            assert said == {"gateway": "gateway-dc-a", "cluster_id": "test-cluster", "ready": True}
            address = f"http://127.0.0.1:{config.listen.port}"
            async with session.ws_connect(f"{address}/v1/stream", headers=bearer("trader", "anna")) as stream:
                await stream.send_json({"action": "subscribe", "channel": "orders", "symbols": ["anna"]})
                gateway.process.send_signal(signal.SIGTERM)
                told = []
                async with asyncio.timeout(10):
                    while (message := await stream.receive()).type is aiohttp.WSMsgType.TEXT:
                        told.append(message.json())
                assert stream.close_code == 1012  # service restart
                assert any("resume" in one or one.get("stream") == "closing" for one in told), told
            code, talk = await gateway.ends()
        assert code == 0 and '"draining"' in talk and '"stopped"' in talk, talk
        assert not list((root / "dc-a" / "cache").glob("*.sock"))


async def test_a_killed_gateway_leaves_no_cache_server_and_starts_again(root: Path, tmp_path: Path) -> None:
    async with Solo(tmp_path) as solo:
        await list_market(solo, "anna")
        path = written(root, url(solo))
        port = read_gateway(path).listen.port
        async with aiohttp.ClientSession() as session:
            for _ in range(2):
                async with Process(path) as gateway:
                    await ready(session, port)
                    gateway.process.kill()
                    await gateway.process.wait()
                async with asyncio.timeout(5):
                    while servers_of(root):  # noqa: ASYNC110 - another process's end has no event here
                        await asyncio.sleep(0.05)


def servers_of(root: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"unixsocket" in line and os.fsencode(root) in line:
                found.append(int(entry.name))
    return found


async def test_workers_share_the_port_and_ask_the_core(root: Path, tmp_path: Path) -> None:
    async with Solo(tmp_path) as solo:
        await list_market(solo, "anna")
        path = written(root, url(solo), workers=2)
        port = read_gateway(path).listen.port
        async with Process(path) as gateway, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            await ready(session, port)
            headers = bearer("trader", "anna")
            async with asyncio.timeout(20):
                while True:
                    async with session.get("/v1/portfolio", headers=headers) as response:
                        if response.status == 200:
                            body = await response.json()
                            break
                    await asyncio.sleep(0.1)
            assert body["account"] == "anna" and response.headers["X-Staleness-Ms"]
            order = {"symbol": "AAPL-USD", "side": "buy", "type": "limit", "qty": "1", "limit_price": "1.00"}
            async with session.post("/v1/orders", json=order, headers=headers | {"Idempotency-Key": "w-1"}) as response:
                assert (response.status, (await response.json())["status"]) == (200, "new")
            async with session.get("/v1/portfolio") as response:
                assert (response.status, (await response.json())["error"]) == (401, "unauthenticated")
            async with session.ws_connect("/v1/stream", headers=headers) as stream:
                await stream.send_json({"action": "subscribe", "channel": "portfolio", "symbols": ["anna"]})
                async with asyncio.timeout(10):
                    while True:
                        said = await stream.receive_json()
                        if said.get("stream") == "data":
                            break
                (update,) = said["updates"]
                assert update["portfolio"]["account"] == "anna"
                # What the workers do is told by the core: in its metrics, and to whoever asks how the gateway is.
                async with asyncio.timeout(10):
                    while True:
                        async with session.get("/v1/gateway", headers=headers) as response:
                            status = await response.json()
                        if status["streams"] and status["workers"] == 2:
                            break
                        await asyncio.sleep(0.1)
                assert (status["streams"], status["workers_wanted"]) == (1, 2) and status["connections"] >= 2
                async with session.get("/metrics") as response:
                    told = numbers(await response.text())
            processes = [f'{{process="{number}"}}' for number in range(2)]
            assert sum(told[f"tiebreak_gateway_stream_connections{one}"] for one in processes) == 1
            assert sum(told[f"tiebreak_gateway_stream_opened_total{one}"] for one in processes) == 1
            assert all(told[f"tiebreak_gateway_stream_cpu_seconds_total{one}"] > 0 for one in processes)
            assert told["tiebreak_gateway_connections"] == sum(
                told[f"tiebreak_gateway_stream_http_connections{one}"] for one in processes
            )
            assert (told["tiebreak_gateway_streams"], told["tiebreak_gateway_workers"]) == (1, 2)
            assert told["tiebreak_gateway_workers_missing"] == 0
            assert told["tiebreak_gateway_connections_max"] == 100_000
            gateway.process.send_signal(signal.SIGTERM)
            code, talk = await gateway.ends()
        assert code == 0, talk


async def test_workers_serve_tls_and_take_a_new_certificate_while_streams_go_on(root: Path, tmp_path: Path) -> None:
    make_certificate(root / "certs", "api", hosts=["127.0.0.1"])
    trusting = ssl.create_default_context(cafile=root / "certs" / "ca.crt")
    async with Solo(tmp_path) as solo:
        await list_market(solo, "anna")
        path = written(root, url(solo), workers=1)
        path.write_text(path.read_text().replace("[listen]", '[listen]\ncert = "certs/api.crt"\nkey = "certs/api.key"'))
        port = read_gateway(path).listen.port
        headers = bearer("trader", "anna")
        async with (
            Process(path),
            aiohttp.ClientSession(
                f"https://127.0.0.1:{port}", connector=aiohttp.TCPConnector(ssl=trusting, force_close=True)
            ) as session,
        ):
            async with asyncio.timeout(60):
                while True:
                    try:
                        async with session.get("/v1/portfolio", headers=headers) as response:
                            if response.status == 200:
                                break
                    except aiohttp.ClientError:
                        pass
                    await asyncio.sleep(0.1)
            async with session.ws_connect("/v1/stream", headers=headers) as stream:
                await stream.send_json({"action": "subscribe", "channel": "portfolio", "symbols": ["anna"]})
                await told(stream, "data")
                before = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))
                make_certificate(root / "certs", "api")
                async with asyncio.timeout(30):
                    while await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port)) == before:  # noqa: ASYNC110
                        await asyncio.sleep(0.2)
                await told(stream, "data")  # the old connection goes on
            async with session.get("/readyz") as response:
                assert response.status == 200
            with pytest.raises(aiohttp.ClientError):
                async with session.get(f"http://127.0.0.1:{port}/readyz"):
                    pass


async def told(stream: aiohttp.ClientWebSocketResponse, kind: str) -> Any:
    async with asyncio.timeout(15):
        while (said := await stream.receive_json()).get("stream") != kind:
            pass
    return said


async def test_a_certificate_that_can_not_be_used_keeps_workers_from_starting(root: Path) -> None:
    path = written(root, workers=1)
    path.write_text(
        path.read_text().replace(
            "[listen]", '[listen]\ncert = "certs/gateway-dc-a.crt"\nkey = "certs/gateway-dc-b.key"'
        )
    )
    async with Process(path) as gateway:
        code, talk = await gateway.ends()
    assert code == 1 and "could not start" in talk and "KEY_VALUES_MISMATCH" in talk, talk


def numbers(text: str) -> dict[str, float]:
    """A page of metrics, by name and labels."""
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in text.splitlines())
        if name[:1] not in ("", "#")
    }


async def test_not_ready_before_it_has_the_state_of_a_node() -> None:
    async with sites(NOWHERE) as (site,):
        answer = await site.ask("/readyz", bearer="")
        assert (answer.status, answer.body["ready"]) == (503, False) and answer.headers["Retry-After"]
        shown = await site.ask("/v1/portfolio")
        assert shown.status == 503  # nothing is known, and no node can be asked
        site.quote("AAPL", "1", "2")
        assert (await site.ask("/v1/market/quotes?symbols=AAPL")).status == 200  # what needs no node is served


async def test_bad_requests_end_in_words(tmp_path: Path) -> None:
    async with market(tmp_path) as (_, (site,)):
        for path, method, headers, status, word in (
            ("/nowhere", "GET", {}, 404, "not_found"),
            ("/v1/nowhere", "GET", {}, 404, "not_found"),
            ("/v1/market/quotes", "POST", {"Content-Type": "application/json"}, 405, "method_not_allowed"),
            ("/v1/preferences", "PATCH", {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
            ("/v1/preferences", "PATCH", {"Content-Encoding": "gzip"}, 415, "unsupported_media_type"),
        ):
            sent = {"Authorization": f"Bearer {token('trader', 'anna')}"} | headers
            async with site.session.request(method, site.url + path, data=b"\x00\xff", headers=sent) as response:
                assert (response.status, (await response.json())["error"]) == (status, word), path
        big = b"x" * 300_000
        sent = {"Authorization": f"Bearer {token('trader', 'anna')}", "Content-Type": "application/json"}
        async with site.session.patch(site.url + "/v1/preferences", data=big, headers=sent) as response:
            assert (response.status, (await response.json())["error"]) == (413, "too_large")
        reader, writer = await asyncio.open_connection("127.0.0.1", site.config.listen.port)
        writer.write(os.urandom(512))
        said = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        assert b"400" in said.split(b"\r\n", 1)[0] and b"malformed" in said


async def test_the_document_names_every_route(tmp_path: Path) -> None:
    async with sites(NOWHERE) as (site,):
        document = (await site.ask("/openapi.json", bearer="")).body
        routes = {
            (route.method.lower(), route.resource.canonical)
            for route in site.app.api.app.router.routes()
            if route.resource is not None and route.method not in ("*", "HEAD")
        }
        named = {(method, path) for path, methods in document["paths"].items() for method in methods}
        untold = {"/openapi.json", "/docs", "/v1/stream", "/v1/orders/stream"}
        assert routes - named == {("get", path) for path in untold}
        # The rest is behind patterns of paths; that a node answers each is for tests/gateway/api/test_one_address.py.
        relayed = {(one.method, one.path) for one in openapi.TABLE} - NOT_RELAYED.keys()
        assert relayed <= named and named - routes <= relayed
        assert (
            document["paths"]["/v1/orders"]["post"]["requestBody"] and "PlaceOrder" in document["components"]["schemas"]
        )
        references = set(re.findall(r"#/components/schemas/(\w+)", msgspec.json.encode(document).decode()))
        assert references <= set(document["components"]["schemas"])


async def test_the_page_for_people_fetches_nothing_and_names_every_path() -> None:
    async with sites(NOWHERE) as (site,):
        answer = await site.ask("/docs", bearer="")
        text = answer.raw.decode()
        assert answer.status == 200 and answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert answer.headers["Content-Type"].startswith("text/html")
        assert not re.findall(r"(?:src|href)=[\"'](?!openapi\.json|#)[^\"']*", text) and "//" not in text
        ids = re.findall(r'id="(\w+)"', text)
        assert set(re.findall(r'href="#(\w+)"', text)) <= set(ids) and len(ids) == len(set(ids))
        for path in (await site.ask("/openapi.json", bearer="")).body["paths"]:
            assert f"<code>{path}</code>" in text, path
        for word in (
            "outcome_unknown",
            "no_node",
            "only_at_nodes",
            "cancel_on_disconnect",
            "unsubscribe",
            *NOT_RELAYED.values(),
        ):
            assert word in text, word


@pytest.mark.parametrize("shape", ["1+1+1", "2+2+1"])
def test_what_cluster_init_writes_is_a_gateways(shape: str, tmp_path: Path) -> None:
    create(tmp_path / "c", shape=shape, base_port=7700)
    folder = ClusterFolder(tmp_path / "c")
    configs = [read_gateway(folder.config(name)) for name in folder.gateway_names()]
    assert [(one.site, one.listen.port, one.listen.link_port) for one in configs] == [
        ("dc-a", 7720, 7725),
        ("dc-b", 7721, 7726),
    ]
    for one, other in zip(configs, reversed(configs), strict=True):
        assert one.peers == {other.site: (other.listen.host, other.listen.link_port)}
        principal = Authenticator(public_keys(one.token_public_key)).verify(one.token_file.read_text().strip())
        assert (principal.role, principal.all_accounts) == ("auditor", True)
        assert read_keyring(one.seal_keys).newest == 1
        assert one.token_file.stat().st_mode & 0o077 == 0
    # Each asks its own site first.
    assert configs[1].nodes.addresses[0].endswith("7711" if shape == "1+1+1" else "7712")


def test_a_gateway_of_another_site_may_not_use_this_certificate(root: Path) -> None:
    path = written(root)
    path.write_text(path.read_text().replace("certs/gateway-dc-a", "certs/gateway-dc-b"))
    with pytest.raises(InvalidGateway, match="tls"):
        read_gateway(path)
