"""TLS of the API with real clients: certificates of gateways, and new files under open connections."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import uvloop
import yarl

from cluster.certificates import make_all, make_certificate, read_certificates
from node.api_tls import ApiTlsFiles, make_context
from tests.node.fakes import Caller, make_config, running

REFUSED = (aiohttp.ClientError, ConnectionError, ssl.SSLError)


@contextlib.asynccontextmanager
async def serving(tmp_path: Path, *, required: bool) -> AsyncIterator[tuple[Caller, str]]:
    certs = tmp_path / "certs"
    make_all(certs, "c", ["localhost", "gateway-dc-a", "dc-b"])
    make_all(tmp_path / "other", "c", ["gateway-dc-a"])
    files = ApiTlsFiles(certs / "localhost.crt", certs / "localhost.key", certs / "ca.crt", required)
    config = msgspec.structs.replace(make_config(tmp_path), api_tls=files)
    async with running(config) as caller:
        yield caller, f"https://localhost:{config.member.api_port}/healthz"


def client(certs: Path, name: str = "") -> ssl.SSLContext:
    """A new one for each connection: what is refused may not be hidden by one that is kept alive."""
    context = ssl.create_default_context(cafile=certs / "ca.crt")
    if name:
        context.load_cert_chain(certs / f"{name}.crt", certs / f"{name}.key")
    return context


async def status(url: str, context: ssl.SSLContext) -> int:
    async with aiohttp.ClientSession() as session, session.get(url, ssl=context) as response:
        return response.status


def mixed(certs: Path, ours: Path, name: str) -> ssl.SSLContext:
    """Trusts `certs`, and shows what another authority signed."""
    context = client(certs)
    context.load_cert_chain(ours / f"{name}.crt", ours / f"{name}.key")
    return context


def test_nobody_without_a_certificate_where_one_is_required(tmp_path: Path) -> None:
    async def main() -> None:
        certs = tmp_path / "certs"
        async with serving(tmp_path, required=True) as (_, url):
            assert await status(url, client(certs, "gateway-dc-a")) == 200
            with pytest.raises(REFUSED):
                await status(url, client(certs))
            with pytest.raises(REFUSED):
                await status(url, mixed(certs, tmp_path / "other", "gateway-dc-a"))
            make_certificate(certs, "gateway-dc-a", days=0)
            with pytest.raises(REFUSED):
                await status(url, client(certs, "gateway-dc-a"))
            older = client(certs, "dc-b")
            assert await status(url, older) == 200
            older = client(certs, "dc-b")
            older.maximum_version = ssl.TLSVersion.TLSv1_2
            with pytest.raises(REFUSED):
                await status(url, older)

    asyncio.run(main())


def test_a_certificate_may_be_left_out_but_not_be_wrong_where_it_is_optional(tmp_path: Path) -> None:
    async def main() -> None:
        certs = tmp_path / "certs"
        async with serving(tmp_path, required=False) as (_, url):
            assert await status(url, client(certs, "gateway-dc-a")) == 200
            assert await status(url, client(certs)) == 200
            with pytest.raises(REFUSED):
                await status(url, mixed(certs, tmp_path / "other", "gateway-dc-a"))

    asyncio.run(main())


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_new_files_are_for_new_connections_and_no_other_is_cut(
    runner: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.api_tls.LOOK_S", 0.05)

    async def main() -> None:
        certs = tmp_path / "certs"
        async with serving(tmp_path, required=True) as (caller, url):
            old = client(certs, "gateway-dc-a")
            listener = caller.app._listener
            async with aiohttp.ClientSession() as session:
                async with session.get(url, ssl=old) as response:
                    assert response.status == 200
                # A wrong pair is not taken.
                good = (certs / "localhost.key").read_bytes()
                (certs / "localhost.key").write_bytes((certs / "dc-b.key").read_bytes())
                await asyncio.sleep(0.3)
                assert listener.taken == 0
                assert await status(url, client(certs, "gateway-dc-a")) == 200
                (certs / "localhost.key").write_bytes(good)
                # Another authority altogether; the old one is worth nothing to new connections.
                make_all(certs, "c", ["localhost", "gateway-dc-a"])
                for _ in range(100):
                    if listener.taken and await _serial(url, certs) == _serial_of(certs / "localhost.crt"):
                        break
                    await asyncio.sleep(0.05)
                assert await status(url, client(certs, "gateway-dc-a")) == 200
                thief = client(certs)
                thief.load_cert_chain(certs / "dc-b.crt", certs / "dc-b.key")
                with pytest.raises(REFUSED):
                    await status(url, thief)
                # The first connection is still there: a new one would not trust the new authority.
                async with session.get(url, ssl=old) as response:
                    assert response.status == 200

    runner(main())


def _serial_of(path: Path) -> int:
    return read_certificates(path)[0].serial_number


async def _serial(url: str, certs: Path) -> int:
    try:
        _, writer = await asyncio.open_connection("localhost", yarl.URL(url).port, ssl=client(certs, "gateway-dc-a"))
    except REFUSED:
        return 0
    serial = int(writer.get_extra_info("peercert")["serialNumber"], 16)
    writer.transport.abort()
    return serial


def test_a_context_is_of_files_that_fit(tmp_path: Path) -> None:
    make_all(tmp_path, "c", ["localhost", "x"])
    with pytest.raises(ssl.SSLError):
        make_context(ApiTlsFiles(tmp_path / "localhost.crt", tmp_path / "x.key"))
    with pytest.raises(ssl.SSLError):
        make_context(ApiTlsFiles(tmp_path / "x.crt", tmp_path / "x.key", tmp_path / "ca.key"))
    assert make_context(ApiTlsFiles(tmp_path / "x.crt", tmp_path / "x.key")).verify_mode is ssl.CERT_NONE
