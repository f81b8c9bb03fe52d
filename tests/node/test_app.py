"""A member's life around its requests: the witness's few answers, leaving in order, the account of itself."""

import asyncio
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from cluster.certificates import make_all
from cluster.consensus.engine import Role
from node.api_tls import ApiTlsFiles
from node.app import EXIT_DIVERGED, App, Diverged
from node.install import DIVERGED_FILE
from statemachine.codec import Envelope, encode_batch, encode_command
from statemachine.commands import ReportDigest, TimeStep
from statemachine.machine import Machine
from statemachine.memory import MemoryBacking
from statemachine.types import SYSTEM_ACCOUNTS
from tests.node.fakes import SoloEngine, make_config, running

BUY = {"symbol": "ACME-USD", "side": "buy", "type": "limit", "qty": "10", "limit_price": "99.50"}


def test_a_witness_tells_how_it_is_and_nothing_else(tmp_path: Path) -> None:
    async def main() -> None:
        engine = SoloEngine("tiebreaker", ("dc-a", "dc-b"))
        async with running(make_config(tmp_path, name="tiebreaker"), engine) as caller:
            view = await caller.ok("GET", "/v1/status", role="operator", accounts=("*",))
            assert (view["name"], view["role"], view["digest"]) == ("tiebreaker", "witness", "")
            assert (await caller.call("GET", "/healthz", key=""))[0] == 200
            assert (await caller.call("GET", "/readyz", key=""))[0] == 200
            for method, path in (
                ("GET", "/v1/accounts/alice"),
                ("POST", "/v1/orders"),
                ("GET", "/v1/book/ACME-USD"),
                ("GET", "/v1/stream"),
                ("GET", "/v1/feed"),
            ):
                status, error, _ = await caller.call(method, path, BUY if method == "POST" else None)
                assert (status, error["error"]) == (404, "not_found"), path
            engine.changed(role=Role.candidate, leader=None, term=2)
            await asyncio.sleep(0.25)
            assert (await caller.call("GET", "/readyz", key=""))[0] == 503
            async with caller.session.get(caller.url + "/metrics") as response:
                page = await response.text()
            assert 'role="witness"' in page
            assert "tiebreak_ready 1.0" in page
            assert 'tiebreak_connections{kind="tcp"} 1.0' in page

    asyncio.run(main())


def test_leaving_answers_what_is_under_way_and_turns_new_commands_away(tmp_path: Path) -> None:
    async def main() -> None:
        engine = SoloEngine()
        async with running(make_config(tmp_path), engine) as caller:
            await caller.list_market()
            engine.hold = True
            under_way = asyncio.create_task(caller.call("POST", "/v1/orders", BUY))
            await asyncio.sleep(0.05)
            stops: list[str] = []
            stop, caller.app.stop = caller.app.stop, _record(stops)  # type: ignore[method-assign]
            leaving = asyncio.create_task(caller.app.drain())
            await asyncio.sleep(0.05)
            assert (await caller.call("GET", "/readyz", key=""))[0] == 503
            status, error, _ = await caller.call("POST", "/v1/orders", BUY)
            assert (status, error["error"], error.get("definite", True)) == (503, "not_ready", True)
            assert not leaving.done()
            engine.release()
            status, order, _ = await under_way
            assert (status, order["status"]) == (200, "new")
            await leaving
            assert stops == ["stop"]
            caller.app.stop = stop  # type: ignore[method-assign]

    asyncio.run(main())


def _record(stops: list[str]):  # type: ignore[no-untyped-def]
    async def stop() -> None:
        stops.append("stop")

    return stop


def test_the_status_is_of_now(tmp_path: Path) -> None:
    async def main() -> None:
        engine = SoloEngine()
        async with running(make_config(tmp_path), engine) as caller:
            await caller.list_market()
            view = await caller.ok("GET", "/v1/status")
            machine = caller.node.machine
            assert (view["applied_index"], view["digest"]) == (machine.applied_index, machine.digest.hex())
            assert (view["state"], view["leader"], view["ready"]) == ("leader", "dc-a", True)
            assert {peer["name"] for peer in view["peers"]} == {"dc-b", "tiebreaker"}
            assert view["disk_free_bytes"] > 0

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_probes_need_no_token(tmp_path: Path, path: str) -> None:
    async def main() -> None:
        async with running(make_config(tmp_path)) as caller, caller.session.get(caller.url + path) as response:
            assert response.status == 200

    asyncio.run(main())


def test_a_replica_outside_the_majority_does_not_come_back_by_itself(tmp_path: Path) -> None:
    """A supervisor starts it again at once: until somebody has looked, it would answer from a wrong state."""

    async def main() -> None:
        left: list[tuple[int, str]] = []
        engine = SoloEngine()
        app = App(make_config(tmp_path), engine, on_fatal=lambda code, reason: left.append((code, reason)))
        await app.start()
        # A bit fell over in its memory.
        machine, sound = app.node.machine, Machine(MemoryBacking())
        machine._state.digest = b"w" * 32
        for index in range(1, 8):
            payload = encode_batch(1, [Envelope("", "", 0, encode_command(TimeStep()))])
            engine.commit(payload)
            sound.apply(index, payload)
        for member, digest in (("dc-a", machine.digest), ("dc-b", sound.digest), ("dc-c", sound.digest)):
            report = ReportDigest(member, 7, digest, 3)
            engine.commit(encode_batch(1, [Envelope("", "", 0, encode_command(report))]))
        assert [code for code, _ in left] == [EXIT_DIVERGED]
        await app.stop()
        evidence = app.config.data_dir / DIVERGED_FILE
        assert "index 7" in evidence.read_text()
        second = SoloEngine()
        again = App(make_config(tmp_path), second, on_fatal=lambda code, reason: left.append((code, reason)))
        with pytest.raises(Diverged, match="index 7") as refused:
            await again.start()
        # The way back is said where it is needed: all of the folder aside, none of it left.
        folder = app.config.data_dir
        assert f"move the whole folder {folder} aside" in str(refused.value)
        assert "votes only when it has caught up" in str(refused.value)
        aside = folder.rename(tmp_path / "evidence")
        await again.start()
        # From the log's first entry on, past the word that its old self differed: it stays.
        for payload in engine.log:
            second.commit(payload)
        assert again.node.machine.digest_at(7) == sound.digest
        await again.stop()
        assert len(left) == 1
        assert (aside / DIVERGED_FILE).exists()

    asyncio.run(main())


def test_accounts_that_are_only_read_do_not_fill_the_memory(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(make_config(tmp_path)) as caller:
            await caller.list_market()
            machine, driver = caller.node.machine, caller.app._driver
            assert driver is not None
            machine._accounts_cached = 0
            await driver.flush()
            assert machine.cached_accounts == len(SYSTEM_ACCOUNTS)
            for account in ("alice", "bob"):
                await caller.ok("GET", f"/v1/accounts/{account}", accounts=(account,))
            assert machine.cached_accounts == len(SYSTEM_ACCOUNTS) + 2
            await driver.flush()  # with nothing to write
            assert machine.cached_accounts == len(SYSTEM_ACCOUNTS)

    asyncio.run(main())


def test_a_cluster_restored_from_a_backup_refuses_what_clients_hold_of_the_undone_future(tmp_path: Path) -> None:
    async def main() -> None:
        config = make_config(tmp_path)
        async with running(config) as caller:
            await caller.list_market()
            _, _, headers = await caller.call("POST", "/v1/orders", BUY)
            presented = {"X-Session-Token": headers["X-Session-Token"]}
            assert (await caller.call("GET", "/v1/accounts/alice", headers=presented))[0] == 200
        restored = msgspec.structs.replace(config, topology=msgspec.structs.replace(config.topology, epoch=2))
        async with running(restored) as caller:
            auditor: dict[str, Any] = {"role": "auditor", "accounts": ("*",)}
            assert (await caller.ok("GET", "/v1/status"))["epoch"] == 2
            for path, who in (("/v1/accounts/alice", {"headers": presented}), ("/v1/feed?after=0.1.3.0", auditor)):
                status, error, _ = await caller.call("GET", path, **who)
                assert (status, error["error"]) == (409, "epoch_changed"), path
            events = (await caller.ok("GET", "/v1/feed?after=0.2.0.0", **auditor))["events"]
            assert {event["position"].split(".")[1] for event in events} == {"2"}

    asyncio.run(main())


def test_the_listener_speaks_tls_when_certificates_are_configured(tmp_path: Path) -> None:
    async def main() -> None:
        make_all(tmp_path, "c", ["localhost"])
        config = make_config(tmp_path)
        config = msgspec.structs.replace(
            config, api_tls=ApiTlsFiles(tmp_path / "localhost.crt", tmp_path / "localhost.key")
        )
        trusting = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
        async with running(config) as caller:
            member = config.member
            secure = f"https://localhost:{member.api_port}"
            headers = {"Authorization": f"Bearer {caller.token('operator', '*')}"}
            async with caller.session.get(f"{secure}/v1/status", headers=headers, ssl=trusting) as response:
                assert (response.status, (await response.json())["name"]) == (200, "dc-a")
            async with caller.session.ws_connect(f"{secure}/v1/stream", headers=headers, ssl=trusting) as stream:
                assert (await stream.receive_json())["stream"] == "authorization"
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await caller.session.get(f"{secure}/v1/status", headers=headers)
            with pytest.raises(aiohttp.ClientError):
                await caller.session.get(f"http://localhost:{member.api_port}/healthz")

    asyncio.run(main())
