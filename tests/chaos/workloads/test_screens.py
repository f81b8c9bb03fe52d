"""Reads of gateways are sent when they are due, however long the ones before are under way."""

import asyncio
from pathlib import Path

import pytest

from chaos.check.availability import GATEWAY_READS_MIN
from chaos.history.file import HistoryWriter, Op, read_history
from chaos.live.playing import HEALING_S, screens_per_s
from chaos.live.scenarios import SCENARIOS
from chaos.workloads.context import Context, Tokens
from chaos.workloads.crew import Crew
from chaos.workloads.screens import Screens
from tests.node.fakes import PRIVATE_PEM, free_ports

GATEWAYS = ("gateway-dc-a", "gateway-dc-b")
ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"items":[]}'
PER_S = 60.0


async def asked(path: Path, seconds: float, *, silent: bool = False, deadline_ms: int = 500) -> list[Op]:
    """What two gateways were asked; one that is silent takes every request and answers none."""

    taken: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(writer)
        while await reader.readline():
            while (await reader.readline()).strip():
                pass
            if not silent:
                writer.write(ANSWER)

    ports = free_ports(len(GATEWAYS))
    servers = [await asyncio.start_server(serve, "127.0.0.1", port) for port in ports]
    writer = HistoryWriter(path)
    context = Context(
        writer,
        members={"dc-a": "http://127.0.0.1:1"},
        gateways={name: f"http://127.0.0.1:{port}" for name, port in zip(GATEWAYS, ports, strict=True)},
        tokens=Tokens(PRIVATE_PEM),
        seed=7,
        deadline_ms=deadline_ms,
    )
    screens = Screens(context, PER_S)
    screens.start()
    await asyncio.sleep(seconds)
    await screens.stop()
    for connection in taken:
        connection.transport.abort()
    for server in servers:
        server.close()
        await server.wait_closed()
    writer.close()
    return read_history(path).ops


@pytest.mark.parametrize("silent", [False, True], ids=["answers", "silent"])
def test_a_gateway_is_asked_as_often_when_it_is_silent(silent: bool, tmp_path: Path) -> None:
    ops = asyncio.run(asked(tmp_path / "history.jsonl", 2.0, silent=silent))
    for gateway in GATEWAYS:
        of_one = [op for op in ops if op.target == gateway]
        assert 0.5 * 2 * PER_S < len(of_one) < 1.5 * 2 * PER_S
        assert all(op.kind.startswith("read_") and op.workload == "screens" for op in of_one)
    if silent:
        assert {(op.outcome, op.error) for op in ops} == {("fail", "lost: timeout")}


def test_one_client_makes_one_call_at_a_time(tmp_path: Path) -> None:
    ops = asyncio.run(asked(tmp_path / "history.jsonl", 1.0, silent=True))
    busy: dict[int, int] = {}
    for op in sorted(ops, key=lambda op: op.call_ns):
        assert op.call_ns >= busy.get(op.process, 0)
        busy[op.process] = op.return_ns
    assert len(busy) > 20


@pytest.mark.parametrize("seconds", [5, 9, 30, 60, 600])
def test_a_run_however_short_asks_often_enough(seconds: float) -> None:
    for scenario in SCENARIOS.values():
        assert screens_per_s(scenario, seconds) * (seconds + HEALING_S) > 1.2 * GATEWAY_READS_MIN
    assert screens_per_s(SCENARIOS["dc-cut"], 60) * (60 + HEALING_S) >= 2_000


def test_a_crew_reads_screens_beside_its_work(tmp_path: Path) -> None:
    writer = HistoryWriter(tmp_path / "history.jsonl")
    gateways = dict.fromkeys(GATEWAYS, "http://127.0.0.1:1")
    context = Context(writer, members={}, gateways=gateways, tokens=Tokens(PRIVATE_PEM), seed=1)

    async def work() -> None:
        crew = Crew(context, ["ap"], rate_per_s=1.0, processes=1, screens_per_s=PER_S)
        crew.start()
        await asyncio.sleep(0.5)
        await crew.stop()

    asyncio.run(work())
    writer.close()
    ops = read_history(tmp_path / "history.jsonl").ops
    assert {op.target for op in ops if op.workload == "screens"} == set(GATEWAYS)
