"""Who asks how often, what ends a crew, and chance that depends on the seed alone."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from chaos.history.file import HistoryWriter, read_history
from chaos.workloads import requests
from chaos.workloads.context import Context, Tokens
from chaos.workloads.crew import Crew
from chaos.workloads.process import Process, SetupFailed
from chaos.workloads.workload import Workload
from chaos.workloads.workloads import WORKLOADS
from chaos.workloads.zipf import Zipf
from node.auth import Authenticator, public_keys
from tests.node.fakes import PRIVATE_PEM, PUBLIC_PEM, free_ports

SIGNING = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    """Of a cluster of which nobody is there."""
    first, second = free_ports(2)
    writer = HistoryWriter(tmp_path / "history.jsonl")
    yield Context(
        writer,
        members={"dc-a": f"http://127.0.0.1:{first}", "dc-b": f"http://127.0.0.1:{second}"},
        gateways={},
        tokens=Tokens(SIGNING),
        seed=7,
    )
    writer.close()


class Counted(Workload):
    """Asks nobody; the first step may be slow."""

    name = "counted"
    steps: ClassVar[Counter[str]] = Counter()
    slow_s = 0.0

    async def step(self, process: Process) -> None:
        self.steps[process.home] += 1
        if self.slow_s and self.steps.total() == 1:
            await asyncio.sleep(self.slow_s)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> type[Counted]:
    monkeypatch.setitem(WORKLOADS, Counted.name, Counted)
    monkeypatch.setattr(Counted, "steps", Counter())
    return Counted


async def worked(crew: Crew, seconds: float) -> None:
    crew.start()
    await asyncio.sleep(seconds)
    await crew.stop()


def test_a_crew_keeps_its_pace_at_every_home(context: Context, counted: type[Counted]) -> None:
    asyncio.run(worked(Crew(context, ["counted"], rate_per_s=400, processes=8), 1.5))
    assert 20 < counted.steps.total() < 1_000
    assert set(counted.steps) == {"dc-a", "dc-b"}


def test_what_was_not_asked_in_time_is_not_made_up_for(
    context: Context, counted: type[Counted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counted, "slow_s", 2.0)
    asyncio.run(worked(Crew(context, ["counted"], rate_per_s=100, processes=1), 2.5))
    # Two seconds were lost in the first step, half of one may be made up for.
    assert counted.steps.total() < 160


def test_a_step_that_fails_is_told(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(Counted):
        async def step(self, process: Process) -> None:
            raise RuntimeError("what is this")

    monkeypatch.setitem(WORKLOADS, "wrong", Wrong)

    async def talk() -> None:
        crew = Crew(context, ["wrong"], rate_per_s=1_000, processes=2)
        crew.start()
        await asyncio.sleep(0.2)
        assert crew.failed
        with pytest.raises(RuntimeError, match="what is this"):
            await crew.stop()

    asyncio.run(talk())


def test_who_can_not_be_driven_is_refused(context: Context) -> None:
    with pytest.raises(KeyError):
        Crew(context, ["bank", "no-such"])
    with pytest.raises(ValueError, match="ap asks gateways"):
        Crew(context, ["ap"])


def test_a_cluster_that_is_not_there_takes_no_setup(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chaos.workloads.process.SETTLE_S", 0.3)
    with pytest.raises(SetupFailed, match="add_asset"):
        asyncio.run(Crew(context, ["bank"]).setup())


def test_what_is_refused_ends_at_once_and_is_written(context: Context, tmp_path: Path) -> None:
    async def talk() -> None:
        process = Process(context, "bank", "dc-a")
        reply = await process.ask(requests.deposit("alice", "USD", "1", key=process.new_key()))
        assert reply.outcome == "fail" and process.number == 1 and not process.retired
        await process.close()

    began = time.monotonic()
    asyncio.run(talk())
    assert time.monotonic() - began < 5
    (op,) = read_history(tmp_path / "history.jsonl").ops
    assert (op.kind, op.key, op.outcome, op.args["amount"]) == ("deposit", "bank-7-1-1", "fail", "1")
    assert context.keys == {"bank-7-1-1": "@custodian"}


def test_who_was_not_answered_goes_on_as_another(context: Context, tmp_path: Path) -> None:
    async def talk() -> None:
        def hangs_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asyncio.get_running_loop().call_later(0.05, writer.transport.abort)

        server = await asyncio.start_server(hangs_up, "127.0.0.1", int(context.members["dc-a"].rpartition(":")[2]))
        process = Process(context, "bank", "dc-a")
        process.session, process.seen = "token", 9
        for _ in range(2):
            reply = await process.ask(requests.deposit("alice", "USD", "1", key=process.new_key()), "dc-a")
            assert (reply.outcome, process.session, process.seen) == ("unknown", "", 0)
        assert process.retired == 2
        # A read that is not answered leaves nothing open.
        assert (await process.ask(requests.read_account("alice"), "dc-a")).outcome == "fail"
        assert process.retired == 2
        server.close()
        await server.wait_closed()
        await process.close()

    asyncio.run(talk())
    assert [op.process for op in read_history(tmp_path / "history.jsonl").ops] == [1, 2, 3]


def test_chance_is_of_the_seed_and_the_process_alone(context: Context) -> None:
    drawn = [Process(context, "bank", "dc-a").chance.random() for _ in range(3)]
    assert len(set(drawn)) == 3
    assert [context.chance("bank", number).random() for number in (1, 2, 3)] == drawn
    assert context.chance("orders", 1).random() != drawn[0]


def test_zipf_is_skewed_and_leaves_nobody_out() -> None:
    chance = random.Random(1)
    zipf = Zipf(range(64))
    found = Counter(zipf.one(chance) for _ in range(20_000))
    assert len(found) == 64
    assert found[0] > 8 * found[63] and sum(found[place] for place in range(8)) > 0.4 * found.total()
    assert all(first != second for first, second in (zipf.two(chance) for _ in range(1_000)))


def test_tokens_name_what_they_are_for() -> None:
    tokens = Tokens(PRIVATE_PEM)
    verify = Authenticator(public_keys(PUBLIC_PEM)).verify
    assert verify(tokens.token("custodian", subject="bank-1")).all_accounts
    trader = verify(tokens.token("trader", ["alice"], subject="orders-1"))
    assert trader.accounts == {"alice"} and trader.subject == "orders-1"
    assert tokens.token("auditor") is tokens.token("auditor")
