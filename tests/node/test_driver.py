"""What a member does by itself: expiry, digests, flushes, and writes refused while the disk is low."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster.consensus.engine import Role
from node.config import NodeLimits, NodeTiming, Retention
from node.submit import FORWARD, Forward
from statemachine.codec import Envelope, decode_batch, decode_command, encode_batch, encode_command
from statemachine.commands import ReportDigest, TimeStep
from statemachine.events import DigestDisagreed
from statemachine.inspection import inspect_store
from tests.node.fakes import Caller, SoloEngine, make_config, running

DAY_US = 86_400_000_000
BUY = {"symbol": "ACME-USD", "side": "buy", "type": "limit", "qty": "10", "limit_price": "99.50"}
FAST = NodeTiming(flush_ms=20, digest_ms=100, digest_indexes=5, drain_ms=200, disk_check_ms=50)
SMALL = NodeLimits(store_bytes_max=64 * 1024**2, disk_free_bytes_min=0, disk_free_bytes_ok=0)


def run(tmp_path: Path, talk: Callable[[Caller, SoloEngine], Awaitable[None]], limits: NodeLimits = SMALL) -> None:
    async def main() -> None:
        engine = SoloEngine()
        async with running(make_config(tmp_path, timing=FAST, limits=limits), engine) as caller:
            await talk(caller, engine)

    asyncio.run(main())


def logged(engine: SoloEngine, kind: type[Any]) -> list[Any]:
    commands = [decode_command(one.body) for entry in engine.log for one in decode_batch(entry).commands]
    return [command for command in commands if type(command) is kind]


async def until(true: Callable[[], object], timeout_s: float = 3.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.01)


def stamp(ahead_s: float) -> str:
    moment = time.time() + ahead_s
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + f".{int(moment % 1 * 1e6):06d}Z"


def test_orders_expire_by_steps_of_the_leader(tmp_path: Path) -> None:
    async def talk(caller: Caller, engine: SoloEngine) -> None:
        await caller.list_market()
        expires_at = stamp(1.0)  # far enough for a slow machine to place all three
        for _ in range(3):
            await caller.ok("POST", "/v1/orders", {**BUY, "qty": "1", "time_in_force": "gtd", "expires_at": expires_at})
        assert not logged(engine, TimeStep)
        await until(lambda: not caller.node.machine.open_orders("alice"))
        page = await caller.ok("GET", "/v1/orders?status=closed")
        assert {one["status"] for one in page["items"]} == {"expired"}
        assert {one["reason"] for one in page["items"]} == {"gtd_expired"}
        steps = len(logged(engine, TimeStep))
        assert 1 <= steps <= 3
        await asyncio.sleep(0.1)
        assert len(logged(engine, TimeStep)) == steps

    run(tmp_path, talk)


def test_a_follower_proposes_no_step_and_answers_the_leaders_digest(tmp_path: Path) -> None:
    async def talk(caller: Caller, engine: SoloEngine) -> None:
        await caller.list_market()
        await caller.ok("POST", "/v1/orders", {**BUY, "time_in_force": "gtd", "expires_at": stamp(0.5)})
        engine.changed(role=Role.follower, leader="dc-b", term=2)
        engine.sent.clear()
        index = caller.node.machine.applied_index
        digest = caller.node.machine.digest_at(index)
        assert digest is not None
        report = Envelope("", "", 0, encode_command(ReportDigest("dc-b", index, digest, 2)))
        engine.commit(encode_batch(1, [report]))
        decode = msgspec.msgpack.Decoder(Forward).decode
        told = [
            decode_command(one.body)
            for _, kind, body in engine.sent
            if kind == FORWARD
            for one in decode(body).commands
        ]
        assert told == [ReportDigest("dc-a", index, digest, 2)]
        # A report of one that does not lead is not answered, nor our own: that would never end.
        engine.sent.clear()
        for member in ("dc-a", "dc-c"):
            engine.commit(
                encode_batch(1, [Envelope("", "", 0, encode_command(ReportDigest(member, index, digest, 2)))])
            )
        assert engine.sent == []
        await asyncio.sleep(0.6)
        assert not logged(engine, TimeStep)

    run(tmp_path, talk)


def test_a_leader_reports_its_digest_and_then_rests(tmp_path: Path) -> None:
    async def talk(caller: Caller, engine: SoloEngine) -> None:
        await caller.list_market()
        await until(lambda: len(logged(engine, ReportDigest)) >= 2)
        for report in logged(engine, ReportDigest):
            assert caller.node.machine.digest_at(report.digest_index) == report.digest
        await asyncio.sleep(0.3)
        quiet = len(engine.log)
        await asyncio.sleep(0.4)
        assert len(engine.log) == quiet

    run(tmp_path, talk)


def test_replicas_that_disagree_stop_writing(tmp_path: Path) -> None:
    async def talk(caller: Caller, engine: SoloEngine) -> None:
        await caller.list_market()
        index = caller.node.machine.applied_index
        reports = [ReportDigest(member, index, bytes([fill]) * 32, 2) for member, fill in (("dc-a", 1), ("dc-b", 2))]
        engine.commit(encode_batch(1, [Envelope("", "", 0, encode_command(report)) for report in reports]))
        status, error, _ = await caller.call("POST", "/v1/orders", BUY)
        assert (status, error["error"]) == (503, "writes_stopped")
        view = await caller.ok("GET", "/v1/status")
        assert view["writes_stopped"]

    run(tmp_path, talk)


def test_a_replica_that_differs_from_the_majority_leaves(tmp_path: Path) -> None:
    async def main() -> None:
        engine = SoloEngine()
        ended: list[tuple[int, str]] = []
        async with running(make_config(tmp_path, timing=FAST), engine) as caller:
            await caller.list_market()
            caller.app._on_fatal = lambda code, reason: ended.append((code, reason))
            told(caller, engine, others=caller.node.machine.digest, odd="dc-c")
            assert ended == []
            told(caller, engine, others=b"x" * 32, odd="dc-a")
            assert ended[0][0] == 74
            assert not caller.node.machine.writes_stopped

    asyncio.run(main())


def told(caller: Caller, engine: SoloEngine, *, others: bytes, odd: str, index: int = 0) -> None:
    """Three replicas report on `index` (the last one): two the digest of `others`, the odd one another."""
    machine = caller.node.machine
    index = index or machine.applied_index
    digest = machine.digest_at(index)
    for member in sorted(("dc-a", "dc-b", "dc-c"), key=lambda name: name == odd):
        wrong = digest if digest is not None and digest != others else b"y" * 32
        report = ReportDigest(member, index, wrong if member == odd else others, 3)
        engine.commit(encode_batch(1, [Envelope("", "", 0, encode_command(report))]))


def test_a_replica_that_was_rebuilt_does_not_leave_for_what_it_was(tmp_path: Path) -> None:
    """The log goes on saying that it differed. What counts is what it has now."""

    async def main() -> None:
        engine = SoloEngine()
        ended: list[tuple[int, str]] = []
        async with running(make_config(tmp_path, timing=FAST), engine) as caller:
            await caller.list_market()
            caller.app._on_fatal = lambda code, reason: ended.append((code, reason))
            machine = caller.node.machine
            disagreed: list[DigestDisagreed] = []
            caller.node.on_applied.append(
                lambda applied: disagreed.extend(one for one in applied.events if type(one) is DigestDisagreed)
            )
            # Replayed from before: this is what the majority had, and its old self had not.
            told(caller, engine, others=machine.digest, odd="dc-a")
            # From a snapshot behind it: no digest of that index is known here; the next report will tell.
            told(caller, engine, others=b"x" * 32, odd="dc-a", index=machine.applied_index + 1_000)
            assert [one.members for one in disagreed] == [("dc-a",)] * 2
            assert caller.node.metrics.registry.get_sample_value("tiebreak_digests_disagreed_total") == 2
            assert ended == []
            # Still wrong: it leaves again.
            told(caller, engine, others=b"x" * 32, odd="dc-a", index=machine.applied_index)
            assert [code for code, _ in ended] == [74]

    asyncio.run(main())


def test_what_is_applied_gets_to_disk_and_frees_the_log(tmp_path: Path) -> None:
    async def talk(caller: Caller, engine: SoloEngine) -> None:
        await caller.list_market()
        await until(lambda: engine.stored_index == caller.node.machine.applied_index == caller.node.store.stored_index)

    run(tmp_path, talk)


def test_writes_stop_while_the_disk_is_low_and_go_on_after(tmp_path: Path) -> None:
    async def talk(caller: Caller, engine: SoloEngine) -> None:
        await caller.list_market()
        driver = caller.app._driver
        assert driver is not None
        index = caller.node.machine.applied_index
        roomy = caller.node.config
        tight = msgspec.structs.replace(SMALL, disk_free_bytes_min=2**46, disk_free_bytes_ok=2**46)
        driver.config = msgspec.structs.replace(roomy, limits=tight)
        await until(lambda: driver.disk_low)
        for method, path, body in (("POST", "/v1/orders", BUY), ("DELETE", "/v1/orders", None)):
            status, error, headers = await caller.call(method, path, body)
            assert (status, error["error"], error.get("definite", True)) == (503, "disk_low", True)
            assert int(headers["Retry-After"]) >= 1
        assert caller.node.machine.applied_index == index
        await caller.ok("GET", "/v1/accounts/alice")
        status, _, _ = await caller.call("GET", "/readyz", key="")
        assert status == 503
        # Room above the low mark alone is not enough: it would stop and start.
        driver.config = msgspec.structs.replace(roomy, limits=msgspec.structs.replace(tight, disk_free_bytes_min=0))
        await asyncio.sleep(0.12)
        assert driver.disk_low
        driver.config = roomy
        await until(lambda: not driver.disk_low)
        await caller.ok("POST", "/v1/orders", BUY)

    run(tmp_path, talk)


def test_a_store_that_can_not_be_written_ends_the_process(tmp_path: Path) -> None:
    async def main() -> None:
        engine = SoloEngine()
        ended: list[tuple[int, str]] = []
        async with running(make_config(tmp_path, timing=FAST), engine) as caller:
            await caller.list_market()
            caller.app._on_fatal = lambda code, reason: ended.append((code, reason))
            await until(lambda: engine.stored_index == caller.node.machine.applied_index)

            def fail(point: str) -> None:
                raise OSError("no space")

            caller.node.store._failpoint = fail
            await caller.ok("POST", "/v1/orders", BUY)
            await until(lambda: ended)
            assert ended[0][0] == 73
            assert "no space" in ended[0][1]
            caller.node.store._failpoint = lambda point: None
            caller.node.store._flying = None
            driver = caller.app._driver
            assert driver is not None
            driver.flush = _nothing  # type: ignore[method-assign]

    asyncio.run(main())


def test_days_that_are_over_are_sealed_and_kept_as_long_as_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.driver.SEAL_LOOK_S", 0.02)

    async def main() -> None:
        engine = SoloEngine()
        config = make_config(tmp_path, timing=FAST, limits=SMALL)
        config = msgspec.structs.replace(config, retention=Retention(events_days=2, trades_days=1))
        async with running(config, engine) as caller:
            auditor: dict[str, Any] = {"role": "auditor", "accounts": ("*",)}
            segments = caller.node.store.segments_path

            def sealed() -> set[str]:
                return {path.name.split("-")[0] for path in segments.glob("*.seg")}

            def days_pass(days: int) -> None:
                step = Envelope("", "", 0, encode_command(TimeStep()))
                engine.commit(encode_batch(caller.node.machine.time_us + days * DAY_US, [step]))

            await caller.list_market()
            await caller.ok("POST", "/v1/orders", BUY)
            await caller.ok("POST", "/v1/orders", {**BUY, "side": "sell"}, accounts=("bob",))
            ledger = await caller.ok("GET", "/v1/ledger")
            assert sealed() == set()
            days_pass(1)
            # From here on the API reads the first day from files.
            await until(lambda: sealed() == {"events", "ledger", "trades", "closed_orders"})
            assert await caller.ok("GET", "/v1/ledger") == ledger
            assert len((await caller.ok("GET", "/v1/trades?symbol=ACME-USD"))["items"]) == 1
            assert len((await caller.ok("GET", "/v1/orders?status=closed"))["items"]) == 1
            assert (await caller.ok("GET", "/v1/feed?after=0.1.0.0", **auditor))["events"]
            days_pass(1)
            await until(lambda: "trades" not in sealed())
            page = await caller.ok("GET", "/v1/trades?symbol=ACME-USD")
            assert (page["items"], page["past_gone"]) == ([], True)
            assert "events" in sealed()
            days_pass(1)
            await until(lambda: caller.node.history.first_event_index > 1)
            status, error, _ = await caller.call("GET", "/v1/feed?after=0.1.0.0", **auditor)
            assert (status, error["error"]) == (410, "snapshot_required")
            assert await caller.ok("GET", "/v1/ledger") == ledger
        found = inspect_store(config.data_dir / "store")
        assert found.holds, found.findings

    asyncio.run(main())


async def _nothing() -> None:
    pass
